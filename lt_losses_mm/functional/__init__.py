# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The maths: pure functions of tensors, without reduction and state."""

from .balanced import (
    balanced_sigmoid_cross_entropy,
    balanced_softmax_cross_entropy,
    shifted_sigmoid_cross_entropy,
    shifted_softmax_cross_entropy,
)

__all__ = [
    'balanced_sigmoid_cross_entropy',
    'balanced_softmax_cross_entropy',
    'shifted_sigmoid_cross_entropy',
    'shifted_softmax_cross_entropy',
]
