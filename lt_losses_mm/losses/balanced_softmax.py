# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Balanced Softmax."""

from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor

from ..kernels import Shifted
from .arguments import number, passed_on
from .softmax import SoftmaxLoss


class BalancedSoftmaxLoss(SoftmaxLoss):
    r"""Cross-entropy whose logits are shifted by the log prior in training.

    .. math:: L = CE(z + \tau \log\pi, y)

    Ren et al., "Balanced Meta-Softmax for Long-Tailed Visual Recognition",
    NeurIPS 2020, Eq. 4 (tau = 1); Menon et al., "Long-tail learning via logit
    adjustment", ICLR 2021, Eq. 10. Predictions come from the plain logits.

    For ``background='objectness'`` see
    :class:`~lt_losses_mm.losses.SoftmaxLoss`.

    Args:
        tau (float): Strength of the correction, >= 0; 0 turns it off.

    Example:
        >>> import torch
        >>> loss = BalancedSoftmaxLoss(class_counts=[90, 10])
        >>> logits = torch.zeros(2, 2)
        >>> loss(logits, torch.tensor([0, 1]), reduction_override='none')
        tensor([0.1054, 2.3026])
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
    ) -> None:
        super().__init__(**passed_on(SoftmaxLoss, locals()))
        self.tau = number(type(self).__name__, 'tau', tau, low=0)

    def formula(self, columns: int, dtype: torch.dtype) -> Shifted:
        shift = self.background.shift(self.class_counts, columns)
        return Shifted((self.tau * shift).to(dtype))
