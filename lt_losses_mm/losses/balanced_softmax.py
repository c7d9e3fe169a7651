# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Balanced Softmax."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..functional import shifted_softmax_cross_entropy
from ..priors.shift import softmax_shift
from ..registry import MODELS
from .base import LongTailLoss


@MODELS.register_module()
class BalancedSoftmaxLoss(LongTailLoss):
    r"""Cross-entropy whose logits are shifted by the log prior in training.

    .. math:: L = CE(z + \tau \log\pi, y)

    Ren et al., "Balanced Meta-Softmax for Long-Tailed Visual Recognition",
    NeurIPS 2020, Eq. 4 (tau = 1); Menon et al., "Long-tail learning via logit
    adjustment", ICLR 2021, Eq. 10. Predictions come from the plain logits.

    With ``background='objectness'`` (RoI heads) the head gets C + 2 logits:
    the classes compete among themselves on rows with an object, and two
    further logits tell objects from background on all rows; the test score is
    the product, as in Seesaw Loss (Wang et al., CVPR 2021, Sec. 3.3).

    Args:
        tau (float): Strength of the correction, >= 0; 0 turns it off.
        kwargs: See :class:`~lt_losses_mm.losses.LongTailLoss`.

    Example:
        >>> import torch
        >>> loss = BalancedSoftmaxLoss(class_counts=[90, 10])
        >>> logits = torch.zeros(2, 2)
        >>> loss(logits, torch.tensor([0, 1]), reduction_override='none')
        tensor([0.1054, 2.3026])
    """

    use_sigmoid = False
    background_policies = ('keep_odds', 'objectness', float)

    def __init__(self, *args: Any, tau: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tau = self._check_number('tau', tau, low=0)

    @property
    def prior_counts(self) -> Tensor:
        """What the prior is proportional to, (C,); zero for unseen classes."""
        return self.class_counts

    def columns(self, num_classes: int) -> tuple[int, ...]:
        if self.background == 'objectness':
            return num_classes + 2, num_classes
        return num_classes + 1, num_classes

    def row_loss(
        self,
        logits: Tensor,
        labels: Tensor,
        ignore_index: int,
        element_weight: Tensor | None,
        quality: Tensor | None = None,
    ) -> Tensor:
        if logits.size(1) == self.num_classes + 2:
            return self._objectness_loss(logits, labels, ignore_index)
        return shifted_softmax_cross_entropy(
            logits, labels, self._shift(logits), ignore_index=ignore_index
        )

    def _shift(self, logits: Tensor) -> Tensor:
        columns = logits.size(1)
        if columns == self.num_classes + 2:
            columns -= 2
        return self.tau * softmax_shift(
            self.prior_counts, columns, self.background
        )

    def _of_class(
        self, logits: Tensor, labels: Tensor, ignore_index: int
    ) -> tuple[Tensor, Tensor]:
        """Logits and labels that the shifted cross-entropy sees."""
        num_classes = self.num_classes
        if logits.size(1) != num_classes + 2:
            return logits, labels
        is_background = labels == num_classes
        return (
            logits[:, :num_classes],
            labels.masked_fill(is_background, ignore_index),
        )

    def _objectness_loss(
        self, logits: Tensor, labels: Tensor, ignore_index: int
    ) -> Tensor:
        if labels.is_floating_point():
            raise ValueError(
                self._say(
                    'background',
                    'objectness',
                    "'keep_odds'",
                    'soft labels do not say which rows are objects',
                )
            )
        num_classes = self.num_classes
        shift = self._shift(logits)
        of_class = shifted_softmax_cross_entropy(
            *self._of_class(logits, labels, ignore_index),
            shift,
            ignore_index=ignore_index,
        )
        is_background = (labels == num_classes).long()
        of_object = shifted_softmax_cross_entropy(
            logits[:, num_classes:],
            is_background.masked_fill(labels == ignore_index, ignore_index),
            shift.new_zeros(2),
            ignore_index=ignore_index,
        )
        return of_class + of_object

    def scores(self, cls_score: Tensor) -> tuple[Tensor, Tensor]:
        if self.background == 'objectness':
            classes = cls_score[..., :-2].softmax(-1)
            is_object, background = (
                cls_score[..., -2:].softmax(-1).split(1, dim=-1)
            )
            return classes * is_object, background
        scores = cls_score.softmax(-1)
        return scores[..., :-1], scores[..., -1:]
