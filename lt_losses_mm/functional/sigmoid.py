# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
r"""Methods that treat each class as a binary problem.

Losses are summed over classes. Labels are index labels, of which C, or more,
is background (a negative of all classes), or soft or multi-hot labels of the
logits' shape. Logarithms of probabilities are taken from logits, so that
nothing overflows or cancels at large ones. Sources of the equalization
losses:

- EQL: Tan et al., "Equalization Loss for Long-Tailed Object Recognition",
  CVPR 2020 (arXiv:2003.05176).
- Sigmoid-EQL, first named EQLv2: Tan et al., "Equalization Loss v2: A New
  Gradient Balance Approach for Long-tailed Object Detection", CVPR 2021
  (arXiv:2012.08548).
- Equalized Focal Loss: Li et al., "Equalized Focal Loss for Dense Long-Tailed
  Object Detection", CVPR 2022 (arXiv:2201.02593).
- The family as a whole: Tan et al., "The Equalization Losses: Gradient-Driven
  Training for Long-tailed Object Recognition", TPAMI 2023 (arXiv:2210.05566).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels import (
    FOCAL,
    QUALITY_FOCAL,
    SHIFTED_BCE,
    WEIGHTED_BCE,
    Batch,
    TwoSided,
    sigmoid_rows,
)
from ..kernels.formulas.two_sided import focal_parameters

__all__ = [
    'balanced_sigmoid_cross_entropy',
    'equalized_focal_factors',
    'equalized_focal_loss',
    'equalized_quality_focal_loss',
    'sigmoid_equalization_weights',
    'weighted_sigmoid_cross_entropy',
]


def balanced_sigmoid_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    prior: Tensor,
    *,
    tau: float = 1.0,
    ignore_index: int = -100,
    engine: str | None = None,
) -> Tensor:
    r"""Balanced Sigmoid, per row.

    :math:`\sum_j BCE(z_j + \tau \operatorname{logit}(\pi_j), t_j)`, the
    sigmoid form of Balanced Softmax (Ren et al., NeurIPS 2020): each
    class is a binary problem whose positives have the prior :math:`\pi_j`.

    Args:
        logits (Tensor): (N, C) or (N, C, d1, ...), floating.
        labels (Tensor): (N,) or (N, d1, ...), int64, or soft labels.
        prior (Tensor): (C,), in (0, 1): the share of rows that are positive
            for the class.
        tau (float): Strength of the correction, >= 0.
        ignore_index (int): Rows of this index label get loss 0.
        engine (str, optional): See :func:`lt_losses_mm.kernels.engine`.

    Returns:
        Tensor: (N,) or (N, d1, ...), fp32 or the logits' wider type.

    Example:
        >>> import torch
        >>> balanced_sigmoid_cross_entropy(
        ...     torch.zeros(1, 2), torch.tensor([1]), torch.tensor([.75, .25]))
        tensor([2.7726])
    """
    shift = tau * (prior.log() - (-prior).log1p())
    batch = Batch(logits, labels, ignore_index, engine=engine)
    return sigmoid_rows(TwoSided(SHIFTED_BCE, (shift,)), batch)[0]


def weighted_sigmoid_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    positive_weight: Tensor,
    negative_weight: Tensor,
    *,
    spare_background: bool = False,
    ignore_index: int = -100,
    engine: str | None = None,
) -> Tensor:
    r"""Binary cross-entropy with a weight for each side of each class.

    :math:`-\sum_j q_j t_j \log p_j + r_j (1 - t_j) \log(1 - p_j)`. It is
    Sigmoid-EQL with :func:`sigmoid_equalization_weights`, and EQL with
    :math:`q = 1, r = 1 - T` (T: rare) and ``spare_background``.

    Args:
        logits (Tensor): (N, C) or (N, C, d1, ...), floating.
        labels (Tensor): (N,) or (N, d1, ...), int64, or soft labels.
        positive_weight (Tensor): q, (C,).
        negative_weight (Tensor): r, (C,).
        spare_background (bool): Whether rows of background weigh 1.
        ignore_index (int): Rows of this index label get loss 0.
        engine (str, optional): See :func:`lt_losses_mm.kernels.engine`.

    Returns:
        Tensor: (N,) or (N, d1, ...).

    Example:
        >>> import torch
        >>> one, none = torch.ones(2), torch.zeros(2)
        >>> weighted_sigmoid_cross_entropy(
        ...     torch.zeros(2, 2), torch.tensor([0, 2]), one, none)
        tensor([0.6931, 0.0000])
    """
    weights = positive_weight, negative_weight
    formula = TwoSided(WEIGHTED_BCE, weights, spare_background)
    batch = Batch(logits, labels, ignore_index, engine=engine)
    return sigmoid_rows(formula, batch)[0]


def sigmoid_equalization_weights(
    ratio: Tensor, *, gamma: float = 12.0, mu: float = 0.8, alpha: float = 4.0
) -> tuple[Tensor, Tensor]:
    r"""Weights of Sigmoid-EQL (EQLv2).

    :math:`r_j = f(g_j)`, :math:`q_j = 1 + \alpha (1 - f(g_j))` with
    :math:`f(x) = 1 / (1 + e^{-\gamma (x - \mu)})`.

    Args:
        ratio (Tensor): g, (C,), >= 0, accumulated gradients of positives over
            those of negatives; inf is fine and gives 1 and 1.
        gamma (float): Steepness of f, >= 0.
        mu (float): Ratio at which f is 1/2.
        alpha (float): Largest additional weight of positives, >= 0.

    Returns:
        tuple[Tensor, Tensor]: Positive weights q and negative weights r.

    Example:
        >>> import torch
        >>> q, r = sigmoid_equalization_weights(torch.tensor([0.0, 0.8, 1.5]))
        >>> q
        tensor([4.9997, 3.0000, 1.0009])
        >>> (r * 1e4).round()
        tensor([1.0000e+00, 5.0000e+03, 9.9980e+03])
    """
    negative = torch.sigmoid(gamma * (ratio - mu))
    return 1 + alpha * (1 - negative), negative


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
        >>> import torch
        >>> equalized_focal_factors(torch.tensor([0.0, 0.5, 1.0, 3.0]))
        (tensor([10.,  6.,  2.,  2.]), tensor([5., 3., 1., 1.]))
    """
    focusing = gamma + scale_factor * (1 - ratio.clamp(0, 1))
    return focusing, focusing / gamma


def equalized_focal_loss(
    logits: Tensor,
    labels: Tensor,
    focusing: Tensor,
    class_weight: Tensor,
    *,
    alpha: float = 0.25,
    ignore_index: int = -100,
    engine: str | None = None,
) -> Tensor:
    r"""Equalized Focal Loss, per row.

    :math:`-\sum_j \alpha_t w_j (1 - p_t)^{\gamma_j} \log p_t` (Li et al.),
    the focal loss where all :math:`\gamma_j` are equal and w is 1.

    Args:
        logits (Tensor): (N, C) or (N, C, d1, ...), floating; of any size
            that occurs (finite at 1e4 and beyond).
        labels (Tensor): (N,) or (N, d1, ...), int64, or soft labels.
        focusing (Tensor): :math:`\gamma_j`, (C,), >= 0.
        class_weight (Tensor): :math:`w_j`, (C,).
        alpha (float): Weight of positives, 1 - alpha of negatives; < 0 for
            neither.
        ignore_index (int): Rows of this index label get loss 0.
        engine (str, optional): See :func:`lt_losses_mm.kernels.engine`.

    Returns:
        Tensor: (N,) or (N, d1, ...).
    """
    parameters = focal_parameters(focusing, class_weight, alpha)
    batch = Batch(logits, labels, ignore_index, engine=engine)
    return sigmoid_rows(TwoSided(FOCAL, parameters), batch)[0]


def equalized_quality_focal_loss(
    logits: Tensor,
    labels: Tensor,
    focusing: Tensor,
    class_weight: Tensor,
    *,
    quality: Tensor | None = None,
    ignore_index: int = -100,
    engine: str | None = None,
) -> Tensor:
    r"""Equalized Quality Focal Loss, per row.

    :math:`\sum_j w_j |q_j - p_j|^{\gamma_j} BCE(z_j, q_j)` with the quality of
    the prediction as the target at the label, and 0 elsewhere: Quality Focal
    Loss (Li et al., "Generalized Focal Loss", NeurIPS 2020) with the factors
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
        engine (str, optional): See :func:`lt_losses_mm.kernels.engine`.

    Returns:
        Tensor: (N,) or (N, d1, ...).
    """
    formula = TwoSided(QUALITY_FOCAL, focal_parameters(focusing, class_weight))
    batch = Batch(logits, labels, ignore_index, quality=quality, engine=engine)
    return sigmoid_rows(formula, batch)[0]
