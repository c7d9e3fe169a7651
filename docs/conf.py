# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Sphinx: ``sphinx-build -W -b html docs docs/_build/html``."""

from importlib import import_module

from docutils.statemachine import StringList
from sphinx.ext.autosummary import Autosummary

from lt_losses_mm import __version__

project = 'lt_losses_mm'
author = 'the lt_losses_mm authors'
copyright = f'{author}, Apache-2.0'
release = __version__

extensions = [
    'myst_parser',
    'sphinx.ext.autodoc',
    'sphinx.ext.autosummary',
    'sphinx.ext.napoleon',
    'sphinx.ext.viewcode',
]
myst_enable_extensions = ['dollarmath', 'deflist']
myst_heading_anchors = 3
exclude_patterns = ['_build']

autodoc_member_order = 'bysource'
# A registered class is configured through its constructor only.
autodoc_class_signature = 'separated'
napoleon_use_rtype = False

html_theme = 'furo'
html_title = f'lt_losses_mm {__version__}'


class Exported(Autosummary):
    """A line for each class and function that a module exports.

    ``.. exported:: MODULE``, or ``MODULE:NAME`` for a sequence of classes in
    it: what is added there is on the page without an edit.
    """

    required_arguments = 1

    def run(self):
        """Fill in the names."""
        module, _, name = self.arguments[0].partition(':')
        room = import_module(module)
        names = getattr(room, '__all__', None) or [
            name
            for name, member in vars(room).items()
            if getattr(member, '__module__', '') == module
            and not name.startswith('_')
        ]
        if name:
            names = [member.__name__ for member in getattr(room, name)]
        self.options['nosignatures'] = True
        self.content = StringList(
            [
                f'~{module}.{name}'
                for name in names
                if callable(getattr(room, name))
            ]
        )
        return super().run()


def setup(app):
    """Let pages use the directive."""
    app.add_directive('exported', Exported)
