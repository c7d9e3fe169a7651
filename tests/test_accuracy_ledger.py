"""The figures on the pages are those of the committed ledger."""

import argparse
import itertools
import json
import os
import re
import sys
from collections import Counter
from inspect import signature
from pathlib import Path

import pytest
from mmengine.config import Config, DictAction
from mmengine.runner import EpochBasedTrainLoop

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
    return [run for run in every if run.named]


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
    # The losses that the first tables compare have every seed.
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
    epochs = {(row['task'], row['epochs']) for row in rows}
    assert len(epochs) == len(dict(epochs))


def test_pages_show_the_ledger(accuracy):
    """What `accuracy.py --write-pages` would write is there."""
    for page in accuracy.PAGES:
        assert accuracy.filled(page) == (ROOT / page.path).read_text('utf-8')
    # The README has the runs of the main job, all seeds.
    short, full = map(accuracy.filled, accuracy.PAGES[:2])
    assert short.count('| 3 |') == 6
    assert full.count('| 3 |') > 20


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


def write_scalars(path, accuracy, run, values):
    """Write a line for each (epoch, overall accuracy), as MMEngine does."""
    overall = next(iter(run.metrics.values()))
    others = set(run.metrics.values()) - {overall, accuracy.BEST}
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not an evaluation by all of the task's metrics.
    lines = [json.dumps({'loss': 2.0, overall: 99.0, 'step': 4})]
    for step, value in values:
        line = {overall: value, **dict.fromkeys(others, value / 2)}
        if step:
            line['step'] = step
        lines.append(json.dumps(line))
    path.write_text('\n'.join(lines) + '\n')


@pytest.fixture
def run(accuracy):
    return accuracy.Run('cifar100_lt_200_epochs', 'cross_entropy', 0)


def test_final_values_are_the_last_ones_and_the_best(accuracy, run, tmp_path):
    folder = run.folder(tmp_path)
    for name, values in dict(a=[(1, 4.0), (2, 9.0)], b=[(4, 7.0)]).items():
        path = folder / name / 'vis_data' / 'scalars.json'
        write_scalars(path, accuracy, run, values)
    (folder / 'last_checkpoint').write_text('/a/epoch_4.pth')
    found = accuracy.final_values(run, tmp_path)
    assert found['step'] == 4
    assert found[run.metrics['accuracy']] == 7
    assert found[run.metrics['accuracy few']] == 3.5
    assert found[run.metrics['accuracy best']] == 9
    # Killed between its last checkpoint and that evaluation.
    (folder / 'last_checkpoint').write_text('/a/epoch_5.pth')
    assert accuracy.final_values(run, tmp_path) == {}


def test_values_of_a_test_are_of_its_checkpoint(accuracy, run, tmp_path):
    tested = run._replace(method='post_hoc')
    assert 'accuracy best' not in tested.metrics
    assert accuracy.final_values(tested, tmp_path) == {}
    path = tested.folder(tmp_path) / 'a' / 'a.json'
    write_scalars(path, accuracy, tested, [(None, 5.0)])
    run.folder(tmp_path).mkdir(parents=True)
    (run.folder(tmp_path) / 'last_checkpoint').write_text('/a/epoch_4.pth')
    found = accuracy.final_values(tested, tmp_path)
    assert (found['step'], found['accuracy/all']) == (4, 5)
    command = tested.command(tmp_path)
    assert command[2] == 'test'
    assert command[-3:] == [
        os.path.relpath('/a/epoch_4.pth', ROOT),
        '--post-hoc-tau',
        '1.0',
    ]


def test_a_run_killed_in_its_last_evaluation_is_evaluated(
    accuracy, run, tmp_path, monkeypatch
):
    """The training is over: it is neither repeated nor taken for older."""
    folder = run.folder(tmp_path)
    write_scalars(
        folder / 'a' / 'vis_data' / 'scalars.json', accuracy, run, [(1, 4.0)]
    )
    (folder / 'last_checkpoint').write_text('/a/epoch_2.pth')
    asked = []

    def command(self, work_dir, evaluate=False):
        asked.append(evaluate)
        if evaluate:
            path = folder / 'b' / 'b.json'
            write_scalars(path, accuracy, run, [(None, 3.0)])
        return ['-c', '']

    real = accuracy.Run.command
    monkeypatch.setattr(accuracy.Run, 'command', command)
    ledger = tmp_path / 'ledger.csv'
    accuracy.train([run], tmp_path, ledger, jobs=1)
    # Once more for the ledger.
    assert asked == [False, True, False]
    rows = {row['metric']: row for row in accuracy.read_ledger(ledger)}
    assert rows['accuracy']['value'] == '3.0'
    assert rows['accuracy best']['value'] == '4.0'
    assert {row['epochs'] for row in rows.values()} == {'2'}
    assert real(run, tmp_path, evaluate=True)[2:] == [
        'test',
        'mm-lt-losses',
        str(run.config.relative_to(ROOT)),
        '--work-dir',
        os.path.relpath(folder, ROOT),
        '--checkpoint',
        os.path.relpath('/a/epoch_2.pth', ROOT),
    ]


def test_200_epochs_are_trained_as_60_are(accuracy, run):
    """In bfloat16 and channels last, evaluated where the best epoch is."""
    command = run.command(Path('runs'))
    options = command[command.index('--cfg-options') + 1 :]
    assert options[0] == 'randomness.seed=0'
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    long = Config.fromfile(run.config)
    long.merge_from_dict(
        parser.parse_args(['--cfg-options', *options]).cfg_options
    )
    short = Config.fromfile(run._replace(task='cifar100_lt').config)
    for key in ('model', 'optim_wrapper', 'train_dataloader'):
        assert long[key] == short[key]
    # Every second epoch after the first step of the rate.
    steps = long.param_scheduler[-1].milestones
    assert long.train_cfg.dynamic_intervals == [(steps[0] + 1, 2)]
    parameters = signature(EpochBasedTrainLoop).parameters
    assert set(long.train_cfg) - {'type'} <= set(parameters)


def table_rows(*pages):
    for page in pages:
        for line in (ROOT / page).read_text('utf-8').splitlines():
            if line.startswith('| '):
                yield [cell.strip() for cell in line.split('|')[1:-1]]


def test_advice_shows_the_ledger():
    """What advice was measured with is in the tables, for that loss.

    They are those of the ledger by the test above.
    """
    names = {
        'EQL': 'equalization',
        'Sigmoid-EQL': 'sigmoid equalization',
        'Softmax-EQL': 'softmax equalization',
        'Equalized Focal Loss': 'equalized focal',
        'Equalized Quality Focal Loss': 'equalized quality focal',
    }
    figures = {
        (task, loss): [value.split(' ')[0] for value in values]
        for task, loss, _, *values in table_rows(
            'docs/digits.md', 'docs/cifar100_lt.md'
        )
    }
    known = {
        (loss, before, after)
        for (task, loss), values in figures.items()
        for host in ('cross entropy', 'focal', 'quality focal')
        for pair in zip(figures.get((task, host), ()), values)
        for before, after in [pair, ('', pair[1])]
    }
    seen = 0
    for loss, here, *_ in table_rows('docs/which_loss.md'):
        if here.startswith(('digits', 'CIFAR')):
            loss = names.get(loss, loss.lower())
            for pair in re.findall(r'(?:(\d+\.\d) → )?(\d+\.\d)', here):
                assert (loss, *pair) in known
                seen += 1
    assert seen > 20
