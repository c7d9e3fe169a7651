# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Advice says what comparable rows show, and no more."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip('pandas')
pytest.importorskip('scikit_posthocs')
pytest.importorskip('yaml')

import yaml
from synthetic import row, runs

from lt_losses_mm.losses import LOSSES
from lt_losses_mm.priors import ClassCounts
from lt_losses_mm.sweeps.comparison import BETTER, UNDECIDED, WORSE
from lt_losses_mm.sweeps.recommend import Advice, config_line, recommend

CE = [80.0, 80.5, 79.5, 80.2, 79.8]


class Head(NamedTuple):
    type: str = 'LinearClsHead'
    kind: str = 'softmax'
    loss: str = 'CrossEntropyLoss'


def tail_of(classes: int, factor: float) -> ClassCounts:
    return ClassCounts(np.geomspace(100 * factor, 100, classes))


def ledger(
    values: dict[str, list[float]], counts: ClassCounts, **common: Any
) -> list[dict[str, str]]:
    """Overall and tail of methods, and the counts of the data."""
    return [
        *runs(values, **common),
        *(
            row(
                method=m,
                seed=s,
                value=2 * v,
                role='tail',
                metric='t',
                **common,
            )
            for m, found in values.items()
            for s, v in enumerate(found)
        ),
        *(
            row(role='count', metric='c', label=f'c{i}', value=v, **common)
            for i, v in enumerate(counts.counts)
        ),
    ]


OWN = tail_of(50, 100)
FIVE = {
    'cross_entropy': CE,
    'balanced_softmax': [v + 5 for v in CE],
    'equalization_softmax': [v - 5 for v in CE],
    'softmax_equalization': [v + 0.1 for v in CE],
}


def advice(rows: list[dict[str, str]], **changes: Any) -> Advice:
    facts = dict(counts=OWN, host='mmpretrain', head=Head(), rows=rows)
    return recommend(**{**facts, **changes})


def test_five_runs_of_comparable_data_recommend() -> None:
    found = advice(ledger(FIVE, tail_of(40, 100)))
    assert found.enough
    assert found.plan == ''
    first, second, last = found.suggestions
    assert (first.method, first.verdict) == ('balanced_softmax', BETTER)
    assert first.line == "loss=dict(type='lt_losses_mm.BalancedSoftmaxLoss'),"
    assert first.gain.mean == pytest.approx(5)
    assert first.gain.low < 5 < first.gain.high
    assert first.tail.mean == pytest.approx(10)
    assert first.cost == pytest.approx(1)
    assert 'one data set' in first.spread
    assert (second.method, second.verdict) == (
        'softmax_equalization',
        UNDECIDED,
    )
    assert (last.method, last.verdict) == ('equalization_softmax', WORSE)
    assert first.rows == (
        'classification: balanced_softmax (seeds 0, 1, 2, 3 and 4) and '
        'cross_entropy (seeds 0, 1, 2, 3 and 4), better',
    )
    text = str(found)
    assert '1. balanced_softmax: better, overall +5.0 (+' in text
    assert f'config: {first.line}' in text
    assert 'time of training: 1.00 times that of the baseline' in text
    assert second.line not in text


def test_four_runs_ask_for_a_plan() -> None:
    rows = ledger({m: v[:4] for m, v in FIVE.items()}, tail_of(40, 100))
    found = advice(rows, config='my "own" config.py')
    assert not found.enough
    assert {s.verdict for s in found.suggestions} == {UNDECIDED}
    assert 'Not enough evidence' in str(found)
    plan = yaml.safe_load(found.plan)
    assert plan == dict(
        name='own_data',
        seeds=[0, 1, 2, 3, 4],
        methods=['cross_entropy', 'balanced_softmax'],
        tasks=dict(
            own_data=dict(
                config='my "own" config.py',
                metrics=dict(
                    overall='accuracy/all',
                    head='accuracy/many',
                    middle='accuracy/medium',
                    tail='accuracy/few',
                ),
            )
        ),
    )


@pytest.mark.parametrize(
    ('counts', 'common', 'why'),
    [
        (tail_of(1203, 100), {}, 'another number of classes'),
        (tail_of(50, 5), {}, 'another imbalance'),
        (
            ClassCounts([*[10_000] * 45, *[100] * 5]),
            {},
            'another Gini coefficient',
        ),
        (OWN, dict(metric='iou/mIoU'), 'it is of mmseg and softmax'),
        (OWN, dict(metric='score'), 'it is of an unknown host and softmax'),
        (OWN, dict(baseline='vs'), 'its baseline has not finished'),
    ],
)
def test_what_is_not_comparable_is_not_used(
    counts: ClassCounts, common: dict[str, str], why: str
) -> None:
    if 'metric' in common:
        rows = runs(FIVE, **common)
    else:
        rows = ledger(FIVE, counts, **common)
    found = advice(rows)
    assert not found.enough
    assert found.suggestions == ()
    assert why in str(found)
    # What the documentation would try first.
    assert yaml.safe_load(found.plan)['methods'] == [
        'cross_entropy',
        'balanced_softmax',
    ]


def test_rows_without_counts_and_heads_with_queries() -> None:
    assert 'have no counts of classes' in str(advice(runs(FIVE)))
    rows = runs(FIVE, metric='lvis/bbox_AP')
    found = advice(rows, host='mmdet', head=Head('DETRHead'))
    assert 'queries as DETRHead has' in str(found)
    assert not found.suggestions


def test_several_tasks_are_the_sample() -> None:
    rows = ledger(FIVE, OWN, task='one') + ledger(
        {**FIVE, 'balanced_softmax': [v + 9 for v in CE]}, OWN, task='two'
    )
    first = advice(rows).suggestions[0]
    assert first.gain.mean == pytest.approx(7)
    # 2 tasks: s = 2.8284, t = 12.706.
    assert first.gain.half == pytest.approx(12.7062 * 2, rel=1e-4)
    assert first.spread == '2 tasks'
    assert len(first.rows) == 2


def test_worse_in_one_task_is_not_recommended() -> None:
    rows = ledger(FIVE, OWN, task='one') + ledger(
        {**FIVE, 'balanced_softmax': [v - 5 for v in CE]}, OWN, task='two'
    )
    found = advice(rows)
    assert not found.enough
    methods = yaml.safe_load(found.plan)['methods']
    assert methods == ['cross_entropy', 'softmax_equalization']


def test_changed_code_is_said() -> None:
    found = advice(ledger(FIVE, OWN, code='unrecorded='))
    assert 'The code of rows of classification was not rec' in str(found)
    assert 'has changed since' not in str(found)
    found = advice(ledger(FIVE, OWN, code='losses=0'))
    assert 'The code of losses has changed since' in str(found)


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        (dict(counts=tail_of(50, 1.5)), 'next to nothing to correct'),
        (dict(head=Head('MoCoV3Head')), 'no loss fits'),
        (dict(head=Head(kind='ours')), "config with the host's own loss"),
        (dict(host='mmengine'), 'Not enough evidence'),
    ],
)
def test_nothing_to_recommend(changes: dict[str, Any], words: str) -> None:
    found = advice(ledger(FIVE, OWN), **changes)
    assert not found.enough
    assert words in str(found)
    assert found.suggestions == ()
    assert found.plan == ''


def test_post_hoc_needs_a_checkpoint() -> None:
    rows = ledger({'cross_entropy': CE[:3], 'post_hoc': [90, 91, 92]}, OWN)
    plan = yaml.safe_load(advice(rows).plan)
    assert plan['define']['post_hoc'] == dict(
        needs=dict(load_from='cross_entropy'),
        test=True,
        hooks=[dict(type='lt_losses_mm.PostHocLogitAdjustmentHook')],
    )


@pytest.mark.parametrize(
    ('host', 'metric', 'head'),
    [
        ('mmpretrain', 'accuracy/all', Head()),
        ('mmpretrain', 'accuracy/all', Head(loss='LabelSmoothLoss')),
        ('mmdet', 'ap/all', Head('ATSSHead', 'focal', 'FocalLoss')),
        ('mmdet', 'ap/all', Head('X', 'focal', 'OtherFocalLoss')),
        ('mmdet', 'ap/all', Head('GFLHead', 'quality', 'QualityFocalLoss')),
        ('mmdet', 'ap/all', Head('VFNetHead', 'quality', 'VarifocalLoss')),
        ('mmseg', 'iou/mIoU', Head('FCNHead', 'sigmoid')),
    ],
)
def test_rows_of_the_printed_plan_are_used(
    host: str, metric: str, head: Head
) -> None:
    # A head whose best rows are of a loss that several kinds take.
    rows = ledger({'cross_entropy': CE[:3], 'post_hoc': [90, 91, 92]}, OWN)
    found = advice(rows, host=host, head=head)
    plan = yaml.safe_load(found.plan)
    base, method = plan['methods']
    assert (base == 'own_loss') == ('own_loss' in plan.get('define', {}))
    values = {base: CE, method: [v + 5 for v in CE]}
    rows = ledger(values, OWN, baseline=base)
    for one in rows:
        if one['role'] == 'overall':
            one['metric'] = metric
    found = advice(rows, host=host, head=head)
    assert [s.method for s in found.suggestions] == [method], str(found)
    assert found.enough


def test_a_baseline_of_any_name_is_known_by_the_losses_beside_it() -> None:
    def why(*methods: str) -> str:
        rows = ledger(
            {'mine': CE, **dict.fromkeys(methods, CE)}, OWN, baseline='mine'
        )
        return str(advice(rows))

    assert 'an unknown kind of head' in why('other')
    assert 'an unknown kind of head' in why('equalized_focal', 'equalization')
    assert 'of mmpretrain and focal' in why('equalized_focal')
    assert 'digits-lt): comparable' in why('balanced_softmax[tau=2]', 'other')
    assert 'digits-lt): comparable' in why('equalization', 'vs')


def test_a_test_is_no_short_training() -> None:
    values = {'cross_entropy': CE, 'post_hoc': [v + 5 for v in CE]}
    rows = ledger(values, OWN)
    for one in rows:
        one['seconds'] = '1' if one['method'] == 'post_hoc' else '50'
    rows.append(row(role='loss', metric='loss', value=1, last=0, seconds=50))
    (found,) = advice(rows).suggestions
    assert found.tested
    assert 'time of training: none of its own, test only' in str(found)


def test_every_loss_has_a_line() -> None:
    names = (
        'balanced_softmax',
        'balanced_sigmoid',
        'equalization',
        'equalization_softmax',
        'seesaw',
        'softmax_equalization',
        'sigmoid_equalization',
        'equalized_focal',
        'equalized_quality_focal',
        'vs',
    )
    lines = [config_line(name, 'mmseg') for name in names]
    for line, loss in zip(lines, LOSSES):
        assert line.startswith('loss_decode=dict(type=')
        assert f"'lt_losses_mm.{loss.__name__}'" in line
    assert 'use_sigmoid=True' in lines[1]
    assert 'use_sigmoid' not in lines[0]
    assert config_line('balanced_softmax_objectness', 'mmdet') == ''
