# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Show how long-tailed a data set is, and what to try first.

Takes the data set of any MMDetection, MMPretrain or MMSegmentation config, as
training sees it (through its wrappers and its sampler), or any source that
``class_counts=`` accepts. Writes the class counts to a file, if asked to.
"""

from __future__ import annotations

import argparse
import inspect
import re
from pathlib import Path
from typing import Any, Dict, Iterator, NamedTuple

import numpy as np
from _launch import load_config
from _own_data import walk
from mmengine.config import Config, DictAction
from mmengine.registry import (
    DATA_SAMPLERS,
    DATASETS,
    MODELS,
    init_default_scope,
)
from rich.console import Console
from rich.table import Table

from lt_losses_mm.hooks.segmentation import label_of_config
from lt_losses_mm.hosts import HOSTS
from lt_losses_mm.priors import (
    BENCHMARKS,
    UNITS,
    ClassCounts,
    class_names,
    count_dataset,
    empty_classes,
    expected_draws,
    frequency_groups,
    frequency_thirds,
    load_class_counts,
    natural_counts,
    rebalanced_by,
)

# Okabe and Ito's palette, which the colour-blind can tell apart.
COLOURS = ('#0072B2', '#E69F00', '#D55E00')
Groups = Dict[str, np.ndarray]
LIMITS = dict(
    shot='> 100, 20 to 100, < 20 images',
    lvis='> 100, 11 to 100, <= 10 images',
    thirds='three groups of equal size',
)
# Below, the largest class is so few times the smallest one that a correction
# for frequency is next to none.
BALANCED, NEARLY = 2, 5
MEASURED = (
    'on the embedded digits (40 classes, imbalance factor 100, balanced test '
    'set, mean of three to five seeds)'
)
# What docs/which_loss.md says, by host and kind of head: loss and evidence.
FIRST = {
    'mmpretrain softmax': (
        "type='lt_losses_mm.BalancedSoftmaxLoss'",
        f'{MEASURED} accuracy went from 82.5 with cross-entropy to 87.4, '
        'few-shot from 68.4 to 83.5, many-shot from 94.2 to 90.2',
    ),
    'mmseg softmax': (
        "type='lt_losses_mm.BalancedSoftmaxLoss'",
        f'{MEASURED} mIoU went from 35.1 with cross-entropy to 53.9, the '
        'rarest third from 11.4 to 43.0, the most frequent from 44.8 to 61.5',
    ),
    'mmdet softmax': (
        "type='lt_losses_mm.BalancedSoftmaxLoss'",
        f'{MEASURED} AP went from 49.2 with cross-entropy to 51.5, rare from '
        '36.4 to 40.0, frequent from 55.0 to 56.1',
    ),
    'mmdet softmax, many classes': (
        "type='lt_losses_mm.SigmoidEqualizationLoss' in its published recipe",
        'on LVIS v1 it is published with mask AP 23.7 beside 16.1 of '
        'cross-entropy; nothing of that size was trained here',
    ),
    'mmdet focal': (
        'keep the loss of the host, and look at the sampling',
        f'{MEASURED} EqualizedFocalLoss gained nothing: AP 36.2 with both',
    ),
    'mmdet focal, many classes': (
        "type='lt_losses_mm.EqualizedFocalLoss'",
        'it is published for LVIS; nothing of that size was trained here',
    ),
    'mmdet quality': (
        "type='lt_losses_mm.EqualizedQualityFocalLoss', the one that fits",
        f'{MEASURED} AP was 44.6 with it and 44.1 with quality focal loss, '
        'which is within the spread of the seeds',
    ),
    'mmpretrain sigmoid': (
        "type='lt_losses_mm.BalancedSigmoidLoss'",
        'it is the correction for one sigmoid a class; nothing was measured '
        'here on multi-label data',
    ),
    'queries softmax': (
        "type='lt_losses_mm.BalancedSoftmaxLoss', with count_unit='image'",
        'it fits the head; neither runs here nor published figures are known',
    ),
    'queries focal': (
        'keep the loss of the host',
        'neither runs here nor published figures are known',
    ),
}
# From here on the published runs are of LVIS and OpenImages, not of digits.
MANY = dict(softmax=500, focal=200)


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
        choices=list(LIMITS),
        help='many/medium/few or frequent/common/rare by images, or '
        'head/body/tail by rank (default: lvis for detection, thirds for '
        'pixels)',
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

    advice: list[str] = []
    if args.counts is not None:
        facts: dict[str, Any] = {}
        counts = load_class_counts(args.counts, unit=args.unit)
        kind = args.groups or _kind_of_source(args.counts, counts.unit)
        natural = counts
        if kind != 'thirds' and args.counts in BENCHMARKS:
            natural = load_class_counts(args.counts, unit='image')
    else:
        counts, natural, facts, kind, advice = from_config(parser, args)
    groups = None
    if kind == 'thirds':
        groups = frequency_thirds(natural.counts)
    elif natural.unit != 'pixel':
        groups = frequency_groups(natural, kind)
    if groups is not None:
        sizes = ', '.join(f'{len(g)} {n}' for n, g in groups.items())
        facts[f'groups (by {natural.unit} counts)'] = sizes
        facts['group limits'] = LIMITS[kind]
    title = f'Class counts of {args.config or counts.source}'
    report(title, counts, groups, facts, args.rows)
    for line in advice:
        print(line)
    if args.out is not None:
        counts.save(args.out)
        print(f"Wrote {args.out}: use it as class_counts='{args.out}'")
    if args.plot is not None:
        plot(title, counts, groups, args.plot)
        print(f'Wrote {args.plot}')


def _kind_of_source(source: str, unit: str) -> str:
    """The groups of the task that the counts are from."""
    if unit == 'pixel':
        return 'thirds'
    if source in BENCHMARKS:
        return 'lvis' if source.startswith('lvis') else 'shot'
    # Files of COCO's format are of detection, whatever their name is.
    path = Path(source).expanduser()
    detection = path.is_file() and b'"categories"' in path.read_bytes()
    return 'lvis' if detection else 'shot'


def from_config(
    parser: argparse.ArgumentParser, args: argparse.Namespace
) -> tuple[ClassCounts, ClassCounts, dict[str, Any], str, list[str]]:
    """Counts as seen, those of the groups, facts, kind of groups, advice."""
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
    found = list(heads_of_config(cfg))
    classes = None
    if not class_names(dataset):
        # Lists of files carry no names; the heads know how many.
        sizes = {head.num_classes for head in found} - {None}
        classes = sizes.pop() if len(sizes) == 1 else None
    ignored = label_of_config(cfg)
    counts = count_dataset(
        dataset,
        sampler=sampler,
        unit=args.unit,
        num_classes=classes,
        ignore_index=ignored,
    )
    kind = args.groups or (
        'thirds'
        if counts.unit == 'pixel'
        else 'lvis'
        if scope == 'mmdet'
        else 'shot'
    )
    # The groups describe the data, not how they are sampled.
    unit = counts.unit if kind == 'thirds' else 'image'
    balancing = rebalanced_by(dataset, sampler)
    natural = counts
    if balancing is not None or unit != counts.unit:
        natural = natural_counts(
            dataset,
            num_classes=counts.num_classes,
            unit=unit,
            ignore_index=ignored,
        )
    facts = {
        'data': counts.source,
        'files': '\n'.join(dict.fromkeys(_files(dataset))),
        'samples an epoch': f'{len(dataset):,}',
        're-balanced by': balancing or 'nothing',
    }
    advice = [] if args.split != 'train' else advise(cfg, found, counts)
    return counts, natural, facts, kind, advice


def _files(dataset: Any) -> Iterator[str]:
    """Where the data sets inside all wrappers come from."""
    for leaf, _ in expected_draws(dataset):
        prefix = getattr(leaf, 'data_prefix', None) or {}
        parts = [getattr(leaf, 'ann_file', ''), *dict(prefix).values()]
        yield next(
            (str(x) for x in parts if x), str(getattr(leaf, 'data_root', ''))
        )


class Head(NamedTuple):
    """A head of a config that classifies, by its classification loss."""

    type: str
    loss: str
    kind: str  # softmax, sigmoid, focal, quality or ours
    num_classes: int | None
    usual: str  # The kind of the host's loss there, where it is ours.


def heads_of_config(cfg: Config) -> Iterator[Head]:
    """The heads of a config, the main one first."""
    for part in walk(cfg.get('model') or {}):
        kind = str(part.get('type')).split('.')[-1]
        if 'RPN' in kind:
            continue
        for key in ('loss_cls', 'loss', 'loss_decode'):
            loss = part.get(key)
            if loss is None and kind.endswith('Head'):
                loss = _default(part['type'], key, cfg.get('default_scope'))
            loss = loss[0] if isinstance(loss, list) and loss else loss
            if isinstance(loss, dict):
                name = str(loss['type']).split('.')[-1]
                found = part.get('num_classes')
                how = usual = _kind(loss, name)
                if how == 'ours':
                    scope = str(cfg.get('default_scope'))
                    usual = _usual_kind(kind, scope, loss)
                yield Head(kind, name, how, found, usual)
                break


def _default(head: str, key: str, scope: str | None) -> Any:
    """The loss that a head has where its config says none."""
    with MODELS.switch_scope_and_registry(scope) as registry:
        classes = inspect.getmro(registry.get(head) or object)
    for cls in classes:
        argument = inspect.signature(cls.__init__).parameters.get(key)
        if argument is not None:
            return argument.default
    return None


def _kind(loss: dict, name: str) -> str:
    if str(loss['type']).startswith('lt_losses_mm.'):
        return 'ours'
    if 'Quality' in name or 'Varifocal' in name:
        return 'quality'
    if 'Focal' in name:
        return 'focal'
    sigmoid = loss.get('use_sigmoid') or name in (
        'AsymmetricLoss',
        'BCEWithLogitsLoss',
    )
    return 'sigmoid' if sigmoid else 'softmax'


def _usual_kind(head: str, scope: str, loss: dict) -> str:
    """Of the host's loss in a head that has one of ours by now."""
    if scope == 'mmpretrain':
        return 'sigmoid' if 'MultiLabel' in head else 'softmax'
    if re.search('GFL|LD|RTM|TOOD|VF', head):
        return 'quality'
    if head.endswith('BBoxHead') or scope == 'mmseg':
        return 'softmax'
    if re.search('DETR|Former', head):  # both kinds are among them
        return 'focal' if loss.get('use_sigmoid') else 'softmax'
    return 'focal'


def advise(cfg: Config, found: list[Head], counts: ClassCounts) -> list[str]:
    """Lines that say what was found, what to try first, and why."""
    if not found:
        return ['Head: none with a classification loss in this config.']
    head, test_set = found[0], _test_set(cfg, counts)
    lines = [
        f'Head: {head.type} with {head.loss} ({head.kind}).',
        f'Test set: {test_set}.',
    ]
    refused = {k: why for h in HOSTS for k, why in h.refused.items()}
    key = f'{cfg.get("default_scope")} {head.usual}'
    if re.search('DETR|DINO|Former', head.type):
        key = f'queries {head.usual}'
    elif counts.num_classes >= MANY.get(head.usual, np.inf):
        key = (
            f'{key}, many classes' if f'{key}, many classes' in FIRST else key
        )
    if head.type in refused:
        what, why = 'none of these losses', f'{head.type} {refused[head.type]}'
    elif counts.imbalance_factor < BALANCED:
        what, why = (
            'nothing',
            'the largest class has only '
            f'{counts.imbalance_factor:.3g} times what the smallest has, as '
            'training sees them',
        )
    else:
        what, why = FIRST.get(
            key,
            (
                'not known',
                f'nothing was measured for {head.loss} ({head.kind}) in '
                f'{head.type}, and the loss has to be of the kind that the '
                'head applies at test',
            ),
        )
        if head.kind == 'ours' and f".{head.loss}'" in what:
            what = f'{head.loss}, which the config has already'
        elif head.kind == 'ours':
            what += f', not {head.loss}, which the config has'
    lines.append(f'First try: {what}. Why: {why}.')
    if key.startswith('mmpretrain') and not test_set.startswith('balanced'):
        lines.append(
            'If what counts is the overall accuracy on test data as frequent '
            'as those of training, keep cross-entropy: the correction gives '
            'frequent classes away for rare ones.'
        )
    return lines


def _test_set(cfg: Config, counts: ClassCounts) -> str:
    """Whether the test set, or else the validation set, is balanced."""
    for split in ('test', 'val'):
        loader = cfg.get(f'{split}_dataloader')
        if loader is None:
            continue
        try:
            found = count_dataset(
                DATASETS.build(loader.dataset),
                num_classes=counts.num_classes,
                unit=counts.unit,
                ignore_index=label_of_config(cfg),
            )
        except (OSError, ValueError) as error:
            return f'{split} data not known ({str(error)[:200]})'
        there = (
            'balanced'
            if found.imbalance_factor < BALANCED
            else 'nearly balanced'
            if found.imbalance_factor < NEARLY
            else 'not balanced'
        )
        empty = int((found.counts == 0).sum())
        return (
            f'{there}, {split}_dataloader has an imbalance factor of '
            f'{found.imbalance_factor:,.4g} ({found.unit} counts)'
            + (f' and {empty} classes without a sample' if empty else '')
        )
    return 'none in this config'


def report(
    title: str,
    counts: ClassCounts,
    groups: Groups | None,
    facts: dict[str, Any],
    rows: int,
) -> None:
    """Print the summary and the ends of the distribution."""
    console = Console()
    summary = Table(title=title, show_header=False)
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
    # A linear bar would show the head alone.
    bars = np.log1p(counts.counts / counts.counts[counts.counts > 0].min())
    bars *= 20 / bars.max()
    ends = Table(
        'rank', 'label', 'class', counts.unit, 'share', 'group', 'log scale'
    )
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
            '#' * round(bars[label]),
            end_section=rank == rows,
        )
    console.print(ends)


def plot(
    title: str, counts: ClassCounts, groups: Groups | None, path: str
) -> None:
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
        f'{title}\n{counts.num_classes} classes, imbalance factor '
        f'{counts.imbalance_factor:,.6g}, Gini {counts.gini:.3f}'
        + (f', {empty} empty classes not drawn' if empty else ''),
        fontsize=11,
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == '__main__':
    main()
