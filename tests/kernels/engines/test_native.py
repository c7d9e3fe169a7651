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
        # The other place where a library may be.
        **{cache.VARIABLE: str(folder), 'TMPDIR': str(folder)},
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
def test_a_library_that_is_kept(tmp_path):
    """It is used without a compiler; a damaged one needs one."""
    kept = tmp_path / 'cache' / native._name()
    kept.parent.mkdir()
    shutil.copy(native.load()._name, kept)
    nothing = dict(PATH=str(tmp_path), CXX='')
    assert 'native.cpp' not in run(kept.parent, **nothing)
    # Others could have written it.
    kept.chmod(0o777)
    log = run(kept.parent, **nothing)
    assert f'{kept} is not used, because others could have' in log
    assert 'no C++ compiler' in log
    kept.chmod(0o755)
    kept.write_bytes(b'')
    log = run(kept.parent, **nothing)
    assert 'native.cpp cannot be used' in log
    assert str(kept) in log
    # What a compiler does with it.
    log = run(kept.parent, CXX=script(tmp_path / 'cxx', 'echo again; exit 1'))
    assert 'compiling native.cpp' in log


@needs_compiler
@pytest.mark.slow
def test_it_is_compiled_once(tmp_path):
    log = run(tmp_path)
    before, after = (
        log.index(text)
        for text in ('compiling native.cpp', 'compiled native.cpp in')
    )
    assert before < after
    assert [path.name for path in tmp_path.iterdir()] == [native._name()]
    assert 'native.cpp' not in run(tmp_path)
    # A damaged one is replaced.
    (tmp_path / native._name()).write_bytes(b'')
    assert 'compiled native.cpp in' in run(tmp_path)
    assert 'native.cpp' not in run(tmp_path)


def ahead(folder, **env):
    """The command that compiles ahead: status, output, log."""
    env.update({cache.VARIABLE: str(folder), 'TMPDIR': str(folder)})
    env['PYTHONPATH'] = str(Path(lt_losses_mm.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, '-m', 'lt_losses_mm.kernels'],
        env=dict(os.environ, **env),
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def test_compiling_ahead(tmp_path):
    kept = tmp_path / native._name()
    failing = script(tmp_path / 'cxx', 'echo no >&2; exit 1')
    status, log = ahead(tmp_path, CXX=failing)
    assert status == 1
    assert 'compiling native.cpp for losses on the CPU, once' in log
    assert 'native.cpp cannot be used' in log and '(no)' in log
    if native.load() is not None:
        shutil.copy(native.load()._name, kept)
        status, log = ahead(tmp_path, CXX=failing)
        assert (status, log.splitlines()[-1]) == (0, str(kept))


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


def test_the_log_before_and_after(built, tmp_path, caplog):
    build, attempts = built
    said = []

    def watched(*args):
        said.append(caplog.text)
        return build(*args)

    native._build = watched
    with caplog.at_level('INFO', 'lt_losses_mm'):
        target = native._compiled()
    assert len(attempts) == 1
    assert 'compiling native.cpp' in said[0] and 'minutes' in said[0]
    assert 'python -m lt_losses_mm.kernels' in said[0]
    assert target == tmp_path / native._name()
    assert target.read_text() == 'a library'
    assert caplog.text.count(f'kept as {target}') == 1


def test_every_ingredient_has_its_own_library(monkeypatch, tmp_path):
    source = tmp_path / 'native.cpp'
    source.write_text(native._SOURCE.read_text() + '// changed')
    names = [native._name()]
    for name, value in (
        ('_SOURCE', source),
        ('_FLAGS', ['-O0']),
        ('_cpu', lambda: 'another'),
        ('_pools', lambda: [Path('libgomp-another.so')]),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(native, name, value)
            names.append(native._name())
    assert len(set(names)) == 5
    # A machine without a compiler looks for that of one that has it.
    monkeypatch.setattr(native, '_compiler', lambda: None)
    assert names[0] == native._name()


def test_flags_that_a_compiler_does_not_know(built, monkeypatch):
    build, attempts = built
    build.fails = (1, 2)
    monkeypatch.setattr(native, '_vectors', lambda: ['-mwide'])
    monkeypatch.setattr(native, '_openmp', lambda compiler: ['-fopenmp'])
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

    monkeypatch.setattr(native, '_library', fails)
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
