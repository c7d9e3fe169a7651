# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The definitions as they stand, under autograd.

For whatever the other engines do not serve: soft labels, ``torch.compile``
(which fuses it by itself), transforms of ``torch.func``, second derivatives.
"""

from __future__ import annotations

from torch import Tensor

from ..formulas import SoftmaxFormula, TwoSided


def rows(
    formula: SoftmaxFormula | TwoSided,
    logits: Tensor,
    labels: Tensor,
    ignore_index: int,
    element_weight: Tensor | None = None,
    quality: Tensor | None = None,
) -> Tensor:
    """Loss per row, (N, d1, ...), of logits (N, K, d1, ...)."""
    if isinstance(formula, SoftmaxFormula):
        return formula.loss(logits, labels, ignore_index)
    loss = formula.loss(logits, labels, ignore_index, quality)
    if element_weight is not None:
        loss = loss * element_weight.to(loss.dtype)
    return loss.sum(1)


def sums(
    formula: SoftmaxFormula | TwoSided,
    logits: Tensor,
    labels: Tensor,
    ignore_index: int,
    weight: Tensor | None,
    quality: Tensor | None = None,
) -> Tensor:
    """Gradient magnitudes and counts, (3, K)."""
    logits = logits.detach()
    if isinstance(formula, SoftmaxFormula):
        return formula.sums(logits, labels, ignore_index, weight)
    return formula.sums(logits, labels, ignore_index, weight, quality)
