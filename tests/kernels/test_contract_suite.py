"""The contract suite holds on every engine; CI's default run takes the native.

A process is set to an engine from its start, as a user would do it.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize('name', ['eager', 'reference'])
def test_contract_suite(name):
    environment = dict(os.environ, LT_LOSSES_ENGINE=name)
    for key in [k for k in environment if k.startswith('PYTEST_')]:
        del environment[key]
    done = subprocess.run(
        [
            *(sys.executable, '-m', 'pytest', '-q', '-x'),
            *('-p', 'no:cacheprovider', 'tests/contract'),
        ],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert ' passed' in done.stdout
