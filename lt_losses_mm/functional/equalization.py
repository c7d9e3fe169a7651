# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
r"""The equalization losses.

- EQL: Tan et al., "Equalization Loss for Long-Tailed Object Recognition",
  CVPR 2020 (arXiv:2003.05176).
- Sigmoid-EQL, first named EQLv2: Tan et al., "Equalization Loss v2: A New
  Gradient Balance Approach for Long-tailed Object Detection", CVPR 2021
  (arXiv:2012.08548).
- Equalized Focal Loss: Li et al., "Equalized Focal Loss for Dense Long-Tailed
  Object Detection", CVPR 2022 (arXiv:2201.02593).
- Softmax-EQL, and the family as a whole: Tan et al., "The Equalization
  Losses: Gradient-Driven Training for Long-tailed Object Recognition", TPAMI
  2023 (arXiv:2210.05566).

The gradient-driven ones read, for each class j, the ratio :math:`g_j` of the
accumulated gradients of its positives and of its negatives. ``*_sums`` give
what one batch adds to those: magnitudes of :math:`\partial L_i / \partial
z_{ij}` summed over rows, in closed form. Logarithms of probabilities are
taken from logits, so that nothing overflows or cancels at large ones.
Conventions for logits and labels are those of
:func:`~lt_losses_mm.functional.shifted_sigmoid_cross_entropy`.
"""

from __future__ import annotations

from typing import Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .balanced import add_shift
from .two_sided import (
    WEIGHTED_BCE,
    Sides,
    class_sums,
    class_sums_at_label,
    find_label,
    per_column,
    softplus,
    two_sided_loss,
    two_sided_sums,
    upcast,
)

Sums = Tuple[Tensor, Tensor, Tensor]


# ------------------------------------------------------------- weighted BCE
def weighted_sigmoid_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    positive_weight: Tensor,
    negative_weight: Tensor,
    *,
    ignore_index: int = -100,
) -> Tensor:
    r"""Binary cross-entropy with a weight for each side of each class.

    :math:`-q_j t_j \log p_j - r_j (1 - t_j) \log(1 - p_j)`. It is Sigmoid-EQL
    with :func:`sigmoid_equalization_weights`, and EQL with the weights of
    :func:`equalization_weights`.

    Args:
        logits (Tensor): (N, C) or (N, C, d1, ...), floating.
        labels (Tensor): Index labels, C for background, or soft labels.
        positive_weight (Tensor): q, (C,) or of a shape that broadcasts.
        negative_weight (Tensor): r, likewise.
        ignore_index (int): Rows of this index label get loss 0.

    Returns:
        Tensor: The logits' shape, per row and class.
    """
    return two_sided_loss(
        WEIGHTED_BCE,
        logits,
        labels,
        (positive_weight, negative_weight),
        ignore_index=ignore_index,
    )


def weighted_sigmoid_sums(
    logits: Tensor,
    labels: Tensor,
    positive_weight: Tensor,
    negative_weight: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
) -> Sums:
    r"""Gradient magnitudes of :func:`weighted_sigmoid_cross_entropy`.

    :math:`q_j (1 - p)` on the positive side and :math:`r_j p` on the
    negative.

    Args:
        logits (Tensor): (N, C) or (N, C, d1, ...), floating.
        labels (Tensor): Index labels, C for background, or soft labels.
        positive_weight (Tensor): q, (C,) or of a shape that broadcasts.
        negative_weight (Tensor): r, likewise.
        weight (Tensor, optional): Factor, of a shape that broadcasts to the
            logits; 0 leaves out.
        ignore_index (int): Rows of this index label are left out.

    Returns:
        tuple[Tensor, Tensor, Tensor]: (C,) each, sums over rows of the
        positive side, of the negative side, and of the positives counted.
    """
    return two_sided_sums(
        WEIGHTED_BCE,
        logits,
        labels,
        (positive_weight, negative_weight),
        weight=weight,
        ignore_index=ignore_index,
    )


def sigmoid_equalization_weights(
    ratio: Tensor, *, gamma: float = 12.0, mu: float = 0.8, alpha: float = 4.0
) -> tuple[Tensor, Tensor]:
    r"""Weights of Sigmoid-EQL (EQLv2).

    :math:`r_j = f(g_j)`, :math:`q_j = 1 + \alpha (1 - f(g_j))` with
    :math:`f(x) = 1 / (1 + e^{-\gamma (x - \mu)})`.

    Args:
        ratio (Tensor): g, (C,), >= 0; inf is fine and gives 1 and 1.
        gamma (float): Steepness of f, >= 0.
        mu (float): Ratio at which f is 1/2.
        alpha (float): Largest additional weight of positives, >= 0.

    Returns:
        tuple[Tensor, Tensor]: Positive weights q and negative weights r.

    Example:
        >>> q, r = sigmoid_equalization_weights(torch.tensor([0.0, 0.8, 1.5]))
        >>> q
        tensor([4.9997, 3.0000, 1.0009])
        >>> (r * 1e4).round()
        tensor([1.0000e+00, 5.0000e+03, 9.9980e+03])
    """
    negative = torch.sigmoid(gamma * (ratio - mu))
    return 1 + alpha * (1 - negative), negative


def without_object(labels: Tensor, num_classes: int) -> Tensor:
    """Rows of background.

    Args:
        labels (Tensor): Index labels, of which C is background, or soft
            labels, of which a row without a share of any class is.
        num_classes (int): C.

    Returns:
        Tensor: (N, 1, d1, ...), bool.
    """
    if labels.is_floating_point():
        return ~(labels[:, :num_classes] > 0).any(1, keepdim=True)
    return (labels == num_classes).unsqueeze(1)


def equalization_weights(
    labels: Tensor, tail: Tensor, num_dims: int
) -> tuple[Tensor, Tensor]:
    r"""Weights of EQL (Tan et al. 2020).

    Negatives of tail classes are left out in rows with an object,
    :math:`r_{ij} = 1 - E_i T_j`; rows of background keep them.

    Args:
        labels (Tensor): Index labels, C for background, or soft labels, a
            row of zeros for background.
        tail (Tensor): T, (C,), bool.
        num_dims (int): Dimensions of the logits.

    Returns:
        tuple[Tensor, Tensor]: Positive weights (C,) and negative weights that
        broadcast to the logits.
    """
    kept = (~tail).float()
    positive = torch.ones_like(kept)
    kept = kept.view((1, -1) + (1,) * (num_dims - 2))
    background = without_object(labels, tail.numel())
    return positive, torch.where(background, torch.ones_like(kept), kept)


# -------------------------------------------------------------- focal losses
def equalized_focal_factors(
    ratio: Tensor, *, gamma: float = 2.0, scale_factor: float = 8.0
) -> tuple[Tensor, Tensor]:
    r"""Focusing and weighting factors of Equalized Focal Loss.

    :math:`\gamma_j = \gamma_b + s (1 - g_j)` and
    :math:`w_j = \gamma_j / \gamma_b`, with g clamped to [0, 1].

    Args:
        ratio (Tensor): g, (C,), >= 0.
        gamma (float): :math:`\gamma_b`, > 0, that of the plain focal loss.
        scale_factor (float): s, >= 0.

    Returns:
        tuple[Tensor, Tensor]: Focusing factors and weights, each (C,).

    Example:
        >>> equalized_focal_factors(torch.tensor([0.0, 0.5, 1.0, 3.0]))
        (tensor([10.,  6.,  2.,  2.]), tensor([5., 3., 1., 1.]))
    """
    focusing = gamma + scale_factor * (1 - ratio.clamp(0, 1))
    return focusing, focusing / gamma


def _focal_positive(z: Tensor, gamma: Tensor, weight: Tensor, _) -> Tensor:
    return -weight * (gamma * F.logsigmoid(-z)).exp() * F.logsigmoid(z)


def _focal_negative(z: Tensor, gamma: Tensor, _, weight: Tensor) -> Tensor:
    return _focal_positive(-z, gamma, weight, _)


def _focal_positive_slope(
    z: Tensor, gamma: Tensor, weight: Tensor, _
) -> Tensor:
    p, rest = torch.sigmoid(z), torch.sigmoid(-z)
    modulation = (gamma * F.logsigmoid(-z)).exp()
    return weight * modulation * (gamma * p * F.logsigmoid(z) - rest)


def _focal_negative_slope(
    z: Tensor, gamma: Tensor, _, weight: Tensor
) -> Tensor:
    return -_focal_positive_slope(-z, gamma, weight, _)


def _focal_negative_both(
    z: Tensor, gamma: Tensor, _, weight: Tensor
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


def focal_parameters(
    focusing: Tensor, class_weight: Tensor, alpha: float = -1
) -> tuple[Tensor, Tensor, Tensor]:
    """Those of ``FOCAL``, with alpha, or neither weight if it is < 0."""
    of_positives, of_negatives = (
        (1.0, 1.0) if alpha < 0 else (alpha, 1 - alpha)
    )
    return focusing, of_positives * class_weight, of_negatives * class_weight


def equalized_focal_loss(
    logits: Tensor,
    labels: Tensor,
    focusing: Tensor,
    class_weight: Tensor,
    *,
    alpha: float = 0.25,
    ignore_index: int = -100,
) -> Tensor:
    r"""Equalized Focal Loss, per row and class.

    :math:`-\alpha_t w_j (1 - p_t)^{\gamma_j} \log p_t` (Li et al.),
    the focal loss where all :math:`\gamma_j` are equal and w is 1.

    Args:
        logits (Tensor): (N, C) or (N, C, d1, ...), floating; of any
            size that occurs (finite at 1e4 and beyond).
        labels (Tensor): Index labels, C for background, or soft labels.
        focusing (Tensor): :math:`\gamma_j`, (C,), >= 0.
        class_weight (Tensor): :math:`w_j`, (C,).
        alpha (float): Weight of positives, 1 - alpha of negatives; < 0 for
            neither.
        ignore_index (int): Rows of this index label get loss 0.

    Returns:
        Tensor: The logits' shape.
    """
    return two_sided_loss(
        FOCAL,
        logits,
        labels,
        focal_parameters(focusing, class_weight, alpha),
        ignore_index=ignore_index,
    )


def equalized_focal_sums(
    logits: Tensor,
    labels: Tensor,
    focusing: Tensor,
    class_weight: Tensor,
    *,
    alpha: float = 0.25,
    weight: Tensor | None = None,
    ignore_index: int = -100,
) -> Sums:
    r"""Gradient magnitudes of :func:`equalized_focal_loss`.

    :math:`\alpha w (1-p)^\gamma [(1-p) - \gamma p \log p]` on the positive
    side; on the negative, the same of :math:`1 - p`, with :math:`1 - \alpha`.

    Args:
        logits (Tensor): (N, C) or (N, C, d1, ...), floating.
        labels (Tensor): Index labels, C for background, or soft labels.
        focusing (Tensor): :math:`\gamma_j`, (C,), >= 0.
        class_weight (Tensor): :math:`w_j`, (C,).
        alpha (float): Weight of positives, 1 - alpha of negatives; < 0 for
            neither.
        weight (Tensor, optional): Factor, of a shape that broadcasts to the
            logits; 0 leaves out.
        ignore_index (int): Rows of this index label are left out.

    Returns:
        tuple[Tensor, Tensor, Tensor]: As :func:`weighted_sigmoid_sums`.
    """
    return two_sided_sums(
        FOCAL,
        logits,
        labels,
        focal_parameters(focusing, class_weight, alpha),
        weight=weight,
        ignore_index=ignore_index,
    )


def _gap(z: Tensor, quality: Tensor) -> Tensor:
    """P - q, without cancellation at q = 0 and at q = 1."""
    below = torch.sigmoid(z) - quality
    above = (1 - quality) - torch.sigmoid(-z)
    return torch.where(quality < 0.5, below, above)


def _bce(z: Tensor, quality: Tensor) -> Tensor:
    return -quality * F.logsigmoid(z) - (1 - quality) * F.logsigmoid(-z)


def _quality_positive(
    z: Tensor, gamma: Tensor, weight: Tensor, _, quality: Tensor
) -> Tensor:
    return weight * _gap(z, quality).abs().pow(gamma) * _bce(z, quality)


def _quality_positive_slope(
    z: Tensor, gamma: Tensor, weight: Tensor, _, quality: Tensor
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
    positive=_quality_positive, positive_slope=_quality_positive_slope
)


def where_of_quality(
    labels: Tensor, quality: Tensor, num_classes: int, ignore_index: int
) -> Tensor:
    """A label of quality 0 is no positive: its target is background's."""
    absent = (quality <= 0) & (labels != ignore_index)
    return labels.masked_fill(absent, num_classes)


def equalized_quality_focal_loss(
    logits: Tensor,
    labels: Tensor,
    focusing: Tensor,
    class_weight: Tensor,
    *,
    quality: Tensor | None = None,
    ignore_index: int = -100,
) -> Tensor:
    r"""Equalized Quality Focal Loss, per row and class.

    :math:`w_j |q - p|^{\gamma_j} BCE(z, q)` with the quality q of the
    prediction as the target at the label, and 0 elsewhere: Quality Focal Loss
    (Li et al., "Generalized Focal Loss", NeurIPS 2020) with the factors
    of Equalized Focal Loss. There is no alpha.

    Args:
        logits (Tensor): (N, C) or (N, C, d1, ...), floating.
        labels (Tensor): Index labels, C for background; or a map of qualities
            in [0, 1] of the logits' shape.
        focusing (Tensor): :math:`\gamma_j`, (C,), >= 1.
        class_weight (Tensor): :math:`w_j`, (C,).
        quality (Tensor, optional): q of each row, in [0, 1], of the shape of
            index labels; by default 1.
        ignore_index (int): Rows of this index label get loss 0.

    Returns:
        Tensor: The logits' shape.
    """
    parameters = focal_parameters(focusing, class_weight)
    if labels.is_floating_point():
        logits = upcast(logits)
        columns = per_column(parameters, logits)
        quality = labels.to(logits.dtype)
        return QUALITY_FOCAL.positive(logits, *columns, quality)
    if quality is None:
        quality = torch.ones_like(labels, dtype=torch.float32)
    return two_sided_loss(
        QUALITY_FOCAL,
        logits,
        where_of_quality(labels, quality, logits.size(1), ignore_index),
        parameters,
        at_label=(quality,),
        ignore_index=ignore_index,
    )


def equalized_quality_focal_sums(
    logits: Tensor,
    labels: Tensor,
    focusing: Tensor,
    class_weight: Tensor,
    *,
    quality: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
) -> Sums:
    r"""Gradient magnitudes of :func:`equalized_quality_focal_loss`.

    Elements with q > 0 are the positives, whichever way their gradient
    points.

    Args:
        logits (Tensor): (N, C) or (N, C, d1, ...), floating.
        labels (Tensor): Index labels, C for background; or a map of qualities
            in [0, 1] of the logits' shape.
        focusing (Tensor): :math:`\gamma_j`, (C,), >= 1.
        class_weight (Tensor): :math:`w_j`, (C,).
        quality (Tensor, optional): q of each row, in [0, 1], of the shape of
            index labels; by default 1.
        weight (Tensor, optional): Factor, of a shape that broadcasts to the
            logits; 0 leaves out.
        ignore_index (int): Rows of this index label are left out.

    Returns:
        tuple[Tensor, Tensor, Tensor]: As :func:`weighted_sigmoid_sums`.
    """
    parameters = focal_parameters(focusing, class_weight)
    if labels.is_floating_point():
        logits = upcast(logits)
        columns = per_column(parameters, logits)
        quality = labels.to(logits.dtype)
        slope = QUALITY_FOCAL.positive_slope(logits, *columns, quality).abs()
        present = (quality > 0).to(logits.dtype)
        return class_sums(
            present * slope, (1 - present) * slope, present, weight
        )
    if quality is None:
        quality = torch.ones_like(labels, dtype=torch.float32)
    return two_sided_sums(
        QUALITY_FOCAL,
        logits,
        where_of_quality(labels, quality, logits.size(1), ignore_index),
        parameters,
        weight=weight,
        at_label=(quality,),
        ignore_index=ignore_index,
    )


# ------------------------------------------------------------------- softmax
def shifted_softmax_sums(
    logits: Tensor,
    labels: Tensor,
    shift: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
) -> Sums:
    r"""Gradient magnitudes of the cross-entropy of shifted logits.

    With p the softmax of the shifted logits, a sample of label y gives
    :math:`1 - p_y` to the positives of y and :math:`p_j` to the negatives of
    every other class; a soft label is a mixture of such samples.

    Args:
        logits (Tensor): (N, K) or (N, K, d1, ...), floating.
        labels (Tensor): Index labels in [0, K), or soft labels.
        shift (Tensor): (K,), floating.
        weight (Tensor, optional): Factor (N, 1, d1, ...).
        ignore_index (int): Rows of this index label are left out.

    Returns:
        tuple[Tensor, Tensor, Tensor]: (K,) each, as
        :func:`weighted_sigmoid_sums`.
    """
    log_p = add_shift(logits, shift).log_softmax(1)
    return softmax_sums(log_p, labels, weight, ignore_index)


def softmax_sums(
    log_p: Tensor, labels: Tensor, weight: Tensor | None, ignore_index: int
) -> Sums:
    """The same from the log of the softmax, (N, K, d1, ...)."""
    if labels.is_floating_point():
        soft = labels.to(log_p.dtype)
        p = log_p.exp()
        return class_sums(
            soft * -log_p.expm1(),
            (soft.sum(1, keepdim=True) - soft) * p,
            soft,
            weight,
        )
    at = find_label(labels, log_p.size(1), ignore_index)
    own = -log_p.gather(1, at.column).expm1()
    return class_sums_at_label(own, log_p.exp(), at, weight)


def softmax_equalization_v1(
    logits: Tensor,
    labels: Tensor,
    dropped: Tensor,
    *,
    ignore_index: int = -100,
) -> Tensor:
    r"""Softmax form of EQL, per row.

    :math:`-\log \frac{e^{z_y}}{\sum_k w_k e^{z_k}}` with :math:`w_k = 1 -
    \beta_k T_k (1 - t_k)` (Tan et al. 2020).

    Args:
        logits (Tensor): (N, K) or (N, K, d1, ...), floating.
        labels (Tensor): Index labels in [0, K), or soft labels.
        dropped (Tensor): :math:`\beta T`, bool, the logits' shape: elements
            that are left out of the sum unless they are the label.
        ignore_index (int): Rows of this index label get loss 0.

    Returns:
        Tensor: (N,) or (N, d1, ...).
    """
    logits = upcast(logits)
    if labels.is_floating_point():
        # A row without any label would have no column left.
        dropped = dropped & (labels > 0).any(1, keepdim=True)
        kept = torch.where(dropped, labels.to(logits.dtype), 1.0)
        log_sum = (logits + kept.log()).logsumexp(1, keepdim=True)
        return (labels.to(logits.dtype) * (log_sum - logits)).sum(1)
    return F.cross_entropy(
        equalized_logits(logits, labels, dropped, ignore_index),
        labels,
        reduction='none',
        ignore_index=ignore_index,
    )


def equalized_logits(
    logits: Tensor, labels: Tensor, dropped: Tensor, ignore_index: int
) -> Tensor:
    """Logits, minus infinity where they are left out, but for the label's.

    Args:
        logits (Tensor): (N, K) or (N, K, d1, ...), floating.
        labels (Tensor): Index labels in [0, K).
        dropped (Tensor): Bool, the logits' shape.
        ignore_index (int): Nothing is left out of rows of this label.

    Returns:
        Tensor: The logits' shape, fp32 or the logits' wider type.
    """
    logits = upcast(logits)
    at = find_label(labels, logits.size(1), ignore_index)
    # An ignored row whose columns are all dropped would have a NaN gradient.
    dropped = dropped.scatter(
        1, at.column, dropped.gather(1, at.column) & ~at.positive
    ).masked_fill(at.ignored, False)
    return logits.masked_fill(dropped, -torch.inf)
