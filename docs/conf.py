# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Sphinx: ``sphinx-build -W -b html docs docs/_build/html``."""

from lt_losses_mm import __version__

project = 'lt_losses_mm'
author = 'the lt_losses_mm authors'
copyright = f'{author}, Apache-2.0'
release = __version__

extensions = [
    'myst_parser',
    'sphinx.ext.autodoc',
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
