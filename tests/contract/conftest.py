"""Every registered loss, found in the registry, is held to one contract.

A test that asks for ``loss_type`` runs once for each registered loss; with
``sigmoid_type`` or ``softmax_type`` once for each loss of that kind. A loss
is covered from the day it is registered. One that needs constructor arguments
of its own states them in ``ARGUMENTS``.
"""

import pytest
import torch

from lt_losses_mm.losses import LongTailLoss
from lt_losses_mm.registry import MODELS

ARGUMENTS = {}

COUNTS = (500.0, 60.0, 9.0, 1.0, 30.0)


def registered_losses():
    return {
        name: cls
        for name, cls in sorted(MODELS.module_dict.items())
        if issubclass(cls, LongTailLoss)
    }


def pytest_generate_tests(metafunc):
    losses = registered_losses()
    kinds = dict(
        loss_type=losses,
        sigmoid_type=[n for n, c in losses.items() if c.use_sigmoid],
        softmax_type=[n for n, c in losses.items() if not c.use_sigmoid],
    )
    for argument, names in kinds.items():
        if argument in metafunc.fixturenames:
            metafunc.parametrize(argument, list(names))
    if 'policy' in metafunc.fixturenames:
        # ``float`` stands for a background prior given as a number.
        pairs = [
            (name, 0.9 if policy is float else policy)
            for name, cls in losses.items()
            for policy in cls.background_policies
        ]
        metafunc.parametrize('policy', pairs, ids=lambda p: f'{p[0]}-{p[1]}')


@pytest.fixture
def counts():
    return list(COUNTS)


@pytest.fixture
def cfg():
    """Config of a registered loss, as a user would write it."""

    def make(name, **kwargs):
        return {
            'type': f'lt_losses_mm.{name}',
            'class_counts': list(COUNTS),
            **ARGUMENTS.get(name, {}),
            **kwargs,
        }

    return make


@pytest.fixture
def build(cfg):

    def make(name, **kwargs):
        return MODELS.build(cfg(name, **kwargs))

    return make


@pytest.fixture
def plain():
    """The unweighted row loss that a loss is at tau=0."""

    def rows(name, logits, labels):
        cls = registered_losses()[name]
        if not cls.use_sigmoid:
            return torch.nn.functional.cross_entropy(
                logits, labels, reduction='none'
            )
        if not labels.is_floating_point():
            labels = torch.nn.functional.one_hot(labels, logits.size(1) + 1)[
                ..., :-1
            ].movedim(-1, 1)
        return torch.nn.functional.binary_cross_entropy_with_logits(
            logits, labels.to(logits), reduction='none'
        ).sum(1)

    return rows


@pytest.fixture
def rows():
    """Logits and labels of a seeded batch; background is label C."""

    def make(n=12, columns=5, labels=5, dtype=torch.float32, seed=0, size=()):
        generator = torch.Generator().manual_seed(seed)
        logits = (
            torch.randn(n, columns, *size, generator=generator, dtype=dtype)
            * 3
        )
        return logits, torch.randint(
            0, labels, (n, *size), generator=generator
        )

    return make
