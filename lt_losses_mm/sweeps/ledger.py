# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The table of all results: ``pandas.read_csv(FILE)``.

One row a number. The file is only ever replaced by one that holds more, in
one step, so a reader and whoever is left after a crash find whole rows. A
name that ends in ``.gz`` is compressed.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import gzip
import io
import os
import zlib
from pathlib import Path
from typing import Any, Iterable, Iterator, Mapping

from ..cache import in_one_step
from ..messages import fault

SCHEMA = 1
COLUMNS = {
    'schema': 'version of these columns',
    'trial': 'digest of all that the numbers depend on',
    'config': 'digest of the config without its seed',
    'data': 'digest of annotations, checkpoints, or names of files',
    'task': 'of the plan',
    'dataset': 'of the plan',
    'method': 'of the plan',
    'seed': 'randomness.seed',
    'baseline': 'the method of the task that others are compared with',
    'status': '"done", "failed", or "pruned" by a search',
    'step': 'epoch or iteration of the evaluation',
    'last': '1 in rows of the last evaluation, else 0',
    'metric': 'name in the log of the run; empty where it failed',
    'role': '"overall", "head", "middle" or "tail" as the plan says; '
    '"class" and "count" have one row a class; "loss" is of the training',
    'label': 'name of the class',
    'value': 'as the host reports it, times the scale of the task',
    'seconds': 'of the whole trial, all attempts',
    'memory_mb': 'greatest of the process, or of the GPU where there is one',
    'disk_mb': 'of the folder of the trial',
    'versions': 'of Python and the packages that the numbers depend on',
    'machine': 'processor, cores; GPU where there is one',
    'threads': 'OMP_NUM_THREADS of the training, empty if not set',
    'code': 'parts of the package that ran, each with a digest',
    'commit': 'of the repository, "-dirty" if the code differed from it',
    'command': 'runs this one trial again',
    'note': 'why it failed, or where it was pruned',
}
NUMBERS = ('seed', 'step', 'last', 'value', 'seconds', 'memory_mb', 'disk_mb')
# What tells two rows of one trial apart.
KEY = ('trial', 'step', 'metric', 'label')


def read(path: str | os.PathLike) -> list[dict[str, str]]:
    """Rows of a ledger, none if there is no file.

    Raises:
        ValueError: If a line is no row of a ledger; it is named.
    """
    path = Path(path)
    if not path.exists():
        return []
    try:
        text = _text(path)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise fault(
            'ledger',
            str(path),
            f'a table that can be read, but: {error}',
            'move it away: `sweep run` fills a new one from the folders of '
            'its trials',
        ) from error
    rows = []
    reader = csv.reader(io.StringIO(text, newline=''), strict=True)
    header = next(reader, [])
    if header != list(COLUMNS):
        raise fault(
            'ledger',
            str(path),
            f'the columns {", ".join(COLUMNS)} in its first line, got '
            f'{", ".join(header) or "nothing"}',
            'give the path of a ledger that `sweep` has written',
        )
    while True:
        # A quote too many takes in the lines below; its own is named.
        line = reader.line_num + 1
        try:
            cells = next(reader)
            problem = _problem(cells)
        except StopIteration:
            break
        except csv.Error as error:
            problem = f'got {error}'
        if problem:
            raise fault(
                'ledger',
                f'{path}:{line}',
                f'a row of {len(COLUMNS)} cells, {problem}',
                'delete the line, and all others of its trial; `sweep run` '
                'writes them again from the folder of the trial',
            )
        rows.append(dict(zip(COLUMNS, cells)))
    return rows


def _text(path: Path) -> str:
    raw = path.read_bytes()
    raw = gzip.decompress(raw) if path.suffix == '.gz' else raw
    text = raw.decode('utf-8-sig')
    if not text.endswith('\n'):
        # Its last cell may be whole, and is not known to be.
        raise EOFError(f'line {len(text.splitlines())} is cut')
    return text


def _problem(cells: list[str]) -> str:
    if len(cells) != len(COLUMNS):
        return f'got {len(cells)}'
    row = dict(zip(COLUMNS, cells))
    if row['schema'] != str(SCHEMA):
        return f'of schema {SCHEMA}, got {row["schema"]!r}'
    for name in NUMBERS:
        try:
            float(row[name] or 0)
        except ValueError:
            return f'with a number in {name!r}, got {row[name]!r}'
    return ''


def add(path: str | os.PathLike, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add the rows of trials, in place of those that they had.

    Numbers stay where a trial that was run again has none.

    Raises:
        OSError: If the disk is full; the ledger is as it was.
    """
    path = Path(path)
    new = [{name: str(row[name]) for name in COLUMNS} for row in rows]
    with locked(path):
        known = read(path)
        done = {row['trial'] for row in known if row['status'] == 'done'}
        new = [
            row
            for row in new
            if row['status'] == 'done' or row['trial'] not in done
        ]
        trials = {row['trial'] for row in new}
        old = [row for row in known if row['trial'] not in trials]
        write(path, [*old, *new])


def write(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    """Write a whole ledger in one step."""
    out = io.StringIO(newline='')
    plain, quoted = (
        csv.DictWriter(out, COLUMNS, lineterminator='\n', quoting=quoting)
        for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
    )
    plain.writeheader()
    for row in rows:
        # Python writes a carriage return without the quotes that it needs.
        bare = any('\r' in cell for cell in row.values())
        (quoted if bare else plain).writerow(row)
    raw = out.getvalue().encode()
    if path.suffix == '.gz':
        raw = gzip.compress(raw, mtime=0)
    with in_one_step(path) as part:
        with open(part, 'wb') as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())


def merge(
    paths: Iterable[str | os.PathLike],
) -> tuple[list[dict[str, str]], list[str]]:
    """Rows of several ledgers, and what does not agree between them.

    The same trial may be in more than one. Of a trial that failed or was
    pruned in one and was done in another the latter counts; of two with
    different values the first.

    Raises:
        ValueError: If a file is missing, or is no ledger.
    """
    kept: dict[str, list[dict[str, str]]] = {}
    origin: dict[str, Path] = {}
    conflicts = []
    for path in map(Path, paths):
        if not path.exists():
            raise fault('ledger', str(path), 'a file, and there is none')
        trials: dict[str, list[dict[str, str]]] = {}
        for row in read(path):
            trials.setdefault(row['trial'], []).append(row)
        for trial, rows in trials.items():
            if trial not in kept or kept[trial][0]['status'] != 'done':
                kept[trial], origin[trial] = rows, path
            elif rows[0]['status'] == 'done':
                values = [
                    {tuple(r[k] for k in KEY): r['value'] for r in some}
                    for some in (kept[trial], rows)
                ]
                differing = sum(
                    values[0].get(key) != values[1].get(key)
                    for key in values[0].keys() | values[1].keys()
                )
                if differing:
                    first = rows[0]
                    conflicts.append(
                        f'trial {trial} ({first["task"]}, {first["method"]}, '
                        f'seed {first["seed"]}): {differing} values of {path} '
                        f'differ from {origin[trial]}, whose are kept'
                    )
    places: dict[tuple[str, ...], str] = {}
    for trial, rows in kept.items():
        if rows[0]['status'] == 'done':
            place = tuple(rows[0][k] for k in ('task', 'method', 'seed'))
            other = places.setdefault(place, trial)
            if other != trial:
                conflicts.append(
                    f'{", ".join(place)}: the trials {other} and {trial} '
                    'have other configs, data or code; both are kept, and '
                    'the report takes the later one'
                )
    return [row for rows in kept.values() for row in rows], conflicts


@contextlib.contextmanager
def locked(path: str | os.PathLike, wait: bool = True) -> Iterator[bool]:
    """Hold the lock beside a file; the system gives it back if we die.

    Args:
        path: What is guarded; ``.NAME.lock`` is made beside it.
        wait: Whether to wait for whoever holds it.

    Yields:
        Whether we hold it, always true with ``wait``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f'.{path.name}.lock'), 'a') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
