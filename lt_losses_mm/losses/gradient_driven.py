# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Plumbing of losses that are driven by accumulated gradients."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Callable

from torch import Tensor

from ..statistics import GradientStatistics
from .base import LongTailLoss
from .sigmoid import SigmoidLoss


class GradientDrivenLoss(GradientStatistics, LongTailLoss):
    """A loss that reads the gradients it has given so far.

    They are taken while training, in closed form, and take effect with the
    next optimizer step, see :mod:`lt_losses_mm.statistics`. Class counts are
    not needed; if given, plots show the ratio against them.

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
    def gradient_sums(
        self,
        logits: Tensor,
        labels: Tensor,
        ignore_index: int,
        weight: Tensor | None,
        quality: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What a batch adds to the statistics, one value a logit column.

        Returns:
            tuple[Tensor, Tensor, Tensor]: For ``pos_grad``, ``neg_grad`` and
            ``pos_count``; columns from C on are dropped.
        """

    def learn_from(
        self,
        logits: Tensor,
        labels: Tensor,
        ignore_index: int,
        weight: Tensor | None,
        quality: Tensor | None = None,
    ) -> None:
        if not logits.numel():
            return
        sums = self.gradient_sums(
            logits, labels, ignore_index, weight, quality
        )
        self.observe(
            **{
                name: values[: self.num_classes]
                for name, values in zip(self.statistic_names, sums)
            }
        )


class GradientDrivenSigmoidLoss(GradientDrivenLoss, SigmoidLoss):
    """One over independent sigmoids, stated as a pair of functions.

    Both take ``(logits, labels, *column_parameters, ignore_index=, ...)``;
    ``sums`` takes ``weight``, too, and gives the gradients of ``formula``.
    """

    formula: Callable[..., Tensor]
    sums: Callable[..., tuple[Tensor, Tensor, Tensor]]

    @abstractmethod
    def column_parameters(self, logits: Tensor) -> tuple[Tensor, ...]:
        """What the statistics amount to, one value a logit column each."""

    def options(self, quality: Tensor | None) -> dict[str, Any]:
        """Further keyword arguments of both functions."""
        return {}

    def element_loss(
        self,
        logits: Tensor,
        labels: Tensor,
        ignore_index: int,
        quality: Tensor | None,
    ) -> Tensor:
        return type(self).formula(
            logits,
            labels,
            *self.column_parameters(logits),
            ignore_index=ignore_index,
            **self.options(quality),
        )

    def gradient_sums(
        self,
        logits: Tensor,
        labels: Tensor,
        ignore_index: int,
        weight: Tensor | None,
        quality: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return type(self).sums(
            logits,
            labels,
            *self.column_parameters(logits),
            weight=weight,
            ignore_index=ignore_index,
            **self.options(quality),
        )
