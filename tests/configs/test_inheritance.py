# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Configs of users, outside of the package, that inherit from ours."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.config import config as mmengine_config

import lt_losses_mm  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs'
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


def read(text, folder, host):
    if find_spec(host) is None:
        pytest.skip(f'{host} is not installed')
    file = folder / 'mine.py'
    file.write_text(text)
    return Config.fromfile(file)


@pytest.mark.parametrize('folder', FAMILIES, ids=name)
def test_a_base_from_the_package_is_the_config_itself(
    folder, installed, tmp_path
):
    """Types of the hosts too are looked up where the config means it."""
    leaf = max(folder.glob('*balanced-softmax*.py'), default=None)
    base = leaf.relative_to(CONFIGS).as_posix()
    host = HOSTS[folder.parent.name]
    mine = read(f"_base_ = 'lt_losses_mm::{base}'", tmp_path, host)
    assert mine.to_dict() == Config.fromfile(leaf).to_dict()


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
