"""How heads call a loss: weights, reductions, ignored rows, odd shapes."""

import pytest
import torch
from torch.testing import assert_close


@pytest.mark.parametrize(
    'avg_factor',
    [
        7,
        7.0,
        torch.tensor(7.0),
        torch.tensor([7.0]),
        torch.tensor(7),
        torch.tensor(7.0, dtype=torch.float64),
    ],
    ids=repr,
)
def test_avg_factor(loss_type, build, rows, avg_factor):
    logits, labels = rows()
    loss = build(loss_type)
    out = loss(logits, labels, avg_factor=avg_factor)
    assert_close(
        out.reshape(()).float(),
        loss(logits, labels, reduction_override='sum') / 7,
    )
    assert_close(
        loss(logits, labels, avg_factor=avg_factor, reduction_override='none'),
        loss(logits, labels, reduction_override='none'),
    )


@pytest.mark.parametrize('how', ['constructor', 'override'])
def test_sum_with_avg_factor_raises(loss_type, build, rows, how):
    logits, labels = rows()
    with pytest.raises(ValueError, match="'sum'.*'mean' or 'none'"):
        if how == 'constructor':
            build(loss_type, reduction='sum')(logits, labels, avg_factor=3)
        else:
            build(loss_type)(
                logits, labels, avg_factor=3, reduction_override='sum'
            )


@pytest.mark.parametrize('zero', [0, 0.0, torch.tensor(0.0)], ids=repr)
def test_avg_factor_zero_stays_finite(loss_type, build, rows, zero):
    logits, labels = rows()
    loss = build(loss_type)
    assert loss(logits, labels, avg_factor=zero).isfinite().all()
    none = loss(logits, labels, labels.new_zeros(12).float(), avg_factor=zero)
    assert none.item() == 0


@pytest.mark.parametrize('size', [(), (2, 3)], ids=str)
def test_rows_that_are_left_out_are_not_observed(
    running_type, build, rows, observed, size
):
    """By weight 0 or by label: as if they were not there."""
    logits, labels = rows(size=size)
    alone = build(running_type)
    alone(logits[1::2], labels[1::2])
    weight = torch.ones(labels.shape)
    weight[::2] = 0
    weighted = build(running_type)
    weighted(logits, labels, weight)
    labels[::2] = 255
    ignoring = build(running_type)
    ignoring(logits, labels, ignore_index=255)
    (expected,) = observed(alone)
    assert all(sums.sum() > 0 for sums in expected.values())
    for loss in (weighted, ignoring):
        assert_close(observed(loss), [expected])


def test_statistics_are_blind_to_the_reduction(
    running_type, build, rows, observed
):
    """Neither the divisor nor loss_weight, but weights of rows."""
    logits, labels = rows()
    loss = build(running_type)
    loss(logits, labels)
    (expected,) = observed(loss)
    for arguments, call in (
        (dict(loss_weight=0.1), {}),
        (dict(reduction='sum'), {}),
        ({}, dict(avg_factor=7.0)),
        ({}, dict(reduction_override='none')),
    ):
        other = build(running_type, **arguments)
        other(logits, labels, **call)
        assert_close(observed(other), [expected])
    twice = build(running_type)
    twice(logits, labels, torch.full((12,), 2.0))
    (sums,) = observed(twice)
    assert tuple(sums) == loss.statistics.names
    for name in set(sums) - {'pos_count'}:
        assert_close(sums[name], 2 * expected[name])
    assert_close(sums['pos_count'], expected['pos_count'])
    assert_close(expected['pos_count'], labels.bincount(minlength=5).double())


def test_flat_weight_per_element(sigmoid_type, build, rows):
    """FSAF hands the weights of elements in a flat vector."""
    logits, labels = rows()
    loss, weight = build(sigmoid_type), torch.rand(12, 5)
    value = loss(logits, labels, weight.flatten())
    assert_close(value, loss(logits, labels, weight))
    assert not value.isclose(loss(logits, labels))


def test_default_ignore_index(loss_type, build, rows):
    """Mmseg's DDRHead and PIDHead pass none and mean 255."""
    loss = build(loss_type)
    for size, ignored in (((), -100), ((3,), 255), ((2, 3), 255)):
        logits, labels = rows(size=size)
        labels[0] = ignored
        assert (loss(logits, labels, reduction_override='none')[0] == 0).all()


def test_empty_without_reduction(loss_type, build, rows):
    logits, labels = rows(n=0)
    assert build(loss_type)(
        logits, labels, reduction_override='none'
    ).shape == (0,)


def test_only_background(policy, build):
    name, background = policy
    loss = build(name, background=background)
    columns = loss.get_cls_channels(5)
    logits = torch.randn(6, columns, requires_grad=True)
    value = loss(logits, torch.full((6,), 5), torch.ones(6), avg_factor=1.0)
    value.backward()
    assert value > 0 and value.isfinite()
    assert logits.grad.isfinite().all() and logits.grad.any()


@pytest.mark.parametrize('dtype', [torch.uint8, torch.int32, torch.int16])
def test_integer_labels_of_any_width(loss_type, build, rows, dtype):
    logits, labels = rows(size=(2, 3))
    loss = build(loss_type)
    labels[0] = 255
    assert_close(loss(logits, labels.to(dtype)), loss(logits, labels))


def test_integer_multi_hot_labels(soft_type, build, rows):
    """Mmpretrain's preprocessor writes one-hot labels as int64."""
    logits, _ = rows(n=3)
    hot = torch.tensor([[0, 1, 0, 0, 1], [0, 0, 0, 0, 1], [0] * 5])
    loss = build(soft_type)
    assert_close(loss(logits, hot), loss(logits, hot.float()))


def test_upstream_gradient_scales(loss_type, build, rows):
    logits, labels = rows()
    logits.requires_grad_()
    loss = build(loss_type)
    (grad,) = torch.autograd.grad(loss(logits, labels), logits)
    (scaled,) = torch.autograd.grad(
        loss(logits, labels), logits, torch.tensor(-3.0)
    )
    assert_close(scaled, -3 * grad)
    per_row = torch.rand(12)
    (rowwise,) = torch.autograd.grad(
        loss(logits, labels, reduction_override='none'), logits, per_row
    )
    assert_close(rowwise, grad * 12 * per_row.unsqueeze(1))


def test_nothing_to_learn_from_is_not_observed(
    running_type, build, rows, observed
):
    """A rank without RoIs commits zeros, and warns of nothing."""
    for n in (0, 4):
        logits, labels = rows(n=n)
        loss = build(running_type)
        loss(logits, labels, torch.zeros(n))
        (sums,) = observed(loss)
        assert not any(s.any() for s in sums.values())
        before = loss.statistics.sums.clone()
        loss.statistics.commit()
        assert_close(loss.statistics.sums, before, rtol=0, atol=0)


def test_class_weight(softmax_type, build, one_softmax, rows):
    """Written by DETRHead and read by Mask2Former, one a logit column."""
    logits, labels = rows(columns=6, labels=6)
    weight = [1.0, 1.0, 2.0, 1.0, 1.0, 0.1]
    labels[0], labels[1] = 5, -100
    background = one_softmax(softmax_type)
    weighted = build(softmax_type, class_weight=weight, **background)
    bare = build(softmax_type, **background)
    expected = bare(logits, labels, reduction_override='none')
    factor = torch.tensor(weight)[labels.clamp(min=0)]
    assert_close(
        weighted(logits, labels, reduction_override='none'), expected * factor
    )


def test_class_weight_with_objectness(softmax_with_objectness, build, rows):
    """One a logit column, of which the last is no row's label."""
    logits, labels = rows(columns=7, labels=6)
    weight = [1.0, 1.0, 2.0, 1.0, 1.0, 0.1, 9.0]
    labels[0], labels[1] = 5, -100
    weighted, bare = (
        build(softmax_with_objectness, background='objectness', **arguments)
        for arguments in (dict(class_weight=weight), {})
    )
    for loss in (weighted, bare):
        assert loss.get_cls_channels(5) == 7
    expected = bare(logits, labels, reduction_override='none')
    factor = torch.tensor(weight)[labels.clamp(min=0)]
    assert_close(
        weighted(logits, labels, reduction_override='none'), expected * factor
    )


def test_class_weight_may_be_a_tensor(softmax_type, build, one_softmax, rows):
    logits, labels = rows(columns=6, labels=6)
    weight = [1.0, 1.0, 2.0, 1.0, 1.0, 0.1]
    a, b = (
        build(softmax_type, class_weight=w, **one_softmax(softmax_type))
        for w in (torch.tensor(weight), weight)
    )
    assert_close(a(logits, labels), b(logits, labels))
