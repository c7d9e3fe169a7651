"""No one-hot labels, no (P, C, C) tensors, no graph breaks."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from lt_losses_mm.kernels import Dropped, engine
from lt_losses_mm.kernels.engines import native


class Largest(TorchDispatchMode):
    """Remembers the largest tensors that operators return."""

    def __init__(self):
        super().__init__()
        self.elements = 0
        self.integers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_flatten(out)[0]:
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
                # A bool mask over the logits would be an (implicit) one-hot.
                if not x.is_floating_point():
                    self.integers = max(self.integers, x.numel())
        return out


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_maps_need_no_one_hot(loss_type, build, dtype):
    classes, pixels = 150, 2 * 16 * 16
    loss = build(loss_type, class_counts=range(1, classes + 1))
    logits = torch.randn(2, classes, 16, 16, dtype=dtype, requires_grad=True)
    labels = torch.randint(0, classes, (2, 16, 16))
    labels[:, 0] = 255
    with Largest() as largest:
        loss(logits, labels, torch.rand(2, 16, 16)).backward()
    assert largest.elements == logits.numel()
    draws = isinstance(loss.formula(classes, torch.float32), Dropped)
    if not draws or (engine() == 'native' and native.load()):
        # Elsewhere EQL's softmax form draws for a part of the logits, which
        # these all are.
        assert largest.integers <= pixels


def test_many_classes_need_no_square(loss_type, build):
    loss = build(loss_type, class_counts=range(1, 1204))
    columns = loss.get_cls_channels(1203)
    logits = torch.randn(8, columns, requires_grad=True)
    with Largest() as largest:
        loss(logits, torch.arange(1196, 1204), torch.ones(8)).backward()
    assert largest.elements == logits.numel()


@pytest.mark.usefixtures('whole_graphs')
def test_compiles_without_graph_breaks(loss_type, build, rows, observed):
    logits, labels = rows(n=4)
    torch._dynamo.reset()
    for size, args in (((), dict(avg_factor=3.0)), ((2, 3), {})):
        logits, labels = rows(n=4, size=size)
        loss, traced = build(loss_type), build(loss_type)
        weight = torch.rand(labels.shape)
        compiled = torch.compile(traced, backend='eager', fullgraph=True)
        torch.testing.assert_close(
            compiled(logits, labels, weight, **args),
            loss(logits, labels, weight, **args),
        )
        # One is computed by kernels, in fp32.
        torch.testing.assert_close(
            observed(traced), observed(loss), rtol=1e-5, atol=1e-6
        )
