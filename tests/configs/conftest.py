# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Reading configs that inherit from the hosts."""

from __future__ import annotations

import functools

import pytest
from mmengine.config import Config
from mmengine.config import utils as config_utils


@pytest.fixture(scope='session')
def parse():
    """From a path to the config's content; each file is read once."""
    patch = pytest.MonkeyPatch()
    # MMEngine reads all metafiles of a host again for each of its bases.
    patch.setattr(
        config_utils, 'load', functools.lru_cache(None)(config_utils.load)
    )
    read = functools.lru_cache(None)(Config.fromfile)
    yield lambda path: read(path).to_dict()
    patch.undo()
