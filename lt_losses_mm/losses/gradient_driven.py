# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Losses that are driven by accumulated gradients."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from ..functional.two_sided import Sides
from ..kernels import Batch, Sums, sigmoid_rows
from ..statistics import GradientStatistics
from .running import RunningLoss
from .sigmoid import SigmoidLoss


class GradientDrivenLoss(GradientStatistics, RunningLoss):
    """A loss that reads the gradients it has given so far.

    They are taken while training, in closed form.
    """


class GradientDrivenSigmoidLoss(GradientDrivenLoss, SigmoidLoss):
    """One over independent sigmoids: two sides and their parameters."""

    sides: Sides

    @abstractmethod
    def column_parameters(self, logits: Tensor) -> tuple[Tensor, ...]:
        """What the statistics amount to, one value a logit column each."""

    def rows_and_sums(self, batch: Batch) -> tuple[Tensor, Sums]:
        return sigmoid_rows(
            self.sides,
            self.column_parameters(batch.logits),
            batch,
            sums=batch.learns,
        )
