# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The report of a sweep: one page, and a summary for a README.

The ledger is all that goes in. The same ledger and versions give the same
bytes, so a committed report can be checked.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterable, NamedTuple, Sequence

from ..cache import in_one_step
from . import comparison, pictures
from .comparison import UNDECIDED, Claim, Estimate, interval
from .results import ROLES, Results, Source, Task, needed, read

TEMPLATES = Path(__file__).with_name('templates')
# More cells than this are a page that a browser scrolls slowly; then the
# table of classes has the baseline and the best method alone.
MOST_CELLS = 60_000
NONE = '\u2013'
# In place of the parts of the code, in rows that are older than these.
UNRECORDED = 'unrecorded'
# Reasons as they fit into a table; the summary has them in full.
SHORT = {
    'fewer than five runs': 'n < 5',
    'fewer than six tasks': 'fewer than 6 tasks',
    'no value to compare': 'no value',
    'the runs have no spread': 'no spread',
}


class Cell(NamedTuple):
    """What a table shows, and what it sorts by where that is another thing."""

    text: str
    sort: float | None = None
    kind: str = ''


@dataclass
class Table:
    """A table of the page.

    Args:
        id: In the page.
        caption: Says what it shows.
        head: Titles of the columns; the first column names the row.
        rows: Cells or plain texts.
        words: Which columns, from 1, hold words, not numbers.
        folded: Whether it has to be opened first.
    """

    id: str
    caption: str
    head: list[str]
    rows: list[list[Cell | str]] = field(default_factory=list)
    words: Sequence[int] = (1,)
    folded: bool = False


@dataclass
class Board:
    """A task, its claims, and the order of its methods."""

    task: Task
    claims: dict[tuple[str, str], Claim]
    order: list[str]
    digits: int

    def of(self, method: str, role: str) -> Estimate:
        """Mean and interval over the runs."""
        return interval(self.task.values(method, role))


def write_report(source: Source, html: Path, markdown: Path | None) -> None:
    """Write the page, and the summary if asked for.

    Args:
        source: Path of a ledger, or its rows.
        html: Where the page goes.
        markdown: Where the summary goes.

    Raises:
        ImportError: If a package of the ``sweeps`` extra is missing.
        ValueError: If there is no ledger, or a line of it is no row.
        OSError: If the files cannot be written.
    """
    results = read(source)
    boards = [board(task) for task in results.tasks]
    texts = {html: _page(results, boards)}
    if markdown is not None:
        texts[markdown] = _summary(boards)
    for path, text in texts.items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with in_one_step(Path(path)) as part:
            Path(part).write_text(text, encoding='utf-8')


def board(task: Task) -> Board:
    """What the report says of a task."""
    claims = comparison.within(
        {
            method: {
                role: task.values(method, role)
                for role in ('overall', 'tail')
                if task.metric(role)
            }
            for method in task.methods
        },
        task.baseline,
    )
    means = {m: interval(task.values(m)).mean for m in task.methods}
    order = sorted(
        task.methods,
        key=lambda m: math.inf if math.isnan(means[m]) else -means[m],
    )
    # Percent have one digit behind the point, shares three.
    greatest = max((abs(v) for v in means.values() if v == v), default=100)
    return Board(task, claims, order, 1 if greatest > 2 else 3)


def _page(results: Results, boards: list[Board]) -> str:
    jinja2 = needed('jinja2')
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(str(TEMPLATES)),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    css, script = (
        (TEMPLATES / f'report.{kind}').read_text('utf-8').strip()
        for kind in ('css', 'js')
    )
    baselines = {board.task.baseline for board in boards}
    style = pictures.styles(results.methods, baselines)
    over = _across(boards)
    cost, costless = _cost(boards)
    return environment.get_template('report.html').render(
        css=css,
        script=script,
        css_hash=_hash(css),
        script_hash=_hash(script),
        counted=_counted(results),
        statements=[(b.task, _statements(b)) for b in boards],
        over=over,
        over_words=_across_in_words(over, boards),
        over_tables=_across_tables(over),
        boards=boards,
        leaderboards=[_leaderboard(b, i) for i, b in enumerate(boards)],
        legend=[
            # Several sections have the legend, and ids are of one place.
            (m, pictures.swatch(style[m], f'l{i}-SECTION'))
            for i, m in enumerate(results.methods)
        ],
        pictures=[
            _pictures(board, style, i) for i, board in enumerate(boards)
        ],
        classes=_classes(boards),
        cost=cost,
        costless=joined(costless),
        commands=_commands(results),
        versions=_sources(results),
        warnings=_warnings(results),
    )


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


# Words


def number(value: float, digits: int = 1, sign: bool = False) -> str:
    """A number to read, with a true minus; a dash for none.

    Example:
        >>> number(4.26, sign=True), number(1234.5, 0), number(-0.01)
        ('+4.3', '1,234', '0.0')
    """
    if math.isnan(value):
        return NONE
    # What is rounded to nothing has no sign.
    value = round(value, digits) or 0.0
    text = f'{value:{"+" if sign and value else ""},.{digits}f}'
    return text.replace('-', '\u2212')


def estimate(found: Estimate, digits: int = 1) -> str:
    """A mean with half its interval, as far as there is one."""
    if math.isnan(found.half):
        return number(found.mean, digits)
    return f'{number(found.mean, digits)} ± {number(found.half, digits)}'


def span(low: float, high: float, digits: int = 1) -> str:
    """An interval to read."""
    if math.isnan(low):
        return NONE
    return f'{number(low, digits, True)} to {number(high, digits, True)}'


def plural(n: int, word: str, words: str = '') -> str:
    """A number with its noun.

    Example:
        >>> plural(1, 'run'), plural(2, 'class', 'classes')
        ('1 run', '2 classes')
    """
    return f'{n:,} {word if n == 1 else words or word + "s"}'


def joined(names: Iterable[str], most: int = 12) -> str:
    """Names in a sentence."""
    names = list(names)
    if len(names) > most:
        names = [*names[:most], f'{len(names) - most} more']
    if len(names) < 2:
        return ''.join(names)
    return f'{", ".join(names[:-1])} and {names[-1]}'


def _counted(results: Results) -> str:
    trials = [t for task in results.tasks for t in task.trials['status']]
    failed = trials.count('failed')
    return (
        f'{plural(len(trials), "trial")} of '
        f'{plural(len(results.methods), "method")} in '
        f'{plural(len(results.tasks), "task")}'
        + (f', of which {failed} failed' if failed else '')
        + '.'
    )


def _statements(board: Board) -> list[str]:
    """Sentences that say what the runs of a task decide."""
    task, digits = board.task, board.digits
    if not task.methods:
        return ['No trial has finished: undecided.']
    if task.baseline not in task.methods:
        return [
            f'Undecided: the baseline {task.baseline or "(none)"} has no '
            'finished trial to compare with.'
        ]
    found = []
    for verdict in (comparison.BETTER, comparison.WORSE):
        for role, place in (('overall', 'overall'), ('tail', 'in the tail')):
            named = [
                f'{m} ({number(c.difference.mean, digits, True)}, '
                f'{span(c.difference.low, c.difference.high, digits)}, '
                f'{plural(c.difference.runs, "run")})'
                for m in board.order
                if (c := board.claims.get((m, role))) is not None
                and c.verdict == verdict
            ]
            if named:
                found.append(
                    f'{verdict.capitalize()} than {task.baseline} {place}: '
                    f'{joined(named)}.'
                )
    open_ = [
        (m, claim.why)
        for m in board.order
        if (claim := board.claims.get((m, 'overall'))) is not None
        and claim.verdict == UNDECIDED
    ]
    for why in dict.fromkeys(why for _, why in open_):
        named = [m for m, reason in open_ if reason == why]
        found.append(f'Undecided overall, {why}: {joined(named)}.')
    if not board.claims:
        found.append('Undecided: there is no method beside the baseline.')
    return found


# Across tasks


def _across(boards: list[Board]) -> comparison.Across:
    def means(role: str) -> dict[str, dict[str, float]]:
        return {
            b.task.name: {
                m: mean
                for m in b.task.methods
                if not math.isnan(mean := b.of(m, role).mean)
            }
            for b in boards
        }

    return comparison.across(
        means('overall'),
        means('tail'),
        {b.task.name: b.task.baseline for b in boards},
        {
            b.task.name: {m: b.of(m, 'overall').n for m in b.task.methods}
            for b in boards
        },
    )


def _across_in_words(
    over: comparison.Across, boards: list[Board]
) -> dict[str, list[str]]:
    """What the tasks decide, and what the mean ranks are over."""
    counted = [s for s in over.standings if s.claim is not None]
    most = max((s.tasks for s in counted), default=0)
    decided, ranked = [], []
    for verdict in (comparison.BETTER, comparison.WORSE):
        named = [
            f'{s.method} ({number(s.gain.mean, 1, True)}\u00a0%, '
            f'{s.tasks} tasks)'
            for s in counted
            if s.claim is not None and s.claim.verdict == verdict
        ]
        if named:
            decided.append(
                f'{verdict.capitalize()} over the tasks: {joined(named)}.'
            )
    if not counted:
        decided.append('Undecided: there is no method beside the baseline.')
    elif most < comparison.TASKS:
        decided.append(
            f'Undecided: no method ran in more than {plural(most, "task")}, '
            'and fewer than six cannot reach 5\u00a0% two-sided, however '
            'clear they are. Other seeds of a task are no further tasks.'
        )
    else:
        open_ = [
            (s.method, s.claim.why)
            for s in counted
            if s.claim is not None and s.claim.verdict == UNDECIDED
        ]
        for why in dict.fromkeys(why for _, why in open_):
            named = [m for m, reason in open_ if reason == why]
            decided.append(f'Undecided, {why}: {joined(named)}.')
    if over.tasks:
        size = 'the largest' if len(boards) <= comparison.SUBSETS else 'a'
        ranked.append(
            f'Mean ranks are over {joined(over.tasks)}, {size} block of '
            'tasks in which the same methods ran: '
            f'{joined(over.methods, 24)}.'
        )
    else:
        ranked.append(
            'There are no mean ranks: no two tasks have the same two methods.'
        )
    if not math.isnan(over.friedman):
        ranked.append(
            'That all of these are alike has p = '
            f'{_p(over.friedman)} (Friedman).'
        )
    sets = {board.task.dataset for board in boards}
    if len(sets) < len(boards):
        ranked.append(
            f'The {plural(len(boards), "task")} share '
            f'{plural(len(sets), "data set")}, so they agree more easily '
            'than tasks of other data would.'
        )
    return dict(decided=decided, ranked=ranked)


def _p(value: float) -> str:
    return '< 0.001' if value < 0.001 else f'{value:.3f}'


def _claim_cell(claim: Claim | None) -> Cell:
    if claim is None:
        return Cell('baseline', 0.0, 'quiet')
    order = {comparison.BETTER: 2.0, UNDECIDED: 1.0, comparison.WORSE: -1.0}
    why = next(
        (short for long, short in SHORT.items() if claim.why.startswith(long)),
        claim.why,
    )
    if not math.isnan(claim.p):
        why = f'p\u00a0{_p(claim.p)}'
    text = f'{claim.verdict}, {why}'
    return Cell(text, order[claim.verdict], claim.verdict)


def _across_tables(over: comparison.Across) -> list[Table]:
    table = Table(
        'across',
        'All methods across tasks. Gain: difference to the baseline of the '
        'task in percent of its value, mean over the tasks with 95 % '
        'interval. p: Wilcoxon\u2019s signed ranks of the gains, Holm.',
        [
            'method',
            'gain, %',
            'verdict',
            'mean rank',
            'tail gain, points',
            'better in',
            'tasks',
        ],
        words=(1, 3),
    )
    for s in over.standings:
        base = s.claim is None
        table.rows.append(
            [
                s.method,
                NONE if base else estimate(s.gain),
                _claim_cell(s.claim),
                number(s.rank, 2),
                NONE if base else estimate(s.tail),
                NONE if base else Cell(f'{s.wins} of {s.tasks}', s.wins),
                str(s.tasks),
            ]
        )
    tables = [table]
    if over.pairs is not None:
        names = [m for m in over.methods if m in over.pairs.index]
        tables.append(
            Table(
                'pairs',
                'All pairs of methods: p of Wilcoxon\u2019s signed ranks over '
                f'the {len(over.tasks)} tasks of the block, Holm over all '
                'pairs.',
                ['method', *names],
                [
                    [
                        a,
                        *(
                            NONE
                            if a == b or math.isnan(over.pairs.loc[a, b])
                            else _p(float(over.pairs.loc[a, b]))
                            for b in names
                        ),
                    ]
                    for a in names
                ],
                folded=True,
            )
        )
    return tables


# One task


def _leaderboard(board: Board, i: int) -> Table:
    task, digits = board.task, board.digits
    roles = [role for role in ROLES if task.metric(role)]
    table = Table(
        f'board{i}',
        f'{task.name} ({task.dataset}): '
        + ', '.join(f'{role} is {task.metric(role)}' for role in roles)
        + '. Means with Student\u2019s 95 % interval over n runs; Δ: '
        f'difference to {task.baseline} with Welch\u2019s 95 % interval. p: '
        'Holm, over all comparisons of the task with five runs a side.',
        [
            'method',
            # Before the verdicts: a phone has room for one column more.
            *roles[:1],
            'verdict overall',
            *(['verdict tail'] if 'tail' in roles else []),
            'n',
            *roles[1:],
            'Δ\u00a0overall (95\u00a0% interval)',
            *(['Δ\u00a0tail (95\u00a0% interval)'] if 'tail' in roles else []),
        ],
        words=(1, 3, 4) if 'tail' in roles else (1, 3),
    )
    compared = [r for r in ('overall', 'tail') if r in roles]
    for method in board.order:
        base = method == task.baseline
        claims = [board.claims.get((method, r)) for r in compared]
        runs = max(len(task.values(method, r)) for r in ROLES)
        means = [estimate(board.of(method, r), digits) for r in roles]
        cells: list[Cell | str] = [method, *means[:1]]
        cells += [
            _claim_cell(c)
            if base or c is not None
            else Cell('undecided, no value', 1.0, UNDECIDED)
            for c in claims
        ]
        cells.append(str(runs))
        cells += means[1:]
        for c in claims:
            if c is None:
                cells.append(NONE)
                continue
            found = c.difference
            text = number(found.mean, digits, True)
            if not math.isnan(found.low):
                text += f' ({span(found.low, found.high, digits)})'
            cells.append(text)
        table.rows.append(cells)
    return table


def _pictures(
    board: Board, style: dict[str, pictures.Style], i: int
) -> dict[str, list[str]]:
    """The pictures of a task, by section."""
    task = board.task
    found: dict[str, list[str]] = {
        'differences': [],
        'trade_off': [],
        'classes': [],
        'curves': [],
        'ratios': [],
    }
    rows = [
        (m, board.claims.get((m, 'tail')), claim)
        for m in board.order
        if (claim := board.claims.get((m, 'overall'))) is not None
        and claim.difference.runs
    ]
    if rows:
        found['differences'].append(
            pictures.differences(f'd{i}', task.name, rows)
        )
    points = {
        m: (board.of(m, 'head'), board.of(m, 'tail'))
        for m in board.order
        if board.of(m, 'head').n and board.of(m, 'tail').n
    }
    if points:
        found['trade_off'].append(
            pictures.trade_off(f't{i}', task.name, points, style)
        )
    counts, table = task.counts(), task.classes()
    if len(counts) and len(table.columns):
        found['classes'].append(
            pictures.classes(
                f'c{i}', task.name, counts, table, style, _two(board)
            )
        )
    for k, role in enumerate(('overall', 'tail', 'loss')):
        lines = {m: task.curve(m, role) for m in task.methods}
        lines = {m: line for m, line in lines.items() if len(line) > 1}
        if lines:
            found['curves'].append(
                pictures.curves(
                    f'e{i}{k}',
                    f'{task.name}: {role}',
                    lines,
                    style,
                    'training loss' if role == 'loss' else task.metric(role),
                    log=role == 'loss',
                )
            )
    for k, group in enumerate(('head', 'body', 'tail')):
        lines = {m: task.ratio(m, group) for m in task.methods}
        lines = {m: line for m, line in lines.items() if len(line)}
        if lines:
            found['ratios'].append(
                pictures.curves(
                    f'r{i}{k}',
                    f'{task.name}: gradient ratio, {group}',
                    lines,
                    style,
                    'gradient ratio',
                    log=True,
                )
            )
    return found


def _two(board: Board) -> list[str]:
    """The baseline and the best other method."""
    base = [m for m in board.task.methods if m == board.task.baseline]
    return base + [m for m in board.order if m not in base][:1]


def _classes(boards: list[Board]) -> list[Table | None]:
    """A table of the classes of each task, where a ledger has them."""
    found: list[Table | None] = []
    frames = [board.task.classes() for board in boards]
    whole = sum(frame.size for frame in frames) <= MOST_CELLS
    for i, (board, frame) in enumerate(zip(boards, frames)):
        counts = board.task.counts()
        names = [
            m
            for m in (board.order if whole else _two(board))
            if m in frame.columns
        ]
        if not names:
            found.append(None)
            continue
        values = frame[names].to_numpy().tolist()
        found.append(
            Table(
                f'classes{i}',
                f'{board.task.name}: result of each class, mean over the '
                'runs, and its count in the training data.'
                + ('' if whole else ' The baseline and the best method.'),
                ['class', 'count', *names],
                [
                    [
                        str(label),
                        number(float(counts.get(label, math.nan)), 0),
                        *(number(v, board.digits) for v in row),
                    ]
                    for label, row in zip(frame.index, values)
                ],
                folded=True,
            )
        )
    return found


# Cost, commands, warnings


def ratio_on_one_machine(task: Task, method: str, what: str) -> float:
    """Mean of a method over mean of the baseline, machine by machine.

    Args:
        task: Of both.
        method: The method.
        what: ``'seconds'`` or ``'memory_mb'``.

    Returns:
        The mean over the machines (with as many threads) that have both; NaN
        if none has, or if one of the two trained and the other did not.
    """
    if test_only(task, method) or test_only(task, task.baseline):
        return math.nan
    done = task.trials[task.trials['status'] == 'done']
    means = done.groupby(['machine', 'threads', 'method'])[what].mean()
    table = means.unstack('method')
    if task.baseline not in table or method not in table:
        return math.nan
    base = table[task.baseline]
    return float((table[method] / base.where(base > 0)).mean())


def test_only(task: Task, method: str) -> bool:
    """Whether a method trains nothing, where others have a training loss.

    What it tests was trained by a trial before, whose time is not in its own.
    """
    trained = set(task.rows.loc[task.rows['role'] == 'loss', 'method'])
    return bool(trained) and method not in trained


def _cost(boards: list[Board]) -> tuple[list[Table], list[str]]:
    """A table a task, and the tasks whose rows have nothing for one."""
    tables, without = [], []
    for i, board in enumerate(boards):
        task = board.task
        done = task.trials[task.trials['status'] == 'done']
        means = done.groupby('method')[
            ['seconds', 'memory_mb', 'disk_mb']
        ].mean()
        # A ledger may be edited: two methods may share the digest of a trial.
        means = means.reindex(board.order)
        if means.isna().all(axis=None):
            without.append(task.name)
            continue

        def multiple(method: str, what: str, task: Task = task) -> Cell | str:
            if test_only(task, method):
                return Cell('test only', math.nan)
            return number(ratio_on_one_machine(task, method, what), 2)

        tables.append(
            Table(
                f'cost{i}',
                f'{task.name}: means over the runs of a method. Multiples are '
                f'of {task.baseline}, on the same machine with as many '
                'threads; a dash where there is none. Test only: the trial '
                'that trained the model is not in the numbers.',
                [
                    'method',
                    'seconds',
                    'time, multiple',
                    'memory, MB',
                    'memory, multiple',
                    'disk, MB',
                ],
                [
                    [
                        m,
                        number(float(means.loc[m, 'seconds']), 0),
                        multiple(m, 'seconds'),
                        number(float(means.loc[m, 'memory_mb']), 0),
                        multiple(m, 'memory_mb'),
                        number(float(means.loc[m, 'disk_mb']), 0),
                    ]
                    for m in board.order
                ],
            )
        )
    return tables, without


def _commands(results: Results) -> Table:
    table = Table(
        'commands',
        'Each trial, and the command that runs it again.',
        ['trial', 'task', 'method', 'status', 'command', 'seed', 'commit'],
        words=(1, 2, 3, 4, 5),
    )
    for task in results.tasks:
        for row in task.trials.itertuples():
            table.rows.append(
                [
                    row.trial,
                    task.name,
                    row.method,
                    Cell(row.status, None, row.status),
                    Cell(row.command, None, 'code'),
                    number(row.seed, 0),
                    row.commit,
                ]
            )
    return table


def _sources(results: Results) -> list[tuple[str, list[str]]]:
    """Machines and versions, and how many trials are from each."""
    found = []
    for title, column in (('Machine', 'machine'), ('Versions', 'versions')):
        values: Counter[str] = Counter()
        for task in results.tasks:
            values.update(v for v in task.trials[column] if v)
        found.append(
            (
                title,
                [f'{v} ({plural(n, "trial")})' for v, n in values.items()]
                or ['not recorded'],
            )
        )
    return found


def _warnings(results: Results) -> list[str]:
    found = []
    if results.superseded:
        found.append(
            f'{plural(results.superseded, "trial")} of the ledger '
            'left out: another with the same task, method and seed counts, '
            'which has finished, has the present code, or is later.'
        )
    for task in results.tasks:
        trials = task.trials
        for row in trials[trials['status'] == 'failed'].itertuples():
            found.append(
                f'{task.name}: {row.method}, seed {number(row.seed, 0)} '
                f'failed: {row.note or "no reason is noted"}'
            )
        done = trials[trials['status'] == 'done']
        runs = done.groupby('method', sort=False).size()
        if (runs == 1).any():
            found.append(
                f'{task.name}: one seed, so no interval: '
                f'{joined(runs.index[runs == 1], 40)}.'
            )
        for role in filter(task.metric, ROLES):
            lost = {m: runs[m] - len(task.values(m, role)) for m in runs.index}
            told = [f'{m} ({n} of {runs[m]})' for m, n in lost.items() if n]
            if told:
                found.append(
                    f'{task.name}: runs without a value of {role}, because '
                    'it was not finite or the test has no object of such a '
                    f'class, are not in its means: {joined(told, 40)}.'
                )
        found += _mixed_steps(task.name, done)
        changed = done[done['changed'] != '']
        for parts, rows in changed.groupby('changed', sort=False):
            which = (
                f'{plural(len(rows), "trial")} of '
                f'{joined(dict.fromkeys(rows["method"]), 40)}'
            )
            found.append(
                f'{task.name}: the code of {which} was not recorded.'
                if parts == UNRECORDED
                else f'{task.name}: the code has changed since {which}, in '
                f'{joined(parts.split(), 20)}.'
            )
        for column, what in (
            ('machine', 'machines'),
            ('threads', 'numbers of threads'),
            ('versions', 'sets of versions'),
            ('code', 'versions of the code'),
        ):
            found += _mixed(task.name, done, column, what)
    return found


def _mixed_steps(name: str, done: Any) -> list[str]:
    steps = done.dropna(subset=['last_step']).groupby('last_step')['method']
    if steps.ngroups < 2:
        return []
    told = [
        f'step {number(step, 0)} for {joined(dict.fromkeys(methods), 40)}'
        for step, methods in steps
    ]
    return [f'{name}: the last evaluations differ: {"; ".join(told)}.']


def _mixed(name: str, done: Any, column: str, what: str) -> list[str]:
    """Say that the runs of one method, or of the task, are of several kinds.

    Methods have different losses, and so different code; that is no reason
    to warn. Several codes of one method are.
    """
    kinds = done.groupby('method', sort=False)[column].unique()
    if column == 'code':
        several = [m for m, values in kinds.items() if len(values) > 1]
        if not several:
            return []
        return [f'{name}: several {what} in the runs of {joined(several)}.']
    values = list(dict.fromkeys(done[column]))
    if len(values) < 2:
        return []
    told = '; '.join(_apart([v or 'none' for v in values]))
    return [f'{name}: {len(values)} {what} are mixed: {told}.']


def _apart(values: Sequence[str]) -> list[str]:
    """Long lists of words without the words that all of them have."""
    if not all('=' in value for value in values):
        return list(values)
    common = set.intersection(*(set(value.split()) for value in values))
    return [
        ' '.join(w for w in value.split() if w not in common) or 'fewer'
        for value in values
    ]


# Markdown


def _summary(boards: list[Board]) -> str:
    """A short table a task; ``|`` of names is escaped."""
    parts = []
    for board in boards:
        task, digits = board.task, board.digits
        lines = [
            f'**{_escaped(task.name)}** ({_escaped(task.dataset)}): '
            f'overall is {_escaped(task.metric()) or "not known"}'
            + (
                f', tail is {_escaped(task.metric("tail"))}'
                if task.metric('tail')
                else ''
            )
            + '; mean ± 95 % interval over n runs.',
            '',
            '| method | n | overall | tail | overall, against the baseline |',
            '|---|---|---|---|---|',
        ]
        for method in board.order:
            claim = board.claims.get((method, 'overall'))
            verdict = (
                'baseline'
                if method == task.baseline
                else UNDECIDED
                if claim is None
                else claim.verdict
            )
            lines.append(
                f'| {_escaped(method)} | {len(task.values(method))} | '
                f'{estimate(board.of(method, "overall"), digits)} | '
                f'{estimate(board.of(method, "tail"), digits)} | '
                f'{verdict} |'
            )
        parts.append('\n'.join(lines))
    return '\n\n'.join(parts) + '\n'


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is; HTML in it as well."""
    text = ' '.join(text.split())
    for character in '\\`*{}[]<>|#':
        text = text.replace(character, f'\\{character}')
    return text.replace('&', '&amp;')
