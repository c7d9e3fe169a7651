# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""MMEngine hooks."""

from .class_prior import ClassPriorHook
from .post_hoc import PostHocLogitAdjustmentHook
from .statistics import StatisticsHook

__all__ = ['ClassPriorHook', 'PostHocLogitAdjustmentHook', 'StatisticsHook']
