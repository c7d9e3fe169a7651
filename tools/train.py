# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Train a model of any host: MMDetection, MMPretrain or MMSegmentation."""

from __future__ import annotations

import argparse

from _launch import (
    add_arguments,
    build_runner,
    load_config,
    set_mmpretrain_dataloaders,
)
from mmengine.config import Config
from mmengine.device import get_device


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', help='where logs and checkpoints go')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from CHECKPOINT, or from the last one in the work '
        'directory if none is given',
    )
    parser.add_argument(
        '--amp', action='store_true', help='train with mixed precision'
    )
    parser.add_argument(
        '--no-validate', action='store_true', help='train without validation'
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate from auto_scale_lr.base_batch_size to '
        'the batch size in use',
    )
    add_arguments(parser)
    args = parser.parse_args()
    cfg = load_config(parser, args)
    set_mmpretrain_dataloaders(cfg)
    if args.amp:
        use_amp(parser, cfg)
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if args.auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            parser.error(
                '--auto-scale-lr: the config has no '
                'auto_scale_lr.base_batch_size. Add the batch size that the '
                'learning rate was chosen for, e.g. '
                'auto_scale_lr = dict(base_batch_size=16)'
            )
        cfg.auto_scale_lr.enable = True
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    build_runner(cfg).train()


def use_amp(parser: argparse.ArgumentParser, cfg: Config) -> None:
    """Make the optimizer wrapper of the config one with mixed precision."""
    name = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if name in ('AmpOptimWrapper', 'mmengine.AmpOptimWrapper'):
        return
    if name not in ('OptimWrapper', 'mmengine.OptimWrapper'):
        parser.error(
            f'--amp: optim_wrapper.type is {name!r}, expected '
            "'OptimWrapper'. Drop --amp, or set a mixed-precision wrapper in "
            'the config'
        )
    if get_device() == 'cpu':
        parser.error(
            '--amp: no accelerator found, and the AmpOptimWrapper of '
            'MMEngine needs one. Drop --amp to train on the CPU'
        )
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


if __name__ == '__main__':
    main()
