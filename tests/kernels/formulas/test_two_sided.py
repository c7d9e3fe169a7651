"""Formulas of two sides: mixtures, derivatives, sums, large logits.

Their values are compared with the papers' in ``tests/functional``.
"""

import itertools
from dataclasses import replace

import mpmath
import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from lt_losses_mm.kernels import (
    FOCAL,
    QUALITY_FOCAL,
    SHIFTED_BCE,
    WEIGHTED_BCE,
    TwoSided,
)
from lt_losses_mm.kernels.formulas.two_sided import (
    focal_parameters,
    where_of_quality,
)

C = 4
SHIFT = torch.tensor([1.0, 0.3, -2.0, -9.0], dtype=torch.float64)
Q = torch.tensor([4.9997, 3.0, 1.33, 1.0], dtype=torch.float64)
R = torch.tensor([7e-5, 0.5, 0.917, 1.0], dtype=torch.float64)
FOCUSING = torch.tensor([10.0, 6.8, 3.1, 2.0], dtype=torch.float64)
FORMULAS = dict(
    shifted=TwoSided(SHIFTED_BCE, (SHIFT,)),
    weighted=TwoSided(WEIGHTED_BCE, (Q, R)),
    focal=TwoSided(FOCAL, focal_parameters(FOCUSING, FOCUSING / 2, 0.25)),
    quality=TwoSided(QUALITY_FOCAL, focal_parameters(FOCUSING, FOCUSING / 2)),
)
close = torch.testing.assert_close


@pytest.fixture(params=FORMULAS)
def name(request):
    return request.param


@pytest.fixture
def definition(name):
    return FORMULAS[name]


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(7, C, dtype=torch.float64, generator=generator)
    return logits, torch.tensor([0, 1, 2, 3, 3, 0, C])


def one_hot(labels):
    """(N, C, d1, ...), of labels of which C and more are none."""
    return F.one_hot(labels.clamp(max=C), C + 1).movedim(-1, 1)[:, :C].double()


def qualities(definition, labels):
    """Of each row, if the definition reads them."""
    if not definition.sides.reads_quality:
        return None
    values = torch.linspace(0.1, 1, labels.numel()).double()
    return values.view(labels.shape)


# -------------------------------------------------------------------- values
def test_parameters_of_focal():
    gamma, weight = torch.tensor([2.0, 3.0]), torch.tensor([1.0, 1.5])
    close(
        focal_parameters(gamma, weight, 0.25),
        (gamma, 0.25 * weight, 0.75 * weight),
    )
    close(focal_parameters(gamma, weight), (gamma, weight, weight))


def test_neutral_parameters_are_binary_cross_entropy(batch, definition):
    logits, labels = batch
    neutral = [
        torch.full((C,), v) for v in map(float, definition.sides.neutral)
    ]
    ours = TwoSided(definition.sides, neutral).loss(
        logits, labels, -100, qualities(definition, labels)
    )
    target = one_hot(labels)
    if definition.sides.reads_quality:
        target = target * qualities(definition, labels).unsqueeze(1)
    close(
        ours,
        F.binary_cross_entropy_with_logits(logits, target, reduction='none'),
    )


@pytest.mark.parametrize('soft', [False, True])
def test_background_that_is_spared(batch, definition, soft):
    logits, labels = batch
    spared = replace(definition, spare_background=True)
    neutral = [
        torch.full((C,), v) for v in map(float, definition.sides.neutral)
    ]
    neutral = TwoSided(definition.sides, neutral)
    y = one_hot(labels) if soft else labels
    quality = None if soft else qualities(definition, labels)
    ours, plain, weighted = (
        torch.stack([f.loss(logits, y, -100, quality)])
        for f in (spared, neutral, definition)
    )
    close(ours[:, -1], plain[:, -1])
    close(ours[:, :-1], weighted[:, :-1])
    assert not torch.allclose(ours[:, -1], weighted[:, -1])
    last = slice(-1, None)
    quality = None if quality is None else quality[last]
    close(
        spared.sums(logits[last], y[last], -100, None, quality),
        neutral.sums(logits[last], y[last], -100, None, quality),
    )


def test_a_label_of_quality_0_is_background(batch):
    labels = batch[1]
    labels[1] = -100
    quality = torch.tensor([0.0, 0, 1, 0, 0.5, -0.1, 0])
    found = where_of_quality(labels, quality, C, -100)
    assert found.tolist() == [C, -100, 2, C, 3, C, C]


# --------------------------------------------------------------- soft labels
def test_one_hot_labels_are_index_labels(batch, definition):
    logits, labels = batch
    soft = one_hot(labels)
    weight = torch.rand(7, 1, dtype=torch.float64)
    one = torch.ones(7) if definition.sides.reads_quality else None
    close(
        definition.loss(logits, labels, -100, one),
        definition.loss(logits, soft, -100),
    )
    close(
        definition.sums(logits, labels, -100, weight, one),
        definition.sums(logits, soft, -100, weight),
    )


@pytest.mark.parametrize('name', ['shifted', 'weighted', 'focal'])
def test_a_soft_label_of_a_class_is_a_mixture(batch, definition):
    logits, t = batch[0][:1], 0.3

    def results(share):
        soft = torch.full((1, C), share)
        return (
            definition.loss(logits, soft, -100),
            definition.sums(logits, soft, -100, None),
        )

    for ours, positive, negative in zip(*map(results, (t, 1.0, 0.0))):
        close(ours, t * positive + (1 - t) * negative)


def test_quality_at_the_label_is_a_map_of_qualities(batch):
    definition = FORMULAS['quality']
    logits, labels = batch[0][:6], batch[1][:6]
    quality = torch.tensor([0.9, 0.01, 0.0, 1.0, 0.4, 0.6])
    soft = one_hot(labels) * quality.unsqueeze(1)
    labels = where_of_quality(labels, quality, C, -100)
    close(
        definition.loss(logits, labels, -100, quality),
        definition.loss(logits, soft, -100),
    )
    of_map = definition.sums(logits, soft, -100, None)
    close(definition.sums(logits, labels, -100, None, quality), of_map)
    # A label of quality 0 is no positive; others count as one each.
    assert of_map[2].tolist() == [2, 1, 0, 2]


# --------------------------------------------------------------- derivatives
SOFT = torch.tensor([[0.2, 0.0, 0.5, 1.0], [0.0, 0.9, 0.1, 0.3]]).double()


@pytest.mark.parametrize(
    'labels',
    [torch.tensor([0, 2]), torch.tensor([-100, 1]), SOFT],
    ids=['index', 'ignored', 'soft'],
)
@pytest.mark.parametrize('spare', [False, True])
def test_gradcheck(definition, labels, spare):
    definition = replace(definition, spare_background=spare)
    logits = torch.tensor(
        [[1.5, -2.0, 0.3, 3.1], [-0.7, 0.2, 2.2, -3.0]],
        dtype=torch.float64,
        requires_grad=True,
    )
    quality = qualities(definition, labels) if labels is not SOFT else None

    def function(z):
        return definition.loss(z, labels, -100, quality)

    assert gradcheck(function, logits)
    assert gradgradcheck(function, logits)


@pytest.mark.parametrize('size', [(12, C), (2, C, 2, 3)], ids=str)
@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('spare', [False, True])
def test_sums_are_the_gradients(definition, size, weighted, spare):
    definition = replace(definition, spare_background=spare)
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(*size, dtype=torch.float64, generator=generator)
    rows = size[:1] + size[2:]
    labels = torch.randint(C + 1, rows, generator=generator)
    labels[0] = 255
    weight = None
    if weighted:
        weight = torch.rand(*size, dtype=torch.float64, generator=generator)
        weight[weight < 0.3] = 0
    quality = qualities(definition, labels)
    leaf = logits.clone().requires_grad_()
    loss = definition.loss(leaf, labels, 255, quality)
    gradient = torch.autograd.grad(loss.sum(), leaf)[0].abs()
    positive = one_hot(labels)
    factor = torch.ones_like(gradient) if weight is None else weight
    over_rows = [0, *range(2, logits.dim())]
    expected = torch.stack(
        [
            (factor * gradient * positive).sum(over_rows),
            (factor * gradient * (1 - positive)).sum(over_rows),
            ((factor > 0) * positive).sum(over_rows),
        ]
    )
    ours = definition.sums(logits, labels, 255, weight, quality)
    close(ours, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize('name', ['focal', 'quality'])
def test_both_of_a_side_are_each_of_it(batch, definition):
    """The shortcut of engines that want value and slope."""
    sides, logits = definition.sides, batch[0]
    close(
        sides.negative_both(logits, *definition.parameters),
        (
            sides.negative(logits, *definition.parameters),
            sides.negative_slope(logits, *definition.parameters),
        ),
        rtol=1e-12,
        atol=1e-15,
    )


# -------------------------------------------------------------- large logits
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


FACTORS = parameter(6.8), parameter(3.4)
LARGE = dict(
    weighted=(
        bce_of_paper,
        TwoSided(WEIGHTED_BCE, (parameter(5), parameter(0.5))),
        None,
    ),
    focal=(
        efl_of_paper,
        TwoSided(FOCAL, focal_parameters(*FACTORS, 0.25)),
        None,
    ),
    quality=(
        eqfl_of_paper,
        TwoSided(QUALITY_FOCAL, focal_parameters(*FACTORS)),
        parameter(QUALITY),
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


@pytest.mark.parametrize('kind', LARGE)
@pytest.mark.parametrize('size', [0.0, 7.0, 8.5, 17.0, 1e4])
def test_large_logits(kind, size):
    of_paper, definition, quality = LARGE[kind]
    for dtype, sign, positive in itertools.product(
        DTYPES, (1, -1), (True, False)
    ):
        leaf = torch.tensor([[sign * size]], dtype=dtype, requires_grad=True)
        value, slope = by_many_digits(of_paper, leaf.item(), positive)
        labels = torch.tensor([0 if positive else 1])
        ours = definition.loss(leaf, labels, -100, quality)
        ours.sum().backward()
        of_class = definition.sums(leaf.detach(), labels, -100, None, quality)
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
