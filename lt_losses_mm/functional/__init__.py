# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The methods as pure functions: loss of each row, no reduction, no state."""

from . import sigmoid, softmax
from .sigmoid import *  # noqa: F403
from .softmax import *  # noqa: F403

__all__ = [*sigmoid.__all__, *softmax.__all__]
