# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The kernels in C++, for CPU: compiled when first used, then cached.

The machine needs a C++ compiler (``CXX``, ``g++`` or ``clang++``); without
one a line of the log says so, and the kernels of ``eager.py`` are used. The
code has no headers of PyTorch in it, and is called through ``ctypes``.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import math
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import time
from logging import INFO, WARNING
from pathlib import Path
from typing import Any, Callable

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..functional.equalization import FOCAL, QUALITY_FOCAL
from ..functional.two_sided import SHIFTED_BCE, WEIGHTED_BCE, Sides
from .eager import new_gradient

_SOURCE = Path(__file__).with_name('native.cpp')
_FLAGS = (
    '-std=c++17 -O3 -funroll-loops -march=native -fno-math-errno '
    '-fno-trapping-math -ffp-contract=fast -fPIC'
).split()
_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_SHIFTED, _SEESAW, _DROPPED, _BCE, _FOCAL = range(5)


class _Problem(ctypes.Structure):
    """``Problem`` of native.cpp, field by field."""

    _fields_ = [
        *[
            (name, ctypes.c_void_p)
            for name in (
                'logits gradient labels first second third seed quality '
                'weight element_weight upstream rows top total lse own sums '
                'positive counts'
            ).split()
        ],
        *[
            (name, ctypes.c_int64)
            for name in (
                'images columns pixels stride gradient_stride ignore spared '
                'formula type threads kept'
            ).split()
        ],
        ('p', ctypes.c_float),
        ('q', ctypes.c_float),
        ('log_eps', ctypes.c_float),
    ]


# ------------------------------------------------------------------- library
def cache_folder() -> Path:
    """Where compiled code is kept: ``$XDG_CACHE_HOME/lt_losses_mm``.

    A folder of the system's temporary ones where that cannot be written.
    """
    try:
        root = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
        folder = Path(root) / 'lt_losses_mm'
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):  # read-only; no home
        pass
    user = getattr(os, 'getuid', lambda: 0)()
    folder = Path(tempfile.gettempdir()) / f'lt_losses_mm-{user}'
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _compiler() -> list[str] | None:
    """The command of a C++ compiler."""
    named = shlex.split(os.environ.get('CXX', ''))
    for command in (named, ['g++'], ['clang++']):
        if command and shutil.which(command[0]):
            return command
    return None


def _cpu() -> str:
    """What ``-march=native`` depends on."""
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    flags = {x for x in lines if x.startswith(('flags', 'Features', 'model'))}
    return ''.join([platform.machine(), platform.processor(), *sorted(flags)])


def _vectors() -> list[str]:
    """GCC takes half of AVX-512's width unless it is told to take all."""
    if platform.machine() in ('x86_64', 'AMD64') and 'avx512' in _cpu():
        return ['-mprefer-vector-width=512']
    return []


def _openmp(version: str) -> list[str]:
    """What to link for threads.

    GCC's code can share PyTorch's own pool of threads, where it has one.
    """
    package = Path(torch.__file__).parent
    bundled = sorted(package.glob('lib/libgomp*.so*'))
    bundled += sorted(package.with_name('torch.libs').glob('libgomp*'))
    if bundled and 'clang' not in version:
        return [str(bundled[0])]
    return ['-fopenmp']


def _build(
    compiler: list[str], flags: list[str], openmp: list[str], target: Path
) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        compiled, linked = (
            Path(folder) / 'native.o',
            Path(folder) / 'native.so',
        )
        threads = ['-fopenmp'] if openmp else []
        for command in (
            [*compiler, *flags, *threads, '-c', _SOURCE, '-o', compiled],
            [*compiler, '-shared', compiled, *openmp, '-o', linked],
        ):
            subprocess.run(
                [str(part) for part in command],
                check=True,
                capture_output=True,
                text=True,
            )
        ctypes.CDLL(str(linked))  # complains of what is missing in it
        linked.replace(target)


def _compiled() -> Path:
    """Path of the library, which is built if there is none."""
    compiler = _compiler()
    if compiler is None:
        raise OSError('no C++ compiler (CXX, g++, clang++) found')
    version = subprocess.run(
        [*compiler, '--version'], capture_output=True, text=True
    ).stdout
    openmp = _openmp(version)
    flags = [*_FLAGS, *_vectors()]
    parts = [_SOURCE.read_text(), version, _cpu(), *flags, *openmp]
    key = hashlib.sha256('\n'.join(parts).encode()).hexdigest()[:16]
    target = cache_folder() / f'native-{key}.so'
    if target.exists():
        return target
    started = time.perf_counter()
    # Some compilers do not know the width, and Apple's clang has no OpenMP.
    attempts = [(flags, openmp), (_FLAGS, openmp), (_FLAGS, [])]
    for attempt in attempts:
        try:
            _build(compiler, *attempt, target)
            break
        except (OSError, subprocess.CalledProcessError):
            if attempt is attempts[-1]:
                raise
    print_log(
        f'lt_losses_mm: compiled {_SOURCE.name} in '
        f'{time.perf_counter() - started:.0f} s, kept as {target}',
        'current',
        INFO,
    )
    return target


@functools.lru_cache(maxsize=None)
def load() -> Any:
    """The compiled code, or None, with a line of the log, where it cannot be.

    Compiled once for a machine: processes that start together may each do it.
    """
    target = None
    try:
        target = _compiled()
        loaded = ctypes.CDLL(str(target))
    except (OSError, subprocess.CalledProcessError) as error:
        if target is not None:
            target.unlink()  # damaged: the next process builds it anew
        said = (getattr(error, 'stderr', None) or str(error)).strip()
        print_log(
            f'lt_losses_mm: {_SOURCE.name} cannot be used: losses on CPU '
            'take the slower path of PyTorch operators '
            f'({said.splitlines()[0] if said else type(error).__name__})',
            'current',
            WARNING,
        )
        return None
    loaded.lt_losses_run.restype = None
    return loaded


def can_run(logits: Tensor) -> bool:
    """Whether there is code for the device and type of logits.

    Subclasses (fake, distributed) may have no memory to read.
    """
    return (
        type(logits) in (Tensor, nn.Parameter)
        and logits.device.type == 'cpu'
        and logits.dtype in _TYPES
        and load() is not None
    )


# ---------------------------------------------------------------------- calls
def _start(work: Any, z: Tensor, **fields: Any) -> None:
    """Forward: tensors are passed by address, so ``work`` keeps them alive.

    Those of the columns are the same in the backward pass, and are not made
    twice.
    """
    weights = dict(weight=work.weight, element_weight=work.element_weight)
    for name, value in weights.items():
        if value is not None:
            fields[name] = value.detach().to(torch.float32).contiguous()
    fields['labels'] = work.labels.contiguous()
    tensors = {k: v for k, v in fields.items() if isinstance(v, Tensor)}
    numbers = {k: v for k, v in fields.items() if k not in tensors}
    work.tensors = tensors
    work.problem = problem = _Problem(
        **{name: tensor.data_ptr() for name, tensor in tensors.items()},
        **numbers,
        logits=z.data_ptr(),
        images=z.size(0),
        columns=z.size(1),
        pixels=z.size(2) if z.dim() == 3 else 1,
        stride=z.stride(0),
        ignore=work.ignore_index,
        type=_TYPES[z.dtype],
        threads=torch.get_num_threads(),
    )
    if work.kept is not None:
        problem.gradient = work.kept.data_ptr()
        problem.gradient_stride = work.kept.stride(0)
    load().lt_losses_run(ctypes.byref(problem), 1)


def _finish(
    work: Any, z: Tensor, upstream: Tensor, out: Tensor | None
) -> Tensor:
    """Backward: the gradient, in ``out`` if given, which may be the logits."""
    # A second backward pass through the same graph finds nothing kept.
    kept, work.kept = work.kept, None
    if out is None:
        out = new_gradient(work, z) if kept is None else kept
    # The problem of the forward pass may serve several backward passes.
    problem = _Problem.from_buffer_copy(work.problem)
    problem.kept = kept is not None
    problem.logits, problem.stride = z.data_ptr(), z.stride(0)
    problem.gradient, problem.gradient_stride = out.data_ptr(), out.stride(0)
    problem.upstream = upstream.data_ptr()
    problem.rows = problem.positive = problem.sums = problem.counts = None
    problem.threads = torch.get_num_threads()
    load().lt_losses_run(ctypes.byref(problem), 0)
    return out


# Bytes up to which what forward computes anyway is kept for the backward pass:
# as long as it stays in a cache, to read it is cheaper than to compute it once
# more. Not in half precision: upstream gradients are scaled so that products
# with them do not underflow, other values might.
_KEEP = 16 << 20


def _room_to_keep(work: Any, z: Tensor) -> Tensor | None:
    if (
        work.needs_gradient
        and not work.overwrite
        and z.dim() == 2
        and z.dtype == torch.float32
        and z.numel() * z.element_size() <= _KEEP
    ):
        return new_gradient(work, z)
    return None


def _new_sums(work: Any, z: Tensor) -> dict[str, Any]:
    if not work.with_sums:
        return {}
    work.sums = z.new_zeros((3, z.size(1)), dtype=torch.float64)
    return _rows_of(work.sums, 'positive', 'sums', 'counts')


def _rows_of(table: Tensor, *names: str) -> dict[str, Any]:
    """Addresses of its rows, which ``table`` has to be kept alive for."""
    begin, size = table.data_ptr(), table.stride(0) * table.element_size()
    return {name: begin + size * i for i, name in enumerate(names)}


def _float(values: Tensor) -> Tensor:
    return values.to(torch.float32).contiguous()


def _softmax_fields(adjust: Any) -> dict[str, Any]:
    if hasattr(adjust, 'shift'):
        return dict(formula=_SHIFTED, first=_float(adjust.shift), spared=-1)
    if hasattr(adjust, 'seed'):
        return dict(
            formula=_DROPPED,
            first=_float(adjust.probability),
            seed=adjust.seed,
            spared=adjust.num_classes,
        )
    return dict(
        formula=_SEESAW,
        first=_float(adjust.log_counts),
        second=_float(adjust.log_counts_of_label),
        p=adjust.p,
        q=adjust.q,
        log_eps=math.log(adjust.eps),
        spared=-1,
    )


def softmax_forward(work: Any, z: Tensor) -> Tensor:
    """Losses of rows; state for the backward pass, and sums, in ``work``."""
    work.state = z.new_empty((5, *work.labels.shape), dtype=torch.float32)
    work.kept = _room_to_keep(work, z)
    _start(
        work,
        z,
        **_rows_of(work.state, 'rows', 'own', 'top', 'total', 'lse'),
        **_new_sums(work, z),
        **_softmax_fields(work.adjust),
    )
    return work.state[0]


softmax_backward = _finish


def _of_shifted(shift: Tensor) -> tuple[int, list[Tensor]]:
    shift = _float(shift)
    one = torch.ones_like(shift)
    return _BCE, [shift, one, one]


def _of_weighted(
    positive: Tensor, negative: Tensor
) -> tuple[int, list[Tensor]]:
    negative = _float(negative)
    return _BCE, [torch.zeros_like(negative), negative, _float(positive)]


def _of_focal(
    focusing: Tensor, positive: Tensor, negative: Tensor
) -> tuple[int, list[Tensor]]:
    return _FOCAL, [_float(focusing), _float(negative), _float(positive)]


# Parameters of the sides in the form that native.cpp has of them.
SIDES: dict[Sides, Callable[..., tuple[int, list[Tensor]]]] = {
    SHIFTED_BCE: _of_shifted,
    WEIGHTED_BCE: _of_weighted,
    FOCAL: _of_focal,
    QUALITY_FOCAL: _of_focal,
}


def sigmoid_forward(work: Any, z: Tensor) -> Tensor:
    """Losses of rows; state for the backward pass, and sums, in ``work``."""
    formula, columns = SIDES[work.sides](*work.parameters)
    fields: dict[str, Any] = dict(zip(('first', 'second', 'third'), columns))
    if work.at_label:
        fields['quality'] = _float(work.at_label[0])
    work.state = z.new_zeros((2, *work.labels.shape), dtype=torch.float32)
    work.kept = _room_to_keep(work, z)
    _start(
        work,
        z,
        formula=formula,
        spared=z.size(1) if work.spares else -1,
        **_rows_of(work.state, 'rows', 'own'),
        **_new_sums(work, z),
        **fields,
    )
    return work.state[0]


sigmoid_backward = _finish
