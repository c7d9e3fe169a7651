"""Hours and disk that a plan will take, before it is run."""

from __future__ import annotations

import json

import pytest
from mmengine.config import Config

from lt_losses_mm.recipes import losses
from lt_losses_mm.sweeps import ledger, progress, timing, worker
from lt_losses_mm.sweeps.plan import Plan
from lt_losses_mm.sweeps.timing import (
    Cost,
    Costs,
    check_disk,
    checkpoints_kept,
    remaining_seconds,
)
from lt_losses_mm.sweeps.trial import trials_of

PLAN = """
name: toy
seeds: [0, 1]
methods: [plain, later]
tasks:
  first: &task
    config: config.py
    metrics: {overall: accuracy/all}
  second: *task
define:
  plain: {}
  later: {needs: {load_from: plain}, test: true}
"""


@pytest.fixture
def trials(tmp_path):
    """Of two tasks, of which one was timed."""
    (tmp_path / 'config.py').write_text('model = dict()\n')
    (tmp_path / 'plan.yaml').write_text(PLAN)
    plan = Plan(tmp_path / 'plan.yaml', losses())
    found, _ = trials_of(plan, tmp_path / 'work')
    (tmp_path / 'work').mkdir()
    (tmp_path / 'work' / 'timed.json').write_text(
        json.dumps({found[0].key: [60.0, 1024.0]})
    )
    return found


@pytest.mark.parametrize(
    'hook, loop, kept',
    [
        # As mmdet's configs have it: one each epoch.
        (dict(interval=1), dict(max_epochs=24), 24),
        (dict(interval=1, max_keep_ckpts=1), dict(max_epochs=24), 1),
        (dict(interval=5), dict(max_epochs=24), 5),
        (dict(interval=16000, by_epoch=False), dict(max_iters=160000), 10),
        (dict(interval=1, max_keep_ckpts=3), dict(max_epochs=2), 2),
        (
            dict(interval=1, max_keep_ckpts=1, save_best='auto'),
            dict(max_epochs=8),
            2,
        ),
        (dict(), dict(max_epochs=24), 1),
        (
            dict(interval=9, max_keep_ckpts=1, save_best=['a', 'b']),
            dict(max_epochs=9),
            3,
        ),
    ],
)
def test_checkpoints_kept(hook, loop, kept):
    hooks = dict(checkpoint=hook)
    cfg = Config(dict(default_hooks=hooks, train_cfg=loop))
    assert checkpoints_kept(cfg) == kept


@pytest.mark.parametrize(
    'eta, seconds',
    [
        ('0:00:05', 5),
        ('1:02:03', 3723),
        ('1 day, 0:00:01', 86401),
        ('12 days, 1:00:00', 12 * 86400 + 3600),
    ],
)
def test_what_the_log_says(tmp_path, eta, seconds, trials):
    line = 'Epoch(train) [1][ 2/40]  lr: 1  eta: {}  time: 2.0  loss: 1.0\n'
    trials[0].folder.mkdir(parents=True)
    (trials[0].folder / worker.LOG).write_text(
        line.format('9:99:99') + line.format(eta)
    )
    assert remaining_seconds(trials[0].folder) == seconds
    assert progress.position(trials[0], 'accuracy/all').eta == eta


def test_no_log(tmp_path):
    assert remaining_seconds(tmp_path) is None


def test_what_was_timed_is_of_its_task(trials, tmp_path):
    costs = Costs(tmp_path / 'ledger.csv', trials)
    assert {(t.task, t.method): costs.of(t) for t in trials} == {
        ('first', 'plain'): Cost(60, 1024),
        # A test takes next to nothing.
        ('first', 'later'): Cost(0, 0),
        ('second', 'plain'): None,
        ('second', 'later'): None,
    }
    assert Costs(tmp_path / 'ledger.csv', trials[1:]).of(trials[0]) is None


def test_rows_tell_what_they_know(trials, tmp_path):
    """A row of an older benchmark has no disk, or no time either."""
    row = dict.fromkeys(ledger.COLUMNS, '')
    row.update(schema='1', status='done', task='second', role='overall')
    row.update(method='plain', last='1')
    rows = [
        dict(row, trial='a', seconds='30'),
        dict(row, trial='b', seconds='90'),
        dict(row, trial='c', seconds=''),
    ]
    ledger.write(tmp_path / 'ledger.csv', rows)
    plain = next(t for t in trials if str(t) == 'second/plain/0')
    found = Costs(tmp_path / 'ledger.csv', trials)
    assert found.of(plain) == Cost(60, None)
    check_disk(trials, tmp_path / 'ledger.csv')
    table = progress.costs_of(trials, found)
    cells = [list(column.cells) for column in table.columns]
    assert cells == [
        ['first', 'second', 'sum'],
        ['4', '4', '8'],
        ['2 min', '4 min', '6 min'],
        ['2 GB', 'unknown', '2 GB and more'],
    ]
    rows[0]['disk_mb'] = '512'
    ledger.write(tmp_path / 'ledger.csv', rows)
    assert Costs(tmp_path / 'ledger.csv', trials).of(plain) == Cost(60, 512)


def test_a_disk_that_is_too_small(trials, tmp_path, monkeypatch):
    # Two trainings of 1 GB each.
    monkeypatch.setattr(timing, 'free_mb', lambda folder: 2048.0)
    check_disk(trials, tmp_path / 'ledger.csv')
    monkeypatch.setattr(timing, 'free_mb', lambda folder: 2047.0)
    with pytest.raises(ValueError, match='--folder=.*a disk with 2 GB free'):
        check_disk(trials, tmp_path / 'ledger.csv')
    # What is done takes no more, with its folder or without.
    row = dict.fromkeys(ledger.COLUMNS, '')
    row.update(schema='1', trial=trials[0].key, status='done')
    ledger.write(tmp_path / 'ledger.csv', [row])
    check_disk(trials, tmp_path / 'ledger.csv')
    (tmp_path / 'ledger.csv').unlink()
    trials[0].folder.mkdir(parents=True)
    (trials[0].folder / worker.DONE).write_text('{}')
    check_disk(trials, tmp_path / 'ledger.csv')


def test_free_disk_of_a_folder_to_be(tmp_path):
    assert timing.free_mb(tmp_path / 'a' / 'b') > 0


@pytest.mark.slow
def test_a_few_iterations_tell(toy):
    toy.config.write_text(toy.config.read_text().replace('0.05', '1.0'))
    status, said = toy.run('--dry-run', '--only', 'first')
    assert status == 0
    assert 'unknown' in said
    status, said = toy.run('--dry-run', '--only', 'first', '--time-steps', '2')
    assert status == 0, said
    assert 'timing first/plain/0, 2 iterations' in said
    assert 'unknown' not in said
    work = toy.folder / 'work_dirs' / 'toy'
    ((seconds, disk),) = json.loads((work / 'timed.json').read_text()).values()
    # A second is left of it, by its log, and one checkpoint is kept.
    assert seconds > 1
    assert disk == 0.1
    # One training was begun, and nothing is left of it.
    assert len(toy.started()) == 1
    assert not list(work.rglob('*.pth'))
    assert not toy.ledger.exists()
    status, said = toy.run('--dry-run', '--only', 'first')
    assert 'unknown' not in said
    assert len(toy.started()) == 1


@pytest.mark.slow
def test_what_cannot_be_timed_is_said(toy):
    toy.config.write_text(toy.config.read_text().replace('good', 'crash'))
    status, said = toy.run('--dry-run', '--only', 'first', '--time-steps', '3')
    assert status == 0
    assert 'first/plain/0 cannot be timed: exit status 1: RuntimeErr' in said
    assert 'unknown' in said
