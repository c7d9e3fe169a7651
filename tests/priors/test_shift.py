"""Shifts are derived: each has to be the Bayes-optimal one for its aim."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lt_losses_mm.priors.shift import class_prior, sigmoid_shift, softmax_shift

COUNTS = torch.tensor([70.0, 20.0, 9.0, 1.0])
PRIOR = (COUNTS / 100).double()


@pytest.fixture
def likelihood():
    """p(x | class) of 4 classes and background at 5 points x."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(5, 5, generator=generator, dtype=torch.float64) + 0.1


def posterior(likelihood, prior):
    joint = likelihood * prior
    return joint / joint.sum(1, keepdim=True)


def test_softmax_without_background_predicts_under_a_uniform_prior(likelihood):
    of_training = posterior(likelihood[:, :4], PRIOR)
    corrected = (of_training.log() - softmax_shift(COUNTS, 4)).softmax(1)
    torch.testing.assert_close(
        corrected, posterior(likelihood[:, :4], torch.full((4,), 0.25))
    )


def test_keep_odds_keeps_the_share_of_background(likelihood):
    share = 0.8
    of_training = posterior(
        likelihood, torch.cat([PRIOR * (1 - share), torch.tensor([share])])
    )
    corrected = (of_training.log() - softmax_shift(COUNTS, 5)).softmax(1)
    aim = torch.tensor([(1 - share) / 4] * 4 + [share])
    torch.testing.assert_close(corrected, posterior(likelihood, aim.double()))


def test_background_prior_leads_to_uniform_over_all(likelihood):
    share = 0.8
    of_training = posterior(
        likelihood, torch.cat([PRIOR * (1 - share), torch.tensor([share])])
    )
    shift = softmax_shift(COUNTS, 5, background=share)
    corrected = (of_training.log() - shift).softmax(1)
    torch.testing.assert_close(
        corrected, posterior(likelihood, torch.full((5,), 0.2))
    )


@pytest.mark.parametrize('share', [None, 0.8])
def test_sigmoid_moves_each_class_to_the_uniform_prior(likelihood, share):
    """Odds of a class against the rest, with the rest's own mixture fixed."""
    keep = 1 - (share or 0)
    prior = keep * PRIOR
    aim = 1 / 4 if share is None else 1 / 5
    background = 'keep_odds' if share is None else share
    ratio = likelihood[:, :4] / likelihood[:, 4:]
    of_training = (ratio * prior / (1 - prior)).log()
    corrected = of_training - sigmoid_shift(COUNTS, background)
    torch.testing.assert_close(corrected, (ratio * aim / (1 - aim)).log())


def test_both_families_agree_for_many_classes():
    counts = torch.rand(2000) + 0.01
    torch.testing.assert_close(
        sigmoid_shift(counts), softmax_shift(counts, 2000), rtol=0, atol=3e-3
    )


@pytest.mark.parametrize(
    'shift',
    [
        lambda c: softmax_shift(c, 6),
        lambda c: softmax_shift(c, 7),
        lambda c: softmax_shift(c, 7, 1 / 7),
        sigmoid_shift,
        lambda c: sigmoid_shift(c, 1 / 7),
    ],
)
def test_uniform_prior_shifts_nothing(shift):
    shifts = shift(torch.full((6,), 3.0))
    torch.testing.assert_close(shifts, torch.zeros_like(shifts))


def test_foreground_rows_is_the_published_logit():
    torch.testing.assert_close(
        sigmoid_shift(COUNTS, 'foreground_rows'), PRIOR.logit()
    )


def test_empty_classes_are_as_rare_as_the_rarest():
    torch.testing.assert_close(
        class_prior(torch.tensor([6.0, 0.0, 2.0])),
        torch.tensor([0.6, 0.2, 0.2], dtype=torch.float64),
    )


def test_single_class():
    assert softmax_shift(torch.tensor([5.0]), 1).item() == 0
    assert sigmoid_shift(torch.tensor([5.0])).item() == 0


counts_lists = st.lists(
    st.one_of(st.just(0.0), st.floats(1e-3, 1e9)), min_size=2, max_size=50
).filter(any)


@given(counts_lists, st.sampled_from([0.5, 2.0, 1024.0]))
def test_scale_of_counts_is_irrelevant(counts, scale):
    counts = torch.tensor(counts, dtype=torch.float64)
    for shift in (sigmoid_shift(counts), softmax_shift(counts, len(counts))):
        assert shift.isfinite().all()
    torch.testing.assert_close(
        sigmoid_shift(counts), sigmoid_shift(scale * counts)
    )
    torch.testing.assert_close(
        softmax_shift(counts, len(counts)),
        softmax_shift(scale * counts, len(counts)),
    )


@given(counts_lists, st.randoms())
def test_permuting_classes_permutes_shifts(counts, random):
    order = list(range(len(counts)))
    random.shuffle(order)
    counts = torch.tensor(counts, dtype=torch.float64)
    torch.testing.assert_close(
        sigmoid_shift(counts)[order],
        sigmoid_shift(counts[order]),
        rtol=0,
        atol=1e-3,
    )


def test_shift_of_a_dominating_class_is_finite():
    shift = sigmoid_shift(torch.tensor([1e12, 1.0, 1.0]))
    assert shift.isfinite().all()
    assert shift[1].item() == pytest.approx(
        math.log(1 / (1e12 + 1)) + math.log(2)
    )
