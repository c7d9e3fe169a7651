"""Every registered loss, found in the registry, is held to one contract.

A test that asks for ``loss_type`` runs once for each form of each registered
loss; ``sigmoid_type``, ``softmax_type``, ``counting_type`` (the formula reads
class counts), ``running_type`` (it reads statistics), ``gradient_type`` (they
are accumulated gradients), ``soft_type`` and ``index_type`` (whether labels
may be soft) and ``tau_type`` narrow that down. ``policy`` is a pair of a form
and one of its background policies, ``prior_policy`` those of priors of counts.
A loss is covered from the day it is registered. One that needs constructor
arguments of its own, or has a second form, states them in ``ARGUMENTS``; one
that is not plain cross-entropy where it corrects nothing states so in
``NEUTRAL`` and ``PLAIN``; one with statistics other than gradients in
``STATISTICS``; one whose gradient is by definition not the derivative of its
value in ``SMOOTH``.

Losses with statistics are tested as they are in the middle of a training:
with positives in proportion to the counts and gradient ratios from 0 to 1.5,
the rarer the class the lower.
"""

from __future__ import annotations

import copy
import itertools
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

from lt_losses_mm.losses import (
    GradientDrivenLoss,
    LongTailLoss,
    RunningLoss,
)
from lt_losses_mm.registry import MODELS

COUNTS = (500.0, 60.0, 9.0, 1.0, 30.0)

ARGUMENTS = {
    'EqualizationLoss': dict(threshold=50),
    # gamma: rare classes are left out for certain, hence reproducibly.
    'EqualizationLoss-softmax': dict(
        threshold=50, use_sigmoid=False, gamma=1.0
    ),
}

# What makes a loss its plain form; by default tau=0, or no statistics.
NEUTRAL = {
    'EqualizationLoss': dict(threshold=1),
    'EqualizationLoss-softmax': dict(threshold=1),
    'SeesawSoftmaxLoss': dict(p=0, q=0),
}

# By default those of gradients.
STATISTICS = {'SeesawSoftmaxLoss': ('pos_count',)}

# Without the factors that no gradient is to flow through.
SMOOTH = {'SeesawSoftmaxLoss': dict(q=0)}


def cross_entropy(logits, labels):
    return F.cross_entropy(logits, labels, reduction='none')


def binary_cross_entropy(logits, t):
    return F.binary_cross_entropy_with_logits(logits, t, reduction='none')


def focal(logits, t):
    p = logits.sigmoid()
    positive = -0.25 * (1 - p) ** 2 * F.logsigmoid(logits)
    negative = -0.75 * p**2 * F.logsigmoid(-logits)
    return t * positive + (1 - t) * negative


def quality_focal(logits, t):
    gap = (t - logits.sigmoid()).abs()
    return gap**2 * binary_cross_entropy(logits, t)


# The plain form; by default (binary) cross-entropy.
PLAIN = {
    'EqualizedFocalLoss': focal,
    'EqualizedQualityFocalLoss': quality_focal,
}


class Form(NamedTuple):
    """A registered loss, or one of its forms."""

    type: str
    cls: type
    arguments: dict
    use_sigmoid: bool
    has_tau: bool

    @property
    def has_objectness(self):
        return 'objectness' in self.cls.background_policies

    @property
    def statistics(self):
        if not issubclass(self.cls, RunningLoss):
            return ()
        return STATISTICS.get(self.type, ('pos_grad', 'neg_grad', 'pos_count'))

    @property
    def counts(self):
        """How the loss learns the number of classes."""
        if self.cls.uses_counts:
            return dict(class_counts=list(COUNTS))
        return dict(num_classes=len(COUNTS))


def forms():
    found = {}
    for type_, cls in sorted(MODELS.module_dict.items()):
        if not issubclass(cls, LongTailLoss):
            continue
        names = [n for n in ARGUMENTS if n.split('-')[0] == type_] or [type_]
        for name in names:
            arguments = ARGUMENTS.get(name, {})
            example = cls(num_classes=2, **arguments)
            found[name] = Form(
                type_,
                cls,
                arguments,
                example.use_sigmoid,
                hasattr(example, 'tau'),
            )
    return found


FORMS = forms()


def pytest_generate_tests(metafunc):
    kinds = dict(
        loss_type=lambda form: True,
        sigmoid_type=lambda form: form.use_sigmoid,
        softmax_type=lambda form: not form.use_sigmoid,
        counting_type=lambda form: form.cls.uses_counts,
        running_type=lambda form: issubclass(form.cls, RunningLoss),
        gradient_type=lambda form: issubclass(form.cls, GradientDrivenLoss),
        soft_type=lambda form: form.cls.takes_soft_labels,
        index_type=lambda form: not form.cls.takes_soft_labels,
        tau_type=lambda form: form.has_tau,
        softmax_with_objectness=lambda form: (
            not form.use_sigmoid and form.has_objectness
        ),
        sigmoid_with_objectness=lambda form: (
            form.use_sigmoid and form.has_objectness
        ),
    )
    for argument, belongs in kinds.items():
        if argument in metafunc.fixturenames:
            metafunc.parametrize(
                argument, [n for n, form in FORMS.items() if belongs(form)]
            )
    # ``float`` stands for a background prior given as a number.
    policies = [
        (name, 0.9 if policy is float else policy)
        for name, form in FORMS.items()
        for policy in form.cls.background_policies
    ]
    of_priors = [
        (name, policy)
        for name, policy in policies
        if FORMS[name].has_tau and FORMS[name].cls.uses_counts
    ]
    for argument, pairs in (('policy', policies), ('prior_policy', of_priors)):
        if argument in metafunc.fixturenames:
            metafunc.parametrize(
                argument, pairs, ids=lambda p: f'{p[0]}-{p[1]}'
            )
    if 'strength' in metafunc.fixturenames:
        pairs = [
            (name, strength)
            for name, form in FORMS.items()
            for strength in (
                [dict(tau=0.0), dict(tau=1.0), dict(tau=1.5)]
                if form.has_tau
                else [{}]
            )
        ]
        metafunc.parametrize(
            'strength', pairs, ids=lambda p: f'{p[0]}-{p[1].get("tau")}'
        )


def set_midway(module, counts=None):
    """Statistics of a training halfway, as the counts would bring them about.

    By default the counts are those that a loss was given for its plots, or
    ``COUNTS``. Losses that do not know their classes yet have no statistics.
    """
    for loss in module.modules():
        if not isinstance(loss, RunningLoss):
            continue
        classes = loss.pos_count.numel()
        if not classes:
            continue
        n = counts
        if n is None:
            n = loss.class_counts.tolist()
            n = n or list(itertools.islice(itertools.cycle(COUNTS), classes))
        n = torch.tensor(n, dtype=torch.float64)
        loss.pos_count.copy_(2 * n)
        if isinstance(loss, GradientDrivenLoss):
            ratio = 1.5 * n.log1p() / n.max().log1p()
            loss.pos_grad.copy_(n)
            loss.neg_grad.copy_(torch.where(n > 0, n / ratio, 1.0))
    return module


def of_losses(module):
    """What the losses of a module have observed since the last commit."""
    found = []
    for loss in module.modules():
        if isinstance(loss, RunningLoss):
            clone = copy.deepcopy(loss)
            for statistic in clone.statistics.values():
                statistic.zero_()
            clone.commit()
            found.append(clone.statistics)
    return found


@pytest.fixture
def counts():
    return list(COUNTS)


@pytest.fixture
def form():
    return FORMS.__getitem__


@pytest.fixture
def one_softmax():
    """Arguments for heads with C + 1 columns whatever the loss is.

    There background has to be a class, where the loss would rather have it
    beside them.
    """

    def make(name):
        form = FORMS[name]
        if form.cls.background_policies[0] == 'objectness' and (
            not form.use_sigmoid
        ):
            return dict(background='keep_odds')
        return {}

    return make


@pytest.fixture
def smooth():
    """Arguments with which the gradient is the derivative."""
    return lambda name: SMOOTH.get(name, {})


@pytest.fixture
def cfg():
    """Config of a registered loss, as a user would write it."""

    def make(name, **kwargs):
        form = FORMS[name]
        known = form.counts
        # Given counts, no loss needs the number of classes.
        if 'class_counts' in kwargs and not form.cls.uses_counts:
            known = {}
        return {
            'type': f'lt_losses_mm.{form.type}',
            **known,
            **form.arguments,
            **kwargs,
        }

    return make


@pytest.fixture
def neutral_cfg(cfg):
    """Config of a loss that is its plain form until it is trained."""

    def make(name, **kwargs):
        nothing = dict(tau=0) if FORMS[name].has_tau else {}
        return cfg(name, **{**NEUTRAL.get(name, nothing), **kwargs})

    return make


@pytest.fixture
def midway():
    return set_midway


@pytest.fixture
def build(cfg):
    """A loss in the middle of a training."""

    def make(name, **kwargs):
        return set_midway(MODELS.build(cfg(name, **kwargs)))

    return make


@pytest.fixture
def neutral(neutral_cfg):
    """A loss that is its plain form."""

    def make(name, **kwargs):
        return MODELS.build(neutral_cfg(name, **kwargs))

    return make


@pytest.fixture
def with_columns(build):
    """A loss for each number of logit columns that it serves."""

    def make(name, **kwargs):
        found = [
            (build(name, **kwargs), columns)
            for columns in build(name, **kwargs).columns(len(COUNTS))
        ]
        in_roi_head = build(name, **kwargs)
        columns = in_roi_head.get_cls_channels(len(COUNTS))
        return [*found, (in_roi_head, columns)]

    return make


@pytest.fixture
def settings(cfg):
    """Configs that differ in all that must not reach a prediction.

    The heads that are built of them go through ``midway``.
    """

    def make(name, **kwargs):
        strengths = [{}]
        if FORMS[name].has_tau:
            strengths = [dict(tau=tau) for tau in (0, 1, 3.0)]
        return [
            cfg(name, class_counts=list(counts), **strength, **kwargs)
            for counts in (COUNTS, COUNTS[::-1], [1.0] * len(COUNTS))
            for strength in strengths
        ]

    return make


@pytest.fixture
def observed():
    """Pending sums of each loss with statistics in a module."""
    return of_losses


def plain_function(name):
    default = (
        binary_cross_entropy if FORMS[name].use_sigmoid else cross_entropy
    )
    return PLAIN.get(name, default)


@pytest.fixture
def plain_form():
    """Name of the plain form of a loss."""
    return lambda name: plain_function(name).__name__


@pytest.fixture
def plain():
    """The row loss of the plain form, from its formula."""

    def rows(name, logits, labels):
        function = plain_function(name)
        if function is cross_entropy:
            return cross_entropy(logits, labels)
        if not labels.is_floating_point():
            labels = F.one_hot(labels, logits.size(1) + 1)[..., :-1]
            labels = labels.movedim(-1, 1)
        return function(logits, labels.to(logits)).sum(1)

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
