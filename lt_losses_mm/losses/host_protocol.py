# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""What hosts and checkpoints ask of a loss: pure functions, and one look."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..messages import describe

if TYPE_CHECKING:
    from ..priors import ClassCounts
    from .base import LongTailLoss


def get_cls_channels(self: LongTailLoss, num_classes: int) -> int:
    """Output channels of a RoI head of mmdet, which alone asks for them.

    So the call also tells the loss that its scores have to carry the
    background column.
    """
    self.background.in_roi_head = True
    known = self.known_counts
    if not (known and known.names and known.num_classes > num_classes):
        self.set_num_classes(num_classes, 'bbox_head.num_classes')
    # Of more counts with names, a hook chooses, who knows those of the data.
    return self.columns(num_classes)[0]


def choose_counts(self: LongTailLoss, counts: ClassCounts) -> None:
    """Give the loss a part of the counts that it has, of fewer classes."""
    self._expected_classes = counts.num_classes
    self.class_counts = self.class_counts.new_zeros(0)
    self.set_class_counts(counts)


def get_activation(self: LongTailLoss, cls_score: Tensor) -> Tensor:
    """Test-time scores of logits (N, K), without the prior.

    Returns:
        Tensor: (N, C + 1) with background last for RoI heads, whose NMS drops
        the last column; (N, C) for dense heads.
    """
    classes, background = self.background.scores(cls_score)
    if self.background.in_roi_head:
        return torch.cat([classes, background], dim=-1)
    return classes


def get_accuracy(
    self: LongTailLoss, cls_score: Tensor, labels: Tensor
) -> dict[str, Tensor]:
    """Accuracy in percent for mmdet's training log.

    Returns:
        dict: ``acc`` over all rows where background competes with the
        classes, otherwise over the rows with an object.
    """
    beside = self.use_sigmoid or self.background.key == 'objectness'
    scores = self.background.scores(cls_score)
    return dict(acc=accuracy(*scores, labels, not beside))


def accuracy(
    classes: Tensor, background: Tensor, labels: Tensor, competes: bool
) -> Tensor:
    """Accuracy in percent, (1,).

    Args:
        classes (Tensor): Scores, (N, C).
        background (Tensor): Likewise, (N, 1).
        labels (Tensor): (N,), C for background.
        competes (bool): Whether background competes with the classes. All
            rows are counted then, and otherwise those with an object.
    """
    if competes:
        rows = torch.ones_like(labels, dtype=torch.bool)
        hit = torch.cat([classes, background], -1).argmax(-1) == labels
    else:
        rows = labels < classes.size(-1)
        hit = classes.argmax(-1) == labels
    hits = (hit & rows).sum().float()
    return (hits * 100 / rows.sum().clamp(min=1)).reshape(1)


def counts_of_checkpoint(
    loss: LongTailLoss,
    state_dict: dict[str, Any],
    prefix: str,
    *rest: Any,
) -> None:
    """Make a checkpoint's class counts fit the loss, before it loads them.

    What the config states wins over the checkpoint's data set. Another number
    of classes is an error of strict loading, and a warning where a model is
    fine-tuned for other classes, as for the classifier itself.
    """
    key = prefix + 'class_counts'
    loaded = state_dict.get(key)
    if loaded is None:
        return
    known = getattr(loss, 'num_classes', loaded.numel())
    if not loss.auto_counts or not loaded.numel():
        state_dict[key] = loss.class_counts
    elif loaded.numel() == known:
        loss.class_counts = loss.class_counts.new_zeros(loaded.shape)
    else:
        state_dict[key] = loss.class_counts
        rest[-1].append(
            describe(
                'num_classes',
                known,
                f'{loaded.numel()}, as {key} of the checkpoint says',
                'nothing if this fine-tunes for other classes, which are '
                'counted anew; a test needs the classes of training',
                type(loss).__name__,
            )
        )
