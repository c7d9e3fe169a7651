# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""What a head's call amounts to: pure functions, one by one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from lt_losses_mm.kernels import Batch
from lt_losses_mm.losses import (
    BalancedSigmoidLoss,
    BalancedSoftmaxLoss,
    EqualizedQualityFocalLoss,
    SoftmaxEqualizationLoss,
)
from lt_losses_mm.losses.calls import (
    check_range,
    divisor,
    label_weights,
    read_call,
    reduced,
    soft_labels,
    split_quality,
    split_weight,
)

EPS = torch.finfo(torch.float32).eps
SHAPES = [((4, 3), (4,)), ((2, 3, 5, 7), (2, 5, 7))]


# ------------------------------------------------------------- split_weight
@pytest.mark.parametrize(('size', 'rows'), SHAPES)
def test_weights_of_rows_and_of_elements(size, rows):
    logits = torch.zeros(size)
    weight = torch.rand(rows)
    for by_element in (False, True):
        found = split_weight('Loss', weight, logits, by_element)
        assert found[0] is weight and found[1] is None
    weight = torch.rand(size)
    for given in (weight, weight.flatten()):
        row, element = split_weight('Loss', given, logits, True)
        assert row is None and torch.equal(element, weight)


@pytest.mark.parametrize(('size', 'rows'), SHAPES)
def test_weights_that_fit_nothing(size, rows):
    logits = torch.zeros(size)
    with pytest.raises(ValueError, match=r'^Loss: weight of .* rows [^n]*$'):
        split_weight('Loss', torch.rand(size), logits, False)
    with pytest.raises(ValueError, match='fits neither rows .* nor logits'):
        split_weight('Loss', torch.rand(5), logits, True)
    with pytest.raises(ValueError, match='fits neither rows'):
        split_weight('Loss', torch.rand(1, *rows), logits, True)


def test_a_square_of_weights_is_one_of_elements():
    """As many rows as classes: the shape decides, not the number."""
    logits = torch.zeros(3, 3)
    assert split_weight('Loss', torch.rand(3), logits, True)[1] is None
    assert split_weight('Loss', torch.rand(3, 3), logits, True)[0] is None


# ------------------------------------------------------------ label_weights
LABELS = torch.tensor([0, 2, -100, 1])
CLASS_WEIGHT = torch.tensor([0.5, 2.0, 4.0])


def weights(**kwargs):
    given = dict(
        logits=torch.zeros(4, 3),
        labels=LABELS,
        row_weight=None,
        class_weight=None,
        ignore_index=-100,
    )
    given.update(kwargs)
    return label_weights(*given.values())


def test_ignored_rows_do_not_count():
    counted, row_weight = weights()
    assert counted.tolist() == [1, 1, 0, 1] and row_weight is None
    # What a row weighs does not change what it counts.
    given = torch.tensor([3.0, 0.0, 1.0, 1.0])
    counted, row_weight = weights(row_weight=given)
    assert counted.tolist() == [1, 1, 0, 1] and row_weight is given


def test_class_weights_count_and_weigh():
    counted, row_weight = weights(class_weight=CLASS_WEIGHT)
    assert counted.tolist() == [0.5, 4, 0, 2]
    # An ignored row has no loss, whatever it weighs.
    assert row_weight[LABELS >= 0].tolist() == [0.5, 4, 2]
    given = torch.tensor([3.0, 0.0, 1.0, 1.0])
    counted, row_weight = weights(class_weight=CLASS_WEIGHT, row_weight=given)
    assert counted.tolist() == [0.5, 4, 0, 2]
    assert row_weight[LABELS >= 0].tolist() == [1.5, 0, 2]


@pytest.mark.parametrize(
    ('dtype', 'wide'),
    [
        (torch.half, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_counts_are_wide(dtype, wide):
    """The sum of more than 2048 ones is no fp16 number."""
    logits = torch.zeros(4, 3, dtype=dtype)
    for class_weight in (None, CLASS_WEIGHT):
        counted, _ = weights(logits=logits, class_weight=class_weight)
        assert counted.dtype == wide


# ------------------------------------------------------------------ divisor
def test_the_divisor_of_the_head_wins():
    counted = torch.tensor([1.0, 1.0, 0.0])
    assert divisor(None, counted).item() == 2
    assert divisor(7, counted) == 7 + EPS
    assert divisor(torch.tensor(7.0), counted).item() == 7
    assert divisor(7, None) == 7 + EPS


def test_nothing_is_divided_by_zero():
    assert divisor(0, None) == EPS
    assert divisor(None, torch.zeros(3)).item() == pytest.approx(EPS)
    for dtype in (torch.half, torch.bfloat16, torch.int64):
        found = divisor(torch.zeros((), dtype=dtype), None)
        assert found.dtype == torch.float32 and found > 0


@pytest.mark.parametrize('shape', [(), (1,), (1, 1)])
def test_a_divisor_is_one_number(shape):
    assert divisor(torch.full(shape, 3.0), None).shape == ()
    loss = BalancedSoftmaxLoss(class_counts=[5, 3, 1])
    found = loss(
        torch.zeros(2, 3),
        torch.tensor([0, 1]),
        avg_factor=torch.full(shape, 3.0),
    )
    assert found.shape == ()


# -------------------------------------------------------------- check_range
def test_labels_in_range():
    loss = SimpleNamespace(num_classes=3)
    check_range(loss, torch.tensor([0, 2, 3, -100]), 3, -100)
    check_range(loss, torch.tensor([0, 255]), 2, 255)
    check_range(loss, torch.zeros(0).long(), 2, -100)


@pytest.mark.parametrize(
    ('label', 'largest', 'ignore_index', 'said'),
    [
        (3, 2, -100, r'label 3 .*0\.\.2 \(3 classes\)'),
        (4, 3, -100, r'label 4 .*0\.\.3 \(3 classes and background\)'),
        (-1, 3, -100, 'label -1 .*ignore_index=-100'),
        (255, 2, -100, 'label 255 .*ignore_index=-100'),
        (-100, 2, 255, 'label -100 .*ignore_index=255'),
    ],
)
def test_labels_out_of_range(label, largest, ignore_index, said):
    loss = SimpleNamespace(num_classes=3)
    with pytest.raises(ValueError, match=said):
        check_range(loss, torch.tensor([0, label]), largest, ignore_index)


# -------------------------------------------------------------- soft labels
def test_soft_labels():
    logits = torch.zeros(2, 3)
    soft = torch.rand(2, 3).double()
    assert soft_labels('Loss', soft, logits, True) is soft
    of_integers = soft_labels('Loss', torch.ones(2, 3).long(), logits, True)
    assert of_integers.dtype == torch.float32
    with pytest.raises(ValueError, match='Loss: soft labels of shape'):
        soft_labels('Loss', torch.rand(2), logits, True)
    with pytest.raises(ValueError, match='Mixup'):
        soft_labels('Loss', soft, logits, False)


def test_quality():
    labels, quality = torch.tensor([0, 1]), torch.rand(2)
    taking = EqualizedQualityFocalLoss(num_classes=3)
    for given in ((labels, quality), [labels, quality]):
        assert split_quality(taking, given) == (labels, quality)
    other = BalancedSigmoidLoss(class_counts=[5, 3, 1])
    for loss, given in ((other, (labels, quality)), (taking, 3)):
        with pytest.raises(TypeError, match='expected a tensor'):
            split_quality(loss, given)


# ------------------------------------------------------------------ reduced
def batch(**kwargs):
    return Batch(torch.zeros(3, 2), torch.zeros(3).long(), **kwargs)


def test_reduced():
    rows = torch.tensor([1.0, 2.0, 3.0])
    weight = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    found = reduced(rows, batch(), 10.0)
    assert found.tolist() == [10, 20, 30]
    found = reduced(rows, batch(row_weight=weight), 10.0)
    assert found.tolist() == [0, 20, 60] and found.dtype == rows.dtype
    # The factor has the weight of the loss in it.
    found = reduced(rows, batch(row_weight=weight, factor=0.5), 10.0)
    assert_close(found, torch.tensor(4.0))
    assert_close(reduced(rows, batch(factor=0.5), 10.0), torch.tensor(3.0))


# ---------------------------------------------------------------- read_call
def read(loss, logits, labels, **kwargs):
    given = dict(
        weight=None, avg_factor=None, override=None, ignore_index=None
    )
    given.update(kwargs)
    return read_call(loss, logits, labels, *given.values())


def make(**kwargs):
    return BalancedSoftmaxLoss(class_counts=[5, 3, 1], **kwargs)


def test_factor_of_each_reduction():
    logits, labels = torch.zeros(4, 3), torch.tensor([0, 1, 2, -100])
    loss = make(loss_weight=3.0)
    assert read(loss, logits, labels).factor == 3 / 4
    assert read(loss, logits, labels, override='sum').factor == 3
    assert read(loss, logits, labels, override='none').factor is None
    found = read(loss, logits, labels, avg_factor=8.0).factor
    assert found == 3 / (8 + EPS)
    found = read(loss, logits, labels, avg_factor=8.0, override='none')
    assert found.factor is None
    loss = make(avg_non_ignore=True)
    assert read(loss, logits, labels).factor.item() == pytest.approx(1 / 3)
    assert read(make(), logits[:0], labels[:0]).factor == 1
    with pytest.raises(ValueError, match="reduction='sum'.*avg_factor"):
        read(make(reduction='sum'), logits, labels, avg_factor=8.0)
    with pytest.raises(ValueError, match="reduction_override='avg'"):
        read(make(), logits, labels, override='avg')


@pytest.mark.parametrize(('size', 'rows'), SHAPES)
def test_ignored_label(size, rows):
    logits, labels = torch.zeros(size), torch.zeros(rows).long()
    default = -100 if len(size) == 2 else 255
    assert read(make(), logits, labels).ignore_index == default
    assert read(make(ignore_index=7), logits, labels).ignore_index == 7
    found = read(make(ignore_index=7), logits, labels, ignore_index=9)
    assert found.ignore_index == 9


def test_what_statistics_learn_from():
    loss = SoftmaxEqualizationLoss(num_classes=3)
    logits, labels = torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])

    def learns(logits=logits, labels=labels):
        return read(loss, logits, labels).learns

    assert learns()
    assert not learns(logits[:0], labels[:0])
    with torch.no_grad():
        assert not learns()
    found = []
    torch.func.grad(lambda z: (found.append(learns(z)), z.sum())[1])(logits)
    torch.func.vmap(lambda z: (found.append(learns(z)), z.sum())[1])(
        logits.expand(2, 4, 3)
    )
    assert found == [False, False]
    loss.eval()
    assert not learns()


def test_labels_of_a_wrong_shape():
    with pytest.raises(ValueError, match=r'labels of shape \(3,\).*\(4, 3\)'):
        read(make(), torch.zeros(4, 3), torch.zeros(3).long())
    loss = EqualizedQualityFocalLoss(num_classes=3)
    with pytest.raises(ValueError, match=r'quality of shape \(3,\)'):
        read(loss, torch.zeros(4, 3), (torch.zeros(4).long(), torch.ones(3)))
