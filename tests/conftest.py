# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Settings of all tests: threads, hypothesis, a clean MMEngine per test."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import hypothesis
import pytest
import torch
from mmengine.registry import DefaultScope

# The suite runs in several processes (pytest-xdist), each on its own core.
torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', '1')))

# Behind all else: what the tools share, such as `_launch`.
sys.path.append(str(Path(__file__).resolve().parents[1] / 'tools'))
# The loss that a shell has chosen for its trainings.
os.environ.pop('LT_LOSS', None)

# Time limits would make tests depend on the machine's load.
hypothesis.settings.register_profile('lt', deadline=None, print_blob=True)
hypothesis.settings.register_profile(
    'lt-ci', hypothesis.settings.get_profile('lt'), derandomize=True
)
hypothesis.settings.load_profile('lt-ci' if os.environ.get('CI') else 'lt')


@pytest.fixture(autouse=True)
def _log(monkeypatch):
    """Let caplog, whose handler is the root's, see what the package says."""
    logger = logging.getLogger('lt_losses_mm')
    monkeypatch.setattr(logger, 'propagate', True)


@pytest.fixture(autouse=True)
def _default_scope():
    """Undo the default scope that a Runner sets for the whole process."""
    before = DefaultScope._instance_dict.copy()
    yield
    # overwrite_default_scope leaves another dict behind.
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(before)


@pytest.fixture
def whole_graphs():
    """``torch.compile(..., fullgraph=True)`` of what this package computes."""
    if not hasattr(torch.compiler, 'is_compiling'):
        pytest.skip('torch < 2.3 breaks graphs at data classes')
