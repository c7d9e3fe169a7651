# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Softmax-EQL."""

from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor

from ..kernels import Shifted
from ..messages import fault
from ..statistics import GradientStatistics
from .arguments import number, passed_on
from .softmax import SoftmaxLoss

_INDICATORS = ('pos', 'neg', 'both')


class SoftmaxEqualizationLoss(SoftmaxLoss):
    r"""Softmax-EQL: Balanced Softmax whose prior is learned from gradients.

    .. math:: L = CE(z + \tau \log s, y), \qquad s_j = \max(G_j, \epsilon)

    where :math:`G_j` are the accumulated gradients of class j. Tan et al.,
    "The Equalization Losses", TPAMI 2023. Predictions come from the plain
    logits. Background rows of RoI heads are treated as in Balanced Softmax.

    Args:
        indicator (str): G: gradients of ``'pos'`` (positives), ``'neg'``
            (negatives) or ``'both'`` (their sum).
        floor (float): :math:`\epsilon`, least value of s, > 0. Statistics are
            sums over rows, so that one misclassified sample of a class is
            worth up to 1, whether rows are images, RoIs or pixels.
        tau (float): Strength of the correction, >= 0; 0 turns it off.
        decay (float): Factor on the statistics at every optimizer step, in
            (0, 1]; 1, the published form, never forgets.

    Example:
        >>> import torch
        >>> loss = SoftmaxEqualizationLoss(num_classes=2)
        >>> logits, labels = torch.zeros(4, 2), torch.tensor([0, 0, 0, 1])
        >>> loss(logits, labels)
        tensor(0.6931)
        >>> loss.statistics.commit()
        >>> loss.statistics.pos_grad
        tensor([1.5000, 0.5000], dtype=torch.float64)
        >>> loss(logits, labels, reduction_override='none')
        tensor([0.2877, 0.2877, 0.2877, 1.3863])
    """

    uses_counts = False
    statistics: GradientStatistics
    tau: float
    neutral = dict(tau=0)

    def __init__(
        self,
        num_classes: int | None = None,
        class_counts: str | Sequence[float] | Tensor | None = None,
        indicator: str = 'pos',
        floor: float = 1e-4,
        tau: float = 1.0,
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
    ) -> None:
        super().__init__(**passed_on(SoftmaxLoss, locals()))
        owner = type(self).__name__
        if indicator not in _INDICATORS:
            raise fault(
                'indicator', indicator, f'one of {_INDICATORS}', owner=owner
            )
        self.indicator = indicator
        self.floor = number(owner, 'floor', floor, above=0)
        self.tau = number(owner, 'tau', tau, low=0)
        self.statistics = GradientStatistics(
            getattr(self, 'num_classes', 0), decay, owner
        )

    def _gradients(self) -> Tensor:
        known = self.statistics
        if self.indicator == 'pos':
            return known.pos_grad
        if self.indicator == 'neg':
            return known.neg_grad
        return known.pos_grad + known.neg_grad

    def learned_prior(self) -> Tensor:
        """s, (C,), float64; it is proportional to the prior."""
        return self._gradients().clamp(min=self.floor)

    def formula(self, columns: int, dtype: torch.dtype) -> Shifted:
        shift = self.background.shift(self.learned_prior(), columns)
        return Shifted((self.tau * shift).to(dtype))

    def saturated(self) -> Tensor:
        """Classes whose s is the floor."""
        return self._gradients() <= self.floor
