# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Show the gradient statistics that a checkpoint holds.

Prints for each loss that keeps them whether its method is at work, and draws
the gradient ratio of each class: the picture that training draws after each
epoch, see docs/gradient_ratio.md. With several losses (cascade stages,
auxiliary heads) each has a file, whose name ends in that of the loss.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from itertools import takewhile
from pathlib import Path
from typing import Any, Iterator

import torch
from mmengine.config import Config
from mmengine.runner import CheckpointLoader

from lt_losses_mm.losses import LongTailLoss
from lt_losses_mm.registry import MODELS
from lt_losses_mm.statistics import GradientStatistics, describe_health
from lt_losses_mm.statistics.plot import draw_ratio

# Of the state of a loss.
KEY = 'statistics.sums'


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('checkpoint', help='file or URL')
    parser.add_argument(
        '--out',
        metavar='FILE',
        default='gradient_ratio.png',
        help='picture, .png, .pdf or .svg (default: gradient_ratio.png)',
    )
    parser.add_argument(
        '--loss', metavar='NAME', help='only this one (default: all)'
    )
    parser.add_argument('--csv', metavar='FILE', help='table of the classes')
    args = parser.parse_args()

    checkpoint = load(parser, args.checkpoint)
    state = checkpoint.get('state_dict', checkpoint)
    # The checkpoint of a loss alone has keys without a prefix.
    found = {
        key[: -len(KEY)].rstrip('.'): value
        for key, value in state.items()
        if f'.{key}'.endswith(f'.{KEY}')
        and value.numel()
        and len(value) == len(GradientStatistics().names)
    }
    names = list(found)
    if not names:
        parser.error(
            f'{args.checkpoint} holds no gradient statistics (*.{KEY}): '
            'no loss of its model keeps them, or none was trained'
        )
    if args.loss is not None:
        if args.loss not in names:
            parser.error(
                f'--loss {args.loss}: expected one of {", ".join(names)}'
            )
        names = [args.loss]

    configs = list(loss_configs(checkpoint))
    history = checkpoint.get('message_hub', {}).get('log_scalars', {})
    for name in names:
        statistics = GradientStatistics()
        statistics.load_state_dict(dict(sums=found[name]))
        loss = build(name, statistics.num_classes, configs)
        # It is not known where the loss is not.
        saturated = torch.full_like(statistics.pos_grad, torch.nan)
        if loss is not None:
            loss.statistics.load_state_dict(statistics.state_dict())
            saturated = loss.saturated()
        title = name or 'loss'
        print(f'{title}: {describe_health(statistics.health(saturated))}')
        counts = state.get(f'{name}.class_counts'.lstrip('.'), torch.zeros(0))
        try:
            if args.csv is not None:
                path = named(args.csv, title, names)
                write(path, statistics, counts.tolist())
                print(f'Wrote {path}')
            figure = draw_ratio(
                title,
                dict(zip(statistics.names, statistics.sums.numpy())),
                class_counts=counts.numpy(),
                saturated=saturated.numpy() == 1,
                log_scalars=history,
            )
            path = named(args.out, title, names)
            if path.suffix[1:] not in figure.canvas.get_supported_filetypes():
                parser.error(f'--out {path}: expected a .png, .pdf or .svg')
            figure.savefig(path, dpi=150)
            print(f'Wrote {path}')
        except OSError as error:
            parser.error(f'cannot write: {error}')


def load(parser: argparse.ArgumentParser, path: str) -> dict[str, Any]:
    """Read a checkpoint, or the bare ``state_dict`` of a model."""
    try:
        checkpoint = CheckpointLoader.load_checkpoint(path, 'cpu', 'silent')
    except FileNotFoundError:
        parser.error(f'no such file: {path}')
    except Exception as error:  # of pickle, zipfile or torch
        parser.error(f'{path} is no checkpoint: {error!r}')
    state = isinstance(checkpoint, dict) and checkpoint.get(
        'state_dict', checkpoint
    )
    if not isinstance(state, dict) or not all(
        isinstance(value, torch.Tensor) for value in state.values()
    ):
        parser.error(
            f'{path} is no checkpoint: expected a state_dict of tensors'
        )
    return checkpoint


def loss_configs(checkpoint: dict[str, Any]) -> Iterator[tuple[str, dict]]:
    """Path and config of the gradient-driven losses of a checkpoint."""
    text = checkpoint.get('meta', {}).get('cfg')
    if text is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, 'config.py')
        file.write_text(text, encoding='utf-8')
        # What a config imports need not be here: only ours are built.
        cfg = Config.fromfile(file, import_custom_modules=False)
    todo = [('', cfg.to_dict().get('model'))]
    for path, value in todo:
        if isinstance(value, (list, tuple)):
            value = dict(enumerate(value))
        if isinstance(value, dict):
            todo += [(f'{path}.{k}'.lstrip('.'), v) for k, v in value.items()]
            kind = str(value.get('type')).rpartition('.')[2]
            known = MODELS.module_dict.get(kind, object)
            if issubclass(known, LongTailLoss) and hasattr(known, 'saturated'):
                yield path, dict(value, type=known)


def build(name: str, num_classes: int, configs: list[tuple[str, dict]]) -> Any:
    """The loss of that name, or None where it is not known.

    Modules are not named as in the config (``head.loss_module`` is built from
    ``head.loss``): the config with the longest common beginning is taken, if
    all that have it agree.
    """
    words = name.split('.')
    common = [
        sum(
            1
            for _ in takewhile(
                lambda pair: pair[0] == pair[1], zip(path.split('.'), words)
            )
        )
        for path, _ in configs
    ]
    nearest = [
        dict(cfg, loss_weight=1.0, loss_name=None, num_classes=num_classes)
        for (_, cfg), length in zip(configs, common)
        if length == max(common)
    ]
    if not nearest or any(cfg != nearest[0] for cfg in nearest):
        return None
    # Known counts are in the checkpoint, a file of counts need not be here.
    return MODELS.build(dict(nearest[0], class_counts='auto'))


def named(file: str, name: str, names: list[str]) -> Path:
    path = Path(file)
    if len(names) == 1:
        return path
    return path.with_name(f'{path.stem}.{name}{path.suffix}')


def write(
    path: Path, statistics: GradientStatistics, counts: list[Any]
) -> None:
    """Write a table with one row a class."""
    columns = {
        'class': range(statistics.num_classes),
        'count': counts or [''] * statistics.num_classes,
        **dict(zip(statistics.names, statistics.sums.tolist())),
        'ratio': statistics.ratio.tolist(),
    }
    with path.open('w', newline='', encoding='utf-8') as file:
        table = csv.writer(file)
        table.writerow(columns)
        table.writerows(zip(*columns.values()))


if __name__ == '__main__':
    main()
