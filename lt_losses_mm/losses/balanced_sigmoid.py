# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Balanced Sigmoid."""

from __future__ import annotations

import torch
from torch import Tensor

from ..functional import shifted_sigmoid_cross_entropy
from ..priors.shift import sigmoid_shift
from ..registry import MODELS
from .base import LongTailLoss


@MODELS.register_module()
class BalancedSigmoidLoss(LongTailLoss):
    r"""Binary cross-entropy whose logits are shifted by the prior's logit.

    .. math:: L = \sum_j BCE(z_j + \tau s_j, t_j), \qquad
              s_j = \operatorname{logit}(\pi_j) - \operatorname{logit}(1/C)

    The sigmoid form of Balanced Softmax (Ren et al., NeurIPS 2020); the
    constant makes a uniform prior plain BCE. The loss of a row is the sum
    over classes, the mean is over rows; mmseg's own BCE divides by C as well.
    Predictions come from plain logits.

    RoI heads get C logits, and their NMS a background column of zeros. With
    ``background='objectness'`` they get C + 1, the last of which is a
    background classifier; the test score is
    :math:`\sigma(z_j)(1 - \sigma(z_{bg}))`, as in EQLv2 (Tan et al., CVPR
    2021). With ``'foreground_rows'`` only rows with an object see the shift,
    as in the detection code of Balanced Meta-Softmax.

    All arguments are those of :class:`~lt_losses_mm.losses.LongTailLoss`.

    Example:
        >>> loss = BalancedSigmoidLoss(class_counts=[50, 50])
        >>> loss(torch.zeros(1, 2), torch.tensor([1]))
        tensor(1.3863)
    """

    use_sigmoid = True

    def columns(self, num_classes: int) -> tuple[int, ...]:
        if self.background == 'objectness':
            return (num_classes + 1,)
        return (num_classes,)

    def row_loss(
        self,
        logits: Tensor,
        labels: Tensor,
        ignore_index: int,
        element_weight: Tensor | None,
    ) -> Tensor:
        num_classes = self.num_classes
        shift = sigmoid_shift(self.class_counts, self.background)
        if self.background == 'objectness':
            # Index C is the background column, so index labels need no change.
            shift = torch.cat([shift, shift.new_zeros(1)])
        shift = self.tau * shift
        if (
            self.background == 'foreground_rows'
            and not labels.is_floating_point()
        ):
            has_object = (labels != num_classes).unsqueeze(1)
            shape = (1, -1) + (1,) * (logits.dim() - 2)
            shift = shift.view(shape) * has_object
        loss = shifted_sigmoid_cross_entropy(
            logits, labels, shift, ignore_index=ignore_index
        )
        if element_weight is not None:
            loss = loss * element_weight.to(loss.dtype)
        return loss.sum(1)

    def scores(self, cls_score: Tensor) -> tuple[Tensor, Tensor]:
        scores = cls_score.sigmoid()
        if self.background == 'objectness':
            classes, background = scores[..., :-1], scores[..., -1:]
            return classes * (1 - background), background
        return scores, torch.zeros_like(scores[..., :1])
