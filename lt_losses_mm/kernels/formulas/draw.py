# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Random numbers that are a function of where they stand.

A number is computed from a seed, its row and its column, so that whoever
needs it computes it: nothing of the logits' size is drawn ahead or kept, and
the order in which elements are visited does not matter.
"""

from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor

from ...compat import is_compiling

# The constants of ``prospector32`` from https://github.com/skeeto/
# hash-prospector (Wellons, "Prospecting for Hash Functions", 2018). In the
# comparison of its issue 28 it is among the best mixers of two rounds. Both
# factors are below 2^30: products with words of 32 bits fit into int64.
_FIRST, _SECOND = 0x2C1B3C6D, 0x297A2D39


def draw_word() -> torch.dtype:
    """Of random draws: products in int32 need not wrap in compiled code."""
    return torch.int64 if is_compiling() else torch.int32


def _mask(word: torch.dtype) -> int:
    """All bits of an int32, the lower 32 of an int64."""
    return -1 if word == torch.int32 else 0xFFFFFFFF


def new_seed(device: torch.device) -> Tensor:
    """Two words of 32 bits from the device's default generator, (2,)."""
    return torch.randint(1 << 32, (2,), device=device)


def _rounds(x: Tensor, key: Tensor | int) -> Tensor:
    """Both rounds but for the last step, which mends low bits; in place.

    Args:
        x (Tensor): Words, in int64 or int32.
        key (Tensor or int): Likewise, added between the rounds.
    """
    mask = _mask(x.dtype)
    x ^= (x >> 15) & 0x1FFFF
    # Not in place: torch 2.1 takes no number for `other` under a compiler.
    x = x.mul_(_FIRST).add_(key) & mask
    x ^= (x >> 12) & 0xFFFFF
    return x.mul_(_SECOND) & mask


def _mixed(x: Tensor) -> Tensor:
    x = _rounds(x, 0)
    return x ^ (x >> 15)


def random_drops(
    seed: Tensor,
    probability: Tensor,
    shape: Sequence[int],
    first_row: int = 0,
    word: torch.dtype = torch.int64,
) -> Tensor:
    r"""Which elements are left out, each by a draw of its own.

    With m the mixer, row i has two words, :math:`a_i = m(m(s_0) + i)` and
    :math:`b_i = m(a_i \oplus m(m(s_0) \oplus s_1))`. The number of its column
    j is m of :math:`a_i \oplus m(j)`, without the last step of m, which mends
    low bits. :math:`b_i` is added between its two rounds, so that rows of
    the same a differ nevertheless. Two rounds are few: of a hundred million
    pairs of columns a few draw alike more often than by chance, in all rows.

    Args:
        seed (Tensor): (2,), int64, in [0, 2^32), see :func:`new_seed`.
        probability (Tensor): (K,), floating, in [0, 1]; read in fp32, and
            rounded up to a multiple of 2^-24.
        shape (sequence of int): (N, d1, ...), of the rows.
        first_row (int): Where these rows begin among all rows of the draw,
            counted in the order of ``labels.flatten()``.
        word (dtype): Of the numbers while they are computed: int64, or int32,
            which is faster. Products then wrap around, as those of PyTorch's
            operators do, and those in compiled code need not.

    Returns:
        Tensor: (N, K, d1, ...), bool.

    Example:
        >>> seed = torch.tensor([1, 11])
        >>> random_drops(seed, torch.tensor([0, 0.5, 1]), (2,))
        tensor([[False,  True,  True],
                [False, False,  True]])
    """
    low, high = seed.unbind()
    low = _mixed(low.clone())
    high = _mixed(low ^ high)
    rows = torch.Size(shape).numel()
    index = torch.arange(first_row, first_row + rows, device=seed.device)
    first = _mixed((index + low) & _mask(torch.int64))
    second = _mixed(first ^ high)
    column = (1, -1) + (1,) * (len(shape) - 1)
    index = torch.arange(probability.numel(), device=seed.device)
    bits = _rounds(
        first.to(word).view(shape).unsqueeze(1)
        ^ _mixed(index).to(word).view(column),
        second.to(word).view(shape).unsqueeze(1),
    )
    bits = (bits >> 8) & 0xFFFFFF
    # As a fraction of 2^24 they are below the probability.
    return bits < (probability.float() * 2**24).ceil().to(word).view(column)
