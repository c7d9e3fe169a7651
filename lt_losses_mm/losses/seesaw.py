# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Seesaw Loss, for any head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..functional.two_sided import find_label, positive_sums
from ..kernels import Batch, Seesaw
from ..registry import MODELS
from .balanced_softmax import ClassesAndObjectness
from .running import RunningLoss


@MODELS.register_module()
class SeesawSoftmaxLoss(RunningLoss, ClassesAndObjectness):
    r"""Seesaw Loss: rare classes are spared, confused ones are not.

    .. math::
        L = -\log \frac{e^{z_y}}{\sum_j S_{yj} e^{z_j}}, \qquad
        S_{yj} = \min\left(1, \tfrac{N_j}{N_y}\right)^p
                 \max\left(1, \tfrac{\sigma_j}{\max(\sigma_y, \epsilon)}
                 \right)^q

    with N the number of rows of each class that were trained on, and
    :math:`\sigma` the softmax of the logits. Wang et al., "Seesaw Loss for
    Long-Tailed Instance Segmentation", CVPR 2021. The counts are those before
    the current optimizer step, summed over all ranks.

    RoI heads get C + 2 logits: the classes, and two that tell objects from
    background; the test score is the product. With ``background='keep_odds'``
    they get C + 1, and background is a class that neither receives nor causes
    mitigation. Index labels only: the factors belong to one label.

    Args:
        p (float): Exponent of the mitigation, >= 0; 0 turns it off.
        q (float): Exponent of the compensation, >= 0; 0 turns it off.
        eps (float): Floor of the label's score, in (0, 1].
        decay (float): See :class:`~lt_losses_mm.losses.RunningLoss`.
        kwargs: See :class:`~lt_losses_mm.losses.LongTailLoss`.

    Example:
        >>> import torch
        >>> loss = SeesawSoftmaxLoss(num_classes=2)
        >>> logits, labels = torch.zeros(4, 2), torch.tensor([0, 0, 0, 1])
        >>> loss(logits, labels)
        tensor(0.6931)
        >>> loss.commit()
        >>> loss(logits, labels, reduction_override='none')
        tensor([0.3473, 0.3473, 0.3473, 0.6931])
    """

    statistic_names = ('pos_count',)
    takes_soft_labels = False
    background_policies = ('objectness', 'keep_odds')
    pos_count: Tensor

    def __init__(
        self,
        *args: Any,
        p: float = 0.8,
        q: float = 2.0,
        eps: float = 1e-2,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.p = self._check_number('p', p, low=0)
        self.q = self._check_number('q', q, low=0)
        self.eps = self._check_number('eps', eps)
        if not 0 < self.eps <= 1:
            raise ValueError(self._say('eps', eps, 'a number in (0, 1]'))

    def columns(self, num_classes: int) -> tuple[int, ...]:
        # As objectness is the default, counts that lack two classes would
        # pass for it in heads without background.
        if self.background == 'objectness' and not self._in_roi_head:
            return (num_classes,)
        return super().columns(num_classes)

    def adjustment(self, columns: int, dtype: torch.dtype) -> Seesaw:
        column = self.pos_count.clamp(min=1).log().to(dtype)
        label = column
        if columns > self.num_classes:
            infinite = column.new_full((1,), torch.inf)
            column, label = (
                torch.cat([column, infinite]),
                torch.cat([column, -infinite]),
            )
        return Seesaw(column, label, self.p, self.q, self.eps)

    def rows_and_sums(
        self, batch: Batch
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        rows, _ = self.class_rows(batch)
        if not batch.learns:
            return rows, None
        at = find_label(batch.labels, self.num_classes, batch.ignore_index)
        weight = None
        if batch.row_weight is not None:
            weight = batch.row_weight.unsqueeze(1)
        _, counts = positive_sums(
            torch.ones_like(at.column), at, weight, self.num_classes
        )
        return rows, (counts,)
