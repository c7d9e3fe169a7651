# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
r"""Loss per row, sums per column, and gradient, without an (N, C) temporary.

The gradients of all losses here have closed forms in the logits. So one
tensor of the logits' size is allocated, that of the gradient. Forward writes
it while it has the logits, where the engine finds that cheaper; otherwise
backward does, or writes it over the logits. Double backward differentiates
the definition.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Callable, NamedTuple

import torch
from torch import Tensor

from ..compat import is_compiling, traced, transform
from ..messages import fault
from .call import Batch, Call, Engine
from .engines import choice, reference
from .engines.eager import EAGER_SIGMOID, EAGER_SOFTMAX
from .engines.native import NATIVE
from .formulas import Shifted, SoftmaxFormula, TwoSided
from .formulas.two_sided import where_of_quality


def reduce_rows(
    rows: Tensor, weight: Tensor | None, factor: float | Tensor
) -> Tensor:
    """The weighted sum of the losses of rows, times a factor; a scalar.

    Args:
        rows (Tensor): (N, d1, ...).
        weight (Tensor, optional): (N, d1, ...).
        factor (float | Tensor): 1 / N for the mean.
    """
    if weight is not None:
        rows = rows * weight.to(rows.dtype)
    if isinstance(factor, Tensor):
        factor = factor.to(rows.dtype)
    return rows.sum() * factor


def softmax_rows(
    formula: SoftmaxFormula, batch: Batch, *, sums: bool = False
) -> tuple[Tensor, Tensor | None]:
    """A cross-entropy of adjusted logits.

    Args:
        formula (SoftmaxFormula): What the softmax of the classes is taken of.
        batch (Batch): Element weights are not read.
        sums (bool): Whether to compute the second value.

    Returns:
        tuple[Tensor, Tensor]: Loss per row, 0 for ignored rows, or, if the
        batch has a factor, their reduction; and the formula's sums (3, K), or
        None.
    """
    labels, ignore_index = batch.labels, batch.ignore_index
    if not labels.is_floating_point():
        labels = labels.long()  # engines read addresses
    if not batch.objectness:
        return _run([_Part(formula, labels)], batch, sums)
    if labels.is_floating_point():
        raise fault(
            'background',
            'objectness',
            'another policy',
            'soft labels do not say which rows are objects: take index '
            'labels, or keep_odds',
        )
    num_classes = formula.width
    is_background = labels == num_classes
    no_shift = torch.zeros(2, device=labels.device)
    classes = _Part(
        formula,
        labels.masked_fill(is_background, ignore_index),
        slice(0, num_classes),
    )
    objectness = _Part(
        Shifted(no_shift),
        is_background.long().masked_fill(labels == ignore_index, ignore_index),
        slice(num_classes, num_classes + 2),
    )
    return _run([classes, objectness], batch, sums)


def sigmoid_rows(
    formula: TwoSided, batch: Batch, *, sums: bool = False
) -> tuple[Tensor, Tensor | None]:
    """A loss of two sides, summed over classes.

    Args:
        formula (TwoSided): The loss and its parameters.
        batch (Batch): What to compute it for.
        sums (bool): Whether to compute the second value.

    Returns:
        tuple[Tensor, Tensor]: As :func:`softmax_rows`.
    """
    labels, quality = batch.labels, batch.quality
    if not labels.is_floating_point():
        labels = labels.long()  # as above
        if formula.sides.reads_quality:
            if quality is None:
                quality = torch.ones_like(labels, dtype=torch.float32)
            labels = where_of_quality(
                labels, quality, batch.logits.size(1), batch.ignore_index
            )
    return _run([_Part(formula, labels)], batch, sums, quality)


def choose(batch: Batch, formula: SoftmaxFormula | TwoSided) -> Engine | None:
    """The engine of a batch: the one place that chooses.

    None for the reference. It gets soft labels, empty batches, inputs besides
    the logits that want a gradient, ``torch.compile``, and transforms of
    ``torch.func``. There is no public way to ask for the latter, and the
    public way to serve them, ``setup_context`` of an autograd function, costs
    every call some 24 microseconds: ``docs/decisions/0006-house.md``.
    """
    name = batch.engine or choice.current
    logits, element_weight = batch.logits, batch.element_weight
    if (
        name == 'reference'
        or is_compiling()
        or batch.labels.is_floating_point()
        or not logits.numel()
        or (element_weight is not None and element_weight.requires_grad)
        or (batch.quality is not None and batch.quality.requires_grad)
        or transform() is not None
    ):
        return None
    if name == 'native' and NATIVE.can_run(logits, formula):
        return NATIVE
    return EAGER_SIGMOID if isinstance(formula, TwoSided) else EAGER_SOFTMAX


class _Part(NamedTuple):
    """Columns of the logits, with a formula and labels of their own."""

    formula: Any
    labels: Tensor
    columns: slice | None = None  # all


@dataclass
class _Run:
    """What backward needs of a forward pass, but for the logits.

    Those are autograd's, which would not free them if they were here, too.
    """

    engine: Engine
    calls: list[tuple[Call, slice | None]]
    definition: Callable[[Tensor], Tensor]
    shape: torch.Size
    plain: bool  # a matrix as engines know it
    last: bool  # maps of which each pixel's classes are neighbours
    overwrite: bool
    row_weight: Tensor | None
    factor: float | Tensor | None
    watched: list[Tensor]
    sums: Tensor | None = None
    states: list[Any] = field(default_factory=list)
    finished: Tensor | None = None  # gradient, by the forward pass

    def of_rows(self, upstream: Any, dtype: torch.dtype) -> Any:
        """Gradients of the losses of rows, as engines want them.

        Args:
            upstream (float | Tensor): Gradient of what is returned.
            dtype (dtype): That of the losses.

        Returns:
            float | Tensor: One for all, or rows.
        """
        factor, weight = self.factor, self.row_weight
        if factor is not None:
            if isinstance(factor, Tensor):
                factor = factor.to(dtype)
            upstream = upstream * factor
            if weight is not None:
                upstream = upstream * weight.to(dtype)
        if isinstance(upstream, Tensor) and upstream.dim():
            if len(self.shape) > 1:
                upstream = _flat(upstream, self.last)
            upstream = upstream.contiguous()
        return upstream

    def like_logits(self, gradient: Tensor) -> Tensor:
        """From the layout of engines."""
        if self.last:
            n, h, w = self.shape
            return gradient.view(n, h, w, -1).permute(0, 3, 1, 2)
        if self.plain or len(self.shape) == 1:
            return gradient
        return gradient.view(*self.shape[:1], -1, *self.shape[1:])


def _run(
    parts: list[_Part], batch: Batch, sums: bool, quality: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    logits, row_weight, factor = batch.logits, batch.row_weight, batch.factor
    shape, dim = batch.labels.shape, logits.dim()
    _check_shapes(parts, batch, quality)
    if factor is not None and (
        (row_weight is not None and row_weight.requires_grad)
        or (isinstance(factor, Tensor) and factor.requires_grad)
    ):
        # Theirs is for autograd to find.
        plain = replace(batch, factor=None)
        rows, found = _run(parts, plain, sums, quality)
        return reduce_rows(rows, row_weight, factor), found
    engine = choose(batch, parts[0].formula)
    if engine is None:
        return _by_definition(parts, batch, sums, quality)
    last = dim == 4 and (
        logits.is_contiguous(memory_format=torch.channels_last)
        and not logits.is_contiguous()
    )
    calls: list[tuple[Call, slice | None]] = []
    for formula, of_part, columns in parts:
        call = Call(formula, of_part, batch.ignore_index, sums and not calls)
        call.weight = row_weight if call.with_sums else None
        call.element_weight, call.quality = batch.element_weight, quality
        if dim > 2:
            _flatten(call, last)
        calls.append((call, columns))
    ignore_index, element_weight = batch.ignore_index, batch.element_weight
    labels = batch.labels

    def definition(z: Tensor) -> Tensor:
        # Not the batch, which has the logits.
        again = Batch(z, labels, ignore_index, element_weight, row_weight)
        again.factor = factor
        return _by_definition(parts, again, False, quality)[0]

    watched = [batch.labels]
    for values in (batch.element_weight, row_weight, quality, factor):
        if isinstance(values, Tensor):
            watched.append(values)
    run = _Run(
        engine,
        calls,
        definition,
        shape,
        dim == 2 and logits.is_contiguous(),
        last,
        batch.overwrite,
        row_weight,
        factor,
        watched,
    )
    rows = _Rows.apply(logits, run)
    # Autograd's graph need not keep them alive.
    found, run.sums = run.sums, None
    return rows, found


def _by_definition(
    parts: list[_Part],
    batch: Batch,
    sums: bool,
    quality: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """The reference."""
    logits = batch.logits
    rows: Tensor | None = None
    found: Tensor | None = None
    for formula, labels, columns in parts:
        z = logits if columns is None else logits[:, columns]
        more = reference.rows(
            formula,
            z,
            labels,
            batch.ignore_index,
            batch.element_weight,
            quality,
        )
        if rows is None and sums:
            with torch.no_grad():
                found = reference.sums(
                    formula,
                    z,
                    labels,
                    batch.ignore_index,
                    batch.weight,
                    quality,
                )
        rows = more if rows is None else rows + more
    assert rows is not None
    if batch.factor is not None:
        rows = reduce_rows(rows, batch.row_weight, batch.factor)
    return rows, found


def _check_shapes(
    parts: list[_Part], batch: Batch, quality: Tensor | None
) -> None:
    """Engines read addresses: what is there has to be what they expect."""
    size, shape = batch.logits.shape, batch.labels.shape
    rows = size[:1] + size[2:]
    if shape != (size if batch.labels.is_floating_point() else rows):
        raise ValueError(
            f'labels of shape {tuple(shape)} do not fit logits of shape '
            f'{tuple(size)}'
        )
    for formula, _, columns in parts:
        width = size[1] if columns is None else columns.stop - columns.start
        if formula.width != width:
            raise ValueError(
                f'a formula of {formula.width} columns, expected {width}, as '
                'the logits have'
            )
    for values in (batch.row_weight, quality):
        if values is not None and values.shape != rows:
            raise ValueError(
                f'values per row of shape {tuple(values.shape)}, expected '
                f'{tuple(rows)}'
            )
    weight = batch.element_weight
    if weight is not None and weight.shape != size:
        raise ValueError(
            f'values per element of shape {tuple(weight.shape)}, expected '
            f'{tuple(size)}'
        )


def _flat(values: Tensor, last: bool) -> Tensor:
    """(N, d1, ...) of maps as (R,) or (N, S)."""
    return values.flatten() if last else values.flatten(1)


def _flatten(call: Call, last: bool) -> None:
    """Bring what a call has of maps into the shapes that engines know."""
    call.labels = _flat(call.labels, last)
    if call.weight is not None:
        call.weight = _flat(call.weight, last)
    if call.quality is not None:
        call.quality = _flat(call.quality, last)
    if call.element_weight is not None:
        call.element_weight = _matrix(call.element_weight, last)


def _matrix(values: Tensor, last: bool) -> Tensor:
    """(N, K, d1, ...) of maps as (R, K) or (N, K, S)."""
    if last:
        return values.permute(0, 2, 3, 1).flatten(0, 2)
    return values.flatten(2)


def _ordered(logits: Tensor, last: bool) -> Tensor:
    """Logits in a layout that engines know, without autograd."""
    z = logits.detach()
    if z.dim() > 2:
        z = _matrix(z, last)
    if z.stride(-1) == 1 and (z.dim() == 2 or z.stride(1) == z.size(2)):
        return z
    return z.contiguous()


def _may_be_overwritten(logits: Tensor, z: Tensor) -> bool:
    """Neither a leaf nor a view of one, and no element twice."""
    base = logits._base
    leaf = logits.is_leaf or (base is not None and base.is_leaf)
    apart = z.size(0) == 1 or z.stride(0) >= z[0].numel()
    return apart and not leaf


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, run: _Run) -> Tensor:
        # The others for autograd to notice if they are changed.
        ctx.save_for_backward(logits, *run.watched)
        ctx.run = run
        engine, z = run.engine, logits
        if not run.plain:
            z = _ordered(logits, run.last)
        if (
            ctx.needs_input_grad[0]
            and run.factor is not None
            and not run.overwrite
            and engine.finishes(run.calls[0][0], z)
        ):
            run.finished = z.new_empty(z.shape)
            expected = run.of_rows(1.0, z.dtype)
        total: Tensor | None = None
        for call, columns in run.calls:
            part, gradient = z, run.finished
            if columns is not None:
                part = z[:, columns]
                gradient = None if gradient is None else gradient[:, columns]
            if gradient is not None:
                call.upstream = expected
            loss, sums, state = engine.forward(call, part, gradient)
            run.states.append(state)
            if call.with_sums:
                run.sums = sums
            total = loss if total is None else total + loss
        assert total is not None
        if run.finished is not None:
            return total
        if not run.plain:
            total = total.view(run.shape)
        if run.factor is None:
            return total
        return reduce_rows(total, run.row_weight, run.factor)

    @staticmethod
    @traced
    def backward(ctx: Any, upstream: Tensor) -> Any:
        # An error if they were changed since.
        logits, run = ctx.saved_tensors[0], ctx.run
        if torch.is_grad_enabled():  # create_graph=True
            (gradient,) = torch.autograd.grad(
                run.definition(logits), logits, upstream, create_graph=True
            )
            return gradient, None
        # A second backward pass through the same graph finds none.
        gradient, run.finished = run.finished, None
        if gradient is not None:
            # To look would stop the host of an accelerator.
            if upstream.device.type != 'cpu' or upstream.item() != 1:
                gradient.mul_(upstream)
            return run.like_logits(gradient), None
        upstream = run.of_rows(upstream, upstream.dtype)
        z = logits if run.plain else _ordered(logits, run.last)
        if run.overwrite and _may_be_overwritten(logits, z):
            gradient = z
            # Whoever else saved the logits for backward must get an error.
            logits.detach()[:0].zero_()
        else:
            gradient = z.new_empty(z.shape)
        for (call, columns), state in zip(run.calls, run.states):
            part, to = z, gradient
            if columns is not None:
                part, to = z[:, columns], gradient[:, columns]
            run.engine.backward(call, part, state, upstream, to)
        return run.like_logits(gradient), None
