# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Statistics that losses accumulate over a training."""

from .gradients import GradientStatistics, describe_health
from .running import (
    RunningStatistics,
    commit,
    commit_statistics,
    discard_pending,
    optimizer_steps,
    reset_statistics,
    statistics_modules,
)

__all__ = [
    'GradientStatistics',
    'RunningStatistics',
    'commit',
    'commit_statistics',
    'describe_health',
    'discard_pending',
    'optimizer_steps',
    'reset_statistics',
    'statistics_modules',
]
