# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The embedded benchmark: long-tailed numbers of real handwritten digits."""

from __future__ import annotations

from .digits import DigitsDataset, DigitsProfile, prepare_digits

__all__ = ['DigitsDataset', 'DigitsProfile', 'prepare_digits']
