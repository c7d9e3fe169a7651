"""A real training through a sweep, killed on its way, against one by hand."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from lt_losses_mm.datasets import DigitsProfile, prepare_digits
from lt_losses_mm.sweeps import ledger, worker

pytestmark = pytest.mark.slow

TOOLS = Path(__file__).resolve().parents[2] / 'tools'
PROFILE = dict(
    num_classes=40, max_count=12, imbalance_factor=12.0, test_count=1
)
PLAN = """
name: real
seeds: [0]
methods: [balanced_softmax]
tasks:
  digits:
    config: lt_losses_mm::classification/digits/{config}
    metrics: {{overall: accuracy/all, tail: accuracy/few}}
    options:
      train_cfg.max_epochs: 4
      train_cfg.val_interval: 1
      default_hooks.logger.interval: 1
{data}
"""
DATA = """
      {mode}_dataloader.dataset.root: {root}
      {mode}_dataloader.dataset.profile: {profile}
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with a plan and its data."""
    pytest.importorskip('mmpretrain')
    folder = tmp_path_factory.mktemp('real')
    prepare_digits(folder / 'digits', DigitsProfile(**PROFILE))
    configs = TOOLS.parent / 'configs/classification/digits'
    (config,) = configs.glob('*cross-entropy*.py')
    data = ''.join(
        DATA.format(mode=mode, root=folder / 'digits', profile=PROFILE)
        for mode in ('train', 'val', 'test')
    )
    plan = PLAN.format(config=config.name, data=data)
    (folder / 'plan.yaml').write_text(plan)
    return folder


def start(folder: Path, tool: str, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(TOOLS / tool), *arguments],
        cwd=folder,
        env={
            **os.environ,
            'OMP_NUM_THREADS': '1',
            'CUDA_VISIBLE_DEVICES': '',
            'PYTHONPATH': str(TOOLS.parent),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def training_of(process: subprocess.Popen, trial: Path) -> int:
    """The training of a trial, a grandchild of its sweep."""
    below = {process.pid}
    for _ in range(2):
        children = set()
        for pid in below:
            path = Path(f'/proc/{pid}/task/{pid}/children')
            children |= set(map(int, path.read_text().split()))
        below = children
    (found,) = below
    line = Path(f'/proc/{found}/cmdline').read_text()
    assert 'train.py' in line and str(trial) in line
    return found


def measured(lines) -> dict[tuple[int, str], float]:
    """(Step, metric) -> value, of the losses and of all evaluations."""
    return {
        (values['iter' if 'loss' in values else 'step'], name): value
        for values in lines
        for name, value in values.items()
        if isinstance(value, (int, float))
        and (name == 'loss' or name.startswith(('accuracy/', 'single-label/')))
    }


def test_killed_and_by_hand(folder):
    """The ledger has what its config gives that is trained by hand."""
    process = start(folder, 'sweep.py', 'run', 'plan.yaml')
    trials = folder / 'work_dirs/real/trials'
    until = time.time() + 200
    while not any(map(zipfile.is_zipfile, trials.glob('*/epoch_2.pth'))):
        assert process.poll() is None and time.time() < until
        time.sleep(0.02)
    (trial,) = trials.iterdir()
    os.kill(training_of(process, trial), signal.SIGKILL)
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert 'again  digits/balanced_softmax/0: killed by SIGKILL' in said
    log = (trial / worker.LOG).read_text()
    assert 'resumed epoch: ' in log

    config = str(trial / 'config.py')
    with start(folder, 'train.py', config, '--work-dir', 'alone') as process:
        said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said
    expected = measured(worker.scalars(folder / 'alone'))
    assert {step for step, name in expected if name == 'accuracy/all'} == {
        1,
        2,
        3,
        4,
    }
    found = {
        (int(row['step']), row['metric']): float(row['value'])
        for row in ledger.read(folder / 'work_dirs/real/ledger.csv')
        if row['role'] not in ('class', 'count')
    }
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)
