"""docs/performance.md is what its generator makes of the ledger."""

import csv
import re
import sys
from pathlib import Path

import pytest

from lt_losses_mm.losses import LOSSES

ROOT = Path(__file__).parents[2]
LEDGER = ROOT / 'benchmarks' / 'speed.csv'
PAGE = ROOT / 'docs' / 'performance.md'
ROI = 'RoI head 1024 x 1204'


@pytest.fixture(scope='module')
def benchmarks():
    sys.path.insert(0, str(ROOT / 'benchmarks'))
    import ledger
    import performance
    import speed

    sys.path.pop(0)
    return performance, speed, ledger


@pytest.fixture
def read(benchmarks, tmp_path):
    """What the generator reads of rows, which are given by their cells."""
    performance, _, ledger = benchmarks

    def read(*rows, dtype='float32'):
        path = tmp_path / 'speed.csv'
        path.unlink(missing_ok=True)
        ledger.append(
            [{'dtype': 'float32', 'commit': 'abc', **row} for row in rows],
            path,
        )
        return performance.Ledger(path, dtype)

    return read


def row(what, p50, shape=ROI, path='native', peer='', unit='ratio', **cells):
    keys = dict(what=what, shape=shape, path=path, peer=peer, unit=unit)
    return {**keys, 'p50': p50, 'p20': p50 - 0.5, 'p80': p50 + 0.5, **cells}


def cells(table):
    """Rows of a table of Markdown below its head, as lists of cells."""
    lines = table.strip().splitlines()[2:]
    return [[c.strip() for c in line.split('|')[1:-1]] for line in lines]


def tables(page):
    """Cells of all tables of a page, by the heading above them."""
    found, heading = {}, ''
    for block in re.split(r'\n\n+', page):
        if block.startswith('#'):
            heading = block.splitlines()[0].lstrip('# ')
        elif block.startswith('| '):
            found.setdefault(heading, []).append(cells(block))
    return found


# ------------------------------------------------------------------ selection
def test_iterations_are_not_mixed_with_profiles_of_their_shapes(
    benchmarks, read
):
    performance, _, _ = benchmarks
    ledger = read(
        row('cross_entropy', 25, 'iteration, detection', '', unit='ms'),
        row('seesaw', 1.01, 'iteration, detection', '', 'cross_entropy'),
        row('seesaw', 1.5, 'iteration, segmentation', '', 'cross_entropy'),
        row(
            'SeesawSoftmaxLoss: whole call, alone',
            7,
            performance.SMALL[2],
            unit='us',
        ),
    )
    assert 'iteration' in performance.SMALL[2]
    assert cells(performance.iteration_table(ledger)) == [
        ['seesaw', '', '1.010 (0.51 to 1.51)', '**1.500** (1.00 to 2.00)']
    ]


def test_the_last_of_rows_that_say_the_same_counts(read):
    ledger = read(
        row('SeesawSoftmaxLoss', 3, commit='first'),
        row('SeesawSoftmaxLoss', 2, commit='second'),
    )
    assert ledger.value('SeesawSoftmaxLoss', ROI, 'native') == 2
    assert ledger.commits == {'second'}
    assert ledger.value('SeesawSoftmaxLoss', ROI, 'eager') is None


def test_rows_of_another_type_are_left_out(read):
    rows = row('SeesawSoftmaxLoss', 3, dtype='bfloat16'), row('of all', 1)
    rows[1]['dtype'] = ''
    assert {what for what, *_ in read(*rows).rows} == {'of all'}
    half = read(*rows, dtype='bfloat16')
    assert half.value('SeesawSoftmaxLoss', ROI, 'native') == 3


def test_rows_of_slopes_are_kept_apart(benchmarks, read):
    performance, _, _ = benchmarks
    command = 'python benchmarks/speed.py --shapes '
    shape = '64 x 1,000,000'
    ledger = read(
        row('cross_entropy', 8, shape, '', command=command + 'million'),
        row('cross_entropy', 9, shape, '', command=command + 'columns-9'),
    )
    assert ledger.value('cross_entropy', shape) == 8
    assert ledger.value('cross_entropy', shape + performance.GROWTH) == 9


def test_former_names_in_the_ledger_are_read_as_the_classes_of_today(read):
    ledger = read(
        row('EqualizationLoss (softmax), overwriting', 2),
        row('EqualizationLoss (softmax): operators', 4),
        row('EqualizationLoss', 5),
    )
    assert [what for what, *_ in ledger.rows] == [
        'EqualizationSoftmaxLoss, overwriting',
        'EqualizationSoftmaxLoss: operators',
        'EqualizationLoss',
    ]


# --------------------------------------------------------------------- tables
def test_a_missed_target_is_bold_and_a_missing_run_is_said(benchmarks, read):
    performance, _, _ = benchmarks
    peer = 'binary_cross_entropy_with_logits'
    ledger = read(
        row('EqualizationLoss', 0.8, path='eager', peer=peer),
        row('EqualizationLoss', 0.51, peer=peer),
        row('EqualizedFocalLoss', 0.8, peer=peer),
    )
    first, second = cells(performance.time_table(ledger))
    assert first[:3] == ['`EqualizationLoss`', 'BCE', '≤ 0.8 / 0.5']
    assert first[3:5] == ['0.80 / **0.51**', 'not run / not run']
    assert second[:3] == ['`EqualizedFocalLoss`', 'BCE', '≤ 1.5 / 0.8']
    assert second[3] == 'not run / 0.80'


def test_a_profile_is_complete_or_left_out(benchmarks, read):
    performance, _, _ = benchmarks
    parts = [
        row(f'SeesawSoftmaxLoss: {part}, {how}', i, unit='us')
        for i, (how, part) in enumerate(
            (how, part)
            for how in performance.WAYS
            for part in performance.PARTS
        )
    ]
    whole = [
        row(f'cross_entropy: whole call, {how}', 40, path='', unit='us')
        for how in performance.WAYS
    ]
    measured = row('SeesawSoftmaxLoss', 1)
    ledger = read(measured, *parts, *whole)
    assert cells(performance.profile_table(ledger)) == [
        ['`SeesawSoftmaxLoss`', ROI, *'012345', '40', '40']
    ]
    ledger = read(measured, *parts[1:], *whole)
    assert cells(performance.profile_table(ledger)) == []


# --------------------------------------------------------------------- losses
def test_every_loss_is_measured_once_against_one_peer(benchmarks):
    _, speed, _ = benchmarks
    names = [name for family in speed.FAMILIES.values() for name in family]
    assert sorted(names) == sorted(cls.__name__ for cls in LOSSES)
    work = speed.Work(speed.Shape('', (8, 5)), speed.torch.float32)
    for group, peer in zip(work.calls(('eager', 'native'), False), (0, 0)):
        ours = [call for call in group if call.name in speed.OURS]
        assert {call.peer for call in ours} == {group[peer].name}
        for call in ours:
            call.step(work.logits)


def test_only_losses_that_were_measured_have_rows(benchmarks, read):
    performance, _, _ = benchmarks
    ledger = read(row('SeesawSoftmaxLoss', 1))
    (found,) = performance.family(ledger)
    assert found[:2] == ('SeesawSoftmaxLoss', 'cross_entropy')


# ----------------------------------------------------------------- whole page
def test_the_page_is_what_the_generator_makes_of_the_ledger(
    benchmarks, tmp_path
):
    performance, _, _ = benchmarks
    performance.write(LEDGER, tmp_path / 'performance.md')
    assert (tmp_path / 'performance.md').read_text() == PAGE.read_text(), (
        'run python benchmarks/performance.py'
    )
    assert (tmp_path / 'images' / 'performance.png').stat().st_size > 10_000


def test_no_table_of_the_page_is_empty_or_has_an_empty_row():
    found = tables(PAGE.read_text())
    assert len(found) == 9
    for heading, several in found.items():
        for rows in several:
            assert rows, heading
            for line in rows:
                # What a row is about stands in its first cell.
                assert any(line[1:]), (heading, line)


def test_the_table_of_iterations_has_what_the_ledger_has_of_them():
    with open(LEDGER, newline='') as file:
        measured = {
            (line['what'], line['shape'].removeprefix('iteration, '))
            for line in csv.DictReader(file)
            if line['shape'].startswith('iteration, ') and line['peer']
        }
    (rows,) = tables(PAGE.read_text())['A whole iteration']
    tasks = 'classification', 'detection', 'segmentation'
    shown = {
        (method, task)
        for method, *values in rows
        for task, value in zip(tasks, values)
        if value
    }
    assert shown == measured
    assert len(rows) == len({method for method, _ in measured})
