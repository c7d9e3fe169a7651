# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The losses, and what they are made of."""

from __future__ import annotations

from .balanced_sigmoid import BalancedSigmoidLoss
from .balanced_softmax import BalancedSoftmaxLoss
from .base import LongTailLoss
from .equalization import EqualizationLoss, EqualizationSoftmaxLoss
from .equalized_focal import EqualizedFocalLoss, EqualizedQualityFocalLoss
from .seesaw import SeesawSoftmaxLoss
from .sigmoid import SigmoidLoss
from .sigmoid_equalization import SigmoidEqualizationLoss
from .softmax import SoftmaxLoss
from .softmax_equalization import SoftmaxEqualizationLoss
from .vs import VSLoss

# All that a config can name: the one list of losses. Registries, benchmarks,
# contract tests, the dry run and the documentation are derived from it.
LOSSES: tuple[type[LongTailLoss], ...] = (
    BalancedSoftmaxLoss,
    BalancedSigmoidLoss,
    EqualizationLoss,
    EqualizationSoftmaxLoss,
    SeesawSoftmaxLoss,
    SoftmaxEqualizationLoss,
    SigmoidEqualizationLoss,
    EqualizedFocalLoss,
    EqualizedQualityFocalLoss,
    VSLoss,
)

__all__ = [
    'LOSSES',
    'LongTailLoss',
    'SigmoidLoss',
    'SoftmaxLoss',
    *sorted(cls.__name__ for cls in LOSSES),
]
