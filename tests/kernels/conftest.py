"""Formulas and batches that the tests of all kernels draw from.

A test that asks for ``formula`` runs once for each formula; ``softmax``,
``sigmoid`` and ``maskable`` (finite where a logit is minus infinity) narrow
that down. These are functions that make one, of a number of columns.
``fast`` is an engine that is held to the reference, ``engine`` any of the
three.
"""

from dataclasses import replace

import pytest
import torch

from lt_losses_mm.kernels import (
    ENGINES,
    FOCAL,
    QUALITY_FOCAL,
    SHIFTED_BCE,
    WEIGHTED_BCE,
    Batch,
    Dropped,
    Seesaw,
    Shifted,
    TwoSided,
    sigmoid_rows,
    softmax_rows,
)
from lt_losses_mm.kernels.engines import native
from lt_losses_mm.kernels.formulas.two_sided import focal_parameters


def draw(columns, count=1):
    """Vectors of numbers in [0, 1], the same for the same arguments."""
    generator = torch.Generator().manual_seed(count)
    return torch.rand(count, columns, generator=generator).unbind()


def shifted(columns):
    return Shifted(4 * draw(columns)[0] - 2)


def scaled(columns):
    shift, scale = draw(columns, 2)
    return Shifted(4 * shift - 2, 0.3 + 1.5 * scale)


def seesaw(columns):
    counts = (1000 * draw(columns)[0]).clamp(min=1).log()
    return Seesaw(counts, counts, 0.8, 2.0, 1e-2)


def dropped(columns):
    # Background, where logits have it, is the last column.
    p = draw(columns)[0].where(torch.arange(columns) % 3 > 0, 0)
    return Dropped(p, torch.tensor((1, 2)), columns - 1)


def shifted_bce(columns):
    return TwoSided(SHIFTED_BCE, shifted(columns).columns())


def weighted_bce(columns):
    positive, negative = draw(columns, 2)
    return TwoSided(WEIGHTED_BCE, (1 + 4 * positive, negative))


def focal(columns):
    focusing, weight = draw(columns, 2)
    return TwoSided(FOCAL, focal_parameters(2 + 8 * focusing, 1 + weight, 0.3))


def quality(columns):
    return replace(focal(columns), sides=QUALITY_FOCAL)


SOFTMAX = [shifted, scaled, seesaw, dropped]
SIGMOID = [shifted_bce, weighted_bce, focal, quality]
NATIVE = pytest.param(
    'native',
    marks=pytest.mark.skipif(native.load() is None, reason='no C++ compiler'),
)


def pytest_generate_tests(metafunc):
    kinds = dict(
        formula=SOFTMAX + SIGMOID,
        softmax=SOFTMAX,
        sigmoid=SIGMOID,
        maskable=[shifted, scaled, dropped, shifted_bce],
        fast=['eager', NATIVE],
        engine=[NATIVE if name == 'native' else name for name in ENGINES],
    )
    for argument, values in kinds.items():
        if argument in metafunc.fixturenames:
            metafunc.parametrize(
                argument, values, ids=lambda x: getattr(x, '__name__', x)
            )


def make_batch(formula, logits, labels, **fields):
    """A batch with whatever else the formula reads."""
    if getattr(formula, 'sides', None) is QUALITY_FOCAL:
        values = torch.linspace(0.05, 1, labels.numel())
        fields['quality'] = values.view(labels.shape)
    return Batch(logits, labels, 255, **fields)


def rows_of(formula, batch, *, sums=False):
    softmax = not isinstance(formula, TwoSided)
    function = softmax_rows if softmax else sigmoid_rows
    return function(formula, batch, sums=sums)


def make_logits(
    size, dtype=torch.float32, *, background=False, scale=3.0, ignored=True
):
    generator = torch.Generator().manual_seed(sum(size))
    logits = scale * torch.randn(size, generator=generator)
    rows = size[:1] + size[2:]
    labels = torch.randint(0, size[1] + background, rows, generator=generator)
    if ignored and labels.numel() > 2:
        labels.view(-1)[1] = 255
    return logits.to(dtype), labels


def run(engine, formula, logits, labels, upstream=None, **fields):
    """Losses, the gradient of the logits, and sums."""
    if callable(formula):
        formula = formula(logits.size(1))
    logits = logits.detach().requires_grad_()
    batch = make_batch(formula, logits, labels, engine=engine, **fields)
    losses, sums = rows_of(formula, batch, sums=True)
    if upstream is None:
        upstream = torch.linspace(-1, 2, losses.numel())
        upstream = upstream.view(losses.shape)
    upstream = upstream.to(losses.dtype)
    (gradient,) = torch.autograd.grad(losses, logits, upstream)
    return losses.detach(), gradient, sums


def check(found, expected, rtol=1e-5, atol=1e-6, gradient_rtol=None):
    losses, gradient, sums = found
    close = torch.testing.assert_close
    close(losses, expected[0], rtol=rtol, atol=atol)
    close(gradient, expected[1], rtol=gradient_rtol or rtol, atol=atol)
    assert sums.dtype == torch.float64
    close(sums, expected[2], rtol=rtol, atol=10 * atol)


@pytest.fixture
def make():
    """Logits and labels of a size; label 255 is ignored."""
    return make_logits


@pytest.fixture
def batch_of():
    return make_batch


@pytest.fixture
def rows():
    return rows_of


@pytest.fixture
def compute():
    return run


@pytest.fixture
def agree():
    """Assert that two results of ``compute`` do."""
    return check
