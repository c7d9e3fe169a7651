"""Softmax methods, per row, against the papers' formulas in explicit loops.

Seesaw has a file of its own among those of the formulas.
"""

import math

import pytest
import torch
import torch.nn.functional as F

from lt_losses_mm.functional import (
    balanced_softmax_cross_entropy,
    equalization_softmax_cross_entropy,
    seesaw_cross_entropy,
)

PRIOR = torch.tensor([0.6, 0.25, 0.1, 0.05], dtype=torch.float64)
# Left out for certain, or never.
RARE = torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=torch.float64)
# The native engine has fp32 and less.
ENGINES = [
    ('reference', torch.float64, 1e-12),
    ('eager', torch.float64, 1e-12),
    ('native', torch.float32, 1e-5),
]
close = torch.testing.assert_close


def by_loops(logits, labels, mass_of):
    """-log of the label's share of the mass, one exponential at a time."""
    out = []
    for row, label in zip(logits.tolist(), labels.tolist()):
        mass = [mass_of(j, label) * math.exp(z) for j, z in enumerate(row)]
        out.append(-math.log(mass[label] / sum(mass)))
    return torch.tensor(out, dtype=torch.float64)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 4, dtype=torch.float64, generator=generator) * 3
    return logits, torch.tensor([0, 1, 2, 3, 3, 0, 1])


@pytest.mark.parametrize('tau', [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize(('engine', 'dtype', 'rtol'), ENGINES)
def test_balanced_softmax(batch, tau, engine, dtype, rtol):
    """Eq. 4 of Balanced Softmax with pi^tau."""
    logits, labels = batch
    ours = balanced_softmax_cross_entropy(
        logits.to(dtype), labels, PRIOR, tau=tau, engine=engine
    )
    expected = by_loops(logits, labels, lambda j, y: PRIOR[j].item() ** tau)
    assert ours.dtype == dtype
    close(ours.double(), expected, rtol=rtol, atol=rtol)


@pytest.mark.parametrize('background', [None, 3])
@pytest.mark.parametrize(('engine', 'dtype', 'rtol'), ENGINES)
def test_softmax_form_of_eql(batch, background, engine, dtype, rtol):
    """Of rows of an object, rare classes besides the label have no mass."""
    logits, labels = batch

    def weight(j, label):
        return j == label or label == background or RARE[j].item() == 0

    ours = equalization_softmax_cross_entropy(
        logits.to(dtype), labels, RARE, num_classes=background, engine=engine
    )
    expected = by_loops(logits, labels, weight)
    close(ours.double(), expected, rtol=rtol, atol=rtol)
    plain = F.cross_entropy(logits, labels, reduction='none')
    assert ((ours - plain).abs() < 1e-5).any() == (background is not None)


def test_draws_of_eql():
    """By a seed, or by PyTorch's generator."""
    logits, labels = torch.randn(50, 4), torch.zeros(50, dtype=torch.long)

    def loss(seed=None):
        seed = None if seed is None else torch.tensor(seed)
        return equalization_softmax_cross_entropy(
            logits, labels, torch.full((4,), 0.5), seed=seed
        )

    assert torch.equal(loss((1, 2)), loss((1, 2)))
    assert not torch.equal(loss((1, 2)), loss((1, 3)))
    torch.manual_seed(0)
    first, second = loss(), loss()
    torch.manual_seed(0)
    assert torch.equal(loss(), first)
    assert not torch.equal(first, second)


def test_neutral_parameters_give_plain_cross_entropy(batch):
    logits, labels = batch
    plain = F.cross_entropy(logits, labels, reduction='none')
    zeros = torch.zeros(4)
    close(balanced_softmax_cross_entropy(*batch, PRIOR, tau=0), plain)
    close(balanced_softmax_cross_entropy(*batch, torch.ones(4)), plain)
    close(equalization_softmax_cross_entropy(*batch, zeros), plain)
    close(seesaw_cross_entropy(*batch, zeros, q=0), plain)


def test_counts_are_known_only_up_to_scale(batch):
    close(
        balanced_softmax_cross_entropy(*batch, PRIOR),
        balanced_softmax_cross_entropy(*batch, 1e4 * PRIOR),
    )


def test_closed_form_gradient(batch):
    logits, labels = batch
    logits = logits.requires_grad_()
    balanced_softmax_cross_entropy(logits, labels, PRIOR).sum().backward()
    one_hot = F.one_hot(labels, 4).double()
    close(logits.grad, (logits + PRIOR.log()).softmax(1).detach() - one_hot)


METHODS = [
    lambda z, y, **kw: balanced_softmax_cross_entropy(z, y, PRIOR, **kw),
    lambda z, y, **kw: equalization_softmax_cross_entropy(z, y, RARE, **kw),
    lambda z, y, **kw: seesaw_cross_entropy(z, y, PRIOR.log(), **kw),
]


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize(('engine', 'dtype', 'rtol'), ENGINES)
def test_maps_are_rows(method, engine, dtype, rtol):
    logits = torch.randn(2, 4, 3, 5, dtype=dtype)
    labels = torch.randint(0, 4, (2, 3, 5))
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


@pytest.mark.parametrize('method', METHODS[:2])
def test_soft_labels_extend_index_labels(batch, method):
    logits, labels = batch
    soft = F.one_hot(labels, 4).double()
    close(method(logits, labels), method(logits, soft))
    # A smoothed label is a mixture where no column is left out.
    if method is METHODS[0]:
        mixture = sum(
            share * method(logits, torch.full((7,), j))
            for j, share in enumerate((0.5, 0, 0.3, 0.2))
        )
        shares = torch.tensor([0.5, 0, 0.3, 0.2]).double().expand(7, 4)
        close(method(logits, shares), mixture)


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('engine', ['reference', 'eager', 'native'])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_fp32(method, engine, dtype):
    logits = (torch.randn(64, 4) * 10).to(dtype)
    labels = torch.randint(0, 4, (64,))
    ours = method(logits, labels, engine=engine)
    assert ours.dtype == torch.float32
    expected = method(logits.float(), labels, engine='reference')
    close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('value', [-1e4, -100.0, 100.0, 1e4])
def test_extreme_logits(method, value):
    logits = torch.full((2, 4), value, requires_grad=True)
    logits.data[:, 0] = -value
    out = method(logits, torch.tensor([0, 2]))
    (first,) = torch.autograd.grad(out.sum(), logits, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), logits)
    for tensor in (out, first, second):
        assert tensor.isfinite().all()
