# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.registry import DefaultScope

from lt_losses_mm.metrics import FrequencyGroupIoU
from lt_losses_mm.priors import ClassCounts


def sample(label, pred):
    return dict(
        gt_sem_seg=dict(data=torch.as_tensor(label)[None]),
        pred_sem_seg=dict(data=torch.as_tensor(pred)[None]),
    )


def build(num_classes, **options):
    metric = FrequencyGroupIoU(**options)
    metric.dataset_meta = dict(classes=tuple(map(str, range(num_classes))))
    return metric


def random_masks(seed=0, n=6, num_classes=8, absent=(), shape=(23, 31)):
    """Masks that agree on about two thirds, with ignored pixels."""
    rng = np.random.default_rng(seed)
    classes = np.setdiff1d(np.arange(num_classes), absent)
    masks = []
    for _ in range(n):
        label = rng.choice(classes, size=shape)
        pred = np.where(
            rng.random(shape) < 0.6, label, rng.choice(classes, size=shape)
        )
        label[rng.random(shape) < 0.1] = 255
        masks.append((label, pred))
    return masks


def test_hand_computed():
    metric = build(4, class_counts=[10, 1000, 100, 1])
    metric.process(
        {},
        [
            sample(
                [[0, 0, 1, 1], [2, 2, 255, 255]], [[0, 1, 1, 1], [2, 0, 3, 0]]
            ),
            sample([[1, 1]], [[1, 2]]),
        ],
    )
    result = metric.evaluate(2)
    # Intersections 1, 3, 1; unions 3, 5, 3; class 3 only where ignored.
    assert result == pytest.approx(
        {
            'iou/mIoU': 100 * (1 / 3 + 3 / 5 + 1 / 3) / 3,
            'iou/mAcc': 100 * (1 / 2 + 3 / 4 + 1 / 2) / 3,
            'iou/aAcc': 100 * 5 / 8,
            'iou/head': 100 * (3 / 5 + 1 / 3) / 2,  # classes 1 and 2
            'iou/body': 100 * 1 / 3,  # class 0
        }
    )  # tail: class 3, nowhere to be seen


@pytest.mark.parametrize('absent', [(), (0, 5)])
def test_agrees_with_mmseg_beside_it_in_one_evaluator(absent):
    pytest.importorskip('mmseg')
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    masks = random_masks(absent=absent)
    with DefaultScope.overwrite_default_scope('mmseg'):
        evaluator = Evaluator(
            [
                dict(type='IoUMetric'),
                dict(
                    type='lt_losses_mm.FrequencyGroupIoU',
                    class_counts=[9, 8, 7, 6, 5, 4, 3, 2],
                ),
            ]
        )
    evaluator.dataset_meta = dict(classes=tuple('abcdefgh'))
    for label, pred in masks:
        evaluator.process(
            [
                SegDataSample(
                    gt_sem_seg=PixelData(data=torch.from_numpy(label)[None]),
                    pred_sem_seg=PixelData(data=torch.from_numpy(pred)[None]),
                )
            ]
        )
    host, ours = evaluator.metrics
    for theirs, row in zip(host.results, ours.results):
        intersection, _, predicted, labelled = map(np.asarray, theirs)
        assert (row == [intersection, predicted, labelled]).all()
    result = evaluator.evaluate(len(masks))
    for name in ('mIoU', 'mAcc', 'aAcc'):
        assert result[f'iou/{name}'] == pytest.approx(
            float(result[name]), abs=0.0051
        )  # mmseg rounds


def test_agrees_with_sklearn():
    sklearn_metrics = pytest.importorskip('sklearn.metrics')
    masks = random_masks(seed=1)
    counts = [3, 30, 2, 10, 9, 50, 1, 4]
    metric = build(8, class_counts=counts, thresholds=(4, 10))
    metric.process({}, [sample(*m) for m in masks])
    label, pred = (
        np.concatenate([m[i].ravel() for m in masks]) for i in (0, 1)
    )
    kept = label != 255
    iou = 100 * sklearn_metrics.jaccard_score(
        label[kept], pred[kept], average=None
    )
    result = metric.evaluate(len(masks))
    assert result['iou/mIoU'] == pytest.approx(iou.mean())
    assert result['iou/head'] == pytest.approx(iou[[1, 5]].mean())
    assert result['iou/body'] == pytest.approx(iou[[3, 4, 7]].mean())
    assert result['iou/tail'] == pytest.approx(iou[[0, 2, 6]].mean())


@pytest.mark.parametrize(
    'counts, options, expected',
    [
        ([1, 2, 3, 4, 5, 6], {}, ([5, 4], [3, 2], [1, 0])),
        ([7, 7, 7, 7, 7], {}, ([0, 1], [2, 3], [4])),
        ([99, 1, 2, 3], dict(background=0), ([3], [2], [1])),
        (
            [99, 10, 9, 4, 3, 0],
            dict(thresholds=(4, 9)),
            ([0, 1], [2, 3], [4, 5]),
        ),
        (
            [99, 10, 9, 4, 3, 0],
            dict(thresholds=(4, 9), background=0),
            ([1], [2, 3], [4, 5]),
        ),
    ],
)
def test_groups(counts, options, expected):
    groups = FrequencyGroupIoU(class_counts=None, **options).groups(
        np.array(counts, dtype=float)
    )
    assert list(groups) == ['head', 'body', 'tail']
    assert tuple(g.tolist() for g in groups.values()) == expected


def test_background_stays_in_the_overall_mean():
    masks = [sample(*m) for m in random_masks(seed=2, num_classes=4)]
    results = []
    for background in (None, 0):
        metric = build(4, class_counts=[90, 3, 2, 1], background=background)
        metric.process({}, masks)
        results.append(metric.evaluate(len(masks)))
    plain, without = results
    assert plain['iou/mIoU'] == without['iou/mIoU']
    assert plain['iou/head'] != without['iou/head']
    assert plain['iou/tail'] == without['iou/tail']


@pytest.mark.parametrize('ignore_index', [255, -1, 0])
def test_ignore_index(ignore_index):
    label = np.array([[ignore_index, 1, 2, 1]])
    metric = build(3, class_counts=None, ignore_index=ignore_index)
    metric.process({}, [sample(label, [[2, 1, 2, 2]])])
    assert metric.evaluate(1) == pytest.approx(
        {'iou/mIoU': 50, 'iou/mAcc': 75, 'iou/aAcc': 200 / 3}
    )


def test_an_ignored_image_changes_nothing():
    masks = [sample(*m) for m in random_masks(seed=3)]
    metric = build(8, class_counts=list(range(8)))
    metric.process({}, masks)
    without = metric.evaluate(len(masks))
    metric.process({}, masks)
    metric.process({}, [sample(np.full((5, 5), 255), np.zeros((5, 5), int))])
    assert metric.evaluate(len(masks) + 1) == without


def test_batches_add_up_and_padding_is_dropped():
    masks = [sample(*m) for m in random_masks(seed=4)]
    metric = build(8, class_counts=list(range(1, 9)))
    metric.process({}, masks)
    whole = metric.evaluate(len(masks))
    for mask in masks:
        metric.process({}, [mask])
    metric.process({}, masks[:2])  # what a distributed sampler appends
    assert metric.evaluate(len(masks)) == whole


@pytest.mark.parametrize('dtype', [torch.uint8, torch.int16, torch.int32])
def test_mask_dtypes(dtype):
    masks = [sample(*m) for m in random_masks(seed=5)]
    metric = build(8, class_counts=None)
    metric.process({}, masks)
    expected = metric.evaluate(len(masks))
    for mask in masks:
        mask['gt_sem_seg']['data'] = mask['gt_sem_seg']['data'].to(dtype)
    metric.process({}, masks)
    assert metric.evaluate(len(masks)) == expected


def test_keeps_counts_not_masks():
    metric = build(8, class_counts=None)
    metric.process({}, [sample(*m) for m in random_masks()])
    assert {r.shape for r in metric.results} == {(3, 8)}


def test_auto_counts_are_handed_in():
    metric = build(3)
    assert metric.class_counts == 'auto'
    data = [sample([[0, 1, 2]], [[0, 1, 1]])]
    with pytest.raises(RuntimeError, match="='auto', .*was not filled.*Fix"):
        metric.process({}, data)
    metric.set_class_counts(
        ClassCounts(np.array([1.0, 3.0, 2.0]), 'pixel', None, 'train set')
    )
    metric.process({}, data)
    result = metric.evaluate(1)
    assert [result[f'iou/{k}'] for k in ('head', 'body', 'tail')] == [
        50,
        0,
        100,
    ]


@pytest.mark.parametrize(
    'label, pred, message',
    [
        (
            [[0, 3]],
            [[0, 1]],
            r'gt_sem_seg=\(0, 3\), expected values 0\.\.2.*reduce_zero_label',
        ),
        (
            [[0, -1]],
            [[0, 1]],
            r'gt_sem_seg=\(-1, 0\), expected values 0\.\.2.*Fix',
        ),
        (
            [[0, 1]],
            [[0, 3]],
            r'pred_sem_seg=\(0, 3\), expected values 0\.\.2.*Fix',
        ),
        (
            [[0, 1]],
            [[0, 1, 1]],
            r'pred_sem_seg=\(3,\), expected the shape \(2,\).*Fix',
        ),
    ],
)
def test_faulty_masks_are_refused(label, pred, message):
    with pytest.raises(ValueError, match=message):
        build(3, class_counts=None).process({}, [sample(label, pred)])


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(class_counts=[3, 2, math.nan]), 'class_counts'),
        (dict(class_counts=[3, 2, 1], thresholds=(9, 1)), 'thresholds'),
        (dict(class_counts=[3, 2, 1], background=3), 'background=3'),
        (dict(class_counts=[3, 2, 1], count_unit='pixels'), 'count_unit'),
    ],
)
def test_faulty_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FrequencyGroupIoU(**options)


def test_wrong_number_of_counts_is_refused():
    metric = build(3, class_counts=[3, 2])
    with pytest.raises(ValueError, match=r'class_counts.*num_classes=3'):
        metric.process({}, [sample([[0]], [[0]])])


def test_counts_of_another_unit_are_refused():
    metric = build(2, count_unit='image')
    with pytest.raises(ValueError, match=r'count_unit.*pixel'):
        metric.set_class_counts(
            ClassCounts(np.array([5.0, 3.0]), 'pixel', None, 'masks')
        )


def test_table_of_classes(caplog):
    metric = build(3, class_counts=[1000, 10, 0], per_class=True)
    metric.dataset_meta = dict(classes=('sky', 'road', 'pole'))
    metric.process({}, [sample([[0, 0, 1, 255]], [[0, 1, 1, 1]])])
    with caplog.at_level('INFO'):
        result = metric.evaluate(1)
    assert result['iou/per_class'][:2] == pytest.approx([50, 50])
    assert np.isnan(result['iou/per_class'][2])
    table = caplog.records[-1].getMessage().splitlines()
    assert [row.split() for row in table[2:]] == [
        '0 sky 1000 99 head 50 50 2'.split(),
        '1 road 10 0.99 body 50 100 1'.split(),
        '2 pole 0 0 tail - - 0'.split(),
    ]
