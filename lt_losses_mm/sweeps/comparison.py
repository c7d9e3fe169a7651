# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""What the values of a sweep can decide, and what they cannot.

Within a task the runs (seeds) of a method are the sample: they say how far
chance alone moves a training of this data set. They say nothing of other
data sets, so across tasks each task counts once, with the mean of its runs.
"""

from __future__ import annotations

import itertools
import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Mapping, NamedTuple, Sequence

from .results import needed

if TYPE_CHECKING:
    import pandas as pd

LEVEL = 0.05
# A claim needs so many runs of both methods. One seed of one method moved by
# up to 2.8 points with the rounding alone, so that three agree by luck.
RUNS = 5
# The least p of a two-sided signed-rank test of n tasks is 2 ** (1 - n).
TASKS = 6
# Of so many tasks all subsets are tried for the largest block.
SUBSETS = 12
BETTER, WORSE, UNDECIDED = 'better', 'worse', 'undecided'
# Stands for the baselines of tasks that do not all have the same.
BASELINES = "the task's baseline"


class Estimate(NamedTuple):
    """A mean with its 95 % interval, NaN where one value gives none."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def half(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2


class Difference(NamedTuple):
    """A difference of two means, its 95 % interval and Welch's p.

    Args:
        mean: Method minus baseline.
        low: Lower end of the interval, NaN with one run a side.
        high: Upper end.
        p: Two-sided; NaN where there is no spread to compare with.
        runs: Of the side that has fewer.
    """

    mean: float
    low: float
    high: float
    p: float
    runs: int


class Claim(NamedTuple):
    """What may be said of a method and its baseline.

    Args:
        difference: Over the runs, or over the tasks.
        p: Adjusted by Holm, NaN if not tested.
        verdict: ``'better'``, ``'worse'`` or ``'undecided'``.
        why: Of ``'undecided'``.
    """

    difference: Difference
    p: float
    verdict: str
    why: str = ''


def interval(values: Sequence[float]) -> Estimate:
    """Mean and Student's t interval.

    Example:
        >>> interval([1.0, 2.0, 3.0]).n
        3
    """
    n = len(values)
    if not n:
        return Estimate(math.nan, math.nan, math.nan, 0)
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean, math.nan, math.nan, 1)
    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    quantile = float(needed('scipy.stats').t.ppf(1 - LEVEL / 2, n - 1))
    half = quantile * spread / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n)


def difference(
    values: Sequence[float], baseline: Sequence[float]
) -> Difference:
    """Welch's interval and test of two samples, whose spread may differ."""
    runs = min(len(values), len(baseline))
    if not runs:
        return Difference(math.nan, math.nan, math.nan, math.nan, 0)
    mean = interval(values).mean - interval(baseline).mean
    if runs == 1 or len({*values}) == len({*baseline}) == 1:
        return Difference(mean, math.nan, math.nan, math.nan, runs)
    found = needed('scipy.stats').ttest_ind(values, baseline, equal_var=False)
    ends = found.confidence_interval(1 - LEVEL)
    return Difference(
        mean, float(ends.low), float(ends.high), float(found.pvalue), runs
    )


def holm(p: Sequence[float]) -> list[float]:
    """Adjust the p values of one family (Holm, 1979).

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    adjusted = [0.0] * len(p)
    greatest = 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        greatest = max(greatest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = greatest
    return adjusted


def _verdict(mean: float, p: float) -> tuple[str, str]:
    if p < LEVEL:
        return (BETTER if mean > 0 else WORSE), ''
    return UNDECIDED, 'the spread is too great for the difference'


def within(
    values: Mapping[str, Mapping[str, Sequence[float]]], baseline: str
) -> dict[tuple[str, str], Claim]:
    """Compare the methods of a task with its baseline.

    All comparisons that have runs enough for a claim are one family.

    Args:
        values: Method -> role -> one value a run.
        baseline: One of the methods; without runs of it nothing is decided.

    Returns:
        The claim of each (method, role) but those of the baseline.
    """
    least = values.get(baseline, {})
    differences = {
        (method, role): difference(runs, least.get(role, ()))
        for method, roles in values.items()
        if method != baseline
        for role, runs in roles.items()
    }
    tested = [
        key
        for key, found in differences.items()
        if found.runs >= RUNS and not math.isnan(found.p)
    ]
    adjusted = dict(zip(tested, holm([differences[k].p for k in tested])))
    claims = {}
    for key, found in differences.items():
        if key in adjusted:
            verdict, why = _verdict(found.mean, adjusted[key])
            claims[key] = Claim(found, adjusted[key], verdict, why)
            continue
        why = (
            'no value to compare'
            if not found.runs
            else 'fewer than five runs'
            if found.runs < RUNS
            else 'the runs have no spread'
        )
        claims[key] = Claim(found, math.nan, UNDECIDED, why)
    return claims


@dataclass(frozen=True)
class Standing:
    """A method across the tasks that it ran in.

    Args:
        method: Its name, or ``BASELINES``.
        tasks: How many it ran in beside the baseline.
        rank: Mean over the tasks of the block, 1 the best; NaN outside.
        gain: Overall, in percent of the baseline's value.
        tail: In points over the baseline.
        wins: Tasks with a greater overall value than the baseline.
        claim: By Wilcoxon's signed ranks of the gains.
    """

    method: str
    tasks: int
    rank: float
    gain: Estimate
    tail: Estimate
    wins: int
    claim: Claim | None


@dataclass(frozen=True)
class Across:
    """The comparison of methods over tasks.

    Args:
        standings: Best mean rank first, then by gain.
        tasks: Of the block, the tasks that all methods of the block ran in.
        methods: Of the block.
        friedman: p of the hypothesis that all methods of the block are
            alike; NaN if not tested.
        pairs: p of all pairs of the block, adjusted by Holm; None if there
            are too few tasks.
    """

    standings: list[Standing]
    tasks: list[str]
    methods: list[str]
    friedman: float
    pairs: pd.DataFrame | None


def block(present: pd.DataFrame) -> tuple[list[str], list[str]]:
    """The largest block without gaps of a table of tasks and methods.

    Of two blocks of one size that with more tasks counts, since they are the
    sample. With more than ``SUBSETS`` tasks not all blocks are tried: methods
    are taken in the order of how many tasks they have.

    Args:
        present: Whether a task (row) has a method (column).

    Returns:
        Tasks and methods; both empty if fewer than two of either.
    """
    order = present.sum().sort_values(ascending=False, kind='stable').index
    have = {
        task: frozenset(present.columns[row])
        for task, row in zip(present.index, present.to_numpy())
    }
    tried = [frozenset(order[:size]) for size in range(2, len(order) + 1)]
    if len(have) <= SUBSETS:
        tried = [
            frozenset.intersection(*some)
            for size in range(2, len(have) + 1)
            for some in itertools.combinations(have.values(), size)
        ]
    best: tuple[int, int, list[str], list[str]] = (0, 0, [], [])
    # Not a set, whose order, and so which of two alike counts, is by chance.
    for methods in dict.fromkeys(tried):
        tasks = [task for task, mine in have.items() if methods <= mine]
        if len(tasks) < 2 or len(methods) < 2:
            continue
        kept = [method for method in order if method in methods]
        found = (len(tasks) * len(kept), len(tasks), tasks, kept)
        best = max(best, found, key=lambda b: b[:2])
    return best[2], best[3]


def across(
    overall: Mapping[str, Mapping[str, float]],
    tail: Mapping[str, Mapping[str, float]],
    baselines: Mapping[str, str],
    runs: Mapping[str, Mapping[str, int]],
) -> Across:
    """Compare methods over tasks, each task once.

    Args:
        overall: Task -> method -> mean over the runs.
        tail: The same of the tail.
        baselines: Of each task; tasks without a value of theirs are left
            out.
        runs: Task -> method -> how many its mean is of. Fewer than ``RUNS``
            in any task leave a method undecided.

    Raises:
        ImportError: If scipy or scikit-posthocs is missing.
    """
    pd, stats = needed('pandas'), needed('scipy.stats')
    one = len(set(baselines.values())) == 1
    common = next(iter(baselines.values())) if one else BASELINES

    def named(task: str, values: Mapping[str, float]) -> dict[str, float]:
        base = baselines[task]
        return {
            common if method == base else method: value
            for method, value in values.items()
        }

    tasks = [t for t, v in overall.items() if baselines[t] in v]
    table = pd.DataFrame(
        [named(t, overall[t]) for t in tasks], index=tasks, dtype=float
    )
    if not len(table):
        return Across([], [], [], math.nan, None)
    # A share of nothing is no number, so such a task cannot be counted.
    base = table[common].where(table[common] != 0)
    gains = (
        100 * table.sub(table[common], axis=0).div(base.abs(), axis=0)
    ).dropna(how='all')
    tails = pd.DataFrame(
        [named(t, tail.get(t, {})) for t in tasks], index=tasks, dtype=float
    ).reindex(columns=table.columns)
    tails = tails.sub(tails[common], axis=0)

    rows, columns = block(gains.notna())
    ranks = gains.loc[rows, columns].rank(axis=1, ascending=False).mean()
    friedman, pairs = math.nan, None
    if len(rows) >= TASKS and len(columns) >= 3:
        samples = [gains.loc[rows, c] for c in columns]
        friedman = float(stats.friedmanchisquare(*samples).pvalue)
    others = [m for m in table.columns if m != common]
    few = {
        m: [
            task
            for task in gains.index[gains[m].notna()]
            if min(runs[task][m], runs[task][baselines[task]]) < RUNS
        ]
        for m in others
    }
    tested = {m: gains[m].dropna() for m in others if not few[m]}
    tested = {m: g for m, g in tested.items() if (g != 0).sum() >= TASKS}
    raw = [float(stats.wilcoxon(g).pvalue) for g in tested.values()]
    adjusted = dict(zip(tested, holm(raw)))
    if len(rows) >= TASKS and len(columns) >= 3:
        pairs = _pairs(gains.loc[rows, columns])

    standings = []
    for method in table.columns:
        mine = gains[method].dropna()
        gain = interval(mine.tolist())
        standings.append(
            Standing(
                method=method,
                tasks=len(mine),
                rank=float(ranks.get(method, math.nan)),
                gain=gain,
                tail=interval(tails[method].dropna().tolist()),
                wins=int((mine > 0).sum()),
                claim=None
                if method == common
                else _claim(
                    mine, few[method], adjusted.get(method), len(adjusted)
                ),
            )
        )
    standings.sort(
        key=lambda s: (
            s.rank if s.rank == s.rank else math.inf,
            -s.gain.mean if s.gain.n else math.inf,
        )
    )
    return Across(standings, rows, columns, friedman, pairs)


def _claim(
    gains: pd.Series, few: list[str], p: float | None, family: int
) -> Claim:
    mean = interval(gains.tolist())
    found = Difference(mean.mean, mean.low, mean.high, math.nan, mean.n)
    if p is None:
        why = 'fewer than six tasks'
        if few and mean.n >= TASKS:
            more = f' and {len(few) - 3} more' if len(few) > 3 else ''
            why = f'fewer than five runs in {", ".join(few[:3])}{more}'
        return Claim(found, math.nan, UNDECIDED, why)
    verdict, why = _verdict(mean.mean, p)
    if verdict == UNDECIDED and family * 2.0 ** (1 - mean.n) >= LEVEL:
        why = f'{mean.n} tasks are too few for {family} comparisons'
    elif verdict != UNDECIDED and mean.mean * gains.median() <= 0:
        # The test is of ranks; one great value can turn the mean around.
        verdict, why = UNDECIDED, 'mean and median disagree'
    return Claim(found, p, verdict, why)


def _pairs(gains: pd.DataFrame) -> pd.DataFrame:
    """The p of all pairs of columns, adjusted by Holm."""
    posthocs = needed('scikit_posthocs')
    long = gains.melt(var_name='method', value_name='gain')
    # Two methods that agree in all tasks leave the test without a sample.
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', RuntimeWarning)
        found = posthocs.posthoc_wilcoxon(
            long, 'gain', 'method', p_adjust='holm'
        )
    return found
