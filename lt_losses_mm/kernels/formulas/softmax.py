# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
r"""Losses that are a cross-entropy of adjusted logits: their definition.

- :class:`Shifted`: :math:`z_j / \Delta_j + s_j`, of Balanced Softmax and its
  kin.
- :class:`Seesaw`: Wang et al., "Seesaw Loss for Long-Tailed Instance
  Segmentation", CVPR 2021 (arXiv:2008.10032).
- :class:`Dropped`: the softmax form of EQL, Tan et al., "Equalization Loss
  for Long-Tailed Object Recognition", CVPR 2020 (arXiv:2003.05176).

The reference engine runs what stands here under autograd; the other engines
are tested against it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .draw import draw_word, random_drops
from .labels import (
    checked_width,
    class_sums,
    class_sums_at_label,
    find_label,
    per_column,
    upcast,
    without_object,
)


class SoftmaxFormula(ABC):
    """What becomes of the logits before the softmax is taken.

    Attributes:
        scale (Tensor, optional): (K,), the derivative of an adjusted logit
            with respect to the logit, where it is not 1.
        width (int): K.
    """

    width: int
    scale: Tensor | None = None

    def __post_init__(self) -> None:
        self.width = checked_width(self.columns())

    @abstractmethod
    def columns(self) -> tuple[Tensor, ...]:
        """The parameters that have one value a logit column, (K,) each."""

    @abstractmethod
    def adjust(
        self,
        logits: Tensor,
        labels: Tensor,
        ignore_index: int,
        first_row: int = 0,
    ) -> Tensor:
        """The adjusted logits.

        Args:
            logits (Tensor): (N, K) or (N, K, d1, ...), floating.
            labels (Tensor): (N,) or (N, d1, ...), int64.
            ignore_index (int): Label of rows without a loss.
            first_row (int): Where the rows begin among those of the batch.

        Returns:
            Tensor: The logits' shape, fp32 or the logits' wider type.
        """

    def loss(
        self, logits: Tensor, labels: Tensor, ignore_index: int
    ) -> Tensor:
        """Cross-entropy of the adjusted logits, per row; the definition.

        Args:
            logits (Tensor): (N, K) or (N, K, d1, ...), floating.
            labels (Tensor): (N,) or (N, d1, ...), int64, or soft labels of
                the logits' shape, floating.
            ignore_index (int): Rows of this index label get loss 0.

        Returns:
            Tensor: (N,) or (N, d1, ...).
        """
        adjusted = self.adjust(logits, labels, ignore_index)
        if labels.is_floating_point():
            # PyTorch refuses soft labels with an ignore_index >= 0.
            soft = labels.to(adjusted.dtype)
            return F.cross_entropy(adjusted, soft, reduction='none')
        return F.cross_entropy(
            adjusted, labels, reduction='none', ignore_index=ignore_index
        )

    def sums(
        self,
        logits: Tensor,
        labels: Tensor,
        ignore_index: int,
        weight: Tensor | None,
    ) -> Tensor:
        r"""Gradient magnitudes, summed over rows, and counts.

        With p the softmax of the adjusted logits, a sample of label y gives
        :math:`1 - p_y` to the positives of y and :math:`p_j` to the negatives
        of every other class; a soft label is a mixture of such samples.

        Args:
            logits (Tensor): As in :meth:`loss`.
            labels (Tensor): As in :meth:`loss`.
            ignore_index (int): Rows of this index label are left out.
            weight (Tensor, optional): Factor (N, 1, d1, ...).

        Returns:
            Tensor: (3, K), float64 if the device has it: sums of the
            positives, of the negatives, and the number of the positives.
        """
        log_p = self.adjust(logits, labels, ignore_index).log_softmax(1)
        if labels.is_floating_point():
            soft, p = labels.to(log_p.dtype), log_p.exp()
            others = (soft.sum(1, keepdim=True) - soft) * p
            found = class_sums(soft * -log_p.expm1(), others, soft, weight)
        else:
            at = find_label(labels, log_p.size(1), ignore_index)
            own = -log_p.gather(1, at.column).expm1()
            found = class_sums_at_label(own, log_p.exp(), at, weight)
        return scaled(found, self.scale)


def scaled(sums: Tensor, scale: Tensor | None) -> Tensor:
    """Sums of gradients of adjusted logits as those of the logits."""
    if scale is None:
        return sums
    one = torch.ones_like(scale)
    return sums * torch.stack([scale, scale, one]).to(sums.dtype)


@dataclass
class Shifted(SoftmaxFormula):
    r"""Logits times a scale, plus a shift: :math:`z_j \delta_j + s_j`.

    Args:
        shift (Tensor): s, (K,), floating.
        scale (Tensor, optional): :math:`\delta`, (K,), > 0; by default 1.
    """

    shift: Tensor
    scale: Tensor | None = None

    def columns(self) -> tuple[Tensor, ...]:
        if self.scale is None:
            return (self.shift,)
        return self.shift, self.scale

    def adjust(
        self,
        logits: Tensor,
        labels: Tensor,
        ignore_index: int,
        first_row: int = 0,
    ) -> Tensor:
        logits = upcast(logits)
        shift, *scale = per_column(self.columns(), logits)
        return logits * scale[0] + shift if scale else logits + shift


@dataclass
class Seesaw(SoftmaxFormula):
    r"""Logits plus the log of the seesaw factors of each row's label.

    With y the label of a row, a negative class j gets
    :math:`z_j + \log M_{yj} + \log C_{yj}` (Eq. 4), where

    .. math::
        M_{yj} = \min(1, N_j / N_y)^p, \qquad
        C_{yj} = \max(1, \sigma_j / \max(\sigma_y, \epsilon))^q

    are the mitigation (Eq. 5) and the compensation factor (Eq. 6); no
    gradient flows through :math:`\sigma`, the softmax of the logits. Both are
    1 at j = y. No (C, C) matrix is built.

    Args:
        log_counts (Tensor): log N, (K,).
        log_counts_of_label (Tensor): The same for a column in its role as
            the label, where the two differ (background, to which mitigation
            does not apply).
        p (float): Exponent of the mitigation, >= 0.
        q (float): Exponent of the compensation, >= 0.
        eps (float): Floor of the label's score, > 0.
    """

    log_counts: Tensor
    log_counts_of_label: Tensor
    p: float = 0.8
    q: float = 2.0
    eps: float = 1e-2

    def columns(self) -> tuple[Tensor, ...]:
        return self.log_counts, self.log_counts_of_label

    def adjust(
        self,
        logits: Tensor,
        labels: Tensor,
        ignore_index: int,
        first_row: int = 0,
    ) -> Tensor:
        logits = upcast(logits)
        at = find_label(labels, logits.size(1), ignore_index)
        (column,) = per_column([self.log_counts], logits)
        own = self.log_counts_of_label.to(logits.dtype)[at.column]
        mitigation = (column - own).clamp(max=0)
        with torch.no_grad():
            score = logits.log_softmax(1)
            floor = math.log(self.eps)
            compensation = score - score.gather(1, at.column).clamp(min=floor)
            compensation.clamp_(min=0)
        return logits + self.p * mitigation + self.q * compensation


@dataclass
class Dropped(SoftmaxFormula):
    r"""Logits, minus infinity where a class is left out at random.

    :math:`-\log (e^{z_y} / \sum_k w_k e^{z_k})` with :math:`w_k = 1 - \beta_k
    T_k (1 - t_k)` (Tan et al. 2020): never the label's own, nor any in rows
    of background.

    Args:
        probability (Tensor): Of being left out, (K,), floating.
        seed (Tensor): (2,), int64, of
            :func:`~lt_losses_mm.kernels.formulas.draw.random_drops`.
        num_classes (int): Label of background.
    """

    probability: Tensor
    seed: Tensor
    num_classes: int

    def columns(self) -> tuple[Tensor, ...]:
        return (self.probability,)

    def _dropped(
        self, shape: torch.Size, labels: Tensor, first_row: int
    ) -> Tensor:
        dropped = random_drops(
            self.seed, self.probability, shape, first_row, draw_word()
        )
        return dropped & ~without_object(labels, self.num_classes)

    def adjust(
        self,
        logits: Tensor,
        labels: Tensor,
        ignore_index: int,
        first_row: int = 0,
    ) -> Tensor:
        logits = upcast(logits)
        dropped = self._dropped(labels.shape, labels, first_row)
        at = find_label(labels, logits.size(1), ignore_index)
        # An ignored row whose columns are all dropped would have a NaN
        # gradient.
        dropped = dropped.scatter(
            1, at.column, dropped.gather(1, at.column) & ~at.positive
        ).masked_fill(at.ignored, False)
        return logits.masked_fill(dropped, -torch.inf)

    def loss(
        self, logits: Tensor, labels: Tensor, ignore_index: int
    ) -> Tensor:
        if not labels.is_floating_point():
            return super().loss(logits, labels, ignore_index)
        logits = upcast(logits)
        shape = logits.shape[:1] + logits.shape[2:]
        dropped = self._dropped(shape, labels, 0)
        # A row without any label would have no column left.
        dropped = dropped & (labels > 0).any(1, keepdim=True)
        soft = labels.to(logits.dtype)
        kept = torch.where(dropped, soft, 1.0)
        log_sum = (logits + kept.log()).logsumexp(1, keepdim=True)
        return (soft * (log_sum - logits)).sum(1)
