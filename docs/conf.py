# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Sphinx: ``sphinx-build -W -b html docs docs/_build/html``."""

import re
from importlib import import_module

from docutils.nodes import SkipNode, math_block
from docutils.statemachine import StringList
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from matplotlib import get_data_path
from sphinx.addnodes import pending_xref
from sphinx.ext.autosummary import Autosummary
from sphinx.util.logging import getLogger

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
# Of an override, and of nn.Module's methods, the page would say twice what
# the base says.
autodoc_inherit_docstrings = False
python_maximum_signature_line_length = 79
napoleon_use_rtype = False

html_theme = 'furo'
html_title = f'lt_losses_mm {__version__}'
# Browsers draw MathML themselves, so pages need no script and no internet.
html_math_renderer = 'mathml'
html_static_path = ['_static', f'{get_data_path()}/fonts/ttf/DejaVuSerif.ttf']
html_css_files = ['formulas.css']


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


def formula(translator, node):
    """Write a formula as MathML."""
    is_block = isinstance(node, math_block)
    try:
        markup = tex2mathml(node.astext(), as_block=is_block)
    except MathError as error:
        getLogger(__name__).warning('%s', error, location=node)
        raise SkipNode from error
    markup = markup.replace(
        '<mo>&ApplyFunction;', '<mo rspace="0.15em">&ApplyFunction;'
    )
    if is_block:
        markup = f'<div class="math">{markup}</div>'
    translator.body.append(markup)
    raise SkipNode


def link_guides(app, doctree):
    """Lead links to the README of a folder of configs to its page.

    What else lies beside the pages of the documentation is not linked.
    """
    for link in list(doctree.findall(pending_xref)):
        path = link['reftarget']
        if path.startswith(('/', '../')) or path.endswith('.py'):
            name = re.fullmatch(r'.*/configs/(.+)/README', path)
            page = f'guides/{name[1]}' if name else ''
            if page in app.env.found_docs:
                link['reftarget'] = page
            else:
                link.replace_self(link.children)


def setup(app):
    """Let pages use the directive, and formulas and guides be drawn."""
    app.add_directive('exported', Exported)
    app.add_html_math_renderer('mathml', (formula, None), (formula, None))
    app.connect('doctree-read', link_guides)
