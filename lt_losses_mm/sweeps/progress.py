# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""What a person sees of a sweep: before it, while it runs, from elsewhere."""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from . import ledger, worker
from .plan import Plan
from .timing import Costs, free_mb, gigabytes
from .trial import Trial

if TYPE_CHECKING:
    from .sweep import Sweep

# Seconds between two lines on what runs, where there is no terminal.
PERIOD = 30


class Position(NamedTuple):
    """How far a training is, as its log says."""

    step: str = 'starting'
    eta: str = ''
    memory: str = ''
    metric: str = ''

    def __str__(self) -> str:
        more = [
            f'{name} {value}'
            for name, value in zip(('eta', 'memory'), (self.eta, self.memory))
            if value
        ]
        return ', '.join([self.step, *more, *filter(None, [self.metric])])


def position(trial: Trial, overall: str) -> Position:
    """The last place that the log of a trial tells.

    Args:
        trial: That is running.
        overall: Name of the metric that is shown.
    """
    seen = Position()
    for line in worker.log_tail(trial.folder, 200):
        train = re.search(r'(?:Epoch|Iter)\(train\) *((?:\[[^]]*\] *)+)', line)
        if train:
            eta = re.search(r'eta: *((?:\d+ days?, )?[\d:]+)', line)
            memory = re.search(r'memory: *(\d+)', line)
            seen = seen._replace(
                step='training '
                + ' '.join(re.sub(r'[\[\] ]+', ' ', train[1]).split()),
                eta=eta[1] if eta else '',
                memory=f'{memory[1]} MB' if memory else '',
            )
        value = re.search(rf'{re.escape(overall)}: *([-\d.]+)', line)
        if value:
            seen = seen._replace(metric=f'{overall} {value[1]}')
    return seen


class Lines:
    """Lines of a sweep; in a terminal with bars below them."""

    def __init__(self) -> None:
        self.console = Console(markup=False)
        self.live = (
            Live(console=self.console, refresh_per_second=4)
            if self.console.is_terminal
            else None
        )
        self.told = time.time()
        self.estimated, self.left = 0.0, ''

    def __enter__(self) -> Lines:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self.live:
            self.live.stop()

    def say(self, line: str) -> None:
        """Print a line that stays."""
        if self.live:
            self.console.print(line, markup=False, highlight=False)
        else:
            print(line, flush=True)

    def show(self, sweep: Sweep) -> None:
        """Show how far the sweep and each training is."""
        if not self.live and time.time() - self.told < PERIOD:
            return
        self.told = time.time()
        outcome = sweep.outcome()
        total = len(sweep.trials)
        running = sweep.running()
        rows = [
            (str(trial), position(trial, overall_of(sweep.plan, trial)))
            for trial in running
        ]
        if time.time() - self.estimated >= PERIOD:
            # It reads the whole ledger.
            self.estimated, self.left = time.time(), remaining(sweep)
        left = self.left
        if self.live is None:
            what = '; '.join(f'{name}: {place}' for name, place in rows)
            print(
                f'       [{len(outcome.done)}/{total}'
                f'{", " + left if left else ""}] {what}',
                flush=True,
            )
            return
        table = Table.grid(padding=(0, 2))
        for name, place in rows:
            table.add_row(name, str(place))
        bar = Progress(
            TextColumn('{task.description}'),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn('{task.fields[left]}'),
        )
        failed = f', {len(outcome.failed)} failed' if outcome.failed else ''
        bar.add_task(
            f'{sweep.plan.name}{failed}',
            total=total,
            completed=len(outcome.done),
            left=left,
        )
        self.live.update(Group(table, bar))


def plain_console() -> Console:
    """A console; in a log its tables are wider than a terminal."""
    # A point of a grid has brackets in its name.
    return Console(width=None if sys.stdout.isatty() else 120, markup=False)


def overall_of(plan: Plan, trial: Trial) -> str:
    """Name of the metric that decides, in the log."""
    return plan.tasks[trial.task]['metrics']['overall']


def remaining(sweep: Sweep) -> str:
    """The time that the rest will take, if the ledger knows it."""
    rest = sweep.outcome().waiting
    if not rest:
        return ''
    costs = Costs(sweep.table, sweep.trials)
    known = [costs.of(trial) for trial in rest]
    if None in known:
        return ''
    at_a_time = max(1, len(sweep.running()))
    hours = sum(x.seconds for x in known if x is not None) / 3600 / at_a_time
    return f'about {in_words(hours)} left'


def in_words(hours: float) -> str:
    """``"2.5 h"`` or ``"12 min"``."""
    return f'{hours:.1f} h' if hours >= 1 else f'{hours * 60:.0f} min'


def state_of(trial: Trial, recorded: dict[str, str]) -> str:
    """One word on a trial."""
    if recorded.get(trial.key) == 'done' or (
        (trial.folder / worker.DONE).exists()
    ):
        return 'done'
    if worker.is_held(trial.folder):
        return 'running'
    # The ledger knows it of one whose folder is gone.
    failed = (trial.folder / worker.FAILED).exists()
    if failed or recorded.get(trial.key) == 'failed':
        return 'failed'
    return 'waiting'


def recorded_in(table: Path) -> dict[str, str]:
    """Trial -> its status in a ledger; one that failed may be done now."""
    rows = ledger.read(table)
    return {
        row['trial']: row['status']
        for row in sorted(rows, key=lambda row: row['status'] == 'done')
    }


def status(plan: Plan, trials: list[Trial], table: Path) -> None:
    """Print what runs and what is done, by task and method."""
    recorded = recorded_in(table)
    states = {str(trial): state_of(trial, recorded) for trial in trials}
    seen = Table(title=plan.name)
    for name in ('task', 'method', 'done', 'running', 'failed', 'waiting'):
        seen.add_column(
            name,
            justify='left' if name[0] in 'tm' else 'right',
            overflow='fold',
        )
    groups: dict[tuple[str, str], Counter] = {}
    for trial in trials:
        group = groups.setdefault((trial.task, trial.method), Counter())
        group[states[str(trial)]] += 1
    for (task, method), count in groups.items():
        cells = [
            str(count[state] or '-')
            for state in ('done', 'running', 'failed', 'waiting')
        ]
        seen.add_row(task, method, *cells)
    console = plain_console()
    console.print(seen)
    for trial in trials:
        if states[str(trial)] == 'running':
            console.print(
                f'{trial}: {position(trial, overall_of(plan, trial))}'
            )
    for trial in trials:
        if states[str(trial)] == 'failed':
            log = trial.folder / worker.LOG
            where = f', log: {log}' if log.exists() else ''
            console.print(f'{trial} has failed{where}', soft_wrap=True)


def failed_before(number: int) -> str:
    """What becomes of trials that an earlier run gave up."""
    return f'{number} failed before; --retry-failed runs them again'


def dry_run(
    plan: Plan,
    trials: list[Trial],
    left_out: list[str],
    table: Path,
    retry_failed: bool = False,
) -> None:
    """Print the matrix and the time, and write the config of each trial."""
    console = plain_console()
    recorded = recorded_in(table)
    missing = [t for t in trials if state_of(t, recorded) != 'done']
    # As a sweep does, by the ledger: one that was stopped is tried again.
    failed = [t for t in missing if recorded.get(t.key) == 'failed']
    if not retry_failed:
        missing = [t for t in missing if t not in failed]
    for trial in missing:
        trial.write_config()
    matrix = Table(title=f'{plan.name}: seeds to run')
    tasks = list(dict.fromkeys(trial.task for trial in trials))
    matrix.add_column('method', no_wrap=True)
    for task in tasks:
        matrix.add_column(task, justify='right', overflow='fold')
    for method in dict.fromkeys(trial.method for trial in trials):
        cells = []
        for task in tasks:
            every = [t for t in trials if (t.task, t.method) == (task, method)]
            rest = [t for t in every if t in missing]
            cells.append(f'{len(rest)} of {len(every)}' if every else '-')
        matrix.add_row(method, *cells)
    console.print(matrix)
    for sentence in left_out:
        console.print(sentence, soft_wrap=True)
    console.print(costs_of(missing, Costs(table, trials)))
    console.print(
        f'{len(missing)} of {len(trials)} trials are to be run; '
        f'{gigabytes(free_mb(trials[0].folder))} of disk are free'
    )
    if failed and not retry_failed:
        console.print(failed_before(len(failed)))
    if plan.search:
        console.print(
            f'`sweep search` tries {plan.search["trials"]} values of '
            f'{plan.search["method"]} more in each task that takes it'
        )
    if missing:
        console.print(
            f'The complete config of each is {trials[0].folder.parent}'
            '/TRIAL/config.py',
            soft_wrap=True,
        )


def costs_of(missing: list[Trial], costs: Costs) -> Table:
    """Hours and disk of what is to be run, by task, and their sums."""
    seen = Table(title='what it takes, by earlier trials or timed')
    for name in ('task', 'trials', 'time', 'disk'):
        seen.add_column(
            name,
            justify='left' if name == 'task' else 'right',
            overflow='fold',
        )

    def row(name: str, some: list[Trial]) -> None:
        found = [costs.of(trial) for trial in some]
        hours = [cost.seconds / 3600 for cost in found if cost]
        disk = [cost.disk_mb if cost else None for cost in found]
        sizes = [size for size in disk if size is not None]
        cells = []
        for known, said in (
            (hours, in_words(sum(hours))),
            (sizes, gigabytes(sum(sizes))),
        ):
            more = ' and more' if len(known) < len(some) else ''
            cells.append(said + more if known else 'unknown')
        seen.add_row(name, str(len(some)), *cells)

    for task in dict.fromkeys(trial.task for trial in missing):
        row(task, [trial for trial in missing if trial.task == task])
    seen.add_section()
    row('sum', missing)
    notes = []
    if costs.timed:
        notes.append('What was timed is without its evaluations.')
    if None in map(costs.of, missing):
        notes.append('--time-steps 40 trains 40 iterations to know more.')
    seen.caption = ' '.join(notes)
    return seen
