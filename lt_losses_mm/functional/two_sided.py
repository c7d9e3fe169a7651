# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
r"""Losses that treat each class as a binary problem of two sides.

.. math:: L_{ij} = t_{ij} P_j(z_{ij}) + (1 - t_{ij}) N_j(z_{ij})

with one function for the positive side and one for the negative. A soft
label t is taken for a sample that is positive with weight t and negative with
weight 1 - t; so is its gradient. For index labels the negative side is
computed everywhere and replaced at the label: no one-hot is built.
"""

from __future__ import annotations

from typing import Callable, NamedTuple, Sequence

import torch
from torch import Tensor

from .balanced import upcast

Side = Callable[..., Tensor]


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


def per_column(parameters: Sequence[Tensor], logits: Tensor) -> list[Tensor]:
    """Parameters (C,) in the shape and dtype that fit the logits."""
    shape = (1, -1) + (1,) * (logits.dim() - 2)
    return [
        (p.view(shape) if p.dim() == 1 else p).to(logits.dtype)
        for p in parameters
    ]


def two_sided_loss(
    logits: Tensor,
    labels: Tensor,
    positive: Side,
    negative: Side,
    parameters: Sequence[Tensor] = (),
    *,
    at_label: Sequence[Tensor] = (),
    ignore_index: int = -100,
) -> Tensor:
    """Loss per row and class.

    Args:
        logits (Tensor): (N, C) or (N, C, d1, ...), floating.
        labels (Tensor): (N,) or (N, d1, ...), int64: a class in [0, C), or C
            for a row that is negative for all classes; or soft labels of the
            logits' shape in [0, 1], floating.
        positive (callable): P(z, *parameters, *at_label).
        negative (callable): N(z, *parameters).
        parameters (sequence of Tensor): Each (C,), or of a shape that
            broadcasts to the logits.
        at_label (sequence of Tensor): Further arguments of P for index
            labels, one value a row.
        ignore_index (int): Rows of this index label get loss 0.

    Returns:
        Tensor: The logits' shape, fp32 or the logits' wider type.
    """
    logits = upcast(logits)
    columns = per_column(parameters, logits)
    loss = negative(logits, *columns)
    if labels.is_floating_point():
        soft = labels.to(logits.dtype)
        return soft * positive(logits, *columns) + (1 - soft) * loss
    at = find_label(labels, logits.size(1), ignore_index)
    own = torch.where(
        at.positive,
        positive(
            logits.gather(1, at.column),
            *_gather(columns, at.column, logits),
            *[row.unsqueeze(1).to(logits.dtype) for row in at_label],
        ),
        loss.gather(1, at.column),
    )
    return loss.scatter(1, at.column, own).masked_fill(at.ignored, 0)


def _gather(
    columns: Sequence[Tensor], index: Tensor, logits: Tensor
) -> list[Tensor]:
    return [c.expand(logits.shape).gather(1, index) for c in columns]


def two_sided_sums(
    logits: Tensor,
    labels: Tensor,
    positive: Side,
    negative: Side,
    parameters: Sequence[Tensor] = (),
    *,
    weight: Tensor | None = None,
    at_label: Sequence[Tensor] = (),
    ignore_index: int = -100,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Sums over rows of both sides, for statistics.

    Args:
        logits (Tensor): (N, C) or (N, C, d1, ...), floating.
        labels (Tensor): As in :func:`two_sided_loss`.
        positive (callable): Magnitude of the gradient of the positive side,
            |P'(z)|, called as in :func:`two_sided_loss`.
        negative (callable): That of the negative side, |N'(z)|.
        parameters (sequence of Tensor): As in :func:`two_sided_loss`.
        weight (Tensor, optional): Factor, of a shape that broadcasts to the
            logits.
        at_label (sequence of Tensor): As in :func:`two_sided_loss`.
        ignore_index (int): Rows of this index label are left out.

    Returns:
        tuple[Tensor, Tensor, Tensor]: Each (C,), float64 if the device has
        it: :math:`\sum_i w_{ij} t_{ij} |P'|`,
        :math:`\sum_i w_{ij} (1 - t_{ij}) |N'|`, and
        :math:`\sum_i [w_{ij} > 0]\, t_{ij}`.
    """
    logits = upcast(logits)
    columns = per_column(parameters, logits)
    slope = negative(logits, *columns)
    if labels.is_floating_point():
        soft = labels.to(logits.dtype)
        return class_sums(
            soft * positive(logits, *columns), (1 - soft) * slope, soft, weight
        )
    at = find_label(labels, logits.size(1), ignore_index)
    own = positive(
        logits.gather(1, at.column),
        *_gather(columns, at.column, logits),
        *[row.unsqueeze(1).to(logits.dtype) for row in at_label],
    )
    return class_sums_at_label(own, slope, at, weight)


def class_sums(
    positive: Tensor, negative: Tensor, soft: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted sums over rows of values per row and class."""
    if weight is not None:
        positive, negative = positive * weight, negative * weight
        soft = soft * (weight > 0)
    return _over_rows(positive), _over_rows(negative), _over_rows(soft)


def class_sums_at_label(
    positive: Tensor, negative: Tensor, at: AtLabel, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The same, with the positive side (N, 1, d1, ...) known at the label.

    Values of the negative side at the label, and in ignored rows, are left
    out.
    """
    counted = at.positive
    if weight is not None:
        own_weight = weight.expand(negative.shape).gather(1, at.column)
        positive = positive * own_weight
        counted = counted & (own_weight > 0)
        negative = negative * weight
    others = negative.gather(1, at.column).masked_fill(at.positive, 0)
    negative = negative.scatter(1, at.column, others)
    negative = negative.masked_fill(at.ignored, 0)
    index = at.column.flatten()
    wide = _wide(positive.masked_fill(~at.positive, 0)).flatten()
    zeros = wide.new_zeros(negative.size(1))
    return (
        zeros.index_add(0, index, wide),
        _over_rows(negative),
        zeros.index_add(0, index, counted.to(wide.dtype).flatten()),
    )


def _over_rows(values: Tensor) -> Tensor:
    return _wide(values.sum([d for d in range(values.dim()) if d != 1]))


def _wide(values: Tensor) -> Tensor:
    # float64 does not exist on MPS
    return values if values.device.type == 'mps' else values.double()
