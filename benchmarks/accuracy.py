# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
r"""Trains the embedded benchmark and says what the tail gained.

Every (task, method, seed) is one call of ``tools/train.py``, or of ``mim
train`` for CIFAR-100-LT. A finished run is not repeated and a killed one
resumes. Values go to a CSV ledger in long
format, one row a value; the table and the figure are drawn from the ledger
alone.

    python benchmarks/accuracy.py --seeds 0 1 2
    python benchmarks/accuracy.py --seeds 0 1 2 --report-only \
        --ledger benchmarks/accuracy.csv
    python benchmarks/accuracy.py --write-pages
    python benchmarks/accuracy.py --tasks cifar100_lt \
        --methods cross_entropy post_hoc balanced_softmax
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Collection, Mapping, NamedTuple

from ledger import ROOT, append, commit, read_ledger, versions
from rich.console import Console
from rich.table import Table

sys.path.append(str(ROOT / 'tools'))
from lt_losses_mm.recipes import fits, losses, read_config

COLUMNS = (
    'task',
    'dataset',
    'method',
    'seed',
    'metric',
    'value',
    'epochs',
    'versions',
    'commit',
    'command',
)
# The order of the table; losses that were added later come behind.
METHODS = (
    'cross_entropy',
    'post_hoc',
    'focal',
    'quality_focal',
    'balanced_softmax',
    'balanced_sigmoid',
    'equalization',
    'equalization_softmax',
    'sigmoid_equalization',
    'softmax_equalization',
    'seesaw',
    'equalized_focal',
    'equalized_quality_focal',
)
METHODS += tuple(loss for loss in losses() if loss not in METHODS)
# The hosts' own losses: of the configs that take another one.
BASELINES = ('cross_entropy', 'focal', 'quality_focal')
DEFAULT_METHODS = ('cross_entropy', 'balanced_softmax')


class Task(NamedTuple):
    """What differs between the tasks.

    Args:
        config: Path of the config with ``{}`` for the method.
        metrics: Name in the ledger -> name in the run's scalars, or
            ``BEST``. Their order is that of ``COLUMNS_OF_METRICS``.
        scale: Factor to percent.
        title: Of the panel in the figure.
        dataset: Name in the ledger.
        options: For ``--cfg-options`` of each training.
        by_mim: Whether ``mim`` starts the run; the package must be installed.
            Otherwise ``tools/train.py``.
        published: Method -> overall figure of the published recipe, of 200
            epochs, and its source.
    """

    config: str
    metrics: dict[str, str]
    scale: float
    title: str
    dataset: str = 'digits-lt'
    options: tuple[str, ...] = ()
    by_mim: bool = False
    published: Mapping[str, tuple[str, str]] = {}


# Titles in the table of what each task's metrics are, in their order.
COLUMNS_OF_METRICS = (
    'overall',
    'frequent',
    'middle',
    'rare',
    'ECE (lower is better)',
    'best epoch',
)
LVIS_METRICS = {
    'AP': 'lvis/bbox_AP',
    'AP frequent': 'lvis/bbox_APf',
    'AP common': 'lvis/bbox_APc',
    'AP rare': 'lvis/bbox_APr',
}
CLASSIFICATION_METRICS = {
    'accuracy': 'accuracy/all',
    'accuracy many': 'accuracy/many',
    'accuracy medium': 'accuracy/medium',
    'accuracy few': 'accuracy/few',
    'ECE': 'accuracy/ece',
}
# Not in the scalars: the greatest overall value of a training's evaluations.
BEST = 'best'
CIFAR_PUBLISHED = dict(
    cross_entropy=(
        '38.3; 37.7',
        '[Cao et al.](https://arxiv.org/abs/1906.07413); '
        '[Bag of Tricks](https://github.com/zhangyongshun/BagofTricks-LT)',
    ),
    balanced_softmax=(
        '43.0',
        '[Bag of Tricks](https://github.com/zhangyongshun/BagofTricks-LT)',
    ),
)
TASKS = dict(
    classification=Task(
        'configs/classification/digits/resnet18-c16_1xb64-20e-{}_digits-lt.py',
        CLASSIFICATION_METRICS,
        1,
        'Classification (mmpretrain): accuracy',
    ),
    detection=Task(
        'configs/detection/digits/'
        'faster-rcnn_r18-c32_fpn_{}_random-8e_digits-lt.py',
        LVIS_METRICS,
        100,
        'Detection (mmdet): LVIS AP',
    ),
    dense_detection=Task(
        'configs/detection/digits/atss_r18-c32_fpn_{}_random-8e_digits-lt.py',
        LVIS_METRICS,
        100,
        'Dense detection (mmdet, ATSS): LVIS AP',
    ),
    dense_quality_detection=Task(
        'configs/detection/digits/gfl_r18-c32_fpn_{}_random-8e_digits-lt.py',
        LVIS_METRICS,
        100,
        'Dense detection (mmdet, GFL): LVIS AP',
    ),
    segmentation=Task(
        'configs/segmentation/digits/'
        'fcn_r18-c32_1xb8-16e-{}_digits-lt-128x128.py',
        {
            'mIoU': 'iou/mIoU',
            'IoU head': 'iou/head',
            'IoU body': 'iou/body',
            'IoU tail': 'iou/tail',
        },
        1,
        'Segmentation (mmseg): mIoU',
    ),
    cifar100_lt=Task(
        'configs/classification/cifar-lt/'
        'resnet32_1xb128-60e-bf16-{}_cifar100-lt-if100.py',
        CLASSIFICATION_METRICS,
        1,
        'CIFAR-100-LT, ResNet-32, 60 epochs: accuracy',
        dataset='cifar100-lt-if100',
        by_mim=True,
        published=CIFAR_PUBLISHED,
    ),
    cifar100_lt_200_epochs=Task(
        'configs/classification/cifar-lt/'
        'resnet32_1xb128-200e-{}_cifar100-lt-if100.py',
        {**CLASSIFICATION_METRICS, 'accuracy best': BEST},
        1,
        'CIFAR-100-LT, ResNet-32, 200 epochs: accuracy',
        dataset='cifar100-lt-if100',
        # The first two as in the leaves for a CPU. The best epoch is behind
        # the first step of the rate.
        options=(
            'optim_wrapper.type=lt_losses_mm.Bfloat16OptimWrapper',
            'model.backbone.channels_last=True',
            'train_cfg.dynamic_intervals=[(161, 2)]',
        ),
        by_mim=True,
        published=CIFAR_PUBLISHED,
    ),
)
EMBEDDED = [name for name, task in TASKS.items() if not task.by_mim]


class Page(NamedTuple):
    """A page with a table from the committed ledger, between two marks."""

    path: str
    marker: str
    tasks: Collection[str]
    methods: Collection[str]


PAGES = (
    Page('README.md', 'digits-table', EMBEDDED, DEFAULT_METHODS),
    Page('docs/digits.md', 'digits-table', EMBEDDED, METHODS),
    Page(
        'docs/cifar100_lt.md', 'cifar-table', TASKS.keys() - EMBEDDED, METHODS
    ),
)


class Run(NamedTuple):
    """One training, or for ``post_hoc`` a test of the one with CE."""

    task: str
    method: str
    seed: int

    def __str__(self) -> str:
        return f'{self.task} / {self.method} / seed {self.seed}'

    @property
    def trained(self) -> Run:
        """The training that the run's model is of."""
        if self.method == 'post_hoc':
            return self._replace(method='cross_entropy')
        return self

    @property
    def metrics(self) -> dict[str, str]:
        """Those of the task that the run has values of."""
        return {
            name: key
            for name, key in TASKS[self.task].metrics.items()
            if key != BEST or self.trained == self
        }

    def leaf(self, method: str) -> Path:
        """Where the config of the task with a method would be."""
        return ROOT / TASKS[self.task].config.format(method.replace('_', '-'))

    @property
    def named(self) -> bool:
        """Whether there is a config for the method."""
        return self.leaf(self.trained.method).exists()

    @property
    def config(self) -> Path:
        """The config of the method, or the recipe that takes its loss."""
        methods = (self.trained.method, *BASELINES)
        return next(x for x in map(self.leaf, methods) if x.exists())

    @property
    def possible(self) -> bool:
        """Whether there is a config for the method, or its loss fits."""
        return self.named or (
            self.trained.method in losses()
            and fits(read_config(self.config), self.trained.method)
        )

    def folder(self, work_dir: Path) -> Path:
        return work_dir / self.task / self.method / f'seed{self.seed}'

    def command(self, work_dir: Path, evaluate: bool = False) -> list[str]:
        """Arguments of Python, relative to the repository.

        Args:
            work_dir: Of all runs.
            evaluate: Whether a training is over and only its last evaluation
                is missing.
        """
        folder = os.path.relpath(self.folder(work_dir), ROOT)
        config = str(self.config.relative_to(ROOT))
        task = TASKS[self.task]
        tested = self.trained != self
        what = 'test' if tested or evaluate else 'train'
        if task.by_mim:
            # By path: of a clone mim searches the copies in work dirs, too.
            start = ['-m', 'mim', what, 'mm-lt-losses', config]
        else:
            start = [f'tools/{what}.py', config]
        if not self.named:
            start += ['--loss', self.trained.method]
        if what == 'train':
            seed = f'randomness.seed={self.seed}'
            options = ['--resume', '--cfg-options', seed, *task.options]
        else:
            options = ['--checkpoint'] if task.by_mim else []
            options += [self.checkpoint(work_dir)]
        if tested:
            options += ['--post-hoc-tau', '1.0']
        return [*start, '--work-dir', folder, *options]

    def checkpoint(self, work_dir: Path) -> str:
        """Path of the trained model, relative to the repository."""
        last = self.trained.folder(work_dir) / 'last_checkpoint'
        if not last.exists():
            raise SystemExit(
                f'{self} tests the model of "{self.trained}", and there is no '
                f'{last}. Train it first, into this work dir.'
            )
        return os.path.relpath(last.read_text().strip(), ROOT)


def train(runs: list[Run], work_dir: Path, ledger: Path, jobs: int) -> None:
    """Run what is not finished, ``jobs`` at a time, and fill the ledger."""
    recorded = {
        (row['task'], row['method'], int(row['seed']))
        for row in read_ledger(ledger)
    }
    waiting = [run for run in runs if tuple(run) not in recorded]
    # Tests need the models of trainings.
    waiting.sort(key=lambda run: run.trained != run)
    if len(waiting) < len(runs):
        print(
            f'{len(runs) - len(waiting)} of {len(runs)} runs are in '
            f'{ledger} already.'
        )
    environment = dict(os.environ)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    environment.setdefault('OMP_NUM_THREADS', str(threads))
    active: dict[Run, tuple[subprocess.Popen, float]] = {}
    again: set[Run] = set()
    done, total, told = 0, len(waiting), time.time()
    try:
        while waiting or active:
            while (
                waiting
                and len(active) < jobs
                and waiting[0].trained not in active
            ):
                run = waiting.pop(0)
                folder = run.folder(work_dir)
                folder.mkdir(parents=True, exist_ok=True)
                print(f'start  {run}  (log: {folder / "train.log"})')
                with open(folder / 'train.log', 'a') as log:
                    process = subprocess.Popen(
                        [
                            sys.executable,
                            *run.command(work_dir, evaluate=run in again),
                        ],
                        cwd=ROOT,
                        env=environment,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                active[run] = process, time.time()
            time.sleep(1)
            for run, (process, started) in list(active.items()):
                if process.poll() is None:
                    continue
                del active[run]
                finished = process.returncode == 0
                if finished and not final_values(run, work_dir):
                    if run in again:
                        raise SystemExit(
                            f'{run} trains, but its last evaluation gives '
                            f'none of {list(run.metrics.values())}'
                        )
                    # Killed in its last evaluation, which is not resumed.
                    again.add(run)
                    waiting.insert(0, run)
                    continue
                if process.returncode:
                    log = run.folder(work_dir) / 'train.log'
                    tail = '\n'.join(log.read_text().splitlines()[-15:])
                    raise SystemExit(
                        f'{run} failed; the end of {log}:\n{tail}'
                    )
                done += 1
                record(run, work_dir, ledger)
                minutes = (time.time() - started) / 60
                print(f'done   {run}  [{done}/{total}] {minutes:.1f} min')
            if time.time() - told > 20 and active:
                told = time.time()
                state = '; '.join(
                    f'{run}: {progress(run, work_dir)}' for run in active
                )
                print(f'       [{done}/{total}] {state}', flush=True)
    finally:
        for process, _ in active.values():
            process.terminate()


def progress(run: Run, work_dir: Path) -> str:
    """Last training position that the run's log tells."""
    text = (run.folder(work_dir) / 'train.log').read_text(errors='replace')
    seen = re.findall(r'Epoch\(train\) +\[ *(\d+)\]\[ *(\d+)/(\d+)\]', text)
    if not seen:
        return 'starting'
    epoch, step, steps = seen[-1]
    return f'epoch {epoch}, {step}/{steps}'


def final_values(run: Run, work_dir: Path) -> dict:
    """Scalars of the last epoch's evaluation and the ``BEST``.

    Empty if there was no evaluation of the last epoch.
    """
    overall = next(iter(run.metrics.values()))
    wanted = set(run.metrics.values()) - {BEST}
    found: dict = {}
    best = 0.0
    folder = run.folder(work_dir)
    # Of trainings and of tests; those have no epoch but their checkpoint's.
    files = [*folder.glob('*/vis_data/scalars.json'), *folder.glob('*/*.json')]
    if not files:
        return {}
    (epoch,) = re.findall(r'epoch_(\d+)', run.checkpoint(work_dir))
    last = int(epoch)
    for path in sorted(files):
        for line in path.read_text().splitlines():
            values = {'step': last, **json.loads(line)}
            if wanted <= values.keys():
                best = max(best, values[overall])
                if values['step'] == last:
                    found = {**values, BEST: best}
    return found


def record(run: Run, work_dir: Path, ledger: Path) -> None:
    """Append the final values of a finished run to the ledger."""
    task = TASKS[run.task]
    found = final_values(run, work_dir)
    shared = dict(
        task=run.task,
        dataset=task.dataset,
        method=run.method,
        seed=run.seed,
        epochs=found['step'],
        versions=versions(),
        commit=commit(),
        command=shlex.join(['python', *run.command(work_dir)]),
    )
    rows = [
        dict(shared, metric=name, value=round(found[key] * task.scale, 4))
        for name, key in run.metrics.items()
    ]
    append(rows, ledger, COLUMNS)


class Results:
    """The ledger's values by task, method and metric.

    Of a run that was recorded more than once the last row counts.
    """

    def __init__(self, rows: list[dict], runs: list[Run]) -> None:
        latest = {}
        for row in rows:
            run = Run(row['task'], row['method'], int(row['seed']))
            if run in runs:
                latest[run, row['metric']] = float(row['value'])
        self.values: dict[tuple, list[float]] = defaultdict(list)
        for (run, metric), value in latest.items():
            self.values[run.task, run.method, metric].append(value)
        self.tasks = [t for t in TASKS if any(k[0] == t for k in self.values)]
        self.methods = [
            m for m in METHODS if any(k[1] == m for k in self.values)
        ]

    def mean(self, *key: str) -> float:
        values = self.values.get(key)
        return statistics.fmean(values) if values else float('nan')

    def sd(self, *key: str) -> float:
        """Sample standard deviation over seeds, 0 for a single seed."""
        values = self.values.get(key, [])
        return statistics.stdev(values) if len(values) > 1 else 0.0

    def cell(self, *key: str) -> str:
        if key not in self.values:
            return '-'
        text = f'{self.mean(*key):.1f}'
        if len(self.values[key]) > 1:
            text += f' ± {self.sd(*key):.1f}'
        return text

    def table(self) -> list[list[str]]:
        """Header and rows, one a task and method."""
        width = max(len(TASKS[task].metrics) for task in self.tasks)
        rows = [['task', 'loss', 'seeds', *COLUMNS_OF_METRICS[:width]]]
        published = any(TASKS[task].published for task in self.tasks)
        if published:
            rows[0] += ['published, 200 epochs', 'source']
        for task in self.tasks:
            metrics = list(TASKS[task].metrics)
            metrics += [''] * (width - len(metrics))
            for method in self.methods:
                cells = [self.cell(task, method, m) for m in metrics]
                if set(cells) == {'-'}:
                    continue
                seeds = len(self.values[task, method, metrics[0]])
                names = f'{task} ({metrics[0]})', method
                row = [n.replace('_', ' ') for n in names]
                row += [str(seeds), *cells]
                if published:
                    row += TASKS[task].published.get(method, ('-', '-'))
                rows.append(row)
        return rows

    def datasets(self) -> str:
        return ', '.join({TASKS[task].dataset: None for task in self.tasks})

    def seeds(self) -> int:
        return max(map(len, self.values.values()))


def filled(page: Page) -> str:
    """The text of a page, with the table that the committed ledger gives."""
    rows = [
        row
        for row in read_ledger(ROOT / 'benchmarks' / 'accuracy.csv')
        if row['task'] in page.tasks and row['method'] in page.methods
    ]
    runs = [Run(r['task'], r['method'], int(r['seed'])) for r in rows]
    header, *body = Results(rows, runs).table()
    table = ''.join(
        f'| {" | ".join(row)} |\n'
        for row in [header, ['---'] * len(header), *body]
    )
    text = (ROOT / page.path).read_text('utf-8')
    begin, end = f'<!-- {page.marker} -->\n', f'<!-- /{page.marker} -->'
    before, rest = text.split(begin)
    return before + begin + table + end + rest.split(end)[1]


def print_table(results: Results) -> None:
    """Print mean ± sd over seeds, in percent."""
    header, *rows = results.table()
    table = Table(
        title=f'{results.datasets()}, {results.seeds()} seed(s), percent'
    )
    for index, name in enumerate(header):
        table.add_column(name, justify='left' if index < 2 else 'right')
    for row, following in itertools.zip_longest(rows, rows[1:]):
        last = following is None or following[0] != row[0]
        table.add_row(*row, end_section=last)
    Console(width=100).print(table)


def draw(results: Results, path: Path) -> None:
    """Bars by frequency group, a panel a task, error bars of one sd."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    colours = dict(zip(METHODS, plt.get_cmap('tab20').colors))
    figure, axes = plt.subplots(
        1,
        len(results.tasks),
        figsize=(4.4 * len(results.tasks), 3.9),
        sharey=True,
        squeeze=False,
    )
    width = 0.8 / len(results.methods)
    for axis, task in zip(axes[0], results.tasks):
        metrics = list(TASKS[task].metrics)[:4]
        names = ['overall', *(m.split(' ')[-1] for m in metrics[1:])]
        for index, method in enumerate(results.methods):
            keys = [(task, method, metric) for metric in metrics]
            means = [results.mean(*key) for key in keys]
            sds = [results.sd(*key) for key in keys]
            place = [i + (index + 0.5) * width - 0.4 for i in range(4)]
            bars = axis.bar(
                place,
                means,
                width * 0.94,
                color=colours[method],
                label=method.replace('_', ' '),
                yerr=sds if any(sds) else None,
                capsize=2,
                error_kw=dict(lw=1, ecolor='#3c4043'),
            )
            if len(results.methods) < 4:
                axis.bar_label(bars, fmt='%.0f', padding=2, fontsize=8)
        axis.axvline(0.5, color='#dadce0', lw=1)
        axis.set_xticks(range(4), names)
        axis.set_title(TASKS[task].title, fontsize=11)
        axis.set_ylim(0, 105)
        axis.spines[['top', 'right']].set_visible(False)
        axis.tick_params(length=0)
        axis.set_xlabel('classes by training frequency', fontsize=9)
    axes[0, 0].set_ylabel('percent')
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(),
        loc='lower center',
        ncols=min(len(results.methods), 6),
        frameon=False,
    )
    seeds = results.seeds()
    note = f'mean and sd of {seeds} seeds' if seeds > 1 else 'one seed'
    figure.suptitle(
        f'{results.datasets()}, imbalance factor 100, {note}', fontsize=12
    )
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('--tasks', nargs='+', choices=TASKS, default=EMBEDDED)
    add('--methods', nargs='+', choices=METHODS, default=DEFAULT_METHODS)
    add('--seeds', nargs='+', type=int, default=[0])
    add('--work-dir', type=Path, default=ROOT / 'work_dirs' / 'digits')
    add(
        '--ledger',
        type=Path,
        help='CSV file (default: accuracy.csv in the work dir)',
    )
    add(
        '--figure',
        type=Path,
        help='PNG file (default: accuracy.png in the work dir)',
    )
    add('--jobs', type=int, default=2, help='trainings at a time')
    add('--report-only', action='store_true', help='train nothing')
    add(
        '--write-pages',
        action='store_true',
        help='only fill the tables of README and docs from the ledger of the '
        'repository',
    )
    args = parser.parse_args()
    args.work_dir = args.work_dir.resolve()
    args.ledger = args.ledger or args.work_dir / 'accuracy.csv'
    args.figure = args.figure or args.work_dir / 'accuracy.png'
    return args


def main() -> None:
    args = parse_args()
    if args.write_pages:
        for page in PAGES:
            (ROOT / page.path).write_text(filled(page), 'utf-8')
        return
    runs = [
        Run(task, method, seed)
        for task in args.tasks
        for seed in args.seeds
        for method in args.methods
        if Run(task, method, seed).possible
    ]
    if not args.report_only:
        train(runs, args.work_dir, args.ledger, args.jobs)
    results = Results(read_ledger(args.ledger), runs)
    if not results.values:
        raise SystemExit(f'{args.ledger} holds none of the runs asked for')
    print_table(results)
    draw(results, args.figure)
    print(f'figure: {args.figure}\nledger: {args.ledger}')


if __name__ == '__main__':
    main()
