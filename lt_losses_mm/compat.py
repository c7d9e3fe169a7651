# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Repairs of third-party packages that our users' runs depend on."""

from __future__ import annotations

import inspect
import re
import sys
import types
import warnings
from typing import Any, Callable, TypeVar

import numpy as np
import torch

_F = TypeVar('_F')

# Up to torch 2.2 the tracer of ``torch.compile`` breaks graphs at data
# classes, and fails after some of the breaks. So it has to leave out, and call
# as it is, what is ``traced`` elsewhere.
_CAN_TRACE = hasattr(torch.compiler, 'is_compiling')


def _is_compiling() -> bool:
    return bool(torch._dynamo.is_compiling())


def _as_it_is(function: _F) -> _F:
    return function


traced: Callable[[_F], _F] = (
    _as_it_is if _CAN_TRACE else torch.compiler.disable
)

# Whether ``torch.compile`` traces this; public from torch 2.3 on.
is_compiling: Callable[[], bool] = getattr(
    torch.compiler, 'is_compiling', _is_compiling
)


# The transform of ``torch.func`` that is at work, or None. There is no public
# way to ask: ``docs/decisions/0006-house.md``.
transform: Callable[[], Any] = torch._C._functorch.peek_interpreter_stack


def patch_lvis() -> bool:
    """Let the ``lvis`` package evaluate on NumPy 1.24 and newer.

    ``lvis`` 0.5.3, the newest release on PyPI, casts with ``np.float``, which
    NumPy removed in 1.24: every LVIS evaluation ends in an
    ``AttributeError`` after the last image. This function gives the module
    ``lvis.eval``, and no other, a NumPy namespace that still has ``float``.
    NumPy itself stays as it is.

    The module is looked up, never imported (that would cost everybody
    matplotlib): call this after whatever imports ``lvis``. Runners of
    ``lt_losses_mm`` call it once their evaluators are built, which covers
    mmdet's ``LVISMetric`` and ``LVISFixedAPMetric``.

    Returns:
        bool: Whether ``lvis.eval`` was changed by this call. ``False`` when
        it is not imported, is free of ``np.float``, or NumPy still has it.
    """
    module: Any = sys.modules.get('lvis.eval')
    if module is None:
        return False
    with warnings.catch_warnings():
        # NumPy 1.20 to 1.23 only warn about the attribute.
        warnings.simplefilter('ignore')
        if hasattr(module.np, 'float'):
            return False
    if not re.search(r'\bnp\.float\b', inspect.getsource(module)):
        return False
    namespace = types.ModuleType(np.__name__)
    vars(namespace).update(vars(np), float=float)
    module.np = namespace
    return True
