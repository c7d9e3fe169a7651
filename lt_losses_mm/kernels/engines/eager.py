# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The kernels in operators of PyTorch, on parts that fit the caches."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..call import Answer, Call
from ..formulas import Shifted, Sides, SoftmaxFormula, TwoSided
from ..formulas.labels import (
    AtLabel,
    find_label,
    per_column,
    positive_sums,
    upcast,
    wide,
)
from ..formulas.softmax import scaled

# Logits of a part. On CPU it and its temporaries are some megabytes, few for
# the caches and enough for the calls of operators not to count; accelerators
# want fewer, larger kernels.
_ON_CPU = 1 << 18
_ON_ACCELERATORS = 1 << 25


def _parts(z: Tensor) -> list[tuple[Any, Any]]:
    """Indices of parts of the logits, and of the same parts of rows."""
    size = _ON_CPU if z.device.type == 'cpu' else _ON_ACCELERATORS
    step = max(1, size // z.size(1))
    if z.dim() == 2:
        step, pixels = min(step, z.size(0)), 1
    else:
        pixels = z.size(2)
    found: list[tuple[Any, Any]] = []
    if pixels <= step:
        for begin in range(0, z.size(0), step // pixels):
            part = slice(begin, begin + step // pixels)
            found.append((part, part))
        return found
    for n in range(z.size(0)):
        for begin in range(0, pixels, step):
            image, part = slice(n, n + 1), slice(begin, begin + step)
            found.append(((image, slice(None), part), (image, part)))
    return found


def _column_sums(values: Tensor, weight: Tensor | None, at: AtLabel) -> Tensor:
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


def _drop_label(values: Tensor, at: AtLabel) -> None:
    own = values.gather(1, at.column).masked_fill_(at.positive, 0)
    values.scatter_(1, at.column, own)


def _of_rows(
    upstream: float | Tensor, rows: Any, counted: Tensor, dtype: torch.dtype
) -> Tensor:
    """Upstream gradients of some rows, (R, 1) or (N, 1, S), or 0."""
    if isinstance(upstream, Tensor) and upstream.dim():
        upstream = upstream[rows].unsqueeze(1)
    return torch.where(counted, upstream, 0.0).to(dtype)


def _at_rows(at: AtLabel, rows: Any) -> AtLabel:
    if not isinstance(rows, slice):
        rows = rows[0], slice(None), rows[1]
    return AtLabel(at.column[rows], at.positive[rows], at.ignored[rows])


class _State(NamedTuple):
    at: AtLabel
    # Derivative of the positive side at the label, of losses of two sides.
    own: Tensor | None = None


class EagerSoftmax:
    """See :class:`~lt_losses_mm.kernels.call.Engine`."""

    def can_run(self, logits: Tensor, formula: Any) -> bool:
        return isinstance(formula, SoftmaxFormula)

    def finishes(self, call: Call, logits: Tensor) -> bool:
        # Not in half precision: upstream gradients are scaled so that
        # products with them do not underflow, other values might. Nor in
        # double, where runs of the same graph shall agree to the last bit.
        return logits.dtype == torch.float32

    def forward(
        self, call: Call, logits: Tensor, gradient: Tensor | None
    ) -> Answer:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        losses = logits.new_empty(call.labels.shape, dtype=dtype)
        found = find_label(call.labels, logits.size(1), call.ignore_index)
        sums: Tensor | float = 0.0
        parts = _parts(logits)
        # Sums of columns are a matrix product, which autocast would round.
        with torch.autocast(logits.device.type, enabled=False):
            for part, rows in parts:
                at = found if len(parts) == 1 else _at_rows(found, rows)
                adjusted = self._adjusted(call, logits, part, rows)
                if gradient is not None and logits.dim() == 2:
                    log_p = torch.log_softmax(adjusted, 1, out=gradient[part])
                else:
                    log_p = adjusted.log_softmax(1)
                own = log_p.gather(1, at.column).neg_()
                losses[rows] = own.masked_fill_(~at.positive, 0).squeeze(1)
                if call.with_sums:
                    weight = None if call.weight is None else call.weight[rows]
                    sums = sums + _column_sums(log_p.exp(), weight, at)
                if gradient is not None:
                    p = log_p.exp_()
                    self._finish(call, p, call.upstream, rows, at)
                    if logits.dim() > 2:
                        gradient[part] = p
            loss = losses
            if gradient is not None:
                loss = (losses * call.upstream).sum()
            if not isinstance(sums, Tensor):
                return Answer(loss, None, _State(found))
            own = -(-losses).expm1().unsqueeze(1)
            weight = None if call.weight is None else call.weight.unsqueeze(1)
            positive, count = positive_sums(own, found, weight, sums.numel())
            all_sums = torch.stack([positive, sums, count])
            if call.formula.scale is not None:
                all_sums = scaled(all_sums, call.formula.scale)
            return Answer(loss, all_sums, _State(found))

    def backward(
        self,
        call: Call,
        logits: Tensor,
        state: _State,
        upstream: Tensor,
        gradient: Tensor,
    ) -> None:
        with torch.autocast(logits.device.type, enabled=False):
            for part, rows in _parts(logits):
                at = _at_rows(state.at, rows)
                p = self._adjusted(call, logits, part, rows).softmax(1)
                self._finish(call, p, upstream, rows, at)
                gradient[part] = p

    def _finish(
        self,
        call: Call,
        p: Tensor,
        upstream: float | Tensor,
        rows: Any,
        at: AtLabel,
    ) -> None:
        """The gradient, written over the probabilities."""
        factor = _of_rows(upstream, rows, at.positive, p.dtype)
        p.mul_(factor)
        _zero_rows(p, factor == 0)
        p.scatter_add_(1, at.column, -factor)
        if call.formula.scale is not None:
            p.mul_(per_column([call.formula.scale], p)[0])

    def _adjusted(self, call: Call, z: Tensor, part: Any, rows: Any) -> Tensor:
        """What the softmax of a part is taken of."""
        formula = call.formula
        if isinstance(formula, Shifted) and z.dim() == 2:
            if formula.scale is None and formula.shift.dtype == torch.float32:
                # The definition is one addition, and casts as this does.
                return z[part] + formula.shift
        pixels = call.labels[:1].numel()
        if isinstance(rows, slice):
            first = rows.start * pixels
        else:
            first = rows[0].start * pixels + rows[1].start
        assert isinstance(formula, SoftmaxFormula)
        return formula.adjust(
            z[part], call.labels[rows], call.ignore_index, first
        )


class EagerSigmoid:
    """See :class:`~lt_losses_mm.kernels.call.Engine`."""

    def can_run(self, logits: Tensor, formula: Any) -> bool:
        return isinstance(formula, TwoSided)

    def finishes(self, call: Call, logits: Tensor) -> bool:
        # As for the softmax; without sums nothing is known that is worth it.
        return logits.dtype == torch.float32 and call.with_sums

    def forward(
        self, call: Call, logits: Tensor, gradient: Tensor | None
    ) -> Answer:
        formula, element_weight = call.formula, call.element_weight
        sides = formula.sides
        dtype = torch.promote_types(logits.dtype, torch.float32)
        losses = logits.new_empty(call.labels.shape, dtype=dtype)
        found = find_label(call.labels, logits.size(1), call.ignore_index)
        sums: Tensor | float = 0.0
        parts = _parts(logits)
        with torch.autocast(logits.device.type, enabled=False):
            for part, rows in parts:
                at = found if len(parts) == 1 else _at_rows(found, rows)
                z = logits[part].to(dtype)
                columns = formula.of_rows(z, call.labels[rows])
                slope = None
                if call.with_sums and sides.negative_both is not None:
                    loss, slope = sides.negative_both(z, *columns)
                else:
                    loss = sides.negative(z, *columns)
                if element_weight is not None:
                    loss.mul_(element_weight[part])
                _drop_label(loss, at)
                of_rows = loss.sum(1).masked_fill_(at.ignored.squeeze(1), 0)
                losses[rows] = of_rows
                if not call.with_sums:
                    continue
                del loss
                if slope is None:
                    slope = sides.negative_slope(z, *columns)
                if element_weight is not None:
                    slope.mul_(element_weight[part])
                if gradient is not None:
                    gradient[part] = slope
                    self._scale(gradient[part], call.upstream, rows, at)
                weight = None if call.weight is None else call.weight[rows]
                sums = sums + _column_sums(slope, weight, at)
            # The positive side is a function of the label's column alone.
            inputs = [logits.gather(1, found.column).to(dtype)]
            for values in formula.parameters:
                inputs.append(values.to(dtype)[found.column])
            if call.quality is not None:
                inputs.append(call.quality.unsqueeze(1).to(dtype))
            own = sides.positive(*inputs)
            # Now, since the logits may be lost when it is needed.
            own_slope = sides.positive_slope(*inputs)
            weight = None if call.weight is None else call.weight.unsqueeze(1)
            size = own_slope.abs()
            if element_weight is not None:
                weight = element_weight.gather(1, found.column)
                own, own_slope = own * weight, own_slope * weight
            losses += own.masked_fill_(~found.positive, 0).squeeze(1)
            state = _State(found, own_slope)
            if gradient is not None:
                self._set_own(gradient, state, call.upstream)
                losses = (losses * call.upstream).sum()
            if not isinstance(sums, Tensor):
                return Answer(losses, None, state)
            positive, count = positive_sums(size, found, weight, sums.numel())
            all_sums = torch.stack([positive, sums, count])
            return Answer(losses, all_sums, state)

    def backward(
        self,
        call: Call,
        logits: Tensor,
        state: _State,
        upstream: Tensor,
        gradient: Tensor,
    ) -> None:
        with torch.autocast(logits.device.type, enabled=False):
            for part, rows in _parts(logits):
                at = _at_rows(state.at, rows)
                slope = self._slope(call, upcast(logits[part]), part, rows)
                self._scale(slope, upstream, rows, at)
                gradient[part] = slope
            self._set_own(gradient, state, upstream)

    def _scale(
        self, slope: Tensor, upstream: float | Tensor, rows: Any, at: AtLabel
    ) -> None:
        factor = _of_rows(upstream, rows, ~at.ignored, slope.dtype)
        slope.mul_(factor)
        _zero_rows(slope, factor == 0)

    def _set_own(
        self, gradient: Tensor, state: _State, upstream: float | Tensor
    ) -> None:
        """Write what the labels' columns get."""
        assert state.own is not None
        at = state.at
        if isinstance(upstream, Tensor) and upstream.dim():
            upstream = upstream.unsqueeze(1)
        own = (state.own * upstream).to(gradient.dtype)
        if isinstance(upstream, Tensor):  # NaN in rows without weight
            own = own.masked_fill(upstream == 0, 0)
        own = torch.where(at.positive, own, gradient.gather(1, at.column))
        gradient.scatter_(1, at.column, own)

    def _slope(self, call: Call, z: Tensor, part: Any, rows: Any) -> Tensor:
        """Derivative of the negative side."""
        sides: Sides = call.formula.sides
        columns = call.formula.of_rows(z, call.labels[rows])
        if sides.negative_both is not None:
            slope = sides.negative_both(z, *columns)[1]
        else:
            slope = sides.negative_slope(z, *columns)
        if call.element_weight is not None:
            slope.mul_(call.element_weight[part])
        return slope


EAGER_SOFTMAX, EAGER_SIGMOID = EagerSoftmax(), EagerSigmoid()
