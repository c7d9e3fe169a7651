# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""What ``train.py`` and ``test.py`` share: arguments, config, runner.

The package is imported before any config is parsed, because bases such as
``mmseg::...`` and ``lt_losses_mm::...`` are resolved while parsing.
"""

from __future__ import annotations

import argparse
import os
from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.device import is_cuda_available
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from lt_losses_mm.messages import describe
from lt_losses_mm.recipes import CONFIGS, VARIABLE, losses

# The distributions that provide the module of a host: (modern, classic).
HOSTS = {
    'mmdet': ('onedl-mmdetection', 'mmdet'),
    'mmpretrain': ('onedl-mmpretrain', 'mmpretrain'),
    'mmseg': ('onedl-mmsegmentation', 'mmsegmentation'),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--loss``, and the arguments that every OpenMMLab tool has."""
    parser.add_argument(
        '--loss',
        metavar='NAME',
        help='loss of a recipe: the name of a file in configs/_base_/losses. '
        f'The same as the environment variable {VARIABLE}',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='override config values, e.g. optim_wrapper.optimizer.lr=0.01; '
        'a list is written key="[a,b]"',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='job launcher (default: none)',
    )
    # torchrun sets LOCAL_RANK; torch.distributed.launch passes the option,
    # with an underscore before torch 2.0.
    parser.add_argument(
        '--local_rank',
        '--local-rank',
        type=int,
        default=0,
        help=argparse.SUPPRESS,
    )


def load_config(
    parser: argparse.ArgumentParser, args: argparse.Namespace
) -> Config:
    """Read the config and apply the arguments of :func:`add_arguments`.

    Ends the program with one sentence if the config file is missing, if the
    package that its ``default_scope`` names is not installed, or if a loss is
    asked for that does not exist or that the config does not take.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    if not Path(args.config).is_file():
        parser.error(
            f'config: no such file: {args.config!r}. A config of this '
            'package can be named without its path through mim: '
            f'`mim {Path(parser.prog).stem} mm-lt-losses NAME.py`'
        )
    if args.loss is not None:
        os.environ[VARIABLE] = args.loss
    loss = os.environ.get(VARIABLE)
    if loss is not None and loss not in losses():
        parser.error(
            describe(
                VARIABLE,
                loss,
                f'a file of {CONFIGS / "_base_/losses"}: '
                f'{", ".join(losses())}',
            )
        )
    cfg = Config.fromfile(args.config)
    # A recipe takes the loss out of its bases, any other config leaves it.
    if loss is not None and (
        VARIABLE not in cfg.env_variables or 'lt_loss' in cfg
    ):
        parser.error(
            describe(
                VARIABLE,
                loss,
                'none, because this config has a loss of its own',
                f'name a recipe, or unset {VARIABLE}',
                args.config,
            )
        )
    cfg.merge_from_dict(args.cfg_options)
    cfg.launcher = args.launcher

    scope = cfg.get('default_scope')
    if scope in HOSTS and find_spec(scope) is None:
        modern, classic = HOSTS[scope]
        parser.error(
            f'default_scope={scope!r} in {args.config}: the package {scope} '
            f'is not installed. Install {modern} (modern stack) or '
            f'{classic} (classic stack), e.g. `mim install {classic}`'
        )

    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        name = Path(args.config).stem
        if loss is not None:
            # Not where the recipe was trained with its own loss.
            name += f'_{loss.replace("_", "-")}'
        cfg.work_dir = os.path.join('work_dirs', name)
    return cfg


def set_mmpretrain_dataloaders(cfg: Config) -> None:
    """Fill in what mmpretrain's own tools add to each data loader.

    Its configs leave out ``collate_fn``, and its data preprocessor cannot
    read MMEngine's default (``pseudo_collate``). What a config says stays.
    Source: mmpretrain ``tools/train.py``, ``merge_args``; unlike there,
    ``pin_memory`` is asked for only beside a GPU and ``persistent_workers``
    only where there are workers, as torch warns or raises otherwise.
    """
    if cfg.get('default_scope') != 'mmpretrain':
        return
    for mode in ('train', 'val', 'test'):
        loader = cfg.get(f'{mode}_dataloader')
        if loader is None:
            continue
        loader.setdefault('collate_fn', dict(type='default_collate'))
        loader.setdefault('pin_memory', is_cuda_available())
        loader.setdefault(
            'persistent_workers', loader.get('num_workers', 0) > 0
        )


def build_runner(cfg: Config) -> Runner:
    """Build the runner that the config asks for, MMEngine's by default."""
    if 'runner_type' in cfg:
        return RUNNERS.build(cfg)
    return Runner.from_cfg(cfg)
