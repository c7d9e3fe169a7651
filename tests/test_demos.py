# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The scripts under docs/demos/: they run, and their pages show the output."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DEMOS = sorted(ROOT.glob('docs/demos/*.py'))


@pytest.mark.slow
@pytest.mark.parametrize('script', DEMOS, ids=lambda path: path.stem)
def test_output_is_that_of_the_page(script: Path, tmp_path: Path) -> None:
    pytest.importorskip('mmdet')
    done = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env=dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1'),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    page = script.with_suffix('.md').read_text(encoding='utf-8')
    shown = re.findall(r'^```text\n(.*?)^```$', page, re.M | re.S)
    assert shown == [done.stdout]
