"""Random numbers from a seed and a place: rates, and independence.

The bounds are those of a chance of 1e-6 or less; seeds are fixed, so that the
outcome is, too. Values are compared with scalar loops in
``tests/losses/test_equalization_parity.py``.
"""

import math

import pytest
import torch

from lt_losses_mm.kernels.formulas.draw import new_seed, random_drops

ROWS, COLUMNS = 512, 384
SEEDS = [(0, 0), (1, 0), (0, 1), (2**32 - 1, 2**32 - 1)]
# Standard deviations that one normal number does not reach; nor 1e5 of them.
ONE, MANY = 5.0, 7.0


def draw(seed, p=0.5, rows=ROWS, columns=COLUMNS, **kwargs):
    """0 on average, and of variance 1."""
    dropped = random_drops(
        torch.tensor(seed), torch.full((columns,), p), (rows,), **kwargs
    )
    return (dropped.double() - p) / math.sqrt(p * (1 - p))


def deviation(values):
    """Of a sum of independent numbers of variance 1."""
    return (values.sum() / math.sqrt(values.numel())).abs().item()


def chi_square(totals, count):
    """Of sums of ``count`` each, as a normal number."""
    square = totals.square().sum() / count
    return ((square - len(totals)) / math.sqrt(2 * len(totals))).abs().item()


def correlations(a, b):
    """Of all pairs of rows."""
    return a @ b.t() / math.sqrt(a.size(1))


@pytest.mark.parametrize('p', [0.05, 0.5, 0.9])
@pytest.mark.parametrize('seed', SEEDS)
def test_rates(seed, p):
    z = draw(seed, p)
    assert deviation(z) < ONE
    assert chi_square(z.sum(0), ROWS) < ONE
    assert chi_square(z.sum(1), COLUMNS) < ONE
    # Binomial bounds of each.
    assert (z.sum(0) / math.sqrt(ROWS)).abs().max() < MANY
    assert (z.sum(1) / math.sqrt(COLUMNS)).abs().max() < MANY


def test_rates_of_columns_are_their_own():
    p = torch.linspace(0, 1, COLUMNS)
    found = random_drops(torch.tensor([3, 4]), p, (4000,)).double().mean(0)
    sigma = (p * (1 - p) / 4000).sqrt()
    assert ((found - p).abs() <= 4.5 * sigma).all()
    assert (found[0], found[-1]) == (0, 1)


@pytest.mark.parametrize('seed', SEEDS)
def test_rows_and_columns_are_independent(seed):
    z = draw(seed)
    for values in (z, z.t()):
        one, other = torch.triu_indices(len(values), len(values), 1)
        pairs = correlations(values, values)[one, other]
        assert pairs.abs().max() < MANY
        assert chi_square(pairs, 1) < ONE
    # Powers of two are where weak mixers show, in products of four, too.
    for lag in (1, 2, 3, 4, 8, 16, 32, 64, 128, 256):
        beside = z[:, lag:] * z[:, :-lag]
        below = z[lag:] * z[:-lag]
        assert deviation(beside) < ONE
        assert deviation(below) < ONE
        assert deviation(beside[lag:] * beside[:-lag]) < ONE


@pytest.mark.parametrize('seed', SEEDS[:3])
def test_seeds_are_independent(seed):
    z = draw(seed)
    low, high = seed
    for other in ((low + 1, high), (low, high + 1), (high + 7, low)):
        pairs = correlations(z, draw(other))
        assert pairs.abs().max() < MANY
        assert deviation(pairs.diagonal()) < ONE
        assert chi_square(pairs.flatten(), 1) < ONE


def test_numbers_are_even():
    """By the probabilities at which an element begins to be left out."""
    p = torch.linspace(0, 1, 17)[1:-1]
    below = torch.stack(
        [
            random_drops(
                torch.tensor([8, 9]), q.expand(COLUMNS), (ROWS,)
            ).sum()
            for q in p
        ]
    )
    total = ROWS * COLUMNS
    edges = torch.cat([torch.zeros(1), below, torch.tensor([total])])
    counts = edges.double().diff()
    expected = total / 16
    square = ((counts - expected) ** 2 / expected).sum()
    assert square < 60  # 15 degrees of freedom: a chance of 3e-7


@pytest.mark.parametrize('seed', SEEDS)
@pytest.mark.parametrize('word', [torch.int32, torch.int64])
def test_shapes_parts_and_words(seed, word):
    p = torch.rand(COLUMNS, generator=torch.Generator().manual_seed(0))
    seed = torch.tensor(seed)
    expected = random_drops(seed, p, (24,))
    assert expected.shape == (24, COLUMNS)
    found = random_drops(seed, p, (2, 3, 4), word=word)
    assert found.shape == (2, COLUMNS, 3, 4)
    assert torch.equal(found.movedim(1, -1).flatten(0, 2), expected)
    part = random_drops(seed, p, (7,), first_row=11, word=word)
    assert torch.equal(part, expected[11:18])
    # A probability of another column changes nothing here.
    p[::2] = 0
    found = random_drops(seed, p, (24,), word=word)
    assert torch.equal(found[:, 1::2], expected[:, 1::2])
    assert not found[:, ::2].any()


def test_seeds_come_from_the_default_generator():
    device = torch.device('cpu')
    torch.manual_seed(0)
    first, second = new_seed(device), new_seed(device)
    torch.manual_seed(0)
    assert torch.equal(new_seed(device), first)
    assert not torch.equal(first, second)
    assert first.dtype == torch.int64
    many = torch.stack([new_seed(device) for _ in range(200)])
    assert many.min() >= 0
    assert 2**31 < many.max() < 2**32
