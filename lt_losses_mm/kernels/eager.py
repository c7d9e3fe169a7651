# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The kernels in operators of PyTorch, on parts that fit the caches."""

from __future__ import annotations

import functools
from typing import Any, Callable, Iterator

import torch
from torch import Tensor

from ..functional.two_sided import per_column, positive_sums, upcast, wide

# Logits of a part. On CPU it and its temporaries are some megabytes, few for
# the caches and enough for the calls of operators not to count; accelerators
# want fewer, larger kernels.
_ON_CPU = 1 << 18
_ON_ACCELERATORS = 1 << 25


def _parts(z: Tensor) -> Iterator[tuple[Any, Any]]:
    """Indices of parts of the logits, and of the same parts of rows."""
    size = _ON_CPU if z.device.type == 'cpu' else _ON_ACCELERATORS
    step = max(1, size // z.size(1))
    if z.dim() == 2:
        for begin in range(0, z.size(0), step):
            part = slice(begin, begin + step)
            yield part, part
        return
    pixels = z.size(2)
    if pixels < step:
        for begin in range(0, z.size(0), step // pixels):
            part = slice(begin, begin + step // pixels)
            yield part, part
        return
    for n in range(z.size(0)):
        for begin in range(0, pixels, step):
            image, part = slice(n, n + 1), slice(begin, begin + step)
            yield (image, slice(None), part), (image, part)


def _column_sums(values: Tensor, weight: Tensor | None, at: Any) -> Tensor:
    """Of rows that are not ignored, without the labels' own."""
    _drop_label(values, at)
    _zero_rows(values, at.ignored)
    if values.dim() == 3:
        if weight is not None:
            values.mul_(weight.unsqueeze(1))
        return wide(values.sum((0, 2)))
    if weight is None:
        weight = values.new_ones(()).expand(values.size(0))
    return wide(weight.to(values.dtype) @ values)


def _zero_rows(values: Tensor, rows: Tensor) -> None:
    """Where the values are NaN, too."""
    # Asking first would stop the host of an accelerator.
    if values.device.type != 'cpu' or rows.any():
        values.masked_fill_(rows, 0)


def _drop_label(values: Tensor, at: Any) -> None:
    own = values.gather(1, at.column).masked_fill_(at.positive, 0)
    values.scatter_(1, at.column, own)


def _at(work: Any, rows: Any) -> Any:
    at = work.at
    index = (
        rows if isinstance(rows, slice) else (rows[0], slice(None), rows[1])
    )
    return type(at)(*[field[index] for field in at])


def new_gradient(work: Any, z: Tensor) -> Tensor:
    """Room for it."""
    if work.room is not None:
        columns = z.size(1)
        whole = z.new_empty(z.size(0), columns + work.room.columns)
        return whole[:, :columns]
    return torch.empty_like(z, memory_format=torch.contiguous_format)


def _room_to_keep(work: Any, z: Tensor, wanted: bool = True) -> Tensor | None:
    """Room for what backward can make the gradient of, in the same place.

    Not in half precision: upstream gradients are scaled so that products with
    them do not underflow, other values might. Nor in double, where runs of
    the same graph shall agree to the last bit.
    """
    wanted = wanted and work.needs_gradient and not work.overwrite
    if z.dtype != torch.float32 or not wanted:
        return None
    return new_gradient(work, z)


def _exactly(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Sums of columns are a matrix product, which autocast would round."""

    @functools.wraps(function)
    def call(work: Any, z: Tensor, *rest: Any) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            return function(work, z, *rest)

    return call


def _new_sums(z: Tensor) -> Tensor:
    return wide(z.new_zeros(z.size(1), dtype=upcast(z[:0]).dtype))


def _new_rows(work: Any, z: Tensor) -> Tensor:
    return z.new_empty(work.labels.shape, dtype=upcast(z[:0]).dtype)


def _adjusted(work: Any, z: Tensor, part: Any, rows: Any) -> Tensor:
    """What the softmax of a part is taken of."""
    adjust = work.adjust
    if hasattr(adjust, 'first_row'):
        pixels = work.labels[:1].numel()
        first = (
            rows.start * pixels
            if isinstance(rows, slice)
            else rows[0].start * pixels + rows[1].start
        )
        adjust = adjust._replace(first_row=first)
    return adjust(z[part], work.labels[rows], work.ignore_index)


@_exactly
def softmax_forward(work: Any, z: Tensor) -> Tensor:
    """Losses of rows; state for the backward pass, and sums, in ``work``."""
    losses, sums = _new_rows(work, z), _new_sums(z)
    work.kept = kept = _room_to_keep(work, z)
    for part, rows in _parts(z):
        at, logits = _at(work, rows), _adjusted(work, z, part, rows)
        if kept is not None and z.dim() == 2:
            log_p = torch.log_softmax(logits, 1, out=kept[part])
        else:
            log_p = logits.log_softmax(1)
            if kept is not None:
                kept[part] = log_p
        own = -log_p.gather(1, at.column).masked_fill_(~at.positive, 0)
        losses[rows] = own.squeeze(1)
        if work.with_sums:
            weight = None if work.weight is None else work.weight[rows]
            sums += _column_sums(log_p.exp(), weight, at)
    if work.with_sums:
        own = -(-losses).expm1()
        _add_positives(work, own.unsqueeze(1), work.weight, sums)
    return losses


@_exactly
def softmax_backward(
    work: Any, z: Tensor, upstream: Tensor, out: Tensor | None
) -> Tensor:
    """Gradient, in ``out`` if given, which may be the logits."""
    # A second backward pass through the same graph finds nothing kept.
    kept, work.kept = work.kept, None
    if out is None:
        out = new_gradient(work, z) if kept is None else kept
    for part, rows in _parts(z):
        at = _at(work, rows)
        if kept is None:
            p = _adjusted(work, z, part, rows).softmax(1)
        else:
            p = kept[part].exp_()
        factor = upstream[rows].unsqueeze(1).masked_fill(~at.positive, 0)
        p.mul_(factor)
        _zero_rows(p, factor == 0)
        p.scatter_add_(1, at.column, -factor.to(p.dtype))
        if kept is None:
            out[part] = p
    return out


def _columns(work: Any, logits: Tensor, rows: Any) -> list[Tensor]:
    columns = per_column(work.parameters, logits)
    if not work.spares:
        return columns
    background = (work.labels[rows] == logits.size(1)).unsqueeze(1)
    return [
        torch.where(background, neutral, column)
        for neutral, column in zip(work.sides.neutral, columns)
    ]


@_exactly
def sigmoid_forward(work: Any, z: Tensor) -> Tensor:
    """Losses of rows; state for the backward pass, and sums, in ``work``."""
    losses, sums = _new_rows(work, z), _new_sums(z)
    work.kept = kept = _room_to_keep(work, z, work.with_sums)
    for part, rows in _parts(z):
        at, logits = _at(work, rows), upcast(z[part])
        columns = _columns(work, logits, rows)
        if work.with_sums and work.sides.negative_both is not None:
            loss, slope = work.sides.negative_both(logits, *columns)
        else:
            loss, slope = work.sides.negative(logits, *columns), None
        if work.element_weight is not None:
            loss.mul_(work.element_weight[part])
        _drop_label(loss, at)
        losses[rows] = loss.sum(1).masked_fill_(at.ignored.squeeze(1), 0)
        if work.with_sums:
            del loss
            if slope is None:
                slope = work.sides.negative_slope(logits, *columns)
            if work.element_weight is not None:
                slope.mul_(work.element_weight[part])
            if kept is not None:
                kept[part] = slope
            weight = None if work.weight is None else work.weight[rows]
            sums += _column_sums(slope, weight, at)
    at, own_weight = work.at, work.weight
    parts = _at_label(work, z)
    own = work.sides.positive(*parts)
    # Now, since the logits may be lost when it is needed.
    work.own = work.sides.positive_slope(*parts)
    if work.element_weight is not None:
        own_weight = work.element_weight.gather(1, at.column)
        own = own * own_weight
    if work.with_sums:
        _add_positives(work, work.own.abs(), own_weight, sums)
    if work.element_weight is not None:
        work.own = work.own * own_weight
    losses += own.masked_fill_(~at.positive, 0).squeeze(1)
    return losses


def _at_label(work: Any, z: Tensor) -> list[Tensor]:
    """What the positive side is a function of, (N, 1, ...) each."""
    own = upcast(z.gather(1, work.at.column))
    return [
        own,
        *[p.to(own.dtype)[work.at.column] for p in work.parameters],
        *[value.unsqueeze(1).to(own.dtype) for value in work.at_label],
    ]


def _add_positives(
    work: Any, own: Tensor, weight: Tensor | None, negative: Tensor
) -> None:
    if weight is not None and weight.dim() < own.dim():
        weight = weight.unsqueeze(1)
    gradient, count = positive_sums(own, work.at, weight, negative.numel())
    work.sums = gradient, negative, count


@_exactly
def sigmoid_backward(
    work: Any, z: Tensor, upstream: Tensor, out: Tensor | None
) -> Tensor:
    """Gradient, in ``out`` if given, which may be the logits."""
    kept, work.kept = work.kept, None
    if out is None:
        out = new_gradient(work, z) if kept is None else kept
    for part, rows in _parts(z):
        at = _at(work, rows)
        if kept is None:
            slope = _negative_slope(work, upcast(z[part]), part, rows)
        else:
            slope = kept[part]
        factor = upstream[rows].unsqueeze(1).masked_fill(at.ignored, 0)
        slope.mul_(factor)
        _zero_rows(slope, factor == 0)
        if kept is None:
            out[part] = slope
    at = work.at
    own = (work.own * upstream.unsqueeze(1)).to(out.dtype)
    out.scatter_(
        1, at.column, torch.where(at.positive, own, out.gather(1, at.column))
    )
    return out


def _negative_slope(work: Any, logits: Tensor, part: Any, rows: Any) -> Tensor:
    columns = _columns(work, logits, rows)
    if work.sides.negative_both is not None:
        slope = work.sides.negative_both(logits, *columns)[1]
    else:
        slope = work.sides.negative_slope(logits, *columns)
    if work.element_weight is not None:
        slope.mul_(work.element_weight[part])
    return slope
