# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Configs of users, outside of the package, that inherit from ours."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from _configs import CONFIGS, leaves, read_config, read_leaf
from mmengine.config import config as mmengine_config

import lt_losses_mm  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]
HOSTS = dict(
    classification='mmpretrain', detection='mmdet', segmentation='mmseg'
)
FAMILIES = sorted(path.parent for path in CONFIGS.glob('*/*/metafile.yml'))
OWN_DATA = [path for path in FAMILIES if path.name == 'own-data']


def name(folder):
    return f'{folder.parent.name}-{folder.name}'


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """As in a wheel, where the configs lie in the package's folder .mim."""
    mim = tmp_path / 'site/lt_losses_mm/.mim'
    mim.mkdir(parents=True)
    for file in ('configs', 'model-index.yml'):
        (mim / file).symlink_to(ROOT / file)
    found = mmengine_config.get_installed_path
    monkeypatch.setattr(
        mmengine_config,
        'get_installed_path',
        lambda package: (
            str(mim.parent) if package == 'lt_losses_mm' else found(package)
        ),
    )


def read(text, folder, host, loss=None):
    if find_spec(host) is None:
        pytest.skip(f'{host} is not installed')
    file = folder / 'mine.py'
    file.write_text(text)
    return read_config(file, loss)


OURS = dict(
    cross_entropy='balanced_softmax',
    focal='equalized_focal',
    quality_focal='equalized_quality_focal',
)


def recipe_in(folder):
    """The last recipe of a folder and a loss that fits."""
    found = map(read_leaf, leaves())
    leaf = [x for x in found if x.is_recipe and folder in x.path.parents][-1]
    return leaf.path, OURS[leaf.loss]


@pytest.mark.parametrize('folder', FAMILIES, ids=name)
def test_a_base_from_the_package_is_the_config_itself(
    folder, installed, tmp_path
):
    """Types of the hosts too are looked up where the config means it."""
    leaf, loss = recipe_in(folder)
    base = leaf.relative_to(CONFIGS).as_posix()
    host = HOSTS[folder.parent.name]
    text = f"_base_ = 'lt_losses_mm::{base}'"
    for chosen in (None, loss):
        mine = read(text, tmp_path, host, chosen).to_dict()
        assert mine == read_config(leaf, chosen).to_dict()
    assert 'lt_losses_mm.' in repr(mine['model'])


@pytest.mark.parametrize('folder', FAMILIES, ids=name)
def test_a_recipe_and_a_loss_from_the_package(folder, installed, tmp_path):
    """What fixes the loss of a recipe in a file of one's own."""
    leaf, loss = recipe_in(folder)
    base = leaf.relative_to(CONFIGS).as_posix()
    mine = read(
        f"_base_ = ['lt_losses_mm::{base}', "
        f"'lt_losses_mm::_base_/losses/{loss}.py']",
        tmp_path,
        HOSTS[folder.parent.name],
        'seesaw',
    )
    # The variable chooses what is replaced by the `lt_loss` of the file.
    assert (
        mine.lt_loss
        == read_config(CONFIGS / f'_base_/losses/{loss}.py').lt_loss
    )


@pytest.mark.parametrize('folder', OWN_DATA, ids=name)
def test_the_config_in_the_readme_is_whole(folder, installed, tmp_path):
    (text,) = re.findall(
        r'```python\n(_base_ = .*?)```',
        (folder / 'README.md').read_text(),
        re.S,
    )
    assert len(text.splitlines()) <= 10
    host = HOSTS[folder.parent.name]
    # Every value is another than that of the base, so that none can miss.
    for old, new in (
        ('data/own-', 'data/my-'),
        ("('first', 'second', 'third')", "('a', 'b', 'c', 'd')"),
        ('num_classes=10', 'num_classes=4'),
    ):
        text = text.replace(old, new)
    mine = read(text, tmp_path, host).to_dict()
    used = repr(
        {
            key: value
            for key, value in mine.items()
            if key in ('model', 'data_preprocessor')
            or key.endswith(('_dataloader', '_evaluator'))
        }
    )
    assert 'data/my-' in used
    assert 'data/own-' not in used and "'first'" not in used
    assert set(re.findall(r"'num_classes': (\d+)", used)) == {'4'}
