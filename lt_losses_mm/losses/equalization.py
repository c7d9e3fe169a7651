# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""EQL (v1), in its sigmoid and its softmax form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..functional import (
    random_drops,
    softmax_equalization_v1,
    without_object,
)
from ..functional.draw import new_seed
from ..functional.two_sided import WEIGHTED_BCE
from ..kernels import Batch, Dropped, sigmoid_rows, softmax_rows
from ..kernels.rows import draw_word
from ..registry import MODELS
from .sigmoid import SigmoidLoss


@MODELS.register_module()
class EqualizationLoss(SigmoidLoss):
    r"""EQL: rare classes are spared the gradients of other classes' samples.

    .. math::
        L = -\sum_j w_j \left( t_j \log p_j + (1 - t_j) \log(1 - p_j) \right),
        \qquad w_j = 1 - E\, T_j (1 - t_j)

    with T = 1 for the classes rarer than ``threshold`` and E = 1 for rows
    with an object: rows of background remain negatives of all classes. Tan et
    al., "Equalization Loss for Long-Tailed Object Recognition", CVPR 2020. No
    statistics: the class counts decide.

    ``use_sigmoid=False`` is the softmax form (SEQL) of the same paper,
    :math:`-\log (e^{z_y} / \sum_k w_k e^{z_k})` with :math:`w_k = 1 - \beta
    T_k (1 - t_k)`, where :math:`\beta` is 1 with probability ``gamma``, drawn
    anew for each row and class. RoI heads then get C + 1 logits, the last of
    which is background and is never left out; rows of background keep all
    classes. A draw follows from a seed, which each call takes from PyTorch's
    generator, and from its row and column: it is the same in the backward
    pass, where activations are recomputed, and in any layout of memory.

    Args:
        threshold (float): Count below which a class is rare; or, if below 1,
            its share of ``num_images``. Published for LVIS: shares of 1.77e-3
            (v0.5) and 1.1e-3 (v1).
        num_images (int, optional): Annotated training images, for a
            ``threshold`` that is a share (LVIS v1: 99388).
        gamma (float): Probability in [0, 1] that the softmax form leaves out
            a rare class.
        count_unit (str, optional): Unit of the counts; that of the paper is
            ``'image'``, in segmentation, too.
        use_sigmoid (bool): Sigmoid or softmax form.
        bias_prior (float, optional): See
            :class:`~lt_losses_mm.losses.SigmoidLoss`; not for the softmax
            form.
        kwargs: See :class:`~lt_losses_mm.losses.LongTailLoss`.

    Example:
        >>> loss = EqualizationLoss(class_counts=[500, 5], threshold=100)
        >>> loss(torch.zeros(2, 2), torch.tensor([0, 1]),
        ...      reduction_override='none')
        tensor([0.6931, 1.3863])
    """

    background_policies = ('negatives',)

    def __init__(
        self,
        *args: Any,
        threshold: float = 100,
        num_images: int | None = None,
        gamma: float = 0.9,
        count_unit: str | None = 'image',
        use_sigmoid: bool | None = None,
        **kwargs: Any,
    ) -> None:
        # The base compares the key with what the class says.
        self.use_sigmoid = use_sigmoid is None or bool(use_sigmoid)
        super().__init__(*args, count_unit=count_unit, **kwargs)
        if not self.use_sigmoid:
            self.bias_prior = None
        self.threshold = self._check_number('threshold', threshold)
        self.gamma = self._check_number('gamma', gamma, low=0)
        if self.gamma > 1:
            raise ValueError(
                self._say('gamma', gamma, 'a probability in [0, 1]')
            )
        if self.threshold <= 0:
            raise ValueError(self._say('threshold', threshold, 'a number > 0'))
        if self.threshold < 1:
            if num_images is None:
                raise ValueError(
                    self._say(
                        'threshold',
                        threshold,
                        'a count >= 1, or a share together with num_images',
                        'give num_images, the number of training images',
                    )
                )
            self.threshold *= self._check_number('num_images', num_images, 1)

    @property
    def needs_background(self) -> bool:
        return self.use_sigmoid

    def tail(self) -> Tensor:
        """T: whether a class is rare, (C,), bool."""
        return self.class_counts < self.threshold

    def columns(self, num_classes: int) -> tuple[int, ...]:
        if self.use_sigmoid:
            return (num_classes,)
        return num_classes + 1, num_classes

    def row_loss(self, batch: Batch) -> Tensor:
        if self.use_sigmoid:
            return self._sigmoid_rows(batch)
        return self._softmax_rows(batch)

    def _sigmoid_rows(self, batch: Batch) -> Tensor:
        def of_sides(_: Tensor) -> tuple[Tensor, Tensor]:
            kept = (~self.tail()).float()
            return torch.ones_like(kept), kept

        weights = self.remember(self.threshold, self.class_counts, of_sides)
        rows, _ = sigmoid_rows(
            WEIGHTED_BCE, weights, batch, spare_background=True
        )
        return rows

    def _softmax_rows(self, batch: Batch) -> Tensor:
        logits, labels = batch.logits, batch.labels
        probability = self.gamma * self.tail().float()
        if logits.size(1) > self.num_classes:
            probability = torch.cat([probability, probability.new_zeros(1)])
        seed = new_seed(logits.device)
        if not labels.is_floating_point():
            adjust = Dropped(probability, seed, self.num_classes)
            return softmax_rows(adjust, batch)[0]
        shape = logits.shape[:1] + logits.shape[2:]
        dropped = random_drops(seed, probability, shape, word=draw_word())
        dropped = dropped & ~without_object(labels, self.num_classes)
        return softmax_equalization_v1(logits, labels, dropped)

    def scores(self, cls_score: Tensor) -> tuple[Tensor, Tensor]:
        if self.use_sigmoid:
            return super().scores(cls_score)
        scores = cls_score.softmax(-1)
        return scores[..., :-1], scores[..., -1:]
