# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Data sets that the hosts lack, the embedded benchmark, format doubles."""

from __future__ import annotations

from .cifar_lt import CIFAR10LT, CIFAR100LT, long_tail_counts
from .digits import DigitsDataset, DigitsProfile, prepare_digits
from .doubles import DOUBLES, make_double
from .image_list import ImageListDataset

__all__ = [
    'CIFAR10LT',
    'CIFAR100LT',
    'DOUBLES',
    'DigitsDataset',
    'DigitsProfile',
    'ImageListDataset',
    'long_tail_counts',
    'make_double',
    'prepare_digits',
]
