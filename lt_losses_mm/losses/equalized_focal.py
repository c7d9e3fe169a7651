# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Equalized Focal Loss and its quality form."""

from __future__ import annotations

from typing import Any, Sequence

import torch
from torch import Tensor

from ..functional import equalized_focal_factors
from ..kernels import FOCAL, QUALITY_FOCAL, TwoSided
from ..kernels.formulas.two_sided import focal_parameters
from ..messages import fault
from ..statistics import GradientStatistics
from .arguments import number, passed_on
from .sigmoid import SigmoidLoss


def _focusing(owner: str, key: str, value: Any) -> float:
    checked = number(owner, key, value)
    if checked < 1:
        raise fault(
            key,
            value,
            'a number >= 1',
            f'the derivative of |q - p|^{key} is infinite below it: raise it',
            owner,
        )
    return checked


def _saturated(self: Any) -> Tensor:
    """Classes at the clamp: their ratio is at least 1."""
    return self.statistics.ratio >= 1


class EqualizedFocalLoss(SigmoidLoss):
    r"""Focal loss whose focusing and weight follow each class's gradients.

    .. math::
        L = -\sum_j \alpha_t w_j (1 - p_t)^{\gamma_j} \log p_t, \qquad
        \gamma_j = \gamma_b + s (1 - g_j), \quad w_j = \gamma_j / \gamma_b

    with :math:`g_j` the ratio of the accumulated gradients of positives and
    negatives, clamped to [0, 1]. Li et al., "Equalized Focal Loss for Dense
    Long-Tailed Object Detection", CVPR 2022. Finite at logits of
    1e4 and beyond.

    All heads have C logits; rows of background are negatives of all classes.

    Args:
        gamma (float): :math:`\gamma_b`, >= 1; that of the plain focal loss.
        alpha (float): Weight of positives, in [0, 1], 1 - alpha of negatives;
            < 0 for neither.
        scale_factor (float): s, >= 0; published: 8 for ATSS and RetinaNet, 4
            for YOLOX. 0 is the plain focal loss.
        decay (float): Factor on the statistics at every optimizer step, in
            (0, 1]; 1, the published form, never forgets.

    Example:
        >>> import torch
        >>> loss = EqualizedFocalLoss(num_classes=2)
        >>> logits, labels = torch.zeros(4, 2), torch.tensor([0, 0, 0, 1])
        >>> loss(logits, labels)
        tensor(0.1733)
        >>> loss.statistics.commit()
        >>> loss.factors()[0]
        tensor([2.0000, 9.1111], dtype=torch.float64)
    """

    uses_counts = False
    statistics: GradientStatistics
    background_policies = ('negatives',)
    neutral = dict(scale_factor=0)
    focal = True
    plain_form = 'plain focal loss'

    def __init__(
        self,
        num_classes: int | None = None,
        class_counts: str | Sequence[float] | Tensor | None = None,
        gamma: float = 2.0,
        alpha: float = 0.25,
        scale_factor: float = 8.0,
        decay: float = 1.0,
        count_unit: str | None = None,
        background: str | float | None = None,
        loss_weight: float = 1.0,
        reduction: str = 'mean',
        ignore_index: int | None = None,
        avg_non_ignore: bool = False,
        class_weight: Sequence[float] | None = None,
        loss_name: str | None = None,
        use_sigmoid: bool | None = None,
        overwrite_logits: bool = False,
        engine: str | None = None,
        bias_prior: float | str | None = 'auto',
    ) -> None:
        super().__init__(**passed_on(SigmoidLoss, locals()))
        owner = type(self).__name__
        self.gamma = _focusing(owner, 'gamma', gamma)
        self.scale_factor = number(owner, 'scale_factor', scale_factor, low=0)
        self.alpha = number(owner, 'alpha', alpha)
        if self.alpha > 1:
            raise fault(
                'alpha',
                alpha,
                'a number in [0, 1], or < 0 for off',
                owner=owner,
            )
        self.statistics = GradientStatistics(
            getattr(self, 'num_classes', 0), decay, owner
        )

    def factors(self) -> tuple[Tensor, Tensor]:
        """Focusing factors and weights, each (C,)."""
        return equalized_focal_factors(
            self.statistics.ratio,
            gamma=self.gamma,
            scale_factor=self.scale_factor,
        )

    saturated = _saturated

    def formula(self, columns: int, dtype: torch.dtype) -> TwoSided:
        parameters = focal_parameters(*self.factors(), self.alpha)
        return TwoSided(FOCAL, [p.to(dtype) for p in parameters])


class EqualizedQualityFocalLoss(SigmoidLoss):
    r"""Quality Focal Loss with the factors of Equalized Focal Loss.

    .. math:: L = \sum_j w_j\, |q_j - p_j|^{\gamma_j}\, BCE(z_j, q_j)

    with the quality of the prediction (its IoU) as the target :math:`q_j` at
    the label, and 0 elsewhere. From the code of Li et al., CVPR 2022, over
    Quality Focal Loss (Li et al., "Generalized Focal Loss", NeurIPS 2020).

    Labels may be ``(labels, quality)``, as GFL, LD, RTMDet and TOOD heads
    pass; a map of qualities of the logits' shape, as VFNet passes; or index
    labels, whose quality is 1.

    Args:
        beta (float): :math:`\gamma_b`, >= 1; that of the plain form.
        scale_factor (float): s, >= 0; 0 is the plain Quality Focal Loss.
        activated (bool): Whether the head passes probabilities in place of
            logits, as TOODHead does; the key of mmdet's own losses.
        decay (float): Factor on the statistics at every optimizer step, in
            (0, 1]; 1, the published form, never forgets.

    Example:
        >>> import torch
        >>> loss = EqualizedQualityFocalLoss(num_classes=2)
        >>> labels, quality = torch.tensor([0, 2]), torch.tensor([0.5, 0.0])
        >>> loss(torch.zeros(2, 2), (labels, quality))
        tensor(0.2599)
    """

    uses_counts = False
    statistics: GradientStatistics
    background_policies = ('negatives',)
    takes_quality = True
    neutral = dict(scale_factor=0)
    focal = True
    plain_form = 'plain Quality Focal Loss'

    def __init__(
        self,
        num_classes: int | None = None,
        class_counts: str | Sequence[float] | Tensor | None = None,
        beta: float = 2.0,
        scale_factor: float = 8.0,
        activated: bool = False,
        decay: float = 1.0,
        count_unit: str | None = None,
        background: str | float | None = None,
        loss_weight: float = 1.0,
        reduction: str = 'mean',
        ignore_index: int | None = None,
        avg_non_ignore: bool = False,
        class_weight: Sequence[float] | None = None,
        loss_name: str | None = None,
        use_sigmoid: bool | None = None,
        overwrite_logits: bool = False,
        engine: str | None = None,
        bias_prior: float | str | None = 'auto',
    ) -> None:
        super().__init__(**passed_on(SigmoidLoss, locals()))
        owner = type(self).__name__
        self.beta = _focusing(owner, 'beta', beta)
        self.scale_factor = number(owner, 'scale_factor', scale_factor, low=0)
        self.activated = activated
        self.statistics = GradientStatistics(
            getattr(self, 'num_classes', 0), decay, owner
        )

    def factors(self) -> tuple[Tensor, Tensor]:
        """Focusing factors and weights, each (C,)."""
        return equalized_focal_factors(
            self.statistics.ratio,
            gamma=self.beta,
            scale_factor=self.scale_factor,
        )

    saturated = _saturated

    def formula(self, columns: int, dtype: torch.dtype) -> TwoSided:
        parameters = focal_parameters(*self.factors())
        return TwoSided(QUALITY_FOCAL, [p.to(dtype) for p in parameters])
