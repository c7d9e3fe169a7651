# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The configs of the embedded benchmark, as files: no host is needed."""

from __future__ import annotations

import itertools
import re

import pytest
from mmengine.config import Config

from lt_losses_mm.datasets import DigitsProfile
from lt_losses_mm.recipes import (
    CONFIGS,
    leaves,
    loss_configs,
    losses,
    read_config,
    read_leaf,
)

FRAGMENTS = [CONFIGS / f'_base_/losses/{loss}.py' for loss in losses()]
LEAVES = [path for path in leaves() if path.parent.name == 'digits']
RECIPES = [path for path in LEAVES if read_leaf(path).is_recipe]
HOSTS = dict(
    classification='mmpretrain', detection='mmdet', segmentation='mmseg'
)


def name(path):
    return path.stem


@pytest.mark.parametrize('fragment', FRAGMENTS, ids=name)
def test_a_fragment_holds_one_variable(fragment):
    content = Config.fromfile(fragment)
    assert list(content) == ['lt_loss']
    assert content.lt_loss['_delete_'] is True


@pytest.mark.parametrize('recipe', RECIPES, ids=name)
def test_leaves_of_a_recipe_differ_in_the_loss_alone(recipe):
    rest, found = [], []
    family = [leaf for leaf in LEAVES if read_leaf(leaf).recipe == recipe]
    assert len(family) > 1
    for leaf in family:
        fragment = CONFIGS / f'_base_/losses/{read_leaf(leaf).loss}.py'
        loss = Config.fromfile(fragment).lt_loss.to_dict()
        del loss['_delete_']
        content = read_config(leaf)
        ((head, key),) = loss_configs(content)
        assert head.pop(key) == loss
        content = content.to_dict()
        content.pop('lt_loss', None)
        assert content['default_scope'] == HOSTS[leaf.parts[-3]]
        # The weight of the term against the others is not the loss's choice.
        content['loss_weight'] = loss.pop('loss_weight')
        found.append(loss)
        rest.append(content)
    assert all(content == rest[0] for content in rest)
    assert not any(a == b for a, b in itertools.combinations(found, 2))


@pytest.mark.parametrize('recipe', RECIPES, ids=name)
def test_a_recipe_has_the_hosts_own_loss(recipe):
    """And that of the model's base: it is the baseline."""
    ((head, key),) = loss_configs(read_config(recipe))
    assert not head[key].type.startswith('lt_losses_mm')
    (model,) = (
        model
        for model in (CONFIGS / '_base_/models').glob('*_digits.py')
        if recipe.stem.startswith(model.stem[: -len('_digits')])
    )
    ((base, _),) = loss_configs(Config.fromfile(model))
    # False is the default of the hosts.
    assert head[key] == {
        **dict.fromkeys({'use_sigmoid'} & set(head[key]), False),
        **base[key],
    }


@pytest.mark.parametrize('leaf', LEAVES, ids=name)
def test_numbers_agree(leaf):
    config = Config.fromfile(leaf)
    profile = DigitsProfile(**config.train_dataloader.dataset.profile)
    ((head, _),) = loss_configs(config)
    assert head.num_classes == profile.num_classes
    assert (
        config.val_dataloader.dataset.profile
        == config.train_dataloader.dataset.profile
    )
    epochs = config.train_cfg.max_epochs
    assert re.search(rf'-{epochs}e[-_]', leaf.stem)
    assert config.param_scheduler[-1].T_max == epochs
    assert epochs % config.train_cfg.val_interval == 0
    batch = config.train_dataloader.batch_size
    assert config.auto_scale_lr.base_batch_size == batch
    named = re.search(r'_1xb(\d+)-', leaf.stem)
    assert named is None or int(named[1]) == batch


def test_configs_need_nothing_beyond_themselves():
    """The wheel carries them, and any host may be missing."""
    bases = (CONFIGS / '_base_').rglob('*.py')
    for path in [
        *LEAVES,
        *FRAGMENTS,
        *(p for p in bases if 'digits' in p.stem),
        CONFIGS / '_base_/default_runtime.py',
    ]:
        text = path.read_text()
        assert '::' not in text, path
        assert not re.search(r'^\s*(import|from) ', text, re.M), path
        if path.stem != 'default_runtime':
            assert 'custom_imports' not in text, path
