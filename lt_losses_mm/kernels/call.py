# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""What a loss asks of the kernels, and what the kernels ask of an engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from .formulas import SoftmaxFormula, TwoSided


@dataclass
class Batch:
    """What a loss is asked about, checked.

    Args:
        logits (Tensor): (N, K) or (N, K, d1, ...), floating.
        labels (Tensor): Index labels (N, d1, ...) int64, where C or more
            stands for background, or soft labels of the logits' shape.
        ignore_index (int): Index label of rows without a loss.
        element_weight (Tensor, optional): Factor of the logits' shape.
        row_weight (Tensor, optional): Factor (N, d1, ...). Statistics see
            it, and the reduction.
        quality (Tensor, optional): Of each row, (N, d1, ...).
        factor (float | Tensor, optional): The rows are weighted, summed and
            multiplied with it. Without it the loss of each row is wanted,
            and not yet weighted.
        learns (bool): Whether statistics shall take notice.
        overwrite (bool): Whether the gradient may be written over the logits.
        engine (str, optional): In place of
            :func:`~lt_losses_mm.kernels.engine`.
        objectness (bool): Softmax only: whether the last two columns tell
            objects from background on all rows, by a cross-entropy of their
            own. The classes then compete among themselves, on rows with an
            object.
    """

    logits: Tensor
    labels: Tensor
    ignore_index: int = -100
    element_weight: Tensor | None = None
    row_weight: Tensor | None = None
    quality: Tensor | None = None
    factor: float | Tensor | None = None
    learns: bool = False
    overwrite: bool = False
    engine: str | None = None
    objectness: bool = False

    @property
    def weight(self) -> Tensor | None:
        """All weights, of a shape that broadcasts to the logits."""
        if self.row_weight is not None:
            return self.row_weight.unsqueeze(1)
        return self.element_weight


@dataclass
class Call:
    """One loss of one matrix, or of one batch of maps, for an engine.

    Rows are (R,) where logits are a matrix (R, K), whose rows may have a
    stride, and (N, S) where they are maps (N, K, S), whose classes are
    planes.

    Args:
        formula (SoftmaxFormula | TwoSided): The definition to agree with.
        labels (Tensor): Rows, int64; K or more for background.
        ignore_index (int): Label of rows without a loss.
        with_sums (bool): Whether the sums are wanted.
        weight (Tensor, optional): Rows; factor for the sums alone.
        element_weight (Tensor, optional): Factor of the logits' shape.
        quality (Tensor, optional): Rows, for sides that read it.
        upstream (float | Tensor): What the gradient of the losses of rows
            will be, the same for all or rows, for a forward pass that writes
            the gradient of the logits.
    """

    formula: Any
    labels: Tensor
    ignore_index: int
    with_sums: bool = False
    weight: Tensor | None = None
    element_weight: Tensor | None = None
    quality: Tensor | None = None
    upstream: float | Tensor = 1.0


class Answer(NamedTuple):
    """What the forward pass of a call gives.

    Args:
        loss (Tensor): Of each row, or, where the gradient is written, their
            sum times ``upstream``; fp32 or the logits' wider type.
        sums (Tensor, optional): (3, K), as the formula's ``sums``.
        state: Whatever the engine's backward pass wants to be given back.
    """

    loss: Tensor
    sums: Tensor | None
    state: Any


class Engine(Protocol):
    """A way to compute a call: loss, sums and gradient in closed form."""

    def can_run(
        self, logits: Tensor, formula: SoftmaxFormula | TwoSided
    ) -> bool:
        """Whether there is code for this device, type and formula."""

    def finishes(self, call: Call, logits: Tensor) -> bool:
        """Whether forward wants to write the gradient, too.

        It is asked where the factor of each row is known, and the gradient
        allocated ahead.
        """

    def forward(
        self, call: Call, logits: Tensor, gradient: Tensor | None
    ) -> Answer:
        """Losses, and sums, if they are wanted.

        Args:
            call (Call): What to compute.
            logits (Tensor): (R, K) or (N, K, S), without autograd.
            gradient (Tensor, optional): Of the logits' shape and type, where
                to write their gradient for ``call.upstream``.
        """

    def backward(
        self,
        call: Call,
        logits: Tensor,
        state: Any,
        upstream: Tensor,
        gradient: Tensor,
    ) -> None:
        """Write the gradient of the logits.

        Args:
            call (Call): That of the forward pass.
            logits (Tensor): Likewise.
            state: From :class:`Answer`.
            upstream (Tensor): Gradient of the losses of rows, contiguous, or
                a scalar where it is the same for all.
            gradient (Tensor): Where to write it; may be the logits
                themselves.
        """
