# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The engines by name, and the one that is set for the process."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import Iterator

from ...messages import fault

ENGINES = ('native', 'eager', 'reference')
_VARIABLE = 'LT_LOSSES_ENGINE'


def checked(engine: str, key: str = 'engine') -> str:
    """The name of an engine.

    Raises:
        ValueError: There is none of that name.
    """
    if engine not in ENGINES:
        raise fault(key, engine, f'one of {ENGINES}')
    return engine


current = checked(os.environ.get(_VARIABLE, 'native'), _VARIABLE)


def engine() -> str:
    """The fastest engine that may be taken, one of ``ENGINES``.

    ``'native'``: compiled code on CPU, elsewhere as ``'eager'``.
    ``'eager'``: PyTorch operators on parts of the logits, with the gradient
    in closed form. ``'reference'``: the definition, under autograd. The
    environment variable ``LT_LOSSES_ENGINE`` sets it for a process.
    """
    return current


@contextmanager
def use_engine(name: str) -> Iterator[None]:
    """Set :func:`engine` for a while.

    Args:
        name (str): One of ``ENGINES``.

    Raises:
        ValueError: There is no such engine.
    """
    global current
    before, current = current, checked(name)
    try:
        yield
    finally:
        current = before
