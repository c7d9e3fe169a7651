"""Seesaw Loss: hand-worked values, identities, two references."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from lt_losses_mm.functional import seesaw_cross_entropy
from lt_losses_mm.kernels import Seesaw

COUNTS = (500.0, 60.0, 9.0, 1.0)
C = len(COUNTS)


def log_counts(counts=COUNTS):
    return torch.tensor(counts, dtype=torch.float64).log()


def exponentials(*values):
    """Logits (1, C) whose exponentials are these."""
    return torch.tensor([values], dtype=torch.float64).log()


def draw(n=40, columns=C, size=(), seed=0, scale=3):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(
        n, columns, *size, dtype=torch.float64, generator=generator
    )
    return logits, torch.randint(0, columns, (n, *size), generator=generator)


def by_hand(logits, label, counts, p, q, eps, background=False):
    """Loss and gradient of one row, term by term, in Python's floats.

    The gradient is that for factors which are constants. With ``background``
    the last column is a class without a count: mitigation is 1 for it and
    for all others in its rows.
    """
    e = [math.exp(z) for z in logits]
    score = [x / sum(e) for x in e]
    factors = []
    for j in range(len(e)):
        mitigation = 1.0
        counted = not (background and len(e) - 1 in (j, label))
        if counted and counts[j] < counts[label]:
            mitigation = (counts[j] / counts[label]) ** p
        compensation = 1.0
        floored = max(score[label], eps)
        if j != label and score[j] > floored:
            compensation = (score[j] / floored) ** q
        factors.append(mitigation * compensation)
    terms = [s * x for s, x in zip(factors, e)]
    shares = [t / sum(terms) for t in terms]
    gradient = [s - (j == label) for j, s in enumerate(shares)]
    return -math.log(shares[label]), gradient


def differentiate(logits, labels, *args, **kwargs):
    logits = logits.clone().requires_grad_()
    rows = seesaw_cross_entropy(logits, labels, *args, **kwargs)
    (gradient,) = torch.autograd.grad(rows.sum(), logits)
    return rows.detach(), gradient


# -------------------------------------------------------------- hand-worked
@pytest.mark.parametrize(
    ('label', 'p', 'expected'),
    [
        (0, 1.0, 10 / 9),  # 1 + 1/9
        (0, 0.5, 4 / 3),  # 1 + (1/9)^(1/2)
        (0, 0.0, 2),
        (1, 1.0, 2),  # the rarer label is not mitigated
        (1, 0.5, 2),
    ],
)
def test_mitigation(label, p, expected):
    loss = seesaw_cross_entropy(
        exponentials(1, 1), torch.tensor([label]), log_counts((9, 1)), p=p, q=0
    )
    assert loss.item() == pytest.approx(math.log(expected), rel=1e-12)


@pytest.mark.parametrize(
    ('e', 'label', 'q', 'eps', 'expected'),
    [
        # Scores 3/4 and 1/4.
        ((3, 1), 1, 1.0, 0.01, 1 + 3 * 3),
        ((3, 1), 1, 2.0, 0.01, 1 + 9 * 3),
        ((3, 1), 0, 2.0, 0.01, 4 / 3),  # only what exceeds the label counts
        # Scores 0.99 and 0.01, the latter taken for eps.
        ((99, 1), 1, 1.0, 0.01, 1 + 99 * 99),
        ((99, 1), 1, 1.0, 0.1, 1 + 9.9 * 99),
        ((99, 1), 1, 1.0, 1.0, 1 + 99),
        # Scores 0.6, 0.3, 0.1.
        ((6, 3, 1), 2, 1.0, 0.01, 1 + 3 * 3 + 6 * 6),
        ((6, 3, 1), 1, 1.0, 0.01, (3 + 1 + 2 * 6) / 3),
        # The label's 0.1 is raised to 0.5: 0.3 is no more than that.
        ((6, 3, 1), 2, 1.0, 0.5, 1 + 3 + 1.2 * 6),
    ],
)
def test_compensation(e, label, q, eps, expected):
    loss = seesaw_cross_entropy(
        exponentials(*e),
        torch.tensor([label]),
        log_counts([1] * len(e)),
        p=0.8,
        q=q,
        eps=eps,
    )
    assert loss.item() == pytest.approx(math.log(expected), rel=1e-12)


def test_both_factors():
    """Class 0 has a quarter of the label's samples and thrice its score."""
    loss = seesaw_cross_entropy(
        exponentials(3, 1), torch.tensor([1]), log_counts((2, 8)), p=0.5, q=2
    )
    assert loss.item() == pytest.approx(math.log(1 + 0.5 * 9 * 3), rel=1e-12)


def test_the_label_keeps_its_logit():
    logits, labels = draw()
    formula = Seesaw(log_counts(), log_counts())
    adjusted = formula.adjust(logits, labels, -100)
    at = labels.unsqueeze(1)
    assert torch.equal(adjusted.gather(1, at), logits.gather(1, at))
    assert not torch.allclose(adjusted, logits)


# --------------------------------------------------------------- identities
@pytest.mark.parametrize('size', [(), (3,), (2, 3)], ids=str)
def test_without_factors_it_is_cross_entropy(size):
    logits, labels = draw(size=size)
    plain = F.cross_entropy(logits, labels, reduction='none')
    for counts, strength in (
        (COUNTS, dict(p=0, q=0)),
        ([7] * C, dict(p=0.8, q=0)),
        # No score exceeds 1.
        ([7] * C, dict(p=0.8, q=2, eps=1)),
    ):
        ours = seesaw_cross_entropy(
            logits, labels, log_counts(counts), **strength
        )
        assert_close(ours, plain)


def test_scale_of_the_counts_is_irrelevant():
    logits, labels = draw()
    assert_close(
        seesaw_cross_entropy(logits, labels, log_counts() + 3),
        seesaw_cross_entropy(logits, labels, log_counts()),
    )


def test_order_of_the_classes_is_irrelevant():
    logits, labels = draw()
    order = torch.tensor([2, 0, 3, 1])
    assert_close(
        seesaw_cross_entropy(
            logits[:, order], order.argsort()[labels], log_counts()[order]
        ),
        seesaw_cross_entropy(logits, labels, log_counts()),
    )


def test_maps_are_flattened_maps():
    logits, labels = draw(n=2, size=(4, 3))
    labels[0, :2] = 255
    ours = seesaw_cross_entropy(logits, labels, log_counts(), ignore_index=255)
    flat = seesaw_cross_entropy(
        logits.movedim(1, -1).reshape(-1, C),
        labels.flatten(),
        log_counts(),
        ignore_index=255,
    )
    assert_close(ours, flat.view(labels.shape))
    assert (ours[0, :2] == 0).all() and (ours[1] > 0).all()


# ------------------------------------------------------- reference in loops
@pytest.mark.parametrize('p', [0, 0.8, 1.5])
@pytest.mark.parametrize('q', [0, 0.5, 2])
@pytest.mark.parametrize('eps', [1e-2, 0.3, 1])
@pytest.mark.parametrize(
    ('name', 'dtype', 'value_rtol', 'slope_rtol'),
    [
        ('reference', torch.float64, 1e-10, 1e-9),
        ('eager', torch.float64, 1e-10, 1e-9),
        ('native', torch.float32, 2e-5, 1e-4),
    ],
)
def test_row_by_row(p, q, eps, name, dtype, value_rtol, slope_rtol):
    """Value and gradient, none of which flows through the scores."""
    logits, labels = draw()
    rows, gradient = differentiate(
        logits.to(dtype),
        labels,
        log_counts(),
        p=p,
        q=q,
        eps=eps,
        engine=name,
    )
    floor = 1e-12 if dtype == torch.float64 else 1e-6
    for i, (z, y) in enumerate(zip(logits.tolist(), labels.tolist())):
        value, slope = by_hand(z, y, COUNTS, p, q, eps)
        assert rows[i].item() == pytest.approx(
            value, rel=value_rtol, abs=floor
        )
        assert gradient[i].tolist() == pytest.approx(
            slope, rel=slope_rtol, abs=floor
        )


def test_background_neither_receives_nor_causes_mitigation():
    """An infinite log count in one role, minus infinity in the other."""
    logits, labels = draw(columns=C + 1)
    assert (labels == C).sum() > 3
    infinite = torch.tensor([math.inf], dtype=torch.float64)
    column = torch.cat([log_counts(), infinite])
    label = torch.cat([log_counts(), -infinite])
    rows, gradient = differentiate(logits, labels, column, label)
    for i, (z, y) in enumerate(zip(logits.tolist(), labels.tolist())):
        value, slope = by_hand(z, y, COUNTS, 0.8, 2, 1e-2, background=True)
        assert rows[i].item() == pytest.approx(value, rel=1e-10, abs=1e-12)
        assert gradient[i].tolist() == pytest.approx(
            slope, rel=1e-9, abs=1e-12
        )
    plain = F.cross_entropy(logits, labels, reduction='none')
    ours = seesaw_cross_entropy(logits, labels, column, label, q=0)
    is_background = labels == C
    assert_close(ours[is_background], plain[is_background])
    assert (ours[~is_background] <= plain[~is_background]).all()
    assert_close(
        seesaw_cross_entropy(logits, labels, column, label, p=0, q=0), plain
    )


@pytest.mark.parametrize('background', [False, True])
def test_derivatives_of_the_mitigation(background):
    logits, labels = draw(n=5, columns=C + background)
    column = label = log_counts()
    if background:
        labels[0] = C
        infinite = torch.tensor([math.inf], dtype=torch.float64)
        column, label = (
            torch.cat([column, infinite]),
            torch.cat([column, -infinite]),
        )
    labels[1] = -100

    def rows(z):
        return seesaw_cross_entropy(z, labels, column, label, q=0)

    assert gradcheck(rows, logits.requires_grad_())
    assert gradgradcheck(rows, logits)


# ------------------------------------------------------------------- floats
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_fp32(dtype):
    logits, labels = draw()
    half = logits.to(dtype)
    ours = seesaw_cross_entropy(half, labels, log_counts())
    assert ours.dtype == torch.float32
    assert_close(
        ours, seesaw_cross_entropy(half.float(), labels, log_counts())
    )


def test_finite_at_large_logits():
    for size in (1e2, 1e4):
        logits = torch.full((C, C), -size)
        logits.fill_diagonal_(size)
        for labels in (torch.arange(C), torch.arange(C).flip(0)):
            rows, gradient = differentiate(
                logits, labels, log_counts((1e9, 1, 1, 5))
            )
            assert rows.isfinite().all() and gradient.isfinite().all()


# ------------------------------------------------------------- mmdet's own
def test_mmdets_formula():
    losses = pytest.importorskip('mmdet.models.losses.seesaw_loss')
    logits, labels = draw()
    theirs = losses.seesaw_ce_loss(
        logits,
        labels,
        None,
        torch.tensor(COUNTS, dtype=torch.float64),
        C,
        p=0.8,
        q=2.0,
        eps=1e-2,
        reduction='none',
    )
    ours = seesaw_cross_entropy(logits, labels, log_counts())
    assert_close(ours, theirs)
