# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""What a number depends on: code, data, versions and machine."""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Iterable, Iterator, Mapping

PACKAGE = Path(__file__).resolve().parents[1]
# Of a clone; of a wheel, the folder that it is installed in.
ROOT = PACKAGE.parent
DISTRIBUTIONS = (
    'torch',
    'onedl-mmengine',
    'mmengine',
    'onedl-mmcv',
    'mmcv',
    'onedl-mmdetection',
    'mmdet',
    'onedl-mmpretrain',
    'mmpretrain',
    'onedl-mmsegmentation',
    'mmsegmentation',
    'mlxtend',
    'numpy',
)
# Every training runs these rooms of the package ...
ROOMS = ('priors', 'hooks', 'hosts', 'metrics', 'datasets', 'models', 'optim')
# ... and one with a loss of the package these as well.
LOSS_ROOMS = ('losses', 'functional', 'kernels', 'statistics')
# They only refuse, or draw: no number of a finished training is theirs.
WITHOUT_NUMBERS = {
    'hooks/loss_setup.py',
    'hooks/metric_setup.py',
    'hooks/training_data.py',
    'statistics/plot.py',
    'kernels/__main__.py',
}


def versions() -> str:
    """Installed versions of what the numbers depend on."""
    parts = [f'python={sys.version.split()[0]}']
    for name in DISTRIBUTIONS:
        try:
            parts.append(f'{name}={version(name)}')
        except PackageNotFoundError:
            continue
    return ' '.join(parts)


def commit() -> str:
    """Commit of the code, with ``-dirty`` if the package differs from it.

    ``unknown`` outside a repository, or without git.
    """

    def git(*args: str) -> str:
        return subprocess.run(
            ['git', *args],
            cwd=ROOT,
            check=True,
            text=True,
            capture_output=True,
        ).stdout.strip()

    if shutil.which('git') is None or not (ROOT / '.git').exists():
        return 'unknown'
    changed = git('status', '--porcelain', 'lt_losses_mm', 'configs', 'tools')
    return git('rev-parse', '--short', 'HEAD') + ('-dirty' if changed else '')


def digest(*parts: str | bytes) -> str:
    """Twelve hexadecimal digits of all parts."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part.encode() if isinstance(part, str) else part)
        found.update(b'\0')
    return found.hexdigest()[:12]


def code(losses: Iterable[str]) -> str:
    """The parts of the package that a training runs, each with its digest.

    Comments, docstrings and blank lines do not count, and neither do the
    losses that the training has not.

    Args:
        losses: Modules below ``lt_losses_mm/losses`` of the losses in use,
            e.g. ``'balanced_softmax'``.

    Example:
        >>> code([]).split('=')[0]
        'datasets'
    """
    names = {f'losses/{name}' for name in losses}
    return ' '.join(
        f'{name}={digest_of(name)}'
        for name in sorted({*ROOMS, *(LOSS_ROOMS if names else ()), *names})
    )


def changed(recorded: str) -> list[str]:
    """The parts of a :func:`code` that are not what they were."""
    parts = (part.partition('=') for part in recorded.split())
    return [name for name, _, value in parts if digest_of(name) != value]


@functools.lru_cache(maxsize=None)
def loss_modules() -> dict[str, str]:
    """Class that configs can name -> its module below ``losses``.

    It is read in the source: whoever starts trainings needs no torch.
    """
    tree = ast.parse((PACKAGE / 'losses/__init__.py').read_text('utf-8'))
    module = {
        alias.name: node.module or ''
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    (listed,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign)
        and getattr(node.target, 'id', '') == 'LOSSES'
    )
    assert isinstance(listed, ast.Tuple)
    names = [node.id for node in listed.elts if isinstance(node, ast.Name)]
    return {name: module[name] for name in names}


def digest_of(name: str) -> str:
    """Digest of a room of the package, or of one module of a loss."""
    if '/' in name:
        file = PACKAGE / f'{name}.py'
        return digest(bare(file)) if file.exists() else ''
    modules = set(loss_modules().values())
    return digest(
        *(
            part
            for path in sorted((PACKAGE / name).rglob('*'))
            if path.suffix in ('.py', '.cpp')
            and path.relative_to(PACKAGE).as_posix() not in WITHOUT_NUMBERS
            and not (name == 'losses' and path.stem in modules)
            for part in (path.relative_to(PACKAGE).as_posix(), bare(path))
        )
    )


def bare(path: Path) -> str:
    """A source file without comments of their own line and docstrings."""
    return _bare(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=None)
def _bare(path: Path, mtime: int) -> str:
    text = path.read_text('utf-8')
    if path.suffix != '.py':
        return text
    lines: list[str | None] = list(text.splitlines())
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, 'body', None)
        if not isinstance(body, list) or not body:
            continue
        first = body[0]
        if (
            isinstance(first, ast.Expr)
            and isinstance(first.value, ast.Constant)
            and isinstance(first.value.value, str)
        ):
            end = first.end_lineno or first.lineno
            lines[first.lineno - 1 : end] = [None] * (end - first.lineno + 1)
    return '\n'.join(
        line
        for line in lines
        if line is not None
        and line.strip()
        and not line.strip().startswith('#')
    )


def data(cfg: Mapping[str, Any]) -> str:
    """Digest of the data that a config trains and tests with.

    It is of the contents of annotation files, and of the names and sizes of
    the files below a ``data_root`` whose data set has none. What is made when
    the training starts (the embedded digits) or fetched then is known by its
    config and by the code alone.
    """
    found = {
        part
        for mode in ('train', 'val', 'test')
        for part in _parts(cfg.get(f'{mode}_dataloader') or {})
    }
    return digest(*sorted(found))


def _parts(node: Any, root: str = '') -> Iterator[str]:
    if isinstance(node, (list, tuple)):
        for child in node:
            yield from _parts(child, root)
    if not isinstance(node, Mapping):
        return
    if 'type' in node:
        root = node.get('data_root') or ''
        file = node.get('ann_file') or ''
        path = Path(root, file)
        if file and path.is_file():
            yield f'{path.as_posix()} {digest(path.read_bytes())}'
        elif root and not file and Path(root).is_dir():
            yield f'{root} {_listing(root)}'
    for child in node.values():
        yield from _parts(child, root)


@functools.lru_cache(maxsize=None)
def _listing(root: str) -> str:
    found = []
    for folder, _, files in sorted(os.walk(root)):
        for file in sorted(files):
            path = os.path.join(folder, file)
            size = os.path.getsize(path)
            found.append(f'{os.path.relpath(path, root)} {size}')
    return digest(*found)
