"""What every loss computes: identities, derivatives, precision, symmetries."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

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
def test_tau_zero_is_the_plain_loss(loss_type, build, plain, rows, size):
    logits, labels = rows(dtype=torch.float64, size=size)
    loss = build(loss_type, tau=0)
    assert_close(loss(logits, labels), plain(loss_type, logits, labels).mean())


@pytest.mark.parametrize('size', SHAPES, ids=str)
def test_tau_zero_is_the_plain_loss_of_soft_labels(
    loss_type, build, plain, rows, soft, size
):
    logits, _ = rows(dtype=torch.float64, size=size)
    loss = build(loss_type, tau=0)
    assert_close(
        loss(logits, soft(logits)),
        plain(loss_type, logits, soft(logits)).mean(),
    )


def test_uniform_counts_are_the_plain_loss(policy, build, plain, rows):
    name, background = policy
    if background == 'foreground_rows':
        pytest.skip('shifts by logit(1/C), as published')
    logits, labels = rows(dtype=torch.float64)
    loss = build(name, class_counts=[7] * 5, background=background)
    if loss.columns(5)[-1] != 5:
        pytest.skip('has no form without a background column')
    if loss.use_sigmoid and isinstance(background, float):
        pytest.skip('a prior of background is never uniform')
    assert_close(loss(logits, labels), plain(name, logits, labels).mean())


def test_the_rare_class_costs_more(loss_type, build, counts):
    """With equal logits; the sum over classes shall have a margin, too."""
    rows = build(loss_type)(
        torch.zeros(5, 5), torch.arange(5), reduction_override='none'
    )
    assert rows.argsort().tolist() == sorted(
        range(5), key=lambda j: -counts[j]
    )


def test_a_soft_one_hot_label_is_the_index_label(loss_type, build, rows):
    logits, labels = rows(size=(2, 3))
    loss = build(loss_type)
    hot = torch.nn.functional.one_hot(labels, 5).movedim(-1, 1).float()
    assert_close(
        loss(logits, hot, reduction_override='none'),
        loss(logits, labels, reduction_override='none'),
    )


def test_derivatives(policy, build):
    name, background = policy
    loss = build(name, background=background)
    generator = torch.Generator().manual_seed(0)
    for columns in loss.columns(5):
        logits = torch.randn(
            4, columns, generator=generator, dtype=torch.float64
        )
        labels = torch.tensor([0, 3, 4, min(columns - 1, 5)])
        weight = torch.tensor([0.5, 1.0, 2.0, 0.0], dtype=torch.float64)

        def of_logits(z, labels=labels, weight=weight):
            return loss(z, labels, weight, avg_factor=3.0)

        assert gradcheck(of_logits, logits.requires_grad_())
        assert gradgradcheck(of_logits, logits)


def test_derivatives_of_soft_labels(loss_type, build, rows, soft):
    logits, _ = rows(n=3, dtype=torch.float64)
    labels, loss = soft(logits), build(loss_type)
    assert gradcheck(lambda z: loss(z, labels), logits.requires_grad_())
    assert gradgradcheck(lambda z: loss(z, labels), logits)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_finite_at_extreme_logits(policy, build, dtype):
    name, background = policy
    loss = build(name, background=background, class_counts=[1e9, 1, 1, 0, 2])
    for columns in loss.columns(5):
        for sign in (100.0, -100.0):
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
    loss_type, build, plain, dtype, scale
):
    """Against the truth in fp32 of the same rounded logits."""
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(200, 5, generator=generator) * scale).to(dtype)
    labels = torch.randint(0, 5, (200,), generator=generator)
    for tau in (0.0, 1.0):
        loss = build(loss_type, tau=tau)
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
    ours = build(loss_type, tau=0)(logits, labels)
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
def test_class_order_and_scale_of_the_counts_are_irrelevant(
    permutation, scale, counts
):
    from lt_losses_mm.losses import LongTailLoss
    from lt_losses_mm.registry import MODELS

    if not any(counts):
        counts[0] = 1.0
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 5, generator=generator, dtype=torch.float64) * 3
    labels = torch.tensor([0, 1, 2, 3, 4, 4])
    inverse = torch.tensor(permutation).argsort()
    for _name, cls in MODELS.module_dict.items():
        if not issubclass(cls, LongTailLoss):
            continue
        expected = cls(class_counts=counts)(logits, labels)
        permuted = cls(class_counts=[counts[j] for j in permutation])(
            logits[:, permutation], inverse[labels]
        )
        assert_close(permuted, expected)
        scaled = cls(class_counts=[scale * n for n in counts])(logits, labels)
        assert_close(scaled, expected, rtol=1e-5, atol=1e-6)


@given(split=st.integers(0, 12), weighted=st.booleans())
def test_a_batch_is_the_sum_of_its_parts(split, weighted):
    from lt_losses_mm.losses import LongTailLoss
    from lt_losses_mm.registry import MODELS

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 5, (12,), generator=generator)
    weight = torch.rand(12, generator=generator, dtype=torch.float64)
    for cls in MODELS.module_dict.values():
        if not issubclass(cls, LongTailLoss):
            continue
        loss = cls(class_counts=[9, 3, 1, 0, 4], reduction='sum')
        parts = [
            loss(logits[i], labels[i], weight[i] if weighted else None)
            for i in (slice(split), slice(split, None))
        ]
        whole = loss(logits, labels, weight if weighted else None)
        assert_close(sum(parts), whole)


def test_nchw_is_the_flattened_map(loss_type, build, rows):
    logits, labels = rows(n=2, size=(4, 3))
    loss = build(loss_type)
    weight = torch.rand(labels.shape)
    assert_close(
        loss(logits, labels, weight),
        loss(
            logits.movedim(1, -1).reshape(-1, 5),
            labels.reshape(-1),
            weight.reshape(-1),
        ),
    )
