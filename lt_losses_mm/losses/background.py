# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""What becomes of background rows: columns, shift and test-time scores.

:mod:`lt_losses_mm.priors.shift` says what the policies of priors mean.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..messages import fault
from ..priors.shift import sigmoid_shift, softmax_shift


class Background(ABC):
    """A policy, as one family of losses has it.

    Args:
        key (str | float): What the config says; a number is the prior of
            background.
        default (bool): Whether it is what the loss takes where the config
            says nothing. A separate output for background is then a matter
            of RoI heads: no other head would know what to do with it.
    """

    def __init__(self, key: str | float, default: bool) -> None:
        self.key = key
        self.default = default
        self.in_roi_head = False

    @property
    def objectness(self) -> bool:
        """Whether outputs of their own tell objects from background."""
        return self.key == 'objectness' and (
            self.in_roi_head or not self.default
        )

    @abstractmethod
    def columns(self, num_classes: int) -> tuple[int, ...]:
        """Numbers of logit columns that can be served, widest first."""

    @abstractmethod
    def scores(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Test-time scores (N, C) of the classes and (N, 1) of background."""

    @abstractmethod
    def shift(self, class_counts: Tensor, columns: int) -> Tensor:
        """Shift of the logits for tau = 1, one value a column of a formula."""


class SoftmaxBackground(Background):
    """Background is one more class, or two outputs of their own (C + 2)."""

    def columns(self, num_classes: int) -> tuple[int, ...]:
        if self.key != 'objectness':
            return num_classes + 1, num_classes
        if self.objectness:
            return num_classes + 2, num_classes
        return (num_classes,)

    def scores(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        if self.objectness:
            classes = logits[..., :-2].softmax(-1)
            is_object, background = (
                logits[..., -2:].softmax(-1).split(1, dim=-1)
            )
            return classes * is_object, background
        scores = logits.softmax(-1)
        return scores[..., :-1], scores[..., -1:]

    def shift(self, class_counts: Tensor, columns: int) -> Tensor:
        if self.objectness:
            columns = class_counts.numel()  # of the softmax of the classes
        return softmax_shift(class_counts, columns, self.key)


class SigmoidBackground(Background):
    """Background is no class, or one output of its own (C + 1)."""

    def columns(self, num_classes: int) -> tuple[int, ...]:
        if self.objectness and self.default:
            return num_classes + 1, num_classes
        return (num_classes + self.objectness,)

    def scores(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        scores = logits.sigmoid()
        if self.objectness:
            classes, background = scores[..., :-1], scores[..., -1:]
            return classes * (1 - background), background
        return scores, torch.zeros_like(scores[..., :1])

    def shift(self, class_counts: Tensor, columns: int) -> Tensor:
        shift = sigmoid_shift(class_counts, self.key)
        return self.pad(shift, columns, 0.0)

    def pad(self, values: Tensor, columns: int, value: float) -> Tensor:
        """Values (C,) of the classes, and one for the output of background.

        Args:
            values (Tensor): (C,).
            columns (int): C or C + 1.
            value (float): That of background.
        """
        if columns == values.numel():
            return values
        return torch.cat([values, values.new_full((1,), value)])


def read_background(
    owner: str,
    family: type[Background],
    policies: tuple[str | type, ...],
    key: str | float | None,
) -> Background:
    """The policy that a config names, or the first.

    Args:
        owner (str): Name of the loss.
        family (type): Kind of policy.
        policies (tuple): Names of those that the loss has; ``float`` stands
            for a background prior given as a number.
        key (str | float, optional): What the config says.

    Raises:
        ValueError: The loss has no such policy.
    """
    first = policies[0]
    assert isinstance(first, str)
    if key is None:
        return family(first, True)
    if isinstance(key, str) and key in policies:
        return family(key, key == first)
    if isinstance(key, float) and 0 < key < 1 and float in policies:
        return family(key, False)
    named = [policy for policy in policies if isinstance(policy, str)]
    number = ', or the prior of background as a float in (0, 1)'
    raise fault(
        'background',
        key,
        f'one of {named}' + (number if float in policies else ''),
        owner=owner,
    )
