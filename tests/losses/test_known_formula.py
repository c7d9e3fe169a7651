"""A formula is made once, and again when what it is made of changes."""

import copy

import pytest
import torch

from lt_losses_mm.losses import (
    BalancedSoftmaxLoss,
    EqualizationSoftmaxLoss,
    SeesawSoftmaxLoss,
    SigmoidEqualizationLoss,
    SoftmaxEqualizationLoss,
)


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


@pytest.mark.parametrize(
    'cls',
    [SoftmaxEqualizationLoss, SigmoidEqualizationLoss, SeesawSoftmaxLoss],
)
def test_the_formula_follows_statistics(cls):
    loss, other = cls(num_classes=2), cls(num_classes=2)
    logits, labels = torch.zeros(4, 2), torch.tensor([0, 0, 0, 1])
    other(logits, labels)
    other.statistics.commit()
    seen = [loss.known_formula(logits)]

    def is_new():
        seen.append(loss.known_formula(logits))
        return seen[-1] is not seen[-2]

    loss(logits, labels)
    assert not is_new()  # nothing is committed
    for change in (
        loss.statistics.commit,
        loss.statistics.reset,
        lambda: loss.load_state_dict(other.state_dict()),
    ):
        change()
        assert is_new() and not is_new()
    loss.half()  # which leaves statistics as they are
    torch.testing.assert_close(
        loss(logits, labels), other(logits, labels), rtol=0, atol=0
    )


def test_there_is_one_formula_for_each_kind_of_logits():
    loss = BalancedSoftmaxLoss(class_counts=[9, 1])
    kinds = [
        torch.zeros(1, columns, dtype=dtype)
        for columns in (2, 3)
        for dtype in (torch.float32, torch.float64)
    ]
    formulas = [loss.known_formula(logits) for logits in kinds]
    assert len(set(map(id, formulas))) == 4
    for logits, formula in zip(kinds, formulas):
        assert loss.known_formula(logits) is formula
        assert formula.shift.shape == logits.shape[1:]
        assert formula.shift.dtype == logits.dtype
    # Half precision is computed in fp32.
    assert loss.known_formula(torch.zeros(1, 2).half()) is formulas[0]


def test_a_random_formula_is_never_kept():
    loss = EqualizationSoftmaxLoss(class_counts=[500, 1])
    logits = torch.zeros(1, 2)
    assert loss.known_formula(logits) is not loss.known_formula(logits)


def test_the_formula_follows_every_argument():
    loss = SigmoidEqualizationLoss(num_classes=2)
    logits, labels = torch.zeros(4, 2), torch.tensor([0, 0, 0, 1])
    loss(logits, labels)
    loss.statistics.commit()
    for name, changed in (('boost', 0.5), ('steepness', 3.0), ('mu', 0.1)):
        before = loss(logits, labels)
        setattr(loss, name, changed)
        assert not torch.equal(loss(logits, labels), before), name


def test_a_look_in_inference_mode_leaves_nothing():
    loss = SigmoidEqualizationLoss(num_classes=2)
    logits, soft = torch.zeros(4, 2), torch.full((4, 2), 0.5)
    with torch.inference_mode():
        loss(logits, soft)
    loss(logits.requires_grad_(), soft).backward()
    with torch.inference_mode():
        built = BalancedSoftmaxLoss(class_counts=[9, 1])
    assert value(built) == fresh([9, 1])


def test_a_copy_makes_its_own():
    loss = BalancedSoftmaxLoss(class_counts=[9, 1])
    loss.class_counts[0] = 7
    value(loss)
    other = copy.deepcopy(loss)
    other.class_counts[0] = 3
    assert value(other) == fresh([3, 1])
