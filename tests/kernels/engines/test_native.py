"""The compiled library: found, built, kept, damaged, or not to be had."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lt_losses_mm
from lt_losses_mm import cache
from lt_losses_mm.kernels import FOCAL, Shifted, TwoSided
from lt_losses_mm.kernels.engines import native

SCRIPT = """
import logging
import torch
from lt_losses_mm.losses import BalancedSoftmaxLoss
logging.basicConfig(level='INFO')
loss = BalancedSoftmaxLoss(class_counts=[3, 1])
logits = torch.zeros(1, 2, requires_grad=True)
print(round(loss(logits, torch.tensor([1])).item(), 4))
"""
needs_compiler = pytest.mark.skipif(
    native.load() is None, reason='no C++ compiler'
)


def run(folder, **env):
    """Standard output, and the log, of a fresh process."""
    env.update(
        PYTHONPATH=str(Path(lt_losses_mm.__file__).parents[1]),
        LT_LOSSES_ENGINE='native',
        **{cache.VARIABLE: str(folder)},
    )
    done = subprocess.run(
        [sys.executable, '-c', SCRIPT],
        env=dict(os.environ, **env),
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


# ----------------------------------------------------------- fresh processes
@pytest.mark.parametrize(
    ('text', 'reason'),
    [
        ('echo what; exit 1', 'exit status 1'),
        ('echo no such flag >&2; exit 1', 'no such flag'),
    ],
)
def test_a_compiler_that_fails(tmp_path, text, reason):
    log = run(tmp_path, CXX=script(tmp_path / 'cxx', text))
    assert 'native.cpp cannot be used' in log
    assert reason in log
    assert [path.name for path in tmp_path.iterdir()] == ['cxx']


@needs_compiler
def test_a_damaged_library_is_removed(tmp_path):
    compiled = native._compiled()
    damaged = tmp_path / compiled.name
    damaged.write_bytes(b'')
    log = run(tmp_path)
    assert 'native.cpp cannot be used' in log
    assert not damaged.exists()
    shutil.copy(compiled, damaged)
    assert 'native' not in run(tmp_path)


@needs_compiler
@pytest.mark.slow
def test_it_is_compiled_once(tmp_path):
    assert 'compiled native.cpp in' in run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [
        native._compiled().name
    ]
    assert 'native' not in run(tmp_path)


# ------------------------------------------------------------------ building
@pytest.fixture
def built(monkeypatch, tmp_path):
    """A folder, and the attempts to build something in it."""
    attempts = []

    def build(compiler, flags, openmp, target):
        attempts.append((list(flags), list(openmp)))
        if len(attempts) in build.fails:
            raise subprocess.CalledProcessError(1, compiler, stderr='no')
        target.write_text('a library')

    build.fails = ()
    monkeypatch.setattr(native, '_build', build)
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))
    monkeypatch.setattr(native, '_compiler', lambda: [sys.executable])
    return build, attempts


def test_what_is_there_is_not_built_again(built, tmp_path, caplog):
    with caplog.at_level('INFO', 'lt_losses_mm'):
        target = native._compiled()
        assert native._compiled() == target
    assert len(built[1]) == 1
    assert target.parent == tmp_path
    assert target.read_text() == 'a library'
    assert caplog.text.count(f'kept as {target}') == 1


def test_every_ingredient_has_its_own_library(built, monkeypatch, tmp_path):
    source = tmp_path / 'native.cpp'
    source.write_text(native._SOURCE.read_text() + '// changed')
    names = [native._compiled().name]
    for name, value in (
        ('_SOURCE', source),
        ('_FLAGS', ['-O0']),
        ('_cpu', lambda: 'another'),
        ('_openmp', lambda version: ['-lgomp']),
        ('_compiler', lambda: ['true']),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(native, name, value)
            names.append(native._compiled().name)
    assert len(set(names)) == 6
    assert names[0] == native._compiled().name


def test_flags_that_a_compiler_does_not_know(built, monkeypatch):
    build, attempts = built
    build.fails = (1, 2)
    monkeypatch.setattr(native, '_vectors', lambda: ['-mwide'])
    monkeypatch.setattr(native, '_openmp', lambda version: ['-fopenmp'])
    native._compiled()
    assert attempts == [
        ([*native._FLAGS, '-mwide'], ['-fopenmp']),
        (native._FLAGS, ['-fopenmp']),
        (native._FLAGS, []),
    ]


@pytest.mark.parametrize(
    ('error', 'reason'),
    [
        (OSError('no place to write'), 'no place to write'),
        (OSError(), 'OSError'),
        (subprocess.CalledProcessError(1, ['cxx'], stderr='a\nb'), r'(a)'),
    ],
)
def test_a_line_of_the_log_says_why(monkeypatch, caplog, error, reason):
    def fails():
        raise error

    monkeypatch.setattr(native, '_compiled', fails)
    # Not what is kept for the process.
    assert native.load.__wrapped__() is None
    (record,) = caplog.records
    assert record.levelname == 'WARNING'
    assert record.getMessage().startswith(
        'lt_losses_mm: native.cpp cannot be used: '
    )
    assert reason in record.getMessage()


def test_commands_in_cxx(monkeypatch):
    monkeypatch.setenv('CXX', f'{sys.executable} -m this')
    assert native._compiler() == [sys.executable, '-m', 'this']
    monkeypatch.setenv('CXX', 'there-is-no-such-compiler')
    assert native._compiler() in (['g++'], ['clang++'], None)
    monkeypatch.setattr(native.shutil, 'which', lambda name: None)
    assert native._compiler() is None
    with pytest.raises(OSError, match=r'no C\+\+ compiler'):
        native._compiled()


# ------------------------------------------------------------------- calling
def test_the_structure_is_that_of_the_source():
    source = native._SOURCE.read_text()
    body = source[source.index('struct Problem {') :]
    body = body[: body.index('};')]
    kinds = dict(float=ctypes.c_float, int64_t=ctypes.c_int64)
    fields = []
    for line in body.splitlines()[1:]:
        line = line.split('//')[0].strip().rstrip(';').replace('const ', '')
        if not line:
            continue
        kind, _, names = line.partition(' ')
        kind = ctypes.c_void_p if kind.endswith('*') else kinds[kind]
        fields += [(name.strip(), kind) for name in names.split(',')]
    assert fields == native._Problem._fields_
    floats = sum(kind is ctypes.c_float for _, kind in fields)
    size = 8 * (len(fields) - floats) + 4 * floats
    assert ctypes.sizeof(native._Problem) == -(-size // 8) * 8


@needs_compiler
def test_what_it_can_run():
    class Wrapped(torch.Tensor):
        pass

    def can_run(logits, formula=None):
        formula = formula or Shifted(torch.zeros(1))
        return native.NATIVE.can_run(logits, formula)

    logits = torch.zeros(1, 1)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert can_run(logits.to(dtype))
    assert can_run(torch.nn.Parameter(logits))
    assert not can_run(logits.double())
    assert not can_run(logits.as_subclass(Wrapped))
    assert not can_run(logits.to('meta'))
    one = [torch.ones(1)] * 3
    assert can_run(logits, TwoSided(FOCAL, one))
    # Sides that the source has no code for.
    other = FOCAL._replace(positive=lambda *args: args[0])
    assert not can_run(logits, TwoSided(other, one))
