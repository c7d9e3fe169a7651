# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Every config that is shipped, on any stack.

Hosts have to be installed for their configs alone: nothing of them, and
nothing of mmcv, is imported.
"""

from __future__ import annotations

import functools
from importlib.util import find_spec

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS

from lt_losses_mm.losses import LongTailLoss
from lt_losses_mm.recipes import CONFIGS, fits, leaves, losses, read_leaf

LEAVES = leaves()
FAMILIES = sorted({path.relative_to(CONFIGS).parts[:2] for path in LEAVES})
HOST_OF_TASK = dict(
    classification='mmpretrain', detection='mmdet', segmentation='mmseg'
)


def our_losses(part):
    """Configs of losses of this package, anywhere in ``part``."""
    if isinstance(part, dict):
        kind = part.get('type')
        if isinstance(kind, str) and kind.startswith('lt_losses_mm.'):
            if kind.endswith('Loss'):
                yield part
        part = list(part.values())
    if isinstance(part, (list, tuple)):
        for value in part:
            yield from our_losses(value)


@functools.lru_cache(maxsize=None)
def build(items):
    return MODELS.build(dict(items))


@pytest.mark.parametrize('family', FAMILIES, ids='-'.join)
def test_a_leaf_parses_and_its_losses_build(family, parse):
    host = HOST_OF_TASK[family[0]]
    if find_spec(host) is None:
        pytest.skip(f'{host} is not installed')
    kinds = set()
    for leaf in CONFIGS.joinpath(*family).rglob('*.py'):
        config = parse(leaf)
        if read_leaf(leaf).is_recipe:
            recipe = Config(parse(leaf))
            # The last one is ours.
            config = parse(leaf, [x for x in losses() if fits(recipe, x)][-1])
        assert config['default_scope'] == host, leaf
        assert config['train_cfg'] and config['optim_wrapper'], leaf
        for loss in our_losses(config['model']):
            built = build(tuple(sorted(loss.items())))
            assert isinstance(built, LongTailLoss), leaf
            kinds.add(type(built))
    assert kinds
