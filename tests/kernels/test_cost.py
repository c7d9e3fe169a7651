"""What a call costs, in operators and in memory rather than in seconds.

The numbers are those of today with some room: a change that needs more has to
say why. Seconds are measured by ``benchmarks/speed.py``.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from lt_losses_mm.kernels.engines import native
from lt_losses_mm.losses import (
    BalancedSigmoidLoss,
    BalancedSoftmaxLoss,
    EqualizationSoftmaxLoss,
    EqualizedFocalLoss,
    SeesawSoftmaxLoss,
    SigmoidEqualizationLoss,
    SoftmaxEqualizationLoss,
)

ROWS, COLUMNS = 1024, 2048
COUNTS = range(1, COLUMNS + 1)
# Operators of a forward and a backward call; the native engine.
CASES = [
    (BalancedSoftmaxLoss, dict(class_counts=COUNTS), 21),
    (SoftmaxEqualizationLoss, dict(num_classes=COLUMNS), 25),
    (
        SeesawSoftmaxLoss,
        dict(num_classes=COLUMNS, background='keep_odds'),
        25,
    ),
    (
        EqualizationSoftmaxLoss,
        dict(class_counts=COUNTS, threshold=500),
        12,
    ),
    (BalancedSigmoidLoss, dict(class_counts=COUNTS), 24),
    (
        SigmoidEqualizationLoss,
        dict(num_classes=COLUMNS, background='negatives'),
        27,
    ),
    (EqualizedFocalLoss, dict(num_classes=COLUMNS), 28),
    (
        SeesawSoftmaxLoss,
        dict(num_classes=COLUMNS - 2, background='objectness'),
        38,
    ),
]


class Cost(TorchDispatchMode):
    """Operators called, and bytes of the new tensors they return."""

    def __init__(self):
        super().__init__()
        self.operators = 0
        self.bytes = 0
        self.large = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {
            x.data_ptr() for x in tree_flatten((args, kwargs))[0] if tensor(x)
        }
        out = func(*args, **(kwargs or {}))
        # torch 2.1 also slices the dimensions that are taken whole.
        self.operators += not (
            func is torch.ops.aten.slice.Tensor and out.shape == args[0].shape
        )
        for x in tree_flatten(out)[0]:
            if tensor(x) and x.data_ptr() not in given:
                size = x.numel() * x.element_size()
                self.bytes += size
                self.large += size >= ROWS * COLUMNS * 2
        return out


def tensor(x):
    return isinstance(x, torch.Tensor)


def cost(engine, cls, kwargs, **more):
    loss = cls(**kwargs, **more, engine=engine)
    if loss.background.key == 'objectness':
        loss.get_cls_channels(COLUMNS - 2)  # as a RoI head
    leaf = torch.randn(ROWS, COLUMNS, requires_grad=True)
    logits = leaf * 1
    labels = torch.arange(ROWS)
    with Cost() as counted:
        value = loss(logits, labels)
        torch.autograd.grad(value, logits)
    return counted


@pytest.mark.skipif(native.load() is None, reason='no C++ compiler')
@pytest.mark.parametrize(
    ('cls', 'kwargs', 'operators'),
    CASES,
    ids=lambda x: getattr(x, '__name__', ''),
)
def test_native(cls, kwargs, operators):
    counted = cost('native', cls, kwargs)
    # The gradient, and vectors.
    assert counted.large == 1
    logits = ROWS * COLUMNS * 4
    assert counted.bytes < 1.25 * logits
    assert counted.operators <= operators
    counted = cost('native', cls, kwargs, overwrite_logits=True)
    assert counted.large == 0
    assert counted.bytes < 0.25 * logits


@pytest.mark.parametrize(
    ('cls', 'kwargs', 'operators'),
    CASES,
    ids=lambda x: getattr(x, '__name__', ''),
)
def test_eager_allocates_no_second_tensor_of_that_size(cls, kwargs, operators):
    assert cost('eager', cls, kwargs).large == 1
    assert cost('eager', cls, kwargs, overwrite_logits=True).large == 0


def test_operators_do_not_grow_with_classes(fast):
    found = []
    for classes in (100, 1000):
        loss = SigmoidEqualizationLoss(
            num_classes=classes, background='negatives', engine=fast
        )
        logits = torch.randn(8, classes, requires_grad=True)
        with Cost() as counted:
            loss(logits, torch.arange(8)).backward()
        found.append(counted.operators)
    assert found[0] == found[1]
