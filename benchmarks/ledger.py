# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""What the benchmarks share: append-only CSV ledgers and their origin."""

from __future__ import annotations

import csv
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Iterable, Mapping, Sequence

ROOT = Path(__file__).resolve().parent.parent
# One row a measurement; a cell is empty where nothing was measured.
SPEED_COLUMNS = (
    'what',
    'peer',
    'shape',
    'dtype',
    'path',
    'p20',
    'p50',
    'p80',
    'unit',
    'peak_memory',
    'memory_unit',
    'runs',
    'versions',
    'cpu',
    'threads',
    'commit',
    'command',
)
PACKAGES = (
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


def versions() -> str:
    """Installed versions of what the numbers depend on."""
    parts = [f'python={sys.version.split()[0]}']
    for name in PACKAGES:
        try:
            parts.append(f'{name}={version(name)}')
        except PackageNotFoundError:
            continue
    return ' '.join(parts)


def cpu() -> str:
    """Model and number of cores."""
    name = platform.processor() or platform.machine()
    table = Path('/proc/cpuinfo')
    if table.exists():
        found = re.search(r'model name\s*:\s*(.+)', table.read_text())
        name = found[1] if found else name
    return f'{name}, {os.cpu_count()} cores'


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


def read_ledger(ledger: Path) -> list[dict]:
    """Rows of the ledger, none if there is no ledger yet."""
    if not ledger.exists():
        return []
    with open(ledger, newline='') as file:
        return list(csv.DictReader(file))


def append(
    rows: Iterable[Mapping],
    ledger: Path,
    columns: Sequence[str] = SPEED_COLUMNS,
) -> None:
    """Add rows at the end of the ledger; missing cells stay empty."""
    new = not ledger.exists()
    ledger.parent.mkdir(parents=True, exist_ok=True)
    with open(ledger, 'a', newline='') as file:
        writer = csv.DictWriter(file, columns, lineterminator='\n')
        if new:
            writer.writeheader()
        writer.writerows(rows)
