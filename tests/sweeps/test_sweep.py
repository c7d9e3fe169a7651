"""tools/sweep.py: what is run, what is kept, what is said."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lt_losses_mm.recipes import losses
from lt_losses_mm.sweeps import ledger, progress, results, worker
from lt_losses_mm.sweeps.plan import Plan
from lt_losses_mm.sweeps.sweep import FROM_WORKER, rows_of
from lt_losses_mm.sweeps.trial import trials_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
class TestRun:
    def test_from_nothing_and_again(self, toy):
        status, said = toy.run('--jobs', '2')
        assert status == 0, said
        assert '[12/12]' in said
        rows = ledger.read(toy.ledger)
        last = [r for r in rows if r['last'] == '1' and r['role'] == 'overall']
        assert len(last) == 12
        assert {r['baseline'] for r in last} == {'plain'}
        # A test of the model of `plain`, of the same seed: one more.
        found = {
            (r['task'], r['method'], r['seed']): float(r['value'])
            for r in last
        }
        assert all(
            found[task, 'later', seed] == found[task, 'plain', seed] + 1
            for task in ('first', 'second')
            for seed in '01'
        )
        assert len(toy.started()) == 12
        before = toy.ledger.read_bytes()
        status, said = toy.run()
        assert status == 0
        assert len(toy.started()) == 12
        assert toy.ledger.read_bytes() == before

    def test_every_evaluation_has_rows(self, toy):
        assert toy.run('--only', 'first/plain/0')[0] == 0
        rows = ledger.read(toy.ledger)
        overall = [r for r in rows if r['role'] == 'overall']
        assert [(r['step'], r['last']) for r in overall] == [
            ('1', '0'),
            ('2', '0'),
            ('3', '1'),
        ]
        loss = {r['step']: r['value'] for r in rows if r['role'] == 'loss'}
        assert loss == {'10': '1.0', '20': '0.5', '30': '0.33333'}
        assert 'first/plain/0' in rows[0]['command']

    def test_a_change_runs_what_it_concerns(self, toy):
        assert toy.run('--only', 'first')[0] == 0
        text = toy.plan.read_text()
        toy.plan.write_text(text.replace('lr: 0.2', 'lr: 0.3'))
        assert toy.run('--only', 'first')[0] == 0
        again = toy.started()[6:]
        assert len(again) == 2
        assert all('higher' in name for name in again)

    def test_failures_end_nothing(self, toy):
        toy.plan.write_text(
            toy.plan.read_text()
            .replace(
                'higher: {options: {lr: 0.2}}',
                'higher: {options: {behaviour: crash}}\n'
                '  nan: {options: {behaviour: nan}}\n'
                '  silent: {options: {behaviour: silent}}',
            )
            .replace('higher, later', 'higher, nan, silent, later')
        )
        status, said = toy.run('--only', 'first', '--jobs', '2')
        assert status == 1
        assert 'out of luck' in said
        rows = ledger.read(toy.ledger)
        done = {r['method'] for r in rows if r['status'] == 'done'}
        assert done == {'plain', 'later'}
        notes = {r['method']: r['note'] for r in rows if r['note']}
        assert notes['higher'].endswith('RuntimeError: out of luck')
        assert 'loss is nan' in notes['nan']
        assert 'has no accuracy/all; the log has' in notes['silent']
        # One more time each, and not again before it is asked for.
        started = len(toy.started())
        assert toy.run('--only', 'first')[0] == 1
        assert len(toy.started()) == started
        toy.run('--only', 'first/higher', '--retry-failed', '--retries', '0')
        assert len(toy.started()) == started + 2

    def test_what_needs_a_failed_one_waits(self, toy):
        toy.config.write_text(
            toy.config.read_text().replace("'good'", "'crash'")
        )
        status, said = toy.run('--only', 'first/later/0')
        assert status == 1
        assert '0 done, 1 failed' in said
        assert '1 not started' in said

    def test_two_at_a_time_on_one_folder(self, toy):
        both = [toy.start('run', str(toy.plan)) for _ in range(2)]
        said = [process.communicate(timeout=300)[0] for process in both]
        assert sorted(process.returncode for process in both) == [0, 3]
        assert sum('Another sweep runs' in one for one in said) == 1
        assert len(toy.started()) == 12

    def test_stopped_by_hand(self, toy):
        toy.config.write_text(toy.config.read_text().replace('0.05', '0.5'))
        process = toy.start('run', str(toy.plan), '--jobs', '2')
        while len(toy.started()) < 3:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 130
        assert 'goes on where it was' in said
        before = ledger.read(toy.ledger)
        assert toy.run('--jobs', '2')[0] == 0
        assert ledger.read(toy.ledger)[: len(before)] == before


EXTRA = (ROOT / 'requirements' / 'sweeps.txt').read_text().splitlines()


@pytest.mark.parametrize('name', [x for x in EXTRA if x[0] != '#'])
@pytest.mark.usefixtures('tool')  # All others are there.
def test_a_package_that_is_missing_is_told_at_the_start(name, monkeypatch):
    module = dict(pyyaml='yaml').get(name, name.replace('-', '_'))
    monkeypatch.setitem(sys.modules, module, None)
    spec = importlib.util.spec_from_file_location(
        'tool_without', ROOT / 'tools' / 'sweep.py'
    )
    with pytest.raises(SystemExit) as caught:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    said = str(caught.value)
    assert f'{module!r}, expected the packages' in said
    assert said.endswith("Fix: pip install 'mm-lt-losses[sweeps]'.")


@pytest.fixture
def here(toy, monkeypatch):
    monkeypatch.chdir(toy.folder)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    return toy


def failed_rows(toy):
    """Two trials that an earlier run has given up; their folders are gone."""
    trials, _ = trials_of(Plan(toy.plan, losses()), toy.ledger.parent)
    rows = [
        dict(dict.fromkeys(ledger.COLUMNS, ''), schema='1', trial=trial.key)
        for trial in trials[:2]
    ]
    toy.ledger.parent.mkdir(parents=True)
    ledger.write(toy.ledger, [dict(row, status='failed') for row in rows])
    return [str(trial) for trial in trials[:2]]


class TestFailedBefore:
    def test_dry_run(self, here, sweep_tool, capsys):
        failed_rows(here)
        assert not sweep_tool('run', here.plan, '--dry-run')
        said = capsys.readouterr().out
        assert '10 of 12 trials are to be run' in said
        assert '2 failed before; --retry-failed runs them again' in said
        sweep_tool('run', here.plan, '--dry-run', '--retry-failed')
        said = capsys.readouterr().out
        assert '12 of 12 trials are to be run' in said
        assert 'failed before' not in said

    def test_status(self, here, sweep_tool, capsys):
        names = failed_rows(here)
        sweep_tool('status', here.plan)
        said = capsys.readouterr().out
        assert all(f'{name} has failed' in said for name in names)

    def test_run(self, here, sweep_tool, capsys):
        names = failed_rows(here)
        assert sweep_tool('run', here.plan, '--only', *names) == 1
        said = capsys.readouterr().out
        assert '2 failed before; --retry-failed runs them again' in said

    def test_done_since(self, here):
        failed_rows(here)
        row = ledger.read(here.ledger)[0]
        ledger.write(here.ledger, [dict(row, status='done'), row])
        assert progress.recorded_in(here.ledger)[row['trial']] == 'done'


def test_another_sweep_is_no_success(here, sweep_tool, capsys):
    folder = here.ledger.parent
    folder.mkdir(parents=True)
    with ledger.locked(folder / 'sweep', wait=False):
        assert sweep_tool('run', here.plan, '--only', 'first') == 3
    assert 'run this again' in capsys.readouterr().out


def test_the_budget_is_named(here, sweep_tool, capsys):
    here.plan.write_text(here.plan.read_text() + 'budget: {hours: 1e-9}\n')
    sweep_tool('run', here.plan)
    said = capsys.readouterr().out
    assert '12 not started' in said
    assert 'The reason is budget.hours=1e-09, which is over' in said
    assert not here.started()


@pytest.fixture
def small_disk(toy):
    """A folder of the sweep that holds one megabyte; grows when called."""
    place = toy.folder / 'work_dirs'
    place.mkdir()

    def mount(options: str) -> None:
        subprocess.run(
            ['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', str(place)],
            check=True,
            capture_output=True,
        )

    try:
        mount('size=1m')
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f'only root can make a small disk: {error}')
    yield lambda: mount('remount,size=20m')
    subprocess.run(['umount', '-l', str(place)], check=True)


@pytest.mark.slow
def test_full_disk(toy, small_disk):
    """It is told, what is there is whole, and the rest is done later."""
    status, said = toy.run('--jobs', '2', '--retries', '0')
    assert status == 1, said
    assert 'No space left on device' in said
    assert 'Traceback' not in said.replace('| Traceback', '')
    done = [r for r in ledger.read(toy.ledger) if r['status'] == 'done']
    assert 0 < len({r['trial'] for r in done}) < 12
    small_disk()
    status, said = toy.run('--jobs', '2', '--retry-failed')
    assert status == 0, said
    found = toy.values()
    (toy.folder / 'other').mkdir()
    assert toy.run('--jobs', '2', '--folder', 'other')[0] == 0
    toy.ledger = toy.folder / 'other' / 'ledger.csv'
    assert toy.values() == found


@pytest.mark.slow
def test_ledger_on_a_full_disk(toy, small_disk):
    """What was trained is kept, and no more than the ledger is missing."""
    elsewhere = ('--folder', 'other', '--ledger', str(toy.ledger))
    filler = toy.folder / 'work_dirs' / 'filler'
    toy.ledger.parent.mkdir()
    with pytest.raises(OSError, match='No space'):
        filler.write_bytes(bytes(2**21))
    status, said = toy.run('--only', 'first/plain', *elsewhere)
    assert status == 1
    assert 'the results are in the folders of the trials' in said
    assert 'Traceback' not in said
    assert not toy.ledger.exists()
    filler.unlink()
    assert toy.run('--only', 'first/plain', *elsewhere)[0] == 0
    assert len({row['trial'] for row in ledger.read(toy.ledger)}) == 2
    assert len(toy.started()) == 2


@pytest.mark.slow
def test_status_and_dry_run(toy):
    status, said = toy.run('--dry-run')
    assert status == 0
    assert '12 of 12 trials are to be run' in said
    (config,) = toy.folder.glob('work_dirs/toy/trials/first-later-seed0-*/*')
    assert '<the last checkpoint of first/plain/0>' in config.read_text()
    assert not toy.started()
    assert toy.run('--only', 'first/plain')[0] == 0
    status, said = toy.call('status', str(toy.plan))
    assert status == 0
    row = next(x for x in said.splitlines() if 'first' in x and 'plain' in x)
    assert row.split('│')[3].strip() == '2'
    status, said = toy.run('--dry-run')
    assert '10 of 12 trials are to be run' in said


@pytest.mark.slow
class TestSecondThoughts:
    """What a plan, a folder or a ledger is after it was changed."""

    def test_a_model_that_is_needed_again_and_fails(self, toy):
        """Its numbers stay, and what waits for it is said."""
        assert toy.run('--only', 'first/plain/0')[0] == 0
        before = toy.values()
        shutil.rmtree(toy.ledger.parent / 'trials')
        stub = toy.folder / 'stubs' / 'train.py'
        stub.write_text("raise SystemExit('CUDA out of memory')")
        status, said = toy.run('--only', 'first/later/0', '--retries', '0')
        assert status == 1
        assert '1 done, 1 failed' in said
        assert '1 not started' in said
        assert toy.values() == before

    def test_rows_follow_the_plan(self, toy):
        assert toy.run('--only', 'first/plain')[0] == 0
        before = {x[2:5]: float(x[5]) for x in toy.values()}
        toy.plan.write_text(
            toy.plan.read_text().replace(
                'baseline: plain', 'baseline: plain\n    scale: 100', 1
            )
        )
        assert toy.run('--only', 'first/plain')[0] == 0
        assert len(toy.started()) == 2
        for place, value in {
            x[2:5]: float(x[5]) for x in toy.values()
        }.items():
            assert value == pytest.approx(100 * before[place])
        # Without the folders there is nothing to write them from.
        shutil.rmtree(toy.ledger.parent / 'trials')
        toy.plan.write_text(
            toy.plan.read_text().replace('tail: accuracy/few', '')
        )
        status, said = toy.run('--only', 'first/plain')
        assert status == 1
        assert 'plan.yaml:' in said
        assert 'Fix: write the plan as it was' in said

    def test_runs_of_another_config_are_not_averaged(self, toy):
        assert toy.run('--only', 'first/higher')[0] == 0
        toy.plan.write_text(toy.plan.read_text().replace('0.2', '0.9'))
        assert toy.run('--only', 'first/higher/0')[0] == 0
        (task,) = results.read(toy.ledger).tasks
        assert len(task.values('higher')) == 1
        assert results.read(toy.ledger).superseded == 2

    def test_the_ledger_is_of_the_training(self, toy):
        """Versions, commit and code are not those of who writes it down."""
        assert toy.run('--only', 'first/plain/0')[0] == 0
        (done,) = toy.ledger.parent.glob('trials/*/done.json')
        told = json.loads(done.read_text())
        told['versions'] = 'python=2.7'
        done.write_text(json.dumps(told))
        before = toy.values()
        toy.ledger.unlink()
        # Wherever its folder has been moved to.
        assert toy.run('--only', 'first/plain/0')[0] == 0
        assert toy.values() == before
        rows = ledger.read(toy.ledger)
        assert {row['versions'] for row in rows} == {'python=2.7'}

    def test_results_that_cannot_be_read_end_nothing(self, toy):
        assert toy.run('--only', 'first/plain/0')[0] == 0
        (done,) = toy.ledger.parent.glob('trials/*/done.json')
        done.write_text('{}')
        toy.ledger.unlink()
        status, said = toy.run('--only', 'first/plain')
        assert status == 1
        assert 'its results cannot be read' in said
        rows = ledger.read(toy.ledger)
        assert {(r['seed'], r['status']) for r in rows} == {
            ('0', 'failed'),
            ('1', 'done'),
        }


@pytest.mark.slow
def test_a_training_that_is_stopped_again_and_again(toy):
    """As by a limit of time; it goes on, and that is no failure."""
    toy.config.write_text(toy.config.read_text().replace('0.05', '0.6'))
    process = toy.start(
        *('run', str(toy.plan), '--only', 'first/plain/0'),
        *('--retries', '0'),
    )
    for epoch in (1, 2):
        while not list(toy.ledger.parent.glob(f'*/*/epoch_{epoch}.pth')):
            time.sleep(0.05)
        (pid,) = toy.processes('worker.py')
        os.kill(pid, signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert said.count('stopped, and goes on where it was') == 2
    assert len([x for x in toy.values() if x[4] == 'accuracy/all']) == 3


def test_minus_one_is_no_number(toy, monkeypatch):
    """LVIS and COCO say so that there was no object in a group."""
    monkeypatch.chdir(toy.folder)
    toy.plan.write_text(
        toy.plan.read_text().replace('accuracy/few', 'lvis/bbox_APr')
    )
    plan = Plan(toy.plan, ['x'])
    trial, *_ = trials_of(plan, toy.folder)[0]
    trial.folder.mkdir(parents=True)
    worker.write_json(
        trial.folder / worker.DONE,
        dict(
            evaluations=[[3, {'accuracy/all': 5, 'lvis/bbox_APr': -1.0}]],
            training=[],
            checkpoint='gone.pth',
            **dict.fromkeys(FROM_WORKER, 0),
        ),
    )
    assert [row['metric'] for row in rows_of(plan, trial)] == ['accuracy/all']
