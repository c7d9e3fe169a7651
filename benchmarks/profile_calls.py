# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
r"""Says where the time of a call goes: into kernels, or into what is around.

For each loss on small logits, where targets are missed: microseconds in the
native kernels of both passes, and in all the rest (checks, weights,
reduction, statistics, autograd), when nothing but the loss runs, and when
PyTorch's own loss runs between its calls and takes the caches.

    python benchmarks/profile_calls.py --ledger benchmarks/speed.csv
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ledger import ROOT, append, commit, cpu, read_ledger, versions
from speed import SHAPES, Work, like_a_training
from tqdm import tqdm

COMMAND = 'python benchmarks/profile_calls.py'
PARTS = ('forward kernel', 'backward kernel', 'around the kernels')


class Watch:
    """Stands for the library and keeps the seconds of its calls."""

    def __init__(self, library: Any) -> None:
        self.library = library
        self.seconds = [0.0, 0.0]  # backward, forward

    def lt_losses_run(self, problem: Any, forward: int) -> None:
        started = time.perf_counter()
        self.library.lt_losses_run(problem, forward)
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


def measure(name: str, runs: int) -> list[dict]:
    # performance.py needs no more than the names above.
    from lt_losses_mm.kernels import native

    library = native.load()
    if library is None:
        raise SystemExit('there is no C++ compiler: nothing to profile')
    work = Work(SHAPES[name], torch.float32)
    watch = Watch(library)
    native.load = lambda: watch
    like_a_training()
    rows = []
    groups = work.calls(('native',), False)[:2]
    with tqdm(total=2 * sum(len(g) for g in groups), desc=name) as bar:
        for group in groups:
            (peer,) = [c for c in group if c.name == group[1].peer]
            for call in group:
                for how, between in (
                    ('alone', lambda: None),
                    ('in turn', lambda p=peer: p.step(work.logits)),
                ):
                    found = profile(
                        watch,
                        lambda c=call: c.step(work.logits),
                        between,
                        runs,
                    )
                    parts = zip(PARTS, found.T)
                    if not call.peer:
                        parts = [('PyTorch', found[:, 2])]
                    for part, values in parts:
                        p20, p50, p80 = np.percentile(
                            values * 1e6, (20, 50, 80)
                        )
                        rows.append(
                            dict(
                                what=f'{call.name}: {part}, {how}',
                                shape=SHAPES[name].title,
                                dtype='float32',
                                path=call.path,
                                p20=f'{p20:.4g}',
                                p50=f'{p50:.4g}',
                                p80=f'{p80:.4g}',
                                unit='us',
                                runs=len(values),
                                threads=torch.get_num_threads(),
                                command=COMMAND,
                            )
                        )
                    bar.update()
    native.load = lambda: library
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('--shapes', nargs='+', default=['roi', 'inat'], choices=SHAPES)
    add('--runs', type=int, default=200)
    add('--ledger', type=Path, default=ROOT / 'work_dirs' / 'speed.csv')
    args = parser.parse_args()
    done = {
        row['shape']
        for row in read_ledger(args.ledger)
        if (row['command'], row['commit']) == (COMMAND, commit())
    }
    for name in args.shapes:
        if SHAPES[name].title in done:
            print(f'{SHAPES[name].title}: in the ledger')
            continue
        origin = dict(versions=versions(), cpu=cpu(), commit=commit())
        rows = [dict(row, **origin) for row in measure(name, args.runs)]
        append(rows, args.ledger)


if __name__ == '__main__':
    main()
