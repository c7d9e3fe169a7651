# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Balanced Softmax."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..kernels import (
    Batch,
    Seesaw,
    Shifted,
    Sums,
    softmax_rows,
    split_columns,
)
from ..priors.shift import softmax_shift
from ..registry import MODELS
from .base import LongTailLoss


class ClassesAndObjectness(LongTailLoss):
    """A softmax over classes, with background in it or beside it.

    With ``background='objectness'`` RoI heads get C + 2 logits: the classes
    compete among themselves on rows with an object, and two further logits
    tell objects from background on all rows; the test score is the product,
    as in Seesaw Loss (Wang et al., CVPR 2021, Sec. 3.3).
    """

    use_sigmoid = False

    @abstractmethod
    def adjustment(self, columns: int, dtype: torch.dtype) -> Shifted | Seesaw:
        """What is done to the logits of the classes, C or C + 1 columns.

        ``dtype`` is the one that the loss is computed in.
        """

    def columns(self, num_classes: int) -> tuple[int, ...]:
        if self.background == 'objectness':
            return num_classes + 2, num_classes
        return num_classes + 1, num_classes

    def row_loss(self, batch: Batch) -> Tensor:
        return self.class_rows(batch)[0]

    def class_rows(
        self, batch: Batch, sums: bool = False
    ) -> tuple[Tensor, Sums]:
        """Loss per row, and sums of the classes' columns."""
        num_classes, columns = self.num_classes, batch.logits.size(1)
        dtype = torch.promote_types(batch.logits.dtype, torch.float32)
        if columns != num_classes + 2:
            adjustment = self.adjustment(columns, dtype)
            return softmax_rows(adjustment, batch, sums=sums)
        labels, ignore_index = batch.labels, batch.ignore_index
        if labels.is_floating_point():
            raise ValueError(
                self._say(
                    'background',
                    'objectness',
                    'another policy',
                    'soft labels do not say which rows are objects',
                )
            )
        is_background = labels == num_classes
        classes, objectness = split_columns(batch, num_classes)
        of_class, found = softmax_rows(
            self.adjustment(num_classes, dtype),
            replace(
                classes, labels=labels.masked_fill(is_background, ignore_index)
            ),
            sums=sums,
        )
        of_object, _ = softmax_rows(
            Shifted(objectness.new_zeros(2, dtype=dtype)),
            Batch(
                objectness,
                is_background.long().masked_fill(
                    labels == ignore_index, ignore_index
                ),
                ignore_index,
            ),
        )
        return of_class + of_object, found

    def scores(self, cls_score: Tensor) -> tuple[Tensor, Tensor]:
        if self.background == 'objectness':
            classes = cls_score[..., :-2].softmax(-1)
            is_object, background = (
                cls_score[..., -2:].softmax(-1).split(1, dim=-1)
            )
            return classes * is_object, background
        scores = cls_score.softmax(-1)
        return scores[..., :-1], scores[..., -1:]


@MODELS.register_module()
class BalancedSoftmaxLoss(ClassesAndObjectness):
    r"""Cross-entropy whose logits are shifted by the log prior in training.

    .. math:: L = CE(z + \tau \log\pi, y)

    Ren et al., "Balanced Meta-Softmax for Long-Tailed Visual Recognition",
    NeurIPS 2020, Eq. 4 (tau = 1); Menon et al., "Long-tail learning via logit
    adjustment", ICLR 2021, Eq. 10. Predictions come from the plain logits.

    For ``background='objectness'`` see
    :class:`~lt_losses_mm.losses.ClassesAndObjectness`.

    Args:
        tau (float): Strength of the correction, >= 0; 0 turns it off.
        kwargs: See :class:`~lt_losses_mm.losses.LongTailLoss`.

    Example:
        >>> import torch
        >>> loss = BalancedSoftmaxLoss(class_counts=[90, 10])
        >>> logits = torch.zeros(2, 2)
        >>> loss(logits, torch.tensor([0, 1]), reduction_override='none')
        tensor([0.1054, 2.3026])
    """

    background_policies = ('keep_odds', 'objectness', float)

    def __init__(self, *args: Any, tau: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tau = self._check_number('tau', tau, low=0)

    @property
    def prior_counts(self) -> Tensor:
        """What the prior is proportional to, (C,); zero for unseen classes."""
        return self.class_counts

    def adjustment(self, columns: int, dtype: torch.dtype) -> Shifted:
        def shift(counts: Tensor) -> Tensor:
            of_one = softmax_shift(counts, columns, self.background)
            return (self.tau * of_one).to(dtype)

        key = columns, dtype, float(self.tau), self.background
        return Shifted(self.remember(key, self.prior_counts, shift))
