# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The definition of every loss, in torch: stated here and nowhere else."""

from .softmax import Dropped, Seesaw, Shifted, SoftmaxFormula
from .two_sided import (
    FOCAL,
    QUALITY_FOCAL,
    SHIFTED_BCE,
    WEIGHTED_BCE,
    Sides,
    TwoSided,
)

__all__ = [
    'FOCAL',
    'QUALITY_FOCAL',
    'SHIFTED_BCE',
    'WEIGHTED_BCE',
    'Dropped',
    'Seesaw',
    'Shifted',
    'Sides',
    'SoftmaxFormula',
    'TwoSided',
]
