# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""``check_loss`` names what is wrong; contract/ holds our losses to it."""

from __future__ import annotations

import ast
import inspect

import pytest
import torch

from lt_losses_mm import examples, testing
from lt_losses_mm.kernels import Shifted
from lt_losses_mm.losses import (
    BalancedSoftmaxLoss,
    SeesawSoftmaxLoss,
    SigmoidEqualizationLoss,
)
from lt_losses_mm.testing import CHECKS, check_loss


def test_arguments_reach_the_constructor():
    with pytest.raises(AssertionError, match="'shapes'.*tau=-1"):
        check_loss(BalancedSoftmaxLoss, tau=-1)


def test_a_check_a_claim():
    """None is left out, and each says what it claims."""
    names = [check.__name__ for check in CHECKS]
    assert names[0] == 'arguments' and 'derivatives' in names
    assert len(set(names)) == len(names) == 17
    assert all(check.__doc__.endswith('.') for check in CHECKS)


class HiddenArguments(BalancedSoftmaxLoss):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)


class Undescribed(BalancedSoftmaxLoss):
    def __init__(self, num_classes=None, class_counts=None, sharpness=1.0):
        super().__init__(num_classes, class_counts)


class MixesPixels(BalancedSoftmaxLoss):
    def row_loss(self, batch):
        rows = super().row_loss(batch)
        return rows.mT if rows.dim() == 3 else rows


class ForgetsLossWeight(BalancedSoftmaxLoss):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs) / self.loss_weight


class IgnoresWeights(BalancedSoftmaxLoss):
    def row_loss(self, batch):
        batch.row_weight = None
        return super().row_loss(batch)


class IgnoresNothing(BalancedSoftmaxLoss):
    def row_loss(self, batch):
        batch.labels = batch.labels.clamp(0, batch.logits.size(1) - 1)
        return super().row_loss(batch)


class NoGraphWhenEmpty(BalancedSoftmaxLoss):
    def row_loss(self, batch):
        if not batch.logits.numel():
            return torch.zeros(())
        return super().row_loss(batch)


class Overflows(BalancedSoftmaxLoss):
    def row_loss(self, batch):
        return super().row_loss(batch) + 0 * batch.logits.float().exp().sum()


class TakesNoSoftLabels(SeesawSoftmaxLoss):
    takes_soft_labels = True


class RoundsItsLogits(BalancedSoftmaxLoss):
    def row_loss(self, batch):
        batch.logits = batch.logits.to(torch.bfloat16)
        return super().row_loss(batch)


class OtherGradient(BalancedSoftmaxLoss):
    def row_loss(self, batch):
        value = super().row_loss(batch)
        return value + 0.01 * (value - value.detach())


class OtherEngine(BalancedSoftmaxLoss):
    def formula(self, columns, dtype):
        shift = super().formula(columns, dtype).shift
        return Shifted(2 * shift if self.engine == 'eager' else shift)


class NegativeLoss(BalancedSoftmaxLoss):
    def row_loss(self, batch):
        return -super().row_loss(batch)


class DoublesItsCounts(BalancedSoftmaxLoss):
    def row_loss(self, batch):
        if batch.logits.dtype == torch.float32:
            self.class_counts *= 2
        return super().row_loss(batch)


class LearnsInEval(SigmoidEqualizationLoss):
    def row_loss(self, batch):
        batch.learns = batch.logits.numel() > 0
        return super().row_loss(batch)


class ReadsBeforeTheCommit(SigmoidEqualizationLoss):
    def row_loss(self, batch):
        rows = super().row_loss(batch)
        if batch.learns and batch.logits.dtype == torch.float32:
            self.statistics.commit()
        return rows


class RoundsItsCounts(BalancedSoftmaxLoss):
    _apply = torch.nn.Module._apply


class TakesAnyReduction(BalancedSoftmaxLoss):
    def __init__(
        self,
        num_classes=None,
        class_counts=None,
        tau=1.0,
        background=None,
        loss_weight=1.0,
        reduction='mean',
        ignore_index=None,
        avg_non_ignore=False,
        use_sigmoid=None,
        engine=None,
    ):
        known = dict(locals(), loss_weight=loss_weight or 1.0)
        del known['self'], known['__class__']
        super().__init__(**known)


class SparesTheCommon(BalancedSoftmaxLoss):
    def formula(self, columns, dtype):
        return Shifted(-super().formula(columns, dtype).shift)


BROKEN = {
    HiddenArguments: 'arguments',
    Undescribed: 'arguments',
    MixesPixels: 'shapes',
    ForgetsLossWeight: 'reductions',
    IgnoresWeights: 'weights',
    IgnoresNothing: 'ignored_rows',
    NoGraphWhenEmpty: 'nothing_to_learn_from',
    Overflows: 'background',
    TakesNoSoftLabels: 'labels',
    RoundsItsLogits: 'precision',
    OtherGradient: 'derivatives',
    OtherEngine: 'engines',
    NegativeLoss: 'plain_form',
    DoublesItsCounts: 'inputs',
    LearnsInEval: 'learning',
    ReadsBeforeTheCommit: 'learning',
    RoundsItsCounts: 'state',
    TakesAnyReduction: 'mistakes',
    SparesTheCommon: 'rare_classes',
}


@pytest.mark.parametrize(
    'cls, check', BROKEN.items(), ids=[cls.__name__ for cls in BROKEN]
)
def test_a_broken_loss_is_caught_by_name(cls, check):
    message = f'{cls.__name__} fails the check {check!r}'
    with pytest.raises(AssertionError, match=message):
        check_loss(cls)


def test_each_check_can_fail():
    assert {check.__name__ for check in CHECKS} == set(BROKEN.values())


ALLOWED = {'torch', '__future__', 'copy', 'functools', 'inspect'}
ALLOWED |= {'itertools', 're', 'typing'}


@pytest.mark.parametrize('module', [examples, testing])
def test_needs_torch_alone(module):
    """Neither a test runner nor MMEngine nor a host."""
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Import):
            names = [alias.name.split('.')[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module.split('.')[0]]
        else:
            continue
        assert set(names) <= ALLOWED
