# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Registered losses: one class a file, over one base."""

from .balanced_sigmoid import BalancedSigmoidLoss
from .balanced_softmax import BalancedSoftmaxLoss, ClassesAndObjectness
from .base import LongTailLoss
from .equalization import EqualizationLoss
from .equalized_focal import EqualizedFocalLoss, EqualizedQualityFocalLoss
from .gradient_driven import GradientDrivenLoss, GradientDrivenSigmoidLoss
from .running import RunningLoss
from .seesaw import SeesawSoftmaxLoss
from .sigmoid import SigmoidLoss
from .sigmoid_equalization import SigmoidEqualizationLoss
from .softmax_equalization import SoftmaxEqualizationLoss

__all__ = [
    'BalancedSigmoidLoss',
    'BalancedSoftmaxLoss',
    'ClassesAndObjectness',
    'EqualizationLoss',
    'EqualizedFocalLoss',
    'EqualizedQualityFocalLoss',
    'GradientDrivenLoss',
    'GradientDrivenSigmoidLoss',
    'LongTailLoss',
    'RunningLoss',
    'SeesawSoftmaxLoss',
    'SigmoidEqualizationLoss',
    'SigmoidLoss',
    'SoftmaxEqualizationLoss',
]
