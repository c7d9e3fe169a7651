# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Softmax-EQL."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..kernels import Batch, Sums
from ..registry import MODELS
from .balanced_softmax import BalancedSoftmaxLoss
from .gradient_driven import GradientDrivenLoss

_INDICATORS = ('pos', 'neg', 'both')


@MODELS.register_module()
class SoftmaxEqualizationLoss(GradientDrivenLoss, BalancedSoftmaxLoss):
    r"""Softmax-EQL: Balanced Softmax whose prior is learned from gradients.

    .. math:: L = CE(z + \tau \log s, y), \qquad s_j = \max(G_j, \epsilon)

    where :math:`G_j` are the accumulated gradients of class j. Tan et al.,
    "The Equalization Losses", TPAMI 2023. Predictions come from the plain
    logits. Background rows of RoI heads are treated as in Balanced Softmax.

    Args:
        indicator (str): G: gradients of ``'pos'`` (positives), ``'neg'``
            (negatives) or ``'both'`` (their sum).
        eps (float): Least value of s, > 0. Statistics are sums over rows, so
            that one misclassified sample of a class is worth up to 1, whether
            rows are images, RoIs or pixels.
        tau (float): Strength of the correction, >= 0; 0 turns it off.
        decay (float): See :class:`~lt_losses_mm.losses.GradientDrivenLoss`.
        kwargs: See :class:`~lt_losses_mm.losses.LongTailLoss`.

    Example:
        >>> import torch
        >>> loss = SoftmaxEqualizationLoss(num_classes=2)
        >>> logits, labels = torch.zeros(4, 2), torch.tensor([0, 0, 0, 1])
        >>> loss(logits, labels)
        tensor(0.6931)
        >>> loss.commit()
        >>> loss.pos_grad
        tensor([1.5000, 0.5000], dtype=torch.float64)
        >>> loss(logits, labels, reduction_override='none')
        tensor([0.2877, 0.2877, 0.2877, 1.3863])
    """

    plain_form = 'plain cross-entropy'

    def __init__(
        self,
        *args: Any,
        indicator: str = 'pos',
        eps: float = 1e-4,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if indicator not in _INDICATORS:
            raise ValueError(
                self._say('indicator', indicator, f'one of {_INDICATORS}')
            )
        self.indicator = indicator
        self.eps = self._check_number('eps', eps)
        if not self.eps > 0:
            raise ValueError(self._say('eps', eps, 'a number > 0'))

    @property
    def _gradients(self) -> Tensor:
        if self.indicator == 'pos':
            return self.pos_grad
        if self.indicator == 'neg':
            return self.neg_grad
        return self.pos_grad + self.neg_grad

    @property
    def prior_counts(self) -> Tensor:
        """s, (C,)."""
        return self._gradients.clamp(min=self.eps)

    def rows_and_sums(self, batch: Batch) -> tuple[Tensor, Sums]:
        return self.class_rows(batch, sums=batch.learns)

    def saturated(self) -> Tensor:
        """Classes whose s is the floor."""
        return self._gradients <= self.eps
