# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The configs of the embedded benchmark, as files: no host is needed."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import NamedTuple

import pytest
from mmengine.config import Config
from mmengine.fileio import load

from lt_losses_mm.datasets import DigitsProfile

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs'
FRAGMENTS = sorted((CONFIGS / '_base_' / 'losses').glob('*.py'))
LEAVES = sorted(CONFIGS.glob('*/digits/*.py'))


class Family(NamedTuple):
    """Configs that are compared with each other.

    Args:
        pattern: Path in ``configs`` with ``{}`` for the method.
        host: Whose models they are.
        loss: Where the loss is, in the words of the host.
        methods: The host's own loss first.
    """

    pattern: str
    host: str
    loss: str
    methods: tuple[str, ...]

    @property
    def leaves(self):
        return [
            CONFIGS / self.pattern.format(method) for method in self.methods
        ]


# The sigmoid form of EQL needs rows of background.
WITHOUT_BACKGROUND = (
    'cross-entropy',
    'balanced-softmax',
    'balanced-sigmoid',
    'equalization-softmax',
    'sigmoid-equalization',
    'softmax-equalization',
    'seesaw',
    'equalized-focal',
)
DETECTION = 'detection/digits/{}_r18-c32_fpn_{{}}_random-8e_digits-lt.py'
FAMILIES = {
    'classification': Family(
        'classification/digits/resnet18-c16_1xb64-20e-{}_digits-lt.py',
        'mmpretrain',
        'model.head.loss',
        WITHOUT_BACKGROUND,
    ),
    'faster-rcnn': Family(
        DETECTION.format('faster-rcnn'),
        'mmdet',
        'model.roi_head.bbox_head.loss_cls',
        (
            'cross-entropy',
            'balanced-softmax',
            'balanced-sigmoid',
            'equalization',
            'sigmoid-equalization',
            'softmax-equalization',
            'seesaw',
        ),
    ),
    'atss': Family(
        DETECTION.format('atss'),
        'mmdet',
        'model.bbox_head.loss_cls',
        ('focal', 'equalized-focal'),
    ),
    'gfl': Family(
        DETECTION.format('gfl'),
        'mmdet',
        'model.bbox_head.loss_cls',
        ('quality-focal', 'equalized-quality-focal'),
    ),
    'segmentation': Family(
        'segmentation/digits/fcn_r18-c32_1xb8-16e-{}_digits-lt-128x128.py',
        'mmseg',
        'model.decode_head.loss_decode',
        WITHOUT_BACKGROUND,
    ),
}
FAMILY_OF = {
    leaf: family for family in FAMILIES.values() for leaf in family.leaves
}


def look_up(tree, path):
    for key in path.split('.'):
        tree = tree[key]
    return tree


def name(path):
    return path.stem


def test_every_leaf_belongs_to_a_family():
    assert sorted(FAMILY_OF) == LEAVES


def test_every_fragment_is_used():
    used = {
        name
        for path in CONFIGS.rglob('*.py')
        for name in re.findall(r"/losses/([\w.]+)\.py'", path.read_text())
    }
    assert used == {path.stem for path in FRAGMENTS}


@pytest.mark.parametrize('fragment', FRAGMENTS, ids=name)
def test_a_fragment_holds_one_variable(fragment):
    content = Config.fromfile(fragment)
    assert list(content) == ['lt_loss']
    assert content.lt_loss['_delete_'] is True


@pytest.mark.parametrize('family', FAMILIES)
def test_leaves_of_a_family_differ_in_the_loss_alone(family):
    host, path = FAMILIES[family].host, FAMILIES[family].loss
    parent, key = path.rsplit('.', 1)
    rest, losses = [], []
    for method, leaf in zip(FAMILIES[family].methods, FAMILIES[family].leaves):
        fragment = CONFIGS / '_base_/losses' / f'{method.replace("-", "_")}.py'
        loss = Config.fromfile(fragment).lt_loss.to_dict()
        del loss['_delete_']
        content = Config.fromfile(leaf).to_dict()
        assert content.pop('lt_loss')
        assert look_up(content, parent).pop(key) == loss
        assert content['default_scope'] == host
        # The weight of the term against the others is not the loss's choice.
        content['loss_weight'] = loss.pop('loss_weight')
        losses.append(loss)
        rest.append(content)
    assert all(content == rest[0] for content in rest)
    assert not any(a == b for a, b in itertools.combinations(losses, 2))


@pytest.mark.parametrize('family', FAMILIES)
def test_the_first_of_a_family_is_the_hosts_own_loss(family):
    """And that of the model's base: it is the baseline."""
    leaf, path = FAMILIES[family].leaves[0], FAMILIES[family].loss
    own = look_up(Config.fromfile(leaf), path)
    assert not own.type.startswith('lt_losses_mm')
    (model,) = (
        model
        for model in (CONFIGS / '_base_/models').glob('*_digits.py')
        if leaf.stem.startswith(model.stem[: -len('_digits')])
    )
    assert own == look_up(Config.fromfile(model), path)


@pytest.mark.parametrize('leaf', LEAVES, ids=name)
def test_numbers_agree(leaf):
    config = Config.fromfile(leaf)
    profile = DigitsProfile(**config.train_dataloader.dataset.profile)
    head = look_up(config, FAMILY_OF[leaf].loss.rpartition('.')[0])
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


def test_every_leaf_is_in_the_model_index():
    listed = []
    for path in load(ROOT / 'model-index.yml')['Import']:
        if Path(path).parent.name != 'digits':
            continue
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
