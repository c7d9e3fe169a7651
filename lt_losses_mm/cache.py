# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The one folder that outlives a run, and how anything gets to its place."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

from .messages import describe, logger

VARIABLE = 'LT_LOSSES_MM_CACHE'


def folder() -> Path:
    """The folder of what is kept: compiled kernels, pixels of masks.

    ``$LT_LOSSES_MM_CACHE``, else ``lt_losses_mm`` below ``$XDG_CACHE_HOME``
    or ``~/.cache``. Where that cannot be written, a line of the log says so,
    and it is a folder of the system's temporary ones.
    """
    place = os.environ.get(VARIABLE) or os.path.join(
        os.environ.get('XDG_CACHE_HOME')
        or os.path.join(os.path.expanduser('~'), '.cache'),
        'lt_losses_mm',
    )
    user = getattr(os, 'getuid', lambda: 0)()
    spare = os.path.join(tempfile.gettempdir(), f'lt_losses_mm-{user}')
    for path in map(Path, (place, spare)):
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            continue
        # Code is loaded from here: the spare one must not be of another user.
        if os.access(path, os.W_OK) and (
            path != Path(spare) or path.stat().st_uid == user
        ):
            break
    else:
        path = Path(tempfile.mkdtemp(prefix='lt_losses_mm-'))
    if path != Path(place):
        logger.warning(
            describe(
                VARIABLE,
                place,
                f'a folder that can be written; {path} is used',
                'set it to one that lasts',
            )
        )
    return path


@contextmanager
def in_one_step(target: Path) -> Iterator[Path]:
    """Where to write a file or folder that becomes ``target`` once complete.

    Any number of processes may do so at the same time: the last file counts,
    and the first folder.

    Args:
        target: Where it belongs; the folders above it are made.

    Yields:
        A path beside it, where nothing is yet.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f'.{target.name}-{uuid.uuid4().hex}')
    try:
        yield part
        try:
            part.replace(target)
        except OSError:
            # Another process was first with the folder.
            if not target.is_dir():
                raise
    finally:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)
