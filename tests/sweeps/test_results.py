# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Which trials of a ledger count, and what their values are."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import pytest

pytest.importorskip('pandas')

from synthetic import row, runs

from lt_losses_mm.sweeps import ledger, origin
from lt_losses_mm.sweeps.results import needed, read


def test_values_by_method_role_and_seed() -> None:
    rows = [
        *runs({'ce': [1, 2, 3], 'bs': [4, 5]}, baseline='ce'),
        *(
            row(method='bs', seed=1, baseline='ce', **values)
            for values in (
                dict(role='tail', metric='accuracy/few', value=9),
                # An earlier evaluation, and a value that no role has.
                dict(step=10, last=0, value=100),
                dict(role='', metric='accuracy/ece', value=0.1),
            )
        ),
    ]
    (task,) = read(rows).tasks
    assert task.baseline == 'ce'
    assert task.methods == ('ce', 'bs')
    assert task.values('ce') == [1, 2, 3]
    assert task.values('bs') == [4, 5]
    assert task.values('bs', 'tail') == [9]
    assert task.values('no such method') == []
    assert task.metric('tail') == 'accuracy/few'
    assert task.metric('head') == ''


def test_a_file_and_its_rows_are_read_alike(tmp_path: Path) -> None:
    rows = runs({'ce': [1.5, 2.5], 'a, "b"\n': [3, 4]})
    path = tmp_path / 'ledger.csv.gz'
    ledger.write(path, rows)
    (one,), (other,) = read(path).tasks, read(rows).tasks
    assert one.finals.equals(other.finals)
    assert one.methods == ('ce', 'a, "b"\n')


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='at least one row'):
        read([])
    with pytest.raises(ValueError, match=r'no\.csv.*sweep run PLAN'):
        read(tmp_path / 'no.csv')


def test_a_finished_trial_counts_before_a_failed_one() -> None:
    failed = dict(status='failed', metric='', role='', note='out of memory')
    found = read(
        [
            row(seed=0, trial='a', value=1),
            row(seed=0, trial='b', **failed),
            row(seed=1, trial='c', **failed),
        ]
    )
    (task,) = found.tasks
    assert list(task.trials['trial']) == ['a', 'c']
    assert task.values('cross_entropy') == [1]
    assert found.superseded == 1


def test_the_present_code_counts_before_what_is_later() -> None:
    old, now = 'hooks=0123456789ab', origin.code([])
    found = read(
        [
            row(trial='a', code=now, value=1),
            row(trial='b', code=old, value=2),
            row(seed=1, trial='c', code=old, value=3),
            row(seed=1, trial='d', code=old, value=4),
        ]
    )
    (task,) = found.tasks
    assert task.values('cross_entropy') == [1, 4]
    assert dict(task.trials.set_index('trial')['changed']) == {
        'a': '',
        'd': 'hooks',
    }


def test_values_that_are_no_numbers_are_missing() -> None:
    (task,) = read(runs({'ce': ['nan', 'inf', '', 5]}, baseline='ce')).tasks
    assert task.values('ce') == [5]
    assert len(task.finals) == 4


def test_classes_are_in_the_order_of_their_counts() -> None:
    rows = [
        row(role=role, metric=role, label=name, method=method, value=value)
        for method in ('ce', 'bs')
        for role, values in (
            ('class', {'rare': 1, 'often': 3}),
            ('count', {'rare': 5, 'often': 500}),
        )
        for name, value in values.items()
    ]
    rows.append(
        row(
            role='class', label='rare', method='bs', seed=1, value=2, metric=''
        )
    )
    (task,) = read(rows).tasks
    assert list(task.counts().index) == ['often', 'rare']
    assert task.classes()['bs'].to_dict() == {'often': 3, 'rare': 1.5}


def test_curves_have_the_steps_of_all_runs() -> None:
    rows = [
        row(
            role='loss', metric='loss', seed=seed, step=step, value=step + seed
        )
        for seed, steps in ((0, (1, 2, 3)), (1, (1, 2)))
        for step in steps
    ]
    (task,) = read(rows).tasks
    assert task.curve('cross_entropy', 'loss').to_dict() == {1: 1.5, 2: 2.5}
    assert not len(task.curve('cross_entropy', 'tail'))


def test_gradient_ratios_are_of_the_first_loss() -> None:
    rows = [
        row(
            role='',
            step=7,
            metric=f'statistics/{name}/ratio_tail',
            value=value,
        )
        for name, value in (('a', 0.5), ('b', 3))
    ]
    (task,) = read(rows).tasks
    assert task.ratio('cross_entropy', 'tail').to_dict() == {7: 0.5}
    assert not len(task.ratio('cross_entropy', 'head'))


def test_a_task_in_which_all_failed() -> None:
    (task,) = read([row(status='failed', metric='', role='', step='')]).tasks
    assert task.methods == ()
    assert math.isnan(task.trials['last_step'].iloc[0])


def test_baselines_come_first() -> None:
    rows = runs({'bs': [1], 'ce': [1]}, baseline='ce')
    rows += runs({'efl': [1], 'focal': [1]}, baseline='focal', task='dense')
    assert read(rows).methods == ('ce', 'focal', 'bs', 'efl')


def test_a_missing_package_is_named(monkeypatch) -> None:
    def refuse(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, 'import_module', refuse)
    with pytest.raises(
        ImportError, match=r"import='scipy.stats'.*mm-lt-losses\[sweeps\]"
    ):
        needed('scipy.stats')
