"""The figures in the README are those of the committed ledger."""

import itertools
import json
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
        for metric in accuracy.Run(*run).metrics
    }
    assert set(keys.values()) == {1}
    # The losses that the README's first table compares have every seed.
    assert recorded >= {
        tuple(run)
        for run in runs
        if run.method in accuracy.DEFAULT_METHODS
        and run.task in [*accuracy.EMBEDDED, 'cifar100_lt']
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


def test_final_values_are_the_last_ones_and_the_best(accuracy, tmp_path):
    scalars = [0.4, 0.9, 0.7]
    run = accuracy.Run('cifar100_lt_200_epochs', 'cross_entropy', 0)
    for name, lines in [('1', scalars[:2]), ('2', scalars[2:])]:
        folder = run.folder(tmp_path) / name / 'vis_data'
        folder.mkdir(parents=True)
        keys = run.metrics.values()
        (folder / 'scalars.json').write_text(
            '\n'.join(
                json.dumps({'loss': 1, **dict.fromkeys(keys, v)} | {'step': 9})
                for v in lines
            )
            + '\n{"loss": 2.0, "step": 99}\n'
        )
    found = accuracy.final_values(run, tmp_path)
    assert found['step'] == 9
    assert found[run.metrics['accuracy']] == 0.7
    assert found[run.metrics['accuracy best']] == 0.9
    tested = run._replace(method='post_hoc')
    assert 'accuracy best' not in tested.metrics
    assert accuracy.final_values(tested, tmp_path) == {}


def test_the_options_of_a_task_are_on_its_commands(accuracy, tmp_path):
    run = accuracy.Run('cifar100_lt_200_epochs', 'balanced_softmax', 1)
    command = run.command(tmp_path)
    place = command.index('--cfg-options')
    assert command[place + 1] == 'randomness.seed=1'
    assert tuple(command[place + 2 :]) == accuracy.TASKS[run.task].options
    plain = run._replace(task='cifar100_lt').command(tmp_path)
    assert plain[plain.index('--cfg-options') + 1 :] == ['randomness.seed=1']
