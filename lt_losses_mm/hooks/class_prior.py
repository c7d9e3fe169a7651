# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Fills class counts that a config leaves to the training data."""
from __future__ import annotations

from typing import Iterator

from mmengine.hooks import Hook
from mmengine.registry import DATASETS
from mmengine.runner import Runner

from ..compat import patch_lvis
from ..losses import LongTailLoss
from ..priors import ClassCounts, count_dataset, rebalanced_by
from ..registry import HOOKS


def counts_of_training_data(runner: Runner,
                            unit: str | None = None) -> ClassCounts:
    """Expected class counts of one epoch of the runner's training data.

    Args:
        runner (Runner): Its ``train_dataloader`` may be built or a config; of
            a config only the data set is built.
        unit (str, optional): ``'image'``, ``'instance'`` or ``'pixel'``.

    Raises:
        RuntimeError: The config has no ``train_dataloader``.
    """
    loader = _train_dataloader(runner)
    if loader is None:
        raise RuntimeError(
            "class_counts='auto' needs the training data, but this config "
            'has no train_dataloader. Give class_counts as a list, a file or '
            'the name of a benchmark, or load a checkpoint that was trained '
            'with a loss of this package.')
    if not isinstance(loader, dict):
        return count_dataset(loader.dataset, sampler=_sampler(loader),
                             unit=unit)
    dataset = DATASETS.build(loader['dataset'])
    if hasattr(dataset, 'full_init'):
        dataset.full_init()
    return count_dataset(dataset, unit=unit)


def _train_dataloader(runner: Runner):
    # Runner.train_dataloader builds what it returns; a test needs no loader.
    loop = runner._train_loop
    if loop is not None and not isinstance(loop, dict):
        return loop.dataloader
    return runner._train_dataloader


def _sampler(loader):
    # A batch sampler (by aspect ratio, say) wraps the sampler that draws.
    return getattr(loader.batch_sampler, 'sampler', loader.sampler)


@HOOKS.register_module()
class ClassPriorHook(Hook):
    """Fills ``class_counts='auto'`` of losses and metrics before training.

    Importing the package adds it to every ``Runner``; a config need not name
    it. Before training it counts the data set as the model will see it
    (:func:`~lt_losses_mm.priors.count_dataset`) and warns once where a loss
    with fixed counts meets data that a sampler already balances. In runs that
    only test, losses have their counts from the checkpoint, and metrics take
    them from there or from the config's training data.
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
            self._warn_of_double_correction(runner)
            self._fill_metrics(runner)

    def before_train(self, runner: Runner) -> None:
        """Fill again: a checkpoint may have brought another data set's."""
        self._fill_losses(runner)

    def before_val(self, runner: Runner) -> None:
        self._fill_metrics(runner)

    def before_test(self, runner: Runner) -> None:
        self._fill_metrics(runner)

    def _count(self, runner: Runner, unit: str | None) -> ClassCounts:
        if unit not in self._counts:
            self._counts[unit] = counts_of_training_data(runner, unit)
        return self._counts[unit]

    def _fill_losses(self, runner: Runner) -> None:
        for name, loss in _losses(runner):
            if not loss.auto_counts:
                continue
            counts = self._count(runner, loss.count_unit)
            before = loss.class_counts
            loss.set_class_counts(counts)
            if before.numel() == 0:
                runner.logger.info(
                    f'{name}: class_counts="auto" filled from {counts.source} '
                    f'({counts.num_classes} classes, unit {counts.unit}, '
                    f'{counts.counts.min():g} to {counts.counts.max():g})')
            elif not before.equal(loss.class_counts):
                runner.logger.info(
                    f'{name}: class counts of the checkpoint replaced by '
                    'those of the training data')

    def _warn_of_double_correction(self, runner: Runner) -> None:
        fixed = [name for name, loss in _losses(runner)
                 if not loss.auto_counts and loss.tau > 0]
        if not fixed:
            return
        loader = runner.train_dataloader
        balancing = rebalanced_by(loader.dataset, _sampler(loader))
        if balancing is not None:
            runner.logger.warning(
                f'Double correction: {balancing} already balances the '
                f'training data, while the class_counts of {", ".join(fixed)} '
                "are fixed. Use class_counts='auto', which counts what the "
                'model sees, or sample without balancing.')

    def _fill_metrics(self, runner: Runner) -> None:
        for metric in _metrics(runner):
            if getattr(metric, 'class_counts', None) != 'auto':
                continue
            unit = getattr(metric, 'count_unit', None)
            metric.set_class_counts(
                _counts_in_model(runner, unit) or self._count(runner, unit))


def _is_training(runner: Runner) -> bool:
    loop = runner._train_loop
    return loop is not None and not isinstance(loop, dict)


def _losses(runner: Runner) -> Iterator[tuple[str, LongTailLoss]]:
    for name, module in runner.model.named_modules():
        if isinstance(module, LongTailLoss):
            yield name, module


def _metrics(runner: Runner) -> Iterator:
    for loop in (runner._val_loop, runner._test_loop):
        if loop is not None and not isinstance(loop, dict):
            yield from loop.evaluator.metrics


def _counts_in_model(runner: Runner, unit: str | None) -> ClassCounts | None:
    for _, loss in _losses(runner):
        if loss.class_counts.numel() and unit in (None, loss.count_unit):
            return ClassCounts(
                counts=loss.class_counts.double().cpu().numpy(),
                unit=loss.count_unit or 'image',
                names=None,
                source='the loss in the model')
    return None
