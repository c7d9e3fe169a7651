# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Policies of background: columns, scores and shift."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from lt_losses_mm.losses import BalancedSigmoidLoss
from lt_losses_mm.losses.background import (
    SigmoidBackground,
    SoftmaxBackground,
    read_background,
)
from lt_losses_mm.priors.shift import sigmoid_shift, softmax_shift

C = 3
COUNTS = torch.tensor([90.0, 9.0, 1.0])


def policy(family, key, default=False, roi=False):
    found = family(key, default)
    found.in_roi_head = roi
    return found


# ------------------------------------------------------------------ columns
@pytest.mark.parametrize(
    ('family', 'key', 'default', 'roi', 'columns'),
    [
        (SoftmaxBackground, 'keep_odds', True, False, (C + 1, C)),
        (SoftmaxBackground, 'keep_odds', True, True, (C + 1, C)),
        (SoftmaxBackground, 0.9, False, True, (C + 1, C)),
        # By default the two further outputs are a matter of RoI heads.
        (SoftmaxBackground, 'objectness', True, False, (C,)),
        (SoftmaxBackground, 'objectness', True, True, (C + 2, C)),
        (SoftmaxBackground, 'objectness', False, False, (C + 2, C)),
        (SoftmaxBackground, 'objectness', False, True, (C + 2, C)),
        (SigmoidBackground, 'negatives', True, True, (C,)),
        (SigmoidBackground, 'negatives', False, False, (C,)),
        (SigmoidBackground, 'objectness', True, False, (C,)),
        (SigmoidBackground, 'objectness', True, True, (C + 1, C)),
        (SigmoidBackground, 'objectness', False, False, (C + 1,)),
        (SigmoidBackground, 'objectness', False, True, (C + 1,)),
    ],
)
def test_columns(family, key, default, roi, columns):
    assert policy(family, key, default, roi).columns(C) == columns


# ------------------------------------------------------------------- scores
def test_softmax_scores():
    logits = torch.randn(5, C + 1)
    classes, background = policy(SoftmaxBackground, 'keep_odds').scores(logits)
    assert_close(torch.cat([classes, background], 1), logits.softmax(1))

    logits = torch.randn(5, C + 2)
    classes, background = policy(SoftmaxBackground, 'objectness').scores(
        logits
    )
    is_object = logits[:, C].sub(logits[:, C + 1]).sigmoid()
    assert_close(classes, logits[:, :C].softmax(1) * is_object[:, None])
    assert_close(background[:, 0], 1 - is_object)
    # Each row is a distribution.
    assert_close(classes.sum(1) + background[:, 0], torch.ones(5))


def test_sigmoid_scores():
    logits = torch.randn(5, C)
    classes, background = policy(SigmoidBackground, 'negatives').scores(logits)
    assert_close(classes, logits.sigmoid())
    assert background.shape == (5, 1) and not background.any()

    logits = torch.randn(5, C + 1)
    classes, background = policy(SigmoidBackground, 'objectness').scores(
        logits
    )
    p = logits.sigmoid()
    assert_close(classes, p[:, :C] * (1 - p[:, C:]))
    assert_close(background, p[:, C:])


# -------------------------------------------------------------------- shift
@pytest.mark.parametrize('key', ['keep_odds', 0.9])
@pytest.mark.parametrize('columns', [C, C + 1])
def test_softmax_shift_is_that_of_the_prior(key, columns):
    found = policy(SoftmaxBackground, key).shift(COUNTS, columns)
    assert_close(found, softmax_shift(COUNTS, columns, key))
    assert found.shape == (columns,)
    # Classes stand to each other as their counts do.
    assert (found[0] - found[2]).exp().item() == pytest.approx(90)


def test_classes_beside_objectness_are_shifted_alone():
    found = policy(SoftmaxBackground, 'objectness').shift(COUNTS, C + 2)
    assert found.shape == (C,)
    assert_close(found, softmax_shift(COUNTS, C, 'objectness'))


@pytest.mark.parametrize('key', ['negatives', 'foreground_rows', 'objectness'])
def test_sigmoid_shift_leaves_background_alone(key):
    background = policy(SigmoidBackground, key)
    found = background.shift(COUNTS, C)
    assert_close(found, sigmoid_shift(COUNTS, key))
    wide = background.shift(COUNTS, C + 1)
    assert_close(wide, torch.cat([found, torch.zeros(1)]))


@pytest.mark.parametrize('key', ['keep_odds', 'foreground_rows'])
def test_which_rows_of_a_balanced_sigmoid_are_shifted(key):
    """All, or those with an object only."""
    logits, labels = torch.randn(6, C), torch.tensor([0, C, 1, C, 2, C])
    loss = BalancedSigmoidLoss(
        class_counts=COUNTS, background=key, reduction='none'
    )
    shift = sigmoid_shift(COUNTS, key).float().expand(6, C).clone()
    if key == 'foreground_rows':
        shift[labels == C] = 0
    expected = F.binary_cross_entropy_with_logits(
        logits + shift,
        F.one_hot(labels, C + 1)[:, :C].float(),
        reduction='none',
    )
    assert_close(loss(logits, labels), expected.sum(1))


def test_pad():
    background = policy(SigmoidBackground, 'objectness')
    assert background.pad(COUNTS, C, 1.0) is COUNTS
    assert background.pad(COUNTS, C + 1, 5.0).tolist() == [90, 9, 1, 5]


# ---------------------------------------------------------- read_background
POLICIES = ('keep_odds', 'objectness', float)


def read(key, policies=POLICIES):
    return read_background('Loss', SoftmaxBackground, policies, key)


def test_the_first_policy_is_the_default():
    for key in (None, 'keep_odds'):
        found = read(key)
        assert (found.key, found.default) == ('keep_odds', True)
    assert (read('objectness').key, read('objectness').default) == (
        'objectness',
        False,
    )
    assert (read(0.25).key, read(0.25).default) == (0.25, False)
    assert isinstance(read(None), SoftmaxBackground)


@pytest.mark.parametrize('key', ['none', '', 0.0, 1.0, -0.5, 1, True, float])
def test_unknown_policies(key):
    with pytest.raises(ValueError) as error:
        read(key)
    message = str(error.value)
    assert message.startswith('Loss: background=')
    assert "one of ['keep_odds', 'objectness'], or the prior" in message


def test_a_number_is_no_policy_of_losses_without_priors():
    with pytest.raises(ValueError, match=r"one of \['negatives'\]$"):
        read(0.5, ('negatives',))
