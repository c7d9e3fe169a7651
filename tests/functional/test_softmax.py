"""The maths against explicit loops, identities and closed-form gradients."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from lt_losses_mm.functional import (
    balanced_sigmoid_cross_entropy,
    balanced_softmax_cross_entropy,
    shifted_sigmoid_cross_entropy,
    shifted_softmax_cross_entropy,
)

PRIOR = torch.tensor([0.6, 0.25, 0.1, 0.05], dtype=torch.float64)


def softmax_by_loops(logits, labels, prior, tau):
    """Eq. 4 of Balanced Softmax with pi^tau, one exponential at a time."""
    out = []
    for row, label in zip(logits.tolist(), labels.tolist()):
        mass = [p**tau * math.exp(z) for p, z in zip(prior.tolist(), row)]
        out.append(-math.log(mass[label] / sum(mass)))
    return torch.tensor(out, dtype=torch.float64)


def sigmoid_by_loops(logits, labels, prior, tau):
    out = torch.zeros_like(logits)
    for i, row in enumerate(logits.tolist()):
        for j, z in enumerate(row):
            odds = (
                math.exp(z) * (prior[j].item() / (1 - prior[j].item())) ** tau
            )
            p = odds / (1 + odds)
            out[i, j] = -math.log(p if j == labels[i] else 1 - p)
    return out


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 4, dtype=torch.float64, generator=generator) * 3
    return logits, torch.tensor([0, 1, 2, 3, 3, 0, 1])


@pytest.mark.parametrize('tau', [0.0, 0.5, 1.0, 2.0])
def test_softmax_is_the_published_formula(batch, tau):
    ours = balanced_softmax_cross_entropy(*batch, PRIOR, tau=tau)
    torch.testing.assert_close(
        ours, softmax_by_loops(*batch, PRIOR, tau), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize('tau', [0.0, 0.5, 1.0, 2.0])
def test_sigmoid_is_the_published_formula(batch, tau):
    ours = balanced_sigmoid_cross_entropy(*batch, PRIOR, tau=tau)
    torch.testing.assert_close(
        ours, sigmoid_by_loops(*batch, PRIOR, tau), rtol=1e-12, atol=1e-12
    )


def test_tau_zero_is_the_plain_loss(batch):
    logits, labels = batch
    torch.testing.assert_close(
        balanced_softmax_cross_entropy(logits, labels, PRIOR, tau=0),
        F.cross_entropy(logits, labels, reduction='none'),
    )
    torch.testing.assert_close(
        balanced_sigmoid_cross_entropy(logits, labels, PRIOR, tau=0),
        F.binary_cross_entropy_with_logits(
            logits, F.one_hot(labels, 4).double(), reduction='none'
        ),
    )


def test_softmax_knows_counts_only_up_to_scale(batch):
    torch.testing.assert_close(
        balanced_softmax_cross_entropy(*batch, PRIOR),
        balanced_softmax_cross_entropy(*batch, 1e4 * PRIOR),
    )


def test_closed_form_gradients(batch):
    logits, labels = batch
    logits = logits.requires_grad_()
    one_hot = F.one_hot(labels, 4).double()
    balanced_softmax_cross_entropy(logits, labels, PRIOR).sum().backward()
    torch.testing.assert_close(
        logits.grad, (logits + PRIOR.log()).softmax(1).detach() - one_hot
    )
    logits.grad = None
    balanced_sigmoid_cross_entropy(logits, labels, PRIOR).sum().backward()
    torch.testing.assert_close(
        logits.grad, (logits + PRIOR.logit()).sigmoid().detach() - one_hot
    )


@pytest.mark.parametrize(
    'loss', [shifted_softmax_cross_entropy, shifted_sigmoid_cross_entropy]
)
@pytest.mark.parametrize('soft', [False, True])
def test_gradcheck(loss, soft):
    logits = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[0, 3], [1, 1], [2, 0]])
    if soft:
        labels = torch.rand(3, 4, 2, dtype=torch.float64).softmax(1)

    def function(z):
        return loss(z, labels, PRIOR.log())

    assert gradcheck(function, logits)
    assert gradgradcheck(function, logits)


@pytest.mark.parametrize(
    'loss', [shifted_softmax_cross_entropy, shifted_sigmoid_cross_entropy]
)
def test_soft_labels_extend_index_labels(batch, loss):
    logits, labels = batch
    torch.testing.assert_close(
        loss(logits, labels, PRIOR.log()),
        loss(logits, F.one_hot(labels, 4).double(), PRIOR.log()),
    )


@pytest.mark.parametrize(
    'loss', [shifted_softmax_cross_entropy, shifted_sigmoid_cross_entropy]
)
def test_maps_are_rows(loss):
    logits = torch.randn(2, 4, 3, 5)
    labels = torch.randint(0, 4, (2, 3, 5))
    labels[0, 0, 0] = 255
    of_map = loss(logits, labels, PRIOR.log(), ignore_index=255)
    of_rows = loss(
        logits.permute(0, 2, 3, 1).reshape(-1, 4),
        labels.reshape(-1),
        PRIOR.log(),
        ignore_index=255,
    )
    if of_map.dim() == 4:
        of_map = of_map.permute(0, 2, 3, 1).reshape(-1, 4)
    torch.testing.assert_close(of_map.reshape(of_rows.shape), of_rows)
    assert not of_rows[0].any()


def test_label_of_background_has_no_positive_class():
    logits = torch.randn(1, 4)
    torch.testing.assert_close(
        shifted_sigmoid_cross_entropy(logits, torch.tensor([4]), PRIOR.log()),
        F.binary_cross_entropy_with_logits(
            logits + PRIOR.log().float(), torch.zeros(1, 4), reduction='none'
        ),
    )


@pytest.mark.parametrize('value', [-1e4, -100.0, 100.0, 1e4])
@pytest.mark.parametrize(
    'loss', [shifted_softmax_cross_entropy, shifted_sigmoid_cross_entropy]
)
def test_extreme_logits(loss, value):
    logits = torch.full((2, 4), value, requires_grad=True)
    logits.data[:, 0] = -value
    out = loss(logits, torch.tensor([0, 2]), PRIOR.log())
    (first,) = torch.autograd.grad(out.sum(), logits, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), logits)
    for tensor in (out, first, second):
        assert tensor.isfinite().all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_fp32(dtype):
    logits = (torch.randn(64, 4) * 10).to(dtype)
    labels = torch.randint(0, 4, (64,))
    for loss in (shifted_softmax_cross_entropy, shifted_sigmoid_cross_entropy):
        ours = loss(logits, labels, PRIOR.log())
        assert ours.dtype == torch.float32
        torch.testing.assert_close(
            ours, loss(logits.float(), labels, PRIOR.log())
        )
