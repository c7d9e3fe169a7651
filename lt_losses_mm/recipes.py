# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The configs of the package: recipes, losses, and which go together.

A *recipe* is a leaf that takes its loss from the environment variable
``LT_LOSS``: the name of a file in ``configs/_base_/losses``. A *named* leaf is
a recipe with a loss of its own. All of this is read in the files themselves;
it is written down nowhere else.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Any, Iterator, NamedTuple

from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS

from .integration import configs_folder
from .messages import fault

CONFIGS = configs_folder()
VARIABLE = 'LT_LOSS'


class Leaf(NamedTuple):
    """What the bases of a leaf say.

    Args:
        path: Of the leaf.
        recipe: The leaf itself, or the one that it gives another loss.
        loss: Name of its loss, which is the default of a recipe.
    """

    path: Path
    recipe: Path
    loss: str

    @property
    def is_recipe(self) -> bool:
        return self.path == self.recipe


def leaves(root: Path = CONFIGS) -> list[Path]:
    """All configs that can be trained, sorted."""
    return sorted(
        path
        for path in root.rglob('*.py')
        if '_base_' not in path.relative_to(root).parts
    )


def losses(root: Path = CONFIGS) -> list[str]:
    """Names of the files that ``LT_LOSS`` can name, sorted."""
    return sorted(path.stem for path in root.glob('_base_/losses/*.py'))


def read_leaf(path: Path) -> Leaf:
    """Read recipe and loss of a leaf in its text, without its host."""
    text = path.read_text(encoding='utf-8')
    chosen = re.search(rf'/_base_/losses/{{{{\${VARIABLE}:(\w+)}}}}', text)
    if chosen:
        return Leaf(path, path, chosen[1])
    below = re.search(r"'\./([^']+\.py)'", text)
    if below is None:
        raise ValueError(
            f'{path}: expected {{{{${VARIABLE}:...}}}} or a leaf beside it '
            'among its bases'
        )
    base = read_leaf(path.with_name(below[1]))
    own = re.search(r"/_base_/losses/([^']+)\.py'", text)
    if own:
        return Leaf(path, base.recipe, own[1])
    return Leaf(path, path if base.is_recipe else base.recipe, base.loss)


@contextlib.contextmanager
def loss_of_recipes(loss: str | None) -> Iterator[None]:
    """Within it, recipes have this loss; with ``None`` their own one."""
    before = os.environ.pop(VARIABLE, None)
    try:
        if loss is not None:
            os.environ[VARIABLE] = loss
        yield
    finally:
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before


def read_config(path: str | Path, loss: str | None = None) -> Config:
    """Read a config with this loss, whatever the environment says."""
    with loss_of_recipes(loss):
        return Config.fromfile(path)


def loss_configs(cfg: Config) -> list[tuple[ConfigDict, str]]:
    """Heads that have the loss of the recipe, and the key of it there."""
    model = cfg.model
    for head, key in (
        (model.get('head'), 'loss'),
        (model.get('bbox_head'), 'loss_cls'),
        (model.get('roi_head', {}).get('bbox_head'), 'loss_cls'),
        (model.get('decode_head'), 'loss_decode'),
    ):
        if head is not None:
            return [(x, key) for x in (head if type(head) is list else [head])]
    raise ValueError(f'{cfg.filename}: expected a head of a host in model')


def loss_place(head: ConfigDict, key: str) -> tuple[Any, Any]:
    """Where the loss of the classes is, as ``place[key]``.

    Args:
        head: Of :func:`loss_configs`.
        key: Of its losses, of which mmseg takes several.

    Raises:
        ValueError: If it cannot be told which of them it is.
    """
    losses = head[key]
    if not isinstance(losses, (list, tuple)):
        return head, key
    kinds = [str(loss.get('type')) for loss in losses]
    found = [
        index
        for index, kind in enumerate(kinds)
        if 'CrossEntropy' in kind or kind.startswith('lt_losses_mm.')
    ]
    if len(found) != 1:
        raise fault(
            key,
            kinds,
            'one cross-entropy or loss of this package, of which the loss '
            'takes the place',
            'write a config for each loss',
        )
    head[key] = list(losses)
    return head[key], found[0]


def fits(recipe: Config, loss: str, root: Path = CONFIGS) -> bool:
    """Whether a loss makes sense in a recipe, see docs/head_compatibility.md.

    Args:
        recipe: As it is without ``LT_LOSS``.
        loss: A name of :func:`losses`.
        root: Folder of the configs.
    """
    new = dict(Config.fromfile(root / f'_base_/losses/{loss}.py').lt_loss)
    del new['_delete_']
    head, key = loss_configs(recipe)[0]
    place, index = loss_place(head, key)
    own: Any = place[index]
    if not new['type'].startswith('lt_losses_mm.'):
        # A loss of the hosts is the default where it belongs.
        return new.items() <= dict(own).items()
    built = MODELS.build(new)
    try:
        built.set_num_classes(head.num_classes, 'recipe')
    except ValueError:  # It has the counts of another data set.
        return False
    # The target of such a head is a label with a quality.
    if built.takes_quality != (own['type'] == 'QualityFocalLoss'):
        return False
    augments = recipe.model.get('train_cfg', {}).get('augments')
    if augments and not built.takes_soft_labels:
        return False
    if 'roi_head' in recipe.model:
        return True
    # What follows has no rows of background, or one sigmoid a class.
    if 'background' in new:
        return False
    if 'bbox_head' in recipe.model:
        return built.use_sigmoid
    return not built.needs_background
