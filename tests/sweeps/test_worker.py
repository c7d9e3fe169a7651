"""One trial: what its worker makes of whatever it finds in the folder."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from lt_losses_mm.sweeps import origin, worker

fork = multiprocessing.get_context('fork')
# A training that ends when it is told to, and a child of it that does not.
STUBBORN = """
import signal, subprocess, sys, time
from pathlib import Path
child = 'import signal, time; signal.signal(15, 1); time.sleep(60)'
child = subprocess.Popen(
    [sys.executable, '-c', child],
    close_fds=False,
    start_new_session='session' in sys.argv,
)
time.sleep(0.3)
Path(sys.argv[1], 'child').write_text(str(child.pid))
time.sleep(60)
"""


class Case:
    """A folder of a trial as ``Trial.prepare`` makes it."""

    def __init__(self, toy) -> None:
        self.toy = toy
        self.folder = toy.folder / 'trial'
        self.folder.mkdir()
        toy.config.write_text(toy.config.read_text().replace('0.05', '0'))
        stubs = [
            [sys.executable, str(toy.folder / 'stubs' / name), str(toy.config)]
            for name in ('train.py', 'test.py')
        ]
        self.told = dict(
            train=[*stubs[0], '--work-dir', str(self.folder)],
            test=stubs[1],
            val=[1, 1],
            checkpoint='',
            metrics=['accuracy/all', 'accuracy/few'],
            code=origin.code([]),
            cwd=str(toy.folder),
        )

    def start(self) -> subprocess.Popen:
        worker.write_json(self.folder / worker.TRIAL, self.told)
        return subprocess.Popen(
            [sys.executable, worker.__file__, str(self.folder)],
            env=self.toy.environment,
        )

    def run(self) -> int:
        return self.start().wait(30)

    def behave(self, old: str, new: str) -> None:
        config = self.toy.config
        assert old in config.read_text()
        config.write_text(config.read_text().replace(old, new))

    def checkpoint(self, epoch: int, whole: bool = True) -> Path:
        path = self.folder / f'epoch_{epoch}.pth'
        with zipfile.ZipFile(path, 'w') as file:
            file.writestr('data', 'x' * 1000)
        if not whole:
            path.write_bytes(path.read_bytes()[:-30])
        return path

    def log(self, **values: float) -> None:
        """What an attempt before has logged."""
        path = self.folder / 'run0' / 'vis_data' / 'scalars.json'
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, 'a') as file:
            file.write(json.dumps(values) + '\n')

    def trained(self) -> list[int]:
        """Epochs, as often as one was trained."""
        lines = worker.scalars(self.folder)
        return [x['iter'] // 10 for x in lines if 'loss' in x]

    def read(self, name: str = worker.DONE) -> dict:
        return json.loads((self.folder / name).read_text())

    def evaluations(self) -> list[list[float]]:
        return [
            [step, values['accuracy/few'] * 2, values['accuracy/all']]
            for step, values in self.read()['evaluations']
        ]

    def wait_for(self, condition) -> None:
        until = time.time() + 20
        while not condition():
            assert time.time() < until
            time.sleep(0.02)


@pytest.fixture
def case(toy):
    return Case(toy)


def whole(case: Case) -> bool:
    """Whether it has the three evaluations of a training left alone."""
    base = case.evaluations()[0][1]
    return case.evaluations() == [[i, base, base + i] for i in (1, 2, 3)]


def alive(pid: int) -> bool:
    try:
        state = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2]
    except OSError:
        return False
    return state.split()[0] != 'Z'


def test_undisturbed(case):
    assert case.run() == 0
    assert case.trained() == [1, 2, 3]
    assert whole(case)
    done = case.read()
    assert done['checkpoint'] == 'epoch_3.pth'
    assert done['memory_mb'] == 7
    assert not worker.is_held(case.folder)
    # Done is done.
    assert case.run() == 0
    assert len(case.toy.started()) == 1


def test_half_a_checkpoint(case):
    """The one before is used."""
    case.checkpoint(1)
    case.log(loss=1.0, iter=10, step=10)
    assert case.run() == 0
    first = case.evaluations()
    for name in (worker.DONE, 'epoch_3.pth'):
        (case.folder / name).unlink()
    case.checkpoint(1)
    half = case.checkpoint(2, whole=False)
    assert worker.whole_checkpoints(case.folder) == [
        case.folder / 'epoch_1.pth'
    ]
    assert not half.exists()
    assert case.run() == 0
    assert case.trained() == [1, 2, 3, 2, 3]
    assert case.evaluations() == first
    assert whole(case)


def test_half_a_checkpoint_and_no_other(case):
    """As with ``max_keep_ckpts=1``: it starts anew."""
    case.checkpoint(2, whole=False)
    assert case.run() == 0
    assert case.trained() == [1, 2, 3]
    assert whole(case)


@pytest.mark.parametrize('epoch', [1, 2, 3])
def test_killed_in_an_evaluation(case, epoch):
    """The training goes on after it, so the worker repeats it."""
    assert case.run() == 0
    base = case.evaluations()[0][1]
    (case.folder / worker.DONE).unlink()
    (log,) = case.folder.glob('run*/vis_data/scalars.json')
    log.unlink()
    (case.folder / 'epoch_3.pth').unlink()
    case.checkpoint(epoch)
    for i in range(1, epoch + 1):
        case.log(loss=1.0, iter=10 * i, step=10 * i)
        if i < epoch:
            case.log(
                **{'accuracy/all': base + i, 'accuracy/few': base / 2},
                step=i,
            )
    assert case.run() == 0
    assert case.trained() == [1, 2, 3]
    assert whole(case)


def test_no_evaluation_was_due(case):
    case.told['val'] = [1, 3]
    case.checkpoint(2)
    assert case.run() == 0
    assert not list(case.folder.glob('test-*'))
    assert [step for step, *_ in case.evaluations()] == [3]


def test_mark_in_one_step(case):
    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def write() -> None:
        worker.os.fsync = die
        worker.write_json(case.folder / worker.DONE, {'all': 'of it'})

    process = fork.Process(target=write)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (case.folder / worker.DONE).exists()
    assert case.run() == 0
    assert whole(case)


def test_training_of_a_killed_worker_keeps_the_trial(case):
    case.behave('pause = 0', 'pause = 0.3')
    first = case.start()
    case.wait_for(lambda: case.trained() == [1])
    first.kill()
    first.wait()
    assert worker.is_held(case.folder)
    assert case.run() == worker.IS_HELD
    case.wait_for(lambda: not worker.is_held(case.folder))
    assert not (case.folder / worker.DONE).exists()
    assert case.run() == 0
    assert case.trained() == [1, 2, 3]
    assert whole(case)


def test_killed_training_is_a_failure(case):
    case.told['train'] = ['sh', '-c', 'echo hello; kill -9 $$']
    assert case.run() == worker.HAS_FAILED
    told = case.read(worker.FAILED)
    assert told['note'] == ('killed by SIGKILL, as if the memory had run out')
    assert told['log'] == ['hello']
    # The next attempt takes the mark away.
    case.told['train'] = [sys.executable, '-c', 'pass']
    case.checkpoint(3)
    assert case.run() == 0
    assert not (case.folder / worker.FAILED).exists()


def stubborn(case: Case, *more: str) -> Path:
    """Make that training; where it writes the number of its child."""
    script = case.folder / 'stubborn.py'
    script.write_text(STUBBORN)
    command = [sys.executable, str(script), str(case.folder), *more]
    case.told['train'] = command
    return case.folder / 'child'


def test_nothing_of_a_killed_training_is_left(case):
    """Not even what is in a session of its own, as ranks of torchrun."""
    child = stubborn(case, 'session')
    process = case.start()
    case.wait_for(lambda: child.exists() and child.read_text())
    (training,) = (
        int(pid)
        for pid in Path(f'/proc/{process.pid}/task/{process.pid}/children')
        .read_text()
        .split()
    )
    os.kill(training, signal.SIGKILL)
    assert process.wait(5) == worker.HAS_FAILED
    case.wait_for(lambda: not alive(int(child.read_text())))


@pytest.mark.parametrize(
    'number, more',
    [
        (signal.SIGTERM, []),
        (signal.SIGTERM, ['session']),
        (signal.SIGINT, []),
    ],
)
def test_asked_to_end(case, number, more):
    """With its training, and with a child of that which ignores it."""
    child = stubborn(case, *more)
    process = case.start()
    case.wait_for(lambda: child.exists() and child.read_text())
    process.send_signal(number)
    assert process.wait(5) == worker.WAS_STOPPED
    case.wait_for(lambda: not alive(int(child.read_text())))
    assert not worker.is_held(case.folder)
    assert not (case.folder / worker.FAILED).exists()


@pytest.mark.parametrize(
    'behaviour, note',
    [
        ("'nan'", 'the loss is nan at the end; it was nan at iteration 10'),
        ("'silent'", 'the last evaluation has no accuracy/all; the log has'),
        ("'crash'", 'exit status 1: RuntimeError: out of luck'),
    ],
)
def test_no_numbers(case, behaviour, note):
    case.behave("'good'", behaviour)
    assert case.run() == worker.HAS_FAILED
    assert case.read(worker.FAILED)['note'].startswith(note)
    assert not (case.folder / worker.DONE).exists()


def test_no_checkpoint(case):
    case.told['train'] = [sys.executable, '-c', 'pass']
    assert case.run() == worker.HAS_FAILED
    assert case.read(worker.FAILED)['note'] == (
        'the training has ended and left no checkpoint'
    )


def test_a_metric_of_the_plan_is_missing(case):
    case.told['metrics'] = ['accuracy/all', 'accuracy/typo']
    assert case.run() == worker.HAS_FAILED
    note = case.read(worker.FAILED)['note']
    assert note.startswith('the last evaluation has no accuracy/typo; it has')


def test_seconds_of_several_attempts(case):
    lines = [
        dict(started=100.0),
        dict(started=100.0, ended=110.0),
        dict(started=200.0),  # Killed; it has logged until 205.
        dict(started=300.0),  # Killed before it has logged anything.
        dict(started=400.0),
        dict(started=400.0, ended=401.5),
    ]
    text = '\n'.join(map(json.dumps, lines)) + '\n{"started": 4'
    (case.folder / worker.ATTEMPTS).write_text(text)
    for name, time_ in (('one', 109), ('two', 205), ('four', 401)):
        path = case.folder / name / 'vis_data' / 'scalars.json'
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (time_, time_))
    assert worker.seconds(case.folder) == 10 + 5 + 0 + 1.5


def test_test_of_a_checkpoint(case):
    """Nothing is trained, and the numbers are of its step."""
    trained = case.toy.folder / 'other'
    trained.mkdir()
    case.told['checkpoint'] = str(trained / 'epoch_2.pth')
    assert case.run() == 0
    ((step, base, value),) = case.evaluations()
    assert (step, value) == (2, base + 2 + 1)
    assert case.read()['checkpoint'] == str(trained / 'epoch_2.pth')
