# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
r"""From class counts to the shift that is added to the logits in training.

The two policies that a prior needs live here and nowhere else.

**Classes without samples.** A count of zero has no logarithm. Such a class is
treated as being as rare as the rarest class that has samples: every shift
stays finite, and multiplying all counts by a number still changes nothing.

**Background.** Detection heads see rows without an object. A shift of
:math:`\log\pi_j` on the foreground and of nothing on the background would move
every object-or-not decision, so the policy has to be stated:

========================  ====================================================
``background``            meaning
========================  ====================================================
``'keep_odds'``           remove the imbalance among the foreground classes
                          and keep the odds of foreground against background
                          as trained (default)
a number b in (0, 1)      background is one more class, with prior b; the
                          correction goes to a uniform prior over C + 1
``'objectness'``          background is judged by a separate output; the class
                          outputs know no background
``'foreground_rows'``     sigmoid only: rows of background see raw logits
========================  ====================================================

All shifts but that of ``'foreground_rows'`` are *centred*: a class whose
prior is already the one aimed at is not shifted. A uniform prior therefore
gives plain cross-entropy, and the bias initialisation of the host keeps its
meaning. ``docs/decisions/0001-background.md`` has the derivation.
"""

from __future__ import annotations

import math
from typing import Union

import torch
from torch import Tensor

BACKGROUND_POLICIES = ('keep_odds', 'objectness', 'foreground_rows')
Background = Union[str, float]


def _fill_empty_classes(counts: Tensor) -> Tensor:
    """Replace zeros by the smallest positive count; (C,) to float64 (C,)."""
    # float64 does not exist on MPS
    dtype = torch.float32 if counts.device.type == 'mps' else torch.float64
    counts = counts.to(dtype)
    seen = counts > 0
    smallest = torch.where(seen, counts, torch.inf).min()
    return torch.where(seen, counts, smallest)


def class_prior(counts: Tensor) -> Tensor:
    """Class prior pi_j = n_j / sum n, without zeros.

    Args:
        counts (Tensor): (C,), >= 0, at least one > 0; images, instances or
            pixels per class.

    Returns:
        Tensor: (C,), float64, sums to 1.

    Example:
        >>> class_prior(torch.tensor([6., 2., 0.]))
        tensor([0.6000, 0.2000, 0.2000], dtype=torch.float64)
    """
    counts = _fill_empty_classes(counts)
    return counts / counts.sum()


def softmax_shift(
    counts: Tensor, num_columns: int, background: Background = 'keep_odds'
) -> Tensor:
    r"""Shift of softmax logits for tau = 1.

    .. math::
        s_j = \log(C \pi_j), \qquad s_{bg} = 0

    or, for a background prior b given as a number,
    :math:`s_j = \log((C+1)(1-b)\pi_j)` and :math:`s_{bg} = \log((C+1) b)`.

    Args:
        counts (Tensor): (C,) class counts of the foreground classes.
        num_columns (int): C, or C + 1 when the last column is background.
        background (str | float): Policy, see the module's docstring.

    Returns:
        Tensor: (num_columns,), float64.

    Example:
        >>> counts = torch.tensor([8., 4., 2., 2.])
        >>> softmax_shift(counts, 5).exp()
        tensor([2.0000, 1.0000, 0.5000, 0.5000, 1.0000], dtype=torch.float64)
    """
    log_prior = class_prior(counts).log()
    num_classes = counts.numel()
    if num_columns == num_classes:
        return log_prior + math.log(num_classes)
    if isinstance(background, float):
        both = torch.cat(
            [
                log_prior + math.log1p(-background),
                log_prior.new_full((1,), math.log(background)),
            ]
        )
        return both + math.log(num_classes + 1)
    return torch.cat(
        [log_prior + math.log(num_classes), log_prior.new_zeros(1)]
    )


def sigmoid_shift(
    counts: Tensor, background: Background = 'keep_odds'
) -> Tensor:
    r"""Shift of sigmoid logits for tau = 1.

    .. math::
        s_j = \operatorname{logit}(\pi_j) - \operatorname{logit}(1 / C)

    For small priors this is :math:`\log(C \pi_j)`, the shift of the softmax
    form. With a background prior b, both priors are those of a row being of
    class j:
    :math:`\operatorname{logit}((1-b)\pi_j) - \operatorname{logit}(1/(C+1))`.
    ``'foreground_rows'`` gives the published :math:`\operatorname{logit}
    (\pi_j)` without the constant.

    Args:
        counts (Tensor): (C,) class counts of the foreground classes.
        background (str | float): Policy, see the module's docstring.

    Returns:
        Tensor: (C,), float64; zeros for a single class.

    Example:
        >>> sigmoid_shift(torch.tensor([5., 5., 5.])).abs().max() < 1e-12
        tensor(True)
    """
    counts = _fill_empty_classes(counts)
    num_classes = counts.numel()
    total = counts.sum()
    if isinstance(background, float):
        share = (1 - background) * counts
        return share.log() - (total - share).log() + math.log(num_classes)
    if num_classes == 1:
        return torch.zeros_like(counts)
    logit = counts.log() - (total - counts).log()
    if background == 'foreground_rows':
        return logit
    return logit + math.log(num_classes - 1)
