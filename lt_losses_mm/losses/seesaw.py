# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Seesaw Loss, for any head."""

from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor

from ..kernels import Seesaw
from ..statistics import LabelCounts
from .arguments import number, passed_on
from .softmax import SoftmaxLoss


class SeesawSoftmaxLoss(SoftmaxLoss):
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
        score_floor (float): :math:`\epsilon`, least score of the label, in
            (0, 1].
        decay (float): Factor on the statistics at every optimizer step, in
            (0, 1]; 1, the published form, never forgets.

    Example:
        >>> import torch
        >>> loss = SeesawSoftmaxLoss(num_classes=2)
        >>> logits, labels = torch.zeros(4, 2), torch.tensor([0, 0, 0, 1])
        >>> loss(logits, labels)
        tensor(0.6931)
        >>> loss.statistics.commit()
        >>> loss(logits, labels, reduction_override='none')
        tensor([0.3473, 0.3473, 0.3473, 0.6931])
    """

    uses_counts = False
    statistics: LabelCounts
    takes_soft_labels = False
    background_policies = ('objectness', 'keep_odds')
    neutral = dict(p=0, q=0)
    smooth = dict(q=0)  # no gradient flows through the compensation

    def __init__(
        self,
        num_classes: int | None = None,
        class_counts: str | Sequence[float] | Tensor | None = None,
        p: float = 0.8,
        q: float = 2.0,
        score_floor: float = 1e-2,
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
        self.p = number(owner, 'p', p, low=0)
        self.q = number(owner, 'q', q, low=0)
        self.score_floor = number(
            owner, 'score_floor', score_floor, above=0, high=1
        )
        self.statistics = LabelCounts(
            getattr(self, 'num_classes', 0), decay, owner
        )

    def formula(self, columns: int, dtype: torch.dtype) -> Seesaw:
        column = self.statistics.pos_count.clamp(min=1).log().to(dtype)
        label = column
        if columns == self.num_classes + 1:
            infinite = column.new_full((1,), torch.inf)
            column, label = (
                torch.cat([column, infinite]),
                torch.cat([column, -infinite]),
            )
        return Seesaw(column, label, self.p, self.q, self.score_floor)
