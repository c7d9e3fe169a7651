# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
r"""Seesaw Loss.

Wang et al., "Seesaw Loss for Long-Tailed Instance Segmentation", CVPR 2021
(arXiv:2008.10032).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .two_sided import find_label, per_column, upcast


def seesaw_logits(
    logits: Tensor,
    labels: Tensor,
    log_counts: Tensor,
    log_counts_of_label: Tensor | None = None,
    *,
    p: float = 0.8,
    q: float = 2.0,
    eps: float = 1e-2,
    ignore_index: int = -100,
) -> Tensor:
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
        logits (Tensor): (N, K) or (N, K, d1, ...), floating.
        labels (Tensor): (N,) or (N, d1, ...), int64 in [0, K).
        log_counts (Tensor): log N, (K,).
        log_counts_of_label (Tensor, optional): The same for a column in its
            role as the label, where the two differ (background, to which
            mitigation does not apply).
        p (float): Exponent of the mitigation, >= 0.
        q (float): Exponent of the compensation, >= 0.
        eps (float): Floor of the label's score, > 0.
        ignore_index (int): Label of rows without a class.

    Returns:
        Tensor: The logits' shape, fp32 or the logits' wider type.
    """
    logits = upcast(logits)
    if log_counts_of_label is None:
        log_counts_of_label = log_counts
    at = find_label(labels, logits.size(1), ignore_index)
    (column,) = per_column([log_counts], logits)
    own = log_counts_of_label.to(logits.dtype)[at.column]
    mitigation = (column - own).clamp(max=0)
    with torch.no_grad():
        score = logits.log_softmax(1)
        floor = math.log(eps)
        compensation = score - score.gather(1, at.column).clamp(min=floor)
        compensation.clamp_(min=0)
    return logits + p * mitigation + q * compensation


def seesaw_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    log_counts: Tensor,
    log_counts_of_label: Tensor | None = None,
    *,
    p: float = 0.8,
    q: float = 2.0,
    eps: float = 1e-2,
    ignore_index: int = -100,
) -> Tensor:
    """Cross-entropy of :func:`seesaw_logits`, per row.

    Args:
        logits (Tensor): (N, K) or (N, K, d1, ...), floating.
        labels (Tensor): (N,) or (N, d1, ...), int64 in [0, K).
        log_counts (Tensor): log N, (K,).
        log_counts_of_label (Tensor, optional): The same for a column in its
            role as the label.
        p (float): Exponent of the mitigation, >= 0.
        q (float): Exponent of the compensation, >= 0.
        eps (float): Floor of the label's score, > 0.
        ignore_index (int): Rows of this label get loss 0.

    Returns:
        Tensor: (N,) or (N, d1, ...), fp32 or the logits' wider type.
    """
    adjusted = seesaw_logits(
        logits,
        labels,
        log_counts,
        log_counts_of_label,
        p=p,
        q=q,
        eps=eps,
        ignore_index=ignore_index,
    )
    return F.cross_entropy(
        adjusted, labels, reduction='none', ignore_index=ignore_index
    )
