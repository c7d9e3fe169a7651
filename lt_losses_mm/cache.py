# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The one folder that outlives a run, and how anything gets to its place."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import stat
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
    or ``~/.cache``. Code is loaded from it: where it cannot be written, or
    others can write it, a line of the log says so, and it is a folder of the
    system's temporary ones that nobody else can open; where that has been
    planted, one that goes when the process ends.
    """
    place, spare = _places()
    problem = _problem_to_write(place)
    if not problem:
        return place
    if _problem_to_write(spare, spare=True):
        spare = _of_this_process(spare.parent)
    logger.warning(
        describe(
            VARIABLE,
            str(place),
            f'a folder that you can write and others cannot ({problem}); '
            f'{spare} is used',
            'set it to a folder of your own, one that lasts',
        )
    )
    return spare


def find(name: str) -> Iterator[Path]:
    """The files of a name that are kept, also where nothing can be written.

    One that others could have written is as good as none; a line of the log
    says so.
    """
    place, spare = _places()
    for path in (place, spare):
        file = path / name
        try:
            if not file.exists():
                continue
            problem = _foreign(path, path is spare) or _foreign(file)
        except OSError:
            continue
        if not problem:
            yield file
        else:
            logger.warning(
                f'lt_losses_mm: {file} is not used, because others could '
                f'have written it ({problem})'
            )


def _places() -> tuple[Path, Path]:
    """The folder that is meant, and the one where that is of no use."""
    place = os.environ.get(VARIABLE) or os.path.join(
        os.environ.get('XDG_CACHE_HOME')
        or os.path.join(os.path.expanduser('~'), '.cache'),
        'lt_losses_mm',
    )
    user = getattr(os, 'getuid', lambda: 0)()
    return Path(place).expanduser(), Path(
        tempfile.gettempdir(), f'lt_losses_mm-{user}'
    )


@functools.lru_cache(maxsize=None)
def _of_this_process(parent: Path) -> Path:
    """A new folder in another, which goes when the process ends."""
    made = Path(tempfile.mkdtemp(prefix='lt_losses_mm-', dir=parent))
    process = os.getpid()

    @atexit.register
    def remove() -> None:
        if os.getpid() == process:  # and no fork of it
            shutil.rmtree(made, ignore_errors=True)

    return made


def _problem_to_write(path: Path, spare: bool = False) -> str:
    """Why a folder, which is made, is not one to keep anything in, or ''."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        problem = _foreign(path, spare)
    except OSError as error:
        return error.strerror or type(error).__name__
    if not problem and not os.access(path, os.W_OK | os.X_OK):
        return 'it cannot be written'
    return problem


def _foreign(path: Path, spare: bool = False) -> str:
    """Why somebody else could have written a file or into a folder, or ''.

    Root could, and may. The spare folder has a name that everybody knows, in
    a place where everybody may make one: so it has to be as we make it.
    """
    if not hasattr(os, 'getuid'):
        return ''  # Windows has no modes, and a folder for each user
    found = path.lstat() if spare else path.stat()
    user, mode = os.getuid(), stat.S_IMODE(found.st_mode)
    if spare and stat.S_ISLNK(found.st_mode):
        return f'{path} is a link'
    if found.st_uid != user and (spare or found.st_uid != 0):
        return f'{path} belongs to user {found.st_uid}, not to {user}'
    if mode & (0o077 if spare else 0o022):
        fix = 'go-rwx' if spare else 'go-w'
        return f'{path} has the mode {mode:04o}: chmod {fix} {path}'
    return ''


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
