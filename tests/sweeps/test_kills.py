"""A sweep that is killed at any moment comes to the same end."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter

import pytest

from lt_losses_mm.sweeps import ledger

SEEDS = '[0, 1, 2, 3, 4, 5]'
pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def undisturbed(make_toy, tmp_path_factory):
    """What a sweep that nobody kills comes to."""
    toy = make_toy(tmp_path_factory.mktemp('undisturbed'))
    toy.plan.write_text(toy.plan.read_text().replace('[0, 1]', SEEDS))
    assert toy.run('--jobs', '2')[0] == 0
    return toy.values()


@pytest.mark.parametrize('victim', ['driver.py', 'worker.py', 'train.py'])
def test_killed_at_random(toy, undisturbed, victim):
    """Seven times each; a training that nobody watches is not doubled."""
    toy.plan.write_text(toy.plan.read_text().replace('[0, 1]', SEEDS))
    random.seed(victim)
    kills = 0
    while kills < 7:
        process = toy.start('run', str(toy.plan), '--jobs', '2')
        # Not before the first training, and then whenever.
        begun = len(toy.started())
        while process.poll() is None and len(toy.started()) == begun:
            time.sleep(0.02)
        time.sleep(random.uniform(0, 0.8))
        for pid in toy.processes(victim)[:1]:
            os.kill(pid, signal.SIGKILL)
            kills += 1
        if victim != 'driver.py':
            process.terminate()
        process.communicate(timeout=60)
        ledger.read(toy.ledger)  # Whole rows, at any time.
        assert process.returncode != 0, 'it was over before it was killed'
    status, said = toy.run('--jobs', '2', '--retry-failed')
    assert status == 0, said
    assert toy.values() == undisturbed
    keys = Counter(
        tuple(row[key] for key in ledger.KEY)
        for row in ledger.read(toy.ledger)
    )
    assert set(keys.values()) == {1}
