"""VS loss: its formula by hand, and the losses it becomes."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import MODELS

from lt_losses_mm.functional import vs_cross_entropy
from lt_losses_mm.kernels import ENGINES
from lt_losses_mm.losses import BalancedSoftmaxLoss, VSLoss

ROOT = Path(__file__).parents[2]
COUNTS = [400.0, 25.0, 100.0, 0.0]


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(40, 4, generator=generator, dtype=torch.double)
    return logits, torch.arange(40) % 4


def by_hand(z, y, tau, gamma):
    """The formula, as a loop over numbers; 0 samples count as 25."""
    counts = [400.0, 25.0, 100.0, 25.0]
    total = sum(counts)
    adjusted = [
        value / (400 / n) ** gamma + tau * math.log(n / total)
        for value, n in zip(z, counts)
    ]
    return math.log(sum(map(math.exp, adjusted))) - adjusted[y]


@pytest.mark.parametrize('engine', ENGINES)
@pytest.mark.parametrize('tau, gamma', [(1, 0.3), (0, 0.5), (1.5, 0)])
def test_the_formula(batch, engine, tau, gamma):
    logits, labels = batch
    loss = VSLoss(
        class_counts=COUNTS, tau=tau, scale_power=gamma, engine=engine
    )
    ours = loss(logits, labels, reduction_override='none')
    expected = [
        by_hand(z, y, tau, gamma)
        for z, y in zip(logits.tolist(), labels.tolist())
    ]
    torch.testing.assert_close(ours, torch.tensor(expected).double())
    prior = torch.tensor([400.0, 25, 100, 25], dtype=torch.double)
    function = vs_cross_entropy(
        logits, labels, prior, tau=tau, gamma=gamma, engine=engine
    )
    torch.testing.assert_close(ours, function)


@pytest.mark.parametrize('engine', ENGINES)
def test_gradient(batch, engine):
    logits, labels = batch
    loss = VSLoss(class_counts=COUNTS, engine=engine)
    assert torch.autograd.gradcheck(
        lambda z: loss(z, labels), logits.requires_grad_()
    )


def test_no_scale_is_balanced_softmax(batch):
    ours = VSLoss(class_counts=COUNTS, scale_power=0)(*batch)
    torch.testing.assert_close(ours, BalancedSoftmaxLoss(4, COUNTS)(*batch))


def test_nothing_is_cross_entropy(batch):
    ours = VSLoss(class_counts=COUNTS, tau=0, scale_power=0)(*batch)
    torch.testing.assert_close(ours, F.cross_entropy(*batch))


def test_counts_are_free_of_scale(batch):
    doubled = VSLoss(class_counts=[2 * n for n in COUNTS])
    torch.testing.assert_close(
        doubled(*batch), VSLoss(class_counts=COUNTS)(*batch)
    )


def test_background_is_not_scaled():
    loss = VSLoss(class_counts=[400, 25])
    loss.get_cls_channels(2)
    formula = loss.formula(3, torch.float64)
    assert formula.scale.tolist() == [1, (1 / 16) ** 0.3, 1]
    assert formula.shift[2] == 0


def test_scale_power_is_checked():
    with pytest.raises(ValueError, match='VSLoss: scale_power=-1, exp'):
        VSLoss(class_counts=COUNTS, scale_power=-1)


def test_the_fragment_has_the_constants_of_the_authors_code():
    fragment = Config.fromfile(ROOT / 'configs/_base_/losses/vs.py').lt_loss
    assert fragment.pop('_delete_')
    loss = MODELS.build(fragment)
    assert (loss.tau, loss.scale_power, loss.loss_weight) == (1, 0.3, 1)
