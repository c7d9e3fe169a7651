# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""What all losses over independent binary classifiers share."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

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
        kwargs: See :class:`~lt_losses_mm.losses.LongTailLoss`.
    """

    use_sigmoid = True

    def __init__(
        self,
        *args: Any,
        bias_prior: float | str | None = 'auto',
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        number = isinstance(bias_prior, float) and 0 < bias_prior < 1
        if not number and bias_prior not in ('auto', None):
            raise ValueError(
                self._say(
                    'bias_prior',
                    bias_prior,
                    "a probability in (0, 1), 'auto' or None",
                )
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

    def columns(self, num_classes: int) -> tuple[int, ...]:
        if self.background == 'objectness':
            return (num_classes + 1,)
        return (num_classes,)

    def scores(self, cls_score: Tensor) -> tuple[Tensor, Tensor]:
        scores = cls_score.sigmoid()
        if self._has_objectness(cls_score):
            classes, background = scores[..., :-1], scores[..., -1:]
            return classes * (1 - background), background
        return scores, torch.zeros_like(scores[..., :1])

    def _has_objectness(self, logits: Tensor) -> bool:
        return self.background == 'objectness'
