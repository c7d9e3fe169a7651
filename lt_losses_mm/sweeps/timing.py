# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""What the trials of a plan will take: hours and disk.

Both are known from the rows of the ledger, or from a few iterations of one
training of the task, which are kept in ``timed.json`` in the folder of the
sweep.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Callable, NamedTuple

from mmengine.config import Config

from ..messages import fault
from . import ledger, worker
from .executors import Executor
from .trial import Trial

TIMED = 'timed.json'


class Cost(NamedTuple):
    """What one trial takes.

    Args:
        seconds: Of its training, or of its test.
        disk_mb: Of its folder at the end; ``None`` if no row says it.
    """

    seconds: float
    disk_mb: float | None


class Costs:
    """What trials will take, as far as it is known.

    Args:
        table: Path of the ledger.
        trials: Of the plan; of other ones no timing counts.
    """

    def __init__(self, table: Path, trials: list[Trial]) -> None:
        found: dict[tuple[str, ...], list[dict[str, str]]] = {}
        for row in ledger.read(table):
            if row['role'] == 'overall' and row['last'] == '1':
                if row['seconds']:
                    for key in ((row['task'], row['method']), (row['task'],)):
                        found.setdefault(key, []).append(row)
        self.known = {
            key: Cost(
                fmean(float(row['seconds']) for row in rows),
                _mean([float(r['disk_mb']) for r in rows if r['disk_mb']]),
            )
            for key, rows in found.items()
        }
        timed = _timed(trials)
        self.timed = {
            trial.task: timed[trial.key]
            for trial in trials
            if trial.key in timed
        }

    def of(self, trial: Trial) -> Cost | None:
        """The cost of a trial like it, ``None`` if nothing is known."""
        for key in ((trial.task, trial.method), (trial.task,)):
            if key in self.known:
                return self.known[key]
        found = self.timed.get(trial.task)
        # A test leaves no checkpoint, and is short.
        return Cost(0, 0) if found and trial.test else found


def _mean(values: list[float]) -> float | None:
    return fmean(values) if values else None


def check_disk(trials: list[Trial], table: Path) -> None:
    """Refuse a disk that is known to be too small.

    Args:
        trials: Of the plan; those that are done take no more.
        table: Path of the ledger.

    Raises:
        ValueError: With what is needed.
    """
    costs = Costs(table, trials)
    done = {r['trial'] for r in ledger.read(table) if r['status'] == 'done'}
    missing = [
        trial
        for trial in trials
        if trial.key not in done and not (trial.folder / worker.DONE).exists()
    ]
    found = [costs.of(trial) for trial in missing]
    needed = sum(cost.disk_mb or 0 for cost in found if cost is not None)
    free = free_mb(_folder(trials))
    if needed > free:
        raise fault(
            '--folder',
            str(_folder(trials)),
            f'a disk with {gigabytes(needed)} free for the checkpoints of '
            f'{len(missing)} trials, it has {gigabytes(free)}',
            'name a folder of another disk, or keep fewer checkpoints, in '
            'the options of a task: '
            'default_hooks.checkpoint.max_keep_ckpts: 1',
        )


def free_mb(folder: Path) -> float:
    """Free space on the disk of a folder that need not be there yet."""
    folder = folder.resolve()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free / 2**20


def gigabytes(megabytes: float) -> str:
    """``"1.5 GB"``."""
    size = megabytes / 1024
    return f'{size:.0f} GB' if size >= 10 else f'{size:.2g} GB'


def time_tasks(
    trials: list[Trial],
    table: Path,
    executor: Executor,
    steps: int,
    say: Callable[[str], None] = print,
) -> None:
    """Train a few iterations in each task of which nothing is known.

    Args:
        trials: Of the plan.
        table: Path of the ledger.
        executor: Where the trials will run.
        steps: Iterations of the first training of each task.
        say: Takes each line for a person.
    """
    costs = Costs(table, trials)
    timed = _timed(trials)
    try:
        for task in dict.fromkeys(trial.task for trial in trials):
            own = [t for t in trials if t.task == task]
            first = next((t for t in own if not t.needs), None)
            if first is None or costs.of(first) is not None:
                continue
            say(f'timing {first}, {steps} iterations')
            try:
                timed[first.key] = _time(first, executor, steps)
            except worker.TrialError as error:
                say(f'{first} cannot be timed: {error}')
            else:
                worker.write_json(_folder(trials) / TIMED, timed)
    finally:
        executor.close()


def _time(trial: Trial, executor: Executor, steps: int) -> Cost:
    """Start a training elsewhere, and end it when it has said enough.

    Raises:
        TrialError: If the training fails before.
    """
    folder = trial.folder.parent.parent / 'timing' / trial.folder.name
    shutil.rmtree(folder, ignore_errors=True)
    cfg = copy.deepcopy(trial.cfg)
    hooks = cfg.get('default_hooks') or {}
    logger = hooks.get('logger') or dict(type='LoggerHook')
    cfg.default_hooks = dict(
        hooks,
        logger=dict(logger, interval=1),
        # With the optimizer, as those of the trial.
        checkpoint=dict(
            type='CheckpointHook',
            by_epoch=False,
            interval=steps,
            save_last=False,
        ),
    )
    scratch = replace(trial, folder=folder, cfg=cfg)
    scratch.prepare([])
    if not executor.room_for(trial.gpus):
        raise worker.TrialError('there is no room for a training')
    started = time.time()
    job = executor.start(folder, trial.gpus)
    try:
        while not job.ended():
            lines = sum('loss' in values for values in worker.scalars(folder))
            saved = [x for x in folder.glob('*.pth') if zipfile.is_zipfile(x)]
            if lines >= steps and saved:
                break
            time.sleep(0.2)
    finally:
        job.stop()
    try:
        if (folder / worker.FAILED).exists():
            note = json.loads((folder / worker.FAILED).read_text())['note']
            raise worker.TrialError(note)
        left = remaining_seconds(folder)
        saved = worker.whole_checkpoints(folder)
        if left is None or not saved:
            raise worker.TrialError(
                f'it has ended before its iteration {steps}; take fewer'
            )
        size = saved[-1].stat().st_size / 2**20
        return Cost(
            round(time.time() - started + left, 1),
            round(size * checkpoints_kept(trial.cfg), 1),
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remaining_seconds(folder: Path) -> float | None:
    """What a training says that it will take, at the end of its log."""
    text = '\n'.join(worker.log_tail(folder, 200))
    found = re.findall(r'eta: (?:(\d+) days?, )?(\d+):(\d+):(\d+)', text)
    if not found:
        return None
    days, hours, minutes, seconds = (int(x or 0) for x in found[-1])
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def checkpoints_kept(cfg: Config) -> int:
    """Number of checkpoints that a training leaves."""
    hook = cfg.get('default_hooks', {}).get('checkpoint') or {}
    loop = cfg.get('train_cfg') or {}
    length = loop.get('max_epochs') or loop.get('max_iters') or 0
    every = hook.get('interval', -1)
    kept = -(-length // every) if every > 0 else 1
    most = hook.get('max_keep_ckpts', -1)
    if most > 0:
        kept = min(kept, most)
    best = hook.get('save_best') or []
    return kept + (1 if isinstance(best, str) else len(best))


def _folder(trials: list[Trial]) -> Path:
    return trials[0].folder.parent.parent


def _timed(trials: list[Trial]) -> dict[str, Cost]:
    """Digest of a trial -> its cost, as far as it was timed."""
    path = _folder(trials) / TIMED
    found = json.loads(path.read_text()) if path.exists() else {}
    return {key: Cost(*cost) for key, cost in found.items()}
