# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Fills class counts that a config leaves to the training data."""

from __future__ import annotations

from typing import Any, Iterator

import numpy as np
from mmengine.hooks import Hook
from mmengine.model import BaseModule
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Subset

from ..compat import patch_lvis
from ..losses import LongTailLoss
from ..metrics.base import FrequencyMetric
from ..priors import ClassCounts, count_dataset, expected_draws, rebalanced_by
from ..registry import HOOKS


class NoTrainingDataError(RuntimeError):
    """The run has no training data that could be counted."""


def counts_of_training_data(
    runner: Runner,
    unit: str | None = None,
    as_drawn: bool = True,
) -> ClassCounts:
    """Class counts of the runner's training data.

    Args:
        runner (Runner): Its ``train_dataloader`` may be built or a config.
        unit (str, optional): ``'image'``, ``'instance'`` or ``'pixel'``.
        as_drawn (bool): Whether to count what the model sees in an epoch
            (priors), or each sample that it sees once (groups by training
            frequency).

    Raises:
        NoTrainingDataError: There is no training data to count.
    """
    loader = _train_dataloader(runner)
    num_classes = _num_classes(runner, loader.dataset)
    if as_drawn:
        return count_dataset(
            loader.dataset,
            sampler=_sampler(loader),
            unit=unit,
            num_classes=num_classes,
        )
    drawn: dict[int, tuple[Any, np.ndarray]] = {}
    for leaf, draws in expected_draws(loader.dataset):
        _, before = drawn.get(id(leaf), (leaf, draws > 0))
        drawn[id(leaf)] = leaf, before | (draws > 0)
    return count_dataset(
        ConcatDataset(
            [
                Subset(leaf, np.flatnonzero(of).tolist())
                for leaf, of in drawn.values()
            ]
        ),
        unit=unit,
        num_classes=num_classes,
    )


def _num_classes(runner: Runner, dataset: Any) -> int | None:
    metainfo = getattr(dataset, 'metainfo', None) or {}
    if metainfo.get('classes'):
        return None
    # Lists of files (ImageNet-LT, ...) carry no class names; the heads know.
    sizes = {getattr(head, 'num_classes', None) for head in _heads(runner)}
    return sizes.pop() if len(sizes) == 1 else None


def _train_dataloader(runner: Runner) -> DataLoader:
    # Runner.train_dataloader builds the whole train loop.
    loop = runner._train_loop
    if loop is not None and not isinstance(loop, dict):
        return loop.dataloader
    loader = runner._train_dataloader
    fix = 'Give class_counts as a list, a file or the name of a benchmark.'
    if loader is None:
        raise NoTrainingDataError(
            "class_counts='auto' needs the training data, but "
            f'this config has no train_dataloader. {fix}'
        )
    try:
        return runner.build_dataloader(loader)
    except OSError as error:
        raise NoTrainingDataError(
            "class_counts='auto' needs the training data, "
            f'which cannot be read ({error}). {fix}'
        ) from error


def _sampler(loader: DataLoader) -> Any:
    # A batch sampler (by aspect ratio, say) wraps the sampler that draws.
    return getattr(loader.batch_sampler, 'sampler', loader.sampler)


# Heads of mmdet that pass (labels, quality), or a map of qualities.
_QUALITY_HEADS = {
    'DDQAuxLoss',
    'GFLHead',
    'RTMDetHead',
    'TOODHead',
    'VFNetHead',
}

# Those of them that pass probabilities in place of logits.
_ACTIVATED_HEADS = {'DDQAuxLoss', 'TOODHead'}

_UNFIT_HEADS = {
    'YOLOXHead': 'passes positive anchors alone',
    'FreeAnchorRetinaHead': 'never calls loss_cls',
    'AutoAssignHead': 'never calls loss_cls',
}

# The last layer of RoI heads, of mmpretrain's and of mmseg's heads.
_CLASSIFIERS = ('fc_cls', 'fc', 'conv_seg')

# What count_dataset counts if no unit is asked for.
_DEFAULT_UNITS = dict(mmseg='pixel')


@HOOKS.register_module()
class ClassPriorHook(Hook):
    """Fills ``class_counts='auto'`` of losses and metrics.

    Importing the package adds it to every ``Runner``; a config need not name
    it. Before training it counts the data set as the model will see it
    (:func:`~lt_losses_mm.priors.count_dataset`) and warns once where a loss
    with fixed counts meets data that a sampler already balances. In runs that
    only test, losses have their counts from the checkpoint. Metrics, whose
    groups are those of the data set itself, count it, or, on a machine
    without it, take what the checkpoint holds and say so.
    """

    # Before EMAHook (NORMAL) copies the model, so that both copies have
    # buffers of one size.
    priority = 'VERY_HIGH'

    def before_run(self, runner: Runner) -> None:
        """Fill before hooks that copy the model, and mend lvis."""
        patch_lvis()
        self._counts: dict[str | None, ClassCounts] = {}
        if _is_training(runner):
            self._fill_losses(runner)
            _check_heads(runner)
            _set_initial_bias(runner)
            self._warn_of_double_correction(runner)

    def before_train(self, runner: Runner) -> None:
        """Fill again: a checkpoint may have brought another data set's."""
        self._fill_losses(runner)
        self._fill_metrics(runner, runner._val_loop)

    def before_val(self, runner: Runner) -> None:
        self._fill_metrics(runner, runner._val_loop)

    def before_test(self, runner: Runner) -> None:
        self._fill_metrics(runner, runner._test_loop)

    def _fill_losses(self, runner: Runner) -> None:
        for name, loss in _losses(runner):
            if not loss.auto_counts:
                continue
            unit = loss.count_unit
            if unit not in self._counts:
                self._counts[unit] = counts_of_training_data(runner, unit)
            counts, before = self._counts[unit], loss.class_counts
            loss.set_class_counts(counts)
            if before.numel() == 0:
                runner.logger.info(
                    f"{name}: class_counts='auto' filled from {counts.source} "
                    f'({counts.num_classes} classes, unit {counts.unit}, '
                    f'{counts.counts.min():g} to {counts.counts.max():g})'
                )
                empty = int((counts.counts == 0).sum())
                if empty:
                    runner.logger.warning(
                        f'{name}: {empty} of {counts.num_classes} classes '
                        'have no training sample; they are treated as being '
                        'as rare as the rarest class that has one'
                    )
            elif not before.equal(loss.class_counts):
                runner.logger.info(
                    f'{name}: class counts of the checkpoint replaced by '
                    'those of the training data'
                )

    def _warn_of_double_correction(self, runner: Runner) -> None:
        fixed = [
            name
            for name, loss in _losses(runner)
            if loss.uses_counts
            and not loss.auto_counts
            # The strength of the correction; EQL, whose published recipes
            # sample by class, has none: its counts tell rare from frequent.
            and (loss.tau or 0) > 0
        ]
        if not fixed:
            return
        loader = _train_dataloader(runner)
        balancing = rebalanced_by(loader.dataset, _sampler(loader))
        if balancing is not None:
            runner.logger.warning(
                f'Double correction: {balancing} already balances the '
                f'training data, while the class_counts of {", ".join(fixed)} '
                "are fixed. Use class_counts='auto', which counts what the "
                'model sees, or sample without balancing.'
            )

    def _fill_metrics(self, runner: Runner, loop: Any) -> None:
        if loop is None or isinstance(loop, dict):
            return
        for metric in loop.evaluator.metrics:
            if isinstance(metric, FrequencyMetric) and isinstance(
                metric.class_counts, str
            ):
                metric.set_class_counts(
                    self._natural_counts(runner, metric.count_unit)
                )

    def _natural_counts(self, runner: Runner, unit: str | None) -> ClassCounts:
        try:
            return counts_of_training_data(runner, unit, as_drawn=False)
        except NoTrainingDataError as error:
            # A machine that only tests: the checkpoint knows what was drawn.
            usual = _DEFAULT_UNITS.get(
                runner.cfg.get('default_scope', ''), 'image'
            )
            unit = unit or usual
            for name, loss in _losses(runner):
                known = loss.class_counts.numel()
                if known and unit == (loss.count_unit or usual):
                    runner.logger.warning(
                        f'{error} Metrics take their groups from the class '
                        f'counts of {name} in the checkpoint, which are those '
                        'of the training data as they were sampled.'
                    )
                    return ClassCounts(
                        loss.class_counts.double().cpu().numpy(),
                        unit,
                        source=f'{name} in the checkpoint',
                    )
            raise


def _is_training(runner: Runner) -> bool:
    loop = runner._train_loop
    return loop is not None and not isinstance(loop, dict)


def _losses(runner: Runner) -> Iterator[tuple[str, LongTailLoss]]:
    for name, module in runner.model.named_modules():
        if isinstance(module, LongTailLoss):
            yield name, module


def _owner(runner: Runner, name: str) -> nn.Module:
    """The head that a loss belongs to."""
    modules = dict(runner.model.named_modules())
    owner = name.rpartition('.')[0]
    if isinstance(modules[owner], nn.ModuleList):
        owner = owner.rpartition('.')[0]
    return modules[owner]


def _heads(runner: Runner) -> Iterator[nn.Module]:
    """Modules that own a classification loss, but for proposal networks."""
    for name, module in runner.model.named_modules():
        owns = any(
            isinstance(getattr(module, attribute, None), nn.Module)
            for attribute in ('loss_cls', 'loss_module', 'loss_decode')
        )
        if owns and 'rpn' not in name:
            yield module


def _check_heads(runner: Runner) -> None:
    """Compare the counts with the heads, which know their classes.

    A softmax loss with one count too few would take the last class for
    background, and nothing would look wrong.

    Raises:
        ValueError: A head and its loss have different numbers of classes.
    """
    for name, loss in _losses(runner):
        owner = _owner(runner, name)
        kinds = {cls.__name__ for cls in type(owner).__mro__}
        # VFNetHead passes labels if use_vfl=False.
        learns_quality = kinds & _QUALITY_HEADS and getattr(
            owner, 'use_vfl', True
        )
        if not loss.takes_quality and learns_quality:
            raise ValueError(
                f'{name}: {type(loss).__name__}, expected a quality focal '
                f'loss, because {type(owner).__name__} learns the quality of '
                'a box with its class; take EqualizedQualityFocalLoss'
            )
        activated = bool(kinds & _ACTIVATED_HEADS)
        if loss.takes_quality and loss.activated != activated:
            what = 'probabilities' if activated else 'logits'
            raise ValueError(
                f'{name}: activated={loss.activated}, expected '
                f'activated={activated}, because {type(owner).__name__} '
                f'passes {what}'
            )
        for head, reason in _UNFIT_HEADS.items():
            if head in kinds:
                raise ValueError(
                    f'{name}: {type(loss).__name__} in {head}, expected a '
                    f'loss of its own, because {head} {reason}; see '
                    'docs/head_compatibility.md'
                )
        if loss.takes_quality and 'DETRHead' in kinds:
            runner.logger.warning(
                f'{name}: {type(owner).__name__} passes the quality of a box '
                "to mmdet's own QualityFocalLoss alone; here each label has "
                'quality 1'
            )
        if loss.needs_background and not _has_background(owner):
            runner.logger.warning(
                f'{name}: {type(loss).__name__} leaves rare classes without '
                f'any negative in {type(owner).__name__}, which has no rows '
                'of background; use_sigmoid=False is its form for such heads'
            )
        expected = getattr(owner, 'num_classes', None)
        if expected is None:
            continue
        known = getattr(loss, 'num_classes', None)
        if known is None:
            loss.set_num_classes(expected, f'{type(owner).__name__}')
        elif expected != known:
            key = (
                'class_counts' if loss.class_counts.numel() else 'num_classes'
            )
            raise ValueError(
                f'{name}: {key} of {known} classes, expected '
                f'num_classes={expected} of '
                f'{type(owner).__name__}; give one count for each '
                'class of the data set, background left out'
            )


def _has_background(head: nn.Module) -> bool:
    # Heads of mmpretrain and of mmseg have none.
    return not (hasattr(head, 'loss_module') or hasattr(head, 'loss_decode'))


def _set_initial_bias(runner: Runner) -> None:
    """Let the host initialise classifiers with the prior that losses state.

    Only those of heads that have no prior of their own. The host applies it
    when it initialises the model, before any checkpoint is loaded.
    """
    for name, loss in _losses(runner):
        bias = getattr(loss, 'initial_bias', None)
        if bias is None:
            continue
        owner = _owner(runner, name)
        # Sparse R-CNN's head starts from a prior of its own.
        if type(owner).__name__ == 'DIIHead':
            continue
        known = [
            attribute
            for attribute in _CLASSIFIERS
            if getattr(getattr(owner, attribute, None), 'bias', None)
            is not None
        ]
        for attribute in known:
            _start_at(owner, getattr(owner, attribute), bias)
            runner.logger.info(
                f'{name}: the bias of {attribute} starts at {bias:.2f}, a '
                f'probability of {loss.initial_probability:g} (bias_prior)'
            )
        if not known and not _has_background(owner):
            runner.logger.warning(
                f'{name}: bias_prior={loss.bias_prior!r} has no effect in '
                f'{type(owner).__name__}, which has no classifier named '
                f'{", ".join(_CLASSIFIERS)}; bias_prior=None says that this '
                'is meant'
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
