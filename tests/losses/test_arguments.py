# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Checks of constructor arguments, and what is said of them."""

from __future__ import annotations

import inspect
import math
import re

import numpy as np
import pytest
import torch

from lt_losses_mm.losses import BalancedSigmoidLoss, BalancedSoftmaxLoss
from lt_losses_mm.losses import arguments as check


# ------------------------------------------------------------------- number
@pytest.mark.parametrize(
    ('value', 'limits'),
    [
        (0, dict(low=0)),
        (1e9, dict(low=0)),
        (0.5, dict(low=0, high=1)),
        (1, dict(above=0, high=1)),
        (1e-300, dict(above=0)),
        (-3, {}),
    ],
)
def test_numbers_in_range(value, limits):
    found = check.number('Loss', 'key', value, **limits)
    assert found == value and type(found) is float


@pytest.mark.parametrize(
    ('value', 'limits', 'expected'),
    [
        (-1e-9, dict(low=0), 'a finite number >= 0'),
        (1.5, dict(low=0, high=1), r'a number in \[0, 1\]'),
        (0, dict(above=0, high=1), r'a number in \(0, 1\]'),
        (0, dict(above=0), 'a number > 0'),
        (math.inf, {}, 'a finite number'),
        (math.nan, dict(low=0, high=1), r'a number in \[0, 1\]'),
        ('1', {}, 'a finite number'),
        (True, {}, 'a finite number'),
        (None, dict(above=0), 'a number > 0'),
    ],
)
def test_what_is_no_number_in_range(value, limits, expected):
    with pytest.raises(
        ValueError, match=f'^Loss: key=.*, expected {expected}'
    ):
        check.number('Loss', 'key', value, **limits)


# ---------------------------------------------------------------- passed_on
class Base:
    def __init__(self, first=1, second=2):
        pass


def test_passed_on_is_what_the_base_takes():
    values = dict(self=None, second=5, third=6, __class__=Base)
    assert check.passed_on(Base, values) == dict(second=5)
    assert check.passed_on(Base, dict(values, first=None)) == dict(
        first=None, second=5
    )


# ------------------------------------------------------- describe_arguments
def documented(doc, signature, *bases):
    cls = type('Told', bases, dict(__doc__=doc, __init__=signature))
    check.describe_arguments(cls)
    return cls.__doc__


class Parent:
    """What it is.

    Args:
        known (int): Said by
            the parent.
        loss_weight (float): Of the parent.
    """


def test_descriptions_of_bases_are_added():
    def signature(self, own=0, known=0, unsaid=0, loss_weight=0, reduction=0):
        pass

    doc = documented(
        """First line.

    Args:
        own (str, optional): Of the class,
            in two lines: one and two.

    Example:
        >>> 1
        1
    """,
        signature,
        Parent,
    )
    lines = doc.splitlines()
    assert lines[:6] == [
        'First line.',
        '',
        'Args:',
        '    own (str, optional): Of the class,',
        '        in two lines: one and two.',
        '    known (int): Said by',
    ]
    assert lines[6] == '        the parent.'
    # The nearest class that says something of an argument is right.
    assert doc.count('loss_weight') == 1
    assert '    loss_weight (float): Of the parent.\n' in doc
    assert "    reduction (str): ``'mean'``, ``'sum'`` or ``'none'``." in doc
    assert 'unsaid' not in doc
    assert doc.endswith('\n\nExample:\n    >>> 1\n    1')


def test_a_class_may_have_nothing_to_add():
    def signature(self, known=0):
        pass

    doc = documented('First line.', signature, Parent)
    assert doc == (
        'First line.\n\nArgs:\n    known (int): Said by\n        the parent.\n'
    )


def test_a_complete_docstring_stays_as_it_is():
    def signature(self, own=0):
        pass

    told = 'First.\n\nArgs:\n    own (int): Said.\n\nExample:\n    >>> 1\n'
    assert documented(told, signature, Parent) == told
    # What a class says itself is not said again by its base.
    doc = documented(
        'First.\n\nArgs:\n    known (int): Own words.\n',
        lambda self, known=0: None,
        Parent,
    )
    assert 'Said by' not in doc


def test_a_loss_of_ones_own_is_described_too():
    class Doubled(BalancedSoftmaxLoss):
        """Twice as much.

        Args:
            factor (float): How much.
        """

        def __init__(self, factor=2.0, num_classes=None, tau=1.0):
            super().__init__(num_classes=num_classes, tau=tau)

    doc = inspect.getdoc(Doubled)
    for name in ('factor (float)', 'num_classes (int', 'tau (float)'):
        assert doc.count(f'\n    {name}') == 1
    assert 'class_counts (' not in doc


# ------------------------------------------------------------------- shared
@pytest.mark.parametrize('value', [0, -1, 1.5, '3'])
def test_num_classes_is_a_number_of_classes(value):
    with pytest.raises(ValueError, match=r'num_classes=.*an int >= 1'):
        BalancedSoftmaxLoss(num_classes=value)


def test_reduction_is_one_of_three():
    with pytest.raises(ValueError, match=r"reduction='avg'.*'none', 'mean'"):
        BalancedSoftmaxLoss(num_classes=3, reduction='avg')


def test_use_sigmoid_has_to_agree():
    BalancedSoftmaxLoss(num_classes=3, use_sigmoid=False)
    BalancedSigmoidLoss(num_classes=3, use_sigmoid=True)
    with pytest.raises(ValueError, match='expected False.*BalancedSigmoid'):
        BalancedSoftmaxLoss(num_classes=3, use_sigmoid=True)
    with pytest.raises(ValueError, match='expected True.*BalancedSoftmax'):
        BalancedSigmoidLoss(num_classes=3, use_sigmoid=False)


def test_sigmoid_losses_have_no_class_weight():
    with pytest.raises(ValueError, match=r'class_weight=\[1, 2\].*remove it'):
        BalancedSigmoidLoss(num_classes=2, class_weight=[1, 2])


def test_same_classes():
    loss = BalancedSoftmaxLoss()
    check.same_classes(loss, 3, 3, 'the head')
    with pytest.raises(
        ValueError, match='Loss: num_classes=3, expected 4, as the head says'
    ):
        check.same_classes(loss, 3, 4, 'the head')
    with pytest.raises(
        ValueError, match=r"class_counts='2 counts', expected 4, as many"
    ):
        BalancedSoftmaxLoss(class_counts=[1, 2]).set_num_classes(4, 'a head')


# ------------------------------------------------------------- class_weight
@pytest.mark.parametrize(
    'values', [[1, 0], (1.0, 0.0), np.array([1, 0]), torch.tensor([1.0, 0])]
)
def test_class_weight_of_any_sequence(values):
    weight = check.class_weight('Loss', values)
    assert weight.dtype == torch.float32 and weight.tolist() == [1, 0]
    assert check.class_weight('Loss', None) is None


@pytest.mark.parametrize(
    'values', ['weights.json', [1, -1], [math.nan, 1], [[1, 2]], 3.0]
)
def test_class_weight_that_is_none(values):
    with pytest.raises(ValueError, match='Loss: class_weight=.*>= 0'):
        check.class_weight('Loss', values)


# ---------------------------------------------------------------- loss_name
def test_loss_name():
    name = check.loss_name
    assert name('BalancedSoftmaxLoss', None) == 'loss_balanced_softmax'
    assert name('SigmoidEqualizationLoss', 'loss_x') == 'loss_x'
    for wrong in ('aux', 3, ''):
        with pytest.raises(ValueError, match="loss_name=.*'loss_'"):
            name('BalancedSoftmaxLoss', wrong)


# ------------------------------------------------------------- unknown keys
@pytest.mark.parametrize(
    ('keys', 'expected'),
    [
        (
            ['tua'],
            'keys .tua., .*tau, if tua is a misspelling; .*_delete_=True',
        ),
        (
            ['label_smooth_val', 'beta', 'loss_wieght'],
            "unknown keys 'label_smooth_val', 'beta', 'loss_wieght', .*"
            'loss_weight, if loss_wieght is a misspelling',
        ),
        ([f'k{i}' for i in range(40)], "'k9' and 30 more, "),
        (['use_mask'], r"leave loss_mask as the host's own\.$"),
        (['_delete_'], r'a list of heads: remove it\.$'),
    ],
)
def test_unknown_keys_are_named_together(keys, expected):
    with pytest.raises(TypeError, match='^BalancedSoftmaxLoss: ') as caught:
        BalancedSoftmaxLoss(**dict.fromkeys(keys, 1))
    assert re.search(expected, str(caught.value))
    assert 'expected its own (tau=1.0)' in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_loss_of_ones_own_names_its_unknown_keys():
    class Mine(BalancedSoftmaxLoss):
        """Mine."""

        def __init__(self, power=1.0, **kwargs):
            super().__init__(**kwargs)

    assert Mine(power=2.0, tau=0.5).tau == 0.5
    with pytest.raises(TypeError, match="^Mine: unknown keys 'pow'"):
        Mine(pow=2.0)


def test_too_many_positions_stay_an_error():
    with pytest.raises(TypeError, match='positional'):
        BalancedSoftmaxLoss(*range(99))
