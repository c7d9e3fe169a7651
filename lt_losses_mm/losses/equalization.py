# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""EQL (v1), in its sigmoid and its softmax form."""

from __future__ import annotations

from typing import Any, Sequence

import torch
from torch import Tensor

from ..kernels import WEIGHTED_BCE, Dropped, TwoSided
from ..kernels.formulas.draw import new_seed
from ..messages import fault
from .arguments import number, passed_on
from .sigmoid import SigmoidLoss
from .softmax import SoftmaxLoss


def _rare_below(owner: str, threshold: float, num_images: Any) -> float:
    """The count below which a class is rare."""
    checked = number(owner, 'threshold', threshold, above=0)
    if checked >= 1:
        return checked
    if num_images is None:
        raise fault(
            'threshold',
            threshold,
            'a count >= 1, or a share together with num_images',
            'give num_images, the number of training images',
            owner,
        )
    return checked * number(owner, 'num_images', num_images, 1)


class EqualizationLoss(SigmoidLoss):
    r"""EQL: rare classes are spared the gradients of other classes' samples.

    .. math::
        L = -\sum_j w_j \left( t_j \log p_j + (1 - t_j) \log(1 - p_j) \right),
        \qquad w_j = 1 - E\, T_j (1 - t_j)

    with T = 1 for the classes rarer than ``threshold`` and E = 1 for rows
    with an object: rows of background remain negatives of all classes. Tan et
    al., "Equalization Loss for Long-Tailed Object Recognition", CVPR 2020. No
    statistics: the class counts decide. Its form for a softmax is
    :class:`~lt_losses_mm.losses.EqualizationSoftmaxLoss`.

    Args:
        threshold (float): Count below which a class is rare; or, if below 1,
            its share of ``num_images``. Published for LVIS: shares of 1.77e-3
            (v0.5) and 1.1e-3 (v1).
        num_images (int, optional): Annotated training images, for a
            ``threshold`` that is a share (LVIS v1: 99388).
        count_unit (str, optional): Unit of the counts; that of the paper is
            ``'image'``, in segmentation, too.

    Example:
        >>> loss = EqualizationLoss(class_counts=[500, 5], threshold=100)
        >>> loss(torch.zeros(2, 2), torch.tensor([0, 1]),
        ...      reduction_override='none')
        tensor([0.6931, 1.3863])
    """

    background_policies = ('negatives',)
    needs_background = True
    example = dict(threshold=50)
    neutral = dict(threshold=1)

    def __init__(
        self,
        num_classes: int | None = None,
        class_counts: str | Sequence[float] | Tensor | None = None,
        threshold: float = 100,
        num_images: int | None = None,
        count_unit: str | None = 'image',
        background: str | float | None = None,
        loss_weight: float = 1.0,
        reduction: str = 'mean',
        ignore_index: int | None = None,
        avg_non_ignore: bool = False,
        class_weight: Sequence[float] | None = None,
        loss_name: str | None = None,
        use_sigmoid: bool | None = None,
        overwrite_logits: bool = False,
        engine: str | None = None,
        bias_prior: float | str | None = 'auto',
    ) -> None:
        super().__init__(**passed_on(SigmoidLoss, locals()))
        owner = type(self).__name__
        self.threshold = _rare_below(owner, threshold, num_images)

    def tail(self) -> Tensor:
        """T: whether a class is rare, (C,), bool."""
        return self.class_counts < self.threshold

    def formula(self, columns: int, dtype: torch.dtype) -> TwoSided:
        kept = (~self.tail()).float()
        weights = torch.ones_like(kept), kept
        return TwoSided(WEIGHTED_BCE, weights, spare_background=True)


class EqualizationSoftmaxLoss(SoftmaxLoss):
    r"""The softmax form of EQL: rare classes are left out at random.

    .. math::
        L = -\log \frac{e^{z_y}}{\sum_k w_k e^{z_k}}, \qquad
        w_k = 1 - \beta\, T_k (1 - t_k)

    with T = 1 for the classes rarer than ``threshold``, and :math:`\beta` 1
    with probability ``drop_probability``, drawn anew for each row and class.
    Tan et al., "Equalization Loss for Long-Tailed Object Recognition", CVPR
    2020 (SEQL). RoI heads get C + 1 logits, the last of which is background
    and is never left out; rows of background keep all classes. A draw
    follows from a seed, which each call takes from PyTorch's generator, and
    from its row and column: it is the same in the backward pass, where
    activations are recomputed, and in any layout of memory.

    Args:
        threshold (float): Count below which a class is rare; or, if below 1,
            its share of ``num_images``.
        num_images (int, optional): Annotated training images, for a
            ``threshold`` that is a share (LVIS v1: 99388).
        drop_probability (float): :math:`\gamma` of the paper, in [0, 1]: that
            of a rare class to be left out.
        count_unit (str, optional): Unit of the counts; that of the paper is
            ``'image'``, in segmentation, too.

    Example:
        >>> loss = EqualizationSoftmaxLoss(
        ...     class_counts=[500, 5], threshold=100,
        ...     drop_probability=1.0)
        >>> loss(torch.zeros(2, 2), torch.tensor([0, 1]),
        ...      reduction_override='none')
        tensor([0.0000, 0.6931])
    """

    background_policies = ('negatives',)
    # Rare classes are left out for certain, hence reproducibly.
    example = dict(threshold=50, drop_probability=1.0)
    neutral = dict(threshold=1)

    def __init__(
        self,
        num_classes: int | None = None,
        class_counts: str | Sequence[float] | Tensor | None = None,
        threshold: float = 100,
        num_images: int | None = None,
        drop_probability: float = 0.9,
        count_unit: str | None = 'image',
        background: str | float | None = None,
        loss_weight: float = 1.0,
        reduction: str = 'mean',
        ignore_index: int | None = None,
        avg_non_ignore: bool = False,
        class_weight: Sequence[float] | None = None,
        loss_name: str | None = None,
        use_sigmoid: bool | None = None,
        overwrite_logits: bool = False,
        engine: str | None = None,
    ) -> None:
        super().__init__(**passed_on(SoftmaxLoss, locals()))
        owner = type(self).__name__
        self.threshold = _rare_below(owner, threshold, num_images)
        self.drop_probability = number(
            owner, 'drop_probability', drop_probability, low=0, high=1
        )

    def tail(self) -> Tensor:
        """T: whether a class is rare, (C,), bool."""
        return self.class_counts < self.threshold

    def known_formula(self, logits: Tensor) -> Any:
        # Another draw each time.
        return self.formula(logits.size(1), torch.float32)

    def formula(self, columns: int, dtype: torch.dtype) -> Dropped:
        probability = self.drop_probability * self.tail().float()
        if columns > self.num_classes:
            probability = torch.cat([probability, probability.new_zeros(1)])
        seed = new_seed(probability.device)
        return Dropped(probability, seed, self.num_classes)
