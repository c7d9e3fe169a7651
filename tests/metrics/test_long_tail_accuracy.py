# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.registry import METRICS, DefaultScope

from lt_losses_mm.metrics import LongTailAccuracy
from lt_losses_mm.metrics.long_tail_accuracy import expected_calibration_error
from lt_losses_mm.priors import ClassCounts


def samples(labels, scores):
    return [
        dict(gt_label=torch.tensor([y]), pred_score=torch.as_tensor(s))
        for y, s in zip(labels, scores)
    ]


def one_hot(predictions, num_classes):
    return torch.eye(num_classes)[list(predictions)]


def random_case(seed=0, n=200, num_classes=7):
    rng = np.random.default_rng(seed)
    labels = np.r_[
        np.arange(num_classes), rng.integers(num_classes, size=n - num_classes)
    ]
    scores = torch.from_numpy(
        rng.dirichlet(np.ones(num_classes), size=n)
    ).float()
    return labels, scores


def test_a_table_of_data_that_lack_the_last_class(caplog):
    counts = ClassCounts([6, 3, 1], names=('cat', 'dog', 'owl'))
    metric = LongTailAccuracy(counts, per_class=True)
    metric.label_names = ('cat', 'dog')
    with caplog.at_level('INFO'):
        metric.class_values(accuracy=np.array([50.0, 50.0, np.nan]))
    assert caplog.text.rstrip().splitlines()[-1].split()[:2] == ['2', 'owl']


def test_hand_computed_groups():
    # Class:        0    1    2   3   4; class 4 has no test sample.
    counts = [101, 100, 20, 19, 0]
    labels = [0, 0, 0, 0, 1, 2, 2, 3, 3, 3]
    predictions = [0, 0, 0, 1, 1, 2, 3, 0, 3, 1]
    metric = LongTailAccuracy(class_counts=counts, per_class=True)
    metric.process({}, samples(labels, one_hot(predictions, 5)))
    result = metric.evaluate(len(labels))
    assert list(result) == [
        f'accuracy/{k}'
        for k in (
            'all',
            'class_mean',
            'many',
            'medium',
            'few',
            'ece',
            'per_class',
            'class_counts',
        )
    ]
    assert result['accuracy/all'] == pytest.approx(60)
    assert result['accuracy/many'] == pytest.approx(75)
    assert result['accuracy/medium'] == pytest.approx((100 + 50) / 2)
    assert result['accuracy/few'] == pytest.approx(100 / 3)
    assert result['accuracy/class_mean'] == pytest.approx(
        (75 + 100 + 50 + 100 / 3) / 4
    )
    assert result['accuracy/ece'] == pytest.approx(40)
    assert result['accuracy/class_counts'] == list(counts)
    per_class = result['accuracy/per_class']
    assert per_class[:4] == pytest.approx([75, 100, 50, 100 / 3])
    assert math.isnan(per_class[4])


def test_thresholds():
    metric = LongTailAccuracy(class_counts=[9, 5, 1], thresholds=(2, 8))
    metric.process({}, samples([0, 1, 2], one_hot([0, 0, 2], 3)))
    result = metric.evaluate(3)
    assert [result[f'accuracy/{k}'] for k in ('many', 'medium', 'few')] == [
        100,
        0,
        100,
    ]


def test_a_group_without_classes_or_samples_has_no_key():
    metric = LongTailAccuracy(class_counts=[500, 50, 400])
    metric.process({}, samples([0, 2], one_hot([0, 0], 3)))
    result = metric.evaluate(2)
    assert 'accuracy/few' not in result  # no such class
    assert 'accuracy/medium' not in result  # no such test sample
    assert result['accuracy/many'] == 50


def test_no_counts_no_groups_no_ece():
    metric = LongTailAccuracy(class_counts=None, ece_bins=None)
    logits = torch.tensor([[4.0, -2.0], [3.0, 5.0]])
    metric.process({}, samples([0, 0], logits))
    assert metric.evaluate(2) == {
        'accuracy/all': 50,
        'accuracy/class_mean': 50,
    }


def test_agrees_with_sklearn():
    sklearn_metrics = pytest.importorskip('sklearn.metrics')
    labels, scores = random_case()
    predictions = scores.argmax(1).numpy()
    metric = LongTailAccuracy(class_counts=None, per_class=True)
    metric.process({}, samples(labels, scores))
    result = metric.evaluate(len(labels))
    assert result['accuracy/all'] == pytest.approx(
        100 * sklearn_metrics.accuracy_score(labels, predictions)
    )
    assert result['accuracy/class_mean'] == pytest.approx(
        100 * sklearn_metrics.balanced_accuracy_score(labels, predictions)
    )
    assert result['accuracy/per_class'] == pytest.approx(
        100 * sklearn_metrics.recall_score(labels, predictions, average=None)
    )


def test_agrees_with_mmpretrain_beside_it_in_one_evaluator():
    pytest.importorskip('mmpretrain')
    from mmpretrain.structures import DataSample

    labels, scores = random_case(1)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        evaluator = Evaluator(
            [
                dict(type='Accuracy'),
                dict(type='SingleLabelMetric', items=['recall']),
                dict(
                    type='lt_losses_mm.LongTailAccuracy', class_counts=[9] * 7
                ),
            ]
        )
    for label, score in zip(labels, scores):
        evaluator.process(
            [DataSample().set_gt_label(int(label)).set_pred_score(score)]
        )
    result = evaluator.evaluate(len(labels))
    assert result['accuracy/all'] == pytest.approx(result['accuracy/top1'])
    assert result['accuracy/class_mean'] == pytest.approx(
        result['single-label/recall']
    )
    assert result['accuracy/few'] == pytest.approx(
        result['accuracy/class_mean']
    )


def test_ece_by_hand():
    # Bins (0, .2], (.2, .4], ... hold 0, 1, 2, 1 and 1 predictions:
    # |0 - .3| * 1/5 + |.5 - .55| * 2/5 + |1 - .7| * 1/5 + |1 - 1| * 1/5
    confidence = np.array([0.3, 0.5, 0.6, 0.7, 1.0])
    correct = np.array([False, True, False, True, True])
    assert expected_calibration_error(
        confidence, correct, bins=5
    ) == pytest.approx(0.14)


@pytest.mark.parametrize('bins', [1, 2, 15, 100])
def test_ece_is_the_weighted_gap_of_the_bins(bins):
    rng = np.random.default_rng(bins)
    confidence = np.r_[rng.random(500), 0.0, 1.0]
    correct = rng.random(502) < confidence**2
    edges = np.linspace(0, 1, bins + 1)
    edges[0] = -1
    expected = 0
    for low, high in zip(edges[:-1], edges[1:]):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            expected += inside.mean() * abs(
                correct[inside].mean() - confidence[inside].mean()
            )
    assert expected_calibration_error(
        confidence, correct, bins
    ) == pytest.approx(expected)


@pytest.mark.parametrize(
    'right, confidence, expected',
    [
        (3, 0.75, 0),  # three of four right, as confident as that
        (4, 1.0, 0),
        (0, 1.0, 100),  # always sure, always wrong
        (0, 0.75, 75),
    ],
)
def test_ece_of_calibrated_and_wrong_predictions(right, confidence, expected):
    labels = [0] * right + [1] * (4 - right)
    metric = LongTailAccuracy(class_counts=None)
    metric.process({}, samples(labels, [[confidence, 1 - confidence]] * 4))
    assert metric.evaluate(4)['accuracy/ece'] == pytest.approx(expected)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_scores(dtype):
    labels, scores = random_case(2)
    metric = LongTailAccuracy(class_counts=[30] * 7)
    metric.process({}, samples(labels, scores.to(dtype)))
    half = metric.evaluate(len(labels))
    metric.process({}, samples(labels, scores.to(dtype).float()))
    assert half == metric.evaluate(len(labels))


def test_batches_add_up_and_padding_is_dropped():
    labels, scores = random_case(3)
    data = samples(labels, scores)
    metric = LongTailAccuracy(class_counts=[500, 50, 5, 5, 5, 5, 5])
    metric.process({}, data)
    whole = metric.evaluate(len(data))
    for start in range(0, len(data), 32):
        metric.process({}, data[start : start + 32])
    metric.process({}, data[:13])  # what a distributed sampler appends
    assert metric.evaluate(len(data)) == whole


def test_auto_counts_are_handed_in():
    metric = LongTailAccuracy()
    assert metric.class_counts == 'auto'
    data = samples([0, 1], one_hot([0, 0], 2))
    with pytest.raises(RuntimeError, match="='auto', .*was not filled.*Fix"):
        metric.process({}, data)
    metric.set_class_counts(
        ClassCounts(np.array([300.0, 3.0]), 'image', None, 'train set')
    )
    assert metric.class_counts != 'auto'
    metric.process({}, data)
    result = metric.evaluate(2)
    assert (result['accuracy/many'], result['accuracy/few']) == (100, 0)


@pytest.mark.parametrize('label', [[0, 1], []])
def test_multi_label_samples_are_refused(label):
    sample = dict(
        gt_label=torch.tensor(label), pred_score=torch.tensor([0.9, 0.8])
    )
    with pytest.raises(ValueError, match=r'single-label.*MultiLabelMetric'):
        LongTailAccuracy(class_counts=None).process({}, [sample])


@pytest.mark.parametrize(
    'options, data, message',
    [
        (dict(class_counts=[5, 5, 5]), ([0], [[0.9, 0.1]]), 'class_counts.*3'),
        (
            dict(class_counts=None),
            ([2], [[0.9, 0.1]]),
            r'gt_label=2, expected 0\.\.1.*Fix',
        ),
        (
            dict(class_counts=None),
            ([-1], [[0.9, 0.1]]),
            r'gt_label=-1, expected 0\.\.1.*Fix',
        ),
        (
            dict(class_counts=None),
            ([0], [[3.0, -1.0]]),
            'probabilities.*ece_bins',
        ),
        (
            dict(class_counts=None),
            ([0], [[math.nan, 0.0]]),
            'nan.*probabilities',
        ),
    ],
)
def test_faulty_data_are_refused_at_the_first_batch(options, data, message):
    metric = LongTailAccuracy(**options)
    with pytest.raises(ValueError, match=message):
        metric.process({}, samples(*data))


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(class_counts=[5, -1]), 'class_counts'),
        (dict(class_counts='no_such_benchmark'), 'no_such_benchmark'),
        (dict(class_counts=[5, 1], thresholds=(100, 20)), 'thresholds'),
        (dict(ece_bins=0), 'ece_bins'),
        (dict(ece_bins=1.5), 'ece_bins'),
    ],
)
def test_faulty_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LongTailAccuracy(**options)


def test_pixel_counts_are_refused():
    metric = LongTailAccuracy()
    with pytest.raises(ValueError, match='image'):
        metric.set_class_counts(
            ClassCounts(np.array([300.0, 3.0]), 'pixel', None, 'masks')
        )


@pytest.mark.parametrize('named', [True, False])
def test_table_of_classes(caplog, named):
    """Names of the data set, else of the counts, else labels."""
    counts = ClassCounts(
        np.array([500.0, 5.0]), names=('cat', 'dog') if named else None
    )
    metric = LongTailAccuracy(class_counts=counts, per_class=True)
    metric.process({}, samples([0, 0, 1], one_hot([0, 1, 1], 2)))
    with caplog.at_level('INFO'):
        metric.evaluate(3)
    table = caplog.records[-1].getMessage().splitlines()
    first, second = ('cat', 'dog') if named else ('0', '1')
    assert [row.split() for row in table[2:]] == [
        ['0', first, *'500 99 many 50 2'.split()],
        ['1', second, *'5 0.99 few 100 1'.split()],
    ]


def test_counts_are_joined_by_name_with_the_evaluated_data():
    counts = ClassCounts([500, 50, 5], names=('cat', 'dog', 'owl'))
    metric = LongTailAccuracy(class_counts=counts)
    metric.dataset_meta = dict(classes=('owl', 'cat', 'dog'))
    metric.check_class_counts(3)
    assert metric.class_counts.counts.tolist() == [5, 500, 50]
    assert metric.groups(metric.class_counts.counts)['many'].tolist() == [1]
    assert metric.group_means(np.array([1.0, 2.0, 3.0])) == dict(
        many=2.0, medium=3.0, few=1.0
    )


def test_counts_of_other_classes_than_the_evaluated_data():
    counts = ClassCounts([500, 50, 5], names=('cat', 'dog', 'owl'))
    metric = LongTailAccuracy(class_counts=counts)
    metric.dataset_meta = dict(classes=('cat', 'owl', 'emu'))
    with pytest.raises(ValueError, match="missing: 'emu'.*them: 'dog'"):
        metric.check_class_counts(3)


@pytest.mark.parametrize(
    'name, left, said',
    [
        (
            'LongTailAccuracy',
            dict(topk=(1, 5)),
            "'topk', .*class_counts='auto'",
        ),
        ('FrequencyGroupIoU', dict(iou_metrics=['mIoU']), "'iou_metrics', "),
        (
            'FrequencyGroupAP',
            dict(ann_file='', format_only=True, outfile_prefix='x'),
            r"'format_only', 'outfile_prefix', .*its own \(ann_file, metric=",
        ),
    ],
)
def test_what_another_metric_has_left(name, left, said):
    """Only ``type`` was changed, of Accuracy, IoUMetric or CocoMetric."""
    with pytest.raises(
        TypeError,
        match=f'^{name}: unknown keys {said}.*_delete_=True to the dict of '
        'the metric',
    ):
        METRICS.build(dict(left, type=f'lt_losses_mm.{name}'))
