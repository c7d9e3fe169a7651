# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
r"""Times the losses against PyTorch's own and against what users run now.

Every call is a forward and a backward pass of the loss alone, with the
statistics and their commit. All methods of a shape run in one process,
interleaved, in a new order each round; a ratio compares the two calls of one
round. The peak of memory is the resident set's, in a process of its own.

    python benchmarks/speed.py --ledger benchmarks/speed.csv
    python benchmarks/speed.py --shapes roi inat --runs 15

A shape that is in the ledger for this commit is not measured again.
``benchmarks/performance.py`` draws docs/performance.md from the ledger.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from ledger import ROOT, append, read_ledger
from torch import Tensor, nn
from tqdm import tqdm

from lt_losses_mm.kernels import use_engine
from lt_losses_mm.losses import LOSSES, LongTailLoss, SigmoidLoss
from lt_losses_mm.sweeps.origin import commit, versions
from lt_losses_mm.sweeps.worker import cpu

CE, BCE = 'cross_entropy', 'binary_cross_entropy_with_logits'


class Shape(NamedTuple):
    """Logits, and how they reach the loss."""

    title: str
    size: tuple[int, ...]
    # Rows of each call; by default one call.
    levels: tuple[int, ...] = ()
    runs: int = 31


SHAPES = dict(
    roi=Shape('RoI head 1024 x 1204', (1024, 1204), runs=101),
    inat=Shape('iNat18 head 512 x 8142', (512, 8142), runs=51),
    dense=Shape(
        'dense head 44,600 x 1203, five levels',
        (44600, 1203),
        (33600, 8400, 2100, 400, 100),
        15,
    ),
    ade=Shape('ADE20K 2 x 150 x 512 x 512', (2, 150, 512, 512), runs=15),
    wide=Shape('512 x 100,000', (512, 100_000), runs=15),
    million=Shape('64 x 1,000,000', (64, 1_000_000), runs=15),
)
# For the slopes of time and memory.
for _columns in (100, 1000, 10_000, 100_000, 1_000_000):
    SHAPES[f'columns-{_columns}'] = Shape(
        f'64 x {_columns:,}', (64, _columns), runs=15
    )
for _rows in (64, 512, 4096, 32768):
    SHAPES[f'rows-{_rows}'] = Shape(
        f'{_rows:,} x 1203', (_rows, 1203), runs=15
    )

# The losses by name, and those that each of PyTorch's own is compared with.
OURS = {cls.__name__: cls for cls in LOSSES}
FAMILIES: dict[str, list[str]] = {CE: [], BCE: []}
for _name, _cls in OURS.items():
    FAMILIES[BCE if issubclass(_cls, SigmoidLoss) else CE].append(_name)
# The losses whose slopes are fitted.
SCALED = ('BalancedSoftmaxLoss', 'SigmoidEqualizationLoss')


class Call(NamedTuple):
    """A method: its name, its engine or '', its peer, and the calls."""

    name: str
    engine: str
    peer: str
    step: Callable[[list[Tensor]], None]


# ------------------------------------------------------------------ the peers
class ReferenceFocal(nn.Module):
    """Equalized Focal Loss as a direct transcription of its formulas.

    One-hot targets, a mask for each side and a power for each element.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.register_buffer('pos_grad', torch.ones(num_classes))
        self.register_buffer('neg_grad', torch.full((num_classes,), 2.0))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        if logits.dim() > 2:
            logits = logits.permute(0, 2, 3, 1).reshape(-1, self.num_classes)
            labels = labels.flatten()
        target = F.one_hot(labels, self.num_classes).to(logits.dtype)
        ratio = (self.pos_grad / self.neg_grad).clamp(0, 1)
        gamma = (2 + 8 * (1 - ratio)).expand_as(logits)
        p = logits.sigmoid()
        p_t = p * target + (1 - p) * (1 - target)
        bce = F.binary_cross_entropy_with_logits(
            logits, target, reduction='none'
        )
        alpha = 0.25 * target + 0.75 * (1 - target)
        loss = alpha * gamma / 2 * (1 - p_t) ** gamma * bce
        with torch.no_grad():
            modulated = (1 - p_t) ** gamma * (gamma * p_t * bce + (1 - p_t))
            slope = (alpha * gamma / 2 * modulated).abs()
            self.pos_grad += (slope * target).sum(0)
            self.neg_grad += (slope * (1 - target)).sum(0)
        return loss.sum() / labels.numel()


def host_loss(name: str, num_classes: int) -> nn.Module:
    """A loss of mmdet, as a RoI head without objectness calls it."""
    import mmdet.models.losses as losses

    if name == 'EQLV2Loss':
        return losses.EQLV2Loss(num_classes=num_classes)
    return losses.SeesawLoss(num_classes=num_classes, return_dict=False)


def backward(loss: Tensor, logits: Tensor) -> None:
    torch.autograd.grad(loss, logits)


def of_function(function: Callable, labels: list[Tensor]) -> Callable:
    def step(logits: list[Tensor]) -> None:
        for z, y in zip(logits, labels):
            backward(function(z, y), z)

    return step


def build(name: str, num_classes: int, **arguments: object) -> LongTailLoss:
    """A loss for as many columns as classes, unless told otherwise."""
    cls = OURS[name]
    policies = (p for p in cls.background_policies if p != 'objectness')
    arguments.setdefault('background', next(policies))
    if cls.uses_counts:
        counts = np.geomspace(1e4, 1, num_classes).round()
        arguments['class_counts'] = counts.tolist()
    loss = cls(num_classes=num_classes, **arguments)
    if arguments['background'] == 'objectness':
        loss.get_cls_channels(num_classes)  # as a RoI head
    return loss


def of_ours(loss: LongTailLoss, engine: str, labels: list) -> Callable:
    def step(logits: list[Tensor]) -> None:
        with use_engine(engine):
            for z, y in zip(logits, labels):
                backward(loss(z, y), z)
            if loss.statistics is not None:
                loss.statistics.commit()

    return step


class Work:
    """Logits, labels and methods of one shape."""

    def __init__(self, shape: Shape, dtype: torch.dtype, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.shape, self.dtype = shape, dtype
        self.num_classes = shape.size[1]
        sizes = [shape.size]
        if shape.levels:
            sizes = [(rows, *shape.size[1:]) for rows in shape.levels]
        self.logits = [
            torch.randn(size, generator=generator).to(dtype).requires_grad_()
            for size in sizes
        ]
        # As many rows of each class as a long tail has.
        share = torch.logspace(4, 0, self.num_classes)
        self.labels = []
        for size in sizes:
            rows = size[:1] + size[2:]
            drawn = torch.rand(rows, generator=generator) * share.sum()
            drawn = torch.searchsorted(share.cumsum(0), drawn)
            self.labels.append(drawn.clamp(max=self.num_classes - 1))

    def hot(self, labels: Tensor) -> Tensor:
        return F.one_hot(labels, self.num_classes).movedim(-1, 1).float()

    def cross_entropy(self) -> Call:
        return Call(CE, '', '', of_function(F.cross_entropy, self.labels))

    def binary_cross_entropy(self) -> Call:
        targets = [
            self.hot(y).to(self.dtype, memory_format=torch.contiguous_format)
            for y in self.labels
        ]
        return Call(
            BCE,
            '',
            '',
            of_function(F.binary_cross_entropy_with_logits, targets),
        )

    def ours(
        self, peer: str, engines: tuple, **arguments: object
    ) -> list[Call]:
        calls = []
        for name, engine in itertools.product(FAMILIES[peer], engines):
            loss = build(name, self.num_classes, **arguments)
            step = of_ours(loss, engine, self.labels)
            calls.append(Call(name, engine, peer, step))
        return calls

    def peers(self) -> list[Call]:
        """What users run now, where it can run."""
        calls = []
        if len(self.shape.size) == 2 and self.num_classes <= 10_000:
            for name in ('EQLV2Loss', 'SeesawLoss'):
                # Both make room for background, or for objectness.
                extra = 1 if name == 'EQLV2Loss' else 2
                loss = host_loss(name, self.num_classes - extra)
                labels = [
                    y.clamp(max=self.num_classes - extra - 1)
                    for y in self.labels
                ]
                calls.append(
                    Call(f'mmdet {name}', '', '', of_function(loss, labels))
                )
                ours, suffix = REPLACES[f'mmdet {name}'].split(', ')
                ours_loss = build(
                    ours, self.num_classes - extra, background=suffix
                )
                step = of_ours(ours_loss, 'native', labels)
                calls.append(Call(f'{ours}, {suffix}', 'native', '', step))
        if self.num_classes <= 10_000:
            calls += [
                call._replace(peer='')
                for call in self.ours(BCE, ('native',))
                if call.name in REPLACES.values()
            ]
            loss = ReferenceFocal(self.num_classes)
            calls.append(
                Call(
                    'EFL by its formulas',
                    '',
                    '',
                    of_function(loss, self.labels),
                )
            )
        return calls

    def calls(self, engines: tuple, scaling: bool) -> list[list[Call]]:
        """Groups whose members are compared with each other."""
        if scaling:
            return [
                [
                    self.cross_entropy(),
                    self.binary_cross_entropy(),
                    *[
                        call
                        for call in [
                            *self.ours(CE, ('native',)),
                            *self.ours(BCE, ('native',)),
                        ]
                        if call.name in SCALED
                    ],
                    self.copy(),
                ]
            ]
        groups = [
            [self.cross_entropy(), *self.ours(CE, engines), self.copy()],
            [self.binary_cross_entropy(), *self.ours(BCE, engines)],
        ]
        peers = self.peers()
        if peers:
            groups.append(peers)
        return groups

    def copy(self) -> Call:
        """One read and one write of the logits: the roofline."""

        def step(logits: list[Tensor]) -> None:
            for z in logits:
                z.detach().clone()

        return Call('copy of the logits', '', '', step)


# Which of ours replaces which of theirs.
REPLACES = {
    'mmdet EQLV2Loss': 'SigmoidEqualizationLoss, objectness',
    'mmdet SeesawLoss': 'SeesawSoftmaxLoss, objectness',
    'EFL by its formulas': 'EqualizedFocalLoss',
}


# ------------------------------------------------------------------ measuring
def like_a_training() -> None:
    """Put the process into the state of one that trains a model.

    PyTorch's log1p was seen to be much slower in a process that had not
    called pow yet. And glibc hands blocks back to the system after each call,
    whose pages are then faulted in again, until blocks of up to 32 MB have
    been freed. Both are in favour of PyTorch's own losses.
    """
    torch.rand(1 << 20).pow(torch.rand(1 << 20))
    torch.empty((32 << 18) - 4096).zero_()


def interleave(
    calls: list[Call], logits: list[Tensor], runs: int, bar: tqdm
) -> dict[Call, np.ndarray]:
    """Seconds of each call in each round."""
    seconds: dict[Call, list[float]] = {call: [] for call in calls}
    order = random.Random(0)
    like_a_training()
    for call in calls:  # compiles, allocates, warms up
        call.step(logits)
    for _ in range(runs):
        for call in order.sample(calls, len(calls)):
            started = time.perf_counter()
            call.step(logits)
            seconds[call].append(time.perf_counter() - started)
            bar.update()
    return {call: np.array(values) for call, values in seconds.items()}


def resident() -> int:
    """Bytes of the resident set."""
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return pages * os.sysconf('SC_PAGE_SIZE')


def peak_of(step: Callable[[], None]) -> int:
    """Growth of the resident set, at its highest, while a step runs."""
    Path('/proc/self/clear_refs').write_text('5')  # forgets the peak so far
    before = resident()
    step()
    status = Path('/proc/self/status').read_text()
    (line,) = [x for x in status.splitlines() if x.startswith('VmHWM')]
    return int(line.split()[1]) * 1024 - before


def measure_memory(name: str, dtype: torch.dtype) -> None:
    """Print the peak of every call of a shape, in multiples of the logits.

    Runs in a process whose allocator returns large blocks at once.
    """
    work = Work(SHAPES[name], dtype)
    largest = max(z.numel() * z.element_size() for z in work.logits)
    scaling = '-' in name
    small = Work(Shape('', (8, *SHAPES[name].size[1:2])), dtype)
    if len(SHAPES[name].size) > 2:
        small = Work(Shape('', (1, SHAPES[name].size[1], 8, 8)), dtype)
    engines = ('eager', 'native')

    def all_calls(work: Work) -> list[Call]:
        calls = list(itertools.chain(*work.calls(engines, scaling)))
        if name in ('dense', 'ade'):
            for peer in FAMILIES:
                for call in work.ours(peer, engines, overwrite_logits=True):
                    calls.append(
                        call._replace(name=call.name + ', overwriting')
                    )
        return calls

    for call in all_calls(small):  # libraries, threads, caches
        call.step(small.logits)
    del small
    for call in all_calls(work):
        logits = work.logits
        if 'overwriting' in call.name:
            logits = [z * 1 for z in logits]  # leaves are never overwritten
        peak = peak_of(lambda c=call, given=logits: c.step(given))
        # Levels are calls of their own: the largest is what counts.
        print(f'{call.name}\t{call.engine}\t{peak / largest:.3f}', flush=True)


def memory(name: str, dtype: str) -> dict[tuple[str, str], float]:
    """The same, from a process of its own."""
    out = subprocess.run(
        [sys.executable, __file__, '--memory-of', name, '--dtype', dtype],
        env=dict(os.environ, MALLOC_MMAP_THRESHOLD_='65536'),
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    found = {}
    for line in out.splitlines():
        call, engine, peak = line.split('\t')
        found[call, engine] = float(peak)
    return found


def measure(name: str, dtype: str, runs: int | None, ledger: Path) -> None:
    """Append the rows of a shape."""
    shape = SHAPES[name]
    runs = runs or shape.runs
    scaling = '-' in name
    work = Work(shape, getattr(torch, dtype))
    peaks = memory(name, dtype)
    common = dict(
        shape=shape.title,
        dtype=dtype,
        runs=runs,
        versions=versions(),
        cpu=cpu(),
        threads=torch.get_num_threads(),
        commit=commit(),
        command=f'python benchmarks/speed.py --shapes {name} --dtype {dtype}',
    )
    rows = []

    def add(call: Call, peer: str, values: np.ndarray, unit: str) -> None:
        p20, p50, p80 = np.percentile(values, (20, 50, 80))
        peak = peaks.get((call.name, call.engine), '') if unit == 'ms' else ''
        rows.append(
            dict(
                common,
                what=call.name,
                peer=peer,
                path=call.engine,
                p20=f'{p20:.4g}',
                p50=f'{p50:.4g}',
                p80=f'{p80:.4g}',
                unit=unit,
                peak_memory=peak,
                memory_unit='logits' if peak != '' else '',
            )
        )

    groups = work.calls(('eager', 'native'), scaling)
    total = runs * sum(map(len, groups))
    with tqdm(total=total, desc=shape.title) as bar:
        for group in groups:
            seconds = interleave(group, work.logits, runs, bar)
            by_name = {call.name: call for call in group}
            comparing = any(call.name in REPLACES for call in group)
            for call, values in seconds.items():
                if not comparing or call.name not in OURS:
                    add(call, '', values * 1e3, 'ms')
                if call.peer:
                    peer = seconds[by_name[call.peer]]
                    add(call, call.peer, values / peer, 'ratio')
                if call.name in REPLACES:
                    ours = seconds[by_name[REPLACES[call.name]]]
                    add(call, REPLACES[call.name], values / ours, 'ratio')
    written = {call for call, _ in peaks if 'overwriting' in call}
    for (call, engine), peak in peaks.items():
        if call in written:
            rows.append(
                dict(
                    common,
                    what=call,
                    path=engine,
                    peak_memory=peak,
                    memory_unit='logits',
                )
            )
    append(rows, ledger)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        '--shapes', nargs='+', choices=SHAPES, default=list(SHAPES)
    )
    parser.add_argument(
        '--dtype',
        choices=('float32', 'bfloat16', 'float16'),
        default='float32',
    )
    parser.add_argument('--runs', type=int, help='rounds of each shape')
    parser.add_argument(
        '--ledger', type=Path, default=ROOT / 'work_dirs' / 'speed.csv'
    )
    parser.add_argument('--memory-of', help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.memory_of:
        measure_memory(args.memory_of, getattr(torch, args.dtype))
        return
    done = {
        (row['shape'], row['dtype'])
        for row in read_ledger(args.ledger)
        if row['commit'] == commit() and 'dirty' not in row['commit']
    }
    for name in args.shapes:
        if (SHAPES[name].title, args.dtype) in done:
            print(f'{SHAPES[name].title}: in the ledger')
            continue
        measure(name, args.dtype, args.runs, args.ledger)


if __name__ == '__main__':
    main()
