# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Runs what a plan lacks, and fills its ledger.

There is no state but the folders of the trials and the ledger: starting
again is looking at them.
"""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any, Callable, Iterable, Mapping, NamedTuple

import torch

from ..messages import describe
from . import ledger, origin, worker
from .executors import Executor, Job
from .plan import Plan
from .trial import Trial, command_of

ROLES = ('overall', 'head', 'middle', 'tail')


class SweepError(RuntimeError):
    """A sweep cannot go on; what is done is kept."""


class Outcome(NamedTuple):
    """What a run of a sweep has left.

    Args:
        done: Trials in the ledger, with those of earlier runs.
        failed: Trials that have failed as often as allowed.
        waiting: Trials that were not started, for want of a checkpoint or
            of time.
    """

    done: list[Trial]
    failed: list[Trial]
    waiting: list[Trial]


class Sweep:
    """The trials of a plan, their folders and the ledger.

    Args:
        plan: Where they come from.
        trials: All of them, or some.
        table: Path of the ledger.
        say: Takes each line for a person.
        retries: How often a trial is run again that has failed.
        retry_failed: Whether trials that an earlier run gave up are tried
            again.
    """

    def __init__(
        self,
        plan: Plan,
        trials: list[Trial],
        table: Path,
        say: Callable[[str], None] = print,
        retries: int = 1,
        retry_failed: bool = False,
    ) -> None:
        self.plan = plan
        self.trials = trials
        self.table = table
        self.say = say
        self.retries = retries
        self.failures: dict[str, int] = {}
        self.begun: dict[str, int] = {}
        self.jobs: dict[str, Job] = {}
        self.problem = ''
        rows = ledger.read(table)
        self.recorded, self.given_up = (
            {row['trial'] for row in rows if row['status'] == status}
            for status in ('done', 'failed')
        )
        if retry_failed:
            self.given_up = set()
        # What the plan calls the metrics may have changed since.
        by_trial: dict[str, list[dict[str, str]]] = {}
        for row in rows:
            by_trial.setdefault(row['trial'], []).append(row)
        for trial in trials:
            if trial.key in self.recorded and out_of_date(
                plan, trial, by_trial[trial.key]
            ):
                self.recorded.discard(trial.key)
                if not self.is_done(trial):
                    raise SweepError(
                        f'{plan.where("tasks", trial.task)}: metrics, scale, '
                        'baseline or dataset are not those of the rows of '
                        f'{trial} in {table}, and {trial.folder}, from which '
                        'they could be written again, is gone. Fix: write '
                        'the plan as it was, or take another --ledger.'
                    )

    def run(
        self,
        executor: Executor,
        show: Callable[[Sweep], None] = lambda sweep: None,
    ) -> Outcome:
        """Start what is missing until nothing more can be done.

        Args:
            executor: Where.
            show: Called again and again, for a picture of the progress.

        Raises:
            SweepError: If the code changes while trials run, no trial can
                be started any more, or the ledger cannot be written at the
                end.
        """
        started = time.time()
        limit = self.plan.budget.get('hours', float('inf')) * 3600
        try:
            while True:
                self.look()
                over = time.time() - started > limit
                ready = [] if over else self.ready()
                stuck = False
                for trial in ready:
                    if not executor.room_for(trial.gpus):
                        break
                    stuck = not self.start(trial, executor)
                    if stuck:
                        break
                if stuck and not self.running():
                    raise SweepError(self.problem)
                show(self)
                if not self.running() and not (ready and not over):
                    break
                self.rest(executor)
        finally:
            self.stop()
            self.look(final=True)
            executor.close()
        return self.outcome()

    def rest(self, executor: Executor) -> None:
        """Wait until a job has ended, for a second at most."""
        until = time.time() + 1
        while True:
            time.sleep(executor.pause)
            ended = any(job.ended() for job in self.jobs.values())
            if ended or time.time() >= until:
                return

    def stop(self, patience: float = 30) -> None:
        """End what runs, and wait until the trainings have ended as well.

        Args:
            patience: Seconds; what takes longer ends by itself.
        """
        for job in self.jobs.values():
            job.stop()
        until = time.time() + patience
        folders = {trial.key: trial.folder for trial in self.trials}
        while time.time() < until and any(
            not job.ended() or worker.is_held(folders[key])
            for key, job in self.jobs.items()
        ):
            time.sleep(0.1)

    def outcome(self) -> Outcome:
        done = [t for t in self.trials if t.key in self.recorded]
        given_up = [t for t in self.trials if t.key in self.given_up]
        failed = [t for t in given_up if t.key not in self.recorded]
        rest = [t for t in self.trials if t not in done and t not in failed]
        # It was done once, and its model is needed again.
        failed += [
            t
            for t in given_up
            if t.key in self.recorded and any(t in r.needed for r in rest)
        ]
        return Outcome(done, failed, rest)

    def running(self) -> list[Trial]:
        """Trials with a worker, also those of another sweep."""
        return [
            trial
            for trial in self.trials
            if trial.key in self.jobs
            or (not self.is_done(trial) and worker.is_held(trial.folder))
        ]

    def is_done(self, trial: Trial) -> bool:
        return (trial.folder / worker.DONE).exists()

    def ready(self) -> list[Trial]:
        """Trials that can be started, in their order."""
        wanted = [t for t in self.trials if t.key not in self.recorded]
        # A model that was recorded, and whose folder is gone, is needed again.
        for trial in list(wanted):
            for one in trial.needed:
                if one not in wanted and not self.is_done(one):
                    wanted.append(one)
        return [
            trial
            for trial in wanted
            if not self.is_done(trial)
            and trial.key not in self.given_up
            and trial.key not in self.jobs
            and all(self.is_done(one) for one in trial.needed)
            and not worker.is_held(trial.folder)
        ]

    def start(self, trial: Trial, executor: Executor) -> bool:
        """Write the folder of a trial and hand it to a worker.

        Returns:
            Whether that could be done; else a line has said why not.
        """
        changed = origin.changed(trial.code)
        if changed:
            raise SweepError(
                describe(
                    'code',
                    ', '.join(changed),
                    'the files that were there when the sweep was started',
                    'start it again: trials that the change concerns are '
                    'run anew, all others are kept',
                )
            )
        metrics = self.plan.tasks[trial.task]['metrics']
        names = [metrics[role] for role in ROLES if role in metrics]
        try:
            self.begun[trial.key] = worker.final_step(trial.folder)
            trial.prepare(names)
            self.jobs[trial.key] = executor.start(trial.folder, trial.gpus)
        except OSError as error:
            self.trouble(
                'folder',
                trial.folder,
                f'a folder that can be written, but: {error}',
            )
            return False
        self.say(f'start  {trial}  (log: {_near(trial.folder / worker.LOG)})')
        return True

    def trouble(self, key: str, path: Path, expected: str) -> str:
        """Say what keeps the sweep from going on, once."""
        problem = describe(
            key,
            str(path),
            expected,
            'make room, and run the sweep again: it goes on where it was',
        )
        if problem != self.problem:
            self.say(problem)
        self.problem = problem
        return problem

    def look(self, final: bool = False) -> None:
        """Take in what has ended.

        Args:
            final: Whether a ledger that cannot be written is an error; else
                the next look tries again.
        """
        by_key = {trial.key: trial for trial in self.trials}
        for key, job in list(self.jobs.items()):
            if job.ended():
                del self.jobs[key]
                trial = by_key[key]
                if not self.is_done(trial) and not final:
                    self._failed(trial)
        new: list[Trial] = []
        rows: list[Mapping[str, Any]] = []
        for trial in self.trials:
            known = trial.key in self.recorded | self.given_up
            if known or not self.is_done(trial):
                continue
            try:
                rows += list(rows_of(self.plan, trial))
                new.append(trial)
            except Exception as error:  # Of this trial; others go on.
                self._give_up(trial, f'its results cannot be read: {error!r}')
        if not rows:
            return
        try:
            ledger.add(self.table, rows)
        except OSError as error:
            problem = self.trouble(
                'ledger',
                self.table,
                f'a file that can be written, but: {error}; the results are '
                'in the folders of the trials',
            )
            if final:
                raise SweepError(problem) from error
            return
        for trial in new:
            self.recorded.add(trial.key)
            mine = [row for row in rows if row['trial'] == trial.key]
            found = ', '.join(
                f'{row["metric"]} {row["value"]:.2f}'
                for row in mine
                if row['role'] == 'overall' and row['last']
            )
            done = len(self.outcome().done)
            self.say(
                f'done   {trial}  [{done}/{len(self.trials)}] {found}, '
                f'{mine[0]["seconds"] / 60:.1f} min'
            )

    def _failed(self, trial: Trial) -> None:
        if worker.is_held(trial.folder):
            return  # Its worker was killed, its training goes on.
        mark = trial.folder / worker.FAILED
        told = json.loads(mark.read_text()) if mark.exists() else {}
        if not told and worker.final_step(trial.folder) > self.begun.get(
            trial.key, 0
        ):
            # Stopped from outside, by a limit of time or a preemption.
            self.say(f'again  {trial}: stopped, and goes on where it was')
            return
        self.failures[trial.key] = self.failures.get(trial.key, 0) + 1
        note = told.get(
            'note', 'its worker was killed, or could not write its folder'
        )
        left = self.retries - self.failures[trial.key] + 1
        if left > 0:
            self.say(f'again  {trial}: {note}')
            return
        self._give_up(trial, note, told.get('log', []))

    def _give_up(
        self, trial: Trial, note: str, log: Iterable[str] = ()
    ) -> None:
        self.given_up.add(trial.key)
        self.say(f'FAILED {trial}: {note}')
        for line in log:
            self.say(f'       | {line}')
        try:
            ledger.add(self.table, [failed_row(self.plan, trial, note)])
        except OSError as error:
            self.say(f'{self.table}: {error}')


def failed_row(
    plan: Plan, trial: Trial, note: str, status: str = 'failed'
) -> dict[str, Any]:
    """The row of the ledger of a trial without numbers."""
    row = dict(
        _shared(plan, trial),
        versions=origin.versions(),
        code=trial.code,
        commit=origin.commit(),
        status=status,
        note=note,
        last=0,
    )
    return {**dict.fromkeys(ledger.COLUMNS, ''), **row}


def out_of_date(plan: Plan, trial: Trial, rows: list[dict[str, str]]) -> bool:
    """Whether a plan calls the numbers of a trial otherwise than its rows."""
    task = plan.tasks[trial.task]
    said = task.get('dataset', trial.task), plan.baseline_of(trial.task)
    if (rows[0]['dataset'], rows[0]['baseline']) != said:
        return True
    wanted = {name: role for role, name in task['metrics'].items()}
    found = {
        row['metric']: row['role']
        for row in rows
        if row['metric'] in wanted or row['role'] in ROLES
    }
    if any(wanted.get(name) != role for name, role in found.items()):
        return True
    mark = trial.folder / worker.DONE
    if not mark.exists():
        return False
    step, values = json.loads(mark.read_text())['evaluations'][-1]
    name = task['metrics']['overall']
    value = round(values[name] * task.get('scale', 1), 4)
    return any(
        float(row['value']) != value
        for row in rows
        if row['metric'] == name and row['step'] == str(step)
    )


def rows_of(plan: Plan, trial: Trial) -> Iterable[Mapping[str, Any]]:
    """The rows of the ledger of a trial that is done."""
    task = plan.tasks[trial.task]
    scale = task.get('scale', 1)
    role_of = {name: role for role, name in task['metrics'].items()}
    done = json.loads((trial.folder / worker.DONE).read_text())
    shared = dict(
        _shared(plan, trial),
        status='done',
        note='',
        label='',
        **{key: done[key] for key in FROM_WORKER},
    )
    for step, values in done['evaluations']:
        last = int(step == done['evaluations'][-1][0])
        here = dict(shared, step=step, last=last)
        for metric, value in values.items():
            if metric in UNITS or (
                value == -1 and metric.partition('/')[0] in MINUS_ONE
            ):
                continue
            if isinstance(value, (int, float)):
                role = role_of.get(metric, '')
                value = round(value * (scale if role else 1), 4)
                yield dict(here, metric=metric, role=role, value=value)
    names, counts = classes_of(trial.folder / done['checkpoint'])
    lists = {'class_counts': counts}
    for metric, value in values.items():
        short = metric.rpartition('/')[2]
        if isinstance(value, list) and short in ('per_class', 'class_counts'):
            lists[short] = value
    for short, found in lists.items():
        role, factor = ('count', 1)
        if short == 'per_class':
            role, factor = 'class', scale
        for index, value in enumerate(found):
            if value == value:  # A class that was not tested has NaN.
                yield dict(
                    here,
                    metric=short,
                    role=role,
                    label=names[index] if names else str(index),
                    value=round(value * factor, 4),
                )
    yield from _training_rows(shared, done['training'])


FROM_WORKER = (
    'seconds',
    'memory_mb',
    'disk_mb',
    'machine',
    'threads',
    'versions',
    'commit',
    'code',
)
# Their -1 says that there was nothing to measure.
MINUS_ONE = ('coco', 'lvis')
# Of an evaluation, and no result of it.
UNITS = {'step', 'time', 'data_time', 'epoch', 'iter', 'lr', 'memory'}


def _training_rows(
    shared: Mapping[str, Any], lines: list[dict[str, Any]]
) -> Iterable[Mapping[str, Any]]:
    """Loss and gradient ratios over the training, forty points at most."""
    by_metric: dict[str, dict[int, float]] = {}
    for values in lines:
        step = values.get('iter', values.get('step', 0))
        for key, value in values.items():
            if key == 'loss' or re.search('/ratio_(head|body|tail)$', key):
                by_metric.setdefault(key, {})[step] = value
    for metric, points in by_metric.items():
        steps = sorted(points)
        every = max(1, -(-len(steps) // 40))
        for step in {*steps[::every], steps[-1]}:
            yield dict(
                shared,
                step=step,
                last=0,
                metric=metric,
                role='loss' if metric == 'loss' else '',
                value=float(f'{points[step]:.5g}'),
            )


def _shared(plan: Plan, trial: Trial) -> dict[str, Any]:
    task = plan.tasks[trial.task]
    return dict(
        schema=ledger.SCHEMA,
        trial=trial.key,
        config=trial.config_key,
        data=trial.data_key,
        task=trial.task,
        dataset=task.get('dataset', trial.task),
        method=trial.method,
        seed=trial.seed,
        baseline=plan.baseline_of(trial.task),
        command=command_of(plan, trial),
    )


def classes_of(checkpoint: Path) -> tuple[list[str], list[float]]:
    """Names of the labels, and the counts that a loss of ours was given.

    Either is empty where the checkpoint has none.
    """
    if not checkpoint.exists():
        return [], []
    saved = torch.load(checkpoint, map_location='cpu', weights_only=False)
    meta = saved.get('meta', {})
    names = meta.get('label_names') or meta.get('dataset_meta', {}).get(
        'classes'
    )
    counts: list[float] = next(
        (
            value.tolist()
            for key, value in saved.get('state_dict', {}).items()
            if key.endswith('.class_counts') and len(value) == len(names or ())
        ),
        [],
    )
    return list(names or ()), counts


def _near(path: Path) -> str:
    near = os.path.relpath(path)
    return str(path) if near.startswith('..') else near
