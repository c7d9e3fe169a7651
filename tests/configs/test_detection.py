# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The detection configs: LVIS, and your own data in COCO format."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

import lt_losses_mm  # noqa: F401
from lt_losses_mm.priors import count_dataset
from lt_losses_mm.recipes import loss_configs, read_leaf

pytest.importorskip('mmdet')

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs'
LVIS = CONFIGS / 'detection/lvis'
OWN = CONFIGS / 'detection/own-data'
LEAVES = sorted(LVIS.rglob('*.py'))
OWN_LEAVES = sorted(OWN.glob('*.py'))
CLASSES = {'v1': 1203, 'v0.5': 1230}
EPOCHS = {'1x': 12, '2x': 24, '3x': 36, '12e': 12}


def name(leaf):
    return leaf.stem


def heads_of(config):
    """Heads that hold the loss, three in a cascade."""
    return [head for head, _ in loss_configs(Config(config))]


@pytest.mark.parametrize('leaf', LEAVES, ids=name)
def test_names_and_numbers_agree(leaf, parse):
    config = parse(leaf)
    assert config['default_scope'] == 'mmdet'
    assert config['custom_imports']['imports'] == ['lt_losses_mm']

    model, version = config['model'], leaf.stem.rpartition('lvis-')[2]
    heads = heads_of(config)
    heads += [model.get('roi_head', {}).get('mask_head', heads[0])]
    assert {head['num_classes'] for head in heads} == {CLASSES[version]}

    data = config['train_dataloader']['dataset']
    if '_random-' in leaf.stem:
        assert 'oversample_thr' not in data
    else:
        assert data['type'] == 'ClassBalancedDataset'
        assert data['oversample_thr'] == 1e-3
        data = data['dataset']
    kind = {'v1': 'LVISV1Dataset', 'v0.5': 'LVISV05Dataset'}[version]
    for split, part in (
        ('train', data),
        ('val', config['val_dataloader']['dataset']),
    ):
        assert part['type'] == kind
        assert part['data_root'] == f'data/lvis_{version}/'
        assert part['ann_file'] == f'annotations/lvis_{version}_{split}.json'
    assert config['test_dataloader'] == config['val_dataloader']
    with_masks = any(t.get('with_mask') for t in data['pipeline'])
    assert with_masks == ('mask-rcnn' in leaf.stem)


@pytest.mark.parametrize('leaf', LEAVES, ids=name)
def test_protocol_and_schedule(leaf, parse):
    config = parse(leaf)
    test_cfg = config['model']['test_cfg']
    test_cfg = test_cfg.get('rcnn', test_cfg)
    assert test_cfg['max_per_img'] == 300
    # DINO has no threshold: the best queries are its detections.
    if 'dino' not in leaf.stem:
        assert test_cfg['score_thr'] == 1e-4
    evaluator = config['val_evaluator']
    data = config['val_dataloader']['dataset']
    assert evaluator['type'] == 'LVISMetric'
    assert evaluator['ann_file'] == data['data_root'] + data['ann_file']
    masks = ['bbox', 'segm'] if 'mask-rcnn' in leaf.stem else 'bbox'
    assert evaluator['metric'] == masks
    assert config['test_evaluator'] == evaluator

    epochs = EPOCHS[re.search(r'-(\w+)_lvis', leaf.stem)[1]]
    assert config['train_cfg']['max_epochs'] == epochs
    # An evaluation of LVIS takes longer than many an epoch.
    assert config['train_cfg']['val_interval'] == epochs
    last = config['param_scheduler'][-1]
    assert last['end'] == epochs and max(last['milestones']) < epochs
    assert config['auto_scale_lr']['base_batch_size'] == 16
    assert config['train_dataloader']['batch_size'] == 2


@pytest.mark.parametrize('folder', [LVIS, OWN], ids=lambda x: x.name)
def test_names_in_the_readme_exist(folder):
    text = (folder / 'README.md').read_text()
    names = set(re.findall(r'(?<![\w./:}-])[\w./-]*\w\.py\b', text))
    assert names
    for path in names:
        known = any(
            (base / path).is_file() for base in (ROOT, folder, CONFIGS)
        )
        # As mim finds a config of this package.
        assert known or list(CONFIGS.rglob(path)), path
    # Losses, as they are written in the table of names.
    written = set(re.findall(r'`([a-z0-9_.]+)`', text))
    used = {read_leaf(leaf).loss for leaf in folder.rglob('*.py')}
    assert used <= written


# ---------------------------------------------------------------- models
@pytest.fixture
def mmdet_scope():
    DefaultScope.get_instance('configs', scope_name='mmdet')
    from mmdet.registry import MODELS

    return MODELS


COLUMNS = {
    'cross_entropy': 1204,
    'balanced_softmax': 1204,
    'balanced_softmax_objectness': 1205,
    'balanced_softmax_background_prior': 1204,
    'balanced_sigmoid': 1203,
    'equalization_lvis_v1': 1203,
    'sigmoid_equalization': 1204,
    'softmax_equalization': 1204,
    'seesaw': 1205,
}


@pytest.mark.parametrize('loss', COLUMNS)
@pytest.mark.parametrize('normed', ['', '-normed'])
def test_box_heads_of_mask_rcnn(loss, normed, parse, mmdet_scope):
    (leaf,) = LVIS.glob(
        f'*/mask-rcnn_r50_fpn_cross-entropy{normed}_random-ms-2x_lvis-v1.py'
    )
    cfg = parse(leaf, loss)['model']['roi_head']['bbox_head']
    head = mmdet_scope.build(dict(cfg, in_channels=1, fc_out_channels=2))
    assert head.fc_cls.out_features == COLUMNS[loss]
    assert (type(head.fc_cls).__name__ == 'NormedLinear') == bool(normed)
    if loss == 'balanced_softmax_background_prior':
        assert head.loss_cls.background.key == 0.75
    if loss == 'equalization_lvis_v1':
        # As the cards of EQL say: 815 of the classes are rarer.
        assert head.loss_cls.tail().sum() == 815


def test_heads_of_cascade_with_seesaw(parse, mmdet_scope):
    (leaf,) = LVIS.glob('*/cascade*seesaw-normed-mask_random*')
    roi_head = parse(leaf)['model']['roi_head']
    assert len(roi_head['bbox_head']) == 3
    for cfg in roi_head['bbox_head']:
        head = mmdet_scope.build(dict(cfg, in_channels=1, fc_out_channels=2))
        assert type(head.fc_cls).__name__ == 'NormedLinear'
        assert head.fc_cls.out_features == 1205
    head = mmdet_scope.build(
        dict(roi_head['mask_head'], in_channels=1, conv_out_channels=2)
    )
    assert type(head.conv_logits).__name__ == 'NormedConv2d'


def test_improved_baseline_builds(parse, mmdet_scope):
    (leaf,) = LVIS.glob('*/atss-improved_r50*equalized-focal*')
    model = mmdet_scope.build(Config(parse(leaf)).model)
    head = model.bbox_head
    assert head.num_base_priors == 2
    assert head.atss_cls.out_channels == 2 * 1203
    head.init_weights()
    torch.testing.assert_close(
        head.atss_cls.bias.sigmoid(), torch.full((2 * 1203,), 0.001)
    )
    sides = head.prior_generator.base_anchors[0][:, 2] * 2
    assert sides.tolist() == [6 * 8, 8 * 8]
    assert not any(
        p.requires_grad
        for key, p in model.backbone.named_parameters()
        if 'bn' in key
    )


# -------------------------------------------------------------- own data
@pytest.mark.parametrize('leaf', OWN_LEAVES, ids=name)
def test_own_data_are_read_and_counted(
    leaf, parse, mmdet_scope, tmp_path, monkeypatch
):
    """What a user has to provide, and nothing more."""
    config = Config(parse(leaf))
    names = config.train_dataloader.dataset.metainfo.classes
    for split, counts in (('train', (3, 2, 1)), ('val', (1, 1, 1))):
        write_coco(tmp_path / 'data/own-coco', split, names, counts)
    monkeypatch.chdir(tmp_path)
    from mmdet.registry import DATASETS

    dataset = DATASETS.build(config.train_dataloader.dataset)
    assert count_dataset(dataset, progress=False).counts.tolist() == [3, 2, 1]
    sample = DATASETS.build(config.val_dataloader.dataset)[0]
    assert sample['inputs'].dim() == 3
    assert Path(config.val_evaluator.ann_file).is_file()
    (head,) = heads_of(config.to_dict())
    assert head['num_classes'] == len(names)


def write_coco(root, split, names, counts):
    """One image an object; objects of class i come ``counts[i]`` times."""
    from PIL import Image

    labels = [i for i, count in enumerate(counts) for _ in range(count)]
    (root / 'annotations').mkdir(parents=True, exist_ok=True)
    (root / split).mkdir()
    images, objects = [], []
    for i, label in enumerate(labels, 1):
        Image.new('RGB', (64, 64)).save(root / split / f'{i}.jpg')
        images.append(dict(id=i, file_name=f'{i}.jpg', width=64, height=64))
        objects.append(
            dict(
                id=i,
                image_id=i,
                category_id=label + 1,
                bbox=[8, 8, 32, 32],
                area=1024,
                iscrowd=0,
                segmentation=[[8, 8, 40, 8, 40, 40, 8, 40]],
            )
        )
    categories = [dict(id=i, name=n) for i, n in enumerate(names, 1)]
    content = dict(images=images, annotations=objects, categories=categories)
    (root / f'annotations/{split}.json').write_text(json.dumps(content))
