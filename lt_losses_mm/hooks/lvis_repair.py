# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Lets LVIS evaluations end on NumPy 1.24 and newer."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..compat import patch_lvis
from ..registry import HOOKS


@HOOKS.register_module()
class LVISRepairHook(Hook):
    """Mends the ``lvis`` package, if the run's evaluators have imported it.

    See :func:`lt_losses_mm.compat.patch_lvis`. Importing the package adds it
    to every ``Runner``.
    """

    def before_run(self, runner: Runner) -> None:
        """Mend once the evaluators are built."""
        patch_lvis()
