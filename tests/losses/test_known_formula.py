"""The shift of class counts is computed once, and again when it changes."""

import copy

import torch

from lt_losses_mm.losses import BalancedSoftmaxLoss


def value(loss):
    return loss(torch.zeros(1, 2), torch.tensor([1])).item()


def fresh(counts, **kwargs):
    return value(BalancedSoftmaxLoss(class_counts=counts, **kwargs))


def test_the_shift_follows_its_sources():
    loss = BalancedSoftmaxLoss(class_counts=[9, 1])
    assert value(loss) == fresh([9, 1])
    loss.set_class_counts([3, 1])
    assert value(loss) == fresh([3, 1])
    loss.class_counts[0] = 7  # in place, as loading a checkpoint does
    assert value(loss) == fresh([7, 1])
    loss.tau = 0.5
    assert value(loss) == fresh([7, 1], tau=0.5)
    other = copy.deepcopy(loss)
    other.set_class_counts([1, 1])
    assert value(other) == fresh([1, 1], tau=0.5)
    assert value(loss) == fresh([7, 1], tau=0.5)
    auto = BalancedSoftmaxLoss(class_counts='auto')
    auto.load_state_dict(loss.state_dict())
    assert value(auto) == fresh([7, 1])
    assert value(loss.double().half()) == fresh([7, 1], tau=0.5)
    # Another number of columns: background, which is not shifted.
    logits, labels = torch.zeros(1, 3), torch.tensor([2])
    expected = BalancedSoftmaxLoss(class_counts=[7, 1], tau=0.5)
    assert torch.equal(loss(logits, labels), expected(logits, labels))
