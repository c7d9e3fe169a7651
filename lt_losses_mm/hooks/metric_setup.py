# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Looks at what a run evaluates, before it starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Iterator, Mapping

from mmengine.dist import master_only
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner

from ..compat import patch_lvis
from ..messages import fault, logger
from ..metrics.base import FrequencyMetric
from ..priors import ClassCounts, natural_counts
from ..priors.names import check_class_key
from ..registry import HOOKS
from .training_data import names_of

# What the package lvis reads of each entry, beside what COCO files have.
_LVIS_FIELDS = dict(
    images=('neg_category_ids', 'not_exhaustive_category_ids'),
    categories=('frequency',),
)


@HOOKS.register_module()
class MetricSetupHook(Hook):
    """Says at the start what an evaluation would say after an epoch.

    Importing the package adds it to every ``Runner``. It refuses metrics
    that need class names where the data have none, LVIS's metrics on a file
    without LVIS's fields, and a ``save_best`` or ``monitor`` that our metrics
    will not report. It mends the package ``lvis``
    (:func:`lt_losses_mm.compat.patch_lvis`) if an evaluator has imported it.

    Lists that a metric reports (``per_class=True``) are no scalars, so
    MMEngine's log leaves them out: they are kept in ``class_values.json`` of
    the run, a line an evaluation.
    """

    def before_run(self, runner: Runner) -> None:
        """Look once the evaluators are built."""
        patch_lvis()
        for mode in ('val', 'test'):
            loop = getattr(runner, f'_{mode}_loop')
            if loop is None or isinstance(loop, dict):
                continue
            owner = f'{mode}_evaluator'
            configs = runner.cfg.get(owner)
            if not isinstance(configs, list):
                configs = [configs] * len(loop.evaluator.metrics)
            for metric, config in zip(loop.evaluator.metrics, configs):
                if isinstance(metric, FrequencyMetric):
                    metric.label_names = names_of(loop)
                    metric.check_run(runner.model, loop.dataloader.dataset)
                _check_names_are_there(metric, f'{mode}_dataloader')
                _check_lvis_fields(metric, config, owner)

    def before_train(self, runner: Runner) -> None:
        """Compare keys, now that ClassCountsHook has formed the groups."""
        loop = runner._val_loop
        if loop is None or isinstance(loop, dict):
            return
        for owner, key in _watched(runner):
            _check_key(owner, key, loop)

    @master_only
    def after_val_epoch(
        self, runner: Runner, metrics: dict[str, float] | None = None
    ) -> None:
        """Keep what has a value for each class."""
        lists = {k: v for k, v in (metrics or {}).items() if type(v) is list}
        if lists:
            by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
            step = runner.epoch if by_epoch else runner.iter
            file = Path(runner.log_dir, 'class_values.json')
            with open(file, 'a', encoding='utf-8') as out:
                out.write(json.dumps({'step': step, **lists}) + '\n')


def _check_names_are_there(metric: BaseMetric, owner: str) -> None:
    """Raise if a metric reads class names that the data do not have."""
    meta = metric.dataset_meta
    if not isinstance(meta, Mapping):
        return
    check_class_key(meta, owner)
    code = [
        getattr(getattr(type(metric), name), '__code__', None)
        for name in ('process', 'compute_metrics')
    ]
    reads = any(
        c is not None
        and 'dataset_meta' in c.co_names
        and 'classes' in c.co_consts
        and 'get' not in c.co_names  # which copes without
        for c in code
    )
    if reads and not meta.get('classes'):
        raise fault(
            'metainfo',
            dict(meta),
            f"a key 'classes', whose names {type(metric).__name__} reads",
            "metainfo=dict(classes=('...', '...')) in the data set",
            owner,
        )
    if isinstance(metric, FrequencyMetric) and meta.get('classes'):
        metric.check_names()


def _check_lvis_fields(metric: BaseMetric, config: Any, owner: str) -> None:
    """Raise if LVIS's evaluation would miss fields of its file."""
    content = getattr(getattr(metric, '_lvis_api', None), 'dataset', {})
    for part, fields in _LVIS_FIELDS.items():
        missing = [
            field
            for field in fields
            if any(field not in entry for entry in content.get(part, ()))
        ]
        if missing:
            raise fault(
                'ann_file',
                config.get('ann_file') if isinstance(config, dict) else None,
                "a file with LVIS's fields (neg_category_ids and "
                'not_exhaustive_category_ids of each image, frequency f, c '
                f'or r of each category), but {part} have no '
                f'{" and no ".join(missing)}',
                "take type='lt_losses_mm.FrequencyGroupAP' with the same "
                'ann_file, which needs COCO fields alone',
                f'{type(metric).__name__} of {owner}',
            )


def _watched(runner: Runner) -> Iterator[tuple[str, str]]:
    """What a run asks its evaluation for: owner and key."""
    schedulers = runner.param_schedulers
    if not isinstance(schedulers, list):
        schedulers = []
    for one in [*runner.hooks, *schedulers]:
        for option in ('save_best', 'monitor'):
            keys = getattr(one, option, None)
            for key in keys if isinstance(keys, list) else [keys]:
                if isinstance(key, str) and key not in ('auto', 'loss'):
                    yield f'{option} of {type(one).__name__}', key


def _check_key(owner: str, key: str, loop: Any) -> None:
    """Raise if no metric can report a key that the run asks for."""
    metrics = loop.evaluator.metrics
    ours = [
        metric
        for metric in metrics
        if isinstance(metric, FrequencyMetric) and metric.overall
    ]
    known = [known for metric in ours for known in metric.keys()]
    reason = ''
    prefix, _, name = key.rpartition('/')
    for metric in ours:
        if prefix == metric.prefix and name in metric.group_names:
            reason = _why_missing(metric, name, loop.dataloader.dataset)
    if key in known and not reason:
        return
    if not reason and (not ours or len(ours) < len(metrics)):
        return  # Of another metric, which alone knows its keys.
    raise fault(
        owner,
        key,
        f'one of {", ".join(known)}{reason and "; " + reason}',
        'choose one of these'
        + (', or other thresholds of the metric' if reason else ''),
    )


def _why_missing(metric: FrequencyMetric, name: str, dataset: Any) -> str:
    """Why a group will have nothing to average, if so."""
    counts = metric.class_counts
    if not isinstance(counts, ClassCounts):
        return 'class_counts=None gives no groups'
    group = metric.members[name]
    if not len(group):
        return (
            f'no class is {name} by its training {counts.unit} count '
            f'({metric.sizes()})'
        )
    if metric.count_unit != 'image':
        return ''  # IoU counts predictions as well; masks take their time.
    try:
        there = natural_counts(
            dataset, num_classes=counts.num_classes, unit='image'
        ).counts
    except (ValueError, RuntimeError) as error:  # the latter of other ranks
        logger.warning(
            f'Whether the validation data have {name} classes will be seen '
            f'in the evaluation: {error}'
        )
        return ''
    if there[group].any():
        return ''
    return f'no class that is {name} has a sample in the validation data'
