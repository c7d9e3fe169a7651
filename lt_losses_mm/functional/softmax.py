# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
r"""Methods that adjust the logits of a softmax.

Classes are dimension 1 throughout, as in
:func:`torch.nn.functional.cross_entropy`, so that (N, C, H, W) maps need no
permuted copy. Logits of fp16 and bf16 are computed in fp32.
"""

from __future__ import annotations

from torch import Tensor

from ..kernels import Batch, Dropped, Seesaw, Shifted, softmax_rows
from ..kernels.formulas.draw import new_seed

__all__ = [
    'balanced_softmax_cross_entropy',
    'equalization_softmax_cross_entropy',
    'seesaw_cross_entropy',
    'vs_cross_entropy',
]


def balanced_softmax_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    prior: Tensor,
    *,
    tau: float = 1.0,
    ignore_index: int = -100,
    engine: str | None = None,
) -> Tensor:
    r"""Balanced Softmax, :math:`CE(z + \tau \log \pi, y)`, per row.

    Ren et al., "Balanced Meta-Softmax for Long-Tailed Visual Recognition",
    NeurIPS 2020 (arXiv:2007.10740), Eq. 4, for tau = 1; Menon et al.,
    "Long-tail learning via logit adjustment", ICLR 2021 (arXiv:2007.07314),
    Eq. 10, for other tau; plain cross-entropy for tau = 0. With the
    accumulated gradients of the classes as the prior it is Softmax-EQL (Tan
    et al., "The Equalization Losses", TPAMI 2023).

    Args:
        logits (Tensor): (N, C) or (N, C, d1, ...), floating.
        labels (Tensor): (N,) or (N, d1, ...), int64 in [0, C), or soft labels
            of the logits' shape, floating.
        prior (Tensor): (C,), > 0. Its scale is irrelevant: counts will do.
        tau (float): Strength of the correction, >= 0.
        ignore_index (int): Rows of this index label get loss 0.
        engine (str, optional): See :func:`lt_losses_mm.kernels.engine`.

    Returns:
        Tensor: (N,) or (N, d1, ...), fp32 or the logits' wider type.

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
    batch = Batch(logits, labels, ignore_index, engine=engine)
    return softmax_rows(Shifted(tau * prior.log()), batch)[0]


def vs_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    prior: Tensor,
    *,
    tau: float = 1.0,
    gamma: float = 0.3,
    ignore_index: int = -100,
    engine: str | None = None,
) -> Tensor:
    r"""VS loss, :math:`CE(z / \Delta + \tau \log \pi, y)`, per row.

    With :math:`\Delta_j = (\pi_{max} / \pi_j)^\gamma`: Kini et al.,
    "Label-Imbalanced and Group-Sensitive Classification under
    Overparameterization", NeurIPS 2021 (arXiv:2103.01550). Balanced Softmax
    for gamma = 0.

    Args:
        logits (Tensor): (N, C) or (N, C, d1, ...), floating.
        labels (Tensor): (N,) or (N, d1, ...), int64 in [0, C), or soft labels
            of the logits' shape, floating.
        prior (Tensor): (C,), > 0. Its scale is irrelevant: counts will do.
        tau (float): Strength of the shift, >= 0.
        gamma (float): Strength of the scale, >= 0.
        ignore_index (int): Rows of this index label get loss 0.
        engine (str, optional): See :func:`lt_losses_mm.kernels.engine`.

    Returns:
        Tensor: (N,) or (N, d1, ...), fp32 or the logits' wider type.

    Example:
        >>> import torch
        >>> logits, labels = torch.tensor([[2.0, 4.0]]), torch.tensor([1])
        >>> vs_cross_entropy(
        ...     logits, labels, torch.tensor([0.8, 0.05]), tau=0, gamma=0.5)
        tensor([1.3133])
    """
    formula = Shifted(tau * prior.log(), (prior / prior.max()) ** gamma)
    batch = Batch(logits, labels, ignore_index, engine=engine)
    return softmax_rows(formula, batch)[0]


def equalization_softmax_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    probability: Tensor,
    *,
    num_classes: int | None = None,
    seed: Tensor | None = None,
    ignore_index: int = -100,
    engine: str | None = None,
) -> Tensor:
    r"""Softmax form of EQL, per row.

    :math:`-\log \frac{e^{z_y}}{\sum_k w_k e^{z_k}}` with :math:`w_k = 1 -
    \beta_k T_k (1 - t_k)` (Tan et al., "Equalization Loss for Long-Tailed
    Object Recognition", CVPR 2020, arXiv:2003.05176).

    Args:
        logits (Tensor): (N, K) or (N, K, d1, ...), floating.
        labels (Tensor): Index labels in [0, K), or soft labels.
        probability (Tensor): (K,), that a column is left out of the sum of a
            row of another label: :math:`\gamma T`.
        num_classes (int, optional): The label of background, whose rows keep
            all columns; by default no label is.
        seed (Tensor, optional): (2,), int64; by default from PyTorch's
            generator.
        ignore_index (int): Rows of this index label get loss 0.
        engine (str, optional): See :func:`lt_losses_mm.kernels.engine`.

    Returns:
        Tensor: (N,) or (N, d1, ...).

    Example:
        >>> import torch
        >>> rare = torch.tensor([0.0, 1.0])
        >>> equalization_softmax_cross_entropy(
        ...     torch.zeros(2, 2), torch.tensor([0, 1]), rare)
        tensor([0.0000, 0.6931])
    """
    if seed is None:
        seed = new_seed(logits.device)
    background = logits.size(1) if num_classes is None else num_classes
    batch = Batch(logits, labels, ignore_index, engine=engine)
    return softmax_rows(Dropped(probability, seed, background), batch)[0]


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
    engine: str | None = None,
) -> Tensor:
    r"""Seesaw Loss, per row.

    Wang et al., "Seesaw Loss for Long-Tailed Instance Segmentation", CVPR
    2021 (arXiv:2008.10032), Eq. 4 to 6; the formula is that of
    :class:`lt_losses_mm.kernels.Seesaw`.

    Args:
        logits (Tensor): (N, K) or (N, K, d1, ...), floating.
        labels (Tensor): (N,) or (N, d1, ...), int64 in [0, K).
        log_counts (Tensor): log N, (K,).
        log_counts_of_label (Tensor, optional): The same for a column in its
            role as the label, where the two differ (background).
        p (float): Exponent of the mitigation, >= 0.
        q (float): Exponent of the compensation, >= 0.
        eps (float): Floor of the label's score, > 0.
        ignore_index (int): Rows of this index label get loss 0.
        engine (str, optional): See :func:`lt_losses_mm.kernels.engine`.

    Returns:
        Tensor: (N,) or (N, d1, ...), fp32 or the logits' wider type.
    """
    of_label = (
        log_counts if log_counts_of_label is None else log_counts_of_label
    )
    batch = Batch(logits, labels, ignore_index, engine=engine)
    return softmax_rows(Seesaw(log_counts, of_label, p, q, eps), batch)[0]
