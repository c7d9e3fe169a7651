# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Class counts: from a list, a file, a benchmark's name or a data set."""

from .auto import count_dataset, natural_counts
from .counts import (
    BENCHMARKS,
    UNITS,
    ClassCounts,
    frequency_groups,
    frequency_thirds,
    load_class_counts,
)
from .names import class_names, empty_classes, joined, same_labels
from .sampling import expected_draws, rebalanced_by

__all__ = [
    'BENCHMARKS',
    'UNITS',
    'ClassCounts',
    'class_names',
    'count_dataset',
    'empty_classes',
    'expected_draws',
    'frequency_groups',
    'frequency_thirds',
    'joined',
    'load_class_counts',
    'natural_counts',
    'rebalanced_by',
    'same_labels',
]
