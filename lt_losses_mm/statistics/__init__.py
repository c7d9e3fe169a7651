# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Statistics that losses accumulate over a training."""

from .gradients import GradientStatistics, describe_health
from .running import (
    LabelCounts,
    RunningStatistics,
    commit,
    commit_statistics,
    discard_pending,
    reset_statistics,
    statistics_modules,
)

__all__ = [
    'GradientStatistics',
    'LabelCounts',
    'RunningStatistics',
    'commit',
    'commit_statistics',
    'describe_health',
    'discard_pending',
    'reset_statistics',
    'statistics_modules',
]
