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
from lt_losses_mm.recipes import read_leaf

pytest.importorskip('mmseg')

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs'
ADE = CONFIGS / 'segmentation/ade20k'
OWN = CONFIGS / 'segmentation/own-data'
LEAVES = sorted(ADE.glob('*.py'))
OWN_LEAVES = sorted(OWN.glob('*.py'))
HEADS = ('decode_head', 'auxiliary_head')


def name(path):
    return path.stem


@pytest.mark.parametrize('leaf', LEAVES, ids=name)
def test_names_and_numbers_agree(leaf, parse):
    config = parse(leaf)
    assert config['default_scope'] == 'mmseg'
    assert config['custom_imports']['imports'] == ['lt_losses_mm']
    model = config['model']
    weights = []
    for head in HEADS:
        if head in model:
            assert model[head]['num_classes'] == 150
            weights.append(model[head]['loss_decode']['loss_weight'])
    assert weights == ([1.0] if 'segformer' in leaf.stem else [1.0, 0.4])
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


@pytest.mark.parametrize('folder', [ADE, OWN], ids=lambda x: x.name)
def test_names_in_the_readme_exist(folder):
    text = (folder / 'README.md').read_text()
    names = set(re.findall(r'(?<![\w./:}-])[\w./-]*\w\.py\b', text))
    assert names
    for path in names:
        found = (base / path for base in (ROOT, folder, CONFIGS))
        assert any(path.is_file() for path in found), path
    for leaf in folder.glob('*.py'):
        assert f'`{read_leaf(leaf).loss}`' in text
    for pattern in re.findall(r'`([\w.-]+-\*[\w.-]*)`', text):
        assert list(folder.glob(f'{pattern}.py')), pattern


# ---------------------------------------------------------------- models
@pytest.fixture
def mmseg_registry():
    DefaultScope.get_instance('configs', scope_name='mmseg')
    from mmseg import registry

    return registry


@pytest.mark.parametrize(
    ('leaf', 'loss'),
    [
        (
            'segformer_mit-b0_8xb2-160k-cross-entropy_ade20k-512x512',
            'equalized_focal',
        ),
        (
            'fcn_r50-d8_4xb4-160k-cross-entropy_ade20k-512x512',
            'softmax_equalization',
        ),
    ],
)
def test_models_build_and_have_a_loss(leaf, loss, parse, mmseg_registry):
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    model = mmseg_registry.MODELS.build(
        Config(parse(ADE / f'{leaf}.py', loss)).model
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
