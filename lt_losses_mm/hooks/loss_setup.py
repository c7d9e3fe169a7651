# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Fits losses to their heads and to the data, before training starts."""

from __future__ import annotations

import inspect
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import BaseModule
from mmengine.runner import Runner
from torch import nn

from ..hosts import HOSTS, MMDET, host_of, is_any
from ..losses import LongTailLoss
from ..losses.background import read_background
from ..losses.host_protocol import choose_counts
from ..messages import fault, listed
from ..priors import joined
from ..registry import HOOKS
from .class_counts import is_training, losses
from .training_data import (
    balanced_by,
    empty_folders_of_training_data,
    names_of,
    names_of_training_data,
    number_of_things,
)

# A head of somebody's own may name its last layer as any host does.
_LAST_LAYERS = tuple(host.last_layer for host in HOSTS)
_CLASS_LOSSES = {host.loss for host in HOSTS}


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

    # Directly before ClassCountsHook (VERY_HIGH, 10): what a head cannot
    # serve need not be counted, which may take minutes.
    priority = 9

    def before_run(self, runner: Runner) -> None:
        """Look before the host initialises the model."""
        for name, loss in losses(runner):
            _choose_counts(runner, loss, _owner(runner, name))
        if not is_training(runner):
            return
        for name, loss in losses(runner):
            check_head(runner, name, loss, _owner(runner, name))
            _tell_parameters(runner, name, loss)
        for name, loss in losses(runner):
            set_initial_bias(runner, name, loss, _owner(runner, name))
        _warn_of_double_correction(runner)


def _choose_counts(
    runner: Runner, loss: LongTailLoss, head: nn.Module
) -> None:
    """Of counts with names of further classes, take those of the data."""
    counts, expected = loss.known_counts, getattr(head, 'num_classes', None)
    if (
        counts is None
        or not counts.names
        or expected in (None, counts.num_classes)
    ):
        return
    if is_training(runner):
        names = names_of_training_data(runner)
    else:
        names = names_of(runner._test_loop) or names_of(runner._val_loop)
    chosen = joined(counts, names, 'the data of this run')
    if chosen.num_classes == expected:
        choose_counts(loss, chosen)


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


def _tell_parameters(runner: Runner, name: str, loss: LongTailLoss) -> None:
    """Log what is not at its default: some of it may be inherited."""
    shared = inspect.signature(LongTailLoss).parameters
    said = [
        f'{key}={getattr(loss, key)!r} (default {known.default!r})'
        for key, known in inspect.signature(type(loss)).parameters.items()
        if key not in shared
        and getattr(loss, key, known.default) != known.default
    ]
    if said:
        runner.logger.info(
            f'{name}: {type(loss).__name__} has {", ".join(said)}'
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
    attribute = [part for part in name.split('.') if not part.isdigit()][-1]
    reasons = [
        f'{kind} {why}'
        for refused, why in host.refused.items()
        if is_any(head, {refused})
    ]
    if any(part.startswith('rpn') for part in name.split('.')):
        reasons.append(f'{kind} {MMDET.refused["RPNHead"]}')
    if attribute in host.other_losses:
        reasons.insert(0, f'it {host.other_losses[attribute]}')
    for of_list, tells in host.listed_losses.items():
        if is_any(head, {of_list}):
            place = name.rpartition('.')[2]
            if not place.isdigit() or len(getattr(head, attribute)) < len(
                tells
            ):
                raise fault(
                    attribute,
                    type(loss).__name__,
                    f'a list of {len(tells)} losses, which {kind} calls by '
                    'their place',
                    f'write a list, as the config of {of_list} has it',
                    name,
                )
            if tells[int(place)]:
                reasons.append(f'it {tells[int(place)]}')
                attribute = f'{attribute}[{place}]'
    if reasons:
        raise fault(
            'type',
            type(loss).__name__,
            f"the host's own loss, because {reasons[0]}",
            f'leave {attribute} of this head as it was; losses of this '
            'package go where a head tells classes apart',
            name,
        )
    if '.task_heads.' in name and loss.auto_counts:
        task = name.split('.task_heads.')[1].split('.')[0]
        raise fault(
            'class_counts',
            'auto',
            f'the counts of task {task!r}, because the training data have '
            'labels of several tasks',
            'give class_counts to the loss of each task, as a list or a file',
            name,
        )
    wanted = getattr(head, 'use_sigmoid_cls', loss.use_sigmoid)
    if attribute == 'loss_cls' and wanted != loss.use_sigmoid:
        raise fault(
            'use_sigmoid',
            wanted,
            f'{loss.use_sigmoid}, because {kind} reads this key of the loss '
            'to choose its columns',
            f'write use_sigmoid={loss.use_sigmoid} beside type',
            name,
        )
    if is_any(
        head, host.softmax_only if loss.use_sigmoid else host.sigmoid_only
    ):
        other = 'softmax' if loss.use_sigmoid else 'sigmoid'
        raise fault(
            'type',
            type(loss).__name__,
            f'a loss over a {other}, because {kind} reads its logits as such',
            f'take Balanced{other.capitalize()}Loss or another of its kind',
            name,
        )
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
    if is_any(head, host.focal) and not loss.focal:
        runner.logger.warning(
            f'{name}: {type(loss).__name__} has no focal factor, so that the '
            f'background of {kind} adds up: training starts at many times '
            'the value of FocalLoss; EqualizedFocalLoss starts at that value'
        )
    expected = getattr(head, 'num_classes', None)
    if expected is None or attribute not in _CLASS_LOSSES:
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
    if not loss.class_counts.numel():
        _check_number(runner, name, expected, kind)
    _check_columns(name, loss, head)


def _check_columns(name: str, loss: LongTailLoss, head: Any) -> None:
    """Refuse a classifier that has its columns without asking the loss."""
    host, classes = host_of(head), loss.num_classes
    layer = getattr(head, host.last_layer, None)
    columns = getattr(layer, 'out_features', None)
    if (
        not host.has_background
        or columns is None
        or columns in loss.columns(classes)
    ):
        return
    fits = []
    for policy in loss.background_policies:
        if isinstance(policy, str):
            other = read_background(
                name, loss.background_family, loss.background_policies, policy
            )
            other.in_roi_head = loss.background.in_roi_head
            if columns in other.columns(classes):
                fits.append(repr(policy))
    raise fault(
        'background',
        loss.background.key,
        f'what fits the {columns} columns that {type(head).__name__} always '
        f'has for {classes} classes, but {type(loss).__name__} takes '
        f'{" or ".join(map(str, loss.columns(classes)))}',
        f'write background={" or ".join(fits)} beside type'
        if fits
        else 'take a loss over a softmax, such as BalancedSoftmaxLoss',
        name,
    )


def _check_number(runner: Runner, name: str, expected: int, kind: str) -> None:
    """Compare the classes of a head with the names in the training data.

    Counts that a config states say what the model sees, whatever the names.
    Where another module has the classes of the data, this head has a task of
    its own, as a discriminator has; box heads of panoptic data have the
    things alone.
    """
    names = names_of_training_data(runner)
    if not names or len(names) == expected:
        return
    known = {
        getattr(module, 'num_classes', None)
        for module in runner.model.modules()
    }
    if len(names) not in known and expected != number_of_things(runner):
        empty = listed(empty_folders_of_training_data(runner))
        raise fault(
            'num_classes',
            expected,
            f'{len(names)} for {kind}, as the training data have the classes '
            f'{listed(names)}',
            (
                f'delete the folders without an image ({empty}), '
                if empty
                else ''
            )
            + f'write num_classes={len(names)} in {kind}, or correct '
            'metainfo.classes of the data sets; where a transform makes '
            'other classes of them, give class_counts as a list',
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
    host = host_of(head)
    if getattr(loss, 'bias_prior', None) is None or is_any(
        head, host.own_bias
    ):
        return
    known = [
        attribute
        for attribute in _LAST_LAYERS
        if getattr(getattr(head, attribute, None), 'bias', None) is not None
    ]
    for attribute in known:
        _start_at(runner, name, loss, head, attribute)
    if not known and not host.has_background:
        runner.logger.warning(
            f'{name}: bias_prior={loss.bias_prior!r} has no effect in '
            f'{type(head).__name__}, which has no classifier named '
            f'{", ".join(_LAST_LAYERS)}; bias_prior=None says that this is '
            'meant'
        )


def _start_at(
    runner: Runner, name: str, loss: Any, owner: nn.Module, attribute: str
) -> None:
    """Set the bias once the host has initialised the head.

    Not by ``init_cfg``: layers such as NormedLinear and heads such as DDRHead
    initialise themselves after it. By then the counts have told every loss
    its number of classes.
    """

    def start() -> None:
        bias = loss.initial_bias
        nn.init.constant_(getattr(owner, attribute).bias, bias)
        runner.logger.info(
            f'{name}: the bias of {attribute} starts at {bias:.2f}, a '
            f'probability of {loss.initial_probability:g} (bias_prior)'
        )

    if not isinstance(owner, BaseModule):
        if hasattr(loss, 'num_classes'):
            start()
        return

    def init_weights() -> None:
        del owner.init_weights  # back to the method of the class
        fresh = not owner.is_init
        owner.init_weights()
        if fresh:
            start()

    owner.init_weights = init_weights
