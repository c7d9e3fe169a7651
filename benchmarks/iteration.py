# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
r"""What a loss adds to a whole training iteration.

Builds the three models of the embedded benchmark with each loss, and times
iterations (forward, backward, optimizer, commit of statistics) on one batch,
interleaved in one process. A ratio compares two iterations of one round.

    python benchmarks/iteration.py --ledger benchmarks/speed.csv
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from accuracy import METHODS, Run, read_config
from ledger import ROOT, append
from mmengine.registry import init_default_scope
from mmengine.runner import Runner, set_random_seed
from tqdm import tqdm

from lt_losses_mm import commit_statistics
from lt_losses_mm.losses import LongTailLoss
from lt_losses_mm.sweeps.origin import commit, versions
from lt_losses_mm.sweeps.worker import cpu

BASELINE = 'cross_entropy'
CLASSES = 40  # of the embedded benchmark


def build(run: Run, folder: str):
    """Model, optimizer and one batch of a run."""
    cfg = read_config(run.config, None if run.named else run.method)
    cfg.work_dir = folder
    cfg.log_level = 'ERROR'
    init_default_scope(cfg.default_scope)
    set_random_seed(0)
    runner = Runner.from_cfg(cfg)
    model = runner.model.train()
    for module in model.modules():
        if isinstance(module, LongTailLoss):
            module.set_num_classes(CLASSES)
            counts = np.geomspace(400, 4, CLASSES).round()
            module.set_class_counts(counts.tolist())
    optimizer = runner.build_optim_wrapper(cfg.optim_wrapper)
    set_random_seed(0)
    loader = copy.deepcopy(cfg.train_dataloader)
    loader.update(num_workers=0, persistent_workers=False)
    batch = next(iter(runner.build_dataloader(loader, seed=0)))
    return model, optimizer, batch


def measure(task: str, runs: int, ledger: Path) -> None:
    """Append the rows of a task."""
    runs_of = [Run(task, method, 0) for method in METHODS]
    with tempfile.TemporaryDirectory() as folder:
        built = {
            run.method: build(run, folder)
            for run in runs_of
            # Not the one that tests what another run trained.
            if run.trained == run and run.possible
        }

    def step(method: str) -> None:
        model, optimizer, batch = built[method]
        model.train_step(copy.copy(batch), optimizer)
        commit_statistics(model)

    order = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {method: [] for method in built}
    for method in built:
        step(method)
    for _ in tqdm(range(runs), desc=task):
        for method in order.permutation(list(built)):
            started = time.perf_counter()
            step(method)
            seconds[method].append(time.perf_counter() - started)
    rows = []
    for method, values in seconds.items():
        peer = BASELINE if method != BASELINE else ''
        ratio = np.array(values) / np.array(seconds[BASELINE])
        found = ratio if peer else np.array(values) * 1e3
        p20, p50, p80 = np.percentile(found, (20, 50, 80))
        rows.append(
            dict(
                what=method,
                peer=peer,
                shape=f'iteration, {task}',
                dtype='float32',
                p20=f'{p20:.4g}',
                p50=f'{p50:.4g}',
                p80=f'{p80:.4g}',
                unit='ratio' if peer else 'ms',
                runs=runs,
                versions=versions(),
                cpu=cpu(),
                threads=torch.get_num_threads(),
                commit=commit(),
                command=f'python benchmarks/iteration.py --tasks {task}',
            )
        )
    append(rows, ledger)
    for row in rows:
        print(row['what'], row['p20'], row['p50'], row['p80'], row['unit'])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    tasks = ('classification', 'detection', 'segmentation')
    parser.add_argument('--tasks', nargs='+', choices=tasks, default=tasks)
    parser.add_argument('--runs', type=int, default=31)
    parser.add_argument(
        '--ledger', type=Path, default=ROOT / 'work_dirs' / 'speed.csv'
    )
    args = parser.parse_args()
    for task in args.tasks:
        measure(task, args.runs, args.ledger)


if __name__ == '__main__':
    main()
