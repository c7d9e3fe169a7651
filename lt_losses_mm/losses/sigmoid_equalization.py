# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Sigmoid-EQL, first named EQLv2."""

from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor

from ..functional import sigmoid_equalization_weights
from ..kernels import WEIGHTED_BCE, TwoSided
from ..statistics import GradientStatistics
from .arguments import number, passed_on
from .background import SigmoidBackground
from .sigmoid import SigmoidLoss


class SigmoidEqualizationLoss(SigmoidLoss):
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
        steepness (float): :math:`\gamma`, that of f, > 0.
        mu (float): Ratio at which f is 1/2.
        boost (float): :math:`\alpha`, the largest additional weight of
            positives, >= 0.
        decay (float): Factor on the statistics at every optimizer step, in
            (0, 1]; 1, the published form, never forgets.

    Example:
        >>> loss = SigmoidEqualizationLoss(num_classes=2)
        >>> logits = torch.zeros(4, 2)
        >>> loss(logits, torch.tensor([0, 0, 0, 1]))
        tensor(1.3863)
        >>> loss.statistics.commit()
        >>> loss.statistics.ratio
        tensor([3.0000, 0.3333], dtype=torch.float64)
        >>> loss(logits, torch.tensor([0, 0, 0, 1]))
        tensor(1.5589)
    """

    uses_counts = False
    statistics: GradientStatistics
    background: SigmoidBackground
    background_policies = ('objectness', 'negatives')
    neutral = dict()  # until the first commit

    def __init__(
        self,
        num_classes: int | None = None,
        class_counts: str | Sequence[float] | Tensor | None = None,
        steepness: float = 12.0,
        mu: float = 0.8,
        boost: float = 4.0,
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
        self.steepness = number(owner, 'steepness', steepness, above=0)
        self.mu = number(owner, 'mu', mu)
        self.boost = number(owner, 'boost', boost, low=0)
        self.statistics = GradientStatistics(
            getattr(self, 'num_classes', 0), decay, owner
        )

    def weights(self) -> tuple[Tensor, Tensor]:
        """Weights q of positives and r of negatives, each (C,)."""
        return sigmoid_equalization_weights(
            self.statistics.ratio,
            gamma=self.steepness,
            mu=self.mu,
            alpha=self.boost,
        )

    def formula(self, columns: int, dtype: torch.dtype) -> TwoSided:
        weights = [
            self.background.pad(w, columns, 1.0).to(dtype)
            for w in self.weights()
        ]
        return TwoSided(WEIGHTED_BCE, weights)

    def saturated(self) -> Tensor:
        """Classes whose weights differ from 1 by less than a percent."""
        _, r = self.weights()
        return (1 - r) * max(1.0, self.boost) < 0.01
