# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""What the requirement files promise to each other and to other stacks."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
FILES = sorted(path.stem for path in (ROOT / 'requirements').glob('*.txt'))
STACKS = ['classic', 'modern']


def read(name: str) -> dict[str, Requirement]:
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()
    found = [
        Requirement(line) for line in lines if line and line[0] not in '#-'
    ]
    names = [requirement.name.lower() for requirement in found]
    assert len(set(names)) == len(names), f'{name}.txt names one twice'
    return dict(zip(names, found))


def test_runtime_leaves_the_stack_alone():
    # Each of these exists under two names or in many builds, and installing
    # the wrong one breaks a working environment.
    assert set(read('runtime')) == {'numpy'}
    assert not str(read('runtime')['numpy'].specifier)
    for name in ('optional', 'tests', 'docs'):
        for requirement in read(name):
            assert not requirement.startswith(
                ('mm', 'onedl', 'openm', 'torch')
            )


@pytest.mark.parametrize('name', [f for f in FILES if f not in STACKS])
def test_modern_pins_every_requirement(name):
    pins = read('modern')
    for requirement in read(name).values():
        pin = str(pins[requirement.name.lower()].specifier)
        assert pin.startswith('==')
        assert requirement.specifier.contains(pin[2:]), requirement


@pytest.mark.parametrize('stack', STACKS)
def test_stacks_are_exact(stack):
    for requirement in read(stack).values():
        (specifier,) = requirement.specifier
        assert specifier.operator == '==' and '*' not in specifier.version


@pytest.mark.parametrize('name', ['build', 'optional', 'tests'])
def test_classic_pins_what_its_tests_need(name):
    pins = read('classic')
    for requirement in read(name).values():
        if requirement.name not in ('mypy', 'ruff'):
            pin = str(pins[requirement.name.lower()].specifier)
            assert requirement.specifier.contains(pin[2:]), requirement


OLD = """
import runpy, setuptools
setuptools.__version__ = '60.2.0'
runpy.run_path('setup.py', run_name='__main__')
"""


def test_setuptools_that_would_install_nothing(tmp_path):
    """Version 60.2.0 ends with success, and `UNKNOWN-0.0.0`."""
    done = subprocess.run(
        [sys.executable, '-c', OLD, 'bdist_wheel', '-d', tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert 'setuptools==60.2.0, expected 64 or newer. Fix: ' in done.stderr
    assert not list(tmp_path.iterdir())


def test_extras_mirror_the_files():
    text = (ROOT / 'pyproject.toml').read_text()
    for name in ('mminstall', 'optional', 'tests', 'docs'):
        assert f'{name} = {{ file = ["requirements/{name}.txt"] }}' in text


def test_a_config_is_found_by_its_bare_name():
    """``mim train mm-lt-losses NAME.py`` searches by file name alone.

    In an editable install it searches the whole checkout, so no other file
    of the project may have the name of a leaf config either.
    """
    leaves = [
        path.name
        for path in (ROOT / 'configs').rglob('*.py')
        if '_base_' not in path.parts
    ]
    assert leaves
    folders = (
        'benchmarks',
        'configs',
        'docs',
        'lt_losses_mm',
        'tests',
        'tools',
    )
    names = Counter(
        path.name for folder in folders for path in (ROOT / folder).rglob('*')
    )
    assert [name for name in leaves if names[name] != 1] == []


def test_nothing_of_mim_in_the_source_tree():
    # An editable install would find each config twice.
    assert not (ROOT / 'lt_losses_mm' / '.mim').exists()


def test_metafiles_of_the_model_index_exist():
    from mmengine.fileio import load

    for metafile in load(ROOT / 'model-index.yml')['Import']:
        assert (ROOT / metafile).is_file(), metafile
