# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Sigmoid-EQL, first named EQLv2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..functional import sigmoid_equalization_weights
from ..functional.two_sided import WEIGHTED_BCE
from ..registry import MODELS
from .gradient_driven import GradientDrivenSigmoidLoss


@MODELS.register_module()
class SigmoidEqualizationLoss(GradientDrivenSigmoidLoss):
    r"""Sigmoid-EQL (EQLv2): both sides of each classifier, balanced.

    .. math::
        L = -\sum_j q_j t_j \log p_j + r_j (1 - t_j) \log(1 - p_j), \qquad
        r_j = f(g_j), \quad q_j = 1 + \alpha (1 - f(g_j)), \quad
        f(x) = \frac{1}{1 + e^{-\gamma (x - \mu)}}

    with :math:`g_j` the ratio of the accumulated gradients of positives and
    negatives. Tan et al., "Equalization Loss v2", CVPR 2021; "The
    Equalization Losses", TPAMI 2023.

    RoI heads get C + 1 logits, the last of which is a class-agnostic
    background classifier without weights and statistics; the test score is
    :math:`\sigma(z_j)(1 - \sigma(z_{bg}))`. Dense heads, classifiers and
    segmentation heads have C logits, and so have RoI heads with
    ``background='negatives'``.

    Args:
        gamma (float): Steepness of f, > 0.
        mu (float): Ratio at which f is 1/2.
        alpha (float): Largest additional weight of positives, >= 0.
        decay (float): See :class:`~lt_losses_mm.losses.GradientDrivenLoss`.
        bias_prior (float, optional): See
            :class:`~lt_losses_mm.losses.SigmoidLoss`.
        kwargs: See :class:`~lt_losses_mm.losses.LongTailLoss`.

    Example:
        >>> loss = SigmoidEqualizationLoss(num_classes=2)
        >>> logits = torch.zeros(4, 2)
        >>> loss(logits, torch.tensor([0, 0, 0, 1]))
        tensor(1.3863)
        >>> loss.commit()
        >>> loss.ratio
        tensor([3.0000, 0.3333], dtype=torch.float64)
        >>> loss(logits, torch.tensor([0, 0, 0, 1]))
        tensor(1.5589)
    """

    background_policies = ('objectness', 'negatives')
    plain_form = 'plain binary cross-entropy'
    sides = WEIGHTED_BCE

    def __init__(
        self,
        *args: Any,
        gamma: float = 12.0,
        mu: float = 0.8,
        alpha: float = 4.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.gamma = self._check_number('gamma', gamma)
        if self.gamma <= 0:
            raise ValueError(self._say('gamma', gamma, 'a number > 0'))
        self.mu = self._check_number('mu', mu)
        self.alpha = self._check_number('alpha', alpha, low=0)

    def columns(self, num_classes: int) -> tuple[int, ...]:
        # Other heads with C + 1 columns would take a softmax of them at test.
        if self._in_roi_head and self.background == 'objectness':
            return num_classes + 1, num_classes
        return (num_classes,)

    def _has_objectness(self, logits: Tensor) -> bool:
        return self._in_roi_head and self.background == 'objectness'

    def weights(self) -> tuple[Tensor, Tensor]:
        """Weights q of positives and r of negatives, each (C,)."""
        return sigmoid_equalization_weights(
            self.ratio, gamma=self.gamma, mu=self.mu, alpha=self.alpha
        )

    def column_parameters(self, logits: Tensor) -> tuple[Tensor, ...]:
        q, r = self.weights()
        if logits.size(1) > self.num_classes:
            one = q.new_ones(1)
            return torch.cat([q, one]), torch.cat([r, one])
        return q, r

    def saturated(self) -> Tensor:
        """Classes whose weights differ from 1 by less than a percent."""
        _, r = self.weights()
        return (1 - r) * max(1.0, self.alpha) < 0.01
