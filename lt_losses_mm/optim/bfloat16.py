# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Training in bfloat16, on any device."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Iterator

import torch
from mmengine.optim import OptimWrapper
from mmengine.runner.amp import autocast
from torch import nn

from ..registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class Bfloat16OptimWrapper(OptimWrapper):
    """Runs the forward pass of training under bfloat16 autocast.

    MMEngine's ``AmpOptimWrapper`` refuses to be built without an accelerator.
    bfloat16 has the exponent range of float32, so that no loss scaling is
    needed; weights, gradients and the optimizer stay in float32.

    Examples:
        >>> optim_wrapper = dict(
        ...     type='lt_losses_mm.Bfloat16OptimWrapper',
        ...     optimizer=dict(type='SGD', lr=0.1))
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """See :meth:`mmengine.optim.OptimWrapper.optim_context`."""
        with super().optim_context(model), autocast(dtype=torch.bfloat16):
            yield
