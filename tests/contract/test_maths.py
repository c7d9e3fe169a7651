"""What every loss computes: identities, derivatives, precision, symmetries."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from lt_losses_mm.registry import MODELS
from lt_losses_mm.statistics import LabelCounts


def test_tau_zero_is_the_plain_loss(tau_alone_type, build, plain, rows):
    """Whatever the counts or the statistics are."""
    logits, labels = rows(dtype=torch.float64)
    loss = build(tau_alone_type, tau=0)
    expected = plain(tau_alone_type, logits, labels).mean()
    assert_close(loss(logits, labels), expected)


def test_a_loss_is_more_than_its_plain_form(loss_type, build, neutral, rows):
    """Or the tests here would test nothing."""
    assert not torch.allclose(
        build(loss_type)(*rows()), neutral(loss_type)(*rows()), rtol=1e-2
    )


def test_uniform_counts_are_the_plain_loss(prior_policy, build, plain, rows):
    name, background = prior_policy
    if background == 'foreground_rows':
        pytest.skip('shifts by logit(1/C), as published')
    logits, labels = rows(dtype=torch.float64)
    loss = build(name, class_counts=[7] * 5, background=background)
    if loss.columns(5)[-1] != 5:
        pytest.skip('has no form without a background column')
    if loss.use_sigmoid and isinstance(background, float):
        pytest.skip('a prior of background is never uniform')
    assert_close(loss(logits, labels), plain(name, logits, labels).mean())


@pytest.mark.parametrize('trained', [False, True])
def test_without_imbalance_of_gradients_it_is_the_plain_loss(
    gradient_type, build, plain, rows, trained
):
    """Before the first step, and where positives prevail in each class."""
    logits, labels = rows(dtype=torch.float64)
    loss = build(gradient_type)
    loss.statistics.reset()
    if trained:
        loss.statistics.pos_grad.fill_(20)
        loss.statistics.neg_grad.fill_(2)
    assert_close(
        loss(logits, labels), plain(gradient_type, logits, labels).mean()
    )


def test_the_rare_class_costs_more(loss_type, build, counts):
    """With equal logits; the sum over classes shall have a margin, too."""
    for level in (0.0, -4.0):
        loss = build(loss_type)
        if loss.takes_quality and not level:
            continue  # halfway, |q - p| is the same for both sides
        rows = loss(
            torch.full((5, 5), level),
            torch.arange(5),
            reduction_override='none',
        )
        if hasattr(loss, 'threshold'):
            # It knows rare classes and others.
            rare = torch.tensor(counts) < loss.threshold
            assert rows[rare].min() > rows[~rare].max()
            continue
        assert rows.argsort().tolist() == sorted(
            range(5), key=lambda j: -counts[j]
        )


@pytest.mark.parametrize('scale', [1, 30])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_no_worse_than_naive(
    loss_type, neutral, plain, dtype, scale
):
    """Against the truth of the same rounded logits."""
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(200, 5, generator=generator) * scale).to(dtype)
    labels = torch.randint(0, 5, (200,), generator=generator)
    try:
        naive = plain(loss_type, logits, labels).mean()
    except RuntimeError as error:
        if 'not implemented for' not in str(error):
            raise
        pytest.skip(f'this torch computes no naive one: {error}')
    truth = plain(loss_type, logits.double(), labels).mean()
    ours = neutral(loss_type)(logits, labels)
    assert (ours - truth).abs() <= (naive - truth).abs() + 1e-6 * truth


def test_autocast_computes_in_fp32(loss_type, build, rows):
    logits, labels = rows()
    loss = build(loss_type)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        ours = loss(logits, labels)
    assert_close(ours, loss(logits, labels))


@given(
    permutation=st.permutations(range(5)),
    scale=st.floats(1e-3, 1e6),
    counts=st.lists(
        st.one_of(st.just(0.0), st.floats(1.0, 1e6)), min_size=5, max_size=5
    ),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_class_order_and_scale_of_the_counts_are_irrelevant(
    counting_type, cfg, permutation, scale, counts
):
    if not any(counts):
        counts[0] = 1.0
    logits, labels, inverse = symmetry(permutation)

    def value(counts, logits, labels):
        loss = MODELS.build(cfg(counting_type, class_counts=counts))
        return loss(logits, labels)

    expected = value(counts, logits, labels)
    permuted = value(
        [counts[j] for j in permutation],
        logits[:, permutation],
        inverse[labels],
    )
    assert_close(permuted, expected)
    if 'threshold' in cfg(counting_type):
        return  # it is a count
    scaled = value([scale * n for n in counts], logits, labels)
    assert_close(scaled, expected, rtol=1e-5, atol=1e-6)


@given(
    permutation=st.permutations(range(5)),
    scale=st.floats(1e-3, 1e6),
    counts=st.lists(st.floats(1.0, 1e6), min_size=5, max_size=5),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_class_order_and_scale_of_the_statistics_are_irrelevant(
    running_type, cfg, midway, permutation, scale, counts
):
    """And so is the order of the classes to what is observed."""
    logits, labels, inverse = symmetry(permutation)

    def observe(counts, logits, labels, scale=1.0):
        loss = midway(MODELS.build(cfg(running_type)), counts)
        loss.statistics.sums.mul_(scale)
        return loss(logits, labels), loss.statistics

    expected, statistics = observe(counts, logits, labels)
    permuted, other = observe(
        [counts[j] for j in permutation],
        logits[:, permutation],
        inverse[labels],
    )
    assert_close(permuted, expected)
    assert statistics.pending.any()
    assert_close(other.pending, statistics.pending[:, permutation])
    if isinstance(statistics, LabelCounts):
        scale = max(1.0, scale)  # less than one sample is taken for one
    scaled, _ = observe(counts, logits, labels, scale)
    assert_close(scaled, expected, rtol=1e-5, atol=1e-6)


def symmetry(permutation):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 5, generator=generator, dtype=torch.float64) * 3
    labels = torch.tensor([0, 1, 2, 3, 4, 4])
    return logits, labels, torch.tensor(permutation).argsort()


@given(split=st.integers(0, 12), weighted=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_batch_is_the_sum_of_its_parts(
    loss_type, build, observed, split, weighted
):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 5, (12,), generator=generator)
    weight = torch.rand(12, generator=generator, dtype=torch.float64)
    arguments = dict(class_counts=[9, 3, 1, 0, 4], reduction='sum')
    loss, other = (build(loss_type, **arguments) for _ in range(2))
    parts = [
        loss(logits[i], labels[i], weight[i] if weighted else None)
        for i in (slice(split), slice(split, None))
    ]
    whole = other(logits, labels, weight if weighted else None)
    assert_close(sum(parts), whole)
    assert_close(observed(loss), observed(other))
