"""`sweep.py search`: what it finds, what it repeats, what it prunes."""

from __future__ import annotations

import signal
import time

import pytest

from lt_losses_mm.sweeps import ledger

pytest.importorskip('optuna')
pytestmark = pytest.mark.slow

# A known function of the config, with its best at lr = 0.6; the tail is what
# is searched, and overall tells nothing.
CURVE = """
lr = float(options['lr'])
few = 50 - 40 * (lr - 0.6) ** 2 + epoch
"""
SEARCH = """
search:
  method: plain
  parameters: {lr: {low: 0.0, high: 1.0}}
  trials: 8
"""


@pytest.fixture
def hill(toy):
    """The toy whose tail metric is a hill over ``lr``, and one seed."""
    stub = toy.folder / 'stubs' / 'train.py'
    text = stub.read_text()
    assert 'few = base / 2' in text
    lines = '; '.join(CURVE.strip().splitlines())
    stub.write_text(text.replace('few = base / 2', lines))
    toy.plan.write_text(toy.plan.read_text().replace('[0, 1]', '[0]') + SEARCH)
    return toy


def tried(toy, task='first'):
    """Value -> tail at the end, ``None`` if there is none."""
    found = {}
    for row in ledger.read(toy.ledger):
        if row['task'] == task and row['method'].startswith('plain[lr='):
            lr = float(row['method'].partition('=')[2].rstrip(']'))
            found.setdefault(lr, None)
            if row['role'] == 'tail' and row['last'] == '1':
                found[lr] = float(row['value'])
    return found


def search(toy, *arguments):
    return toy.call('search', str(toy.plan), *arguments)


def test_the_best_is_found(hill):
    status, said = search(hill, '--only', 'first', '--jobs', '2')
    assert status == 0, said
    values = tried(hill)
    assert len(values) == 8
    done = {lr: value for lr, value in values.items() if value is not None}
    best = max(done, key=done.get)
    assert best == min(values, key=lambda lr: abs(lr - 0.6))
    assert done[best] == pytest.approx(53 - 40 * (best - 0.6) ** 2, abs=1e-3)
    assert f'overrides: {{plain: {{options: {{lr: {best}}}}}}}' in said
    # The ledger's command runs one of them alone: here it is done.
    command = next(
        row['command']
        for row in ledger.read(hill.ledger)
        if f'lr={best}]' in row['method']
    )
    name = f'first/plain[lr={best}]/0'
    assert name in command
    started = len(hill.started())
    assert hill.run('--only', name)[0] == 0
    assert len(hill.started()) == started


def test_worse_than_the_median_is_pruned(hill):
    values = '[0.0, 0.2, 0.5, 0.55, 0.6, 0.65, 0.9, 1.0]'
    text = hill.plan.read_text().replace('{low: 0.0, high: 1.0}', values)
    hill.plan.write_text(text.replace('trials: 8', 'trials: 14'))
    # Long enough to be looked at between two evaluations.
    hill.config.write_text(hill.config.read_text().replace('0.05', '0.4'))
    status, said = search(hill, '--only', 'first', '--jobs', '1')
    assert status == 0, said
    rows = [r for r in ledger.read(hill.ledger) if r['status'] == 'pruned']
    assert rows
    middle = sorted(v for v in tried(hill).values() if v is not None)
    for row in rows:
        step = int(row['note'].removeprefix('pruned at step '))
        assert step in (1, 2)
        lr = float(row['method'].partition('=')[2].rstrip(']'))
        # Had it gone on, it would not have been the best.
        assert 53 - 40 * (lr - 0.6) ** 2 < middle[-1]
        assert f'pruned first/{row["method"]}: at step {step}' in said
        (folder,) = hill.folder.glob(f'work_dirs/toy/trials/*-{row["trial"]}')
        assert not (folder / 'epoch_3.pth').exists()
    # A value that comes again is not trained again, pruned or not.
    assert len(hill.started()) == len(set(hill.started())) < 14
    assert 'not finished' not in said


def test_killed_and_resumed(hill):
    process = search_process(hill)
    while len(tried(hill)) < 3 and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    before = tried(hill)
    status, said = search(hill, '--only', 'first', '--jobs', '1')
    assert status == 0, said
    after = tried(hill)
    assert len(after) == 8
    assert before.items() <= after.items()
    # At most the one that ran when the search was killed was started twice.
    started = hill.started()
    assert len(started) - len(set(started)) <= 1
    # What is finished is not tried again, and as many more as are asked for.
    hill.plan.write_text(
        hill.plan.read_text().replace('trials: 8', 'trials: 9')
    )
    assert search(hill, '--only', 'first')[0] == 0
    assert len(tried(hill)) == 9
    assert len(hill.started()) == len(started) + 1


def search_process(toy):
    return toy.start('search', str(toy.plan), '--only', 'first', '--jobs', '1')


def test_seeds_and_lists(hill):
    """The mean of the seeds, of values that a list names."""
    text = hill.plan.read_text()
    text = text.replace('{low: 0.0, high: 1.0}', '[0.1, 0.5]')
    text = text.replace('seeds: [0]', 'seeds: [0, 1]')
    hill.plan.write_text(text.replace('trials: 8', 'trials: 3'))
    status, said = search(hill, '--jobs', '2')
    assert status == 0, said
    for task in ('first', 'second'):
        assert set(tried(hill, task)) <= {0.1, 0.5}
    keys = {
        (r['task'], r['method'], r['seed'], r['status'])
        for r in ledger.read(hill.ledger)
    }
    assert len(hill.started()) == len(keys)
    assert said.count('In a plan, at tasks.') == 2


def test_failures_are_no_values(hill):
    hill.config.write_text(hill.config.read_text().replace('good', 'nan'))
    hill.plan.write_text(
        hill.plan.read_text().replace('trials: 8', 'trials: 2')
    )
    status, said = search(hill, '--only', 'first', '--retries', '0')
    assert status == 1
    assert said.count('FAILED') == 2
    assert 'overrides' not in said
