# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Test a model of any host: MMDetection, MMPretrain or MMSegmentation."""

from __future__ import annotations

import argparse
from pathlib import Path

from _launch import (
    add_arguments,
    build_runner,
    load_config,
    set_mmpretrain_dataloaders,
)
from mmengine.registry import METRICS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file or URL')
    parser.add_argument('--work-dir', help='where logs and metrics go')
    parser.add_argument(
        '--out', metavar='FILE.pkl', help='write the predictions as well'
    )
    parser.add_argument(
        '--post-hoc-tau',
        type=float,
        metavar='TAU',
        help='subtract TAU * log prior from the logits of a model trained '
        'with plain cross-entropy (post-hoc logit adjustment)',
    )
    add_arguments(parser)
    args = parser.parse_args()
    if args.out is not None and not args.out.endswith(('.pkl', '.pickle')):
        parser.error(
            f'--out: the predictions are pickled, got {args.out!r}, '
            'expected a name that ends in .pkl or .pickle'
        )
    cfg = load_config(parser, args)
    if '://' not in args.checkpoint and not Path(args.checkpoint).is_file():
        parser.error(f'checkpoint: no such file: {args.checkpoint!r}')
    set_mmpretrain_dataloaders(cfg)
    cfg.load_from = args.checkpoint
    cfg.resume = False
    if args.post_hoc_tau is not None:
        hook = dict(
            type='lt_losses_mm.PostHocLogitAdjustmentHook',
            tau=args.post_hoc_tau,
        )
        cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), hook]
    runner = build_runner(cfg)
    if args.out is not None:
        # mmdet's own dump run-length encodes masks.
        dump = (
            'DumpDetResults'
            if cfg.get('default_scope') == 'mmdet'
            else 'DumpResults'
        )
        runner.test_evaluator.metrics.append(
            METRICS.build(dict(type=dump, out_file_path=args.out))
        )
    runner.test()


if __name__ == '__main__':
    main()
