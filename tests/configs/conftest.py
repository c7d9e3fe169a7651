# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Reading configs that inherit from the hosts."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from mmengine.config import utils as config_utils

from lt_losses_mm.recipes import read_config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='session')
def parse():
    """From path and loss of a recipe to the content; each is read once."""
    patch = pytest.MonkeyPatch()
    # MMEngine reads all metafiles of a host again for each of its bases.
    patch.setattr(
        config_utils, 'load', functools.lru_cache(None)(config_utils.load)
    )
    read = functools.lru_cache(None)(read_config)
    yield lambda path, loss=None: read(path, loss).to_dict()
    patch.undo()
