# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The page and the summary say what the ledger says, and nothing else."""

from __future__ import annotations

import base64
import hashlib
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip('pandas')
pytest.importorskip('scikit_posthocs')
pytest.importorskip('matplotlib')
pytest.importorskip('jinja2')

from synthetic import HOSTILE, four_tasks, hostile, row, runs

from lt_losses_mm.sweeps import origin, pictures, report
from lt_losses_mm.sweeps.comparison import Estimate
from lt_losses_mm.sweeps.report import ratio_on_one_machine, write_report
from lt_losses_mm.sweeps.results import read


def page(rows: list[dict[str, str]], folder: Path) -> str:
    write_report(rows, folder / 'report.html', None)
    return (folder / 'report.html').read_text('utf-8')


def summary(rows: list[dict[str, str]], folder: Path) -> str:
    write_report(rows, folder / 'report.html', folder / 'report.md')
    return (folder / 'report.md').read_text('utf-8')


class Text(HTMLParser):
    """The text of a page, and its tables as rows of cells."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text = ''
        self.tables: dict[str, list[list[str]]] = {}
        self._rows: list[list[str]] | None = None
        self._cell = False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        if tag == 'table':
            self._rows = self.tables[dict(attrs)['id']] = []
        elif tag == 'tr' and self._rows is not None:
            self._rows.append([])
        elif tag in ('th', 'td') and self._rows is not None:
            self._rows[-1].append('')
            self._cell = True

    def handle_endtag(self, tag):
        if tag == 'table':
            self._rows, self._cell = None, False

    def handle_data(self, data):
        self.text += data
        if self._rows and self._cell and self._rows[-1]:
            self._rows[-1][-1] = (self._rows[-1][-1] + data).strip()


@pytest.fixture(scope='module')
def pages(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp('report')
    return {
        'four': page(four_tasks(), folder),
        'hostile': page(hostile(), folder),
    }


def test_sections_are_in_order(pages) -> None:
    found = re.findall(r'<h2 id="([\w-]+)">', pages['four'])
    assert found == [
        'h-summary',
        'all',
        'tasks',
        'trade',
        'frequency',
        'curves',
        'ratios',
        'cost',
        'runs',
        'warnings',
    ]


def test_size_and_pictures(pages) -> None:
    for text in pages.values():
        assert len(text.encode()) < 2_000_000
        drawn = re.findall(r'<svg.*?</svg>', text, re.DOTALL)
        assert len(drawn) > 10
        assert max(map(len, drawn)) < 60_000
        for picture in drawn:
            root = ElementTree.fromstring(picture)
            if 'aria-hidden' in root.attrib:
                continue
            named = root.attrib['aria-labelledby'].split()
            assert [root[0].attrib['id'], root[1].attrib['id']] == named
            assert root[0].text
            assert len(root[1].text) > 40
            assert root.find('.//text') is not None
            assert 'currentColor' in picture


def test_axes_hold_the_intervals() -> None:
    def limits(*found: tuple[float, float], zero: bool = False):
        return pictures._limits(
            [Estimate(m, m - half, m + half, 3) for m, half in found], zero
        )

    # Means that are alike do not fill the axis: 24.8 and 25.1.
    low, high = limits((24.8, 6.1), (25.1, 5.5))
    assert 17 < low < 18.7
    assert 30.9 < high < 32
    low, high = limits((-0.4, 4.0), zero=True)
    assert low < -4.4
    assert high > 3.6
    # One long interval is cut, short ones are not.
    low, high = limits((0, 1), (10, 1), (5, 500))
    assert -12 < low < -1
    assert 11 < high < 22
    assert limits((5, math.nan))[0] < 5 < limits((5, math.nan))[1]
    low, high = limits()
    assert low < 0 < high


def test_cut_intervals_have_arrows() -> None:
    drawn = {}
    for half in (1.0, 500.0):
        values = [Estimate(m, m - 1, m + 1, 3) for m in (0.0, 10.0)]
        values.append(Estimate(5.0, 5 - half, 5 + half, 3))
        points = {str(i): (v, v) for i, v in enumerate(values)}
        style = pictures.styles([*points], {'0'})
        drawn[half] = pictures.trade_off('t', 'task', points, style)
    # What is filled with its colour: a mark, and one for each end of a line.
    filled = [len(re.findall(r'<use[^>]*\bf1\b', d)) for d in drawn.values()]
    assert filled == [1, 5]
    assert 'end in an arrow' in drawn[1.0]


def test_nothing_is_loaded_and_no_style_is_inline(pages) -> None:
    for text in pages.values():
        assert not re.search(r'<(link|img|iframe|object|script src)\b', text)
        assert not re.search(r'<[^<>]+\s(style|on\w+|src)=', text)
        assert 'url(http' not in text
        ids = re.findall(r'<[^<>]*\sid="([^"]*)"', text)
        assert len(ids) == len(set(ids))
        for wanted in re.findall(r'(?:href="|url\()#([\w-]+)', text):
            assert wanted in ids


def test_the_policy_allows_the_own_script_and_style_alone(pages) -> None:
    text = pages['four']
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1]
    assert policy.startswith("default-src 'none'; ")
    for tag in ('style', 'script'):
        inside = re.search(f'<{tag}>(.*?)</{tag}>', text, re.DOTALL)[1]
        digest = hashlib.sha256(inside.encode()).digest()
        found = base64.b64encode(digest).decode()
        assert f"{tag}-src 'sha256-{found}'" in policy


def test_names_are_text(pages) -> None:
    text = pages['hostile']
    assert text.count('<script') == 1
    assert '<b>' not in text
    cells = [r[0] for r in Text(text).tables['classes0']]
    assert len(cells) == 1204
    for name in HOSTILE:
        assert name.strip() in cells


def test_the_same_ledger_gives_the_same_bytes(pages, tmp_path) -> None:
    assert page(four_tasks(), tmp_path) == pages['four']


def test_tables_are_of_the_ledger(tmp_path) -> None:
    rows = runs(
        {'cross_entropy': [80, 82], 'bs': [90, 91, 95]},
    )
    found = Text(page(rows, tmp_path)).tables['board0']
    assert found[0][:5] == [
        'method',
        'overall',
        'verdict overall',
        'n',
        'Δ\xa0overall (95\xa0% interval)',
    ]
    # 92 +- 4.303 * 2.6458 / sqrt 3 and 81 +- 12.706 * 1.4142 / sqrt 2.
    assert found[1][:4] == ['bs', '92.0 ± 6.6', 'undecided, n < 5', '3']
    assert found[1][4].startswith('+11.0 (+')
    assert found[2][:4] == ['cross_entropy', '81.0 ± 12.7', 'baseline', '2']


def test_shares_have_three_digits(tmp_path) -> None:
    rows = runs({'cross_entropy': [0.1234], 'bs': [0.5]})
    assert Text(page(rows, tmp_path)).tables['board0'][2][1] == '0.123'


def test_undecided_is_said(pages) -> None:
    text = Text(pages['four']).text
    assert 'Undecided: no method ran in more than 4 tasks' in text
    assert 'Undecided overall, fewer than five runs:' in text
    assert 'The 4 tasks share 1 data set, so they agree' in text
    assert re.search(
        r'Better than cross_entropy in the tail: softmax_equalization '
        r'\(\+\d\.\d, \+\d\.\d to \+\d\.\d, 5 runs\)',
        text,
    )


def tasks_of_eight(n: int) -> list[dict[str, str]]:
    return [
        one
        for i in range(8)
        for one in runs(
            {
                'cross_entropy': n * [50 + i],
                'bs': n * [55 + 2 * i],
                'vs': n * [51 + i],
            },
            task=f'task {i}',
        )
    ]


def test_six_tasks_of_one_seed_are_undecided(tmp_path) -> None:
    found = Text(page(tasks_of_eight(1), tmp_path))
    assert (
        'Undecided, fewer than five runs in task 0, task 1, task 2 and 5 '
        'more: bs and vs.'
    ) in found.text
    assert found.tables['across'][1][2] == 'undecided, n < 5'


def test_six_tasks_are_tested(tmp_path) -> None:
    found = Text(page(tasks_of_eight(5), tmp_path))
    assert 'Better over the tasks: bs (+' in found.text
    assert '(Friedman)' in found.text
    # 2 / 2 ** 8, times two comparisons.
    assert found.tables['across'][1][2] == 'better, p\xa00.016'
    assert found.tables['pairs'][0] == ['method', 'cross_entropy', 'bs', 'vs']


def test_warnings(tmp_path) -> None:
    rows = [
        *runs({'cross_entropy': [1, 2]}, code=origin.code([])),
        *runs({'bs': [3]}, code='hooks=0123456789ab', step=10),
        row(method='vs', value=1, machine='gpu', versions='torch=2.0'),
        row(method='vs', seed=1, value=2, code='losses=0', threads=''),
        row(method='vs', seed=2, value=2, code='unrecorded='),
        row(method='eql', status='failed', note='<b>NaN</b>', metric=''),
        row(method='eql', seed=1, value='nan'),
        row(trial='again', value=1, code='hooks=0'),
    ]
    text = Text(page(rows, tmp_path)).text
    for part in (
        '1 trial of the ledger left out',
        'eql, seed 0 failed: <b>NaN</b>',
        'one seed, so no interval: bs and eql.',
        'such a class, are not in its means: eql (1 of 1).',
        'the code of 1 trial of vs was not recorded.',
        'step 10 for bs; step 20 for cross_entropy',
        'the code has changed since 1 trial of bs, in hooks.',
        '2 machines are mixed: cpu, 2 cores; gpu.',
        '2 numbers of threads are mixed: 2; none.',
        'several versions of the code in the runs of vs.',
        'python=3.11.7 torch=2.14.1; torch=2.0',
    ):
        assert part in text, part


def test_a_role_may_be_missing_in_some_trials(tmp_path) -> None:
    rows = runs({'cross_entropy': [60, 61, 62], 'bs': [63, 64, 65]})
    for method, tails in (('cross_entropy', ['', 7]), ('bs', ['', '', ''])):
        rows += [
            row(method=method, seed=s, role='tail', metric='t', value=v)
            for s, v in enumerate(tails)
        ]
    found = Text(page(rows, tmp_path))
    assert (
        'runs without a value of tail, because it was not finite or the test '
        'has no object of such a class, are not in its means: cross_entropy '
        '(2 of 3) and bs (3 of 3).'
    ) in found.text
    bs, base = found.tables['board0'][1:]
    assert bs[1:6] == [
        '64.0 ± 2.5',
        'undecided, n < 5',
        'undecided, no value',
        '3',
        '\u2013',
    ]
    assert base[5] == '7.0'


def test_empty_sections_have_one_line(tmp_path) -> None:
    bare = dict(seconds='', memory_mb='', disk_mb='', machine='')
    text = page(runs({'cross_entropy': [1, 2]}, **bare), tmp_path)
    assert 'class="legend"' not in text
    assert 'id="cost0"' not in text
    found = ' '.join(Text(text).text.split())
    assert 'Losses of different methods' not in found
    assert 'Gradients of the positives' not in found
    assert 'has no time, memory or disk of classification.' in found
    assert 'Machine not recorded' in found


def test_a_test_has_no_multiple(tmp_path) -> None:
    rows = runs({'cross_entropy': [1], 'post_hoc': [2]})
    rows.append(row(role='loss', metric='loss', value=1, last=0))
    cost = Text(page(rows, tmp_path)).tables['cost0']
    assert [r[2] for r in cost] == ['time, multiple', 'test only', '1.00']
    assert [r[4] for r in cost] == ['memory, multiple', 'test only', '1.00']


def test_no_warnings(tmp_path) -> None:
    rows = runs({'cross_entropy': [1, 2], 'bs': [1, 2]}, code=origin.code([]))
    assert 'Warnings (0)' in page(rows, tmp_path)


@pytest.mark.parametrize(
    ('rows', 'words'),
    [
        ([row(status='failed', metric='', role='')], 'No trial has finished'),
        (runs({'bs': [1, 2]}), 'the baseline cross_entropy has no finished'),
        (runs({'cross_entropy': [1]}), 'no method beside the baseline'),
        (runs({'cross_entropy': [0], 'bs': [0]}), 'Undecided'),
        (runs({'cross_entropy': ['nan'], 'bs': [1]}), 'no value to compare'),
        (runs({'a': [1], 'b': [2]}, baseline=''), 'the baseline (none) has'),
        (
            [row(value=1, trial='a'), row(method='b', value=2, trial='a')],
            'Undecided overall, fewer than five runs: b.',
        ),
    ],
)
def test_poor_ledgers(rows, words, tmp_path) -> None:
    assert words in Text(page(rows, tmp_path)).text
    assert 'Traceback' not in summary(rows, tmp_path)


def test_multiples_are_of_one_machine() -> None:
    rows = [
        row(seed=0, seconds=100, machine='a'),
        row(method='bs', seed=0, seconds=150, machine='a'),
        row(method='bs', seed=1, seconds=900, machine='b'),
        row(method='vs', seed=0, seconds=900, machine='b'),
    ]
    (task,) = read(rows).tasks
    assert ratio_on_one_machine(task, 'bs', 'seconds') == pytest.approx(1.5)
    assert ratio_on_one_machine(task, 'vs', 'seconds') != pytest.approx(9)


def test_many_cells_leave_two_columns(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(report, 'MOST_CELLS', 5)
    rows = [
        row(method=m, role=role, metric=role, label=name, value=v)
        for m, v in (('cross_entropy', 1), ('bs', 3), ('vs', 2))
        for role in ('class', 'count', 'overall')
        for name in ('cat', 'owl')
    ]
    found = Text(page(rows, tmp_path)).tables['classes0']
    assert found[0] == ['class', 'count', 'cross_entropy', 'bs']


def test_summary(tmp_path) -> None:
    rows = runs({'cross_entropy': [80, 82], 'a|b <i>': [90]})
    assert summary(rows, tmp_path) == (
        '**classification** (digits-lt): overall is accuracy/all; mean ± '
        '95 % interval over n runs.\n\n'
        '| method | n | overall | tail | overall, against the baseline |\n'
        '|---|---|---|---|---|\n'
        '| a\\|b \\<i\\> | 1 | 90.0 | \u2013 | undecided |\n'
        '| cross_entropy | 2 | 81.0 ± 12.7 | \u2013 | baseline |\n'
    )


def test_import_is_light() -> None:
    code = (
        'import sys, lt_losses_mm.sweeps.report, lt_losses_mm.sweeps.recommend'
        '\nprint(*sys.modules)'
    )
    done = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(done.stdout.split())
    assert 'lt_losses_mm.sweeps.pictures' in loaded
    # pandas comes with the hosts in some versions; nothing brings these.
    assert not loaded & {'jinja2.environment', 'scikit_posthocs'}
