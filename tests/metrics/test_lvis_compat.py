# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""A config that names mmdet's own LVISMetric survives NumPy >= 1.24."""

from __future__ import annotations

import importlib.util
import json
import sys
import types

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import DefaultScope

from lt_losses_mm.compat import patch_lvis

REMOVED = tuple(map(int, np.__version__.split('.')[:2])) >= (1, 24)
BOX = [2.0, 3.0, 20.0, 16.0]
# Category ids are neither dense nor in label order of frequency.
CATEGORIES = [
    dict(
        id=3,
        name='a',
        synset='a.n.01',
        frequency='f',
        image_count=500,
        instance_count=900,
    ),
    dict(
        id=7,
        name='b',
        synset='b.n.01',
        frequency='r',
        image_count=4,
        instance_count=4,
    ),
    dict(
        id=8,
        name='c',
        synset='c.n.01',
        frequency='c',
        image_count=40,
        instance_count=50,
    ),
]


@pytest.fixture
def stock_lvis(monkeypatch):
    """``lvis.eval`` as it was imported, whatever ran before."""
    pytest.importorskip('lvis')
    import lvis.eval

    monkeypatch.setattr(lvis.eval, 'np', np)
    return lvis.eval


@pytest.fixture
def evaluator(stock_lvis, tmp_path):
    """The evaluator of a stock config: three images, one class in each."""
    pytest.importorskip('mmdet')
    images = [
        dict(
            id=i,
            width=64,
            height=48,
            neg_category_ids=[],
            not_exhaustive_category_ids=[],
            coco_url=f'http://images/{i}.jpg',
        )
        for i in (1, 2, 3)
    ]
    annotations = [
        dict(
            id=i,
            image_id=i,
            category_id=category['id'],
            bbox=BOX,
            area=BOX[2] * BOX[3],
        )
        for i, category in enumerate(CATEGORIES, start=1)
    ]
    ann_file = tmp_path / 'lvis.json'
    ann_file.write_text(
        json.dumps(
            dict(images=images, annotations=annotations, categories=CATEGORIES)
        )
    )
    config = Config.fromstring(
        "val_evaluator = dict(type='LVISMetric', metric='bbox', "
        f'ann_file={str(ann_file)!r})',
        '.py',
    )
    with DefaultScope.overwrite_default_scope('mmdet'):
        evaluator = Evaluator(config.val_evaluator)
    evaluator.dataset_meta = dict(classes=tuple('abc'))
    return evaluator


def detect(evaluator, labels):
    """Exact boxes with the given label in each of the three images."""
    x, y, w, h = BOX
    for i, label in enumerate(labels, start=1):
        evaluator.process(
            [
                dict(
                    img_id=i,
                    ori_shape=(48, 64),
                    pred_instances=dict(
                        bboxes=torch.tensor([[x, y, x + w, y + h]]),
                        scores=torch.tensor([0.9]),
                        labels=torch.tensor([label]),
                    ),
                )
            ]
        )
    return evaluator.evaluate(3)


@pytest.mark.skipif(not REMOVED, reason='this NumPy still has np.float')
def test_stock_metric_fails_without_the_patch(evaluator):
    with pytest.raises(AttributeError, match='float'):
        detect(evaluator, [0, 1, 2])


@pytest.mark.skipif(not REMOVED, reason='this NumPy still has np.float')
def test_perfect_detections_have_ap_one(evaluator):
    assert patch_lvis()
    metrics = detect(evaluator, [0, 1, 2])
    assert {
        k: metrics[f'lvis/bbox_{k}']
        for k in ('AP', 'AP50', 'APr', 'APc', 'APf')
    } == dict(AP=1, AP50=1, APr=1, APc=1, APf=1)


def test_a_missed_class_costs_its_own_group(evaluator):
    patch_lvis()
    metrics = detect(evaluator, [0, 2, 2])
    assert metrics['lvis/bbox_APr'] == 0
    assert metrics['lvis/bbox_APf'] == 1
    assert metrics['lvis/bbox_APc'] == 1  # image 2 is not annotated for 'c'
    assert metrics['lvis/bbox_AP'] == pytest.approx(2 / 3, abs=1e-3)


@pytest.mark.skipif(not REMOVED, reason='this NumPy still has np.float')
def test_patch_leaves_numpy_alone_and_is_idempotent(stock_lvis):
    assert patch_lvis()
    namespace = stock_lvis.np
    assert namespace.float is float
    assert namespace.cumsum is np.cumsum
    assert not hasattr(np, 'float')
    assert not patch_lvis()
    assert stock_lvis.np is namespace


def test_patch_does_not_import_lvis(monkeypatch):
    monkeypatch.delitem(sys.modules, 'lvis.eval', raising=False)
    assert not patch_lvis()
    assert 'lvis.eval' not in sys.modules


@pytest.mark.parametrize(
    'source',
    ['import numpy as np\nx = np.float64(1)', 'import numpy as np\nx = float'],
)
def test_a_repaired_release_is_left_alone(monkeypatch, tmp_path, source):
    path = tmp_path / 'eval.py'
    path.write_text(source)
    spec = importlib.util.spec_from_file_location('lvis.eval', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, 'lvis.eval', module)
    assert not patch_lvis()
    assert module.np is np


def test_an_old_numpy_needs_nothing(monkeypatch):
    module = types.ModuleType('lvis.eval')
    module.np = types.SimpleNamespace(float=float)
    old = module.np
    monkeypatch.setitem(sys.modules, 'lvis.eval', module)
    assert not patch_lvis()
    assert module.np is old
