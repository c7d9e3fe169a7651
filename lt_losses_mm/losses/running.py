# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Plumbing of losses that keep statistics of the batches they have seen."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from ..kernels import Batch
from ..statistics import RunningStatistics
from .base import LongTailLoss


class RunningLoss(RunningStatistics, LongTailLoss):
    """A loss that reads sums over all batches it was trained on.

    They take effect with the next optimizer step, see
    :mod:`lt_losses_mm.statistics`. Class counts are not needed; if given,
    plots show the statistics against them.

    Args:
        decay (float): Factor on the statistics at every optimizer step, in
            (0, 1]; 1, the published form, never forgets.
        kwargs: See :class:`~lt_losses_mm.losses.LongTailLoss`.
    """

    uses_counts = False

    def __init__(self, *args: Any, decay: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        decay = self._check_number('decay', decay)
        if not 0 < decay <= 1:
            raise ValueError(
                self._say('decay', decay, 'a number in (0, 1]; 1 is no decay')
            )
        self.init_statistics(decay)
        if hasattr(self, 'num_classes'):
            self.resize_statistics(self.num_classes)

    def set_num_classes(self, num_classes: int, said_by: str = 'call') -> None:
        super().set_num_classes(num_classes, said_by)
        # The base's constructor may call this before there are buffers.
        if hasattr(self, '_pending'):
            self.resize_statistics(num_classes)

    def resize_statistics(self, num_classes: int) -> None:
        # A checkpoint may be the first to tell the number of classes.
        self._expected_classes = num_classes
        super().resize_statistics(num_classes)

    @abstractmethod
    def rows_and_sums(
        self, batch: Batch
    ) -> tuple[Tensor, Tensor | tuple[Tensor, ...] | None]:
        """The formula, and what a batch adds to the statistics.

        Returns:
            tuple[Tensor, Tensor]: As :meth:`row_loss`, and, if
            ``batch.learns``, the sums for ``statistic_names``, as rows or as
            so many tensors, one value a logit column each; those from C on
            are dropped.
        """

    def row_loss(self, batch: Batch) -> Tensor:
        rows, sums = self.rows_and_sums(batch)
        if batch.learns and sums is not None:
            if not isinstance(sums, Tensor):
                sums = torch.stack(sums)
            self.observe(sums[:, : self.num_classes])
        return rows
