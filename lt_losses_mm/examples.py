# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Examples for checks: batches, plain forms, losses amid a training."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any, Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .losses import LongTailLoss
from .statistics import GradientStatistics

COUNTS = (500.0, 60.0, 9.0, 1.0, 30.0)

cross_entropy = partial(F.cross_entropy, reduction='none')
binary_cross_entropy = partial(
    F.binary_cross_entropy_with_logits, reduction='none'
)


def focal(z: Tensor, t: Tensor) -> Tensor:
    """Focal loss with gamma 2 and alpha 0.25, per row and class."""
    p = z.sigmoid()
    positive = -0.25 * (1 - p) ** 2 * F.logsigmoid(z)
    return t * positive - (1 - t) * 0.75 * p**2 * F.logsigmoid(-z)


def quality_focal(z: Tensor, t: Tensor) -> Tensor:
    """Quality Focal Loss, per row and class."""
    return (t - z.sigmoid()) ** 2 * binary_cross_entropy(z, t)


# What ``plain_form`` of a loss may name.
PLAIN_FORMS: dict[str, Callable[..., Tensor]] = {
    'plain cross-entropy': cross_entropy,
    'plain binary cross-entropy': binary_cross_entropy,
    'plain focal loss': focal,
    'plain Quality Focal Loss': quality_focal,
}


def plain_rows(
    cls: type[LongTailLoss], logits: Tensor, labels: Tensor
) -> Tensor:
    """Loss per row of a loss's plain form; C, or soft, labels are allowed."""
    formula = PLAIN_FORMS[cls.plain_form]
    if formula is cross_entropy:
        return formula(logits, labels)
    if not labels.is_floating_point():
        labels = F.one_hot(labels, logits.size(1) + 1)[..., :-1]
        labels = labels.movedim(-1, 1)
    return formula(logits, labels.to(logits)).sum(1)


def midway(
    module: nn.Module, counts: Sequence[float] | None = None
) -> nn.Module:
    """Put the losses of a module into the middle of a training, in place.

    Args:
        module (nn.Module): A model, or a loss. Losses that do not know their
            classes yet have no statistics.
        counts (sequence, optional): Positives are in proportion to them, and
            ratios of gradients go from 0 to 1.5, the rarer the class the
            lower. By default those of the loss, or ``COUNTS`` in a cycle.
    """
    for loss in module.modules():
        statistics = getattr(loss, 'statistics', None)
        if not isinstance(loss, LongTailLoss) or statistics is None:
            continue
        known = itertools.cycle(counts or loss.class_counts.tolist() or COUNTS)
        found = list(itertools.islice(known, statistics.sums.size(1)))
        if not found:
            continue
        n = torch.tensor(found, dtype=torch.float64)
        statistics.sums.copy_(2 * n)
        if isinstance(statistics, GradientStatistics):
            ratio = 1.5 * n.log1p() / n.max().log1p()
            statistics.pos_grad.copy_(n)
            statistics.neg_grad.copy_(torch.where(n > 0, n / ratio, 1.0))
    return module


def make_rows(
    n: int = 12,
    columns: int = 5,
    labels: int = 5,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    size: Sequence[int] = (),
) -> tuple[Tensor, Tensor]:
    """Logits (n, columns, *size) and labels below ``labels``, from a seed."""
    generator = torch.Generator().manual_seed(seed)
    shape = (n, columns, *size)
    logits = torch.randn(shape, generator=generator, dtype=dtype) * 3
    return logits, torch.randint(0, labels, (n, *size), generator=generator)


def soft_labels(logits: Tensor) -> Tensor:
    """Soft labels of the logits' shape, from a seed."""
    generator = torch.Generator().manual_seed(1)
    shape, dtype = logits.shape, logits.dtype
    return torch.rand(shape, generator=generator, dtype=dtype).softmax(1)


class Examples:
    """Losses of a class, each with what it needs and what is asked for.

    Args:
        cls (type): The loss.
        own: Arguments of its constructor, above ``cls.example``.
    """

    def __init__(self, cls: type[LongTailLoss], **own: Any) -> None:
        self.cls, self.own = cls, own

    def new(self, **changes: Any) -> LongTailLoss:
        """A loss that has seen nothing yet."""
        known: dict[str, Any] = dict(num_classes=5)
        if self.cls.uses_counts:
            known = dict(class_counts=list(COUNTS))
        return self.cls(**{**known, **self.cls.example, **self.own, **changes})

    def __call__(self, **changes: Any) -> LongTailLoss:
        """A loss in the middle of a training."""
        loss = self.new(**changes)
        midway(loss)
        return loss

    def served(self, **changes: Any) -> Iterator[tuple[LongTailLoss, int]]:
        """A loss for each policy and each number of columns it serves."""
        for policy in self.cls.background_policies:
            changes['background'] = 0.9 if policy is float else policy
            for columns in self(**changes).columns(5):
                yield self(**changes), columns
            in_roi_head = self(**changes)
            yield in_roi_head, in_roi_head.get_cls_channels(5)

    def kinds(self, logits: Tensor, index: Tensor) -> list[Tensor]:
        """Index labels, and soft ones, where the loss takes them."""
        return [index, soft_labels(logits)][: 1 + self.cls.takes_soft_labels]
