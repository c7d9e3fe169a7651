# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The losses in one pass over the logits per direction."""

from .call import Answer, Batch, Call, Engine
from .engines.choice import ENGINES, engine, use_engine
from .formulas import (
    FOCAL,
    QUALITY_FOCAL,
    SHIFTED_BCE,
    WEIGHTED_BCE,
    Dropped,
    Seesaw,
    Shifted,
    Sides,
    SoftmaxFormula,
    TwoSided,
)
from .rows import (
    reduce_rows,
    sigmoid_rows,
    softmax_rows,
)

__all__ = [
    'ENGINES',
    'FOCAL',
    'QUALITY_FOCAL',
    'SHIFTED_BCE',
    'WEIGHTED_BCE',
    'Answer',
    'Batch',
    'Call',
    'Dropped',
    'Engine',
    'Seesaw',
    'Shifted',
    'Sides',
    'SoftmaxFormula',
    'TwoSided',
    'engine',
    'reduce_rows',
    'sigmoid_rows',
    'softmax_rows',
    'use_engine',
]
