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
import torch.nn.functional as F
from torch import Tensor


class Sides(NamedTuple):
    """A loss of two sides, as functions of logits and column parameters.

    Attributes:
        positive (callable): P(z, *parameters, *at_label), where ``at_label``
            are values of the row that only this side reads.
        negative (callable): N(z, *parameters), monotone in z, with limit 0
            at minus infinity.
        positive_slope (callable): P'(z), called as P.
        negative_slope (callable): N'(z) >= 0, called as N.
        neutral (tuple of float): Column parameters with which it is plain
            binary cross-entropy.
        negative_both (callable, optional): N and N' together, without
            autograd, where that is cheaper than each by itself.
    """

    positive: Callable[..., Tensor]
    negative: Callable[..., Tensor]
    positive_slope: Callable[..., Tensor]
    negative_slope: Callable[..., Tensor]
    neutral: tuple[float, ...]
    negative_both: Callable[..., tuple[Tensor, Tensor]] | None = None


def softplus(z: Tensor) -> Tensor:
    """log(1 + e^z), exact in float64, too; its threshold is 20 elsewhere."""
    return F.softplus(z, threshold=40)


def _bce_positive(z: Tensor, weight: Tensor, _: Tensor) -> Tensor:
    return weight * softplus(-z)


def _bce_negative(z: Tensor, _: Tensor, weight: Tensor) -> Tensor:
    return weight * softplus(z)


def _bce_positive_slope(z: Tensor, weight: Tensor, _: Tensor) -> Tensor:
    return -weight * torch.sigmoid(-z)


def _bce_negative_slope(z: Tensor, _: Tensor, weight: Tensor) -> Tensor:
    return weight * torch.sigmoid(z)


# Parameters: weight of positives, weight of negatives.
WEIGHTED_BCE = Sides(
    _bce_positive,
    _bce_negative,
    _bce_positive_slope,
    _bce_negative_slope,
    neutral=(1, 1),
)
# Parameter: shift of the logits.
SHIFTED_BCE = Sides(
    lambda z, shift: softplus(-(z + shift)),
    lambda z, shift: softplus(z + shift),
    lambda z, shift: -torch.sigmoid(-(z + shift)),
    lambda z, shift: torch.sigmoid(z + shift),
    neutral=(0,),
)


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


def per_column(parameters: Sequence[Tensor], logits: Tensor) -> list[Tensor]:
    """Parameters (C,) in the shape and dtype that fit the logits."""
    shape = (1, -1) + (1,) * (logits.dim() - 2)
    return [
        (p.view(shape) if p.dim() == 1 else p).to(logits.dtype)
        for p in parameters
    ]


def of_label(
    side: Callable[..., Tensor],
    logits: Tensor,
    columns: Sequence[Tensor],
    at: AtLabel,
    at_label: Sequence[Tensor],
) -> Tensor:
    """A function of the positive side at the labels, (N, 1, d1, ...).

    Args:
        side (callable): Of :class:`Sides`.
        logits (Tensor): (N, C, d1, ...), fp32 or wider.
        columns (sequence of Tensor): From :func:`per_column`.
        at (AtLabel): From :func:`find_label`.
        at_label (sequence of Tensor): (N, d1, ...) each.
    """
    return side(
        logits.gather(1, at.column),
        *[c.expand(logits.shape).gather(1, at.column) for c in columns],
        *[row.unsqueeze(1).to(logits.dtype) for row in at_label],
    )


def two_sided_loss(
    sides: Sides,
    logits: Tensor,
    labels: Tensor,
    parameters: Sequence[Tensor] = (),
    *,
    at_label: Sequence[Tensor] = (),
    ignore_index: int = -100,
) -> Tensor:
    """Loss per row and class.

    Args:
        sides (Sides): P and N.
        logits (Tensor): (N, C) or (N, C, d1, ...), floating.
        labels (Tensor): (N,) or (N, d1, ...), int64: a class in [0, C), or C
            for a row that is negative for all classes; or soft labels of the
            logits' shape in [0, 1], floating.
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
    loss = sides.negative(logits, *columns)
    if labels.is_floating_point():
        soft = labels.to(logits.dtype)
        return soft * sides.positive(logits, *columns) + (1 - soft) * loss
    at = find_label(labels, logits.size(1), ignore_index)
    own = torch.where(
        at.positive,
        of_label(sides.positive, logits, columns, at, at_label),
        loss.gather(1, at.column),
    )
    return loss.scatter(1, at.column, own).masked_fill(at.ignored, 0)


def two_sided_sums(
    sides: Sides,
    logits: Tensor,
    labels: Tensor,
    parameters: Sequence[Tensor] = (),
    *,
    weight: Tensor | None = None,
    at_label: Sequence[Tensor] = (),
    ignore_index: int = -100,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Sums over rows of the gradients of both sides, for statistics.

    Args:
        sides (Sides): P and N.
        logits (Tensor): (N, C) or (N, C, d1, ...), floating.
        labels (Tensor): As in :func:`two_sided_loss`.
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
    slope = sides.negative_slope(logits, *columns)
    if labels.is_floating_point():
        soft = labels.to(logits.dtype)
        own = sides.positive_slope(logits, *columns).abs()
        return class_sums(soft * own, (1 - soft) * slope, soft, weight)
    at = find_label(labels, logits.size(1), ignore_index)
    own = of_label(sides.positive_slope, logits, columns, at, at_label).abs()
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
    own_weight = None
    if weight is not None:
        own_weight = weight.expand(negative.shape).gather(1, at.column)
        negative = negative * weight
    others = negative.gather(1, at.column).masked_fill(at.positive, 0)
    negative = negative.scatter(1, at.column, others)
    negative = negative.masked_fill(at.ignored, 0)
    gradient, count = positive_sums(positive, at, own_weight, negative.size(1))
    return gradient, _over_rows(negative), count


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
