# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Try configs without their data: train, save, resume and evaluate on CPU.

Builds each config with its real heads and class count, on a small stand-in
for its data set (a format double) that is made if it is not there. Trains a
few steps, saves, resumes from the checkpoint, trains one step more and
evaluates with the config's own evaluators. Fails if anything raises or if a
loss is not finite. Results go to results.csv in the work directory; configs
that have passed are not run again unless they, --steps or --data-root have
changed.

With --losses, recipes are run with these losses in place of their own, as
LT_LOSS does: --all --losses all are all recipes with all losses that fit.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import json
import math
import multiprocessing
import numbers
import os
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
import traceback
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, Callable, Iterator, TextIO

import torch
from _doubles import DOUBLES, MARKER, make_double
from _launch import (
    HOSTS,
    build_runner,
    load_config,
    set_mmpretrain_dataloaders,
)
from _own_data import make_own_data, walk
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner

from lt_losses_mm.recipes import (
    CONFIGS,
    VARIABLE,
    fits,
    leaves,
    read_config,
    read_leaf,
)
from lt_losses_mm.recipes import losses as known_losses
from lt_losses_mm.registry import DATASETS

COLUMNS = (
    'config',
    'status',
    'seconds',
    'peak MB',
    'losses',
    'metrics',
    'error',
    'shrunk',
    'digest',
)
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
BATCH_SIZE = 2
EVALUATED_BATCHES = 1
# Regions of an image that the second stage of a detector is trained on, that
# it takes from the first stage, and that it predicts: with 300 masks of each
# of 1203 classes a cascade needs 15 GB. Also the queries of DETR-like models,
# which choose them among the pixels of the feature maps: there have to be
# more of those.
REGIONS = 16
# Pixels. The largest short side of a pipeline becomes this one.
SHORT_SIDE = 64
SIZES = ('scale', 'scales', 'img_scale', 'crop_size', 'size', 'stride')
# In the folder of a run.
STAND_INS = 'data'
MAKING_DATA = threading.Lock()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        'config',
        nargs='*',
        help='config file, or the name of a config of this package',
    )
    parser.add_argument(
        '--all', action='store_true', help='all configs of this package'
    )
    parser.add_argument(
        '--losses',
        nargs='+',
        metavar='NAME',
        help='run the recipes among the configs with these losses, files of '
        'configs/_base_/losses, instead of all configs with their own; a '
        'loss that does not fit a recipe is left out. `all` are all of them',
    )
    parser.add_argument(
        '--part',
        metavar='K/N',
        help='of these every N-th run, beginning with the K-th '
        '(1/3 to 3/3 share all runs among three machines)',
    )
    parser.add_argument(
        '--data-root',
        metavar='DIR',
        help='what `data/` in the configs becomes; doubles of benchmarks are '
        'made there (default: WORK_DIR/data)',
    )
    parser.add_argument(
        '--work-dir',
        metavar='DIR',
        default='work_dirs/dry_run',
        help='where results and logs go (default: %(default)s)',
    )
    parser.add_argument(
        '--steps',
        type=int,
        default=3,
        help='training steps before resuming (default: %(default)s)',
    )
    parser.add_argument(
        '--jobs',
        type=int,
        default=1,
        help='configs at a time (default: %(default)s)',
    )
    # What the processes of the tool tell each other.
    for option in ('--serve', '--result'):
        parser.add_argument(option, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve is not None:
        serve(parser, args.serve)
        return

    runs = chosen(parser, args)
    for option in ('steps', 'jobs'):
        if getattr(args, option) < 1:
            parser.error(
                f'--{option}: expected at least 1, got {getattr(args, option)}'
            )
    work_dir = Path(args.work_dir)
    work_dir.mkdir(parents=True, exist_ok=True)

    table = Results(work_dir / 'results.csv')
    # As many as threads, hence one is free whenever a thread is.
    servers = [Server() for _ in range(args.jobs)]

    def run(path: Path, loss: str | None) -> dict[str, str]:
        server = servers.pop()
        row = dry_run(path, loss, args, table, server)
        servers.append(server)
        return row

    with ThreadPool(args.jobs) as pool:
        rows = pool.imap_unordered(lambda one: run(*one), runs)
        passed = 0
        for number, row in enumerate(rows, 1):
            passed += row['status'] == 'pass'
            print(f'[{number}/{len(runs)}] {describe(row)}', flush=True)
    for server in servers:
        server.end()
    print(f'{passed} of {len(runs)} pass, see {table.path}')
    sys.exit(int(passed < len(runs)))


def chosen(
    parser: argparse.ArgumentParser, args: argparse.Namespace
) -> list[tuple[Path, str | None]]:
    """Config files that the arguments name, each with a loss or ``None``."""
    if args.all == bool(args.config):
        parser.error('give either configs or --all')
    paths = every = leaves(CONFIGS)
    if not args.all:
        paths = []
        for name in args.config:
            found = [Path(name)] if Path(name).is_file() else []
            found = found or [p for p in every if name in (p.name, p.stem)]
            if len(found) != 1:
                parser.error(
                    f'config: {name!r} is no file, and {len(found)} configs '
                    f'below {CONFIGS} have this name, expected 1'
                )
            paths += found
    runs = [(path, None) for path in paths]
    if args.losses is not None:
        known = known_losses(CONFIGS)
        wanted = known if args.losses == ['all'] else args.losses
        if not set(wanted) <= set(known):
            parser.error(
                f'--losses: expected all, or some of {", ".join(known)}; '
                f'got {" ".join(wanted)}'
            )
        recipes = [
            path
            for path in paths
            if path.resolve() in every and read_leaf(path).is_recipe
        ]
        runs = [
            (path, loss)
            for path in recipes
            for recipe in [read_config(path)]
            for loss in wanted
            if fits(recipe, loss, CONFIGS)
        ]
    if args.part is not None:
        match = re.fullmatch(r'(\d+)/(\d+)', args.part)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            parser.error(
                f'--part: expected K/N with 1 <= K <= N, got {args.part!r}'
            )
        runs = runs[int(match[1]) - 1 :: int(match[2])]
    if not runs:
        parser.error(f'no configs to run (looked below {CONFIGS})')
    return runs


class Results:
    """The table of results, whole on disk after each of them.

    Args:
        path: CSV file, read if it is there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, dict[str, str]] = {}
        self.lock = threading.Lock()
        if path.is_file():
            with path.open(newline='', encoding='utf-8') as file:
                self.rows = {
                    row['config']: row for row in csv.DictReader(file)
                }

    def passed(self, config: str, digest: str) -> dict[str, str] | None:
        """The row of a config, if it has passed as it is now."""
        row = self.rows.get(config, {})
        known = row.get('status') == 'pass' and row.get('digest') == digest
        return row if known else None

    def add(self, row: dict[str, str]) -> None:
        with self.lock:
            self.rows[row['config']] = row
            new = self.path.with_suffix('.new')
            with new.open('w', newline='', encoding='utf-8') as file:
                table = csv.DictWriter(file, COLUMNS)
                table.writeheader()
                table.writerows(self.rows.values())
            new.replace(self.path)


def describe(row: dict[str, str]) -> str:
    """What is printed about a config."""
    kept = '  (ran before)' if 'kept' in row else ''
    lines = [f'{row["status"]}  {row["config"]}{kept}']
    if row['status'] == 'fail':
        lines += [row['error']]
    else:
        *losses, resumed = row['losses'].split()
        lines += [
            f'{row["seconds"]} s, peak {row["peak MB"]} MB, losses '
            f'{" ".join(losses)}, after resuming {resumed}',
            row['metrics'] or 'no metrics: nothing was predicted',
            f'shrunk: {row["shrunk"]}',
        ]
    return '\n    '.join(lines)


def dry_run(
    path: Path,
    loss: str | None,
    args: argparse.Namespace,
    table: Results,
    server: Server,
) -> dict[str, str]:
    """Run one config in a process of its own, unless it has passed."""
    name = str(path)
    if CONFIGS in path.resolve().parents:
        name = path.resolve().relative_to(CONFIGS).as_posix()
    if loss is not None:
        name += f' {VARIABLE}={loss}'
    row = dict.fromkeys(COLUMNS, '')
    row.update(config=name, status='fail')
    flat = re.sub(r'[^\w.-]+', '__', name)
    log = Path(args.work_dir, 'logs', f'{flat}.log').absolute()
    run_dir = Path(args.work_dir, 'runs', flat).absolute()
    log.parent.mkdir(exist_ok=True)
    data_root = args.data_root or os.path.join(args.work_dir, 'data')
    try:
        # Configs are not parsed in parallel either: MMEngine's import hook
        # and its temporary files are of the whole process.
        with MAKING_DATA:
            cfg = read_config(path, loss)
            row['digest'] = digest(cfg, args.steps, args.data_root)
            before = table.passed(name, row['digest'])
            if before is not None:
                return dict(before, kept='yes')
            # Checkpoints of an earlier run would be resumed from.
            shutil.rmtree(run_dir, ignore_errors=True)
            run_dir.mkdir(parents=True)
            make_doubles(cfg, Path(data_root), run_dir / STAND_INS)
    except Exception as error:
        row['error'] = describe_error(error)
        log.write_text(traceback.format_exc(), encoding='utf-8')
    else:
        result = run_dir / 'result.json'
        command = (
            *(path, '--result', result),
            *('--data-root', data_root, '--work-dir', run_dir),
            *('--steps', args.steps),
        )
        start = time.time()
        with log.open('w', encoding='utf-8') as file:
            code = server.run(
                cfg.get('default_scope'), file, loss, list(map(str, command))
            )
        row['seconds'] = f'{time.time() - start:.1f}'
        if result.is_file():
            row.update(json.loads(result.read_text(encoding='utf-8')))
        else:
            row['error'] = f'the process ended with exit code {code}'
    # Checkpoints of all configs would fill a disk.
    shutil.rmtree(run_dir, ignore_errors=True)
    if row['status'] == 'fail':
        row['error'] += f' (see {log})'
    table.add(row)
    return row


class Server:
    """A process with a host imported, forked for each config.

    To import torch and a host takes longer than many a config. The configs of
    another host get another one: what is imported already would hide that a
    config lacks an import.
    """

    def __init__(self) -> None:
        self.scope: str | None = None
        self.process: subprocess.Popen | None = None

    def run(
        self, scope: str | None, log: TextIO, loss: str | None, command: list
    ) -> int:
        """Run the tool with these arguments; return the exit code."""
        if self.process is None or scope != self.scope:
            self.end()
            # The CPU, also where there is a GPU; the loss of the environment
            # is not that of all configs.
            environment = {**os.environ, 'CUDA_VISIBLE_DEVICES': ''}
            environment.pop(VARIABLE, None)
            self.scope = scope
            self.process = subprocess.Popen(
                [sys.executable, __file__, '--serve', str(scope)],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        try:
            print(
                json.dumps([log.name, loss, command]),
                file=self.process.stdin,
                flush=True,
            )
            return int(self.process.stdout.readline())
        except (BrokenPipeError, ValueError):
            return self.end()

    def end(self) -> int:
        """End the process, if there is one; return its exit code."""
        if self.process is None:
            return 0
        process, self.process = self.process, None
        # Closes the pipes, and waits.
        with process, contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        return process.returncode


def serve(parser: argparse.ArgumentParser, scope: str) -> None:
    """Run what standard input says, each line in a fork of this process."""
    # What imports print is no answer.
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    if scope in HOSTS and find_spec(scope) is not None:
        utils = import_module(f'{scope}.utils')
        utils.register_all_modules(init_default_scope=False)
    fork = multiprocessing.get_context('fork')
    for line in sys.stdin:
        process = fork.Process(target=forked, args=(parser, *json.loads(line)))
        process.start()
        process.join()
        print(process.exitcode, file=answers, flush=True)


def forked(
    parser: argparse.ArgumentParser,
    log: str,
    loss: str | None,
    command: list[str],
) -> None:
    """Run one config, and write what it prints to the log."""
    threading.Thread(target=end_with_the_parent, daemon=True).start()
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if loss is not None:
        os.environ[VARIABLE] = loss
    sys.exit(child(parser, parser.parse_args(command)))


def digest(cfg: Config, steps: int, data_root: str | None) -> str:
    """Changes if the config or the way it is run does."""
    what = [cfg.to_dict(), steps]
    if data_root is not None:
        what.append(os.path.realpath(data_root))
    text = json.dumps(what, sort_keys=True, default=str)
    return hashlib.sha1(text.encode()).hexdigest()[:12]


def describe_error(error: BaseException) -> str:
    return ' '.join(f'{type(error).__name__}: {error}'.split())


def data_paths(cfg: Config) -> set[str]:
    """Paths below ``data/`` that the data sets use, without ``data/``."""
    paths = set()
    for part in walk([cfg.get(key) for key in LOADERS]):
        for key, value in part.items():
            if isinstance(value, str) and value.startswith('data/'):
                paths.add(value[len('data/') :].rstrip('/'))
            elif key == 'data_root' and value == 'data':
                # CIFAR, whose folder follows from the class.
                kind = DATASETS.get(part.type)
                paths.add(getattr(kind, 'folder', ''))
    return paths - {''}


def make_doubles(cfg: Config, root: Path, stand_ins: Path) -> None:
    """Make stand-ins for the data of the config that are not there.

    Args:
        cfg: The config.
        root: Where the data are, and where doubles of benchmarks are kept.
        stand_ins: Where other data are made. They follow from the config,
            hence are not kept for the next one, which may say otherwise.

    Raises:
        FileNotFoundError: If data are missing that have no stand-in.
    """
    for path in sorted(data_paths(cfg)):
        names = [
            name
            for name, (folder, _) in DOUBLES.items()
            if path == folder or path.startswith(f'{folder}/')
        ]
        if names:
            folder = root / DOUBLES[names[0]][0]
            # An older double is an error, real data are taken as they are.
            if not folder.exists() or (folder / MARKER).exists():
                make_double(names[0], root)
        # The digits make themselves when they are built.
        elif path != 'digits' and not os.path.exists(
            locate(path, root, stand_ins)
        ):
            datasets = [
                # The pictures of a test set are those of the validation set.
                ('train' if key == 'train_dataloader' else 'val', dataset)
                for key in LOADERS
                for dataset in walk(cfg.get(key))
                if str(dataset.get('data_root')).rstrip('/') == f'data/{path}'
            ]
            make_own_data(datasets, path, cfg.model, stand_ins)


def end_with_the_parent() -> None:
    """End this process when the one that started it ends, however it does.

    It would go on in a folder that the next call deletes. Standard input is
    a pipe that only the first process holds open, and that has nothing more
    to say before this one has ended.
    """
    os.read(0, 1)
    os._exit(1)


def child(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    """Run one config in this process and write its row to a file."""
    (args.config,) = args.config
    args.cfg_options, args.launcher, args.local_rank = {}, 'none', 0
    args.loss = None
    row = dict(status='fail')
    try:
        cfg = load_config(parser, args)
        set_mmpretrain_dataloaders(cfg)
        notes = shrink(cfg, args.data_root, Path(args.work_dir, STAND_INS))
        row['shrunk'] = '; '.join(notes)
        losses, metrics = train_and_evaluate(cfg, args.steps)
        row.update(
            status='pass',
            losses=' '.join(f'{loss:.4g}' for loss in losses),
            metrics=', '.join(f'{k}={v:.4g}' for k, v in metrics.items()),
        )
    except Exception as error:
        traceback.print_exc()
        row['error'] = describe_error(error)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Bytes on macOS, else KiB.
    row['peak MB'] = (
        f'{peak / (1e6 if sys.platform == "darwin" else 976.5625):.0f}'
    )
    Path(args.result).write_text(json.dumps(row), encoding='utf-8')
    return int(row['status'] == 'fail')


def shrink(cfg: Config, data_root: str, stand_ins: Path) -> list[str]:
    """Make a config small, in place, without another code path.

    The model keeps its layers and its classes, the pipelines keep their
    transforms, the loops, hooks and optimizer their kinds.

    Returns:
        What was changed, in words.
    """
    notes = [f'data/ is {data_root}']
    notes += [
        f'made up: data/{path}'
        for path in sorted(data_paths(cfg))
        if (stand_ins / path).exists()
    ]
    for key, value in cfg.items():
        cfg[key] = relocate(value, data_root, stand_ins)
    for key in LOADERS:
        loader = cfg.get(key)
        if loader is None:
            continue
        if loader.get('batch_size', 1) > BATCH_SIZE:
            notes.append(
                f'{key.split("_")[0]} batch of {loader.batch_size} '
                f'is {BATCH_SIZE}'
            )
            loader.batch_size = BATCH_SIZE
        loader.update(num_workers=0, persistent_workers=False)
        loader.pop('prefetch_factor', None)
    notes += shrink_images(cfg) + shrink_regions(cfg) + drop_weights(cfg)
    optim_wrapper = cfg.optim_wrapper
    if optim_wrapper.get('type', '').endswith('AmpOptimWrapper'):
        notes.append('no mixed precision, which needs a GPU')
        optim_wrapper.type = 'OptimWrapper'
        for key in ('loss_scale', 'dtype', 'use_fsdp'):
            optim_wrapper.pop(key, None)
    return notes


def relocate(value: Any, data_root: str, stand_ins: Path) -> Any:
    """Replace ``data`` in all paths."""
    if isinstance(value, dict):
        root = value.get('data_root') == 'data'
        moved = {
            k: relocate(v, data_root, stand_ins) for k, v in value.items()
        }
        return dict(moved, data_root=data_root) if root else moved
    if isinstance(value, (list, tuple)):
        return type(value)(relocate(v, data_root, stand_ins) for v in value)
    if isinstance(value, str) and value.startswith('data/'):
        return locate(value[len('data/') :], data_root, stand_ins)
    return value


def locate(path: str, data_root: str | Path, stand_ins: Path) -> str:
    """Where ``data/path`` is; real data come first."""
    places = [os.path.join(root, path) for root in (data_root, stand_ins)]
    return next(filter(os.path.exists, places), places[0])


def shrink_images(cfg: Config) -> list[str]:
    """Scale what detection and segmentation resize, crop and pad to.

    Classifiers keep their size: some are built for it.
    """
    if cfg.default_scope == 'mmpretrain':
        return []
    model = cfg.model
    places = [cfg.get(key) for key in LOADERS]
    places += [model.get('data_preprocessor'), cfg.get('data_preprocessor')]
    if cfg.default_scope == 'mmseg':
        places.append(model.get('test_cfg'))
    found: list[int] = []

    def visit(change: Callable[[tuple[int, int]], tuple[int, int]]) -> None:
        for part in walk(places):
            for key in SIZES:
                if key in part:
                    part[key] = change_sizes(part[key], change)

    def note(size: tuple[int, int]) -> tuple[int, int]:
        found.append(min(size))
        return size

    visit(note)
    if max(found, default=0) <= SHORT_SIDE:
        return []
    factor = SHORT_SIDE / max(found)
    visit(lambda size: tuple(max(1, round(v * factor)) for v in size))
    return [f'image sizes are {factor:.2g} of what they were']


def shrink_regions(cfg: Config) -> list[str]:
    """Limit the regions of interest, of which a mask head makes much work."""
    before = set()
    model = cfg.model
    places = [
        (part.get(key), name)
        for part in walk([model.get('train_cfg'), model.get('test_cfg')])
        for key, name in (
            ('sampler', 'num'),
            ('rpn_proposal', 'max_per_img'),
            ('rpn', 'max_per_img'),
            ('rcnn', 'max_per_img'),
        )
    ]
    if 'num_queries' in model:
        places += [
            (model, 'num_queries'),
            (model.get('test_cfg'), 'max_per_img'),
        ]
    for part, name in places:
        if isinstance(part, dict) and part.get(name, 0) > REGIONS:
            before.add(part[name])
            part[name] = REGIONS
    if not before:
        return []
    numbers = ' or '.join(map(str, sorted(before)))
    return [f'{REGIONS} regions of an image instead of {numbers}']


def change_sizes(value: Any, change: Callable) -> Any:
    """Apply ``change`` to each (width, height) in ``value``."""
    if isinstance(value, (list, tuple)):
        if len(value) == 2 and all(isinstance(v, int) for v in value):
            return type(value)(change(value))
        return type(value)(change_sizes(item, change) for item in value)
    return value


def drop_weights(cfg: Config) -> list[str]:
    """Let nothing be downloaded: the model starts with random weights."""
    dropped = [cfg.load_from] if cfg.get('load_from') else []
    cfg.load_from = None
    cfg.resume = False

    def pretrained(init: Any) -> bool:
        return isinstance(init, dict) and init.get('type') == 'Pretrained'

    for part in walk(cfg.model):
        init = part.get('init_cfg')
        if isinstance(init, list):
            dropped += [i.checkpoint for i in init if pretrained(i)]
            part['init_cfg'] = [i for i in init if not pretrained(i)]
        elif pretrained(init):
            # Absent, not None: then the layers choose how to start.
            dropped.append(part.pop('init_cfg').checkpoint)
        if isinstance(part.get('pretrained'), str):
            dropped.append(part.pop('pretrained'))
    return [f'not loaded: {name}' for name in dict.fromkeys(dropped)]


class Few:
    """The first batches of a data loader, with all its attributes.

    The data set stays whole, so that class counts are those of all of it.

    Args:
        loader: A ``torch.utils.data.DataLoader``.
        batches: How many to give.
    """

    def __init__(self, loader: Any, batches: int) -> None:
        self.loader = loader
        self.batches = batches

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return min(self.batches, len(self.loader))

    def __iter__(self) -> Iterator[Any]:
        return islice(self.loader, self.batches)


class Watch(Hook):
    """Cuts the loops short and notes what comes out of them.

    Args:
        steps: Training steps of an epoch.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.first: int | None = None
        self.losses: list[float] = []
        self.metrics: dict[str, float] = {}

    def before_train(self, runner: Runner) -> None:
        self.first = runner.iter
        loop = runner.train_loop
        if not isinstance(loop, IterBasedTrainLoop):
            loop.dataloader = Few(loop.dataloader, self.steps)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any
    ) -> None:
        losses = {
            key: float(torch.as_tensor(value).detach())
            for key, value in outputs.items()
            if 'loss' in key
        }
        print(f'step {runner.iter + 1}: {losses}')
        bad = [k for k, v in losses.items() if not math.isfinite(v)]
        if bad or not losses:
            raise FloatingPointError(
                f'step {runner.iter + 1}: expected finite losses, got '
                f'{ {k: losses[k] for k in bad} or outputs }'
            )
        self.losses.append(losses['loss'])

    def before_val(self, runner: Runner) -> None:
        loop = runner.val_loop
        loop.dataloader = Few(loop.dataloader, EVALUATED_BATCHES)

    def before_test(self, runner: Runner) -> None:
        loop = runner.test_loop
        loop.dataloader = Few(loop.dataloader, EVALUATED_BATCHES)

    def after_val_epoch(self, runner: Runner, metrics: Any = None) -> None:
        self.note(metrics)

    def after_test_epoch(self, runner: Runner, metrics: Any = None) -> None:
        self.note(metrics)

    def note(self, metrics: dict[str, Any]) -> None:
        for key, value in metrics.items():
            if isinstance(value, numbers.Real):
                self.metrics[key] = float(value)


def train_and_evaluate(
    cfg: Config, steps: int
) -> tuple[list[float], dict[str, float]]:
    """Train, save; resume, train a step, evaluate.

    Returns:
        The loss of each step, the last one after resuming, and the metrics.

    Raises:
        FloatingPointError: If a loss is not finite.
        RuntimeError: If other steps were run than asked for.
    """
    epochs = 'max_epochs' in cfg.train_cfg or cfg.train_cfg.get('by_epoch')
    name, lengths = (
        ('max_epochs', (1, 2)) if epochs else ('max_iters', (steps, steps + 1))
    )
    if cfg.get('val_cfg') is not None:
        # Once, at the end. An interval that is not that of MMEngine's last
        # evaluation would not be run by its older versions.
        cfg.train_cfg.update(val_begin=lengths[1], val_interval=lengths[1])
    checkpoint = cfg.setdefault('default_hooks', {}).setdefault(
        'checkpoint', dict(type='CheckpointHook')
    )
    checkpoint.update(by_epoch=bool(epochs), interval=lengths[0])
    losses: list[float] = []
    for part, length in enumerate(lengths):
        cfg.train_cfg[name] = length
        cfg.resume = bool(part)
        # The second Runner must not find the log of the first one.
        cfg.experiment_name = f'dry_run_{part}'
        watch = Watch((steps, 1)[part])
        runner = build_runner(cfg)
        runner.register_hook(watch, 'LOWEST')
        runner.train()
        if watch.first != len(losses) or not watch.losses:
            raise RuntimeError(
                f'expected training to go on after step {len(losses)}, got '
                f'{len(watch.losses)} steps after step {watch.first}'
            )
        losses += watch.losses
        checkpoint.update(interval=-1, save_last=False)
    if cfg.get('test_cfg') is not None and any(
        cfg.get(f'test_{key}') != cfg.get(f'val_{key}')
        for key in ('dataloader', 'evaluator')
    ):
        runner.test()
    return losses, watch.metrics


if __name__ == '__main__':
    main()
