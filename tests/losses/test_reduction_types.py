"""Divisors of any type, and rows that hold no numbers."""

import pytest
import torch

from lt_losses_mm.kernels import ENGINES, use_engine
from lt_losses_mm.losses import BalancedSoftmaxLoss, SeesawSoftmaxLoss


@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16, torch.float64])
@pytest.mark.parametrize('shape', [(), (1,)])
def test_divisor_in_half_precision(dtype, shape):
    """DETR-type heads of mmdet pass one in the type of the logits."""
    loss = BalancedSoftmaxLoss(class_counts=[5, 3, 1])
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    divisor = torch.full(shape, 37, dtype=dtype)
    torch.testing.assert_close(
        loss(logits, labels, avg_factor=divisor).view(()).float(),
        loss(logits, labels, avg_factor=37.0),
    )
    nothing = torch.full_like(labels, -100)
    found = loss(logits, nothing, avg_factor=torch.zeros(shape, dtype=dtype))
    assert (found == 0).all()


@pytest.mark.parametrize('engine', ENGINES)
def test_ignored_rows_may_hold_anything_beside_objectness(engine):
    loss = SeesawSoftmaxLoss(num_classes=3)
    loss.get_cls_channels(3)
    logits = torch.randn(4, 5)
    logits[1] = torch.nan
    logits.requires_grad_()
    with use_engine(engine):
        loss(logits, torch.tensor([0, -100, 3, 2])).backward()
    if engine != 'reference':
        assert logits.grad.isfinite().all()
        assert not logits.grad[1].any()
    assert logits.grad[[0, 2, 3]].isfinite().all()


def test_ensembles_of_torch_func():
    """Each model with counts of its own, which the memo cannot compare."""
    loss = BalancedSoftmaxLoss(class_counts=[5, 3, 1])
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    counts = torch.tensor([[5.0, 3, 1], [1, 1, 1]])

    def call(counts):
        state = dict(class_counts=counts)
        return torch.func.functional_call(loss, state, (logits, labels))

    found = torch.func.vmap(call)(counts)
    expected = [
        BalancedSoftmaxLoss(class_counts=c.tolist())(logits, labels)
        for c in counts
    ]
    torch.testing.assert_close(found, torch.stack(expected))
