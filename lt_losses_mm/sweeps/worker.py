# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Runs the one trial whose folder it is given, and marks its end.

    python lt_losses_mm/sweeps/worker.py FOLDER

The folder holds ``trial.json``: what to run, and where.
At the end it holds ``done.json``, with the numbers, or ``failed.json``, with
the reason; both are written in one step. In between the worker and its
training hold a lock, which the system takes from them when they die, so no
trial runs twice at a time. A training that was killed goes on from its last
whole checkpoint.

It needs nothing but Python, so that a trial costs no more than its training.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib
import json
import math
import os
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import IO, Any, Iterator

DONE, FAILED, TRIAL = 'done.json', 'failed.json', 'trial.json'
LOCK, LOG, ATTEMPTS = '.lock', 'log.txt', 'attempts.jsonl'
# Exit statuses of the worker, beside 0.
HAS_FAILED, IS_HELD, WAS_STOPPED = 1, 75, 143


class TrialError(Exception):
    """Why a trial has no numbers."""


def main(folder: Path) -> int:
    """Run the trial unless it is done or somebody else runs it."""
    # Ctrl-C as well, where somebody runs it by hand.
    before = {
        number: signal.signal(number, _stop)
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    adopt_orphans()
    try:
        with open(folder / LOCK, 'a') as lock:
            if not hold(lock):
                return IS_HELD
            if (folder / DONE).exists():
                return 0
            (folder / FAILED).unlink(missing_ok=True)
            try:
                write_json(folder / DONE, attempt(folder, lock.fileno()))
                return 0
            except (TrialError, OSError) as error:
                note_failure(folder, error)
                return HAS_FAILED
    except OSError as error:
        sys.exit(f'{folder}: {error}')
    except Stopped:
        return WAS_STOPPED
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def note_failure(folder: Path, error: Exception) -> None:
    """Write down why a trial has failed, and whether its disk is full."""
    note = str(error)
    whole_checkpoints(folder)  # Makes room, if the last one was cut.
    probe = folder / '.room'
    try:
        probe.write_bytes(bytes(2**20))
    except OSError as full:
        if isinstance(error, TrialError):
            note += f'; {full}'
    finally:
        probe.unlink(missing_ok=True)
    write_json(folder / FAILED, dict(note=note, log=log_tail(folder)))


def hold(lock: IO[str]) -> bool:
    """Take the lock of a trial, unless somebody keeps it.

    Whoever looks whether it is held holds it for a moment.
    """
    for wait in (0.05, 0.1, 0.2, 0.4, 0):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(wait)
    return False


class Stopped(BaseException):
    """Somebody has asked the worker to end."""


def _stop(*_: Any) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        # Asked twice, it would leave its training behind.
        signal.signal(number, signal.SIG_IGN)
    raise Stopped


def attempt(folder: Path, lock: int) -> dict[str, Any]:
    """Train, from where an earlier attempt ended, and read the numbers.

    Raises:
        TrialError: If the training fails or gives no numbers.
    """
    trial = json.loads((folder / TRIAL).read_text())
    check_code(trial['code'])
    started = time.time()
    note_attempt(folder, started=started)
    try:
        if not trial['checkpoint']:
            train(trial, folder, lock)
            if not evaluated(folder, trial):
                # Killed in its last evaluation, which is not repeated.
                test(trial, folder, lock, last_checkpoint(folder))
        elif not evaluated(folder, trial):
            test(trial, folder, lock, trial['checkpoint'])
    finally:
        note_attempt(folder, started=started, ended=time.time())
    return summary(folder, trial)


def check_code(recorded: str) -> None:
    """Raise unless the package is what it was when the plan was read.

    Modules of others are left out: to find them may import them.
    """
    own = [part for part in recorded.split() if not part.startswith('module:')]
    changed = origin().changed(' '.join(own))
    if changed:
        raise TrialError(
            f'the code of {", ".join(changed)} has changed since the sweep '
            'was started; start it again'
        )


def origin() -> Any:
    """The module beside this one, which also needs nothing but Python."""
    if __package__:
        return importlib.import_module('.origin', __package__)
    return importlib.import_module('origin')


def train(trial: dict[str, Any], folder: Path, lock: int) -> None:
    """Run the training to its end."""
    whole = whole_checkpoints(folder)
    resume = ['--resume', str(whole[-1])] if whole else []
    if whole:
        # Killed in an evaluation, which a training that goes on leaves out.
        step, (begin, interval) = step_of(whole[-1]), trial['val']
        due = step >= begin and step % interval == 0
        if due and step not in evaluations(folder, trial):
            test(trial, folder, lock, whole[-1])
    run([*trial['train'], *resume], trial, folder, lock)


def test(
    trial: dict[str, Any], folder: Path, lock: int, checkpoint: str | Path
) -> None:
    """Evaluate a checkpoint as the test of the config does."""
    place = folder / f'test-{Path(checkpoint).stem}'
    command = [*trial['test'], str(checkpoint), '--work-dir', str(place)]
    run(command, trial, folder, lock)


def run(
    command: list[str], trial: dict[str, Any], folder: Path, lock: int
) -> None:
    """Run a process, its output into the log of the trial.

    Raises:
        TrialError: If it does not end with 0.
    """
    with open(folder / LOG, 'ab') as log:
        process = subprocess.Popen(
            command,
            cwd=trial['cwd'],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # A training whose worker was killed keeps the trial.
            pass_fds=(lock,),
            start_new_session=True,
        )
        try:
            status = process.wait()
        finally:
            end(process)
    if status < 0:
        name = signal.Signals(-status).name
        more = ', as if the memory had run out' if status == -9 else ''
        raise TrialError(f'killed by {name}{more}')
    if status:
        raise TrialError(f'exit status {status}: {last_words(folder)}')


def adopt_orphans() -> None:
    """Become the parent of what the training leaves behind, on Linux.

    The ranks of ``torchrun`` have sessions of their own and go on without it.
    """
    with contextlib.suppress(OSError, AttributeError):
        prctl = ctypes.CDLL(None).prctl
        prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def children() -> list[int]:
    """Processes whose parent this is, none where Linux does not say it."""
    try:
        here = Path(f'/proc/self/task/{os.getpid()}/children')
        return [int(pid) for pid in here.read_text().split()]
    except OSError:
        return []


def end(process: subprocess.Popen) -> None:
    """End a training and all its children, which may hold the lock as well."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    # Those of the ones that are ended come next.
    for pid in iter(lambda: next(iter(children()), 0), 0):
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def whole_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints that were written to their end, the last one last.

    Others are removed: MMEngine writes in place, deletes the one before
    first, and would resume from half of a file.
    """
    found = []
    for path in folder.glob('*_*.pth'):
        step = re.fullmatch(r'(?:epoch|iter)_(\d+)', path.stem)
        if step is None:
            continue
        if zipfile.is_zipfile(path):
            found.append((int(step[1]), path))
        else:
            path.unlink()
    return [path for _, path in sorted(found)]


def last_checkpoint(folder: Path) -> Path:
    """The last whole checkpoint.

    Raises:
        TrialError: If there is none.
    """
    whole = whole_checkpoints(folder)
    if not whole:
        raise TrialError('the training has ended and left no checkpoint')
    return whole[-1]


def step_of(checkpoint: str | Path) -> int:
    """Epoch or iteration that a checkpoint is named after, 0 if none.

    Example:
        >>> step_of('work_dirs/epoch_12.pth')
        12
    """
    found = re.search(r'(?:epoch|iter)_(\d+)', Path(checkpoint).name)
    return int(found[1]) if found else 0


def scalars(folder: Path) -> Iterator[dict[str, Any]]:
    """What the runs of a trial have logged, in the order of time.

    An evaluation has no ``loss``, and as ``step`` its epoch or iteration; a
    test's is that of its checkpoint. A line that is cut is left out.
    """
    files = [
        path
        for pattern in ('*/vis_data/scalars.json', 'test-*/*/*.json')
        for path in folder.glob(pattern)
    ]
    for path in sorted(files, key=lambda path: path.relative_to(folder).parts):
        place = path.relative_to(folder).parts[0]
        tested = {'step': step_of(place)} if place[:5] == 'test-' else {}
        for line in path.read_text(errors='replace').splitlines():
            with contextlib.suppress(ValueError):
                found = json.loads(line)
                if isinstance(found, dict):
                    yield {**tested, **found}


def evaluations(
    folder: Path, trial: dict[str, Any]
) -> dict[int, dict[str, Any]]:
    """Step -> what was measured there; of a repeated one the last counts."""
    found: dict[int, dict[str, Any]] = {}
    for values in scalars(folder):
        # Lists have a line of their own, statistics steps of their own.
        if 'loss' not in values and not is_statistics(values):
            found.setdefault(values.get('step', 0), {}).update(values)
    overall = trial['metrics'][0]
    return {k: v for k, v in sorted(found.items()) if overall in v}


def is_statistics(values: dict[str, Any]) -> bool:
    """Whether a line of the log is of the statistics of the losses."""
    return any(key.startswith('statistics/') for key in values)


def final_step(folder: Path) -> int:
    """Epoch or iteration of the last checkpoint, 0 without one."""
    whole = whole_checkpoints(folder)
    return step_of(whole[-1]) if whole else 0


def evaluated(folder: Path, trial: dict[str, Any]) -> bool:
    """Whether the end of the training, or the checkpoint, was evaluated."""
    checkpoint = trial['checkpoint']
    last = step_of(checkpoint) if checkpoint else final_step(folder)
    return last in evaluations(folder, trial)


def summary(folder: Path, trial: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a trial that has ended.

    Raises:
        TrialError: If the metrics of the plan are not among them, or the loss
            was no number.
    """
    training = [x for x in scalars(folder) if 'loss' in x]
    if training and not math.isfinite(training[-1]['loss']):
        first = next(x for x in training if not math.isfinite(x['loss']))
        raise TrialError(
            f'the loss is {training[-1]["loss"]} at the end; it was '
            f'{first["loss"]} at iteration {first.get("iter", first["step"])}'
        )
    found = evaluations(folder, trial)
    if not evaluated(folder, trial):
        known = sorted({key for x in scalars(folder) for key in x})
        raise TrialError(
            f'the last evaluation has no {trial["metrics"][0]}; the log has '
            f'{", ".join(known)}'
        )
    last = found[max(found)]
    missing = [name for name in trial['metrics'] if name not in last]
    if missing:
        raise TrialError(
            f'the last evaluation has no {", ".join(missing)}; it has '
            f'{", ".join(sorted(last))}'
        )
    gpu = max((x.get('memory', 0) for x in training), default=0)
    process = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    files = [path for path in folder.rglob('*') if path.is_file()]
    whole = whole_checkpoints(folder)
    return dict(
        evaluations=[[step, values] for step, values in found.items()],
        training=[
            {
                key: value
                for key, value in values.items()
                if key in ('loss', 'epoch', 'iter', 'step')
                or key.startswith('statistics/')
            }
            for values in (
                x for x in scalars(folder) if 'loss' in x or is_statistics(x)
            )
        ],
        # Wherever the folder is moved to.
        checkpoint=whole[-1].name if whole else trial['checkpoint'],
        versions=origin().versions(),
        commit=origin().commit(),
        code=trial['code'],
        seconds=round(seconds(folder), 1),
        memory_mb=round(gpu or process),
        machine=machine(),
        threads=os.environ.get('OMP_NUM_THREADS', ''),
        disk_mb=round(sum(path.stat().st_size for path in files) / 2**20, 1),
    )


def cpu() -> str:
    """Model and number of cores."""
    name = platform.processor() or platform.machine()
    table = Path('/proc/cpuinfo')
    if table.exists():
        found = re.search(r'model name\s*:\s*(.+)', table.read_text())
        name = found[1] if found else name
    return f'{name}, {os.cpu_count()} cores'


def machine() -> str:
    """Processor and cores, and the GPUs that are visible."""
    parts = [cpu()]
    gpus = os.environ.get('CUDA_VISIBLE_DEVICES')
    if gpus and shutil.which('nvidia-smi'):
        ask = ['nvidia-smi', '--query-gpu=name', '--format=csv,noheader']
        told = subprocess.run(
            [*ask, '-i', gpus], capture_output=True, text=True, check=False
        )
        parts += told.stdout.splitlines()
    return '; '.join(parts)


def note_attempt(folder: Path, **times: float) -> None:
    """Write down when an attempt started or ended."""
    with open(folder / ATTEMPTS, 'a') as file:
        file.write(json.dumps(times) + '\n')


def seconds(folder: Path) -> float:
    """Of all attempts; of one that was killed, to the last it logged."""
    ends: dict[float, float] = {}
    for line in (folder / ATTEMPTS).read_text().splitlines():
        with contextlib.suppress(ValueError):
            times = json.loads(line)
            ends[times['started']] = times.get('ended', 0.0)
    starts = sorted(ends)
    logged = [
        path.stat().st_mtime for path in folder.glob('*/vis_data/scalars.json')
    ]
    total = 0.0
    for start, following in zip(starts, [*starts[1:], math.inf]):
        seen = [time for time in logged if start <= time < following]
        total += (ends[start] or max(seen, default=start)) - start
    return total


def last_words(folder: Path) -> str:
    """The last line of the log that says something."""
    lines = [line.strip() for line in log_tail(folder) if line.strip()]
    return lines[-1][:300] if lines else 'it has logged nothing'


def log_tail(folder: Path, lines: int = 15) -> list[str]:
    """The last lines of the log, none without one."""
    path = folder / LOG
    if not path.exists():
        return []
    with open(path, 'rb') as file:
        file.seek(max(0, path.stat().st_size - 20_000))
        return file.read().decode(errors='replace').splitlines()[-lines:]


def write_json(path: Path, content: Any) -> None:
    """Write a file in one step, so that there is all of it or none."""
    part = path.with_name(f'.{path.name}-{os.getpid()}')
    try:
        with open(part, 'w') as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def is_held(folder: Path) -> bool:
    """Whether a worker or its training is alive, on any machine."""
    if not (folder / LOCK).exists():
        return False
    with open(folder / LOCK) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


if __name__ == '__main__':
    sys.exit(main(Path(sys.argv[1])))
