# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The version, alone, so that packaging tools can read it cheaply."""

__version__ = '0.1.0'
