# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The built wheel."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from environments import pip

ROOT = Path(__file__).parents[2]
SOURCES = (
    'lt_losses_mm',
    'benchmarks',
    'configs',
    'tools',
    'requirements',
    'pyproject.toml',
    'setup.py',
    'MANIFEST.in',
    'model-index.yml',
    'requirements.txt',
    'README.md',
    'LICENSE',
    'CHANGELOG.md',
    'CITATION.cff',
)


@pytest.fixture(scope='session')
def source(tmp_path_factory) -> Path:
    """A copy of what a clone holds, because a build writes beside it."""
    copy = tmp_path_factory.mktemp('source')
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name,
                copy / name,
                ignore=shutil.ignore_patterns('__pycache__'),
            )
        else:
            shutil.copy2(ROOT / name, copy)
    return copy


@pytest.fixture(scope='session')
def wheel(source, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp('wheel')
    before = {path.relative_to(source) for path in source.rglob('*')}
    pip(
        'wheel',
        '--no-deps',
        '--no-build-isolation',
        f'--wheel-dir={target}',
        source,
        cwd=target,
    )
    after = {path.relative_to(source) for path in source.rglob('*')}
    left = {path.parts[0] for path in after - before}
    assert left <= {'mm_lt_losses.egg-info'}
    (path,) = target.iterdir()
    return path
