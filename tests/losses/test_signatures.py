# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""What ``help(loss)`` shows, and how deep a loss is."""

from __future__ import annotations

import inspect
import re

import pytest
from torch import nn

from lt_losses_mm.losses import LOSSES, LongTailLoss, SigmoidLoss, SoftmaxLoss
from lt_losses_mm.losses.arguments import SHARED

BASES = (LongTailLoss, SigmoidLoss, SoftmaxLoss)
EVERY = pytest.mark.parametrize(
    'cls', LOSSES, ids=[cls.__name__ for cls in LOSSES]
)


def described(doc):
    """Names of the entries of a docstring's arguments, with their texts."""
    section = re.search(r'^Args:\n(.*?)(?=^\S|\Z)', doc, re.M | re.S)
    entries = re.split(r'^    (?=\w)', section[1], flags=re.M)[1:]
    return [
        (re.match(r'\w+', entry)[0], entry.partition(':')[2].strip())
        for entry in entries
    ]


@EVERY
def test_every_argument_is_in_the_signature(cls):
    parameters = inspect.signature(cls).parameters
    for parameter in parameters.values():
        assert parameter.kind is parameter.POSITIONAL_OR_KEYWORD, parameter
        assert parameter.annotation is not parameter.empty, parameter
        assert parameter.default is not parameter.empty, parameter
    # Nothing that its base takes is out of reach.
    base = cls.__mro__[1]
    assert set(inspect.signature(base).parameters) <= set(parameters)
    assert list(parameters)[:2] == ['num_classes', 'class_counts']


@EVERY
def test_a_shared_argument_has_the_default_of_the_base(cls):
    """``count_unit`` alone is that of a paper."""
    parameters = inspect.signature(cls).parameters
    for name, shared in inspect.signature(cls.__mro__[1]).parameters.items():
        if name != 'count_unit':
            assert parameters[name].default == shared.default, name


@EVERY
def test_every_argument_is_described_once(cls):
    parameters = inspect.signature(cls).parameters
    names = [name for name, _ in described(inspect.getdoc(cls))]
    assert sorted(names) == sorted(parameters)
    assert all(text for _, text in described(inspect.getdoc(cls)))


@EVERY
def test_descriptions_leave_the_docstring_as_it_was(cls):
    """Sections behind the arguments stay behind them, and examples whole."""
    doc = inspect.getdoc(cls)
    assert doc.count('\nArgs:\n') == 1
    assert doc.count('>>> ') > 0
    assert doc.index('\nArgs:\n') < doc.index('\nExample:\n')
    heads = re.findall(r'^\S.*:$', doc[doc.index('\nArgs:\n') :], re.M)
    assert heads == ['Args:', 'Example:']
    assert '\n\nExample:\n' in doc


@EVERY
def test_a_loss_is_shallow(cls):
    own = [
        base for base in cls.__mro__ if base.__module__.startswith('lt_losses')
    ]
    assert len(own) <= 3 and own[0] is cls and own[-1] is LongTailLoss
    assert cls.__mro__[len(own) :] == (nn.Module, object)


def test_shared_arguments_are_those_of_the_base():
    names = [name for name, _ in described('Args:' + SHARED)]
    assert sorted(names) == sorted(inspect.signature(LongTailLoss).parameters)


def test_the_list_is_complete():
    """A class with a formula, and no other, is a loss that can be named."""

    def leaves(cls):
        for child in cls.__subclasses__():
            if child.__module__.startswith('lt_losses_mm.'):
                yield from leaves(child)
                if not inspect.isabstract(child):
                    yield child

    assert set(LOSSES) == set(leaves(LongTailLoss))
    assert len(LOSSES) == len({cls.__name__ for cls in LOSSES})
    assert all(inspect.isabstract(base) for base in BASES)
    for base in BASES:
        with pytest.raises(TypeError, match='abstract'):
            base(num_classes=3)
