# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Balanced Sigmoid."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..functional.two_sided import SHIFTED_BCE
from ..kernels import Batch, sigmoid_rows
from ..priors.shift import sigmoid_shift
from ..registry import MODELS
from .sigmoid import SigmoidLoss


@MODELS.register_module()
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
        kwargs: See :class:`~lt_losses_mm.losses.SigmoidLoss`.

    Example:
        >>> loss = BalancedSigmoidLoss(class_counts=[50, 50])
        >>> loss(torch.zeros(1, 2), torch.tensor([1]))
        tensor(1.3863)
    """

    def __init__(self, *args: Any, tau: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tau = self._check_number('tau', tau, low=0)

    def row_loss(self, batch: Batch) -> Tensor:
        dtype = torch.promote_types(batch.logits.dtype, torch.float32)

        def shift(counts: Tensor) -> Tensor:
            of_one = sigmoid_shift(counts, self.background)
            if self.background == 'objectness':
                # Index C is the background column: index labels stay.
                of_one = torch.cat([of_one, of_one.new_zeros(1)])
            return (self.tau * of_one).to(dtype)

        key = dtype, float(self.tau), self.background
        rows, _ = sigmoid_rows(
            SHIFTED_BCE,
            (self.remember(key, self.class_counts, shift),),
            batch,
            spare_background=self.background == 'foreground_rows',
        )
        return rows
