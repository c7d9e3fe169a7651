# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The detection configs: LVIS, and your own data in COCO format."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

import lt_losses_mm  # noqa: F401
from lt_losses_mm.priors import count_dataset

pytest.importorskip('mmdet')

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs'
LVIS = CONFIGS / 'detection/lvis'
OWN = CONFIGS / 'detection/own-data'
LEAVES = sorted(LVIS.glob('*.py'))
OWN_LEAVES = sorted(OWN.glob('*.py'))
CLASSES = {'v1': 1203, 'v0.5': 1230}
EPOCHS = {'1x': 12, '2x': 24, '3x': 36, '12e': 12}


class Family(NamedTuple):
    """Configs that are compared with each other.

    Args:
        pattern: Name with ``{}`` for the loss.
        heads: Where the heads are that hold the loss.
        losses: The host's own loss first.
    """

    pattern: str
    heads: tuple[str, ...]
    losses: tuple[str, ...]

    @property
    def leaves(self):
        folder = OWN if self.pattern.endswith('own-coco') else LVIS
        return [folder / (self.pattern.format(x) + '.py') for x in self.losses]


ROI = ('model.roi_head.bbox_head',)
CASCADE = tuple(f'model.roi_head.bbox_head.{i}' for i in range(3))
DENSE = ('model.bbox_head',)
TWO_STAGE = (
    'cross-entropy',
    'balanced-softmax',
    'balanced-softmax-objectness',
    'balanced-softmax-background-prior',
    'balanced-sigmoid',
    'equalization',
    'sigmoid-equalization',
    'softmax-equalization',
    'seesaw',
)
FAMILIES = [
    family
    for sampler in ('random', 'sample1e-3')
    for family in (
        Family(
            f'mask-rcnn_r50_fpn_{{}}_{sampler}-ms-1x_lvis-v1', ROI, TWO_STAGE
        ),
        Family(
            f'mask-rcnn_r50_fpn_{{}}_{sampler}-ms-2x_lvis-v1',
            ROI,
            (*TWO_STAGE, 'seesaw-normed-mask', 'cross-entropy-normed'),
        ),
        Family(
            f'mask-rcnn_r101_fpn_{{}}_{sampler}-ms-1x_lvis-v1', ROI, TWO_STAGE
        ),
        Family(
            f'mask-rcnn_r101_fpn_{{}}_{sampler}-ms-2x_lvis-v1',
            ROI,
            (*TWO_STAGE, 'seesaw-normed-mask'),
        ),
        Family(
            f'cascade-mask-rcnn_r101_fpn_{{}}_{sampler}-ms-2x_lvis-v1',
            CASCADE,
            (*TWO_STAGE, 'seesaw-normed-mask'),
        ),
        Family(
            f'mask-rcnn_r50_fpn_{{}}_{sampler}-ms-2x_lvis-v0.5',
            ROI,
            (*TWO_STAGE, 'balanced-sigmoid-foreground-rows'),
        ),
        Family(
            f'mask-rcnn_r101_fpn_{{}}_{sampler}-ms-2x_lvis-v0.5',
            ROI,
            TWO_STAGE,
        ),
        Family(
            f'cascade-mask-rcnn_r101_fpn_{{}}_{sampler}-ms-2x_lvis-v0.5',
            CASCADE,
            TWO_STAGE,
        ),
    )
]
FAMILIES += [
    Family(
        'mask-rcnn_swin-t-p4-w7_fpn_{}_sample1e-3-ms-crop-3x_lvis-v1',
        ROI,
        (
            'cross-entropy',
            'balanced-softmax',
            'sigmoid-equalization',
            'softmax-equalization',
            'seesaw',
        ),
    ),
    *(
        Family(
            f'{model}_{{}}_sample1e-3-ms-2x_lvis-v1',
            DENSE,
            ('focal', 'equalized-focal'),
        )
        for model in (
            'retinanet_r50_fpn',
            'atss_r50_fpn',
            'fcos_r50-caffe_fpn_gn-head',
            'atss-improved_r50_fpn',
            'atss-improved_r101_fpn',
        )
    ),
    Family(
        'gfl_r50_fpn_{}_sample1e-3-ms-2x_lvis-v1',
        DENSE,
        ('quality-focal', 'equalized-quality-focal'),
    ),
    Family(
        'dino-4scale_r50_{}_sample1e-3-8xb2-12e_lvis-v1',
        DENSE,
        ('focal', 'equalized-focal'),
    ),
    *(
        Family(
            f'{model}_r50_fpn_{{}}_1x_own-coco',
            ROI,
            ('cross-entropy', 'balanced-softmax', 'sigmoid-equalization'),
        )
        for model in ('faster-rcnn', 'mask-rcnn')
    ),
    Family('atss_r50_fpn_{}_1x_own-coco', DENSE, ('focal', 'equalized-focal')),
]
FAMILY_OF = {leaf: family for family in FAMILIES for leaf in family.leaves}


def look_up(tree, path):
    for key in path.split('.'):
        tree = tree[int(key)] if isinstance(tree, list) else tree[key]
    return tree


def name(value):
    return getattr(value, 'stem', None) or value.pattern


def fragment_of(leaf):
    """File name of the loss that the name of a leaf says."""
    before, after = FAMILY_OF[leaf].pattern.split('{}')
    loss = leaf.stem[len(before) : -len(after)]
    loss = loss.replace('-normed-mask', '').replace('-normed', '')
    version = re.search(r'lvis-(v[\d.]+)$', leaf.stem)
    # The threshold of EQL is a share of the images.
    if loss == 'equalization':
        loss += f'_lvis_{version[1]}'
    return loss.replace('-', '_')


def test_every_leaf_belongs_to_a_family():
    assert sorted(FAMILY_OF) == sorted(LEAVES + OWN_LEAVES)


@pytest.mark.parametrize('family', FAMILIES, ids=name)
def test_leaves_of_a_family_differ_in_the_loss_alone(family, parse):
    rest = []
    for number, leaf in enumerate(family.leaves):
        fragment = CONFIGS / f'_base_/losses/{fragment_of(leaf)}.py'
        loss = parse(fragment)['lt_loss']
        loss.pop('_delete_')
        content = parse(leaf)
        content.pop('lt_loss', None)
        for path in family.heads:
            head = look_up(content, path)
            own = head.pop('loss_cls')
            if number and 'cross-entropy' not in leaf.stem:
                assert own == loss
                assert own['type'].startswith('lt_losses_mm.')
            else:
                assert not own['type'].startswith('lt_losses_mm.')
            if 'seesaw' in leaf.stem or 'cross-entropy-normed' in leaf.stem:
                # The temperature of 20 is the default; its key has two
                # spellings, by version of MMDetection.
                assert head.pop('cls_predictor_cfg') == dict(
                    type='NormedLinear'
                )
        if 'normed-mask' in leaf.stem:
            head = content['model']['roi_head']['mask_head']
            assert head.pop('predictor_cfg') == dict(type='NormedConv2d')
        rest.append(content)
    for leaf, content in zip(family.leaves, rest):
        assert content == rest[0], leaf


@pytest.mark.parametrize('family', FAMILIES, ids=name)
def test_the_first_of_a_family_is_the_hosts_own_loss(family, parse):
    leaf = family.leaves[0]
    own = parse(CONFIGS / f'_base_/losses/{fragment_of(leaf)}.py')['lt_loss']
    own.pop('_delete_')
    for path in family.heads:
        loss = look_up(parse(leaf), path)['loss_cls']
        assert {'use_sigmoid': False, **own} == {'use_sigmoid': False, **loss}


@pytest.mark.parametrize('leaf', LEAVES, ids=name)
def test_names_and_numbers_agree(leaf, parse):
    config = parse(leaf)
    assert config['default_scope'] == 'mmdet'
    assert config['custom_imports']['imports'] == ['lt_losses_mm']

    model, version = config['model'], leaf.stem.rpartition('lvis-')[2]
    heads = [look_up(config, path) for path in FAMILY_OF[leaf].heads]
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


@pytest.mark.parametrize('leaf', LEAVES + OWN_LEAVES, ids=name)
def test_a_leaf_is_short(leaf):
    assert len(leaf.read_text().splitlines()) <= 20


@pytest.mark.parametrize('folder', [LVIS, OWN], ids=lambda x: x.name)
def test_metafile_lists_every_leaf(folder, check_metafile):
    check_metafile(folder, 'Epochs', 'max_epochs')


@pytest.mark.parametrize('folder', [LVIS, OWN], ids=lambda x: x.name)
def test_names_in_the_readme_exist(folder):
    text = (folder / 'README.md').read_text()
    names = set(re.findall(r'(?<![\w./:}-])[\w./-]*\w\.py\b', text))
    assert names
    for path in names:
        assert any(
            (base / path).is_file() for base in (ROOT, folder, CONFIGS)
        ), path
    # Losses, as they are written in the table of names.
    losses = {x for family in FAMILIES for x in family.losses}
    ours = {leaf for leaf in FAMILY_OF if leaf.parent == folder}
    used = {
        loss
        for loss in losses
        if any(f'_{loss}_' in leaf.stem for leaf in ours)
    }
    written = set(re.findall(r'`([a-z0-9-]+)`', text))
    assert used <= written
    assert not (losses - used) & written


# ---------------------------------------------------------------- models
@pytest.fixture
def mmdet_scope():
    DefaultScope.get_instance('configs', scope_name='mmdet')
    from mmdet.registry import MODELS

    return MODELS


COLUMNS = {
    'cross-entropy': 1204,
    'balanced-softmax': 1204,
    'balanced-softmax-objectness': 1205,
    'balanced-softmax-background-prior': 1204,
    'balanced-sigmoid': 1203,
    'equalization': 1203,
    'sigmoid-equalization': 1204,
    'softmax-equalization': 1204,
    'seesaw': 1205,
}


@pytest.mark.parametrize('loss', COLUMNS)
def test_box_heads_of_mask_rcnn(loss, parse, mmdet_scope):
    leaf = LVIS / f'mask-rcnn_r50_fpn_{loss}_random-ms-1x_lvis-v1.py'
    cfg = parse(leaf)['model']['roi_head']['bbox_head']
    head = mmdet_scope.build(dict(cfg, in_channels=1, fc_out_channels=2))
    assert head.fc_cls.out_features == COLUMNS[loss]
    normed = type(head.fc_cls).__name__ == 'NormedLinear'
    assert normed == (loss == 'seesaw')
    if loss == 'balanced-softmax-background-prior':
        assert head.loss_cls.background == 0.75
    if loss == 'equalization':
        # As the cards of EQL say: 815 of the classes are rarer.
        assert head.loss_cls.tail().sum() == 815


def test_heads_of_cascade_with_seesaw(parse, mmdet_scope):
    (leaf,) = LVIS.glob('cascade*seesaw-normed-mask_random*')
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
    (leaf,) = LVIS.glob('atss-improved_r50*equalized-focal*')
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
    head = look_up(config.to_dict(), FAMILY_OF[leaf].heads[0])
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
