"""The compiled library: found, built, damaged, or not to be had."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lt_losses_mm
from lt_losses_mm.kernels import native

SCRIPT = """
import torch
from lt_losses_mm.losses import BalancedSoftmaxLoss
loss = BalancedSoftmaxLoss(class_counts=[3, 1])
logits = torch.zeros(1, 2, requires_grad=True)
print(round(loss(logits, torch.tensor([1])).item(), 4))
"""


def run(**env):
    """Standard output, and the log, of a fresh process."""
    root = str(Path(lt_losses_mm.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, '-c', SCRIPT],
        env=dict(os.environ, PYTHONPATH=root, **env),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == '1.3863'
    return done.stdout + done.stderr


def script(path, text):
    path.write_text('#!/bin/sh\n' + text)
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ('text', 'reason'),
    [
        ('echo what; exit 1', 'exit status 1'),
        ('echo no such flag >&2; exit 1', 'no such flag'),
    ],
)
def test_a_compiler_that_fails(tmp_path, text, reason):
    compiler = script(tmp_path / 'cxx', text)
    log = run(CXX=compiler, XDG_CACHE_HOME=str(tmp_path))
    assert 'native.cpp cannot be used' in log
    assert reason in log


@pytest.mark.skipif(native.load() is None, reason='no C++ compiler')
def test_a_damaged_library_is_removed(tmp_path):
    cache = tmp_path / 'lt_losses_mm'
    cache.mkdir()
    compiled = native._compiled()
    damaged = cache / compiled.name
    damaged.write_bytes(b'')
    log = run(XDG_CACHE_HOME=str(tmp_path))
    assert 'native.cpp cannot be used' in log
    assert not damaged.exists()
    shutil.copy(compiled, damaged)
    assert 'native' not in run(XDG_CACHE_HOME=str(tmp_path))


def test_without_a_place_to_write(tmp_path, monkeypatch):
    file = tmp_path / 'file'
    file.touch()
    monkeypatch.setenv('XDG_CACHE_HOME', str(file))
    monkeypatch.setattr(native.tempfile, 'gettempdir', lambda: str(tmp_path))
    folder = native.cache_folder()
    assert folder.parent == tmp_path
    assert folder.is_dir()
    monkeypatch.delenv('XDG_CACHE_HOME')

    def no_home():
        raise RuntimeError('no home')

    monkeypatch.setattr(native.Path, 'home', no_home)
    assert native.cache_folder() == folder


def test_commands_in_cxx(monkeypatch):
    monkeypatch.setenv('CXX', f'{sys.executable} -m this')
    assert native._compiler() == [sys.executable, '-m', 'this']
    monkeypatch.setenv('CXX', 'there-is-no-such-compiler')
    assert native._compiler() in (['g++'], ['clang++'], None)
    monkeypatch.setattr(native.shutil, 'which', lambda name: None)
    assert native._compiler() is None


def test_the_structure_is_that_of_the_source():
    source = native._SOURCE.read_text()
    body = source[source.index('struct Problem {') :]
    body = body[: body.index('};')]
    words = [
        line.split('//')[0].strip().rstrip(';') for line in body.splitlines()
    ]
    names = []
    for line in filter(None, words[1:]):
        kind = line.replace('const ', '').split()[0].rstrip('*')
        rest = line[line.index(kind) + len(kind) :]
        names += [name.strip(' *') for name in rest.split(',')]
    assert names == [name for name, *_ in native._Problem._fields_]
    size = 8 * (len(names) - 3) + 3 * 4
    assert ctypes.sizeof(native._Problem) == -(-size // 8) * 8


def test_other_kinds_of_tensors():
    class Wrapped(torch.Tensor):
        pass

    assert not native.can_run(torch.zeros(1).as_subclass(Wrapped))
    assert not native.can_run(torch.zeros(1, dtype=torch.float64))
    assert not native.can_run(torch.zeros(1, device='meta'))
