# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The configs of the embedded benchmark, as files: no host is needed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.fileio import load

from lt_losses_mm.datasets import DigitsProfile

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs'
FRAGMENTS = sorted((CONFIGS / '_base_' / 'losses').glob('*.py'))
LEAVES = sorted(CONFIGS.glob('*/digits/*.py'))
# Task -> where its losses are, in the words of the host, and the host.
LOSSES = dict(
    classification=('mmpretrain', ['model.head.loss']),
    detection=('mmdet', ['model.roi_head.bbox_head.loss_cls']),
    segmentation=('mmseg', ['model.decode_head.loss_decode']),
)
HEADS = dict(
    classification=['head'],
    detection=['roi_head.bbox_head'],
    segmentation=['decode_head'],
)


def task_of(leaf):
    return leaf.relative_to(CONFIGS).parts[0]


def look_up(tree, path):
    for key in path.split('.'):
        tree = tree[key]
    return tree


def name(path):
    return path.stem


def test_each_task_has_each_loss():
    methods = [path.stem.replace('_', '-') for path in FRAGMENTS]
    assert methods == ['balanced-sigmoid', 'balanced-softmax', 'cross-entropy']
    for task in LOSSES:
        for method in methods:
            assert (
                len(
                    [
                        leaf
                        for leaf in LEAVES
                        if task_of(leaf) == task and method in leaf.stem
                    ]
                )
                == 1
            ), (task, method)


@pytest.mark.parametrize('fragment', FRAGMENTS, ids=name)
def test_a_fragment_holds_one_variable(fragment):
    content = Config.fromfile(fragment)
    assert list(content) == ['lt_loss']
    assert content.lt_loss['_delete_'] is True


@pytest.mark.parametrize('task', LOSSES)
def test_leaves_of_a_task_differ_in_the_loss_alone(task):
    host, paths = LOSSES[task]
    rest, types = [], []
    for leaf in LEAVES:
        if task_of(leaf) != task:
            continue
        config = Config.fromfile(leaf)
        fragment = [
            path
            for path in FRAGMENTS
            if path.stem.replace('_', '-') in leaf.stem
        ]
        loss = Config.fromfile(fragment[0]).lt_loss.to_dict()
        del loss['_delete_']
        content = config.to_dict()
        content.pop('lt_loss')
        del loss['loss_weight']
        weights = []
        for path in paths:
            parent, key = path.rsplit('.', 1)
            found = look_up(content, parent).pop(key)
            weights.append(found.pop('loss_weight'))
            assert found == loss
        content['weights'] = weights
        types.append(loss['type'])
        rest.append(content)
        assert content['default_scope'] == host
    assert len(set(types)) == 3
    assert rest[0] == rest[1] == rest[2]


@pytest.mark.parametrize('leaf', LEAVES, ids=name)
def test_numbers_agree(leaf):
    task = task_of(leaf)
    config = Config.fromfile(leaf)
    profile = DigitsProfile(**config.train_dataloader.dataset.profile)
    for head in HEADS[task]:
        assert look_up(config.model, head).num_classes == profile.num_classes
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
    for path in CONFIGS.rglob('*.py'):
        text = path.read_text()
        assert '::' not in text, path
        assert not re.search(r'^\s*(import|from) ', text, re.M), path
        if path.stem != 'default_runtime':
            assert 'custom_imports' not in text, path


def test_every_leaf_is_in_the_model_index():
    listed = []
    for path in load(ROOT / 'model-index.yml')['Import']:
        metafile = load(ROOT / path)
        (collection,) = metafile['Collections']
        assert (ROOT / collection['README']).is_file()
        for model in metafile['Models']:
            assert model['In Collection'] == collection['Name']
            assert Path(model['Config']).parent == Path(path).parent
            assert Path(model['Config']).stem == model['Name']
            epochs = Config.fromfile(ROOT / model['Config']).train_cfg
            assert model['Metadata']['Epochs'] == epochs.max_epochs
            listed.append(ROOT / model['Config'])
    assert sorted(listed) == LEAVES
