# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""bfloat16 in the forward pass of training alone."""

import torch
from mmengine.model import BaseModel
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn
from torch.testing import assert_close


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.seen = []

    def forward(self, inputs, mode='tensor'):
        out = self.layer(inputs)
        self.seen.append(out.dtype)
        return dict(loss=out.float().square().mean())


def wrapper_of(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return OPTIM_WRAPPERS.build(
        dict(type='lt_losses_mm.Bfloat16OptimWrapper', optimizer=optimizer)
    )


def test_the_step_is_that_of_autocast():
    torch.manual_seed(0)
    model = Model()
    inputs = torch.randn(16, 8)
    with torch.autocast('cpu', torch.bfloat16):
        loss = model(inputs)['loss']
    (gradient,) = torch.autograd.grad(loss, [model.layer.weight])
    expected = model.layer.weight - 0.1 * gradient
    model.train_step(dict(inputs=inputs), wrapper_of(model))
    assert model.seen == [torch.bfloat16] * 2
    assert model.layer.weight.dtype == torch.float32
    assert_close(model.layer.weight.data, expected.detach())


def test_testing_stays_in_float32():
    model = Model()
    model.train_step(dict(inputs=torch.randn(2, 8)), wrapper_of(model))
    model.val_step(dict(inputs=torch.randn(2, 8)))
    assert model.seen == [torch.bfloat16, torch.float32]
