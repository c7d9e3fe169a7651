# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Every config that is shipped, on any stack.

Hosts have to be installed for their configs alone: nothing of them, and
nothing of mmcv, is imported.
"""

from __future__ import annotations

import functools
from importlib.util import find_spec
from pathlib import Path

import pytest
from mmengine.registry import MODELS

from lt_losses_mm.losses import LongTailLoss

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
LEAVES = sorted(
    path
    for path in CONFIGS.rglob('*.py')
    if '_base_' not in path.relative_to(CONFIGS).parts
)
FAMILIES = sorted({path.parent for path in LEAVES})
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


def test_there_are_as_many_as_the_metafiles_list():
    listed = sum(
        path.read_text('utf-8').count('\n    Config: ')
        for path in CONFIGS.rglob('metafile.yml')
    )
    assert listed == len(LEAVES) > 0


@pytest.mark.parametrize(
    'family', FAMILIES, ids=lambda path: f'{path.parent.name}-{path.name}'
)
def test_a_leaf_parses_and_its_losses_build(family, parse):
    host = HOST_OF_TASK[family.parent.name]
    if find_spec(host) is None:
        pytest.skip(f'{host} is not installed')
    kinds = set()
    for leaf in (path for path in LEAVES if path.parent == family):
        config = parse(leaf)
        assert config['default_scope'] == host, leaf
        assert config['train_cfg'] and config['optim_wrapper'], leaf
        for loss in our_losses(config['model']):
            built = build(tuple(sorted(loss.items())))
            assert isinstance(built, LongTailLoss), leaf
            kinds.add(type(built))
    assert kinds
