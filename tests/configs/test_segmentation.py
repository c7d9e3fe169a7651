# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The segmentation configs: ADE20K, and your own folders of masks."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope

import lt_losses_mm  # noqa: F401
from lt_losses_mm.priors import count_dataset

pytest.importorskip('mmseg')

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs'
ADE = CONFIGS / 'segmentation/ade20k'
OWN = CONFIGS / 'segmentation/own-data'
LEAVES = sorted(ADE.glob('*.py'))
OWN_LEAVES = sorted(OWN.glob('*.py'))
HEADS = ('decode_head', 'auxiliary_head')
LOSSES = (
    'cross-entropy',
    'balanced-softmax',
    'softmax-equalization',
    'sigmoid-equalization',
    'equalized-focal',
    'seesaw',
)
# Name with {} for the loss -> losses.
FAMILIES = {
    **{
        f'{model}-{{}}_ade20k-512x512': LOSSES
        for model in (
            'fcn_r50-d8_4xb4-160k',
            'deeplabv3plus_r50-d8_4xb4-160k',
            'upernet_r50_4xb4-160k',
            'segformer_mit-b0_8xb2-160k',
            'segformer_mit-b2_8xb2-160k',
            'swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k',
        )
    },
    'deeplabv3plus_r50-d8_4xb4-20k-{}_own-masks-512x512': LOSSES[:3],
}


def leaf_of(pattern, loss):
    folder = OWN if 'own-masks' in pattern else ADE
    return folder / (pattern.format(loss) + '.py')


def name(path):
    return path.stem


def test_every_leaf_belongs_to_a_family():
    named = [leaf_of(p, x) for p, losses in FAMILIES.items() for x in losses]
    assert sorted(named) == sorted(LEAVES + OWN_LEAVES)


@pytest.mark.parametrize('pattern', FAMILIES)
def test_leaves_of_a_family_differ_in_the_loss_alone(pattern, parse):
    rest, weights = [], []
    for loss in FAMILIES[pattern]:
        fragment = f'_base_/losses/{loss.replace("-", "_")}.py'
        expected = parse(CONFIGS / fragment)['lt_loss']
        del expected['_delete_'], expected['loss_weight']
        content = parse(leaf_of(pattern, loss))
        # The fragment, and what the leaf of your own data makes of it.
        for key in ('lt_loss', 'aux_loss', 'head'):
            content.pop(key, None)
        weights.append([])
        for head in HEADS:
            if head in content['model']:
                own = content['model'][head].pop('loss_decode')
                weights[-1].append(own.pop('loss_weight'))
                if own.get('use_sigmoid') is False:
                    del own['use_sigmoid']
                assert own == expected
        rest.append(content)
    for loss, content, weight in zip(FAMILIES[pattern], rest, weights):
        assert content == rest[0], loss
        # The weight of a term against the others is not the loss's choice.
        assert weight == weights[0], loss
    assert weights[0] == ([1.0] if 'segformer' in pattern else [1.0, 0.4])


@pytest.mark.parametrize('leaf', LEAVES, ids=name)
def test_names_and_numbers_agree(leaf, parse):
    config = parse(leaf)
    assert config['default_scope'] == 'mmseg'
    assert config['custom_imports']['imports'] == ['lt_losses_mm']
    model = config['model']
    for head in HEADS:
        if head in model:
            assert model[head]['num_classes'] == 150
    crop = tuple(map(int, re.search(r'(\d+)x(\d+)$', leaf.stem).groups()))
    assert tuple(model['data_preprocessor']['size']) == crop
    gpus, batch = map(int, re.search(r'_(\d)xb(\d)-', leaf.stem).groups())
    assert config['train_dataloader']['batch_size'] == batch
    assert config['auto_scale_lr']['base_batch_size'] == gpus * batch
    iterations = 1000 * int(re.search(r'-(\d+)k-', leaf.stem)[1])
    assert config['train_cfg']['max_iters'] == iterations
    assert config['param_scheduler'][-1]['end'] == iterations
    for split in ('train', 'val', 'test'):
        data = config[f'{split}_dataloader']['dataset']
        assert data['type'] == 'ADE20KDataset'
        assert data['data_root'] == 'data/ade/ADEChallengeData2016'
    metric = dict(
        type='lt_losses_mm.FrequencyGroupIoU',
        class_counts='ade20k',
        count_unit='pixel',
    )
    assert config['val_evaluator'] == config['test_evaluator'] == metric


@pytest.mark.parametrize('leaf', LEAVES + OWN_LEAVES, ids=name)
def test_a_leaf_is_short(leaf):
    assert len(leaf.read_text().splitlines()) <= 20


@pytest.mark.parametrize('folder', [ADE, OWN], ids=lambda x: x.name)
def test_metafile_lists_every_leaf(folder, check_metafile):
    check_metafile(folder, 'Iterations', 'max_iters')


@pytest.mark.parametrize('folder', [ADE, OWN], ids=lambda x: x.name)
def test_names_in_the_readme_exist(folder):
    text = (folder / 'README.md').read_text()
    names = set(re.findall(r'(?<![\w./:}-])[\w./-]*\w\.py\b', text))
    assert names
    for path in names:
        found = (base / path for base in (ROOT, folder, CONFIGS))
        assert any(path.is_file() for path in found), path
    for losses in (
        x for p, x in FAMILIES.items() if leaf_of(p, x[0]).parent == folder
    ):
        for loss in losses:
            assert f'`{loss}`' in text
    for pattern in re.findall(r'`([\w.-]+-\*[\w.-]*)`', text):
        assert list(folder.glob(f'{pattern}.py')), pattern


# ---------------------------------------------------------------- models
@pytest.fixture
def mmseg_registry():
    DefaultScope.get_instance('configs', scope_name='mmseg')
    from mmseg import registry

    return registry


@pytest.mark.parametrize(
    'leaf',
    [
        'segformer_mit-b0_8xb2-160k-equalized-focal_ade20k-512x512',
        'fcn_r50-d8_4xb4-160k-softmax-equalization_ade20k-512x512',
    ],
)
def test_models_build_and_have_a_loss(leaf, parse, mmseg_registry):
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    model = mmseg_registry.MODELS.build(
        Config(parse(ADE / f'{leaf}.py')).model
    )
    model = revert_sync_batchnorm(model).train()
    sample = SegDataSample(
        gt_sem_seg=PixelData(data=torch.randint(0, 150, (1, 64, 64))),
        metainfo=dict(img_shape=(64, 64)),
    )
    for head in HEADS:
        if hasattr(model, head):
            getattr(model, head).loss_decode.set_num_classes(150)
    terms = model.loss(torch.randn(2, 3, 64, 64), [sample] * 2)
    losses = {key: value for key, value in terms.items() if 'loss' in key}
    assert len(losses) == (1 if 'segformer' in leaf else 2)
    assert all(value.isfinite() and value > 0 for value in losses.values())


# -------------------------------------------------------------- own data
@pytest.mark.parametrize('leaf', OWN_LEAVES, ids=name)
def test_own_data_are_read_and_counted(
    leaf, parse, mmseg_registry, tmp_path, monkeypatch
):
    """What a user has to provide, and nothing more."""
    from PIL import Image

    mask = np.full((32, 32), 255, np.uint8)
    mask[:3], mask[3:5], mask[5:6] = 0, 1, 2
    for split in ('train', 'val'):
        for kind, suffix in (('images', 'jpg'), ('masks', 'png')):
            folder = tmp_path / 'data/own-masks' / kind / split
            folder.mkdir(parents=True)
            Image.fromarray(mask).save(folder / f'0.{suffix}')
    monkeypatch.chdir(tmp_path)
    config = Config(parse(leaf))
    build = mmseg_registry.DATASETS.build
    counts = count_dataset(
        build(config.train_dataloader.dataset), unit='pixel', progress=False
    )
    assert counts.counts.tolist() == [96, 64, 32]
    sample = build(config.val_dataloader.dataset)[0]['data_samples']
    values = sample.gt_sem_seg.data.unique().tolist()
    assert values == [0, 1, 2, 255]
    for head in HEADS:
        assert config.model[head].num_classes == 3
    assert config.val_evaluator.get('class_counts', 'auto') == 'auto'
