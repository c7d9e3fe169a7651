# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The lines of docs/inference.md, on what a training leaves behind."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope, init_default_scope

import lt_losses_mm  # noqa: F401

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / 'docs/inference.md').read_text(encoding='utf-8')
BLOCKS = [
    textwrap.dedent(code)
    for code in re.findall(r'```python\n(.*?)```', PAGE, re.S)
]
NAMES = ('cat', 'dog', 'owl')
# Of each host: the recipe for data of one's own, and its names.
RECIPES = dict(
    mmpretrain='classification/own-data/'
    'resnet50_1xb64-90e-cross-entropy_image-folders.py',
    mmdet='detection/own-data/'
    'faster-rcnn_r50_fpn_cross-entropy_1x_own-coco.py',
    mmseg='segmentation/own-data/'
    'deeplabv3plus_r50-d8_4xb4-20k-cross-entropy_own-masks-512x512.py',
)
HEADS = dict(
    mmpretrain='head=dict(num_classes=3, topk=(1,))',
    mmdet='roi_head=dict(bbox_head=dict(num_classes=3))',
    mmseg='decode_head=dict(num_classes=3), '
    'auxiliary_head=dict(num_classes=3)',
)


def blocks(host):
    return [code for code in BLOCKS if re.search(rf'\b{host}\b', code)]


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """What a run of a host would have written, without the training."""

    def make(host):
        pytest.importorskip(f'{host}.apis')
        import cv2

        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv('LT_LOSS', 'balanced_softmax')
        run = tmp_path / 'work_dirs/RUN'
        run.mkdir(parents=True)
        cv2.imwrite('image.jpg', np.full((40, 50, 3), 128, np.uint8))
        Path('mine.py').write_text(
            f"_base_ = 'lt_losses_mm::{RECIPES[host]}'\n"
            f'model = dict({HEADS[host]})\n'
        )
        cfg = Config.fromfile('mine.py')
        cfg.dump(run / 'CONFIG.py')
        assert 'BalancedSoftmaxLoss' in (run / 'CONFIG.py').read_text()
        before = DefaultScope._instance_dict.copy()
        init_default_scope(cfg.default_scope)
        model = MODELS.build(cfg.model)
        DefaultScope._instance_dict.clear()
        DefaultScope._instance_dict.update(before)
        for module in model.modules():
            if hasattr(module, 'set_class_counts'):
                module.set_class_counts([50, 5, 1])
        (name,) = set(re.findall(r'RUN/(\w+\.pth)', '\n'.join(blocks(host))))
        meta = dict(
            classes=NAMES, palette=[(0, 0, 0), (9, 9, 9), (99, 99, 99)]
        )
        torch.save(
            dict(
                state_dict=model.state_dict(),
                meta=dict(dataset_meta=meta, cfg=cfg.pretty_text),
            ),
            run / name,
        )

    return make


def lines(*codes):
    names: dict = {}
    for code in codes:
        assert len(code.splitlines()) <= 12
        exec(compile(code, 'docs/inference.md', 'exec'), names)
    return names


@pytest.mark.slow
@pytest.mark.parametrize('host', RECIPES)
def test_inferencers(trained, host, capsys):
    trained(host)
    code, *_ = blocks(host)
    lines(code)
    shown = capsys.readouterr().out
    assert any(name in shown for name in NAMES) or host == 'mmdet'


def test_the_config_without_bases(trained):
    trained('mmpretrain')
    (code,) = (c for c in BLOCKS if 'import lt_losses_mm' in c)
    lines(code)
    assert Config.fromfile('whole.py').model.head.loss.type == (
        'lt_losses_mm.BalancedSoftmaxLoss'
    )
    assert '_base_' not in Path('whole.py').read_text()


def test_without_the_package_and_traced(trained):
    """The same scores, and a file that holds no more of ours."""
    trained('mmpretrain')
    (infer, trace), (strip,) = (
        blocks('mmpretrain'),
        (c for c in BLOCKS if 'plain.pth' in c and 'torch.save' in c),
    )
    with_package = lines(infer)['found']['pred_scores']
    lines(strip)
    plain = Config.fromfile('plain.py')
    assert 'lt_losses_mm' not in repr(plain.model)
    assert 'custom_imports' not in plain
    kept = torch.load('plain.pth', weights_only=False)['state_dict']
    ours = lines(
        infer.replace('work_dirs/RUN/CONFIG.py', 'plain.py').replace(
            'work_dirs/RUN/epoch_90.pth', 'plain.pth'
        )
    )
    assert set(ours['inferencer'].model.state_dict()) == set(kept)
    np.testing.assert_array_equal(ours['found']['pred_scores'], with_package)
    model = lines(trace)['model']
    image = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(torch.jit.load('model.pt')(image), model(image))
