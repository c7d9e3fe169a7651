# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The kernels in C++, for CPU: compiled when first used, then cached.

``python -m lt_losses_mm.kernels`` compiles them ahead. The machine needs a C++
compiler (``CXX``, ``g++`` or ``clang++``), or a library that is kept already;
without either a line of the log says so, and the kernels of ``eager.py`` are
used. The code has no headers of PyTorch in it, and is called through
``ctypes``.
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
from pathlib import Path
from typing import Any, Callable, NamedTuple

import torch
from torch import Tensor, nn

from ... import cache
from ...messages import logger
from ..call import Answer, Call
from ..formulas import (
    FOCAL,
    QUALITY_FOCAL,
    SHIFTED_BCE,
    WEIGHTED_BCE,
    Dropped,
    Seesaw,
    Shifted,
    Sides,
    SoftmaxFormula,
    TwoSided,
)
from ..formulas.softmax import scaled

_SOURCE = Path(__file__).with_name('native.cpp')
_FLAGS = (
    '-std=c++17 -O3 -funroll-loops -march=native -fno-math-errno '
    '-fno-trapping-math -ffp-contract=fast -fPIC'
).split()
_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_SHIFTED, _SEESAW, _DROPPED, _BCE, _FOCAL, _SCALED = range(6)


class _Problem(ctypes.Structure):
    """``Problem`` of native.cpp, field by field."""

    _fields_ = [
        *[
            (name, ctypes.c_void_p)
            for name in (
                'logits gradient labels first second third seed quality '
                'weight element_weight upstream rows top total lse own '
                'reduced sums '
                'positive counts'
            ).split()
        ],
        *[
            (name, ctypes.c_int64)
            for name in (
                'images columns pixels stride gradient_stride ignore spared '
                'formula type threads upstream_step'
            ).split()
        ],
        *[(name, ctypes.c_float) for name in 'p q log_eps expected'.split()],
    ]


# ------------------------------------------------------------------- library
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


def _pools() -> list[Path]:
    """PyTorch's own pool of threads, as a library, where it has one."""
    package = Path(torch.__file__).parent
    return [
        *sorted(package.glob('lib/libgomp*.so*')),
        *sorted(package.with_name('torch.libs').glob('libgomp*')),
    ]


def _openmp(compiler: list[str]) -> list[str]:
    """What to link for threads; GCC's code can share PyTorch's pool."""
    version = subprocess.run(
        [*compiler, '--version'], capture_output=True, text=True
    ).stdout
    pools = _pools()
    if pools and 'clang' not in version:
        return [str(pools[0])]
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
        linked.chmod(0o755)  # what others can write is not loaded
        linked.replace(target)


def _name() -> str:
    """Of the library's file.

    It follows from the source, the processor and PyTorch, not from the
    compiler: a machine without one takes what another has compiled.
    """
    pools = [path.name for path in _pools()]
    parts = [_SOURCE.read_text(), _cpu(), *_FLAGS, *_vectors(), *pools]
    key = hashlib.sha256('\n'.join(parts).encode()).hexdigest()[:16]
    return f'native-{key}.so'


def _compiled() -> Path:
    """Path of the library, which is built."""
    compiler = _compiler()
    if compiler is None:
        raise OSError('no C++ compiler (CXX, g++, clang++) found')
    flags, openmp = [*_FLAGS, *_vectors()], _openmp(compiler)
    target = cache.folder() / _name()
    # A warning, because without MMEngine nobody would see less.
    logger.warning(
        f'lt_losses_mm: compiling {_SOURCE.name} for losses on the CPU, once '
        'for this machine. It takes some 20 s, or minutes where all cores are '
        'busy (`python -m lt_losses_mm.kernels` does it ahead)'
    )
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
    logger.info(
        f'lt_losses_mm: compiled {_SOURCE.name} in '
        f'{time.perf_counter() - started:.0f} s, kept as {target}'
    )
    return target


def _library() -> Any:
    """What is kept, or else is built."""
    for kept in cache.find(_name()):
        try:
            return ctypes.CDLL(str(kept))
        except OSError:
            # Damaged, or compiled beside a newer C library.
            if _compiler() is None:
                raise
    return ctypes.CDLL(str(_compiled()))


@functools.lru_cache(maxsize=None)
def load() -> Any:
    """The compiled code, or None, with a line of the log, where it cannot be.

    Compiled once for a machine: processes that start together may each do it.
    """
    try:
        loaded = _library()
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, 'stderr', None) or str(error)).strip()
        logger.warning(
            f'lt_losses_mm: {_SOURCE.name} cannot be used: losses on CPU '
            'take the slower path of PyTorch operators '
            f'({said.splitlines()[0] if said else type(error).__name__})'
        )
        return None
    loaded.lt_losses_run.restype = None
    return loaded


# Bytes up to which forward writes the gradient, too: as long as it stays in a
# cache until backward.
_FINISH = 16 << 20
# Threads share the columns of wider rows: WIDE of native.cpp.
_WIDE = 1 << 16


class _State(NamedTuple):
    """The problem of the forward pass, and the tensors at its addresses."""

    problem: _Problem
    tensors: Any


class _Native:
    """See :class:`~lt_losses_mm.kernels.call.Engine`."""

    def can_run(
        self, logits: Tensor, formula: SoftmaxFormula | TwoSided
    ) -> bool:
        # Subclasses (fake, distributed) may have no memory to read.
        return (
            type(logits) in (Tensor, nn.Parameter)
            and logits.device.type == 'cpu'
            and logits.dtype in _TYPES
            and (not isinstance(formula, TwoSided) or formula.sides in _SIDES)
            and load() is not None
        )

    def finishes(self, call: Call, logits: Tensor) -> bool:
        return (
            logits.dtype == torch.float32
            and logits.dim() == 2
            and logits.size(1) <= _WIDE
            and 4 * logits.numel() <= _FINISH
        )

    def forward(
        self, call: Call, logits: Tensor, gradient: Tensor | None
    ) -> Answer:
        formula, labels = call.formula, call.labels
        if not labels.is_contiguous():
            labels = labels.contiguous()
        problem = _Problem()
        # Every address is of a tensor that the state keeps alive.
        keep: list[Any] = [labels, formula]
        problem.logits, problem.labels = logits.data_ptr(), labels.data_ptr()
        size = logits.shape
        problem.images, problem.columns = size[0], size[1]
        problem.pixels = size[2] if len(size) == 3 else 1
        problem.stride = logits.stride(0)
        problem.ignore, problem.spared = call.ignore_index, -1
        problem.type = _TYPES[logits.dtype]
        problem.threads = torch.get_num_threads()
        if gradient is not None:
            problem.gradient = gradient.data_ptr()
            problem.gradient_stride = gradient.stride(0)
            if isinstance(call.upstream, Tensor):
                keep.append(_float(call.upstream))
                problem.upstream = keep[-1].data_ptr()
                problem.upstream_step = call.upstream.dim() > 0
            else:
                problem.expected = call.upstream
            reduced = torch.empty(())
            problem.reduced = reduced.data_ptr()
        if isinstance(formula, TwoSided):
            # Rows that are ignored are not written to.
            state = torch.zeros((2, *labels.shape))
            problem.formula, columns = _SIDES[formula.sides](
                *formula.parameters
            )
            if formula.spare_background:
                problem.spared = size[1]
            if call.quality is not None:
                keep.append(_float(call.quality))
                problem.quality = keep[-1].data_ptr()
        else:
            state = torch.empty((5, *labels.shape))
            columns = _softmax_columns(problem, formula)
        address, step = state.data_ptr(), 4 * state.stride(0)
        problem.rows, problem.own = address, address + step
        if state.size(0) == 5:
            problem.top, problem.total = address + 2 * step, address + 3 * step
            problem.lse = address + 4 * step
        problem.first = columns[0].data_ptr()
        if len(columns) > 1:
            problem.second = columns[1].data_ptr()
        if len(columns) > 2:
            problem.third = columns[2].data_ptr()
        if call.weight is not None:
            keep.append(_float(call.weight.detach()))
            problem.weight = keep[-1].data_ptr()
        if call.element_weight is not None:
            keep.append(_float(call.element_weight.detach()))
            problem.element_weight = keep[-1].data_ptr()
        sums = None
        if call.with_sums:
            sums = torch.zeros((3, size[1]), dtype=torch.float64)
            address = sums.data_ptr()
            problem.positive, problem.sums = address, address + 8 * size[1]
            problem.counts = address + 16 * size[1]
        load().lt_losses_run(ctypes.byref(problem), 1)
        if sums is not None and isinstance(formula, SoftmaxFormula):
            sums = scaled(sums, formula.scale)
        loss = state[0] if gradient is None else reduced
        return Answer(loss, sums, _State(problem, (state, columns, keep)))

    def backward(
        self,
        call: Call,
        logits: Tensor,
        state: _State,
        upstream: Tensor,
        gradient: Tensor,
    ) -> None:
        # The problem of the forward pass may serve several backward passes.
        problem = _Problem.from_buffer_copy(state.problem)
        problem.logits, problem.stride = logits.data_ptr(), logits.stride(0)
        problem.gradient = gradient.data_ptr()
        problem.gradient_stride = gradient.stride(0)
        upstream = _float(upstream)  # a wider factor makes it wider
        problem.upstream = upstream.data_ptr()
        problem.upstream_step = upstream.dim() > 0
        problem.rows = problem.reduced = problem.positive = problem.sums = (
            problem.counts
        ) = None
        problem.threads = torch.get_num_threads()
        load().lt_losses_run(ctypes.byref(problem), 0)


NATIVE = _Native()


def _float(values: Tensor) -> Tensor:
    if values.dtype != torch.float32:
        values = values.float()
    return values if values.is_contiguous() else values.contiguous()


def _softmax_columns(
    problem: _Problem, formula: SoftmaxFormula
) -> list[Tensor]:
    """Values of the columns; all else is written into the problem."""
    columns = [_float(values) for values in formula.columns()]
    if isinstance(formula, Shifted):
        problem.formula = _SHIFTED if formula.scale is None else _SCALED
    elif isinstance(formula, Dropped):
        problem.formula, problem.seed = _DROPPED, formula.seed.data_ptr()
        problem.spared = formula.num_classes
    else:
        assert isinstance(formula, Seesaw)
        problem.formula = _SEESAW
        problem.p, problem.q = formula.p, formula.q
        problem.log_eps = math.log(formula.eps)
    return columns


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
_SIDES: dict[Sides, Callable[..., tuple[int, list[Tensor]]]] = {
    SHIFTED_BCE: _of_shifted,
    WEIGHTED_BCE: _of_weighted,
    FOCAL: _of_focal,
    QUALITY_FOCAL: _of_focal,
}
