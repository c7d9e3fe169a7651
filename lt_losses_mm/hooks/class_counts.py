# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Fills class counts that a config leaves to the training data."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..hosts import HOSTS
from ..losses import LongTailLoss
from ..priors import ClassCounts, empty_classes, joined, same_labels
from ..priors.masks import StrayLabelError
from ..registry import HOOKS
from .segmentation import (
    check_reduced,
    check_segmentation,
    counted_as,
    evaluated_label,
    lines_to_paste,
)
from .training_data import (
    EVALUATED,
    TRAINING,
    NoTrainingDataError,
    compare_labels,
    counts_of_training_data,
    metrics,
    names_of,
    names_of_training_data,
)


@HOOKS.register_module()
class ClassCountsHook(Hook):
    """Fills ``class_counts='auto'`` of losses and metrics.

    Importing the package adds it to every ``Runner``; a config need not name
    it. Before training it counts the data set as the model will see it
    (:func:`~lt_losses_mm.priors.count_dataset`). In runs that only test,
    losses have their counts from the checkpoint. Metrics, whose groups are
    those of the data set itself, count it
    (:func:`~lt_losses_mm.priors.natural_counts`), or, on a machine without
    it, take what the checkpoint holds and say so.

    Counts that have names of their own are joined with the data by name, and
    data sets whose labels are other classes are an error.
    """

    # Before EMAHook (NORMAL) copies the model, so that both copies have
    # buffers of one size.
    priority = 'VERY_HIGH'
    _names: tuple[str, ...] | None = None  # of the labels in training
    _resumed: tuple[str, ...] | None = None  # of those of the checkpoint

    def before_run(self, runner: Runner) -> None:
        """Fill before hooks that copy the model."""
        self._counts: dict[Any, ClassCounts] = {}
        if losses(runner):
            check_reduced(runner.cfg)
        if not is_training(runner):
            return
        if losses(runner) or metrics(runner._val_loop):
            self._names = names_of_training_data(runner)
        if losses(runner):
            check_segmentation(runner)
            names = self._names
            for _, loss in losses(runner):
                counts = loss.known_counts
                # Where transforms make other classes of them, the names of
                # the data say nothing of the counts.
                if counts and names and len(names) == counts.num_classes:
                    loss.set_class_counts(joined(counts, names, TRAINING))
            compare_labels(names, runner._val_loop)
            self._fill_losses(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Save the names; those of ``metainfo`` may have another order."""
        if self._names:
            checkpoint['meta']['label_names'] = self._names

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep the names: the counts in a checkpoint have none."""
        self._resumed = checkpoint.get('meta', {}).get('label_names')
        if not is_training(runner):
            self._names = self._resumed

    def before_train(self, runner: Runner) -> None:
        """Fill again: a checkpoint may have brought another data set's."""
        if runner.iter:  # else it is fine-tuned, to whatever classes
            same_labels(
                self._resumed,
                'the data that the checkpoint was trained with',
                self._names,
                TRAINING,
            )
        self._fill_losses(runner)
        self._fill_metrics(runner, runner._val_loop)

    def before_val(self, runner: Runner) -> None:
        self._fill_metrics(runner, runner._val_loop)

    def before_test(self, runner: Runner) -> None:
        self._fill_metrics(runner, runner._test_loop)

    def _fill_losses(self, runner: Runner) -> None:
        for name, loss in losses(runner):
            if not loss.auto_counts:
                continue
            how = counted_as(runner.model, loss)
            key = tuple(how.values())
            if key not in self._counts:
                self._counts[key] = _count(runner, **how)
            counts, before = self._counts[key], loss.class_counts
            loss.set_class_counts(counts)
            if before.numel() == 0:
                runner.logger.info(
                    f"{name}: class_counts='auto' filled from {counts.source} "
                    f'({counts.num_classes} classes, unit {counts.unit}, '
                    f'{counts.counts.min():g} to {counts.counts.max():g})'
                )
                empty = empty_classes(counts)
                if empty:
                    runner.logger.warning(f'{name}: {empty}')
            elif not before.equal(loss.class_counts):
                runner.logger.info(
                    f'{name}: class counts of the checkpoint replaced by '
                    'those of the training data'
                )

    def _fill_metrics(self, runner: Runner, loop: Any) -> None:
        compare_labels(self._names, loop)
        for metric in metrics(loop):
            if getattr(metric, 'ignore_index', 0) is None:
                metric.ignore_index = evaluated_label(runner.model)
            counts, names = metric.class_counts, names_of(loop)
            if isinstance(counts, str):
                counts = self._natural_counts(runner, metric.count_unit, names)
                compare_labels(counts.names, loop)
            elif counts is not None:
                # The model has the labels of the training data.
                counts = joined(counts, self._names or names, EVALUATED)
            if counts is not None:
                metric.set_class_counts(counts)
                metric.names_are_compared = True

    def _natural_counts(
        self,
        runner: Runner,
        unit: str | None,
        evaluated: tuple[str, ...] | None = None,
    ) -> ClassCounts:
        try:
            ignored = evaluated_label(runner.model)
            return _count(runner, unit, as_drawn=False, ignore_index=ignored)
        except NoTrainingDataError as error:
            # A machine that only tests: the checkpoint knows what was drawn.
            scope = runner.cfg.get('default_scope', '')
            usual = {h.name: h.count_unit for h in HOSTS}.get(scope, 'image')
            unit = unit or usual
            for name, loss in losses(runner):
                known, names = loss.class_counts.numel(), self._names
                counted = counted_as(runner.model, loss)['unit'] or usual
                if known and unit == counted:
                    runner.logger.warning(
                        f'{error} Metrics take their groups from the class '
                        f'counts of {name} in the checkpoint, which are those '
                        'of the training data as they were sampled.'
                    )
                    if loss.known_counts and not loss.auto_counts:
                        # In the order of their file: nothing was trained.
                        return joined(
                            loss.known_counts, names or evaluated, TRAINING
                        )
                    return ClassCounts(
                        loss.class_counts.double().cpu().numpy(),
                        unit,
                        names if names and len(names) == known else None,
                        f'{name} in the checkpoint',
                    )
            raise


def _count(runner: Runner, *args: Any, **kwargs: Any) -> ClassCounts:
    try:
        return counts_of_training_data(runner, *args, **kwargs)
    except StrayLabelError as error:
        if len(error.labels) > 1 or not is_training(runner):
            raise
        # It may be the label of pixels without a class.
        lines = lines_to_paste(runner, error.labels[0])
        message = str(error).rstrip('.') + lines
        raise StrayLabelError(message, error.labels) from None


def is_training(runner: Runner) -> bool:
    """Whether the run trains, rather than validates or tests alone."""
    loop = runner._train_loop
    return loop is not None and not isinstance(loop, dict)


def losses(runner: Runner) -> list[tuple[str, LongTailLoss]]:
    """All losses of ours in the model, with their names."""
    return [
        (name, module)
        for name, module in runner.model.named_modules()
        if isinstance(module, LongTailLoss)
    ]
