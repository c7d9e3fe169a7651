"""The maths of the equalization losses: tables, derivatives, large logits."""

import itertools
import math

import mpmath
import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from lt_losses_mm.functional import (
    equalization_weights,
    equalized_focal_factors,
    equalized_focal_loss,
    equalized_focal_sums,
    equalized_quality_focal_loss,
    equalized_quality_focal_sums,
    shifted_softmax_cross_entropy,
    shifted_softmax_sums,
    sigmoid_equalization_weights,
    softmax_equalization_v1,
    weighted_sigmoid_cross_entropy,
    weighted_sigmoid_sums,
)

C = 4
Q = torch.tensor([4.9997, 3.0, 1.33, 1.0], dtype=torch.float64)
R = torch.tensor([7e-5, 0.5, 0.917, 1.0], dtype=torch.float64)
FOCUSING = torch.tensor([10.0, 6.8, 3.1, 2.0], dtype=torch.float64)
FACTORS = (FOCUSING, FOCUSING / 2)
SHIFT = torch.tensor([1.0, 0.3, -2.0, -9.0], dtype=torch.float64)

# name: loss, its sums, positional parameters
PAIRS = dict(
    sigmoid=(weighted_sigmoid_cross_entropy, weighted_sigmoid_sums, (Q, R)),
    focal=(equalized_focal_loss, equalized_focal_sums, FACTORS),
    quality=(
        equalized_quality_focal_loss,
        equalized_quality_focal_sums,
        FACTORS,
    ),
    softmax=(shifted_softmax_cross_entropy, shifted_softmax_sums, (SHIFT,)),
)


@pytest.fixture(params=PAIRS)
def pair(request):
    return request.param, *PAIRS[request.param]


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(7, C, dtype=torch.float64, generator=generator)
    return logits, torch.tensor([0, 1, 2, 3, 3, 0, -100])


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


def test_weights_of_eql():
    tail = torch.tensor([False, True, True])
    q, r = equalization_weights(torch.tensor([0, 1, 3, -100]), tail, 2)
    assert q.tolist() == [1, 1, 1]
    # A row of background (label 3) remains a negative of all classes.
    assert r[:3].tolist() == [[1, 0, 0], [1, 0, 0], [1, 1, 1]]


# --------------------------------------------------------------- identities
def test_ratio_one_is_the_focal_loss(batch):
    """By torchvision, which the hosts need and which knows one gamma."""
    ops = pytest.importorskip('torchvision.ops')
    logits, labels = batch[0][:6], batch[1][:6]
    for alpha in (0.25, 0.6, -1.0):
        ours = equalized_focal_loss(
            logits,
            labels,
            *equalized_focal_factors(torch.ones(C, dtype=torch.float64)),
            alpha=alpha,
        )
        torch.testing.assert_close(
            ours,
            ops.sigmoid_focal_loss(
                logits, F.one_hot(labels, C).double(), alpha=alpha
            ),
        )


def test_weights_of_one_are_plain_losses(batch):
    logits, labels = batch[0][:6], batch[1][:6]
    one, zero = torch.ones(C), torch.zeros(C)
    bce = F.binary_cross_entropy_with_logits(
        logits, F.one_hot(labels, C).double(), reduction='none'
    )
    close = torch.testing.assert_close
    close(weighted_sigmoid_cross_entropy(logits, labels, one, one), bce)
    close(equalized_focal_loss(logits, labels, zero, one, alpha=-1), bce)
    close(equalized_quality_focal_loss(logits, labels, zero, one), bce)
    close(
        softmax_equalization_v1(
            logits, labels, torch.zeros_like(logits, dtype=torch.bool)
        ),
        F.cross_entropy(logits, labels, reduction='none'),
    )


def test_quality_one_is_the_focal_loss_without_alpha(batch):
    quality = torch.ones(7)
    torch.testing.assert_close(
        equalized_quality_focal_loss(*batch, *FACTORS, quality=quality),
        equalized_focal_loss(*batch, *FACTORS, alpha=-1),
    )


def test_quality_zero_is_background(batch):
    logits, labels = batch
    ours = equalized_quality_focal_loss(
        logits, labels, *FACTORS, quality=torch.zeros(7)
    )
    background = labels.masked_fill(labels >= 0, C)
    expected = equalized_quality_focal_loss(logits, background, *FACTORS)
    assert torch.equal(ours, expected)


def test_softmax_eql_v1_by_hand():
    logits = torch.tensor([[0.0, 1.0, 2.0]]).log1p()
    dropped = torch.tensor([[False, True, True]])

    def loss(label):
        return softmax_equalization_v1(logits, torch.tensor([label]), dropped)

    # e^z is 1, 2, 3; the label itself is never left out
    torch.testing.assert_close(loss(0).exp(), torch.tensor([1.0]))
    torch.testing.assert_close(loss(1).exp(), torch.tensor([3 / 2]))
    torch.testing.assert_close(loss(2).exp(), torch.tensor([4 / 3]))


# ------------------------------------------------------------- soft labels
def test_one_hot_labels_are_index_labels(batch, pair):
    _, loss, sums, parameters = pair
    logits, labels = batch[0][:6], batch[1][:6]
    soft = F.one_hot(labels, C).double()
    weight = torch.rand(6, 1, dtype=torch.float64)
    close = torch.testing.assert_close
    close(loss(logits, labels, *parameters), loss(logits, soft, *parameters))
    close(
        sums(logits, labels, *parameters, weight=weight),
        sums(logits, soft, *parameters, weight=weight),
    )


@pytest.mark.parametrize('name', ['sigmoid', 'focal'])
def test_a_soft_label_of_a_class_is_a_mixture(batch, name):
    loss, sums, parameters = PAIRS[name]
    logits, t = batch[0][:1], 0.3
    soft = torch.full((1, C), t)

    def mixed(function):
        positive = function(logits, torch.ones(1, C), *parameters)
        negative = function(logits, torch.zeros(1, C), *parameters)
        if isinstance(positive, tuple):
            positive, negative = torch.stack(positive), torch.stack(negative)
        return t * positive + (1 - t) * negative

    torch.testing.assert_close(loss(logits, soft, *parameters), mixed(loss))
    torch.testing.assert_close(
        torch.stack(sums(logits, soft, *parameters)), mixed(sums)
    )


def test_a_soft_label_of_softmax_is_a_mixture(batch):
    logits = batch[0][:1]
    soft = torch.tensor([[0.5, 0.0, 0.3, 0.2]], dtype=torch.float64)
    ours = shifted_softmax_sums(logits, soft, SHIFT)
    mixture = sum(
        share * torch.stack(shifted_softmax_sums(logits, label, SHIFT))
        for share, label in zip(soft[0], torch.arange(C).view(C, 1))
    )
    torch.testing.assert_close(torch.stack(ours), mixture)


def test_quality_at_the_label_is_a_map_of_qualities(batch):
    logits, labels = batch[0][:6], batch[1][:6]
    quality = torch.tensor([0.9, 0.01, 0.0, 1.0, 0.4, 0.6])
    soft = F.one_hot(labels, C) * quality.unsqueeze(1)
    close = torch.testing.assert_close
    close(
        equalized_quality_focal_loss(
            logits, labels, *FACTORS, quality=quality
        ),
        equalized_quality_focal_loss(logits, soft, *FACTORS),
    )
    of_index = equalized_quality_focal_sums(
        logits, labels, *FACTORS, quality=quality
    )
    of_map = equalized_quality_focal_sums(logits, soft, *FACTORS)
    close(of_index, of_map)
    # A label of quality 0 is no positive; others count as one each.
    assert of_map[2].tolist() == [2, 1, 0, 2]


# -------------------------------------------------------------- derivatives
def soft_labels():
    return torch.tensor([[0.2, 0.0, 0.5, 1.0], [0.0, 0.9, 0.1, 0.3]]).double()


DROPPED = torch.tensor([[1, 0, 1, 0], [0, 1, 1, 0]]).bool()


@pytest.mark.parametrize(
    'function',
    [
        lambda z, y: weighted_sigmoid_cross_entropy(z, y, Q, R),
        lambda z, y: equalized_focal_loss(z, y, *FACTORS),
        lambda z, y: equalized_focal_loss(z, y, *FACTORS, alpha=-1),
        lambda z, y: equalized_quality_focal_loss(
            z, y, *FACTORS, quality=torch.tensor([0.7, 0.0])
        ),
        lambda z, y: softmax_equalization_v1(z, y, DROPPED),
    ],
    ids=['sigmoid', 'focal', 'focal-no-alpha', 'quality', 'softmax-v1'],
)
@pytest.mark.parametrize(
    'labels',
    [torch.tensor([0, 2]), torch.tensor([-100, 1]), soft_labels()],
    ids=['index', 'ignored', 'soft'],
)
def test_gradcheck(function, labels):
    logits = torch.tensor(
        [[1.5, -2.0, 0.3, 3.1], [-0.7, 0.2, 2.2, -3.0]],
        dtype=torch.float64,
        requires_grad=True,
    )
    assert gradcheck(lambda z: function(z, labels), logits)
    assert gradgradcheck(lambda z: function(z, labels), logits)


@pytest.mark.parametrize('shape', ['rows', 'map'])
@pytest.mark.parametrize('weighted', [False, True])
def test_sums_are_the_gradients(pair, shape, weighted):
    name, loss, sums, parameters = pair
    generator = torch.Generator().manual_seed(1)
    size = (2, C, 2, 3) if shape == 'map' else (12, C)
    logits = 3 * torch.randn(*size, dtype=torch.float64, generator=generator)
    labels = torch.randint(
        C if name == 'softmax' else C + 1,
        size[:1] + size[2:],
        generator=generator,
    )
    labels[0] = 255
    weight = None
    if weighted:
        weight = torch.rand(*size, dtype=torch.float64, generator=generator)
        weight[weight < 0.3] = 0
        if name == 'softmax':
            weight = weight[:, :1]
    leaf = logits.clone().requires_grad_()
    rows = loss(leaf, labels, *parameters, ignore_index=255)
    gradient = torch.autograd.grad(rows.sum(), leaf)[0].abs()
    positive = F.one_hot(labels.clamp(max=C), C + 1).movedim(-1, 1)[:, :C]
    positive = positive.double()
    factor = torch.ones_like(gradient) if weight is None else weight
    over_rows = [0, 2, 3] if shape == 'map' else [0]
    expected = (
        (factor * gradient * positive).sum(over_rows),
        (factor * gradient * (1 - positive)).sum(over_rows),
        ((factor > 0) * positive).sum(over_rows),
    )
    ours = sums(logits, labels, *parameters, weight=weight, ignore_index=255)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-14)


# ------------------------------------------------------------ large logits
QUALITY = 0.7


def bce_of_paper(p, rest, positive):
    return -5 * mpmath.log(p) if positive else -0.5 * mpmath.log(rest)


def efl_of_paper(p, rest, positive):
    alpha = 0.25 if positive else 0.75
    p_t, miss = (p, rest) if positive else (rest, p)
    return -alpha * 3.4 * miss ** mpmath.mpf(6.8) * mpmath.log(p_t)


def eqfl_of_paper(p, rest, positive):
    q = mpmath.mpf(QUALITY if positive else 0)
    bce = -q * mpmath.log(p) - (1 - q) * mpmath.log(rest)
    return 3.4 * abs(q - p) ** mpmath.mpf(6.8) * bce


def parameter(value):
    return torch.tensor([value], dtype=torch.float64)


LARGE = dict(
    sigmoid=(bce_of_paper, (parameter(5), parameter(0.5)), {}),
    focal=(efl_of_paper, (parameter(6.8), parameter(3.4)), {}),
    quality=(
        eqfl_of_paper,
        (parameter(6.8), parameter(3.4)),
        dict(quality=torch.tensor([QUALITY], dtype=torch.float64)),
    ),
)
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def by_many_digits(of_paper, z, positive):
    """Value and slope; the exponents of mpmath have no bounds."""

    def value(z):
        p, rest = 1 / (1 + mpmath.exp(-z)), 1 / (1 + mpmath.exp(z))
        return of_paper(p, rest, positive)

    with mpmath.workdps(60):
        return float(value(mpmath.mpf(z))), float(mpmath.diff(value, z))


@pytest.mark.parametrize('name', LARGE)
@pytest.mark.parametrize('size', [0.0, 7.0, 8.5, 17.0, 1e4])
def test_large_logits(name, size):
    of_paper, parameters, kwargs = LARGE[name]
    loss, sums, _ = PAIRS[name]
    for dtype, sign, positive in itertools.product(
        DTYPES, (1, -1), (True, False)
    ):
        leaf = torch.tensor([[sign * size]], dtype=dtype, requires_grad=True)
        value, slope = by_many_digits(of_paper, leaf.item(), positive)
        labels = torch.tensor([0 if positive else 1])
        ours = loss(leaf, labels, *parameters, **kwargs)
        ours.sum().backward()
        of_class = sums(leaf.detach(), labels, *parameters, **kwargs)
        # Computed in fp32 at least; the gradient has the logits' type.
        wide = dtype == torch.float64
        exact = dict(rel=1e-12) if wide else dict(rel=1e-5, abs=1e-12)
        rounded = dict(
            rel=max(exact['rel'], torch.finfo(dtype).eps),
            abs=torch.finfo(dtype).smallest_normal,
        )
        assert ours.item() == pytest.approx(value, **exact)
        assert leaf.grad.item() == pytest.approx(slope, **rounded)
        mine, other, count = [v.item() for v in of_class]
        if not positive:
            mine, other = other, mine
        assert mine == pytest.approx(abs(slope), **exact)
        assert (other, count) == (0, positive)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('soft', [False, True])
def test_large_logits_of_softmax(dtype, soft):
    values = torch.tensor([-1e4, -17.0, -8.5, 0.0, 8.5, 17.0, 1e4])
    generator = torch.Generator().manual_seed(0)
    order = torch.stack(
        [torch.randperm(7, generator=generator)[:C] for _ in range(40)]
    )
    logits = values[order].to(dtype)
    labels = torch.randint(C, (40,), generator=generator)
    dropped = torch.rand(40, C, generator=generator) < 0.5
    if soft:
        labels = F.one_hot(labels, C) * 0.8 + 0.05

    def results(logits):
        out = [*shifted_softmax_sums(logits, labels, SHIFT)]
        for function, extra in (
            (shifted_softmax_cross_entropy, SHIFT),
            (softmax_equalization_v1, dropped),
        ):
            leaf = logits.clone().requires_grad_()
            loss = function(leaf, labels, extra)
            loss.sum().backward()
            out += [loss.detach(), leaf.grad]
        return [value.double() for value in out]

    eps = max(torch.finfo(dtype).eps, 1e-6)
    for ours, exact in zip(results(logits), results(logits.double())):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours, exact, rtol=2 * eps, atol=2e-6)
