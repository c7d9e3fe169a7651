"""The ledger: whole rows at any time, and one sentence where not."""

from __future__ import annotations

import gzip
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lt_losses_mm.sweeps import ledger

# A process of its own, without importing torch again.
fork = multiprocessing.get_context('fork')


def row(trial: str, value: object = 1.5, **more: object) -> dict:
    return {
        **dict.fromkeys(ledger.COLUMNS, ''),
        # Each of a place of its own.
        **dict(schema=1, trial=trial, task='a', method=trial, seed=0),
        **dict(status='done', step=3, metric='accuracy', value=value),
        **more,
    }


@pytest.fixture
def path(tmp_path):
    path = tmp_path / 'ledger.csv'
    ledger.add(path, [row('first'), row('second')])
    return path


def edit(path: Path, line: int, old: str, new: str) -> None:
    lines = path.read_text().splitlines(keepends=True)
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new, 1)
    path.write_text(''.join(lines))


@pytest.mark.parametrize(
    'line, old, new, problem',
    [
        (3, '1,second,', '1;second,', 'got 25'),
        (3, ',1.5,', ',1.5,,', 'got 27'),
        (2, ',1.5,', ',one,', "a number in 'value', got 'one'"),
        (2, ',0,', ',O,', "a number in 'seed', got 'O'"),
        (3, '1,second', '2,second', "of schema 1, got '2'"),
        # It takes in the line below.
        (2, ',a,', ',"a,', 'got unexpected end of data'),
        (2, ',a,', ',"a"b,', "',' expected after"),
        (3, '1,second', '\n1,second', 'got 0'),
    ],
)
def test_corrupt_line_is_named(path, line, old, new, problem):
    edit(path, line, old, new)
    with pytest.raises(ValueError, match='^ledger=') as error:
        ledger.read(path)
    said = str(error.value)
    assert (
        f"{path}:{line}', expected a row of {len(ledger.COLUMNS)} cells"
        in said
    )
    assert problem in said
    assert 'Fix: delete the line' in said
    assert '\n' not in said


@pytest.mark.parametrize(
    'spoil, problem',
    [
        (lambda raw: raw[:-9], 'line 3 is cut'),
        (lambda raw: raw.decode().encode('utf-16'), "can't decode"),
        (lambda raw: b'', 'line 0 is cut'),
        (lambda raw: b'seed,value\n1,2\n', 'got seed, value'),
        (lambda raw: b'\n' + raw, 'got nothing'),
    ],
)
def test_no_ledger_at_all(path, spoil, problem):
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match='^ledger=') as error:
        ledger.read(path)
    assert str(path) in str(error.value)
    assert problem in str(error.value)


@pytest.mark.parametrize(
    'spoil',
    [
        lambda raw: raw[:-9],
        lambda raw: raw[:40] + bytes(len(raw) - 40),
        lambda raw: gzip.decompress(raw),
    ],
    ids=['cut', 'zeros', 'plain'],
)
def test_corrupt_gzip(tmp_path, spoil):
    path = tmp_path / 'ledger.csv.gz'
    ledger.add(path, [row('first')])
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match='a table that can be read, but'):
        ledger.read(path)


def test_mark_of_a_spreadsheet(path):
    """A program that saves UTF-8 with a mark and lines of Windows."""
    before = ledger.read(path)
    raw = path.read_bytes().replace(b'\n', b'\r\n')
    path.write_bytes(b'\xef\xbb\xbf' + raw)
    assert ledger.read(path) == before


@pytest.mark.slow
def test_told_before_any_training(toy):
    assert toy.run('--only', 'first/plain/0')[0] == 0
    edit(toy.ledger, 3, ',first,', ',')
    status, said = toy.run()
    assert status == 1
    last = said.splitlines()[-1]
    assert last.startswith('sweep: ledger=') and 'start  ' not in said
    assert 'ledger.csv:3' in said
    assert len(toy.started()) == 1


def test_a_trial_that_failed_is_replaced(path):
    ledger.add(path, [row('third', '', status='failed', note='why')])
    ledger.add(path, [row('third', 2), row('third', 3, metric='other')])
    found = [r for r in ledger.read(path) if r['trial'] == 'third']
    assert [r['status'] for r in found] == ['done', 'done']


def test_added_by_several_at_a_time(path):
    def add(name: int) -> None:
        for number in range(15):
            ledger.add(path, [row(f'{name}-{number}')])

    several = [fork.Process(target=add, args=(name,)) for name in range(4)]
    for process in several:
        process.start()
    while any(process.is_alive() for process in several):
        ledger.read(path)  # Whole rows, at any time.
    for process in several:
        process.join()
        assert process.exitcode == 0
    trials = [r['trial'] for r in ledger.read(path)]
    assert len(trials) == len(set(trials)) == 2 + 4 * 15


def test_killed_while_it_writes(path):
    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def add() -> None:
        # All has been written, and nothing is in its place.
        ledger.os.fsync = die
        ledger.add(path, [row('third')])

    before = path.read_bytes()
    process = fork.Process(target=add)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert path.read_bytes() == before
    # Its lock has gone with it.
    ledger.add(path, [row('third')])
    assert len(ledger.read(path)) == 3


@pytest.mark.parametrize('name', ['ledger.csv', 'ledger.csv.gz'])
def test_pandas_reads_it_in_one_line(tmp_path, name):
    pandas = pytest.importorskip('pandas')
    path = tmp_path / name
    ledger.add(path, [row('first', 1.5), row('second', 2, label='a, "b"')])
    table = pandas.read_csv(path)
    assert list(table.columns) == list(ledger.COLUMNS)
    assert table.value.sum() == 3.5
    assert table.label[1] == 'a, "b"'


# What a file of UTF-8 can hold; NUL is what Python < 3.11 cannot read.
TEXT = st.text(
    st.characters(exclude_categories=['Cs'], exclude_characters='\0')
)


@given(st.lists(st.tuples(TEXT, TEXT, st.floats()), min_size=1, max_size=5))
@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@pytest.mark.parametrize('name', ['ledger.csv', 'ledger.csv.gz'])
def test_what_is_added_is_read(tmp_path, name, cells):
    path = tmp_path / name
    path.unlink(missing_ok=True)
    rows = [
        row(str(i), value, label=label, note=note)
        for i, (label, note, value) in enumerate(cells)
    ]
    for one in rows:
        ledger.add(path, [one])
    assert ledger.read(path) == [
        {name: str(cell) for name, cell in one.items()} for one in rows
    ]


class TestMerge:
    @pytest.fixture
    def merge(self, tmp_path):
        def merge(*ledgers):
            paths = []
            for number, rows in enumerate(ledgers):
                paths.append(tmp_path / f'{number}.csv')
                ledger.add(paths[-1], rows)
            rows, conflicts = ledger.merge(paths)
            return [(r['trial'], r['value']) for r in rows], conflicts

        return merge

    def test_equal_and_missing(self, merge):
        rows, conflicts = merge(
            [row('x', 1), row('y', 2)],
            [row('y', 2, seconds=7), row('z', 3)],
        )
        assert rows == [('x', '1'), ('y', '2'), ('z', '3')]
        assert not conflicts

    @pytest.mark.parametrize('first', [0, 1])
    def test_failed_in_one(self, merge, first):
        ledgers = [row('x', '', status='failed')], [row('x', 1)]
        rows, conflicts = merge(ledgers[first], ledgers[1 - first])
        assert rows == [('x', '1')]
        assert not conflicts

    def test_conflict(self, merge):
        rows, (conflict,) = merge(
            [row('x', 1), row('x', 5, metric='other'), row('y', 1)],
            [row('x', 2), row('x', 5, metric='other'), row('y', 1)],
        )
        assert rows == [('x', '1'), ('x', '5'), ('y', '1')]
        assert conflict.startswith('trial x (a, x, seed 0): 1 values of ')
        assert '1.csv differ from' in conflict
        assert '0.csv, whose are kept' in conflict

    def test_a_metric_that_one_has_not(self, merge):
        _, conflicts = merge([row('x')], [row('x'), row('x', metric='o')])
        assert len(conflicts) == 1

    def test_other_configs_of_one_place(self, merge):
        """No trial of the two is lost, and it is said."""
        rows, (said,) = merge(
            [row('x', 1, method='m')], [row('y', 2, method='m')]
        )
        assert rows == [('x', '1'), ('y', '2')]
        assert said.startswith('a, m, 0: the trials x and y have other')

    def test_no_file(self, tmp_path):
        with pytest.raises(ValueError, match='a file, and there is none'):
            ledger.merge([tmp_path / 'typo.csv'])


def test_numbers_stay_where_a_second_run_has_none(path):
    """The model of a finished trial may be needed again, and fail."""
    before = path.read_bytes()
    ledger.add(path, [row('first', '', status='failed')])
    assert path.read_bytes() == before
    ledger.add(path, [row('new', '', status='failed')])
    ledger.add(path, [row('new', 3)])
    assert [r['value'] for r in ledger.read(path)] == ['1.5', '1.5', '3']
