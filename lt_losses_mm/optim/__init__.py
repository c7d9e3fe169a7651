# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Mixed precision where MMEngine's own has none: on the CPU."""

from __future__ import annotations

from .bfloat16 import Bfloat16OptimWrapper

__all__ = ['Bfloat16OptimWrapper']
