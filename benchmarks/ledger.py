# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""What the benchmarks share: append-only CSV ledgers and their origin."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Iterable, Mapping

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


def read_ledger(ledger: Path) -> list[dict]:
    """Rows of the ledger, none if there is no ledger yet."""
    if not ledger.exists():
        return []
    with open(ledger, newline='') as file:
        return list(csv.DictReader(file))


def append(
    rows: Iterable[Mapping],
    ledger: Path,
) -> None:
    """Add rows at the end of the ledger; missing cells stay empty."""
    new = not ledger.exists()
    ledger.parent.mkdir(parents=True, exist_ok=True)
    with open(ledger, 'a', newline='') as file:
        writer = csv.DictWriter(file, SPEED_COLUMNS, lineterminator='\n')
        if new:
            writer.writeheader()
        writer.writerows(rows)
