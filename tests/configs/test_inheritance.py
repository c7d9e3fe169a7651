# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Configs of users, outside of the package, that inherit from ours."""

from __future__ import annotations

import re
from importlib.util import find_spec

import pytest

from lt_losses_mm import integration
from lt_losses_mm.recipes import CONFIGS, leaves, read_config, read_leaf

HOSTS = dict(
    classification='mmpretrain', detection='mmdet', segmentation='mmseg'
)
FAMILIES = sorted(path.parent for path in CONFIGS.glob('*/*/metafile.yml'))
OWN_DATA = [path for path in FAMILIES if path.name == 'own-data']


def name(folder):
    return f'{folder.parent.name}-{folder.name}'


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
def test_a_base_from_the_package_is_the_config_itself(folder, tmp_path):
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
def test_a_recipe_and_a_loss_from_the_package(folder, tmp_path):
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
def test_the_config_in_the_readme_is_whole(folder, tmp_path):
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


@pytest.mark.parametrize(
    'base, fix',
    [
        (
            'clasification/digits/resnet18-c16_1xb64-20e-cross-entropy_'
            'digits-lt.py',
            "write 'lt_losses_mm::classification/digits/",
        ),
        ('_base_/losses/balanced_softmx.py', 'losses/balanced_softmax.py'),
        ('somewhere/else/entirely/of/no/likeness.py', 'with its folders'),
    ],
)
def test_a_base_that_is_not_there(tmp_path, base, fix):
    file = tmp_path / 'mine.py'
    file.write_text(f"_base_ = 'lt_losses_mm::{base}'")
    with pytest.raises(ValueError, match=f'mine.py: _base_=.*{fix}') as error:
        read_config(file)
    assert len(str(error.value)) < 700 + len(str(tmp_path))


@pytest.mark.parametrize('wheel', [True, False])
def test_where_the_configs_are(tmp_path, monkeypatch, wheel):
    """Below the package's folder in a wheel, beside it in a clone."""
    package = tmp_path / 'lt_losses_mm'
    configs = (package / '.mim' if wheel else tmp_path) / 'configs'
    (configs / 'task').mkdir(parents=True)
    (configs / 'task/leaf.py').write_text('found = True')
    monkeypatch.setattr(
        integration, '__file__', str(package / 'integration.py')
    )
    file = tmp_path / 'mine.py'
    file.write_text("_base_ = 'lt_losses_mm::task/leaf.py'")
    assert read_config(file).found
