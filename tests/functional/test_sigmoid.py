"""Sigmoid methods, per row, against the papers' formulas in explicit loops."""

import math

import pytest
import torch
import torch.nn.functional as F

from lt_losses_mm.functional import (
    balanced_sigmoid_cross_entropy,
    equalized_focal_factors,
    equalized_focal_loss,
    equalized_quality_focal_loss,
    sigmoid_equalization_weights,
    weighted_sigmoid_cross_entropy,
)

C = 4
PRIOR = torch.tensor([0.6, 0.25, 0.1, 0.05], dtype=torch.float64)
Q = torch.tensor([4.9997, 3.0, 1.33, 1.0], dtype=torch.float64)
R = torch.tensor([7e-5, 0.5, 0.917, 1.0], dtype=torch.float64)
RARE = torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=torch.float64)
FOCUSING = torch.tensor([10.0, 6.8, 3.1, 2.0], dtype=torch.float64)
FACTORS = (FOCUSING, FOCUSING / 2)
QUALITY = torch.tensor([0.9, 0.01, 0.0, 1.0, 0.4, 0.6, 0.7, 0.2])
# The native engine has fp32 and less.
ENGINES = [
    ('reference', torch.float64, 1e-12),
    ('eager', torch.float64, 1e-12),
    ('native', torch.float32, 1e-5),
]
close = torch.testing.assert_close


# Terms of a class: its number, probability, whether it is the label, whether
# the row is background, and the row's quality.
def balanced_term(tau):
    def term(j, p, own, background, quality):
        odds = p / (1 - p) * (PRIOR[j] / (1 - PRIOR[j])).item() ** tau
        p = odds / (1 + odds)
        return -math.log(p if own else 1 - p)

    return term


def weighted_term(j, p, own, background, quality):
    weight = Q[j] if own else R[j]
    return -weight.item() * math.log(p if own else 1 - p)


def eql_term(j, p, own, background, quality):
    if own:
        return -math.log(p)
    # Eq. 2 of EQL: weights of rows with an object alone.
    return -(background or 1 - RARE[j].item()) * math.log(1 - p)


def focal_term(alpha):
    def term(j, p, own, background, quality):
        gamma, weight = (f[j].item() for f in FACTORS)
        p_t, alpha_t = (p, alpha) if own else (1 - p, 1 - alpha)
        if alpha < 0:
            alpha_t = 1
        return -alpha_t * weight * (1 - p_t) ** gamma * math.log(p_t)

    return term


def quality_term(j, p, own, background, quality):
    gamma, weight = (f[j].item() for f in FACTORS)
    q = quality if own else 0
    bce = -q * math.log(p) - (1 - q) * math.log(1 - p)
    return weight * abs(q - p) ** gamma * bce


METHODS = dict(
    balanced=(
        lambda z, y, **kw: balanced_sigmoid_cross_entropy(z, y, PRIOR, **kw),
        balanced_term(1),
    ),
    balanced_weak=(
        lambda z, y, **kw: balanced_sigmoid_cross_entropy(
            z, y, PRIOR, tau=0.5, **kw
        ),
        balanced_term(0.5),
    ),
    sigmoid_eql=(
        lambda z, y, **kw: weighted_sigmoid_cross_entropy(z, y, Q, R, **kw),
        weighted_term,
    ),
    eql=(
        lambda z, y, **kw: weighted_sigmoid_cross_entropy(
            z, y, torch.ones(C), 1 - RARE, spare_background=True, **kw
        ),
        eql_term,
    ),
    focal=(
        lambda z, y, **kw: equalized_focal_loss(z, y, *FACTORS, **kw),
        focal_term(0.25),
    ),
    focal_no_alpha=(
        lambda z, y, **kw: equalized_focal_loss(
            z, y, *FACTORS, alpha=-1, **kw
        ),
        focal_term(-1),
    ),
    quality=(
        lambda z, y, **kw: equalized_quality_focal_loss(z, y, *FACTORS, **kw),
        quality_term,
    ),
)


@pytest.fixture(params=METHODS)
def method(request):
    return METHODS[request.param][0]


@pytest.fixture
def batch():
    """The last row is background's."""
    generator = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(8, C, dtype=torch.float64, generator=generator)
    return logits, torch.tensor([0, 1, 2, 3, 3, 0, 1, C])


# ------------------------------------------------------- reference in loops
@pytest.mark.parametrize('name', METHODS)
@pytest.mark.parametrize(('engine', 'dtype', 'rtol'), ENGINES)
def test_the_published_formula(batch, name, engine, dtype, rtol):
    method, term = METHODS[name]
    logits, labels = batch
    with_quality = {} if name != 'quality' else dict(quality=QUALITY)
    ours = method(logits.to(dtype), labels, engine=engine, **with_quality)
    expected = torch.zeros(8, dtype=torch.float64)
    samples = zip(logits.tolist(), labels.tolist(), QUALITY.tolist())
    for i, (row, y, quality) in enumerate(samples):
        for j, z in enumerate(row):
            p = 1 / (1 + math.exp(-z))
            expected[i] += term(j, p, j == y, y == C, quality)
    assert ours.dtype == dtype
    close(ours.double(), expected, rtol=rtol, atol=rtol)


def test_closed_form_gradient(batch):
    logits, labels = batch
    logits = logits.requires_grad_()
    balanced_sigmoid_cross_entropy(logits, labels, PRIOR).sum().backward()
    one_hot = F.one_hot(labels, C + 1)[:, :C].double()
    close(logits.grad, (logits + PRIOR.logit()).sigmoid().detach() - one_hot)


# ------------------------------------------------------------------- tables
@pytest.mark.parametrize(
    ('ratio', 'negative', 'positive', 'digits'),
    [
        (0.0, 6.8e-5, 4.9997, (6, 4)),
        (0.5, 0.0266, 4.89, (4, 2)),
        (0.8, 0.5, 3.0, (12, 12)),
        (1.0, 0.917, 1.33, (3, 2)),
        (1.5, 0.9998, 1.0009, (4, 4)),
        (100.0, 1.0, 1.0, (15, 15)),
        (math.inf, 1.0, 1.0, (15, 15)),
    ],
)
def test_weights_of_sigmoid_eql(ratio, negative, positive, digits):
    q, r = sigmoid_equalization_weights(
        torch.tensor([ratio], dtype=torch.float64)
    )
    assert round(r.item(), digits[0]) == negative
    assert round(q.item(), digits[1]) == positive


@pytest.mark.parametrize(
    ('scale', 'ratio', 'focusing', 'weight'),
    [
        (8.0, 0.0, 10.0, 5.0),
        (8.0, 0.5, 6.0, 3.0),
        (8.0, 1.0, 2.0, 1.0),
        (8.0, 7.0, 2.0, 1.0),
        (8.0, math.inf, 2.0, 1.0),
        (4.0, 0.0, 6.0, 3.0),
        (4.0, 0.75, 3.0, 1.5),
        (4.0, 1.0, 2.0, 1.0),
        (0.0, 0.0, 2.0, 1.0),
    ],
)
def test_factors_of_equalized_focal(scale, ratio, focusing, weight):
    factors = equalized_focal_factors(
        torch.tensor([ratio], dtype=torch.float64), scale_factor=scale
    )
    assert [f.item() for f in factors] == [focusing, weight]


# --------------------------------------------------------------- identities
def test_ratio_one_is_the_focal_loss(batch):
    """By torchvision, which the hosts need and which knows one gamma."""
    ops = pytest.importorskip('torchvision.ops')
    logits, labels = batch
    one_hot = F.one_hot(labels, C + 1)[:, :C].double()
    factors = equalized_focal_factors(torch.ones(C, dtype=torch.float64))
    for alpha in (0.25, 0.6, -1.0):
        ours = equalized_focal_loss(logits, labels, *factors, alpha=alpha)
        theirs = ops.sigmoid_focal_loss(logits, one_hot, alpha=alpha)
        close(ours, theirs.sum(1))


def test_neutral_parameters_give_binary_cross_entropy(batch):
    logits, labels = batch
    one_hot = F.one_hot(labels, C + 1)[:, :C].double()
    bce = F.binary_cross_entropy_with_logits(
        logits, one_hot, reduction='none'
    ).sum(1)
    one, zero = torch.ones(C), torch.zeros(C)
    close(balanced_sigmoid_cross_entropy(*batch, PRIOR, tau=0), bce)
    close(weighted_sigmoid_cross_entropy(*batch, one, one), bce)
    close(equalized_focal_loss(*batch, zero, one, alpha=-1), bce)
    close(equalized_quality_focal_loss(*batch, zero, one), bce)


def test_quality_one_is_the_focal_loss_without_alpha(batch):
    expected = equalized_focal_loss(*batch, *FACTORS, alpha=-1)
    quality = torch.ones(8)
    close(equalized_quality_focal_loss(*batch, *FACTORS), expected)
    close(
        equalized_quality_focal_loss(*batch, *FACTORS, quality=quality),
        expected,
    )


def test_quality_zero_is_background(batch):
    logits, labels = batch
    ours = equalized_quality_focal_loss(
        *batch, *FACTORS, quality=torch.zeros(8)
    )
    background = torch.full_like(labels, C)
    expected = equalized_quality_focal_loss(logits, background, *FACTORS)
    assert torch.equal(ours, expected)


def test_quality_at_the_label_is_a_map_of_qualities(batch):
    logits, labels = batch
    soft = F.one_hot(labels, C + 1)[:, :C] * QUALITY.unsqueeze(1)
    close(
        equalized_quality_focal_loss(*batch, *FACTORS, quality=QUALITY),
        equalized_quality_focal_loss(logits, soft, *FACTORS),
    )


# ------------------------------------------------------------ all of them
def test_one_hot_labels_are_index_labels(batch, method):
    logits, labels = batch
    soft = F.one_hot(labels, C + 1)[:, :C].double()
    close(method(logits, labels), method(logits, soft))


@pytest.mark.parametrize(('engine', 'dtype', 'rtol'), ENGINES)
def test_maps_are_rows(method, engine, dtype, rtol):
    logits = torch.randn(2, C, 3, 5, dtype=dtype)
    labels = torch.randint(0, C + 1, (2, 3, 5))
    labels[0, 0, 0] = 255
    of_map = method(logits, labels, ignore_index=255, engine=engine)
    of_rows = method(
        logits.movedim(1, -1).flatten(0, 2),
        labels.flatten(),
        ignore_index=255,
        engine=engine,
    )
    assert of_map.shape == labels.shape
    close(of_map.flatten(), of_rows, rtol=rtol, atol=rtol)
    assert of_rows[0] == 0
    assert (of_rows[1:] > 0).all()


@pytest.mark.parametrize('engine', ['reference', 'eager', 'native'])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_fp32(method, engine, dtype):
    logits = (torch.randn(64, C) * 10).to(dtype)
    labels = torch.randint(0, C + 1, (64,))
    ours = method(logits, labels, engine=engine)
    assert ours.dtype == torch.float32
    expected = method(logits.float(), labels, engine='reference')
    close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('value', [-1e4, -100.0, 100.0, 1e4])
def test_extreme_logits(method, value):
    logits = torch.full((2, C), value, requires_grad=True)
    logits.data[:, 0] = -value
    out = method(logits, torch.tensor([0, 2]))
    (first,) = torch.autograd.grad(out.sum(), logits, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), logits)
    for tensor in (out, first, second):
        assert tensor.isfinite().all()
