# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""What a number depends on: code, data, versions and machine."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
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


def code(losses: Iterable[str], modules: Iterable[str] = ()) -> str:
    """The parts of the package that a training runs, each with its digest.

    Lines that are comments, docstrings and blank lines do not count, and
    neither do the losses that the training has not.

    Args:
        losses: Modules below ``lt_losses_mm/losses`` of the losses in use,
            e.g. ``'balanced_softmax'``.
        modules: Names of other modules that it imports.

    Example:
        >>> code([]).split('=')[0]
        'datasets'
    """
    names = {f'losses/{name}' for name in losses}
    names |= {*ROOMS, *(LOSS_ROOMS if names else ())}
    names |= {f'module:{name}' for name in modules}
    return ' '.join(f'{name}={digest_of(name)}' for name in sorted(names))


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
    """Digest of a room of the package, of a loss, or of another module."""
    if name.startswith('module:'):
        try:
            found = importlib.util.find_spec(name.partition(':')[2])
        except ModuleNotFoundError:  # The training says so.
            return ''
        if found is None or not found.origin:
            return ''
        return digest(bare(Path(found.origin)))
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
    """Digest of the files that a config trains and tests with.

    It is of the contents of annotation files and checkpoints, and of the
    names and sizes of the files below a ``data_root`` whose data set has
    none, wherever they lie. What is made when the training starts (the
    embedded digits) or fetched then is known by its config and by the code
    alone.
    """
    found = [
        f'{mode} {part}'
        for mode in ('train', 'val', 'test')
        for part in _parts(cfg.get(f'{mode}_dataloader') or {})
    ]
    return digest(*sorted({*found, *_checkpoints(cfg)}))


def _checkpoints(node: Any) -> Iterator[str]:
    """Digests of the weights that a config starts from."""
    if isinstance(node, Mapping):
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for child in node:
            yield from _checkpoints(child)
    elif isinstance(node, str) and node.endswith(('.pth', '.pt')):
        if os.path.isfile(node):
            yield _content(node)


def _parts(node: Any, root: str = '') -> Iterator[str]:
    if isinstance(node, (list, tuple)):
        for child in node:
            yield from _parts(child, root)
    if not isinstance(node, Mapping):
        return
    if 'type' in node:
        root = node.get('data_root') or ''
        said = node.get('ann_file') or ''
        files = said if isinstance(said, (list, tuple)) else [said]
        for file in filter(None, files):
            path = os.path.join(root, file)
            if os.path.isfile(path):
                yield _content(path)
        if root and not said and os.path.isdir(root):
            yield _listing(root)
    for child in node.values():
        yield from _parts(child, root)


def _content(path: str) -> str:
    """Digest of a file, which is read again only when it has changed."""
    found = os.stat(path)
    return _content_of(path, found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=None)
def _content_of(path: str, size: int, mtime: int) -> str:
    whole = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(1 << 20):
            whole.update(block)
    return whole.hexdigest()[:12]


@functools.lru_cache(maxsize=None)
def _listing(root: str) -> str:
    found, seen = [], set()
    for folder, below, files in os.walk(root, followlinks=True):
        # A link to a folder above would never end.
        seen.add(os.path.realpath(folder))
        below[:] = [
            name
            for name in sorted(below)
            if os.path.realpath(os.path.join(folder, name)) not in seen
        ]
        for file in sorted(files):
            path = os.path.join(folder, file)
            size = os.path.getsize(path) if os.path.exists(path) else -1
            found.append(f'{os.path.relpath(path, root)} {size}')
    return digest(*found)
