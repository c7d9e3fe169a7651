"""What every loss computes: identities, derivatives, precision, symmetries."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from lt_losses_mm.registry import MODELS

SHAPES = [(), (3,), (2, 3)]


@pytest.fixture
def soft():

    def make(logits):
        generator = torch.Generator().manual_seed(1)
        labels = torch.rand(
            logits.shape, generator=generator, dtype=logits.dtype
        )
        return labels / labels.sum(1, keepdim=True)

    return make


@pytest.mark.parametrize('size', SHAPES, ids=str)
def test_neutral_is_the_plain_loss(loss_type, neutral, plain, rows, size):
    logits, labels = rows(dtype=torch.float64, size=size)
    loss = neutral(loss_type)
    assert_close(loss(logits, labels), plain(loss_type, logits, labels).mean())


@pytest.mark.parametrize('size', SHAPES, ids=str)
def test_neutral_is_the_plain_loss_of_soft_labels(
    soft_type, neutral, plain, rows, soft, size
):
    logits, _ = rows(dtype=torch.float64, size=size)
    loss = neutral(soft_type)
    assert_close(
        loss(logits, soft(logits)),
        plain(soft_type, logits, soft(logits)).mean(),
    )


def test_tau_zero_is_the_plain_loss(tau_type, build, plain, rows):
    """Whatever the counts or the statistics are."""
    logits, labels = rows(dtype=torch.float64)
    loss = build(tau_type, tau=0)
    assert_close(loss(logits, labels), plain(tau_type, logits, labels).mean())


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


def test_the_rare_class_costs_more(loss_type, loss_class, build, counts):
    """With equal logits; the sum over classes shall have a margin, too."""
    for level in (0.0, -4.0):
        if (
            loss_class(loss_type).type == 'EqualizedQualityFocalLoss'
            and not level
        ):
            continue  # halfway, |q - p| is the same for both sides
        rows = build(loss_type)(
            torch.full((5, 5), level),
            torch.arange(5),
            reduction_override='none',
        )
        if loss_class(loss_type).type == 'EqualizationLoss':
            # It knows rare classes and others.
            rare = torch.tensor(counts) < 50
            assert rows[rare].min() > rows[~rare].max()
            continue
        assert rows.argsort().tolist() == sorted(
            range(5), key=lambda j: -counts[j]
        )


def test_a_soft_one_hot_label_is_the_index_label(soft_type, build, rows):
    logits, labels = rows(size=(2, 3))
    loss = build(soft_type)
    hot = torch.nn.functional.one_hot(labels, 5).movedim(-1, 1).float()
    assert_close(
        loss(logits, hot, reduction_override='none'),
        loss(logits, labels, reduction_override='none'),
    )


def test_derivatives(policy, with_columns, smooth):
    name, background = policy
    generator = torch.Generator().manual_seed(0)
    for loss, columns in with_columns(
        name, background=background, **smooth(name)
    ):
        logits = torch.randn(
            4, columns, generator=generator, dtype=torch.float64
        )
        labels = torch.tensor([0, 3, 4, min(columns - 1, 5)])
        weight = torch.tensor([0.5, 1.0, 2.0, 0.0], dtype=torch.float64)

        def of_logits(z, loss=loss, labels=labels, weight=weight):
            return loss(z, labels, weight, avg_factor=3.0)

        assert gradcheck(of_logits, logits.requires_grad_())
        assert gradgradcheck(of_logits, logits)


def test_derivatives_of_soft_labels(soft_type, build, rows, soft):
    logits, _ = rows(n=3, dtype=torch.float64)
    labels, loss = soft(logits), build(soft_type)
    assert gradcheck(lambda z: loss(z, labels), logits.requires_grad_())
    assert gradgradcheck(lambda z: loss(z, labels), logits)


@pytest.mark.parametrize(
    'dtype',
    [torch.float16, torch.bfloat16, torch.float32, torch.float64],
    ids=str,
)
def test_finite_at_extreme_logits(policy, with_columns, dtype):
    name, background = policy
    counts = [1e9, 1, 1, 0, 2]
    for loss, columns in with_columns(
        name, background=background, class_counts=counts
    ):
        for sign in (100.0, -100.0, 1e4, -1e4):
            logits = torch.full((columns, columns), -sign, dtype=dtype)
            logits.fill_diagonal_(sign).requires_grad_()
            labels = torch.arange(columns).clamp(max=min(columns - 1, 5))
            value = loss(logits, labels)
            (first,) = torch.autograd.grad(value, logits, create_graph=True)
            (second,) = torch.autograd.grad((first**2).sum(), logits)
            for x in (value, first, second):
                assert x.isfinite().all()


@pytest.mark.parametrize('scale', [1, 30])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_no_worse_than_naive(
    loss_type, build, neutral, plain, dtype, scale
):
    """Against the truth in fp32 of the same rounded logits."""
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(200, 5, generator=generator) * scale).to(dtype)
    labels = torch.randint(0, 5, (200,), generator=generator)
    for loss in (neutral(loss_type), build(loss_type)):
        half, exact = (
            logits.clone().requires_grad_(),
            logits.double().requires_grad_(),
        )
        ours = loss(half, labels)
        truth = loss(exact, labels)
        assert ours.dtype == torch.float32
        assert_close(ours.double(), truth, rtol=1e-6, atol=1e-6)
        ours.backward()
        truth.backward()
        eps = torch.finfo(dtype).eps
        assert half.grad.dtype == dtype
        # fp16 gradients below 2^-24 vanish whatever the loss does
        assert_close(half.grad.double(), exact.grad, rtol=eps, atol=2**-24)
    naive = plain(loss_type, logits, labels).mean()
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
    counting_type, loss_class, cfg, permutation, scale, counts
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
    if loss_class(counting_type).type == 'EqualizationLoss':
        return  # its threshold is a count
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
        for statistic in loss.statistics.values():
            statistic.mul_(scale)
        value = loss(logits, labels)
        for statistic in loss.statistics.values():
            statistic.zero_()
        loss.statistics.commit()
        return value, loss

    expected, loss = observe(counts, logits, labels)
    permuted, other = observe(
        [counts[j] for j in permutation],
        logits[:, permutation],
        inverse[labels],
    )
    assert_close(permuted, expected)
    assert loss.statistics.pos_count.any()
    for name, statistic in loss.statistics.items():
        assert_close(other.statistics[name], statistic[permutation])
    if running_type == 'SeesawSoftmaxLoss':
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


def test_nchw_is_the_flattened_map(loss_type, build, rows, observed):
    logits, labels = rows(n=2, size=(4, 3))
    loss, flat = build(loss_type), build(loss_type)
    weight = torch.rand(labels.shape)
    assert_close(
        loss(logits, labels, weight),
        flat(
            logits.movedim(1, -1).reshape(-1, 5),
            labels.reshape(-1),
            weight.reshape(-1),
        ),
    )
    assert_close(observed(loss), observed(flat), rtol=1e-5, atol=1e-6)
