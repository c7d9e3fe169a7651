# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Finds good values of a method's parameters: one study of Optuna a task.

A study tries *points*, values of all parameters. A point is a method of the
sweep like any other, trained once a seed. What was tried is in ``search.db``
in the folder of the sweep, so a search that was killed goes on.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Callable, Iterator, Mapping

import yaml
from rich.console import Console
from rich.table import Table

from ..messages import describe
from ..recipes import loss_configs
from . import ledger, origin, worker
from .executors import Executor
from .plan import Plan, value_of
from .sweep import Outcome, Sweep, failed_row
from .trial import Builder, Trial

# Points drawn at random before Optuna models them, and points that are
# finished before one is pruned.
STARTUP = 5


@dataclass(eq=False)
class Point:
    """Values that a study tries, and their trials.

    Args:
        tried: The trial of Optuna.
        method: Name in the plan.
        trials: One a seed.
        reported: Last step that Optuna knows the value of, or -1.
    """

    tried: Any
    method: str
    trials: list[Trial]
    reported: int


class Search(Sweep):
    """A sweep whose trials are chosen while it runs.

    Args:
        plan: With the key ``search``.
        folder: Of the sweep.
        tasks: To search in.
        table: Path of the ledger.
        say: Takes each line for a person.
        retries: How often a trial is run again that has failed.
        retry_failed: Whether trials that an earlier run gave up are tried
            again.

    Raises:
        PlanError: If no task takes the method, or a value is refused.
    """

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        tasks: list[str],
        table: Path,
        say: Callable[[str], None] = print,
        retries: int = 1,
        retry_failed: bool = False,
    ) -> None:
        super().__init__(plan, [], table, say, retries, retry_failed)
        self.optuna = _optuna()
        self.retry_failed = retry_failed
        self.pruned = {
            row['trial']
            for row in ledger.read(table)
            if row['status'] == 'pruned'
        }
        self.builder = Builder(plan, folder)
        self.studies: dict[str, Any] = {}
        self.points: dict[str, list[Point]] = {}
        self.methods: dict[str, dict[int, str]] = {}
        self.executor: Executor | None = None
        folder.mkdir(parents=True, exist_ok=True)
        for task in tasks:
            self._open(task, folder)
        if not self.studies:
            plan.refuse(
                ('search', 'method'),
                plan.search['method'],
                f'a method that a head of {", ".join(tasks)} takes',
                'see docs/which_loss.md: which head takes which loss',
            )

    def run(
        self,
        executor: Executor,
        show: Callable[[Sweep], None] = lambda sweep: None,
    ) -> Outcome:
        self.executor = executor
        return super().run(executor, show)

    def look(self, final: bool = False) -> None:
        """Take in what has ended, and choose what comes next."""
        super().look(final)
        self._settle()
        # A value of a list may come again, and is finished at once.
        while not final and self._next():
            self._settle()

    def _settle(self) -> None:
        for task in self.points:
            for point in list(self.points[task]):
                if not self._finished(task, point):
                    self._prune(task, point)

    def _open(self, task: str, folder: Path) -> None:
        """Load the study of a task, or make one."""
        search, seeds = self.plan.search, self.plan.seeds_of(task)
        # The ends of the parameters, in case that the loss refuses them.
        found = [
            Builder(self.plan, folder).trial(
                task, self._point(values), seeds[0], False
            )
            for values in _ends(search['parameters'])
        ]
        trial = found[0]
        if trial is None:
            self.say(
                f'{task}: left out, because the head does not take the '
                f'loss: {search["method"]}'
            )
            return
        # Of a study with other trainings no value is taken over.
        how = {k: v for k, v in search.items() if k != 'trials'}
        name = origin.digest(trial.key, json.dumps([how, seeds]))
        study = self.optuna.create_study(
            storage=f'sqlite:///{folder / "search.db"}',
            study_name=f'{task}-{name}',
            load_if_exists=True,
            direction='maximize',
            pruner=self.optuna.pruners.MedianPruner(STARTUP),
        )
        self.studies[task] = study
        self.points[task] = []
        self.methods[task] = {}
        for tried in study.get_trials(deepcopy=False):
            if tried.state.is_finished():
                self.methods[task][tried.number] = self._point(tried.params)
            else:
                # The search was killed meanwhile.
                self._add(
                    task,
                    self.optuna.trial.Trial(study, tried._trial_id),
                    tried.last_step or -1,
                )

    def _point(self, values: Mapping[str, Any]) -> str:
        """Name of the method with these values, four digits of each."""
        return self.plan.point(
            {
                # In the order that names are read in.
                key: float(f'{values[key]:.4g}')
                if isinstance(values[key], float)
                else values[key]
                for key in self.plan.search['parameters']
            }
        )

    def _add(self, task: str, tried: Any, reported: int = -1) -> None:
        """Make trials of what a study tries."""
        for key, values in self.plan.search['parameters'].items():
            # It gives what it has given before it was killed.
            if isinstance(values, list):
                tried.suggest_categorical(key, values)
            else:
                tried.suggest_float(key, **values)
        method = self._point(tried.params)
        self.methods[task][tried.number] = method
        before = set(self.builder.trials)
        trials = [
            self.builder.trial(task, method, seed, True)
            for seed in self.plan.seeds_of(task)
        ]
        point = Point(
            tried, method, [t for t in trials if t is not None], reported
        )
        self.points[task].append(point)
        if self._drop(task, point):
            return
        # With those that they need, and none twice.
        for place, trial in self.builder.trials.items():
            if place not in before:
                self.trials.append(trial)
                failed = (trial.folder / worker.FAILED).exists()
                if failed and not self.retry_failed:
                    self.given_up.add(trial.key)

    def _drop(self, task: str, point: Point) -> bool:
        """Tell Optuna of a point that was pruned, now or earlier."""
        keys = {trial.key for trial in point.trials}
        if not keys & self.pruned:
            return False
        self.studies[task].tell(
            point.tried, state=self.optuna.trial.TrialState.PRUNED
        )
        self.points[task].remove(point)
        self.trials = [
            trial
            for trial in self.trials
            if trial.key not in keys or trial.key in self.recorded
        ]
        return True

    def _next(self) -> bool:
        """Choose a point, if a training can be started and none waits."""
        open_ = {
            task: study
            for task, study in self.studies.items()
            if len(study.get_trials(deepcopy=False))
            < self.plan.search['trials']
        }
        if not open_ or self.executor is None or self.ready():
            return False
        task = min(
            open_, key=lambda t: len(open_[t].get_trials(deepcopy=False))
        )
        if not self.executor.room_for(self.plan.tasks[task].get('gpus', 0)):
            return False
        study = open_[task]
        number = len(study.get_trials(deepcopy=False))
        # By its number: a search that goes on draws what it would have drawn.
        study.sampler = self.optuna.samplers.TPESampler(
            n_startup_trials=STARTUP,
            seed=int(origin.digest(task, str(number)), 16) % 2**32,
        )
        self._add(task, study.ask())
        return True

    def _finished(self, task: str, point: Point) -> bool:
        """Tell Optuna of a point whose trials are all in the ledger."""
        if not all(trial.key in self.recorded for trial in point.trials):
            return False
        keys = {trial.key for trial in point.trials}
        rows = [
            row
            for row in ledger.read(self.table)
            if row['trial'] in keys and row['metric'] == self._metric(task)
        ]
        by_step: dict[int, list[float]] = {}
        for row in rows:
            by_step.setdefault(int(row['step']), []).append(
                float(row['value'])
            )
        for step, values in sorted(by_step.items()):
            if step > point.reported:
                point.tried.report(fmean(values), step)
        value = fmean(float(r['value']) for r in rows if r['last'] == '1')
        self.studies[task].tell(point.tried, value)
        self.points[task].remove(point)
        return True

    def _metric(self, task: str) -> str:
        return self.plan.tasks[task]['metrics'][self.plan.search['metric']]

    def _prune(self, task: str, point: Point) -> None:
        """End a point that is worse than half of the finished ones."""
        running = [t for t in point.trials if t.key in self.jobs]
        if not running:
            return
        begun = [t for t in point.trials if t.key in self.recorded] + running
        scale = self.plan.tasks[task].get('scale', 1)
        seen = [
            dict(_evaluations(trial, self._metric(task))) for trial in begun
        ]
        # The last one ends a training anyway.
        last = max(
            (
                step
                for tried in self.studies[task].get_trials(deepcopy=False)
                if tried.state == self.optuna.trial.TrialState.COMPLETE
                for step in tried.intermediate_values
            ),
            default=0,
        )
        for step in sorted(set.intersection(*map(set, seen))):
            if not point.reported < step < last:
                continue
            point.tried.report(
                scale * fmean(values[step] for values in seen), step
            )
            point.reported = step
        if point.reported < 0 or not point.tried.should_prune():
            return
        note = f'pruned at step {point.reported}'
        left = [t for t in point.trials if t.key not in self.recorded]
        try:
            ledger.add(
                self.table,
                [failed_row(self.plan, t, note, 'pruned') for t in left],
            )
        except OSError as error:
            self.say(f'{self.table}: {error}')
            return  # The next look does it.
        for trial in running:
            self.jobs.pop(trial.key).stop()
        self.pruned |= {trial.key for trial in left}
        for other in list(self.points[task]):
            self._drop(task, other)
        self.say(f'pruned {task}/{point.method}: {note[7:]}')

    def show_result(self) -> None:
        """Print what was tried in each task, best first, and what to paste."""
        console = Console()
        role = self.plan.search['metric']
        overall = {
            (row['task'], row['method'], row['seed']): float(row['value'])
            for row in ledger.read(self.table)
            if row['role'] == 'overall' and row['last'] == '1'
        }
        for task, study in self.studies.items():
            seen = Table(title=f'{task}: {self.plan.search["method"]}')
            keys = list(self.plan.search['parameters'])
            for name in (*keys, role, 'overall'):
                seen.add_column(name, justify='right', overflow='fold')
            seen.add_column('', overflow='fold')
            tried = study.get_trials(deepcopy=False)
            ranked = sorted(
                (one for one in tried if one.number in self.methods[task]),
                key=lambda one: (
                    not one.state.is_finished(),
                    one.state.name == 'PRUNED',
                    -(one.value or 0),
                ),
            )
            for one in ranked:
                method = self.methods[task][one.number]
                values = self.plan.methods[method].searched
                every = [
                    overall.get((task, method, str(seed)))
                    for seed in self.plan.seeds_of(task)
                ]
                known = [value for value in every if value is not None]
                complete = one.state.name == 'COMPLETE' and known
                note = 'not finished'
                if one.state.name == 'PRUNED':
                    note = f'pruned at step {one.last_step}'
                seen.add_row(
                    *(str(values[key]) for key in keys),
                    f'{one.value:.2f}' if complete else '-',
                    f'{fmean(known):.2f}' if complete else '-',
                    '' if complete else note,
                )
            console.print(seen)
            done = [one for one in ranked if one.state.name == 'COMPLETE']
            if done:
                seeds = len(self.plan.seeds_of(task))
                console.print(
                    f'The best of {len(tried)}, {seeds} run(s) each, looks '
                    'better than it is: train it with other seeds.',
                    soft_wrap=True,
                )
                method = self.methods[task][done[0].number]
                console.print(
                    *self._to_paste(task, method),
                    sep='\n',
                    soft_wrap=True,
                    markup=False,
                    highlight=False,
                )

    def _to_paste(self, task: str, method: str) -> Iterator[str]:
        """Lines for a plan, and for a config."""
        values = dict(self.plan.methods[method].searched)
        name = self.plan.search['method']
        line = yaml.safe_dump(
            {'overrides': {name: {'options': values}}},
            default_flow_style=True,
            width=float('inf'),
        )
        yield f'In a plan, at tasks.{task}:'
        yield f'    {line.strip()[1:-1]}'
        if all(key.startswith('loss.') for key in values):
            seed = self.plan.seeds_of(task)[0]
            trial = self.builder.trial(task, method, seed, True)
            assert trial is not None
            head, key = loss_configs(trial.cfg)[0]
            options = ', '.join(f'{k}={v!r}' for k, v in head[key].items())
            yield 'In a config, in the head:'
            yield f'    {key}=dict({options})'
        yield ''


def _ends(parameters: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The lowest and the highest values, the first and last of lists."""
    for end, index in (('low', 0), ('high', -1)):
        yield {
            key: values[index]
            if isinstance(values, list)
            else float(values[end])
            for key, values in parameters.items()
        }


def points_named(plan: Plan, folder: Path, name: str) -> list[Trial]:
    """Trials of a point, as the ledger's command names them.

    Args:
        plan: A plan.
        folder: Of the sweep.
        name: ``TASK/METHOD[KEY=VALUE]`` or with ``/SEED``.

    Returns:
        list: None, if it is not the name of a point of the plan's search.
    """
    found = re.fullmatch(r'([\w.-]+)/([\w.-]+)\[(.+)\](?:/(\d+))?', name)
    if (
        not found
        or found[1] not in plan.tasks
        or found[2] != plan.search.get('method')
    ):
        return []
    values = [value_of(x.partition('=')[2]) for x in found[3].split(',')]
    method = plan.point(dict(zip(plan.search['parameters'], values)))
    seeds = [int(found[4])] if found[4] else plan.seeds_of(found[1])
    builder = Builder(plan, folder)
    for seed in seeds:
        builder.trial(found[1], method, seed, True)
    return list(builder.trials.values())


def _evaluations(trial: Trial, metric: str) -> Iterator[tuple[int, float]]:
    """Step -> value in the log of a trial that may be running."""
    for values in worker.scalars(trial.folder):
        if 'loss' not in values and metric in values and 'step' in values:
            yield values['step'], values[metric]


def _optuna() -> Any:
    """Optuna, which is asked for when it is used."""
    try:
        import optuna
    except ImportError as error:
        raise ImportError(
            describe(
                'search',
                'optuna',
                f'the package optuna, which is not installed ({error})',
                'pip install optuna',
            )
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
