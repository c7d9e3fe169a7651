# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
r"""Says where the time of a call goes: into kernels, or into what is around.

For each loss on small logits, where targets are missed, among them those of
the embedded benchmark's iterations: microseconds in the native kernels of
both passes, and in all the rest (checks, weights, reduction, statistics,
autograd), when nothing but the loss runs, and when PyTorch's own loss runs
between its calls and takes the caches. For the smallest, what an autograd
function costs that computes nothing. Of the eager engine: how many operators
it calls, and the microseconds in them.

    python benchmarks/profile_calls.py --ledger benchmarks/speed.csv
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path
from typing import Any, Iterator

import numpy as np
import torch
from ledger import ROOT, append, read_ledger
from speed import SHAPES, Shape, Work, like_a_training
from torch import Tensor
from tqdm import tqdm

from lt_losses_mm.kernels.engines import native
from lt_losses_mm.sweeps.origin import commit, versions
from lt_losses_mm.sweeps.worker import cpu

COMMAND = 'python benchmarks/profile_calls.py'
PROFILED = dict(
    roi=SHAPES['roi'],
    inat=SHAPES['inat'],
    classification=Shape('classification iteration 64 x 40', (64, 40)),
    segmentation=Shape(
        'segmentation iteration 8 x 40 x 96 x 96', (8, 40, 96, 96)
    ),
)
PARTS = ('forward kernel', 'backward kernel', 'around the kernels')
WHOLE = 'whole call'


class Watch:
    """Stands for the library and keeps the seconds of its calls."""

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled
        self.seconds = [0.0, 0.0]  # backward, forward

    def lt_losses_run(self, problem: Any, forward: int) -> None:
        started = time.perf_counter()
        self.compiled.lt_losses_run(problem, forward)
        self.seconds[forward] += time.perf_counter() - started


def profile(watch: Watch, step: Any, between: Any, runs: int) -> np.ndarray:
    """Seconds of ``PARTS`` in each run."""
    found = []
    for _ in range(runs):
        between()
        watch.seconds = [0.0, 0.0]
        started = time.perf_counter()
        step()
        whole = time.perf_counter() - started
        backward, forward = watch.seconds
        found.append((forward, backward, whole - forward - backward))
    return np.array(found[runs // 5 :])


def operators(step: Any, runs: int = 20) -> tuple[float, float]:
    """Operators of a call, and microseconds in them."""
    with torch.profiler.profile() as found:
        for _ in range(runs):
            step()
    events = [e for e in found.key_averages() if e.key.startswith('aten::')]
    return (
        sum(e.count for e in events) / runs,
        sum(e.self_cpu_time_total for e in events) / runs,
    )


class Empty(torch.autograd.Function):
    """Takes logits, gives the losses of rows or a scalar; computes nothing."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, rows: int) -> Tensor:
        ctx.save_for_backward(logits)
        return logits.new_empty((rows,) if rows else ())

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        return torch.empty_like(ctx.saved_tensors[0]), None


class WithSetupContext(Empty):
    """The same in the form that transforms of torch.func can serve."""

    @staticmethod
    def forward(logits: Tensor, rows: int) -> Tensor:
        return logits.new_empty((rows,) if rows else ())

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])


def empty_functions(
    shape: tuple[int, ...], runs: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Microseconds of both passes of functions that compute nothing."""
    logits = torch.randn(shape).requires_grad_()
    forms = {
        'empty autograd function': lambda: Empty.apply(logits, 0),
        'empty autograd function, setup_context': lambda: (
            WithSetupContext.apply(logits, 0)
        ),
        'empty autograd function, reduced behind it': lambda: (
            Empty.apply(logits, shape[0]).sum() * 0.5
        ),
    }
    found: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(runs):
        for name, form in forms.items():
            logits.grad = None
            started = time.perf_counter()
            form().backward()
            found[name].append(time.perf_counter() - started)
    for name, seconds in found.items():
        yield name, 1e6 * np.array(seconds[runs // 5 :])


def measure(name: str, runs: int) -> Iterator[dict]:
    library = native.load()
    if library is None:
        raise SystemExit('there is no C++ compiler: nothing to profile')
    shape = PROFILED[name]

    def row(what: str, engine: str, values: Any, unit: str = 'us') -> dict:
        p20, p50, p80 = np.percentile(values, (20, 50, 80))
        return dict(
            what=what,
            shape=shape.title,
            dtype='float32',
            path=engine,
            p20=f'{p20:.4g}',
            p50=f'{p50:.4g}',
            p80=f'{p80:.4g}',
            unit=unit,
            runs=np.size(values),
            threads=torch.get_num_threads(),
            command=COMMAND,
        )

    if name == 'classification':
        for what, values in empty_functions(shape.size, 10 * runs):
            yield row(what, '', values)
    work = Work(shape, torch.float32)
    watch = Watch(library)
    like_a_training()
    for group in work.calls(('eager', 'native'), False)[:2]:
        (peer,) = [c for c in group if c.name == group[1].peer]
        ways = (
            ('alone', lambda: None),
            ('in turn', lambda p=peer: p.step(work.logits)),
        )
        for call, (how, between) in itertools.product(
            tqdm(group, desc=f'{name}, {peer.name}'), ways
        ):
            native.load = lambda: watch
            found = 1e6 * profile(
                watch, lambda c=call: c.step(work.logits), between, runs
            )
            native.load = lambda: library
            if call.engine == 'native':
                for part, values in zip(PARTS, found.T):
                    yield row(f'{call.name}: {part}, {how}', 'native', values)
            else:
                whole = found[:, 2]
                yield row(f'{call.name}: {WHOLE}, {how}', call.engine, whole)
        for call in group:
            if call.engine == 'eager':
                count, took = operators(lambda c=call: c.step(work.logits))
                what = f'{call.name}: operators'
                yield row(what, 'eager', [count], unit='')
                yield row(f'{call.name}: in operators', 'eager', [took])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('--shapes', nargs='+', default=list(PROFILED), choices=PROFILED)
    add('--runs', type=int, default=200)
    add('--ledger', type=Path, default=ROOT / 'work_dirs' / 'speed.csv')
    args = parser.parse_args()
    done = {
        row['shape']
        for row in read_ledger(args.ledger)
        if (row['command'], row['commit']) == (COMMAND, commit())
    }
    for name in args.shapes:
        if PROFILED[name].title in done:
            print(f'{PROFILED[name].title}: in the ledger')
            continue
        origin = dict(versions=versions(), cpu=cpu(), commit=commit())
        rows = [dict(row, **origin) for row in measure(name, args.runs)]
        append(rows, args.ledger)


if __name__ == '__main__':
    main()
