"""Softmax formulas: derivatives, and sums, which are those derivatives."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from lt_losses_mm.kernels import Dropped, Seesaw, Shifted

C = 4
SHIFT = torch.tensor([1.0, 0.3, -2.0, -9.0], dtype=torch.float64)
SCALE = torch.tensor([1.0, 0.7, 2.3, 0.1], dtype=torch.float64)
COUNTS = torch.tensor([500.0, 60.0, 9.0, 1.0], dtype=torch.float64).log()
RARE = torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=torch.float64)
FORMULAS = dict(
    shifted=Shifted(SHIFT),
    scaled=Shifted(SHIFT, SCALE),
    seesaw=Seesaw(COUNTS, COUNTS, q=0),
    dropped=Dropped(RARE, torch.tensor([1, 2]), C),
)
SOFT = torch.tensor([[0.2, 0.0, 0.5, 0.3], [0.0, 0.0, 0.0, 1.0]]).double()
close = torch.testing.assert_close


@pytest.fixture(params=FORMULAS)
def definition(request):
    return FORMULAS[request.param]


@pytest.fixture(params=['shifted', 'scaled', 'dropped'])
def soft_definition(request):
    """One that is defined for soft labels."""
    return FORMULAS[request.param]


def draw(*size, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(*size, dtype=dtype, generator=generator)
    rows = size[:1] + size[2:]
    return logits, torch.randint(C, rows, generator=generator)


# -------------------------------------------------------------------- values
def test_shift_and_scale_by_loops():
    """-log of the label's share, one exponential at a time."""
    logits, labels = draw(7, C)
    ours = FORMULAS['scaled'].loss(logits, labels, -100)
    for row, label, loss in zip(logits.tolist(), labels.tolist(), ours):
        mass = [
            math.exp(z * scale + shift)
            for z, scale, shift in zip(row, SCALE.tolist(), SHIFT.tolist())
        ]
        expected = -math.log(mass[label] / sum(mass))
        assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_shift_and_scale_in_closed_form():
    logits, labels = draw(7, C)
    leaf = logits.requires_grad_()
    FORMULAS['scaled'].loss(leaf, labels, -100).sum().backward()
    share = (logits.detach() * SCALE + SHIFT).softmax(1)
    close(leaf.grad, SCALE * (share - F.one_hot(labels, C)))
    # A scale of 1 is none.
    close(
        Shifted(SHIFT, torch.ones(C)).loss(logits, labels, -100),
        Shifted(SHIFT).loss(logits, labels, -100),
    )


def test_what_is_left_out_by_hand():
    logits = torch.tensor([[0.0, 1.0, 2.0]]).log1p()
    definition = Dropped(torch.tensor([0.0, 1, 1]), torch.tensor([3, 4]), 2)

    def loss(label):
        return definition.loss(logits, torch.tensor([label]), -100).exp()

    # e^z is 1, 2, 3; the label itself is never left out, nor is any column
    # of background.
    close(loss(0), torch.tensor([1.0]))
    close(loss(1), torch.tensor([3 / 2]))
    close(loss(2), torch.tensor([6 / 3]))


def test_soft_labels_keep_their_share_of_a_class_left_out():
    logits = torch.tensor([[0.0, 1.0, 2.0]]).log1p()
    definition = Dropped(torch.tensor([0.0, 1, 1]), torch.tensor([3, 4]), 3)
    soft = torch.tensor([[0.5, 0.25, 0.0]])
    # w is 1, 1/4 (its share), 0.
    total = 1 + 2 / 4
    expected = 0.5 * math.log(total / 1) + 0.25 * math.log(total / 2)
    assert definition.loss(logits, soft, -100).item() == pytest.approx(
        expected
    )
    # Without any label it is background, which loses no column.
    assert definition.loss(logits, 0 * soft, -100).item() == 0


# --------------------------------------------------------------- derivatives
@pytest.mark.parametrize(
    'labels',
    [torch.tensor([0, 2]), torch.tensor([-100, 1])],
    ids=['index', 'ignored'],
)
def test_gradcheck(definition, labels):
    leaf = draw(2, C)[0].requires_grad_()
    assert gradcheck(lambda z: definition.loss(z, labels, -100), leaf)
    assert gradgradcheck(lambda z: definition.loss(z, labels, -100), leaf)


def test_gradcheck_of_soft_labels(soft_definition):
    leaf = draw(2, C, 2)[0].requires_grad_()
    soft = torch.stack([SOFT, SOFT.flip(0)], 2)
    assert gradcheck(lambda z: soft_definition.loss(z, soft, -100), leaf)
    assert gradgradcheck(lambda z: soft_definition.loss(z, soft, -100), leaf)


@pytest.mark.parametrize('q', [0, 2])
@pytest.mark.parametrize('size', [(12, C), (2, C, 2, 3)], ids=str)
@pytest.mark.parametrize('weighted', [False, True])
def test_sums_are_the_gradients(definition, q, size, weighted):
    if isinstance(definition, Seesaw):
        definition = Seesaw(COUNTS, COUNTS, q=q)
    logits, labels = draw(*size)
    labels[0] = 255
    weight = None
    if weighted:
        weight = torch.rand(labels.shape, dtype=torch.float64).unsqueeze(1)
        weight[weight < 0.3] = 0
    leaf = logits.clone().requires_grad_()
    losses = definition.loss(leaf, labels, 255)
    gradient = torch.autograd.grad(losses.sum(), leaf)[0].abs()
    positive = F.one_hot(labels.clamp(max=C), C + 1).movedim(-1, 1)[:, :C]
    factor = 1.0 if weight is None else weight
    over_rows = [0, *range(2, logits.dim())]
    counted = ((torch.ones_like(gradient) * factor) > 0) * positive
    expected = torch.stack(
        [
            (factor * gradient * positive).sum(over_rows),
            (factor * gradient * (1 - positive)).sum(over_rows),
            counted.double().sum(over_rows),
        ]
    )
    ours = definition.sums(logits, labels, 255, weight)
    close(ours, expected, rtol=1e-10, atol=1e-14)


# --------------------------------------------------------------- soft labels
def test_one_hot_labels_are_index_labels(soft_definition):
    logits, labels = draw(6, C)
    soft = F.one_hot(labels, C).double()
    weight = torch.rand(6, 1, dtype=torch.float64)
    close(
        soft_definition.loss(logits, labels, -100),
        soft_definition.loss(logits, soft, -100),
    )
    if isinstance(soft_definition, Shifted):
        close(
            soft_definition.sums(logits, labels, -100, weight),
            soft_definition.sums(logits, soft, -100, weight),
        )


@pytest.mark.parametrize('name', ['shifted', 'scaled'])
def test_a_soft_label_is_a_mixture(name):
    definition = FORMULAS[name]
    logits = draw(1, C)[0]
    parts = [
        (
            share * definition.loss(logits, label, -100),
            share * definition.sums(logits, label, -100, None),
        )
        for share, label in zip(SOFT[0], torch.arange(C).view(C, 1))
    ]
    close(
        definition.loss(logits, SOFT[:1], -100), sum(loss for loss, _ in parts)
    )
    close(
        definition.sums(logits, SOFT[:1], -100, None),
        sum(sums for _, sums in parts),
    )


# -------------------------------------------------------------- large logits
@pytest.mark.parametrize(
    'dtype', [torch.float64, torch.float32, torch.float16, torch.bfloat16]
)
@pytest.mark.parametrize('soft', [False, True])
def test_large_logits(soft_definition, dtype, soft):
    values = torch.tensor([-1e4, -17.0, -8.5, 0.0, 8.5, 17.0, 1e4])
    generator = torch.Generator().manual_seed(0)
    order = torch.stack(
        [torch.randperm(7, generator=generator)[:C] for _ in range(40)]
    )
    logits = values[order].to(dtype)
    labels = torch.randint(C, (40,), generator=generator)
    if soft:
        labels = F.one_hot(labels, C) * 0.8 + 0.05

    def results(logits):
        leaf = logits.clone().requires_grad_()
        loss = soft_definition.loss(leaf, labels, -100)
        loss.sum().backward()
        out = [loss.detach(), leaf.grad]
        if isinstance(soft_definition, Shifted):
            out.append(soft_definition.sums(logits, labels, -100, None))
        return [value.double() for value in out]

    eps = max(torch.finfo(dtype).eps, 1e-6)
    for ours, exact in zip(results(logits), results(logits.double())):
        assert ours.isfinite().all()
        close(ours, exact, rtol=2 * eps, atol=2e-6)
