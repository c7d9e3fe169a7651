"""The figures on the pages are those of the committed ledgers."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

import pytest

from lt_losses_mm.recipes import losses
from lt_losses_mm.sweeps import ledger
from lt_losses_mm.sweeps.plan import Plan

ROOT = Path(__file__).resolve().parents[2]
SWEEPS = ROOT / 'benchmarks' / 'sweeps'
LEDGERS = sorted(SWEEPS.glob('*.csv.gz'))


@pytest.fixture(scope='module')
def pages():
    sys.path.insert(0, str(ROOT / 'benchmarks'))
    import pages

    sys.path.pop(0)
    return pages


@pytest.mark.parametrize('path', LEDGERS, ids=lambda path: path.stem)
def test_rows_are_whole(path):
    rows = ledger.read(path)
    keys = Counter(tuple(row[key] for key in ledger.KEY) for row in rows)
    assert set(keys.values()) == {1}
    assert not any(row['commit'].endswith('dirty') for row in rows)


def test_every_row_has_its_plan():
    """Tasks and baselines are those that a plan beside the ledger has."""
    for path in LEDGERS:
        plan = Plan(path.with_suffix('').with_suffix('.yaml'), losses())
        for row in ledger.read(path):
            assert row['method'] in plan.methods
            assert row['baseline'] == plan.baseline_of(row['task'])


def test_pages_show_the_ledger(pages):
    """What `pages.py` would write is there."""
    for page in pages.PAGES:
        assert pages.filled(page) == (ROOT / page.path).read_text('utf-8')
    assert len(pages.table(pages.PAGES[0])) == 7


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
            loss = names.get(loss, loss.lower().replace('_', ' '))
            for pair in re.findall(r'(?:(\d+\.\d) → )?(\d+\.\d)', here):
                assert (loss, *pair) in known
                seen += 1
    assert seen > 20
