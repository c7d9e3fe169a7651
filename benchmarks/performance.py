# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
r"""Writes docs/performance.md and its figure from the ledger of speed.

Nothing is measured here. Of rows that say the same the last one counts.

    python benchmarks/performance.py
"""

from __future__ import annotations

import argparse
import itertools
import math
from pathlib import Path

import numpy as np
from ledger import ROOT, read_ledger
from profile_calls import PARTS, PROFILED, WHOLE
from speed import BCE, CE, FAMILIES, REPLACES, SHAPES

MAIN = [shape.title for name, shape in SHAPES.items() if '-' not in name]
# Largest ratios aimed at: on PyTorch operators, on the fastest engine. Focal
# losses compute three exponentials an element where the others compute two.
TARGETS = {CE: (1.05, 0.6), BCE: (0.8, 0.5)}
FOCAL = 1.5, 0.8
TARGETS['EqualizedFocalLoss'] = TARGETS['EqualizedQualityFocalLoss'] = FOCAL
MEMORY, MEMORY_OVERWRITING = 1.1, 0.3
# Times faster than what users run now, and share of its memory.
PEERS = {
    'mmdet EQLV2Loss': (5, 1 / 4),
    'mmdet SeesawLoss': (8, None),
    'EFL by its formulas': (4, 1 / 5),
}
ITERATION = 1.02
TASKS = ('classification', 'detection', 'segmentation')
# How earlier rows of the ledger name what has a class of its own now.
FORMER = {'EqualizationLoss (softmax)': 'EqualizationSoftmaxLoss'}
KINDS = ('columns', 'rows')
HALF = ('bfloat16', 'float16')
SLOPES = (
    (CE, '', 'cross-entropy (PyTorch)', 'tab:gray', '--'),
    (BCE, '', 'BCE, ready one-hot (PyTorch)', 'tab:brown', '--'),
    ('BalancedSoftmaxLoss', 'native', 'Balanced Softmax', 'tab:blue', '-'),
    ('SigmoidEqualizationLoss', 'native', 'Sigmoid-EQL', 'tab:green', '-'),
    ('copy of the logits', '', 'a copy of the logits', 'black', ':'),
)


# Of shapes that are measured for the slopes, with other calls beside them.
GROWTH = ', growth'


class Ledger:
    """Rows by what they say."""

    def __init__(self, path: Path, dtype: str = 'float32') -> None:
        self.rows = {}
        self.commits: set[str] = set()  # of the rows that were asked for
        for row in read_ledger(path):
            if row['dtype'] not in (dtype, ''):
                continue
            shape = row['shape']
            if any(f'--shapes {k}-' in row['command'] for k in KINDS):
                shape += GROWTH
            what = row['what']
            for former, name in FORMER.items():
                what = what.replace(former, name)
            key = what, row['peer'], shape, row['path'], row['unit']
            self.rows[key] = row

    def value(self, what, shape, engine='', peer='', unit='ratio', key='p50'):
        row = self.rows.get((what, peer, shape, engine, unit))
        if row is None or not row[key]:
            return None
        self.commits.add(row['commit'])
        return float(row[key])

    def memory(self, what, shape, engine=''):
        for unit in ('ms', ''):
            found = self.value(what, shape, engine, '', unit, 'peak_memory')
            if found is not None:
                return found
        return None


def cell(values, targets, digits=2) -> str:
    """Values with those in bold that miss their target."""
    shown = []
    for value, target in zip(values, targets):
        text = 'not run' if value is None else f'{value:.{digits}f}'
        missed = value is not None and round(value, digits) > target
        shown.append(f'**{text}**' if missed else text)
    return ' / '.join(shown)


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines) + '\n'


def family(*ledgers: Ledger) -> list[tuple[str, str, tuple[float, float]]]:
    """Loss, peer and target of each loss that was measured."""
    measured = {what for ledger in ledgers for what, *_ in ledger.rows}
    return [
        (name, peer, TARGETS.get(name, TARGETS[peer]))
        for peer, names in FAMILIES.items()
        for name in names
        if name in measured
    ]


def time_table(ledger: Ledger) -> str:
    rows = []
    for name, peer, targets in family(ledger):
        row = [f'`{name}`', 'CE' if peer == CE else 'BCE']
        row.append(f'≤ {targets[0]} / {targets[1]}')
        for shape in MAIN:
            found = [
                ledger.value(name, shape, engine, peer)
                for engine in ('eager', 'native')
            ]
            row.append(cell(found, targets))
        rows.append(row)
    return table(['loss', 'against', 'target', *MAIN], rows)


def memory_table(ledger: Ledger) -> str:
    rows = []
    for name in (CE, BCE):
        row = [f'`{name}`', '']
        for shape in MAIN:
            found = ledger.memory(name, shape)
            row.append('' if found is None else f'{found:.2f}')
        rows.append(row)
    for name, _, _ in family(ledger):
        for suffix, target in (
            ('', MEMORY),
            (', overwriting', MEMORY_OVERWRITING),
        ):
            found = [
                [
                    ledger.memory(name + suffix, shape, engine)
                    for engine in ('eager', 'native')
                ]
                for shape in MAIN
            ]
            if suffix and not any(any(pair) for pair in found):
                continue
            rows.append(
                [
                    f'`{name}`{suffix}',
                    f'≤ {target}',
                    *[
                        cell(pair, (target, target)) if any(pair) else ''
                        for pair in found
                    ],
                ]
            )
    return table(['loss', 'target', *MAIN], rows)


def half_table(ledgers: dict[str, Ledger]) -> str:
    """Ratios in fp16 and bf16, to PyTorch's own in the same type."""
    columns = [
        (dtype, shape)
        for dtype in HALF
        for shape in MAIN
        if ledgers[dtype].value(CE, shape, unit='ms')
    ]
    rows = []
    for name, peer, _ in family(*ledgers.values()):
        row = [f'`{name}`', 'CE' if peer == CE else 'BCE']
        for dtype, shape in columns:
            found = [
                ledgers[dtype].value(name, shape, engine, peer)
                for engine in ('eager', 'native')
            ]
            row.append(cell(found, (math.inf, math.inf)))
        rows.append(row)
    head = [f'{dtype}, {shape}' for dtype, shape in columns]
    return table(['loss', 'against', *head], rows)


WAYS = ('alone', 'in turn')
SMALL = [shape.title for shape in PROFILED.values()]


def profile_table(ledger: Ledger) -> str:
    """Microseconds of the parts of a call on the native engine."""
    rows = []
    for (name, peer, _), shape in itertools.product(family(ledger), SMALL):
        wanted = [(f'{name}: {p}, {h}', 'native') for h in WAYS for p in PARTS]
        wanted += [(f'{peer}: {WHOLE}, {h}', '') for h in WAYS]
        found = [ledger.value(w, shape, p, '', 'us') for w, p in wanted]
        if None not in found:
            rows.append([f'`{name}`', shape, *[f'{v:.0f}' for v in found]])
    head = [f'{part}, {how}' for how in WAYS for part in PARTS]
    head += [f'PyTorch, {how}' for how in WAYS]
    return table(['loss', 'shape', *head], rows)


def eager_profile_table(ledger: Ledger) -> str:
    """Operators of a call on the eager engine, and their microseconds."""
    rows = []
    for (name, peer, _), shape in itertools.product(family(ledger), SMALL):
        found = [
            ledger.value(f'{name}: operators', shape, 'eager', '', ''),
            ledger.value(f'{name}: in operators', shape, 'eager', '', 'us'),
            ledger.value(f'{name}: {WHOLE}, alone', shape, 'eager', '', 'us'),
            ledger.value(f'{peer}: {WHOLE}, alone', shape, '', '', 'us'),
        ]
        if None not in found:
            rows.append([f'`{name}`', shape, *[f'{v:.0f}' for v in found]])
    head = ['operators', 'in operators', 'whole call', 'PyTorch']
    return table(['loss', 'shape', *head], rows)


def peer_table(ledger: Ledger) -> str:
    rows = []
    for name, (faster, leaner) in PEERS.items():
        ours = REPLACES[name]
        for shape in MAIN:
            ratio = ledger.value(name, shape, '', ours)
            if ratio is None:
                continue
            share = ledger.memory(ours, shape, 'native') / ledger.memory(
                name, shape
            )
            times = f'{ratio:.1f}'
            rows.append(
                [
                    name,
                    f'`{ours}`',
                    shape,
                    times if ratio >= faster else f'**{times}**',
                    f'≥ {faster}',
                    f'{share:.2f}'
                    if leaner is None or share <= leaner
                    else f'**{share:.2f}**',
                    '' if leaner is None else f'≤ {leaner:.2f}',
                ]
            )
    head = ['theirs', 'ours', 'shape', 'times faster', 'target']
    return table([*head, 'share of memory', 'target'], rows)


def iteration_table(ledger: Ledger) -> str:
    shapes = [f'iteration, {task}' for task in TASKS]
    # The profiles are of shapes named after iterations, too.
    methods = sorted(
        {what for what, _, shape, *_ in ledger.rows if shape in shapes} - {CE}
    )
    rows = []
    for method in methods:
        row = [method]
        for shape in shapes:
            found = [
                ledger.value(method, shape, '', CE, key=key)
                for key in ('p50', 'p20', 'p80')
            ]
            if found[0] is None:
                row.append('')
                continue
            missed = found[0] > ITERATION + 0.0005
            text = f'{found[0]:.3f}'
            row.append(
                (f'**{text}**' if missed else text)
                + f' ({found[1]:.2f} to {found[2]:.2f})'
            )
        rows.append(row)
    return table(['loss', *TASKS], rows)


def startup_table(ledger: Ledger) -> str:
    rows = []
    for row in ledger.rows.values():
        if row['command'].startswith('python benchmarks/startup.py'):
            ledger.commits.add(row['commit'])
            took = f'{float(row["p50"]):.3g} {row["unit"]}'
            rows.append([row['what'], row['shape'], took])
    return table(['what', 'of', 'median'], rows)


def points(ledger: Ledger, kind: str, what: str, engine: str, memory=False):
    """Sizes, and milliseconds or megabytes at them."""
    sizes, values = [], []
    for name, shape in SHAPES.items():
        if not name.startswith(kind + '-'):
            continue
        found = (
            ledger.memory(what, shape.title + GROWTH, engine)
            if memory
            else ledger.value(what, shape.title + GROWTH, engine, unit='ms')
        )
        if found is None:
            continue
        if memory:
            found *= np.prod(shape.size) * 4 / 2**20
        sizes.append(shape.size[1 if kind == 'columns' else 0])
        values.append(found)
    return np.array(sizes), np.array(values)


def exponent(sizes: np.ndarray, values: np.ndarray) -> float:
    """Slope of log value over log size, where calls cost more than 1 ms."""
    large = values > 1
    if large.sum() < 2:
        return float('nan')
    return np.polyfit(np.log(sizes[large]), np.log(values[large]), 1)[0]


def draw(ledger: Ledger, path: Path) -> list[list[str]]:
    """The figure; and the fitted exponents."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2), layout='constrained')
    exponents = []
    panels = (
        ('columns', False, 'classes (64 rows)', 'ms'),
        ('rows', False, 'rows (1203 classes)', 'ms'),
        ('columns', True, 'classes (64 rows)', 'MB above the logits'),
    )
    for ax, (kind, memory, x, y) in zip(axes, panels):
        for what, how, label, color, style in SLOPES:
            sizes, values = points(ledger, kind, what, how, memory)
            if memory:
                keep = values > 0.05
                sizes, values = sizes[keep], values[keep]
            if not len(sizes):
                continue
            ax.loglog(
                sizes,
                values,
                style,
                color=color,
                label=label,
                marker='o',
                ms=4,
            )
            slope = exponent(sizes, values)
            if not memory and slope == slope:
                fitted = str((values > 1).sum())
                exponents.append([label, x, f'{slope:.2f}', fitted])
        ax.set_xlabel(x)
        ax.set_ylabel(y)
        ax.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.suptitle('Forward and backward pass of the loss')
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return exponents


def machine(ledger: Ledger, commits: set[str]) -> str:
    last = [
        row for row in ledger.rows.values() if 'speed.py' in row['command']
    ][-1]
    listed = ', '.join(f'`{c}`' for c in sorted(commits))
    return (
        f'{last["cpu"]}, {last["threads"]} threads, fp32, no GPU. '
        f'{last["versions"]}. Commits: {listed}.'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--ledger', type=Path, default=ROOT / 'benchmarks' / 'speed.csv'
    )
    parser.add_argument(
        '--page', type=Path, default=ROOT / 'docs' / 'performance.md'
    )
    args = parser.parse_args()
    write(args.ledger, args.page)


def write(path: Path, page: Path) -> None:
    """Write the page of a ledger, and its figure beside it."""
    ledger = Ledger(path)
    figure = page.parent / 'images' / 'performance.png'
    exponents = draw(ledger, figure)
    template = (Path(__file__).parent / 'performance.in.md').read_text()
    halves = {dtype: Ledger(path, dtype) for dtype in HALF}
    parts = dict(
        time=time_table(ledger),
        memory=memory_table(ledger),
        peers=peer_table(ledger),
        iteration=iteration_table(ledger),
        startup=startup_table(ledger),
        half=half_table(halves),
        profiles=profile_table(ledger),
        eager_profiles=eager_profile_table(ledger),
        exponents=table(['', 'against', 'exponent', 'points'], exponents),
    )
    commits = set().union(*(x.commits for x in [ledger, *halves.values()]))
    parts['machine'] = machine(ledger, commits)
    for name, text in parts.items():
        template = template.replace('{' + name + '}', text.rstrip('\n'))
    page.write_text(template)


if __name__ == '__main__':
    main()
