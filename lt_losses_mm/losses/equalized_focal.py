# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Equalized Focal Loss and its quality form."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..functional import (
    equalized_focal_factors,
    equalized_quality_focal_loss,
    equalized_quality_focal_sums,
)
from ..functional.equalization import (
    FOCAL,
    QUALITY_FOCAL,
    focal_parameters,
    where_of_quality,
)
from ..functional.two_sided import upcast
from ..kernels import Batch, Sums, sigmoid_rows
from ..registry import MODELS
from .gradient_driven import GradientDrivenSigmoidLoss


class _EqualizedFocal(GradientDrivenSigmoidLoss):
    """The factors that both forms share."""

    alpha = -1.0  # weighs neither side
    background_policies = ('negatives',)

    def __init__(
        self,
        *args: Any,
        gamma: float = 2.0,
        scale_factor: float = 8.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.gamma = self._check_number('gamma', gamma)
        if self.gamma < 1:
            raise ValueError(
                self._say(
                    'gamma',
                    gamma,
                    'a number >= 1',
                    'the derivative of |q - p|^gamma is infinite below it',
                )
            )
        self.scale_factor = self._check_number(
            'scale_factor', scale_factor, low=0
        )

    def factors(self) -> tuple[Tensor, Tensor]:
        """Focusing factors and weights, each (C,)."""
        return equalized_focal_factors(
            self.ratio, gamma=self.gamma, scale_factor=self.scale_factor
        )

    def column_parameters(self, logits: Tensor) -> tuple[Tensor, ...]:
        return focal_parameters(*self.factors(), self.alpha)

    def saturated(self) -> Tensor:
        """Classes at the clamp: their ratio is at least 1."""
        return self.ratio >= 1


@MODELS.register_module()
class EqualizedFocalLoss(_EqualizedFocal):
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
        decay (float): See :class:`~lt_losses_mm.losses.GradientDrivenLoss`.
        bias_prior (float, optional): See
            :class:`~lt_losses_mm.losses.SigmoidLoss`.
        kwargs: See :class:`~lt_losses_mm.losses.LongTailLoss`.

    Example:
        >>> import torch
        >>> loss = EqualizedFocalLoss(num_classes=2)
        >>> logits, labels = torch.zeros(4, 2), torch.tensor([0, 0, 0, 1])
        >>> loss(logits, labels)
        tensor(0.1733)
        >>> loss.commit()
        >>> loss.factors()[0]
        tensor([2.0000, 9.1111], dtype=torch.float64)
    """

    plain_form = 'plain focal loss'
    sides = FOCAL

    def __init__(self, *args: Any, alpha: float = 0.25, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.alpha = self._check_number('alpha', alpha)
        if self.alpha > 1:
            raise ValueError(
                self._say('alpha', alpha, 'a number in [0, 1], or < 0 for off')
            )


@MODELS.register_module()
class EqualizedQualityFocalLoss(_EqualizedFocal):
    r"""Quality Focal Loss with the factors of Equalized Focal Loss.

    .. math:: L = \sum_j w_j\, |q_j - p_j|^{\gamma_j}\, BCE(z_j, q_j)

    with the quality of the prediction (its IoU) as the target :math:`q_j` at
    the label, and 0 elsewhere. From the code of Li et al., CVPR 2022, over
    Quality Focal Loss (Li et al., "Generalized Focal Loss", NeurIPS 2020).

    Labels may be ``(labels, quality)``, as GFL, LD, RTMDet and TOOD heads
    pass; a map of qualities of the logits' shape, as VFNet passes; or index
    labels, whose quality is 1.

    Args:
        gamma (float): :math:`\gamma_b`, >= 1; that of the plain form.
        scale_factor (float): s, >= 0; 0 is the plain Quality Focal Loss.
        activated (bool): Whether the head passes probabilities in place of
            logits, as TOODHead does; the key of mmdet's own losses.
        decay (float): See :class:`~lt_losses_mm.losses.GradientDrivenLoss`.
        bias_prior (float, optional): See
            :class:`~lt_losses_mm.losses.SigmoidLoss`.
        kwargs: See :class:`~lt_losses_mm.losses.LongTailLoss`.

    Example:
        >>> import torch
        >>> loss = EqualizedQualityFocalLoss(num_classes=2)
        >>> labels, quality = torch.tensor([0, 2]), torch.tensor([0.5, 0.0])
        >>> loss(torch.zeros(2, 2), (labels, quality))
        tensor(0.2599)
    """

    takes_quality = True
    plain_form = 'plain Quality Focal Loss'
    sides = QUALITY_FOCAL

    def __init__(
        self, *args: Any, activated: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.activated = activated

    def forward(self, cls_score: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.activated:
            cls_score = upcast(cls_score)
            cls_score = cls_score.logit(torch.finfo(cls_score.dtype).eps)
        return super().forward(cls_score, *args, **kwargs)

    def rows_and_sums(self, batch: Batch) -> tuple[Tensor, Sums]:
        logits, labels = batch.logits, batch.labels
        if labels.is_floating_point():
            # A map of qualities is no mixture of samples.
            factors = self.factors()
            loss = equalized_quality_focal_loss(logits, labels, *factors)
            if batch.element_weight is not None:
                loss = loss * batch.element_weight.to(loss.dtype)
            rows = loss.sum(1)
            if not batch.learns:
                return rows, None
            with torch.no_grad():
                return rows, equalized_quality_focal_sums(
                    logits, labels, *factors, weight=batch.weight
                )
        quality = batch.quality
        if quality is None:
            quality = torch.ones_like(labels, dtype=torch.float32)
        present = where_of_quality(
            labels, quality, logits.size(1), batch.ignore_index
        )
        return sigmoid_rows(
            self.sides,
            self.parameters_for(logits),
            replace(batch, labels=present),
            at_label=(quality,),
            sums=batch.learns,
        )
