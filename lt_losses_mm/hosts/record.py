# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""What we have to know of a host: the fields of its record."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import AbstractSet, Any, Callable, Mapping, Sequence

from torch import Tensor, nn


def is_any(module: nn.Module, names: AbstractSet[str]) -> bool:
    """Whether the module is of one of the classes, or of a subclass."""
    return any(cls.__name__ in names for cls in type(module).__mro__)


def last_dim(head: Any, logits: Tensor) -> tuple[int, int]:
    """Logits (N, K): the last dimension, and K."""
    return logits.dim() - 1, logits.size(-1)


@dataclass(frozen=True)
class Host:
    """One host, as far as our losses and hooks depend on it.

    Heads are named by their class; what is said of one holds for its
    subclasses. Nothing here imports a host.

    Args:
        name: The package.
        loss: Attribute of a head that holds its classification loss.
        last_layer: Attribute of a head that holds the layer whose bias may
            start at a prior.
        has_background: Whether the heads have rows of background.
        count_unit: What is counted where a config names no unit.
        refused: Heads that no loss of ours can serve, and what they do.
        other_losses: Attributes of heads that hold losses over no classes,
            and what these do.
        listed_losses: Heads that call their losses by their place in a list,
            and what each of these tells, if not classes.
        focal: Heads whose own loss has a focal factor, and no other loss a
            start of the same size.
        sigmoid_only: Heads that read their logits as sigmoids.
        softmax_only: Heads that read their logits as a softmax.
        learns_quality: Whether a head passes (labels, quality), or a map of
            qualities, in place of labels.
        passes_probabilities: Heads that call the loss with probabilities in
            place of logits.
        keeps_quality: Heads that pass the quality of a box to the host's own
            quality loss and to no other.
        own_bias: Heads that start from a prior of their own, though they have
            a last layer of that name.
        no_logits: Heads whose result does not begin with the logits.
        classifies: Whether logits of the classes leave through a module.
        method: The method of that module that they leave through.
        several_logits: Whether a tuple that it returns holds logits alone; of
            another, only the first item is logits.
        class_dim: From that module and its logits, the dimension of the
            classes and the number of columns of one set of them.
        even_samplers: Samplers that draw all samples equally often.
        class_samplers: Samplers that draw all classes equally often, with the
            attributes of mmdet's.
        mixing_wrappers: Data set wrappers that add partners, drawn evenly, to
            each sample (Mosaic and the like).
        fold_wrappers: Data set wrappers that pass on a part of the samples.
        mask_loader: Module and name of the transform that reads masks.
    """

    name: str
    loss: str
    last_layer: str
    has_background: bool
    classifies: Callable[[nn.Module], bool]
    count_unit: str = 'image'
    refused: Mapping[str, str] = field(default_factory=dict)
    other_losses: Mapping[str, str] = field(default_factory=dict)
    listed_losses: Mapping[str, Sequence[str]] = field(default_factory=dict)
    focal: AbstractSet[str] = frozenset()
    sigmoid_only: AbstractSet[str] = frozenset()
    softmax_only: AbstractSet[str] = frozenset()
    learns_quality: Callable[[nn.Module], bool] = lambda head: False
    passes_probabilities: AbstractSet[str] = frozenset()
    keeps_quality: AbstractSet[str] = frozenset()
    own_bias: AbstractSet[str] = frozenset()
    no_logits: AbstractSet[str] = frozenset()
    method: str = 'forward'
    several_logits: bool = False
    class_dim: Callable[[Any, Tensor], tuple[int, int]] = last_dim
    even_samplers: AbstractSet[str] = frozenset()
    class_samplers: AbstractSet[str] = frozenset()
    mixing_wrappers: AbstractSet[str] = frozenset()
    fold_wrappers: AbstractSet[str] = frozenset()
    mask_loader: tuple[str, str] | None = None
