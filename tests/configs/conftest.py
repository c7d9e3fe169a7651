# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Reading configs that inherit from the hosts."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.config import utils as config_utils
from mmengine.fileio import load

ROOT = Path(__file__).resolve().parents[2]


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


@pytest.fixture
def check_metafile(parse):
    """Check that a family's metafile is listed, complete and honest."""

    def check(folder, field, key):
        listed = load(ROOT / 'model-index.yml')['Import']
        path = folder / 'metafile.yml'
        assert path.relative_to(ROOT).as_posix() in listed
        metafile = load(path)
        (collection,) = metafile['Collections']
        assert (ROOT / collection['README']).is_file()
        for model in metafile['Models']:
            leaf = ROOT / model['Config']
            assert model['In Collection'] == collection['Name']
            assert leaf.stem == model['Name']
            length = parse(leaf)['train_cfg'][key]
            assert model['Metadata'][field] == length
            # No figure without its source, and none was measured here.
            results = model.get('Results', [])
            source = model['Metadata'].get('Published By', '')
            assert source.startswith('https://') == bool(results)
            for result in results:
                for metric in result['Metrics']:
                    assert metric.endswith('(published, not run here)')
        models = [ROOT / model['Config'] for model in metafile['Models']]
        assert models == sorted(folder.glob('*.py'))

    return check
