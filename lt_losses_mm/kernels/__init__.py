# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The losses of ``functional/`` in one pass over the logits."""

from .rows import (
    Batch,
    Dropped,
    Seesaw,
    Shifted,
    Sums,
    sigmoid_rows,
    softmax_rows,
    split_columns,
)
from .switch import PATHS, path, use_path

__all__ = [
    'PATHS',
    'Batch',
    'Dropped',
    'Seesaw',
    'Shifted',
    'Sums',
    'path',
    'sigmoid_rows',
    'softmax_rows',
    'split_columns',
    'use_path',
]
