# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Losses that are driven by accumulated gradients."""

from __future__ import annotations

from abc import abstractmethod

import torch
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

    def parameters_for(self, logits: Tensor) -> tuple[Tensor, ...]:
        """The same in the type that the loss is computed in.

        Statistics are float64: at a million classes a vector counts.
        """
        dtype = torch.promote_types(logits.dtype, torch.float32)
        return tuple(p.to(dtype) for p in self.column_parameters(logits))

    def rows_and_sums(self, batch: Batch) -> tuple[Tensor, Sums]:
        return sigmoid_rows(
            self.sides,
            self.parameters_for(batch.logits),
            batch,
            sums=batch.learns,
        )
