# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Show how long-tailed a data set is, and write its class counts to a file.

Takes the data set of any MMDetection, MMPretrain or MMSegmentation config, as
training sees it (through its wrappers and its sampler), or any source that
``class_counts=`` accepts.
"""

from __future__ import annotations

import argparse
from typing import Any, Dict

import numpy as np
from _launch import load_config
from _own_data import walk
from mmengine.config import Config, DictAction
from mmengine.registry import DATA_SAMPLERS, DATASETS, init_default_scope
from rich.console import Console
from rich.table import Table

from lt_losses_mm.hooks.segmentation import label_of_config
from lt_losses_mm.priors import (
    BENCHMARKS,
    UNITS,
    ClassCounts,
    class_names,
    count_dataset,
    empty_classes,
    frequency_groups,
    load_class_counts,
    natural_counts,
    rebalanced_by,
)

# Okabe and Ito's palette, which the colour-blind can tell apart.
COLOURS = ('#0072B2', '#E69F00', '#D55E00')
Groups = Dict[str, np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', nargs='?', help='config file of any host')
    parser.add_argument(
        '--counts',
        metavar='SOURCE',
        help=f'instead of a config: a file, or one of {", ".join(BENCHMARKS)}',
    )
    parser.add_argument(
        '--split', choices=['train', 'val', 'test'], default='train'
    )
    parser.add_argument(
        '--unit',
        choices=UNITS,
        help='what to count (default: images; pixels for segmentation)',
    )
    parser.add_argument(
        '--groups',
        choices=['shot', 'lvis'],
        help='many/medium/few or frequent/common/rare (default: lvis for '
        'detection)',
    )
    parser.add_argument(
        '--rows',
        type=int,
        default=10,
        help='list so many of the most frequent and of the rarest classes '
        '(default: 10)',
    )
    parser.add_argument(
        '--out', metavar='JSON', help="write the file for class_counts='JSON'"
    )
    parser.add_argument('--plot', metavar='PNG', help='draw the distribution')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='override config values',
    )
    parser.set_defaults(
        work_dir=None, launcher='none', local_rank=0, loss=None
    )
    args = parser.parse_args()
    if (args.config is None) == (args.counts is None):
        parser.error('give either a config file or --counts SOURCE')

    if args.counts is not None:
        facts: dict[str, Any] = {}
        counts = load_class_counts(args.counts, unit=args.unit)
        by_image = (
            load_class_counts(args.counts, unit='image')
            if args.counts in BENCHMARKS
            else counts
        )
        kind = args.groups or ('lvis' if 'lvis' in args.counts else 'shot')
    else:
        counts, by_image, facts, kind = from_config(parser, args)
    groups = None
    if by_image.unit != 'pixel':
        groups = frequency_groups(by_image, kind)
        sizes = ', '.join(f'{len(g)} {n}' for n, g in groups.items())
        facts[f'groups (by {by_image.unit} counts)'] = sizes
    report(counts, groups, facts, args.rows)
    if args.out is not None:
        counts.save(args.out)
        print(f"Wrote {args.out}: use it as class_counts='{args.out}'")
    if args.plot is not None:
        plot(counts, groups, args.plot)
        print(f'Wrote {args.plot}')


def from_config(
    parser: argparse.ArgumentParser, args: argparse.Namespace
) -> tuple[ClassCounts, ClassCounts, dict[str, Any], str]:
    """Counts as seen, image counts without re-balancing, facts, group kind."""
    cfg = load_config(parser, args)
    loader = cfg.get(f'{args.split}_dataloader')
    if loader is None:
        parser.error(f'{args.config} has no {args.split}_dataloader')
    scope = cfg.get('default_scope', 'mmengine')
    init_default_scope(scope)
    dataset = DATASETS.build(loader.dataset)
    sampler = None
    if loader.get('sampler') is not None:
        sampler = DATA_SAMPLERS.build(
            loader.sampler, default_args=dict(dataset=dataset, seed=0)
        )
    num_classes = None if class_names(dataset) else classes_of_heads(cfg)
    ignored = label_of_config(cfg)
    counts = count_dataset(
        dataset,
        sampler=sampler,
        unit=args.unit,
        num_classes=num_classes,
        ignore_index=ignored,
    )
    # The groups describe the data, not how they are sampled.
    by_image = natural_counts(
        dataset,
        num_classes=counts.num_classes,
        unit='image',
        ignore_index=ignored,
    )
    facts = {
        'samples an epoch': f'{len(dataset):,}',
        're-balanced by': rebalanced_by(dataset, sampler) or 'nothing',
    }
    kind = args.groups or ('lvis' if scope == 'mmdet' else 'shot')
    return counts, by_image, facts, kind


def classes_of_heads(cfg: Config) -> int | None:
    """What the heads say, as in training, where data have no names."""
    sizes = {
        part['num_classes']
        for part in walk(cfg.get('model') or {})
        if 'num_classes' in part and str(part.get('type')).endswith('Head')
    }
    return sizes.pop() if len(sizes) == 1 else None


def report(
    counts: ClassCounts,
    groups: Groups | None,
    facts: dict[str, Any],
    rows: int,
) -> None:
    """Print the summary and the ends of the distribution."""
    console = Console()
    summary = Table(
        title=f'Class counts of {counts.source}', show_header=False
    )
    empty = int((counts.counts == 0).sum())
    for key, value in {
        'classes': f'{counts.num_classes:,}',
        'unit': counts.unit,
        'sum': f'{counts.counts.sum():,.6g}'
        if counts.unit == 'pixel'
        else f'{counts.counts.sum():,.0f}',
        'classes without samples': empty,
        'imbalance factor': f'{counts.imbalance_factor:,.6g}',
        'Gini coefficient': f'{counts.gini:.3f}',
        **facts,
    }.items():
        summary.add_row(key, str(value))
    console.print(summary)
    note = empty_classes(counts)
    if note:
        console.print(note, style='yellow', markup=False, highlight=False)

    group_of = np.full(counts.num_classes, '', dtype=object)
    for name, members in (groups or {}).items():
        group_of[members] = name
    order = np.argsort(-counts.counts, kind='stable')
    ends = Table('rank', 'label', 'class', counts.unit, 'share', 'group')
    for rank, label in enumerate(order, 1):
        if rows < rank <= counts.num_classes - rows:
            continue
        number = counts.counts[label]
        ends.add_row(
            str(rank),
            str(label),
            counts.names[label] if counts.names else '',
            f'{number:,.6g}' if number < 1e6 else f'{number:,.0f}',
            f'{100 * number / counts.counts.sum():.3g} %',
            group_of[label],
            end_section=rank == rows,
        )
    console.print(ends)


def plot(counts: ClassCounts, groups: Groups | None, path: str) -> None:
    """Draw the counts over their rank, on a linear and on a log axis."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    order = np.argsort(-counts.counts, kind='stable')
    rank = np.empty(counts.num_classes, dtype=np.int64)
    rank[order] = np.arange(1, counts.num_classes + 1)
    positive = counts.counts > 0
    size = float(np.clip(600 / counts.num_classes, 2, 7))
    figure, axes = plt.subplots(
        1, 2, figsize=(10, 4), sharey=True, layout='constrained'
    )
    for axis, scale in zip(axes, ('linear', 'log')):
        if groups is None:
            groups = {'classes': np.arange(counts.num_classes)}
        for (name, members), colour in zip(groups.items(), COLOURS):
            drawn = members[positive[members]]
            axis.plot(
                rank[drawn],
                counts.counts[drawn],
                'o',
                color=colour,
                markersize=size,
                markeredgewidth=0,
                label=f'{name}: {len(members)} classes',
            )
        axis.set(xscale=scale, yscale='log', xlabel=f'class rank ({scale})')
        axis.grid(alpha=0.3, which='major')
    axes[0].set_ylabel(f'{counts.unit} count')
    axes[0].legend(frameon=False, markerscale=7 / size)
    empty = int((~positive).sum())
    figure.suptitle(
        f'{counts.source}\n{counts.num_classes} classes, imbalance factor '
        f'{counts.imbalance_factor:,.6g}, Gini {counts.gini:.3f}'
        + (f', {empty} empty classes not drawn' if empty else ''),
        fontsize=11,
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == '__main__':
    main()
