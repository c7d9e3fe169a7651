# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
r"""Cross-entropies of logits that a class prior shifts.

Balanced Softmax: Ren et al., "Balanced Meta-Softmax for Long-Tailed Visual
Recognition", NeurIPS 2020 (arXiv:2007.10740), with the temperature tau of
Menon et al., "Long-tail learning via logit adjustment", ICLR 2021
(arXiv:2007.07314). Classes are dimension 1 throughout, as in
:func:`torch.nn.functional.cross_entropy`, so that (N, C, H, W) maps need no
permuted copy. Logits of fp16 and bf16 are computed in fp32.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .two_sided import SHIFTED_BCE, two_sided_loss, upcast


def add_shift(logits: Tensor, shift: Tensor) -> Tensor:
    """Logits, in fp32 or wider, plus a shift (C,) of their columns."""
    logits = upcast(logits)
    shape = (1, -1) + (1,) * (logits.dim() - 2)
    return logits + shift.to(logits.dtype).view(shape)


def shifted_softmax_cross_entropy(
    logits: Tensor, labels: Tensor, shift: Tensor, *, ignore_index: int = -100
) -> Tensor:
    r"""Cross-entropy of shifted logits, :math:`CE(z + s, y)`, per row.

    Args:
        logits (Tensor): (N, C) or (N, C, d1, ...), floating.
        labels (Tensor): (N,) or (N, d1, ...), int64 in [0, C), or soft labels
            of the logits' shape, floating.
        shift (Tensor): (C,), floating.
        ignore_index (int): Rows of this index label get loss 0.

    Returns:
        Tensor: (N,) or (N, d1, ...), fp32 or the logits' wider type.
    """
    logits = add_shift(logits, shift)
    if labels.is_floating_point():
        # PyTorch refuses soft labels together with an ignore_index >= 0.
        return F.cross_entropy(
            logits, labels.to(logits.dtype), reduction='none'
        )
    return F.cross_entropy(
        logits, labels, reduction='none', ignore_index=ignore_index
    )


def shifted_sigmoid_cross_entropy(
    logits: Tensor, labels: Tensor, shift: Tensor, *, ignore_index: int = -100
) -> Tensor:
    r"""Binary cross-entropy of shifted logits, per row and class.

    :math:`-\log\sigma(-(z_j + s_j)) - t_j (z_j + s_j)`, where t is the
    one-hot row of an index label (never built), or the soft label.

    Args:
        logits (Tensor): (N, C) or (N, C, d1, ...), floating.
        labels (Tensor): (N,) or (N, d1, ...), int64: a class in [0, C), or C
            for a row without a positive class (background); or soft or
            multi-hot labels of the logits' shape, floating.
        shift (Tensor): (C,), or of a shape that broadcasts to the logits.
        ignore_index (int): Rows of this index label get loss 0.

    Returns:
        Tensor: The logits' shape, fp32 or the logits' wider type.
    """
    return two_sided_loss(
        SHIFTED_BCE, logits, labels, (shift,), ignore_index=ignore_index
    )


def balanced_softmax_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    prior: Tensor,
    *,
    tau: float = 1.0,
    ignore_index: int = -100,
) -> Tensor:
    r"""Balanced Softmax, :math:`CE(z + \tau \log \pi, y)`, per row.

    Eq. 4 of the Balanced Softmax paper for tau = 1, the logit-adjusted loss
    (Eq. 10) of Menon et al. for other tau, plain cross-entropy for tau = 0.

    Args:
        logits (Tensor): (N, C) or (N, C, d1, ...), floating.
        labels (Tensor): Index or soft labels, see
            :func:`shifted_softmax_cross_entropy`.
        prior (Tensor): (C,), > 0. Its scale is irrelevant: counts will do.
        tau (float): Strength of the correction, >= 0.
        ignore_index (int): Rows of this index label get loss 0.

    Returns:
        Tensor: (N,) or (N, d1, ...).

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0]])
        >>> labels = torch.tensor([1])
        >>> balanced_softmax_cross_entropy(
        ...     logits, labels, torch.tensor([0.5, 0.5]))
        tensor([2.1269])
        >>> balanced_softmax_cross_entropy(
        ...     logits, labels, torch.tensor([0.9, 0.1]))
        tensor([4.2122])
    """
    return shifted_softmax_cross_entropy(
        logits, labels, tau * prior.log(), ignore_index=ignore_index
    )


def balanced_sigmoid_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    prior: Tensor,
    *,
    tau: float = 1.0,
    ignore_index: int = -100,
) -> Tensor:
    r"""Balanced Sigmoid, :math:`BCE(z + \tau \operatorname{logit}(\pi), t)`.

    The sigmoid form of Balanced Softmax: each class is a binary problem whose
    positives have the prior :math:`\pi_j`.

    Args:
        logits (Tensor): (N, C) or (N, C, d1, ...), floating.
        labels (Tensor): Index, multi-hot or soft labels, see
            :func:`shifted_sigmoid_cross_entropy`.
        prior (Tensor): (C,), in (0, 1): the share of rows that are positive
            for the class.
        tau (float): Strength of the correction, >= 0.
        ignore_index (int): Rows of this index label get loss 0.

    Returns:
        Tensor: The logits' shape, per row and class.

    Example:
        >>> import torch
        >>> balanced_sigmoid_cross_entropy(
        ...     torch.zeros(1, 2), torch.tensor([1]), torch.tensor([.75, .25]))
        tensor([[1.3863, 1.3863]])
    """
    shift = tau * (prior.log() - (-prior).log1p())
    return shifted_sigmoid_cross_entropy(
        logits, labels, shift, ignore_index=ignore_index
    )
