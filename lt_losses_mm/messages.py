# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""What the package says: the one form of an error, and the one log.

The core runs without MMEngine, so it logs through Python's own ``logging``;
:mod:`lt_losses_mm.integration` hands its records to MMEngine's logger.
"""

from __future__ import annotations

import logging
import reprlib
from typing import Any, Iterable

logger = logging.getLogger('lt_losses_mm')


def describe(
    key: str, value: Any, expected: str, fix: str = '', owner: str = ''
) -> str:
    """The one form of an error: where, key, value, expectation and fix.

    Args:
        key (str): The config key, or the argument.
        value: What it was. Strings are shown with quotes, long values
            shortened.
        expected (str): What would have been right.
        fix (str): What to do about it, without a full stop.
        owner (str): The class or module that asks for it.

    Example:
        >>> describe('tau', -1, 'a number >= 0', 'use 1', 'BalancedSoftmax')
        'BalancedSoftmax: tau=-1, expected a number >= 0. Fix: use 1.'
    """
    # A path may be long, and is of no use when it is cut.
    shown = repr(value) if isinstance(value, str) else reprlib.repr(value)
    return (
        (f'{owner}: ' if owner else '')
        + f'{key}={shown}, expected {expected}'
        + (f'. Fix: {fix}.' if fix else '')
    )


def fault(
    key: str, value: Any, expected: str, fix: str = '', owner: str = ''
) -> ValueError:
    """A ``ValueError`` that says what :func:`describe` does."""
    return ValueError(describe(key, value, expected, fix, owner))


def listed(names: Iterable[Any], most: int = 10) -> str:
    """Names for a message: the first ones, and the number of the others.

    Args:
        names: Shown as ``repr`` does, each of bounded length.
        most (int): How many are named.

    Example:
        >>> listed(['cat', 'dog', 'owl'], 2)
        "'cat', 'dog' and 1 more"
    """
    shown = [reprlib.repr(name) for name in names]
    more = f' and {len(shown) - most} more' if len(shown) > most else ''
    return ', '.join(shown[:most]) + more
