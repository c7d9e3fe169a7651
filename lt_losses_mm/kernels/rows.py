# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
r"""Loss per row, sums per column, and gradient, without an (N, C) temporary.

The gradients of all losses here have closed forms in the logits. So one
tensor of the logits' size is allocated, that of the gradient. Backward reads
the logits again, or turns what forward left in that tensor into the gradient,
whichever is cheaper, or writes the gradient over the logits. Double backward
differentiates the functional form.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from ..functional.balanced import add_shift
from ..functional.draw import random_drops
from ..functional.equalization import (
    equalized_logits,
    softmax_sums,
    without_object,
)
from ..functional.seesaw import seesaw_logits
from ..functional.two_sided import (
    AtLabel,
    Sides,
    find_label,
    two_sided_loss,
    two_sided_sums,
)
from . import eager, native
from .switch import is_compiling, path_for

# Three rows, or as many tensors: (K,) each.
Sums = Union[Tensor, Tuple[Tensor, Tensor, Tensor], None]


@dataclass
class Room:
    """Behind the rows of a gradient, for further columns.

    Args:
        columns (int): How many.
        address (int, optional): That of the gradient, once it is there.
    """

    columns: int
    address: int | None = None


@dataclass(frozen=True)
class Batch:
    """What a loss is asked about, checked.

    Args:
        logits (Tensor): (N, K) or (N, K, d1, ...), floating.
        labels (Tensor): Index labels (N, d1, ...) int64, where C or more
            stands for background, or soft labels of the logits' shape.
        ignore_index (int): Index label of rows without a loss.
        element_weight (Tensor, optional): Factor of the logits' shape.
        row_weight (Tensor, optional): Factor (N, d1, ...), which the base
            applies to the losses of rows; statistics want to know it.
        quality (Tensor, optional): Of each row, (N, d1, ...).
        learns (bool): Whether statistics shall take notice.
        overwrite (bool): Whether the gradient may be written over the logits.
        room (Room, optional): What the gradient shall leave free.
    """

    logits: Tensor
    labels: Tensor
    ignore_index: int = -100
    element_weight: Tensor | None = None
    row_weight: Tensor | None = None
    quality: Tensor | None = None
    learns: bool = False
    overwrite: bool = False
    room: Room | None = None

    @property
    def weight(self) -> Tensor | None:
        """All weights, of a shape that broadcasts to the logits."""
        if self.row_weight is not None:
            return self.row_weight.unsqueeze(1)
        return self.element_weight


class Shifted(NamedTuple):
    """Logits of a softmax, plus a shift.

    Args:
        shift (Tensor): (K,), floating.
    """

    shift: Tensor

    def __call__(self, logits: Tensor, labels: Tensor, _: int) -> Tensor:
        return add_shift(logits, self.shift)


class Seesaw(NamedTuple):
    """Logits of :func:`~lt_losses_mm.functional.seesaw_logits`.

    Args:
        log_counts (Tensor): (K,).
        log_counts_of_label (Tensor): (K,).
        p (float): Exponent of the mitigation.
        q (float): Exponent of the compensation.
        eps (float): Floor of the label's score.
    """

    log_counts: Tensor
    log_counts_of_label: Tensor
    p: float
    q: float
    eps: float

    def __call__(
        self, logits: Tensor, labels: Tensor, ignore_index: int
    ) -> Tensor:
        return seesaw_logits(
            logits, labels, **self._asdict(), ignore_index=ignore_index
        )


def draw_word() -> torch.dtype:
    """Of random draws: products in int32 need not wrap in compiled code."""
    return torch.int64 if is_compiling() else torch.int32


class Dropped(NamedTuple):
    """Logits, minus infinity where a class is left out at random.

    Never the label's own, nor any in rows of background.

    Args:
        probability (Tensor): (K,), floating.
        seed (Tensor): (2,), int64, of
            :func:`~lt_losses_mm.functional.random_drops`.
        num_classes (int): Label of background.
        first_row (int): Where the rows begin among those of the batch.
    """

    probability: Tensor
    seed: Tensor
    num_classes: int
    first_row: int = 0

    def __call__(
        self, logits: Tensor, labels: Tensor, ignore_index: int
    ) -> Tensor:
        dropped = random_drops(
            self.seed,
            self.probability,
            labels.shape,
            self.first_row,
            draw_word(),
        )
        dropped = dropped & ~without_object(labels, self.num_classes)
        return equalized_logits(logits, labels, dropped, ignore_index)


def softmax_rows(
    adjust: Shifted | Seesaw | Dropped, batch: Batch, *, sums: bool = False
) -> tuple[Tensor, Sums]:
    """Cross-entropy of adjusted logits.

    Args:
        adjust (Shifted | Seesaw | Dropped): What the softmax is taken of.
        batch (Batch): Element weights are not read.
        sums (bool): Whether to compute the second value.

    Returns:
        tuple[Tensor, tuple]: Loss per row, 0 for ignored rows, and as
        :func:`~lt_losses_mm.functional.shifted_softmax_sums`, or None.
    """
    labels, ignore_index = batch.labels, batch.ignore_index

    def twin(logits: Tensor) -> Tensor:
        adjusted = adjust(logits, labels, ignore_index)
        if labels.is_floating_point():
            # PyTorch refuses soft labels with an ignore_index >= 0.
            soft = labels.to(adjusted.dtype)
            return F.cross_entropy(adjusted, soft, reduction='none')
        return F.cross_entropy(
            adjusted, labels, reduction='none', ignore_index=ignore_index
        )

    path = path_for(batch.logits, batch.labels)
    if path == 'functional':
        rows = twin(batch.logits)
        if not sums:
            return rows, None
        with torch.no_grad():
            log_p = adjust(batch.logits, labels, ignore_index).log_softmax(1)
            return rows, softmax_sums(
                log_p, labels, batch.weight, ignore_index
            )
    work = _SoftmaxWork(path, batch, twin, sums, adjust)
    return _Rows.apply(batch.logits, work), work.taken_sums()


def sigmoid_rows(
    sides: Sides,
    parameters: Sequence[Tensor],
    batch: Batch,
    *,
    at_label: Sequence[Tensor] = (),
    spare_background: bool = False,
    sums: bool = False,
) -> tuple[Tensor, Sums]:
    """A loss of two sides, summed over classes.

    Args:
        sides (Sides): The loss.
        parameters (sequence of Tensor): Those of the sides, each (C,).
        batch (Batch): What to compute it for.
        at_label (sequence of Tensor): Values per row that the positive side
            reads.
        spare_background (bool): Whether rows of background, label C, have
            the sides' ``neutral`` parameters in place of these.
        sums (bool): Whether to compute the second value.

    Returns:
        tuple[Tensor, tuple]: Loss per row, 0 for ignored rows, and as
        :func:`~lt_losses_mm.functional.weighted_sigmoid_sums`, or None.
    """
    labels, ignore_index = batch.labels, batch.ignore_index
    element_weight = batch.element_weight

    def columns(num_dims: int) -> Sequence[Tensor]:
        if not spare_background:
            return parameters
        background = without_object(labels, parameters[0].numel())
        shape = (1, -1) + (1,) * (num_dims - 2)
        return [
            torch.where(background, neutral, p.view(shape))
            for neutral, p in zip(sides.neutral, parameters)
        ]

    def twin(logits: Tensor) -> Tensor:
        loss = two_sided_loss(
            sides,
            logits,
            labels,
            columns(logits.dim()),
            at_label=at_label,
            ignore_index=ignore_index,
        )
        if element_weight is not None:
            loss = loss * element_weight.to(loss.dtype)
        return loss.sum(1)

    path = path_for(batch.logits, batch.labels, element_weight, *at_label)
    if path == 'native' and sides not in native.SIDES:
        path = 'eager'
    if path == 'functional':
        rows = twin(batch.logits)
        if not sums:
            return rows, None
        with torch.no_grad():
            return rows, two_sided_sums(
                sides,
                batch.logits,
                labels,
                columns(batch.logits.dim()),
                weight=batch.weight,
                at_label=at_label,
                ignore_index=ignore_index,
            )
    work = _SigmoidWork(
        path, batch, twin, sums, sides, parameters, at_label, spare_background
    )
    return _Rows.apply(batch.logits, work), work.taken_sums()


def split_columns(batch: Batch, at: int) -> tuple[Batch, Tensor]:
    """Columns of logits that two losses share.

    The gradient of a slice is a tensor of zeros as large as the whole; here
    the second part's is written into room behind the first part's.

    Args:
        batch (Batch): Logits of (N, K).
        at (int): Columns of the first part.

    Returns:
        tuple[Batch, Tensor]: The first part, and the logits of the second.
    """
    logits = batch.logits
    if path_for(logits, batch.labels) == 'functional':
        first, second = logits[:, :at], logits[:, at:]
        return replace(batch, logits=first), second
    room = Room(logits.size(1) - at)
    first, second = _Columns.apply(logits, at, room)
    return replace(batch, logits=first, room=room), second


class _Columns(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, at: int, room: Room
    ) -> tuple[Tensor, Tensor]:
        ctx.shape, ctx.at, ctx.room = logits.shape, at, room
        return logits[:, :at], logits[:, at:]

    @staticmethod
    def backward(ctx: Any, first: Tensor, second: Tensor) -> Any:
        ours = (
            first.data_ptr() == ctx.room.address
            and first.stride(0) >= ctx.shape[1]
        )
        if torch.is_grad_enabled() or not ours:
            return torch.cat([first, second], 1), None, None
        whole = first.detach().as_strided(ctx.shape, first.stride())
        whole[:, ctx.at :] = second
        return whole, None, None


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, work: Any) -> Tensor:
        # Labels and weights for autograd to notice if they are changed.
        ctx.save_for_backward(logits, *work.watched)
        ctx.work = work
        work.needs_gradient = ctx.needs_input_grad[0]
        return work.forward(logits)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        logits = ctx.saved_tensors[0]
        if torch.is_grad_enabled():  # create_graph=True
            rows = ctx.work.twin(logits)
            (gradient,) = torch.autograd.grad(
                rows, logits, upstream, create_graph=True
            )
            return gradient, None
        return ctx.work.backward(logits, upstream), None


def _may_be_overwritten(logits: Tensor, z: Tensor) -> bool:
    """Neither a leaf nor a view of one, and no element twice."""
    base = logits._base
    leaf = logits.is_leaf or (base is not None and base.is_leaf)
    apart = z.size(0) == 1 or z.stride(0) >= z[0].numel()
    return apart and not leaf


class _Work(ABC):
    """One call: its inputs as (N, K) or (N, K, S), and what they come to."""

    columns: int
    needs_gradient: bool

    def __init__(
        self, path: str, batch: Batch, twin: Any, with_sums: bool
    ) -> None:
        self.engine: Any = native if path == 'native' else eager
        self.twin = twin
        self.ignore_index = batch.ignore_index
        self.overwrite = batch.overwrite
        self.room = batch.room
        self.with_sums = with_sums
        self.sums: Sums = None
        # Of the logits' size, for backward to make the gradient of.
        self.kept: Tensor | None = None
        # Not the batch, which would keep the logits alive beside autograd.
        self.num_dims = batch.logits.dim()
        self.shape = batch.labels.shape
        # Kernels know two layouts: matrices, whose rows may have a stride,
        # and maps, whose classes are planes.
        self.last = self.num_dims == 4 and (
            batch.logits.is_contiguous(memory_format=torch.channels_last)
            and not batch.logits.is_contiguous()
        )
        # Kernels read addresses: what is there has to be what they expect.
        self.labels = self.rows(batch.labels.long())
        if self.labels.numel() * batch.logits.size(1) != batch.logits.numel():
            raise ValueError(
                f'labels of shape {tuple(batch.labels.shape)} do not fit '
                f'logits of shape {tuple(batch.logits.shape)}'
            )
        self.watched = [batch.labels]
        self.weight = self.element_weight = None
        if batch.row_weight is not None:
            self.weight = self.rows(batch.row_weight)
        if batch.element_weight is not None:
            self.element_weight = self.matrix(batch.element_weight)
            self.watched.append(batch.element_weight)

    def taken_sums(self) -> Sums:
        """The sums, which autograd's graph need not keep alive."""
        sums, self.sums = self.sums, None
        return sums

    def _of_columns(self, parameters: Sequence[Tensor], columns: int) -> None:
        for values in parameters:
            if values.shape != (columns,):
                raise ValueError(
                    f'parameter of shape {tuple(values.shape)}, expected '
                    f'({columns},), one value a logit column'
                )

    def rows(self, values: Tensor) -> Tensor:
        """(N, d1, ...) as (R,) or (N, S)."""
        if values.shape != self.shape:
            raise ValueError(
                f'values per row of shape {tuple(values.shape)}, expected '
                f'that of the labels, {tuple(self.shape)}'
            )
        if self.num_dims == 2:
            return values
        return values.flatten() if self.last else values.flatten(1)

    def matrix(self, values: Tensor) -> Tensor:
        """(N, K, d1, ...) as (R, K) or (N, K, S)."""
        if self.num_dims == 2:
            return values
        if self.last:
            return values.permute(0, 2, 3, 1).flatten(0, 2)
        return values.flatten(2)

    def _ordered(self, logits: Tensor) -> Tensor:
        z = self.matrix(logits.detach())
        ordered = z.stride(-1) == 1 and (
            z.dim() == 2 or z.stride(1) == z.size(2)
        )
        return z if ordered else z.contiguous()

    def forward(self, logits: Tensor) -> Tensor:
        z = self._ordered(logits)
        self.columns = z.size(1)
        return self.compute(z).view(self.shape)

    @cached_property
    def at(self) -> AtLabel:
        """Where the labels are."""
        return find_label(self.labels, self.columns, self.ignore_index)

    def backward(self, logits: Tensor, upstream: Tensor) -> Tensor:
        z = self._ordered(logits)
        out = None
        if self.overwrite and _may_be_overwritten(logits, z):
            out = z
            # Whoever else saved the logits for backward must get an error.
            logits.detach()[:0].zero_()
        gradient = self.differentiate(z, self.rows(upstream).contiguous(), out)
        if self.room is not None:
            self.room.address = gradient.data_ptr()
        if self.last:
            n, k, h, w = logits.shape
            return gradient.view(n, h, w, k).permute(0, 3, 1, 2)
        return gradient.view(logits.shape)

    @abstractmethod
    def compute(self, z: Tensor) -> Tensor:
        """Losses of rows; sums, if wanted."""

    @abstractmethod
    def differentiate(
        self, z: Tensor, upstream: Tensor, out: Tensor | None
    ) -> Tensor:
        """The gradient; in ``out``, if given, which may be the logits."""


class _SoftmaxWork(_Work):
    def __init__(
        self,
        path: str,
        batch: Batch,
        twin: Any,
        with_sums: bool,
        adjust: Shifted | Seesaw | Dropped,
    ) -> None:
        super().__init__(path, batch, twin, with_sums)
        self._of_columns(
            [
                value
                for value in adjust
                if isinstance(value, Tensor) and value.is_floating_point()
            ],
            batch.logits.size(1),
        )
        self.adjust = adjust

    def compute(self, z: Tensor) -> Tensor:
        return self.engine.softmax_forward(self, z)

    def differentiate(
        self, z: Tensor, upstream: Tensor, out: Tensor | None
    ) -> Tensor:
        return self.engine.softmax_backward(self, z, upstream, out)


class _SigmoidWork(_Work):
    def __init__(
        self,
        path: str,
        batch: Batch,
        twin: Any,
        with_sums: bool,
        sides: Sides,
        parameters: Sequence[Tensor],
        at_label: Sequence[Tensor],
        spares: bool,
    ) -> None:
        super().__init__(path, batch, twin, with_sums)
        self._of_columns(parameters, batch.logits.size(1))
        self.sides = sides
        self.parameters = parameters
        self.at_label = [self.rows(value) for value in at_label]
        self.spares = spares

    def compute(self, z: Tensor) -> Tensor:
        return self.engine.sigmoid_forward(self, z)

    def differentiate(
        self, z: Tensor, upstream: Tensor, out: Tensor | None
    ) -> Tensor:
        return self.engine.sigmoid_backward(self, z, upstream, out)
