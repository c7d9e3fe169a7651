# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""A ledger as a report needs it: which trials count, and their values."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterable, Mapping, Union

from ..messages import fault
from . import ledger, origin

if TYPE_CHECKING:
    import pandas as pd

ROLES = ('overall', 'head', 'middle', 'tail')
Source = Union[str, 'os.PathLike[str]', Iterable[Mapping[str, Any]]]


def needed(name: str) -> Any:
    """Import a package that only sweeps need.

    Args:
        name: Of the module, which may have dots.

    Raises:
        ImportError: If it is not installed; the message says how to get it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            str(
                fault(
                    'import',
                    name,
                    'the packages that a report is made with',
                    "pip install 'mm-lt-losses[sweeps]'",
                    'lt_losses_mm.sweeps',
                )
            )
        ) from error


@dataclass(frozen=True)
class Task:
    """What a ledger says of one task.

    Args:
        name: Of the plan.
        dataset: Of the plan.
        baseline: The method that others are compared with.
        methods: Those with a finished trial, in the order of the ledger.
        finals: Indexed by (method, seed), a column for each of ``ROLES``;
            the last evaluation. NaN where there is no value.
        rows: All rows of the finished trials that count.
        trials: One row a trial that counts, failed ones too, with the
            columns of the ledger, ``last_step`` and ``changed``, the parts
            of the code that are not what they were.
    """

    name: str
    dataset: str
    baseline: str
    methods: tuple[str, ...]
    finals: pd.DataFrame
    rows: pd.DataFrame
    trials: pd.DataFrame

    def values(self, method: str, role: str = 'overall') -> list[float]:
        """One value a run, by seed; empty without any."""
        if method not in self.methods:
            return []
        return self.finals.loc[[method], role].dropna().tolist()

    def metric(self, role: str = 'overall') -> str:
        """Name of the metric with a role, empty without one."""
        names = self.rows.loc[self.rows['role'] == role, 'metric']
        return str(names.iloc[0]) if len(names) else ''

    def counts(self) -> pd.Series:
        """Training count of each class, by name, most frequent first."""
        rows = self.rows[self.rows['role'] == 'count']
        counts = rows.groupby('label', sort=False)['value'].first()
        return counts.sort_values(ascending=False, kind='stable')

    def classes(self) -> pd.DataFrame:
        """Mean over the runs of each class (index) and method (column)."""
        rows = self.rows[
            (self.rows['role'] == 'class') & (self.rows['last'] == 1)
        ]
        table = rows.groupby(['label', 'method'], sort=False)['value'].mean()
        order = self.counts().index
        table = table.unstack()
        return table.reindex(
            index=order if len(order) else table.index,
            columns=[m for m in self.methods if m in table.columns],
        )

    def curve(self, method: str, role: str) -> pd.Series:
        """Mean over the runs at each step that all of them have."""
        rows = self.rows[
            (self.rows['method'] == method) & (self.rows['role'] == role)
        ]
        return _mean_of_all(rows)

    def ratio(self, method: str, group: str) -> pd.Series:
        """Like :meth:`curve`, of the gradient ratio of a third of classes.

        The first loss of the model that has one stands for the model.
        """
        end = f'/ratio_{group}'
        mine = self.rows[self.rows['method'] == method]
        names = mine.loc[
            mine['metric'].str.startswith('statistics/')
            & mine['metric'].str.endswith(end),
            'metric',
        ]
        if not len(names):
            return _mean_of_all(mine.iloc[:0])
        return _mean_of_all(mine[mine['metric'] == names.iloc[0]])


def _mean_of_all(rows: pd.DataFrame) -> pd.Series:
    rows = rows.dropna(subset=['value'])
    found = rows.groupby('step')['value'].agg(['mean', 'size'])
    # Where one run is longer, its end alone would look like a jump.
    return found.loc[found['size'] == found['size'].max(), 'mean']


@dataclass(frozen=True)
class Results:
    """All tasks of a ledger.

    Args:
        tasks: In the order of the ledger.
        superseded: How many trials are left out, because another one has the
            same task, method and seed.
    """

    tasks: tuple[Task, ...]
    superseded: int

    @property
    def methods(self) -> tuple[str, ...]:
        """Methods with a finished trial in any task, baselines first."""
        found = [t.baseline for t in self.tasks if t.baseline in t.methods]
        found += [m for task in self.tasks for m in task.methods]
        return tuple(dict.fromkeys(found))


def read(source: Source) -> Results:
    """Read a ledger.

    Of a task and method only the runs count that have config and data of
    the last finished one. Of several trials with one task, method and seed,
    one counts: a finished one before a failed one, then one whose code is
    still the same, then the one that the ledger has last.

    Args:
        source: Path of a ledger, or its rows.

    Raises:
        ImportError: If pandas is missing.
        ValueError: If the ledger is not there or has no rows, or if a line
            is no row of a ledger.
    """
    pd = needed('pandas')
    name = 'rows'
    if isinstance(source, (str, os.PathLike)):
        name, source = str(Path(source)), ledger.read(source)
    rows = pd.DataFrame(list(source), columns=list(ledger.COLUMNS))
    if not len(rows):
        raise fault(
            'ledger',
            name,
            'a ledger with at least one row',
            'run the plan first: `sweep run PLAN`',
        )
    for column in rows.columns:
        if column in ledger.NUMBERS:
            numbers = pd.to_numeric(rows[column], errors='coerce')
            rows[column] = numbers.where(numbers.abs() != float('inf'))
        else:
            rows[column] = rows[column].fillna('').astype(str)

    trials = rows.drop_duplicates('trial', keep='last').copy()
    steps = rows[rows['last'] == 1].groupby('trial')['step'].max()
    trials['last_step'] = trials['trial'].map(steps)
    changed = {c: ' '.join(origin.changed(c)) for c in set(trials['code'])}
    trials['changed'] = trials['code'].map(changed)
    trials['_rank'] = 2 * (trials['status'] == 'done') + (
        trials['changed'] == ''
    )
    # Runs of another config or other data are no runs of the same method.
    done = trials[trials['status'] == 'done']
    latest = (done if len(done) else trials).drop_duplicates(
        ['task', 'method'], keep='last'
    )
    same = trials.merge(
        latest[['task', 'method', 'config', 'data']],
        how='left',
        on=['task', 'method'],
        suffixes=('', '_latest'),
    ).set_index(trials.index)
    other = (same['config'] != same['config_latest']) | (
        same['data'] != same['data_latest']
    )
    current = trials[~(other & same['config_latest'].notna())]
    key = ['task', 'method', 'seed']
    chosen = current.sort_values('_rank', kind='stable').drop_duplicates(
        key, keep='last'
    )
    counted = trials[trials['trial'].isin(chosen['trial'])]
    tasks = tuple(
        _task(str(task), mine, rows[rows['trial'].isin(mine['trial'])])
        for task, mine in counted.groupby('task', sort=False)
    )
    return Results(tasks, len(trials) - len(counted))


def _task(name: str, trials: pd.DataFrame, rows: pd.DataFrame) -> Task:
    done = rows[rows['status'] == 'done']
    methods = tuple(dict.fromkeys(done['method']))
    finals = (
        done[(done['last'] == 1) & done['role'].isin(ROLES)]
        .groupby(['method', 'seed', 'role'])['value']
        .first()
        .unstack('role')
        .reindex(columns=list(ROLES))
    )
    # A finished trial without any value of a role has a row nevertheless.
    keys = done.groupby(['method', 'seed']).size().index
    return Task(
        name=name,
        dataset=', '.join(dict.fromkeys(trials['dataset'])),
        baseline=str(trials['baseline'].iloc[-1]),
        methods=methods,
        finals=finals.reindex(keys),
        rows=done,
        trials=trials.drop(columns='_rank'),
    )
