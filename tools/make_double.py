# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Write tiny format-true doubles of the benchmarks, to dry-run configs on.

For example ``python tools/make_double.py lvis_v1 data`` where ``data`` does
not hold the benchmark itself. What exists is never overwritten.
"""

from __future__ import annotations

import argparse

from _doubles import DOUBLES, make_double


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('name', choices=[*DOUBLES, 'all'], help='which one')
    parser.add_argument('root', help="what the configs call 'data'")
    parser.add_argument(
        '--images',
        type=int,
        default=8,
        help='of each split; CIFAR: training images of each class '
        '(default: 8)',
    )
    parser.add_argument('--seed', type=int, default=0, help='(default: 0)')
    args = parser.parse_args()
    names = DOUBLES if args.name == 'all' else [args.name]
    for name in names:
        try:
            folder = make_double(name, args.root, args.seed, args.images)
        except (ValueError, OSError) as error:
            parser.error(str(error))
        print(f'{name}: {folder}')


if __name__ == '__main__':
    main()
