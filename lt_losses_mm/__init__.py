# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Long-tail losses for MMDetection, MMPretrain and MMSegmentation.

Where MMEngine is installed, importing the package registers its classes and
connects it to MMEngine (see ``integration.py``). Losses, functions, class
counts from a list or a file, and statistics need torch and numpy alone. No
host is ever imported.
"""

from importlib.util import find_spec

from . import functional, kernels, losses, priors, statistics
from .statistics import commit_statistics, reset_statistics
from .version import __version__

__all__ = [
    '__version__',
    'commit_statistics',
    'functional',
    'kernels',
    'losses',
    'priors',
    'reset_statistics',
    'statistics',
]

if find_spec('mmengine') is not None:
    from . import (
        datasets,
        hooks,
        integration,
        metrics,
        models,
        optim,
        registry,
    )

    integration.install()
    __all__ += [
        'datasets',
        'hooks',
        'integration',
        'metrics',
        'models',
        'optim',
        'registry',
    ]
