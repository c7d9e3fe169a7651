# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Long-tail losses for MMDetection, MMPretrain and MMSegmentation.

Importing the package registers its classes and connects it to MMEngine (see
:mod:`lt_losses_mm.integration`). It imports torch and mmengine, never a host.
"""

from . import (
    datasets,
    hooks,
    integration,
    losses,
    metrics,
    models,
    optim,
    statistics,
)
from .statistics import commit_statistics, reset_statistics
from .version import __version__

integration.install()

__all__ = [
    '__version__',
    'commit_statistics',
    'datasets',
    'hooks',
    'integration',
    'losses',
    'metrics',
    'models',
    'optim',
    'reset_statistics',
    'statistics',
]
