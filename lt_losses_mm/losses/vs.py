# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""VS loss."""

from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor

from ..kernels import Shifted
from ..priors.shift import class_prior
from .arguments import number, passed_on
from .softmax import SoftmaxLoss


class VSLoss(SoftmaxLoss):
    r"""Vector scaling: Balanced Softmax whose logits are also scaled.

    .. math::
        L = CE(z / \Delta + \tau \log\pi, y), \qquad
        \Delta_j = \left( \frac{n_{max}}{n_j} \right)^\gamma

    Kini et al., "Label-Imbalanced and Group-Sensitive Classification under
    Overparameterization", NeurIPS 2021 (arXiv:2103.01550). :math:`\gamma = 0`
    is Balanced Softmax, and :math:`\tau = 0` the CDT loss (Ye et al., 2020).
    Predictions come from the plain logits. The logit of background, where it
    is a class of the softmax, is not scaled.

    Args:
        tau (float): Strength of the additive correction, >= 0; 0 turns it
            off.
        scale_power (float): :math:`\gamma`, strength of the multiplicative
            correction, >= 0; 0 turns it off.

    Example:
        >>> import torch
        >>> loss = VSLoss(class_counts=[80, 5], tau=0, scale_power=0.5)
        >>> logits = torch.tensor([[2.0, 4.0]])
        >>> loss(logits, torch.tensor([1]))  # of the logits 2 and 1
        tensor(1.3133)
    """

    tau: float
    neutral = dict(tau=0, scale_power=0)

    def __init__(
        self,
        num_classes: int | None = None,
        class_counts: str | Sequence[float] | Tensor | None = None,
        tau: float = 1.0,
        scale_power: float = 0.3,
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
        self.tau = number(owner, 'tau', tau, low=0)
        self.scale_power = number(owner, 'scale_power', scale_power, low=0)

    def formula(self, columns: int, dtype: torch.dtype) -> Shifted:
        shift = self.tau * self.background.shift(self.class_counts, columns)
        prior = class_prior(self.class_counts)
        scale = torch.ones_like(shift)  # of background, too
        scale[: self.num_classes] = (prior / prior.max()) ** self.scale_power
        return Shifted(shift.to(dtype), scale.to(dtype))
