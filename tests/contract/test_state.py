"""Class counts as state: copies, checkpoints, devices, the hosts' checks."""

import copy
import pickle

import pytest
import torch
from mmengine.runner.checkpoint import load_state_dict
from torch import nn
from torch.testing import assert_close


@pytest.mark.parametrize('auto', [False, True])
def test_copies_compute_the_same(loss_type, build, rows, tmp_path, auto):
    logits, labels = rows()
    loss = build(loss_type, tau=0.7)
    if auto:
        counts, loss = (
            loss.class_counts,
            build(loss_type, tau=0.7, class_counts='auto'),
        )
        loss.set_class_counts(counts)
    torch.save(loss, tmp_path / 'loss.pth')
    for clone in (
        copy.deepcopy(loss),
        pickle.loads(pickle.dumps(loss)),
        torch.load(tmp_path / 'loss.pth', weights_only=False),
    ):
        assert_close(clone(logits, labels), loss(logits, labels))
        assert clone.num_classes == 5


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


def test_moving_to_another_device_takes_the_counts_along(loss_type, build):
    assert build(loss_type).to('meta').class_counts.device.type == 'meta'


def test_auto_takes_the_counts_of_the_checkpoint(loss_type, build, rows):
    trained = build(loss_type)
    loss = build(loss_type, class_counts='auto')
    assert not hasattr(loss, 'num_classes')
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
    loss_type, build, counts, other
):
    loss = build(loss_type)
    state = build(loss_type, class_counts=other).state_dict()
    loss.load_state_dict(state)
    assert loss.class_counts.tolist() == counts
    # The caller's dict is not ours to change.
    assert state['class_counts'].tolist() == other


@pytest.mark.parametrize('filled', [False, True])
def test_counts_of_another_number_of_classes(loss_type, build, filled):
    """Strict loading says what is wrong; fine-tuning goes on, as with fc."""
    loss = build(loss_type, class_counts='auto', num_classes=3)
    if filled:
        loss.set_class_counts([3, 2, 1])
    before = loss.class_counts.clone()
    state = build(loss_type).state_dict()
    with pytest.raises((RuntimeError, ValueError), match='num_classes=3.*5'):
        loss.load_state_dict(state)
    load_state_dict(loss, state, strict=False)
    assert_close(loss.class_counts, before)


def test_a_checkpoint_without_counts_loads(loss_type, build, counts):
    """A model trained with another loss is a good start."""
    loss = build(loss_type)
    assert loss.load_state_dict({}, strict=False).missing_keys
    assert loss.class_counts.tolist() == counts


def test_counts_are_the_only_state(loss_type, build):
    assert list(build(loss_type).state_dict()) == ['class_counts']
    assert not list(build(loss_type).parameters())


def test_auto_unfilled_says_what_to_do(loss_type, build, rows):
    loss = build(loss_type, class_counts='auto')
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
