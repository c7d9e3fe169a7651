"""Counts and statistics as state: copies, checkpoints, devices, checks."""

import copy
import pickle

import pytest
import torch
from mmengine.runner.checkpoint import load_state_dict
from torch import nn
from torch.testing import assert_close


@pytest.mark.parametrize('auto', [False, True])
def test_copies_compute_the_same(
    loss_type, strong, build, rows, tmp_path, auto, counts, midway
):
    logits, labels = rows()
    strength = strong(loss_type, 0.7)
    loss = build(loss_type, **strength)
    if auto:
        loss = build(loss_type, class_counts='auto', **strength)
        loss.set_class_counts(counts)
        midway(loss)
    torch.save(loss, tmp_path / 'loss.pth')
    for clone in (
        copy.deepcopy(loss),
        pickle.loads(pickle.dumps(loss)),
        torch.load(tmp_path / 'loss.pth', weights_only=False),
    ):
        assert_close(clone(logits, labels), loss(logits, labels))
        assert clone.num_classes == 5


def test_copies_take_along_what_they_have_observed(
    running_type, build, rows, observed, tmp_path
):
    """And what one observes from then on is its own."""
    loss = build(running_type)
    loss(*rows())
    expected = observed(loss)
    torch.save(loss, tmp_path / 'loss.pth')
    for clone in (
        copy.deepcopy(loss),
        pickle.loads(pickle.dumps(loss)),
        torch.load(tmp_path / 'loss.pth', weights_only=False),
    ):
        assert_close(observed(clone), expected, rtol=0, atol=0)
        clone(*rows())
        clone.statistics.commit()
        assert_close(observed(loss), expected, rtol=0, atol=0)
        assert not clone.statistics.pos_count.equal(loss.statistics.pos_count)


def test_a_copy_remembers_that_it_is_in_a_roi_head(loss_type, build):
    loss = build(loss_type)
    columns = loss.get_cls_channels(5)
    clone = pickle.loads(pickle.dumps(copy.deepcopy(loss)))
    assert clone.get_activation(torch.randn(2, columns)).shape == (2, 6)


@pytest.mark.parametrize('cast', ['half', 'bfloat16', 'double'])
def test_casting_a_model_keeps_the_counts_exact(loss_type, build, cast):
    counts = [123457.0, 1.0, 70001.0, 65505.0, 3.0]
    model = nn.Sequential(nn.Linear(2, 5))
    model.add_module('loss', build(loss_type, class_counts=counts))
    getattr(model, cast)()
    assert model[0].weight.dtype != torch.float32
    assert model.loss.class_counts.tolist() == counts
    assert model.to(torch.float16).loss.class_counts.tolist() == counts


@pytest.mark.parametrize('cast', ['half', 'bfloat16', 'double'])
def test_casting_a_model_keeps_the_statistics_exact(
    running_type, build, rows, observed, cast
):
    """Sums of float32 stop to grow, those of float16 end at 65504."""
    large = [2.0**40 + 1, 1.0, 2.0**30 + 2.0**-20, 65505.0, 1e-30]
    model = nn.Sequential(nn.Linear(2, 5))
    model.add_module('loss', build(running_type))
    expected = torch.tensor(large, dtype=torch.float64)
    model.loss.statistics.sums.copy_(expected)
    model.loss(*rows())
    before = observed(model)
    getattr(model, cast)()
    assert model[0].weight.dtype != torch.float32
    for statistic in model.to(torch.float16).loss.statistics.sums:
        assert statistic.dtype == torch.float64
        assert statistic.tolist() == large
    assert_close(observed(model), before, rtol=0, atol=0)


def test_a_half_model_goes_on_observing(running_type, build, rows, observed):
    logits, labels = rows(dtype=torch.float16)
    loss, exact = build(running_type).half(), build(running_type)
    loss(logits, labels)
    exact(logits.double(), labels)
    assert_close(observed(loss), observed(exact), rtol=1e-5, atol=1e-6)


def test_moving_to_another_device_takes_the_counts_along(loss_type, build):
    assert build(loss_type).to('meta').class_counts.device.type == 'meta'


def test_moving_to_another_device_takes_the_statistics_along(
    running_type, build
):
    statistics = build(running_type).to('meta').statistics
    assert statistics.sums.device.type == 'meta'
    assert statistics.pending.device.type == 'meta'


def test_auto_takes_the_counts_of_the_checkpoint(
    loss_type, build, counts, rows
):
    trained = build(loss_type, class_counts=counts)
    loss = build(loss_type, class_counts='auto')
    assert not hasattr(loss, 'num_classes')
    loss.load_state_dict(trained.state_dict())
    assert loss.num_classes == 5
    assert_close(loss(*rows()), trained(*rows()))


def test_statistics_are_those_of_the_checkpoint(
    running_type, build, neutral, rows, observed
):
    """A run goes on where it stopped; pending sums are no part of it."""
    trained = build(running_type)
    trained(*rows())
    loss = neutral(running_type)
    loss.load_state_dict(trained.state_dict())
    sums = trained.statistics.sums
    assert_close(loss.statistics.sums, sums, rtol=0, atol=0)
    (sums,) = observed(loss)
    assert not any(s.any() for s in sums.values())
    fresh = neutral(running_type)
    fresh.load_state_dict(neutral(running_type).state_dict())
    assert fresh.statistics.num_classes == 5
    assert not fresh.statistics.sums.any()


def test_the_checkpoint_tells_the_number_of_classes(running_type, build, rows):
    """Of a loss that got it from the head, where no Runner tells it."""
    trained = build(running_type)
    loss = build(running_type, num_classes=None)
    loss.load_state_dict(trained.state_dict())
    assert loss.num_classes == 5
    assert_close(loss(*rows()), trained(*rows()))


def test_auto_survives_an_unfilled_checkpoint(loss_type, build):
    empty = build(loss_type, class_counts='auto')
    loss = build(loss_type, class_counts='auto')
    loss.set_class_counts([5, 4, 3])
    loss.load_state_dict(empty.state_dict())
    assert loss.class_counts.tolist() == [5, 4, 3]


@pytest.mark.parametrize('other', [[1, 2, 3, 4, 5], [1, 2, 3]], ids=str)
def test_explicit_counts_win_over_the_checkpoint(
    counting_type, build, counts, other
):
    loss = build(counting_type)
    state = build(counting_type, class_counts=other).state_dict()
    loss.load_state_dict(state)
    assert loss.class_counts.tolist() == counts
    # The caller's dict is not ours to change.
    assert state['class_counts'].tolist() == other


def test_counts_for_plots_win_over_the_checkpoint(running_type, build, counts):
    loss = build(running_type, class_counts=counts)
    state = build(running_type, class_counts=[1, 2, 3, 4, 5]).state_dict()
    loss.load_state_dict(state)
    assert loss.class_counts.tolist() == counts
    assert state['class_counts'].tolist() == [1, 2, 3, 4, 5]


def test_statistics_of_another_number_of_classes(running_type, build):
    """Strict loading says what is wrong; fine-tuning goes on, as with fc."""
    loss = build(running_type, num_classes=3)
    before = loss.statistics.sums.clone()
    state = build(running_type).state_dict()
    with pytest.raises(
        (RuntimeError, ValueError),
        match='(?s)num_classes=3, expected 5.*cs.sums of the checkpoint',
    ):
        loss.load_state_dict(state)
    load_state_dict(loss, state, strict=False)
    assert_close(loss.statistics.sums, before, rtol=0, atol=0)
    # The caller's dict is not ours to change.
    assert state['statistics.sums'].size(1) == 5


@pytest.mark.parametrize('filled', [False, True])
def test_counts_of_another_number_of_classes(loss_type, build, filled):
    """Strict loading says what is wrong; fine-tuning goes on, as with fc."""
    loss = build(loss_type, class_counts='auto', num_classes=3)
    if filled:
        loss.set_class_counts([3, 2, 1])
    before = loss.class_counts.clone()
    state = build(loss_type, class_counts=[5, 4, 3, 2, 1]).state_dict()
    with pytest.raises((RuntimeError, ValueError), match='num_classes=3.*5'):
        loss.load_state_dict(state)
    load_state_dict(loss, state, strict=False)
    assert_close(loss.class_counts, before)


def test_a_checkpoint_without_counts_loads(loss_type, build, counts):
    """A model trained with another loss is a good start."""
    loss = build(loss_type, class_counts=counts)
    assert loss.load_state_dict({}, strict=False).missing_keys
    assert loss.class_counts.tolist() == counts


def test_counts_and_statistics_are_the_only_state(loss_type, build):
    loss, expected = build(loss_type), ['class_counts']
    if loss.statistics is not None:
        expected.append('statistics.sums')
    assert list(loss.state_dict()) == expected
    assert {k for k, _ in loss.named_buffers()} >= set(expected)
    assert not list(loss.parameters())


def test_auto_unfilled_says_what_to_do(counting_type, build, rows):
    loss = build(counting_type, class_counts='auto')
    with pytest.raises(
        RuntimeError, match=r"class_counts='auto' was not filled.*Runner"
    ):
        loss(*rows())


def test_mmdet_class_check_is_happy(loss_type, build):
    hook = pytest.importorskip('mmdet.engine').NumClassCheckHook()
    from types import SimpleNamespace as Namespace

    for auto in (False, True):
        loss = build(loss_type, **(dict(class_counts='auto') if auto else {}))
        model = nn.Module()
        model.loss_cls = loss
        runner = Namespace(
            model=model,
            logger=None,
            train_dataloader=Namespace(
                dataset=Namespace(metainfo=dict(classes=tuple('abcde')))
            ),
        )
        hook._check_head(runner, 'train')


def test_mmpretrain_class_check_is_happy(loss_type, build):
    hook = pytest.importorskip('mmpretrain.engine').ClassNumCheckHook()
    from types import SimpleNamespace as Namespace

    for auto in (False, True):
        loss = build(loss_type, **(dict(class_counts='auto') if auto else {}))
        model = nn.Module()
        model.loss_module = loss
        runner = Namespace(model=model, logger=None)
        hook._check_head(runner, Namespace(CLASSES=tuple('abcde')))
