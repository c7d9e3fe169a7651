# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
r"""Losses that treat each class as a binary problem of two sides.

.. math:: L_{ij} = t_{ij} P_j(z_{ij}) + (1 - t_{ij}) N_j(z_{ij})

with one function for the positive side and one for the negative. A soft
label t is taken for a sample that is positive with weight t and negative with
weight 1 - t; so is its gradient. For index labels the negative side is
computed everywhere and replaced at the label: no one-hot is built.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, NamedTuple, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .labels import (
    AtLabel,
    checked_width,
    class_sums,
    class_sums_at_label,
    find_label,
    per_column,
    upcast,
    without_object,
)


class Sides(NamedTuple):
    """A loss of two sides, as functions of logits and column parameters.

    Args:
        positive (callable): P, as ``P(z, *parameters)``, or, if it
            ``reads_quality``, ``P(z, *parameters, quality)``.
        negative (callable): N, as ``N(z, *parameters)``, monotone in z, with
            limit 0 at minus infinity.
        positive_slope (callable): P'(z), called as P.
        negative_slope (callable): N'(z) >= 0, called as N.
        neutral (tuple of float): Column parameters with which it is plain
            binary cross-entropy.
        negative_both (callable, optional): N and N' together, without
            autograd, where that is cheaper than each by itself.
        reads_quality (bool): Whether the positive side reads the quality of
            a row, and soft labels are a map of qualities, no mixture.
    """

    positive: Callable[..., Tensor]
    negative: Callable[..., Tensor]
    positive_slope: Callable[..., Tensor]
    negative_slope: Callable[..., Tensor]
    neutral: tuple[float, ...]
    negative_both: Callable[..., tuple[Tensor, Tensor]] | None = None
    reads_quality: bool = False


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


def _focal_positive(
    z: Tensor, gamma: Tensor, weight: Tensor, _: Tensor
) -> Tensor:
    return -weight * (gamma * F.logsigmoid(-z)).exp() * F.logsigmoid(z)


def _focal_negative(
    z: Tensor, gamma: Tensor, _: Tensor, weight: Tensor
) -> Tensor:
    return _focal_positive(-z, gamma, weight, _)


def _focal_positive_slope(
    z: Tensor, gamma: Tensor, weight: Tensor, _: Tensor
) -> Tensor:
    p, rest = torch.sigmoid(z), torch.sigmoid(-z)
    modulation = (gamma * F.logsigmoid(-z)).exp()
    return weight * modulation * (gamma * p * F.logsigmoid(z) - rest)


def _focal_negative_slope(
    z: Tensor, gamma: Tensor, _: Tensor, weight: Tensor
) -> Tensor:
    return -_focal_positive_slope(-z, gamma, weight, _)


def _focal_negative_both(
    z: Tensor, gamma: Tensor, _: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    # Not z - softplus(z), whose rounding gamma multiplies.
    log_p = softplus(-z).neg_()
    p = log_p.exp()
    modulation = log_p.mul_(gamma).exp_().mul_(weight)
    loss = softplus(z).mul_(modulation)
    # w p^gamma (p + gamma (1 - p) bce)
    slope = modulation.mul_(p).addcmul_(loss * gamma, p.neg_().add_(1))
    return loss, slope


# Parameters: focusing factor, weight of positives, weight of negatives.
FOCAL = Sides(
    _focal_positive,
    _focal_negative,
    _focal_positive_slope,
    _focal_negative_slope,
    neutral=(0, 1, 1),
    negative_both=_focal_negative_both,
)


def _gap(z: Tensor, quality: Tensor) -> Tensor:
    """P - q, without cancellation at q = 0 and at q = 1."""
    below = torch.sigmoid(z) - quality
    above = (1 - quality) - torch.sigmoid(-z)
    return torch.where(quality < 0.5, below, above)


def _bce(z: Tensor, quality: Tensor) -> Tensor:
    return -quality * F.logsigmoid(z) - (1 - quality) * F.logsigmoid(-z)


def _quality_positive(
    z: Tensor, gamma: Tensor, weight: Tensor, _: Tensor, quality: Tensor
) -> Tensor:
    return weight * _gap(z, quality).abs().pow(gamma) * _bce(z, quality)


def _quality_positive_slope(
    z: Tensor, gamma: Tensor, weight: Tensor, _: Tensor, quality: Tensor
) -> Tensor:
    gap = _gap(z, quality)
    size = gap.abs()
    curvature = torch.sigmoid(z) * torch.sigmoid(-z)
    return weight * (
        gamma * size.pow(gamma - 1) * gap.sign() * curvature * _bce(z, quality)
        + size.pow(gamma) * gap
    )


# Parameters as those of FOCAL; at the label, the quality.
QUALITY_FOCAL = FOCAL._replace(
    positive=_quality_positive,
    positive_slope=_quality_positive_slope,
    reads_quality=True,
)


def focal_parameters(
    focusing: Tensor, class_weight: Tensor, alpha: float = -1
) -> tuple[Tensor, Tensor, Tensor]:
    """Those of ``FOCAL``, with alpha, or neither weight if it is < 0."""
    of_positives, of_negatives = (
        (1.0, 1.0) if alpha < 0 else (alpha, 1 - alpha)
    )
    return focusing, of_positives * class_weight, of_negatives * class_weight


def where_of_quality(
    labels: Tensor, quality: Tensor, num_classes: int, ignore_index: int
) -> Tensor:
    """A label of quality 0 is no positive: its target is background's."""
    absent = (quality <= 0) & (labels != ignore_index)
    return labels.masked_fill(absent, num_classes)


def of_label(
    side: Callable[..., Tensor],
    logits: Tensor,
    columns: Sequence[Tensor],
    at: AtLabel,
    quality: Tensor | None = None,
) -> Tensor:
    """A function of the positive side at the labels, (N, 1, d1, ...).

    Args:
        side (callable): Of :class:`Sides`.
        logits (Tensor): (N, C, d1, ...), fp32 or wider.
        columns (sequence of Tensor): From :func:`per_column`.
        at (AtLabel): From :func:`find_label`.
        quality (Tensor, optional): (N, d1, ...).
    """
    parts = [logits, *[c.expand(logits.shape) for c in columns]]
    parts = [part.gather(1, at.column) for part in parts]
    if quality is not None:
        parts.append(quality.unsqueeze(1).to(logits.dtype))
    return side(*parts)


@dataclass
class TwoSided:
    """A loss of two sides with its parameters: the definition.

    Args:
        sides (Sides): P and N.
        parameters (sequence of Tensor): Those of the sides, each (C,).
        spare_background (bool): Whether rows of background, label C, have
            the sides' ``neutral`` parameters in place of these.
    """

    sides: Sides
    parameters: Sequence[Tensor]
    spare_background: bool = False

    def __post_init__(self) -> None:
        self.width = checked_width(self.columns())

    def columns(self) -> tuple[Tensor, ...]:
        """The parameters that have one value a logit column, (C,) each."""
        return tuple(self.parameters)

    def of_rows(self, logits: Tensor, labels: Tensor) -> list[Tensor]:
        """Parameters in a shape that broadcasts to the logits.

        Args:
            logits (Tensor): (N, C, d1, ...), fp32 or wider.
            labels (Tensor): Index or soft labels.
        """
        columns = per_column(self.parameters, logits)
        if not self.spare_background:
            return columns
        background = without_object(labels, logits.size(1))
        return [
            torch.where(background, neutral, column)
            for neutral, column in zip(self.sides.neutral, columns)
        ]

    def loss(
        self,
        logits: Tensor,
        labels: Tensor,
        ignore_index: int,
        quality: Tensor | None = None,
    ) -> Tensor:
        """Loss per row and class.

        Args:
            logits (Tensor): (N, C) or (N, C, d1, ...), floating.
            labels (Tensor): (N,) or (N, d1, ...), int64: a class in [0, C),
                or C for a row that is negative for all classes; or soft
                labels of the logits' shape in [0, 1], floating.
            ignore_index (int): Rows of this index label get loss 0.
            quality (Tensor, optional): Of each row, the labels' shape, for
                sides that read it.

        Returns:
            Tensor: The logits' shape, fp32 or the logits' wider type.
        """
        sides, logits = self.sides, upcast(logits)
        columns = self.of_rows(logits, labels)
        if labels.is_floating_point():
            soft = labels.to(logits.dtype)
            if sides.reads_quality:
                return sides.positive(logits, *columns, soft)
            negative = sides.negative(logits, *columns)
            positive = sides.positive(logits, *columns)
            return soft * positive + (1 - soft) * negative
        loss = sides.negative(logits, *columns)
        at = find_label(labels, logits.size(1), ignore_index)
        own = torch.where(
            at.positive,
            of_label(sides.positive, logits, columns, at, quality),
            loss.gather(1, at.column),
        )
        return loss.scatter(1, at.column, own).masked_fill(at.ignored, 0)

    def sums(
        self,
        logits: Tensor,
        labels: Tensor,
        ignore_index: int,
        weight: Tensor | None,
        quality: Tensor | None = None,
    ) -> Tensor:
        r"""Gradient magnitudes of both sides, summed over rows, and counts.

        Elements with a quality > 0 are positives, whichever way their
        gradient points.

        Args:
            logits (Tensor): As in :meth:`loss`.
            labels (Tensor): As in :meth:`loss`.
            ignore_index (int): Rows of this index label are left out.
            weight (Tensor, optional): Factor w, of a shape that broadcasts
                to the logits.
            quality (Tensor, optional): As in :meth:`loss`.

        Returns:
            Tensor: (3, C), float64 if the device has it:
            :math:`\sum_i w_{ij} t_{ij} |P'|`,
            :math:`\sum_i w_{ij} (1 - t_{ij}) |N'|`, and
            :math:`\sum_i [w_{ij} > 0]\, t_{ij}`.
        """
        sides, logits = self.sides, upcast(logits)
        columns = self.of_rows(logits, labels)
        if labels.is_floating_point():
            soft = labels.to(logits.dtype)
            if sides.reads_quality:
                slope = sides.positive_slope(logits, *columns, soft).abs()
                soft = (soft > 0).to(logits.dtype)
                return class_sums(
                    soft * slope, (1 - soft) * slope, soft, weight
                )
            slope = sides.negative_slope(logits, *columns)
            own = sides.positive_slope(logits, *columns).abs()
            return class_sums(soft * own, (1 - soft) * slope, soft, weight)
        slope = sides.negative_slope(logits, *columns)
        at = find_label(labels, logits.size(1), ignore_index)
        own = of_label(sides.positive_slope, logits, columns, at, quality)
        return class_sums_at_label(own.abs(), slope, at, weight)
