"""The figures in the README are those of the committed ledger."""

import itertools
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEDGER = ROOT / 'benchmarks' / 'accuracy.csv'
SEEDS = (0, 1, 2)


@pytest.fixture(scope='module')
def accuracy():
    sys.path.insert(0, str(ROOT / 'benchmarks'))
    import accuracy

    sys.path.pop(0)
    return accuracy


@pytest.fixture(scope='module')
def runs(accuracy):
    every = (
        accuracy.Run(*key)
        for key in itertools.product(accuracy.TASKS, accuracy.METHODS, SEEDS)
    )
    return [run for run in every if run.config.exists()]


def test_every_run_is_recorded_once(accuracy, runs):
    rows = accuracy.read_ledger(LEDGER)
    assert tuple(rows[0]) == accuracy.COLUMNS
    keys = Counter(
        (row['task'], row['method'], int(row['seed']), row['metric'])
        for row in rows
    )
    recorded = {key[:3] for key in keys}
    assert recorded <= set(map(tuple, runs))
    assert keys.keys() == {
        (*run, metric)
        for run in recorded
        for metric in accuracy.TASKS[run[0]].metrics
    }
    assert set(keys.values()) == {1}
    # The losses that the README's first table compares have every seed.
    assert recorded >= {
        tuple(run)
        for run in runs
        if run.method in accuracy.DEFAULT_METHODS
        and run.task in accuracy.EMBEDDED
    }
    assert recorded >= {
        tuple(run)
        for run in runs
        if run.task == 'cifar100_lt' and run.seed == 0
    }
    assert not any(row['commit'].endswith('dirty') for row in rows)


@pytest.mark.parametrize(
    ('page', 'marker', 'embedded'),
    [
        ('README.md', 'digits-table', True),
        ('docs/cifar100_lt.md', 'cifar-table', False),
    ],
)
def test_pages_show_the_ledger(accuracy, runs, capsys, page, marker, embedded):
    runs = [r for r in runs if (r.task in accuracy.EMBEDDED) == embedded]
    results = accuracy.Results(accuracy.read_ledger(LEDGER), runs)
    accuracy.print_table(results, markdown=True)
    text = (ROOT / page).read_text()
    begin, end = f'<!-- {marker} -->\n', f'<!-- /{marker} -->'
    assert text[text.index(begin) + len(begin) : text.index(end)].strip() == (
        capsys.readouterr().out.strip()
    )


def test_values_are_summarised_over_seeds(accuracy):
    rows = [
        dict(
            task='detection',
            method=method,
            seed=seed,
            metric='AP',
            value=value,
        )
        for method, seed, value in [
            ('cross_entropy', 0, 1),
            ('cross_entropy', 1, 4),
            ('cross_entropy', 1, 3),
            ('balanced_softmax', 0, 7),
            ('balanced_softmax', 5, 99),
        ]
    ]
    runs = [
        accuracy.Run('detection', method, seed)
        for method in accuracy.METHODS
        for seed in (0, 1)
    ]
    _, *table = accuracy.Results(rows, runs).table()
    assert table == [
        ['detection (AP)', 'cross entropy', '2', '2.0 ± 1.4', '-', '-', '-'],
        ['detection (AP)', 'balanced softmax', '1', '7.0', '-', '-', '-'],
    ]
