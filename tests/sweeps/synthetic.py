# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Ledgers that no training was needed for."""

from __future__ import annotations

import functools
import math
from typing import Any, Iterator, Mapping, Sequence

import numpy as np

from lt_losses_mm.sweeps.ledger import COLUMNS, SCHEMA

HOSTILE = (
    '<script>document.title="broken"</script>',
    '</style><img src=x onerror=alert(1)>',
    'a "quoted" & \'single\' | pipe',
    '=1+1',
    'tab\tand\nline',
    '\u732b \u0642\u0637 $x^2$ {{ 7 * 7 }}',
    '',
)
METRICS = dict(
    classification=('accuracy/all', 'accuracy/{}'),
    detection=('lvis/bbox_AP', 'lvis/bbox_AP {}'),
    dense_detection=('lvis/bbox_AP', 'lvis/bbox_AP {}'),
    segmentation=('iou/mIoU', 'iou/{}'),
)


def row(**values: Any) -> dict[str, str]:
    """A row of a ledger; what is not given is what it mostly is."""
    base = dict.fromkeys(COLUMNS, '') | dict(
        schema=SCHEMA,
        task='classification',
        dataset='digits-lt',
        method='cross_entropy',
        seed=0,
        baseline='cross_entropy',
        status='done',
        step=20,
        last=1,
        metric='accuracy/all',
        role='overall',
        seconds=60,
        memory_mb=900,
        disk_mb=3,
        versions='python=3.11.7 torch=2.14.1',
        machine='cpu, 2 cores',
        threads=2,
        commit='abc1234',
    )
    base |= values
    name = '{task}/{method}/{seed}'.format(**base)
    base['trial'] = values.get('trial', name)
    base['command'] = f"sweep run plan.yml --only '{name}'"
    return {key: str(base[key]) for key in COLUMNS}


def runs(
    values: Mapping[str, Sequence[float]], **common: Any
) -> list[dict[str, str]]:
    """The overall values of methods, a run a value."""
    return [
        row(method=method, seed=seed, value=value, **common)
        for method, found in values.items()
        for seed, value in enumerate(found)
    ]


def whole(
    tasks: Sequence[str],
    methods: Sequence[str],
    seeds: int,
    classes: Sequence[str],
    rng: np.random.Generator,
    gains: Mapping[str, float] | None = None,
) -> Iterator[dict[str, str]]:
    """All that a sweep writes: curves, classes, gradient ratios, cost."""
    counts = np.geomspace(1000, 2, len(classes)).round()
    rank = np.linspace(0, 1, len(classes))
    for t, task in enumerate(tasks):
        overall, group = METRICS.get(task, ('score', 'score {}'))
        for m, method in enumerate(methods):
            gain = (gains or {}).get(method, 0.8 * m % 5 - 1)
            for seed in range(seeds):
                common = dict(
                    task=task,
                    method=method,
                    seed=seed,
                    baseline=methods[0],
                    seconds=round(60 + 5 * m + rng.normal(), 1),
                    memory_mb=900 + 10 * m,
                )
                noise = rng.normal(0, 0.7)
                for step in range(2, 21, 2):
                    done = 1 - math.exp(-step / 6)
                    for role, shift, share in (
                        ('overall', 0.0, 1.0),
                        ('head', 20.0, -0.4),
                        ('middle', 3.0, 0.9),
                        ('tail', -25.0, 2.5),
                    ):
                        value = 50 + 5 * t + shift + share * gain + noise
                        yield row(
                            **common,
                            step=step,
                            last=int(step == 20),
                            metric=overall
                            if role == 'overall'
                            else group.format(role),
                            role=role,
                            value=round(value * done, 4),
                        )
                for step in range(1, 200, 4):
                    yield row(
                        **common,
                        step=step,
                        last=0,
                        metric='loss',
                        role='loss',
                        value=round(4 * math.exp(-step / 60) + 0.1 * m, 4),
                    )
                    if m % 3 == 2:
                        for third, at in (
                            ('head', 1.0),
                            ('body', 0.3),
                            ('tail', 0.02),
                        ):
                            yield row(
                                **common,
                                step=step,
                                last=0,
                                role='',
                                metric=f'statistics/head.loss/ratio_{third}',
                                value=at * (1 + step / 50),
                            )
                values = np.clip(
                    80 - 60 * rank + 3 * gain * rank + rng.normal(0, 6), 0, 100
                ) + rng.normal(0, 2, len(classes))
                for name, count, value in zip(classes, counts, values):
                    yield row(
                        **common,
                        metric='class',
                        role='class',
                        label=name,
                        value=round(float(value), 3),
                    )
                    yield row(
                        **common,
                        metric='count',
                        role='count',
                        label=name,
                        value=int(count),
                    )


LOSSES = (
    'cross_entropy',
    'balanced_softmax',
    'softmax_equalization',
    'vs',
    'seesaw',
    'equalization_softmax',
    'balanced_sigmoid',
    'sigmoid_equalization',
    'equalized_focal',
    'post_hoc',
    'balanced_softmax_background_prior',
    'equalization',
)


@functools.lru_cache(maxsize=None)
def four_tasks() -> list[dict[str, str]]:
    """Four tasks, twelve methods, three seeds, and what a report warns of."""
    rows = list(
        whole(
            tuple(METRICS),
            LOSSES,
            3,
            [f'class {i}' for i in range(40)],
            np.random.default_rng(0),
        )
    )
    more = np.random.default_rng(1)
    rows += [
        r
        for r in whole(
            ['classification'],
            LOSSES[:3],
            5,
            [f'class {i}' for i in range(40)],
            more,
        )
        if r['seed'] in ('3', '4')
    ]
    rows.append(
        row(
            task='segmentation',
            method='vs',
            seed=7,
            status='failed',
            metric='',
            role='',
            note='loss is NaN at step 12',
        )
    )
    rows.append(
        row(method='lonely', value=51, machine='gpu, 8 cores', step=10)
    )
    return rows


@functools.lru_cache(maxsize=None)
def hostile() -> list[dict[str, str]]:
    """As many classes as LVIS has, sixty trials, names that attack."""
    classes = [*HOSTILE, *(f'class {i}' for i in range(1203 - len(HOSTILE)))]
    methods = ('<script>alert(1)</script>', '$\\frac{1}{', *LOSSES)
    methods += tuple(f'method {i}' for i in range(6))
    return list(
        whole(
            ['<b>LVIS</b> & "more"'],
            methods,
            3,
            classes,
            np.random.default_rng(2),
        )
    )
