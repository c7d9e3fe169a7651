# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""What all losses over independent binary classifiers share."""

from __future__ import annotations

import math
from typing import Sequence

from torch import Tensor

from ..kernels import sigmoid_rows
from ..messages import fault
from .arguments import passed_on
from .background import SigmoidBackground
from .base import LongTailLoss


class SigmoidLoss(LongTailLoss):
    r"""A loss per row and class, summed over classes.

    RoI heads get C logits, and their NMS a background column of zeros. With
    ``background='objectness'`` they get C + 1, the last of which is a
    background classifier; the test score is
    :math:`\sigma(z_j)(1 - \sigma(z_{bg}))`, as in EQLv2.

    Args:
        bias_prior (float | str, optional): Probability that an untrained
            classifier shall give to each class, in (0, 1). A ``Runner`` sets
            the bias of the head's classifier to its logit: with a bias of 0,
            a thousand classes begin at a loss of 693 a row. ``'auto'`` is
            1 / (C + 1), but at least 0.001, which is published for LVIS.
            ``None`` leaves the bias to the head. Dense and DETR-type heads
            have a prior of their own and are left alone.
    """

    use_sigmoid = True
    rows = staticmethod(sigmoid_rows)
    background_family = SigmoidBackground
    plain_form = 'plain binary cross-entropy'

    def __init__(
        self,
        num_classes: int | None = None,
        class_counts: str | Sequence[float] | Tensor | None = None,
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
        super().__init__(**passed_on(LongTailLoss, locals()))
        number = isinstance(bias_prior, float) and 0 < bias_prior < 1
        if not number and bias_prior not in ('auto', None):
            raise fault(
                'bias_prior',
                bias_prior,
                "a probability in (0, 1), 'auto' or None",
                owner=type(self).__name__,
            )
        self.bias_prior = bias_prior

    @property
    def initial_probability(self) -> float | None:
        """What ``bias_prior`` stands for; None to leave the bias alone."""
        prior = self.bias_prior
        if isinstance(prior, str):
            # Not 1 / C, which is certainty for a single class.
            prior = max(1 / (1 + self.num_classes), 0.001)
        return prior

    @property
    def initial_bias(self) -> float | None:
        """Logit of ``initial_probability``."""
        p = self.initial_probability
        return None if p is None else math.log(p / (1 - p))
