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

from lt_losses_mm.losses import GradientDrivenLoss
from lt_losses_mm.registry import MODELS
from lt_losses_mm.statistics import GradientStatistics, describe_health
from lt_losses_mm.statistics.plot import draw_ratio


class UnknownLoss(GradientStatistics):
    """Statistics of a loss whose class and arguments are not known."""

    def __init__(self) -> None:
        super().__init__()
        self.init_statistics()

    def saturated(self) -> torch.Tensor:
        return torch.full_like(self.pos_grad, torch.nan)


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
    names = [
        key.rpartition('.')[0]
        for key, value in state.items()
        if key.rpartition('.')[2] == 'pos_grad' and value.numel()
    ]
    if not names:
        parser.error(
            f'{args.checkpoint} holds no gradient statistics (*.pos_grad): '
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
        stored = {
            key[len(name) :].lstrip('.'): value
            for key, value in state.items()
            if key.rpartition('.')[0] == name
        }
        loss = build(name, len(stored['pos_grad']), configs)
        loss.load_state_dict(stored, strict=False)
        # The checkpoint of a loss alone has keys without a prefix.
        title = name or 'loss'
        print(f'{title}: {describe_health(loss.health())}')
        numbers = {k: v.numpy() for k, v in loss.statistics.items()}
        counts = stored.get('class_counts', torch.zeros(0)).numpy()
        try:
            if args.csv is not None:
                path = named(args.csv, title, names)
                write(path, loss, counts.tolist())
                print(f'Wrote {path}')
            figure = draw_ratio(
                title,
                numbers,
                class_counts=counts,
                saturated=loss.saturated().numpy() == 1,
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
            if issubclass(known, GradientDrivenLoss):
                yield path, dict(value, type=known)


def build(
    name: str, num_classes: int, configs: list[tuple[str, dict]]
) -> GradientStatistics:
    """The loss of that name, or :class:`UnknownLoss`.

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
        return UnknownLoss()
    # Known counts are in the checkpoint, a file of counts need not be here.
    return MODELS.build(dict(nearest[0], class_counts='auto'))


def named(file: str, name: str, names: list[str]) -> Path:
    path = Path(file)
    if len(names) == 1:
        return path
    return path.with_name(f'{path.stem}.{name}{path.suffix}')


def write(path: Path, loss: GradientStatistics, counts: list[Any]) -> None:
    """Write a table with one row a class."""
    columns = {
        'class': range(len(loss.pos_grad)),
        'count': counts or [''] * len(loss.pos_grad),
        **{key: value.tolist() for key, value in loss.statistics.items()},
        'ratio': loss.ratio.tolist(),
    }
    with path.open('w', newline='', encoding='utf-8') as file:
        table = csv.writer(file)
        table.writerow(columns)
        table.writerows(zip(*columns.values()))


if __name__ == '__main__':
    main()
