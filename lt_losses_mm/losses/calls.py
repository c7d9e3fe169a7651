# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""What a head passes to a loss: checked, and put into one form.

Pure functions, but for :func:`read_call`, which asks the loss what it serves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..compat import is_compiling, transform
from ..kernels import Batch, reduce_rows
from ..kernels.formulas.labels import upcast
from ..messages import fault
from .arguments import REDUCTIONS

if TYPE_CHECKING:
    from .base import LongTailLoss

_EPS = torch.finfo(torch.float32).eps


def read_call(
    loss: LongTailLoss,
    logits: Tensor,
    labels: Any,
    weight: Tensor | None,
    avg_factor: float | Tensor | None,
    override: str | None,
    ignore_index: int | None,
) -> Batch:
    """The batch that a head's call amounts to.

    Raises:
        ValueError: Labels, weights, columns or reduction do not fit the loss.
        TypeError: The labels are no tensor.
        RuntimeError: The loss does not know its classes or their counts yet.
    """
    owner = type(loss).__name__
    reduction = loss.reduction
    if override is not None:
        reduction = override
        if override not in REDUCTIONS:
            raise fault(
                'reduction_override',
                override,
                f'None or one of {REDUCTIONS}',
                owner=owner,
            )
    if reduction == 'sum' and avg_factor is not None:
        raise fault(
            'reduction',
            'sum',
            "'mean' or 'none' where avg_factor is passed",
            owner=owner,
        )
    if ignore_index is None:
        ignore_index = loss.ignore_index
    if ignore_index is None:
        ignore_index = -100 if logits.dim() == 2 else 255
    if loss.activated:
        logits = upcast(logits)
        logits = logits.logit(torch.finfo(logits.dtype).eps)
    quality = None
    if not isinstance(labels, Tensor):
        labels, quality = split_quality(loss, labels)
    columns, dim = logits.size(1), logits.dim()
    largest = loss.served.get((columns, dim > 2))
    if largest is None:
        largest = check_columns(loss, columns, dim > 2)
        loss.served[columns, dim > 2] = largest
    rows = logits.shape[:1] + logits.shape[2:]
    soft = labels.shape == logits.shape or labels.is_floating_point()
    if soft:
        labels = soft_labels(owner, labels, logits, loss.takes_soft_labels)
    else:
        if labels.shape != rows:
            raise ValueError(
                f'{owner}: labels of shape {tuple(labels.shape)} do not match '
                f'logits of shape {tuple(logits.shape)}; expected '
                f'{tuple(rows)}'
            )
        if labels.dtype != torch.int64:
            labels = labels.long()
        device = labels.device.type
        # On an accelerator the look at the values stops the host, so only
        # the first batch is looked at there.
        if (
            (device == 'cpu' or device not in loss.checked_devices)
            and labels.numel()
            and not is_compiling()
            and transform() is None
        ):
            loss.checked_devices.add(device)
            low, high = labels.aminmax()
            if low.item() < 0 or high.item() > largest:
                check_range(loss, labels, largest, ignore_index)
    if quality is not None and quality.shape != labels.shape:
        raise ValueError(
            f'{owner}: quality of shape {tuple(quality.shape)}, expected that '
            f'of index labels, {tuple(rows)}'
        )
    row_weight = element_weight = counted = None
    if weight is not None:
        row_weight, element_weight = split_weight(
            owner, weight, logits, loss.use_sigmoid
        )
    class_weight = loss.class_weight
    if soft and class_weight is not None:
        shape = (1, -1) + (1,) * (dim - 2)
        labels = labels * class_weight.to(labels).view(shape)
    elif not soft and (loss.avg_non_ignore or class_weight is not None):
        counted, row_weight = label_weights(
            logits, labels, row_weight, class_weight, ignore_index
        )
    factor: float | Tensor | None = None
    if reduction == 'sum':
        factor = loss.loss_weight
    elif reduction == 'mean':
        if avg_factor is None and counted is None:
            # An empty batch has a loss of 0.
            factor = loss.loss_weight / max(rows.numel(), 1)
        else:
            factor = loss.loss_weight / divisor(avg_factor, counted)
    learns = (
        loss.training
        and torch.is_grad_enabled()
        and logits.numel() > 0
        # What a transform of torch.func computes, such as the inner step of
        # a meta learner, may not leave it.
        and (is_compiling() or transform() is None)
    )
    return Batch(
        logits,
        labels,
        ignore_index,
        element_weight,
        row_weight,
        quality,
        factor,
        learns,
        loss.overwrite_logits,
        loss.engine,
        # Of a softmax, C + 2 columns: C is the largest label then.
        columns == largest + 2,
    )


def split_quality(loss: LongTailLoss, labels: Any) -> tuple[Tensor, Tensor]:
    """Labels and quality, as GFL-type heads pass them."""
    if isinstance(labels, (tuple, list)) and loss.takes_quality:
        index, quality = labels
        return index, quality
    raise TypeError(
        f'{type(loss).__name__}: labels of type {type(labels).__name__}, '
        'expected a tensor. Heads that learn a quality with the class (GFL, '
        'RTMDet, TOOD, VFNet) pass more than labels; they need a quality '
        'focal loss, such as EqualizedQualityFocalLoss.'
    )


def check_columns(loss: LongTailLoss, columns: int, of_map: bool) -> int:
    """Whether the loss knows its classes and serves so many columns.

    Returns:
        int: The largest index label that there may be: C for background, but
        in maps, which have none.
    """
    owner = type(loss).__name__
    if loss.uses_counts and not loss.class_counts.numel():
        raise RuntimeError(
            f"{owner}: class_counts='auto' was not filled before the first "
            'forward. A Runner does that by itself before training '
            '(ClassCountsHook); in a loop of your own call '
            'set_class_counts(...), or give class_counts as a list, a file '
            'or the name of a benchmark.'
        )
    if not hasattr(loss, 'num_classes'):
        raise RuntimeError(
            f'{owner}: num_classes=None, expected the number of classes '
            'before the first forward. A Runner takes it from heads that '
            'have a num_classes; elsewhere give it to the loss.'
        )
    num_classes = loss.num_classes
    fits = loss.columns(num_classes)
    # Maps have no background column: one too many is a wrong count.
    if columns not in fits or (of_map and columns != num_classes):
        fix = (
            'make num_classes of the head agree with the class counts, and '
            "use background='objectness' in RoI heads only (elsewhere state "
            "another, such as 'keep_odds')"
        )
        if loss.use_sigmoid and columns == num_classes + 1:
            fix = (
                'a dense or DETR-type head of mmdet gives C columns when its '
                'loss config says use_sigmoid=True'
            )
        raise fault(
            'num_classes',
            num_classes,
            f'logits of {" or ".join(map(str, fits))} columns '
            f'(background={loss.background.key!r}), got {columns}',
            fix,
            owner,
        )
    class_weight = loss.class_weight
    if class_weight is not None and class_weight.numel() != columns:
        raise fault(
            'class_weight',
            class_weight.tolist(),
            f'{columns} values, one a logit column',
            owner=owner,
        )
    if not of_map and (loss.use_sigmoid or columns > num_classes):
        return num_classes
    return num_classes - 1


def soft_labels(
    owner: str, labels: Tensor, logits: Tensor, allowed: bool
) -> Tensor:
    """Soft labels, floating; one-hot labels of integers, too."""
    if labels.shape != logits.shape:
        raise ValueError(
            f'{owner}: soft labels of shape {tuple(labels.shape)} do not '
            f'match the logits {tuple(logits.shape)}; index labels must be '
            'integers'
        )
    if not allowed:
        raise ValueError(
            f'{owner}: soft labels, expected index labels: the method is '
            'defined for one label a row; remove Mixup, CutMix, label '
            'smoothing and to_onehot, or take another loss'
        )
    # mmpretrain's preprocessor makes one-hot labels of integers.
    return labels if labels.is_floating_point() else labels.float()


def check_range(
    loss: LongTailLoss, labels: Tensor, largest: int, ignore_index: int
) -> None:
    """Index labels are in [0, largest] or ignored.

    Raises:
        ValueError: One is not.
    """
    wrong = (labels != ignore_index) & ((labels < 0) | (labels > largest))
    if wrong.any():
        num_classes = loss.num_classes
        background = ' and background' if largest == num_classes else ''
        raise ValueError(
            f'{type(loss).__name__}: label {int(labels[wrong][0])} is out of '
            f'range: expected 0..{largest} ({num_classes} classes'
            f'{background}) or ignore_index={ignore_index}. Check '
            'num_classes of the head, the classes of the data set, and '
            '(segmentation) reduce_zero_label and ignore_index.'
        )


def split_weight(
    owner: str, weight: Tensor, logits: Tensor, by_element: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Tell a weight per row from one per row and class.

    Args:
        owner (str): Name of the loss.
        weight (Tensor): (N, d1, ...), or as many elements as the logits.
        logits (Tensor): (N, K, d1, ...).
        by_element (bool): Whether the loss takes the latter.

    Returns:
        tuple[Tensor, Tensor]: Per row and per element; one of them is None.
    """
    rows = logits.shape[:1] + logits.shape[2:]
    if weight.shape == rows:
        return weight, None
    if by_element and weight.numel() == logits.numel():
        return None, weight.reshape(logits.shape)
    raise ValueError(
        f'{owner}: weight of shape {tuple(weight.shape)} fits neither rows '
        f'{tuple(rows)}'
        + (f' nor logits {tuple(logits.shape)}' if by_element else '')
    )


def label_weights(
    logits: Tensor,
    labels: Tensor,
    row_weight: Tensor | None,
    class_weight: Tensor | None,
    ignore_index: int,
) -> tuple[Tensor, Tensor | None]:
    """What a row counts in the mean, and what it weighs.

    Args:
        logits (Tensor): (N, K, d1, ...).
        labels (Tensor): Index labels.
        row_weight (Tensor, optional): (N, d1, ...), of the head.
        class_weight (Tensor, optional): (K,).
        ignore_index (int): Label of rows that do not count.

    Returns:
        tuple[Tensor, Tensor]: (N, d1, ...) each.
    """
    ignored = labels == ignore_index
    counted = torch.ones_like(
        labels, dtype=torch.promote_types(logits.dtype, torch.float)
    )
    if class_weight is not None:
        # What mmseg divides by: the sum of the labels' weights.
        counted = class_weight.to(counted)[labels.masked_fill(ignored, 0)]
        row_weight = counted if row_weight is None else counted * row_weight
    return counted.masked_fill(ignored, 0), row_weight


def divisor(
    avg_factor: float | Tensor | None, counted: Tensor | None
) -> float | Tensor:
    """What the sum of the rows is divided by in a mean.

    Args:
        avg_factor (float | Tensor, optional): Of the head; it wins.
        counted (Tensor, optional): What each row counts.
    """
    if isinstance(avg_factor, Tensor):
        # DETR-type heads give it in the logits' type, where eps is 0.
        wide = torch.promote_types(avg_factor.dtype, torch.float32)
        avg_factor = avg_factor.to(wide).reshape(())
    if avg_factor is not None:
        # The hosts' own guard: heads without positives may pass 0.
        return avg_factor + _EPS
    assert counted is not None
    return counted.sum().clamp(min=_EPS)


def reduced(rows: Tensor, batch: Batch, loss_weight: float) -> Tensor:
    """What a call gives back.

    Args:
        rows (Tensor): Losses of rows, (N, d1, ...).
        batch (Batch): The call.
        loss_weight (float): Factor of the config, for rows that are wanted
            as they are.
    """
    if batch.factor is not None:
        return reduce_rows(rows, batch.row_weight, batch.factor)
    if batch.row_weight is not None:
        rows = rows * batch.row_weight.to(rows.dtype)
    return loss_weight * rows
