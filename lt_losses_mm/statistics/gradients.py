# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The statistics of the equalization losses: gradients of both signs."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from typing import Any, Mapping

import torch
from torch import Tensor

from .running import RunningStatistics

_EPS = 1e-10


class GradientStatistics(RunningStatistics, metaclass=ABCMeta):
    r"""Accumulated gradient magnitudes of positives and of negatives.

    ``pos_grad[j]`` and ``neg_grad[j]`` are sums of
    :math:`|\partial L_i / \partial z_{ij}|` over the samples i with and
    without label j; ``pos_count[j]`` is the number of the former. They are
    sums over rows, before the loss is averaged and without ``loss_weight``: a
    divisor that changes from call to call (positives of this level, rows of
    this rank) would weigh the calls against each other. Rows without weight
    count for nothing.

    A subclass says by :meth:`saturated` which classes its method leaves as
    the loss without statistics (``plain_form``) would treat them.
    """

    statistic_names = ('pos_grad', 'neg_grad', 'pos_count')
    plain_form: str
    pos_grad: Tensor
    neg_grad: Tensor
    pos_count: Tensor

    @property
    def ratio(self) -> Tensor:
        """pos_grad / neg_grad, (C,); inf for a class without gradients."""
        ratio = self.pos_grad / (self.neg_grad + _EPS)
        unseen = (self.pos_grad + self.neg_grad) == 0
        return ratio.masked_fill_(unseen, torch.inf)

    @abstractmethod
    def saturated(self) -> Tensor:
        """Classes that the method treats as its plain form would; (C,)."""

    def health(self) -> dict[str, Any]:
        """Figures that tell whether the method is at work.

        Returns:
            dict: ``min``, ``median`` and ``max`` of the ratio over the
            classes seen positive (NaN if none), and the shares in [0, 1] of
            classes ``saturated`` and ``unseen`` (never positive).
        """
        seen = self.pos_count > 0
        ratio = self.ratio[seen]
        if not ratio.numel():
            ratio = self.ratio.new_full((1,), torch.nan)
        return dict(
            min=ratio.min().item(),
            median=ratio.quantile(0.5).item(),
            max=ratio.max().item(),
            saturated=self.saturated().double().mean().item(),
            unseen=1 - seen.double().mean().item(),
        )


def describe_health(health: Mapping[str, Any]) -> str:
    """The line of the log that says what :meth:`health` found.

    Args:
        health (Mapping): Its figures; NaN for a share that is not known.
    """
    saturated = health['saturated']
    clamp = 'unknown share' if saturated != saturated else f'{saturated:.1%}'
    return (
        f'gradient ratio {health["min"]:.3g} min, '
        f'{health["median"]:.3g} median, {health["max"]:.3g} max; '
        f'{clamp} of classes at the clamp, '
        f'{health["unseen"]:.1%} never seen positive'
    )
