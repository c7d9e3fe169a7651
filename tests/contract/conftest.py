"""Every loss of ``LOSSES`` is held to one contract.

:mod:`lt_losses_mm.testing` has what can be asked of a loss alone; here are
the hosts' heads, and what is true of the package's losses only. A test that
asks for ``loss_type`` runs once for each loss; ``sigmoid_type``,
``softmax_type``, ``counting_type`` (the formula reads class counts),
``running_type`` (it reads statistics), ``gradient_type`` (they are
accumulated gradients), ``soft_type`` and ``index_type`` (whether labels may
be soft) and ``tau_type`` narrow that down. ``policy`` is a pair of a loss and
one of its background policies, ``prior_policy`` those of priors of counts.
Nothing here names a loss: what is special about one stands in its class.

Losses with statistics are tested as they are in the middle of a training, see
:func:`lt_losses_mm.examples.midway`.
"""

from __future__ import annotations

import inspect

import pytest

from lt_losses_mm import examples
from lt_losses_mm.losses import LOSSES
from lt_losses_mm.registry import MODELS
from lt_losses_mm.statistics import GradientStatistics
from lt_losses_mm.statistics.running import statistics_modules

COUNTS = examples.COUNTS
CLASSES = {cls.__name__: cls for cls in LOSSES}
STATISTICS = {
    name: examples.Examples(cls).new().statistics
    for name, cls in CLASSES.items()
}


def has_tau(name):
    return 'tau' in inspect.signature(CLASSES[name]).parameters


def has_objectness(name):
    return 'objectness' in CLASSES[name].background_policies


def pytest_generate_tests(metafunc):
    kinds = dict(
        loss_type=lambda name: True,
        sigmoid_type=lambda name: CLASSES[name].use_sigmoid,
        softmax_type=lambda name: not CLASSES[name].use_sigmoid,
        counting_type=lambda name: CLASSES[name].uses_counts,
        running_type=lambda name: STATISTICS[name] is not None,
        gradient_type=lambda name: isinstance(
            STATISTICS[name], GradientStatistics
        ),
        soft_type=lambda name: CLASSES[name].takes_soft_labels,
        index_type=lambda name: not CLASSES[name].takes_soft_labels,
        tau_type=has_tau,
        # Of which tau alone decides whether they are their plain form.
        tau_alone_type=lambda name: (
            has_tau(name) and set(CLASSES[name].neutral) == {'tau'}
        ),
        softmax_with_objectness=lambda name: (
            not CLASSES[name].use_sigmoid and has_objectness(name)
        ),
        sigmoid_with_objectness=lambda name: (
            CLASSES[name].use_sigmoid and has_objectness(name)
        ),
    )
    for argument, belongs in kinds.items():
        if argument in metafunc.fixturenames:
            metafunc.parametrize(argument, filter(belongs, CLASSES))
    # ``float`` stands for a background prior given as a number.
    policies = [
        (name, 0.9 if policy is float else policy)
        for name, cls in CLASSES.items()
        for policy in cls.background_policies
    ]
    of_priors = [
        (name, policy)
        for name, policy in policies
        if has_tau(name) and CLASSES[name].uses_counts
    ]
    for argument, pairs in (('policy', policies), ('prior_policy', of_priors)):
        if argument in metafunc.fixturenames:
            metafunc.parametrize(
                argument, pairs, ids=lambda p: f'{p[0]}-{p[1]}'
            )
    if 'strength' in metafunc.fixturenames:
        pairs = [
            (name, strength)
            for name in CLASSES
            for strength in (
                [dict(tau=0.0), dict(tau=1.0), dict(tau=1.5)]
                if has_tau(name)
                else [{}]
            )
        ]
        metafunc.parametrize(
            'strength', pairs, ids=lambda p: f'{p[0]}-{p[1].get("tau")}'
        )


@pytest.fixture
def counts():
    return list(COUNTS)


@pytest.fixture
def loss_class():
    return CLASSES.__getitem__


@pytest.fixture
def strong():
    """Arguments of another strength than usual, where there is one."""
    return lambda name, tau: dict(tau=tau) if has_tau(name) else {}


@pytest.fixture
def one_softmax():
    """Arguments for heads with C + 1 columns whatever the loss is.

    There background has to be a class, where the loss would rather have it
    beside them.
    """

    def make(name):
        first = CLASSES[name].background_policies[0]
        if first == 'objectness' and not CLASSES[name].use_sigmoid:
            return dict(background='keep_odds')
        return {}

    return make


@pytest.fixture
def cfg():
    """Config of a loss, as a user would write it."""

    def make(name, **kwargs):
        cls = CLASSES[name]
        known = dict(num_classes=len(COUNTS))
        if cls.uses_counts:
            known = dict(class_counts=list(COUNTS))
        # Given counts, no loss needs the number of classes.
        elif 'class_counts' in kwargs:
            known = {}
        type_ = f'lt_losses_mm.{name}'
        return {'type': type_, **known, **cls.example, **kwargs}

    return make


@pytest.fixture
def neutral_cfg(cfg):
    """Config of a loss that is its plain form until it is trained."""
    return lambda name, **kwargs: cfg(
        name, **{**CLASSES[name].neutral, **kwargs}
    )


@pytest.fixture
def midway():
    return examples.midway


@pytest.fixture
def build(cfg):
    """A loss in the middle of a training."""
    return lambda name, **kwargs: examples.midway(
        MODELS.build(cfg(name, **kwargs))
    )


@pytest.fixture
def neutral(neutral_cfg):
    """A loss that is its plain form."""
    return lambda name, **kwargs: MODELS.build(neutral_cfg(name, **kwargs))


@pytest.fixture
def settings(cfg, strong):
    """Configs that differ in all that must not reach a prediction.

    The heads that are built of them go through ``midway``.
    """

    def make(name, **kwargs):
        strengths = [strong(name, tau) for tau in (0, 1, 3.0)]
        return [
            cfg(name, class_counts=list(counts), **strength, **kwargs)
            for counts in (COUNTS, COUNTS[::-1], [1.0] * len(COUNTS))
            for strength in (strengths if has_tau(name) else [{}])
        ]

    return make


@pytest.fixture
def observed():
    """What each loss in a module has observed since the last commit."""
    return lambda module: [
        dict(zip(statistics.names, statistics.pending.clone()))
        for _, statistics in statistics_modules(module)
    ]


@pytest.fixture
def plain():
    """The row loss of the plain form, from its formula."""
    return lambda name, *call: examples.plain_rows(CLASSES[name], *call)


@pytest.fixture
def rows():
    """Logits and labels of a seeded batch; background is label C."""
    return examples.make_rows
