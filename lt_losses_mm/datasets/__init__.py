# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Data sets that the hosts lack, the embedded benchmark."""

from __future__ import annotations

from .cifar_lt import CIFAR10LT, CIFAR100LT, long_tail_counts
from .digits import DigitsDataset, DigitsProfile, prepare_digits
from .image_list import ImageListDataset

__all__ = [
    'CIFAR10LT',
    'CIFAR100LT',
    'DigitsDataset',
    'DigitsProfile',
    'ImageListDataset',
    'long_tail_counts',
    'prepare_digits',
]
