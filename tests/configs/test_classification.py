# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The configs of the classification benchmarks, and models built of them."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from lt_losses_mm.recipes import losses, read_config, read_leaf

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs'
FOLDERS = (
    'cifar-lt',
    'imagenet-lt',
    'inaturalist2018',
    'own-data',
    'places-lt',
)
LEAVES = [
    path
    for folder in FOLDERS
    for path in sorted((CONFIGS / 'classification' / folder).glob('*.py'))
]
METHODS = [loss.replace('_', '-') for loss in losses()]
NAME = re.compile(
    r'(?P<model>[\w-]+)_(?P<gpus>\d+)xb(?P<batch>\d+)-(?P<epochs>\d+)e-'
    r'(?P<recipe>bf16-|mixup-)?(?P<method>' + '|'.join(METHODS) + ')'
    r'_(?P<data>[a-z0-9-]+?)(-if(?P<factor>\d+))?'
)
NUM_CLASSES = {
    'cifar10-lt': 10,
    'cifar100-lt': 100,
    'image-folders': 10,
    'imagenet-lt': 1000,
    'inaturalist2018': 8142,
    'places-lt': 365,
}


@lru_cache(maxsize=None)
def content(path, loss=None):
    if path.stem.startswith('vit'):
        pytest.importorskip('mmpretrain')
    return read_config(path, loss)


def parts(path):
    match = NAME.fullmatch(path.stem)
    assert match, f'{path.name} does not follow the pattern of the names'
    return match.groupdict()


def stem(path):
    return path.stem


def test_every_folder_has_leaves():
    assert {path.parent.name for path in LEAVES} == set(FOLDERS)


@pytest.mark.parametrize('path', LEAVES, ids=stem)
def test_numbers_agree_with_the_name(path):
    name, config = parts(path), content(path)
    classes = NUM_CLASSES[name['data']]
    assert config.model.head.num_classes == classes
    assert config.data_preprocessor.num_classes == classes
    batch = int(name['batch'])
    epochs = int(name['epochs'])
    assert config.train_dataloader.batch_size == batch
    assert config.train_cfg.max_epochs == epochs
    assert epochs % config.train_cfg.val_interval == 0
    last = config.param_scheduler[-1]
    if last.type == 'MultiStepLR':
        assert last.milestones == sorted(last.milestones)
        assert 0.5 * epochs < last.milestones[-1] < epochs
    else:
        assert last.get('begin', 0) + last.T_max == epochs
    scaling = config.auto_scale_lr
    if name['data'] == 'image-folders':
        assert scaling.enable
    else:
        assert not scaling.enable
        # MiSLAS halves batch and rate; the rest has the batch of the rate.
        assert scaling.base_batch_size == int(name['gpus']) * batch
    if name['factor']:
        factor = config.train_dataloader.dataset.imbalance_factor
        assert factor == int(name['factor'])
    augments = config.model.get('train_cfg', {}).get('augments')
    assert bool(augments) == (
        name['recipe'] == 'mixup-' or path.stem.startswith('vit')
    )
    wrapper = config.optim_wrapper.get('type', '')
    assert wrapper.endswith('Bfloat16OptimWrapper') == (
        name['recipe'] == 'bf16-'
    )


@pytest.mark.parametrize('path', LEAVES, ids=stem)
def test_a_leaf_reports_accuracy_by_frequency(path):
    config = content(path)
    for evaluator in (config.val_evaluator, config.test_evaluator):
        assert 'lt_losses_mm.LongTailAccuracy' in [e.type for e in evaluator]
    assert config.default_scope == 'mmpretrain'
    for split in ('val', 'test'):
        loader = config[f'{split}_dataloader']
        assert not loader.sampler.shuffle
        assert loader.dataset.type == config.train_dataloader.dataset.type


@pytest.mark.parametrize('folder', FOLDERS)
def test_the_readme_names_what_exists(folder):
    readme = CONFIGS / 'classification' / folder / 'README.md'
    text = readme.read_text('utf-8')
    named = re.findall(r'(?:configs|tools|docs|benchmarks)/[\w./-]+\w', text)
    assert f'configs/classification/{folder}' in {
        name[: len(f'configs/classification/{folder}')] for name in named
    }
    for name in named:
        assert (ROOT / name).exists(), f'{readme} names {name}'


def first_of_each_model():
    """One recipe of each model and data set."""
    found = {}
    for path in LEAVES:
        if read_leaf(path).is_recipe:
            name = parts(path)
            found.setdefault((name['model'], name['data']), path)
    return list(found.values())


@pytest.mark.parametrize('path', first_of_each_model(), ids=stem)
def test_a_model_takes_a_step(path):
    """On images of 64 pixels, with the real head and number of classes."""
    pytest.importorskip('mmpretrain')
    from mmengine.registry import DefaultScope
    from mmpretrain.registry import MODELS
    from mmpretrain.structures import DataSample

    torch.manual_seed(0)
    config = content(path, 'balanced_softmax')
    cfg = config.model.to_dict()
    num_classes = cfg['head']['num_classes']
    cfg['data_preprocessor'] = dict(config.data_preprocessor.to_dict())
    cfg['head']['loss']['class_counts'] = list(range(1, num_classes + 1))
    if path.stem.startswith('vit'):
        cfg['backbone']['img_size'] = 64
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(cfg).train()
        batch = model.data_preprocessor(
            dict(
                inputs=torch.randint(0, 256, (2, 3, 64, 64)),
                data_samples=[
                    DataSample().set_gt_label(label)
                    for label in (0, num_classes - 1)
                ],
            ),
            training=True,
        )
        loss = model(**batch, mode='loss')['loss']
        loss.backward()
        scores = model.eval()(**batch, mode='predict')[0].pred_score
    assert torch.isfinite(loss)
    assert scores.shape == (num_classes,)
    gradients = {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    assert all(g is not None for g in gradients.values())
    assert any(name.startswith('head') for name in gradients)
    frozen = cfg['backbone'].get('frozen_stages', -1)
    trained = {
        name.split('.')[1] for name in gradients if name.startswith('backbone')
    }
    if frozen > 0:
        assert trained == {f'layer{frozen + 1}'}
    else:
        assert len(trained) > 1


def test_the_normed_classifier_has_no_margin():
    """Its logits are 30 times the cosines, in training and in testing."""
    pytest.importorskip('mmpretrain')
    from mmpretrain.registry import MODELS

    path = CONFIGS / '_base_/models/resnet50_normed.py'
    cfg = Config.fromfile(path).model.head.to_dict()
    head = MODELS.build(dict(cfg, num_classes=5, in_channels=7))
    features = torch.randn(4, 7)
    expected = 30 * torch.cosine_similarity(
        features[:, None], head.norm_product.weight[None], dim=-1
    )
    tested = head((features,))
    trained = head((features,), torch.tensor([0, 1, 2, 4]))
    torch.testing.assert_close(tested, expected)
    torch.testing.assert_close(trained, expected, atol=1e-4, rtol=1e-4)
