# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
r"""Writes the tables of README and docs from the ledgers of sweeps.

python benchmarks/pages.py
"""

from __future__ import annotations

from typing import Collection, NamedTuple

from ledger import ROOT

from lt_losses_mm.sweeps.comparison import interval
from lt_losses_mm.sweeps.report import Board, board, estimate
from lt_losses_mm.sweeps.results import ROLES, read

SWEEPS = ROOT / 'benchmarks' / 'sweeps'
BAG = '[Bag of Tricks](https://github.com/zhangyongshun/BagofTricks-LT)'
CAO = '[Cao et al.](https://arxiv.org/abs/1906.07413)'
# Method -> overall figure of the published recipe, of 200 epochs.
CIFAR = dict(
    cross_entropy=f'38.3 {CAO}; 37.7 {BAG}', balanced_softmax=f'43.0 {BAG}'
)


class Page(NamedTuple):
    """A page with a table between two marks.

    Args:
        path: Of the page.
        ledger: File in ``benchmarks/sweeps``.
        tasks: Those that are shown, or none for all.
        methods: Those that are shown, or none for all.
        published: Method -> figure with its source, in a column of its own.
        roles: Which values are shown.
    """

    path: str
    ledger: str
    tasks: Collection[str] = ()
    methods: Collection[str] = ()
    published: dict[str, str] = {}
    roles: Collection[str] = ROLES


PAGES = (
    Page(
        'README.md',
        'embedded',
        ('classification', 'detection', 'segmentation'),
        ('cross_entropy', 'balanced_softmax'),
        roles=('overall', 'tail'),
    ),
    Page('docs/digits.md', 'embedded'),
    Page('docs/cifar100_lt.md', 'cifar100_lt', published=CIFAR),
)


def table(page: Page) -> list[list[str]]:
    """Header and rows, one a task and method."""
    verdict = 'overall, against baseline'
    header = ['task', 'method', 'runs', *page.roles, verdict]
    if page.published:
        header.append('published, 200 epochs')
    rows = [header]
    for task in read(SWEEPS / f'{page.ledger}.csv.gz').tasks:
        if task.name not in page.tasks and page.tasks:
            continue
        shown = board(task)
        for method in shown.order:
            if method in page.methods or not page.methods:
                rows.append(row(shown, method, page))
    return rows


def row(shown: Board, method: str, page: Page) -> list[str]:
    """The cells of a method."""
    task = shown.task
    values = {role: task.values(method, role) for role in page.roles}
    claim = shown.claims.get((method, 'overall'))
    cells = [
        f'{task.name.replace("_", " ")} ({task.metric()})',
        method.replace('_', ' '),
        str(len(values['overall'])),
        *(estimate(interval(found)) for found in values.values()),
        'baseline' if claim is None else claim.verdict,
    ]
    if page.published:
        cells.append(page.published.get(method, '-'))
    return cells


def filled(page: Page) -> str:
    """The text of a page, with the table that the ledger gives."""
    header, *body = table(page)
    lines = ''.join(
        f'| {" | ".join(cells)} |\n'
        for cells in [header, ['---'] * len(header), *body]
    )
    text = (ROOT / page.path).read_text('utf-8')
    begin, end = '<!-- sweep-table -->\n', '<!-- /sweep-table -->'
    before, rest = text.split(begin)
    return before + begin + lines + end + rest.split(end)[1]


def main() -> None:
    for page in PAGES:
        (ROOT / page.path).write_text(filled(page), 'utf-8')


if __name__ == '__main__':
    main()
