# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Environments that do not know the checkout, and commands in them."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def run(*command: object, cwd: Path) -> str:
    """Run a command that must succeed, out of reach of the checkout."""
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ('PYTHONPATH', 'PYTEST_CURRENT_TEST')
    }
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, f'{command}\n{done.stdout[-6000:]}'
    return done.stdout


def pip(*arguments: object, cwd: Path) -> str:
    return run(sys.executable, '-m', 'pip', '-q', *arguments, cwd=cwd)


def new_environment(folder: Path) -> Path:
    """An empty environment; returns its Python."""
    run(sys.executable, '-m', 'venv', '--without-pip', folder, cwd=folder)
    return folder / 'bin' / 'python'


def installed(*names: str) -> str | None:
    """The first of some distributions that is installed here."""
    for name in names:
        try:
            version(name)
        except PackageNotFoundError:
            continue
        return name
    return None
