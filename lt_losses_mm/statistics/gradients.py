# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The statistics of the equalization losses: gradients of both signs."""

from __future__ import annotations

from typing import Any, Mapping

import torch
from torch import Tensor

from .running import RunningStatistics

_EPS = 1e-10


class GradientStatistics(RunningStatistics):
    r"""Accumulated gradient magnitudes of positives and of negatives.

    ``pos_grad[j]`` and ``neg_grad[j]`` are sums of
    :math:`|\partial L_i / \partial z_{ij}|` over the samples i with and
    without label j; ``pos_count[j]`` is the number of the former. They are
    sums over rows, before the loss is averaged and without ``loss_weight``: a
    divisor that changes from call to call (positives of this level, rows of
    this rank) would weigh the calls against each other. Rows without weight
    count for nothing.

    Args:
        num_classes (int): C; 0 where it follows.
        decay (float): See
            :class:`~lt_losses_mm.statistics.RunningStatistics`.
        owner (str): The loss, for messages.
    """

    def __init__(
        self,
        num_classes: int = 0,
        decay: float = 1.0,
        owner: str = 'GradientStatistics',
    ) -> None:
        names = ('pos_grad', 'neg_grad', 'pos_count')
        super().__init__(names, num_classes, decay, owner)

    @property
    def pos_grad(self) -> Tensor:
        """Gradients of positives, (C,)."""
        return self.sums[0]

    @property
    def neg_grad(self) -> Tensor:
        """Gradients of negatives, (C,)."""
        return self.sums[1]

    @property
    def pos_count(self) -> Tensor:
        """Number of positives, (C,)."""
        return self.sums[2]

    @property
    def ratio(self) -> Tensor:
        """pos_grad / neg_grad, (C,); inf for a class without gradients."""
        positive, negative, _ = self.sums.unbind()
        ratio = positive / (negative + _EPS)
        return ratio.masked_fill_((positive + negative) == 0, torch.inf)

    def health(self, saturated: Tensor) -> dict[str, Any]:
        """Figures that tell whether the method is at work.

        Args:
            saturated (Tensor): (C,), bool: classes that the method treats as
                its plain form would.

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
            saturated=saturated.double().mean().item(),
            unseen=1 - seen.double().mean().item(),
        )


def describe_health(health: Mapping[str, Any]) -> str:
    """The line of the log that says what ``health`` found.

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
