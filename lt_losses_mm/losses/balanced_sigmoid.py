# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Balanced Sigmoid."""

from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor

from ..kernels import SHIFTED_BCE, TwoSided
from .arguments import number, passed_on
from .sigmoid import SigmoidLoss


class BalancedSigmoidLoss(SigmoidLoss):
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

    Args:
        tau (float): Strength of the correction, >= 0; 0 turns it off.

    Example:
        >>> loss = BalancedSigmoidLoss(class_counts=[50, 50])
        >>> loss(torch.zeros(1, 2), torch.tensor([1]))
        tensor(1.3863)
    """

    tau: float
    neutral = dict(tau=0)

    def __init__(
        self,
        num_classes: int | None = None,
        class_counts: str | Sequence[float] | Tensor | None = None,
        tau: float = 1.0,
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
        self.tau = number(type(self).__name__, 'tau', tau, low=0)

    def formula(self, columns: int, dtype: torch.dtype) -> TwoSided:
        shift = self.background.shift(self.class_counts, columns)
        return TwoSided(
            SHIFTED_BCE,
            ((self.tau * shift).to(dtype),),
            spare_background=self.background.key == 'foreground_rows',
        )
