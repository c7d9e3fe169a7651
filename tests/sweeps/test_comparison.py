# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Claims are what other ways to compute them say, and no more of them."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip('scikit_posthocs')

import pandas as pd
from scipy import stats

from lt_losses_mm.sweeps import comparison
from lt_losses_mm.sweeps.comparison import (
    BASELINES,
    BETTER,
    UNDECIDED,
    WORSE,
    across,
    block,
    difference,
    holm,
    interval,
    within,
)

# Student's own example (1908): hours of sleep gained with two drugs.
SLEEP = (
    [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0],
    [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4],
)


def test_interval_by_hand() -> None:
    # Mean 2, s = 1, t(0.975, 2) = 4.302653.
    found = interval([1, 2, 3])
    assert found.mean == 2
    assert found.half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert found.low == pytest.approx(2 - found.half)


def test_interval_is_that_of_scipy() -> None:
    values = SLEEP[0]
    low, high = stats.t.interval(
        0.95, 9, loc=np.mean(values), scale=stats.sem(values)
    )
    assert interval(values)[1:3] == pytest.approx((low, high))


def test_interval_of_one_value_is_not_known() -> None:
    found = interval([86.8])
    assert found.mean == 86.8
    assert math.isnan(found.low)
    assert math.isnan(found.half)
    assert math.isnan(interval([]).mean)


def test_welch_of_the_sleep_data() -> None:
    # R prints t = -1.8608, df = 17.776, p = 0.07939 and -3.3654832 0.2054832
    # for t.test(extra ~ group, data = sleep).
    found = difference(*SLEEP)
    assert found.p == pytest.approx(0.07939, abs=1e-5)
    assert (found.low, found.high) == pytest.approx(
        (-3.3654832, 0.2054832), abs=1e-6
    )
    assert found.mean == pytest.approx(-1.58)
    assert found.runs == 10


@pytest.mark.parametrize(
    ('values', 'baseline'),
    [([1.0], [2.0, 3.0]), ([1.0, 1.0], [2.0, 2.0]), ([], [1.0])],
)
def test_no_spread_no_interval(
    values: list[float], baseline: list[float]
) -> None:
    found = difference(values, baseline)
    assert math.isnan(found.p)
    assert math.isnan(found.low)


def test_holm_by_hand_and_by_statsmodels() -> None:
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1, never falling.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx(
        [0.06, 0.04, 0.06, 0.06]
    )
    multitest = pytest.importorskip('statsmodels.stats.multitest')
    p = np.random.default_rng(0).random(20) ** 3
    assert holm(p) == pytest.approx(
        multitest.multipletests(p, method='holm')[1]
    )
    assert holm([]) == []


def test_four_runs_decide_nothing() -> None:
    claims = within(
        {
            'ce': {'overall': [50, 50.1, 49.9, 50, 50.05]},
            'good': {'overall': [90, 90.1, 89.9, 90]},
        },
        'ce',
    )
    claim = claims['good', 'overall']
    assert claim.verdict == UNDECIDED
    assert claim.why == 'fewer than five runs'
    assert claim.difference.p < 1e-6
    assert math.isnan(claim.p)


def test_five_runs_decide_after_holm() -> None:
    rng = np.random.default_rng(0)
    runs = {m: rng.normal(50, 1, 5) for m in ('ce', 'a', 'b', 'c')}
    runs['good'] = rng.normal(60, 1, 5)
    runs['bad'] = rng.normal(40, 1, 5)
    runs['few'] = rng.normal(60, 1, 3)
    claims = within({m: {'overall': v} for m, v in runs.items()}, 'ce')
    assert claims['good', 'overall'].verdict == BETTER
    assert claims['bad', 'overall'].verdict == WORSE
    assert {claims[m, 'overall'].verdict for m in 'abc'} == {UNDECIDED}
    raw = [
        stats.ttest_ind(runs[m], runs['ce'], equal_var=False).pvalue
        for m in ('a', 'b', 'c', 'good', 'bad')
    ]
    # The method with few runs is not tested, and so costs the others nothing.
    assert [
        claims[m, 'overall'].p for m in ('a', 'b', 'c', 'good', 'bad')
    ] == pytest.approx(holm(raw))


def test_without_a_baseline_nothing_is_decided() -> None:
    claims = within({'a': {'overall': [1, 2, 3, 4, 5]}}, 'ce')
    assert claims['a', 'overall'].why == 'no value to compare'


def test_a_wrong_claim_in_a_task_is_rare() -> None:
    # Of 300 tasks whose methods are all alike, 5 % may have a claim, which is
    # at most 24 but for one in a thousand.
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(300):
        runs = rng.normal(50, 1, (5, 2, 5))
        claims = within(
            {
                f'm{i}': {'overall': both[0], 'tail': both[1]}
                for i, both in enumerate(runs)
            },
            'm0',
        )
        wrong += any(c.verdict != UNDECIDED for c in claims.values())
    assert wrong <= 28


def table(values: np.ndarray) -> dict[str, dict[str, float]]:
    """Tasks by methods; the first method is the baseline."""
    return {
        f't{i}': {f'm{j}': float(v) for j, v in enumerate(row)}
        for i, row in enumerate(values)
    }


def over(values: np.ndarray) -> object:
    tasks = table(values)
    runs = {t: dict.fromkeys(v, 5) for t, v in tasks.items()}
    return across(tasks, tasks, dict.fromkeys(tasks, 'm0'), runs)


def test_five_tasks_decide_nothing() -> None:
    found = over(np.array([[50.0, 60 + i] for i in range(5)]))
    claim = {s.method: s.claim for s in found.standings}['m1']
    assert claim.verdict == UNDECIDED
    assert claim.why == 'fewer than six tasks'
    assert math.isnan(claim.p)
    assert math.isnan(found.friedman)
    assert found.pairs is None


def test_six_tasks_that_agree_decide() -> None:
    found = over(np.array([[50.0, 60 + i] for i in range(6)]))
    claim = {s.method: s.claim for s in found.standings}['m1']
    # All six signed ranks are positive: p = 2 / 2 ** 6.
    assert claim.p == pytest.approx(2 / 2**6)
    assert claim.verdict == BETTER


def test_six_tasks_of_one_seed_decide_nothing() -> None:
    tasks = table(np.array([[50.0, 60 + i] for i in range(6)]))
    for method in ('m0', 'm1'):
        runs = {t: {'m0': 5, 'm1': 5} for t in tasks}
        runs['t0'][method] = 1
        found = across(tasks, tasks, dict.fromkeys(tasks, 'm0'), runs)
        claim = {s.method: s.claim for s in found.standings}['m1']
        assert claim.verdict == UNDECIDED
        assert claim.why == 'fewer than five runs in t0'
        assert math.isnan(claim.p)


def test_six_tasks_are_too_few_for_two_methods() -> None:
    found = over(np.array([[50.0, 60 + i, 55 + i / 2] for i in range(6)]))
    claims = [s.claim for s in found.standings if s.claim]
    assert {c.verdict for c in claims} == {UNDECIDED}
    assert claims[0].why == '6 tasks are too few for 2 comparisons'


def test_ranks_gains_and_wins_by_hand() -> None:
    found = over(np.array([[50.0, 60, 40], [20, 25, 30]]))
    standing = {s.method: s for s in found.standings}
    assert [standing[m].rank for m in ('m0', 'm1', 'm2')] == [2.5, 1.5, 2.0]
    # 10 of 50 and 5 of 20; -10 of 50 and 10 of 20.
    assert standing['m1'].gain.mean == pytest.approx((20 + 25) / 2)
    assert standing['m2'].gain.mean == pytest.approx((-20 + 50) / 2)
    assert standing['m2'].tail.mean == pytest.approx(0)
    assert standing['m2'].wins == 1
    assert standing['m0'].claim is None


def test_friedman_and_pairs_are_those_of_scipy() -> None:
    rng = np.random.default_rng(3)
    values = 50 + rng.normal(0, 3, (9, 4)) + np.array([0, 4, 1, -3])
    found = over(values)
    gains = 100 * (values / values[:, :1] - 1)
    assert found.friedman == pytest.approx(
        stats.friedmanchisquare(*gains.T).pvalue
    )
    raw, at = [], []
    for i in range(4):
        for j in range(i):
            raw.append(stats.wilcoxon(gains[:, i], gains[:, j]).pvalue)
            at.append((f'm{i}', f'm{j}'))
    for (a, b), p in zip(at, holm(raw)):
        assert found.pairs.loc[a, b] == pytest.approx(p)
        assert found.pairs.loc[b, a] == pytest.approx(p)


def test_each_task_has_its_own_baseline() -> None:
    tasks = {'cls': {'ce': 50, 'a': 60}, 'dense': {'focal': 40, 'a': 44}}
    runs = {t: dict.fromkeys(v, 5) for t, v in tasks.items()}
    found = across(tasks, {}, {'cls': 'ce', 'dense': 'focal'}, runs)
    standing = {s.method: s for s in found.standings}
    assert set(standing) == {BASELINES, 'a'}
    assert standing['a'].gain.mean == pytest.approx((20 + 10) / 2)
    assert standing['a'].tail.n == 0


def test_tasks_without_a_baseline_or_with_zero_do_not_count() -> None:
    tasks = {
        'a': {'ce': 50.0, 'x': 55.0},
        'b': {'x': 90.0},
        'c': {'ce': 0.0, 'x': 10.0},
    }
    runs = {t: dict.fromkeys(v, 5) for t, v in tasks.items()}
    found = across(tasks, tasks, dict.fromkeys(tasks, 'ce'), runs)
    standing = {s.method: s for s in found.standings}
    assert standing['x'].tasks == 1
    assert standing['x'].gain.mean == pytest.approx(10)
    assert across({'b': {'x': 1.0}}, {}, {'b': 'ce'}, {}).standings == []


def test_block_without_gaps() -> None:
    present = pd.DataFrame(
        [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 1]],
        index=list('abcd'),
        columns=['ce', 'x', 'y', 'z'],
    ).astype(bool)
    # 3 x 2 and 2 x 3 are as large; the one with more tasks counts.
    assert block(present) == (['a', 'b', 'c'], ['ce', 'x'])
    assert block(present.iloc[:1]) == ([], [])


def test_block_is_the_largest() -> None:
    rows = {t: dict.fromkeys('pab', True) for t in 'ABC'}
    rows |= {t: dict.fromkeys('pcde', True) for t in 'DEF'}
    present = pd.DataFrame(rows).T.notna()
    assert block(present) == (list('DEF'), list('pcde'))
    rng = np.random.default_rng(0)
    for _ in range(20):
        present = pd.DataFrame(rng.random((5, 6)) < 0.6, columns=[*'abcdef'])
        largest = max(
            len(tasks) * len(methods)
            for m in range(64)
            if len(
                methods := [c for i, c in enumerate('abcdef') if m >> i & 1]
            )
            >= 2
            if len(tasks := present.index[present[methods].all(axis=1)]) >= 2
        )
        tasks, methods = block(present)
        assert present.loc[tasks, methods].all(axis=None)
        assert len(tasks) * len(methods) == largest


def test_a_wrong_claim_across_tasks_is_rare(monkeypatch) -> None:
    # Slow, and not what is asked here.
    monkeypatch.setattr(comparison, '_pairs', lambda gains: None)
    rng = np.random.default_rng(1)
    wrong = sum(
        any(
            s.claim is not None and s.claim.verdict != UNDECIDED
            for s in over(50 + rng.normal(0, 2, (10, 4))).standings
        )
        for _ in range(200)
    )
    assert wrong <= 20
