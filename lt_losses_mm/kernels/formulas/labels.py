# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Where labels are, and sums over rows: what all formulas share."""

from __future__ import annotations

from typing import NamedTuple, Sequence

import torch
from torch import Tensor


def checked_width(columns: Sequence[Tensor]) -> int:
    """K, of parameters with one value a logit column, (K,) each.

    Raises:
        ValueError: They differ in shape.
    """
    shapes = {tuple(values.shape) for values in columns}
    if len(shapes) != 1 or len(columns[0].shape) != 1:
        raise ValueError(
            f'parameters of shapes {sorted(shapes)}, expected one value a '
            'logit column each'
        )
    return columns[0].numel()


def upcast(logits: Tensor) -> Tensor:
    """Logits of fp16 and bf16 in fp32, others as they are."""
    half = logits.dtype in (torch.float16, torch.bfloat16)
    return logits.float() if half else logits


class AtLabel(NamedTuple):
    """Where the labels are, each (N, 1, d1, ...)."""

    column: Tensor
    positive: Tensor
    ignored: Tensor


def find_label(labels: Tensor, num_columns: int, ignore_index: int) -> AtLabel:
    """Column of each row's label; 0 where a row has none."""
    labels = labels.unsqueeze(1)
    ignored = labels == ignore_index
    positive = (labels < num_columns) & ~ignored
    return AtLabel(torch.where(positive, labels, 0), positive, ignored)


def without_object(labels: Tensor, num_classes: int) -> Tensor:
    """Rows of background.

    Args:
        labels (Tensor): Index labels, of which C is background, or soft
            labels, of which a row without a share of any class is.
        num_classes (int): C.

    Returns:
        Tensor: (N, 1, d1, ...), bool.
    """
    if labels.is_floating_point():
        return ~(labels[:, :num_classes] > 0).any(1, keepdim=True)
    return (labels == num_classes).unsqueeze(1)


def per_column(parameters: Sequence[Tensor], logits: Tensor) -> list[Tensor]:
    """Parameters (C,) in the shape and dtype that fit the logits."""
    shape = (1, -1) + (1,) * (logits.dim() - 2)
    found = []
    for values in parameters:
        found.append(values.view(shape).to(logits.dtype))
    return found


def class_sums(
    positive: Tensor, negative: Tensor, soft: Tensor, weight: Tensor | None
) -> Tensor:
    """Weighted sums over rows of values per row and class, (3, C)."""
    if weight is not None:
        positive, negative = positive * weight, negative * weight
        soft = soft * (weight > 0)
    return torch.stack([_over_rows(v) for v in (positive, negative, soft)])


def class_sums_at_label(
    positive: Tensor, negative: Tensor, at: AtLabel, weight: Tensor | None
) -> Tensor:
    """The same, with the positive side (N, 1, d1, ...) known at the label.

    Values of the negative side at the label, and in ignored rows, are left
    out.
    """
    own_weight = None
    if weight is not None:
        own_weight = weight.expand(negative.shape).gather(1, at.column)
        negative = negative * weight
    others = negative.gather(1, at.column).masked_fill(at.positive, 0)
    negative = negative.scatter(1, at.column, others)
    negative = negative.masked_fill(at.ignored, 0)
    gradient, count = positive_sums(positive, at, own_weight, negative.size(1))
    return torch.stack([gradient, _over_rows(negative), count])


def positive_sums(
    positive: Tensor, at: AtLabel, weight: Tensor | None, num_columns: int
) -> tuple[Tensor, Tensor]:
    """Sums of the positive side, and counts, by column; all (N, 1, ...)."""
    counted = at.positive
    if weight is not None:
        positive = positive * weight
        counted = counted & (weight > 0)
    index = at.column.flatten()
    values = wide(positive.masked_fill(~at.positive, 0)).flatten()
    zeros = values.new_zeros(num_columns)
    return (
        zeros.index_add(0, index, values),
        zeros.index_add(0, index, counted.to(values.dtype).flatten()),
    )


def _over_rows(values: Tensor) -> Tensor:
    return wide(values.sum([d for d in range(values.dim()) if d != 1]))


def wide(values: Tensor) -> Tensor:
    """In float64, where the device has it (MPS has not)."""
    return values if values.device.type == 'mps' else values.double()
