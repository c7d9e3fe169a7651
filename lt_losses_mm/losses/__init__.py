# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Registered losses: one class a file, over one base."""

from .balanced_sigmoid import BalancedSigmoidLoss
from .balanced_softmax import BalancedSoftmaxLoss
from .base import LongTailLoss

__all__ = ['BalancedSigmoidLoss', 'BalancedSoftmaxLoss', 'LongTailLoss']
