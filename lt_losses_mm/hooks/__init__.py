# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""MMEngine hooks."""

from .class_counts import ClassCountsHook
from .loss_setup import LossSetupHook
from .metric_setup import MetricSetupHook
from .post_hoc import PostHocLogitAdjustmentHook
from .statistics import StatisticsHook

# Those that attach themselves to each runner.
ATTACHED = (ClassCountsHook, LossSetupHook, MetricSetupHook, StatisticsHook)

__all__ = [
    'ClassCountsHook',
    'LossSetupHook',
    'MetricSetupHook',
    'PostHocLogitAdjustmentHook',
    'StatisticsHook',
]
