# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The maths: pure functions of tensors, without reduction and state."""

from .balanced import (
    balanced_sigmoid_cross_entropy,
    balanced_softmax_cross_entropy,
    shifted_sigmoid_cross_entropy,
    shifted_softmax_cross_entropy,
)
from .draw import random_drops
from .equalization import (
    equalization_weights,
    equalized_focal_factors,
    equalized_focal_loss,
    equalized_focal_sums,
    equalized_quality_focal_loss,
    equalized_quality_focal_sums,
    shifted_softmax_sums,
    sigmoid_equalization_weights,
    softmax_equalization_v1,
    weighted_sigmoid_cross_entropy,
    weighted_sigmoid_sums,
    without_object,
)
from .seesaw import seesaw_cross_entropy, seesaw_logits

__all__ = [
    'balanced_sigmoid_cross_entropy',
    'balanced_softmax_cross_entropy',
    'equalization_weights',
    'equalized_focal_factors',
    'equalized_focal_loss',
    'equalized_focal_sums',
    'equalized_quality_focal_loss',
    'equalized_quality_focal_sums',
    'random_drops',
    'seesaw_cross_entropy',
    'seesaw_logits',
    'shifted_sigmoid_cross_entropy',
    'shifted_softmax_cross_entropy',
    'shifted_softmax_sums',
    'sigmoid_equalization_weights',
    'softmax_equalization_v1',
    'weighted_sigmoid_cross_entropy',
    'weighted_sigmoid_sums',
    'without_object',
]
