# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Which of three ways computes the losses."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import Any, Iterator

import torch
from torch import Tensor

from . import native

PATHS = ('native', 'eager', 'functional')
_VARIABLE = 'LT_LOSSES_PATH'


def _checked(path: str, key: str) -> str:
    if path not in PATHS:
        raise ValueError(f'{key}={path!r}, expected one of {PATHS}')
    return path


_path = _checked(os.environ.get(_VARIABLE, 'native'), _VARIABLE)


def path() -> str:
    """The fastest way that may be taken, one of ``PATHS``.

    ``'native'``: compiled code on CPU, elsewhere as ``'eager'``.
    ``'eager'``: PyTorch operators on parts of the logits, with the gradient
    in closed form. ``'functional'``: the readable form, under autograd. The
    environment variable ``LT_LOSSES_PATH`` sets it for a process.
    """
    return _path


@contextmanager
def use_path(path: str) -> Iterator[None]:
    """Set :func:`path` for a while.

    Args:
        path (str): One of ``PATHS``.

    Raises:
        ValueError: No such path.
    """
    global _path
    before, _path = _path, _checked(path, 'path')
    try:
        yield
    finally:
        _path = before


def is_compiling() -> bool:
    """Whether ``torch.compile`` traces this."""
    # torch.compiler.is_compiling came with torch 2.3.
    compiler: Any = getattr(torch, 'compiler', None)
    if hasattr(compiler, 'is_compiling'):
        return compiler.is_compiling()
    return torch._dynamo.is_compiling()


def path_for(logits: Tensor, labels: Tensor, *others: Tensor | None) -> str:
    """The path of a batch: the one place that chooses.

    Soft labels, empty batches, and other inputs that want a gradient are left
    to the functional form, and so are ``torch.compile``, which fuses it by
    itself, and transforms of ``torch.func``.
    """
    if (
        _path == 'functional'
        or is_compiling()
        or labels.is_floating_point()
        or not logits.numel()
        or any(x is not None and x.requires_grad for x in others)
        or torch._C._functorch.peek_interpreter_stack() is not None
    ):
        return 'functional'
    if _path == 'native' and native.can_run(logits):
        return 'native'
    return 'eager'
