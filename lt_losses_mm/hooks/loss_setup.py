# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Fits losses to their heads and to the data, before training starts."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.model import BaseModule
from mmengine.runner import Runner
from torch import nn

from ..hosts import HOSTS, host_of, is_any
from ..losses import LongTailLoss
from ..messages import fault
from ..registry import HOOKS
from .class_counts import is_training, losses
from .training_data import balanced_by

# A head of somebody's own may name its last layer as any host does.
_LAST_LAYERS = tuple(host.last_layer for host in HOSTS)


@HOOKS.register_module()
class LossSetupHook(Hook):
    """Fits losses to the heads that they hang in.

    Importing the package adds it to every ``Runner``; a config need not name
    it. Before training it compares each loss with what is known of its head
    (:mod:`lt_losses_mm.hosts`), tells it the number of classes, lets the host
    initialise the classifier with the prior that the loss states, and warns
    once where a loss with fixed counts meets data that a sampler already
    balances.
    """

    # Directly after ClassCountsHook (VERY_HIGH, 10) has filled the counts,
    # and before hooks that copy the model.
    priority = 11

    def before_run(self, runner: Runner) -> None:
        """Look before the host initialises the model."""
        if not is_training(runner):
            return
        for name, loss in losses(runner):
            check_head(runner, name, loss, _owner(runner, name))
        for name, loss in losses(runner):
            set_initial_bias(runner, name, loss, _owner(runner, name))
        _warn_of_double_correction(runner)


def _warn_of_double_correction(runner: Runner) -> None:
    fixed = [
        name
        for name, loss in losses(runner)
        if loss.uses_counts
        and not loss.auto_counts
        # The strength of the correction; EQL, whose published recipes
        # sample by class, has none: its counts tell rare from frequent.
        and (loss.tau or 0) > 0
    ]
    balancing = balanced_by(runner) if fixed else None
    if balancing is not None:
        runner.logger.warning(
            f'Double correction: {balancing} already balances the '
            f'training data, while the class_counts of {", ".join(fixed)} '
            "are fixed. Use class_counts='auto', which counts what the "
            'model sees, or sample without balancing.'
        )


def _owner(runner: Runner, name: str) -> nn.Module:
    """The head that a loss belongs to."""
    owner = runner.model.get_submodule(name.rpartition('.')[0])
    if isinstance(owner, nn.ModuleList):
        parent = name.rpartition('.')[0].rpartition('.')[0]
        owner = runner.model.get_submodule(parent)
    return owner


def check_head(
    runner: Runner, name: str, loss: LongTailLoss, head: nn.Module
) -> None:
    """Compare a loss with its head, which knows its classes.

    A softmax loss with one count too few would take the last class for
    background, and nothing would look wrong.

    Args:
        runner: Whose logger is told what is odd, but no error.
        name: Name of the loss in the model.
        loss: The loss.
        head: The module that it belongs to.

    Raises:
        ValueError: The head cannot serve the loss, or both have different
            numbers of classes.
    """
    host, kind = host_of(head), type(head).__name__
    if not loss.takes_quality and host.learns_quality(head):
        raise fault(
            'type',
            type(loss).__name__,
            f'a quality focal loss, because {kind} learns the quality of a '
            'box with its class',
            'take EqualizedQualityFocalLoss',
            name,
        )
    activated = is_any(head, host.passes_probabilities)
    if loss.takes_quality and loss.activated != activated:
        what = 'probabilities' if activated else 'logits'
        raise fault(
            'activated',
            loss.activated,
            f'activated={activated}, because {kind} passes {what}',
            owner=name,
        )
    for refused, reason in host.refused.items():
        if is_any(head, {refused}):
            raise fault(
                'type',
                type(loss).__name__,
                f"the host's own loss in {refused}, because {refused} "
                f'{reason}',
                'see docs/head_compatibility.md',
                name,
            )
    if loss.takes_quality and is_any(head, host.keeps_quality):
        runner.logger.warning(
            f"{name}: {kind} passes the quality of a box to {host.name}'s "
            'own QualityFocalLoss alone; here each label has quality 1'
        )
    if loss.needs_background and not host.has_background:
        runner.logger.warning(
            f'{name}: {type(loss).__name__} leaves rare classes without any '
            f'negative in {kind}, which has no rows of background; '
            'EqualizationSoftmaxLoss is its form for such heads'
        )
    expected = getattr(head, 'num_classes', None)
    if expected is None:
        return
    known = getattr(loss, 'num_classes', None)
    if known is None:
        loss.set_num_classes(expected, kind)
    elif expected != known:
        counts = loss.class_counts.tolist()
        raise fault(
            'class_counts' if counts else 'num_classes',
            counts or known,
            f'num_classes={expected} of {kind}, not {known} classes',
            'give one count for each class of the data set, background left '
            'out',
            name,
        )


def set_initial_bias(
    runner: Runner, name: str, loss: LongTailLoss, head: nn.Module
) -> None:
    """Let the host initialise the classifier with the loss's prior.

    Only that of a head that has no prior of its own. The host applies it
    when it initialises the model, before any checkpoint is loaded.

    Args:
        runner: Whose logger is told.
        name: Name of the loss in the model.
        loss: The loss.
        head: The module that it belongs to.
    """
    bias, host = getattr(loss, 'initial_bias', None), host_of(head)
    if bias is None or is_any(head, host.own_bias):
        return
    known = [
        attribute
        for attribute in _LAST_LAYERS
        if getattr(getattr(head, attribute, None), 'bias', None) is not None
    ]
    for attribute in known:
        _start_at(head, getattr(head, attribute), bias)
        runner.logger.info(
            f'{name}: the bias of {attribute} starts at {bias:.2f}, a '
            f'probability of {loss.initial_probability:g} (bias_prior)'
        )
    if not known and not host.has_background:
        runner.logger.warning(
            f'{name}: bias_prior={loss.bias_prior!r} has no effect in '
            f'{type(head).__name__}, which has no classifier named '
            f'{", ".join(_LAST_LAYERS)}; bias_prior=None says that this is '
            'meant'
        )


def _start_at(owner: nn.Module, classifier: Any, bias: float) -> None:
    """Set the bias once the host has initialised the head.

    Not by ``init_cfg``: layers such as NormedLinear and heads such as DDRHead
    initialise themselves after it.
    """
    if not isinstance(owner, BaseModule):
        nn.init.constant_(classifier.bias, bias)
        return

    def init_weights() -> None:
        del owner.init_weights  # back to the method of the class
        fresh = not owner.is_init
        owner.init_weights()
        if fresh:
            nn.init.constant_(classifier.bias, bias)

    owner.init_weights = init_weights
