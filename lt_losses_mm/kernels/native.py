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
from .eager import new_like

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


def _build(compiler: list[str], openmp: list[str], target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        compiled, linked = (
            Path(folder) / 'native.o',
            Path(folder) / 'native.so',
        )
        threads = ['-fopenmp'] if openmp else []
        for command in (
            [*compiler, *_FLAGS, *threads, '-c', _SOURCE, '-o', compiled],
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
    parts = [_SOURCE.read_text(), version, _cpu(), *_FLAGS, *openmp]
    key = hashlib.sha256('\n'.join(parts).encode()).hexdigest()[:16]
    target = cache_folder() / f'native-{key}.so'
    if target.exists():
        return target
    started = time.perf_counter()
    try:
        _build(compiler, openmp, target)
    except (OSError, subprocess.CalledProcessError):
        # Apple's clang has no OpenMP.
        _build(compiler, [], target)
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
def _run(forward: bool, work: Any, z: Tensor, **fields: Any) -> None:
    """Call the library; tensors are passed by address, so must be alive."""
    weights = dict(weight=work.weight, element_weight=work.element_weight)
    tensors = {
        name: value.detach().to(torch.float32).contiguous()
        for name, value in weights.items()
        if value is not None
    }
    tensors.update(logits=z, labels=work.labels.contiguous())
    numbers: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, Tensor):
            tensors[name] = value
        else:
            numbers[name] = value
    problem = _Problem(
        **{name: tensor.data_ptr() for name, tensor in tensors.items()},
        **numbers,
        images=z.size(0),
        columns=z.size(1),
        pixels=z.size(2) if z.dim() == 3 else 1,
        stride=z.stride(0),
        gradient_stride=z.stride(0)
        if 'gradient' not in tensors
        else tensors['gradient'].stride(0),
        ignore=work.ignore_index,
        type=_TYPES[z.dtype],
        threads=torch.get_num_threads(),
    )
    load().lt_losses_run(ctypes.byref(problem), int(forward))


def _new_sums(work: Any, z: Tensor) -> dict[str, Tensor]:
    if not work.with_sums:
        return {}
    positive, negative, counts = z.new_zeros(
        (3, z.size(1)), dtype=torch.float64
    )
    work.sums = positive, negative, counts
    return dict(positive=positive, sums=negative, counts=counts)


def _softmax_fields(work: Any) -> dict[str, Any]:
    adjust = work.adjust
    if hasattr(adjust, 'shift'):
        first = adjust.shift.to(torch.float32).contiguous()
        return dict(formula=_SHIFTED, first=first, spared=-1)
    if hasattr(adjust, 'seed'):
        return dict(
            formula=_DROPPED,
            first=adjust.probability.to(torch.float32).contiguous(),
            seed=adjust.seed,
            spared=adjust.num_classes,
        )
    return dict(
        formula=_SEESAW,
        first=adjust.log_counts.to(torch.float32).contiguous(),
        second=adjust.log_counts_of_label.to(torch.float32).contiguous(),
        p=adjust.p,
        q=adjust.q,
        log_eps=torch.tensor(adjust.eps).log().item(),
        spared=-1,
    )


def softmax_forward(work: Any, z: Tensor) -> Tensor:
    """Losses of rows; state for the backward pass, and sums, in ``work``."""
    rows, own, *state = z.new_empty(
        (5, *work.labels.shape), dtype=torch.float32
    )
    work.state = dict(zip(('top', 'total', 'lse'), state))
    _run(
        True,
        work,
        z,
        rows=rows,
        own=own,
        **work.state,
        **_new_sums(work, z),
        **_softmax_fields(work),
    )
    return rows


def softmax_backward(
    work: Any, z: Tensor, upstream: Tensor, out: Tensor | None
) -> Tensor:
    """Gradient, in ``out`` if given, which may be the logits."""
    out = new_like(z) if out is None else out
    _run(
        False,
        work,
        z,
        gradient=out,
        upstream=upstream,
        **work.state,
        **_softmax_fields(work),
    )
    return out


def _of_shifted(shift: Tensor) -> tuple[int, list[Tensor]]:
    one = torch.ones_like(shift)
    return _BCE, [shift, one, one]


def _of_weighted(
    positive: Tensor, negative: Tensor
) -> tuple[int, list[Tensor]]:
    return _BCE, [torch.zeros_like(negative), negative, positive]


def _of_focal(
    focusing: Tensor, positive: Tensor, negative: Tensor
) -> tuple[int, list[Tensor]]:
    return _FOCAL, [focusing, negative, positive]


# Parameters of the sides in the form that native.cpp has of them.
SIDES: dict[Sides, Callable[..., tuple[int, list[Tensor]]]] = {
    SHIFTED_BCE: _of_shifted,
    WEIGHTED_BCE: _of_weighted,
    FOCAL: _of_focal,
    QUALITY_FOCAL: _of_focal,
}


def _sigmoid_fields(work: Any, z: Tensor) -> dict[str, Any]:
    formula, columns = SIDES[work.sides](*work.parameters)
    fields: dict[str, Any] = {
        name: column.to(torch.float32).contiguous()
        for name, column in zip(('first', 'second', 'third'), columns)
    }
    if work.at_label:
        (quality,) = work.at_label
        fields['quality'] = quality.to(torch.float32).contiguous()
    return dict(
        fields,
        formula=formula,
        own=work.own,
        spared=z.size(1) if work.spares else -1,
    )


# Bytes up to which the slopes, computed for the sums anyway, are kept for the
# backward pass: as long as they stay in a cache, to read them is cheaper than
# to compute them once more. Not in half precision: upstream gradients are
# scaled so that products with them do not underflow, slopes might.
_KEEP = 16 << 20


def sigmoid_forward(work: Any, z: Tensor) -> Tensor:
    """Losses of rows; state for the backward pass, and sums, in ``work``."""
    rows, work.own = z.new_zeros((2, *work.labels.shape), dtype=torch.float32)
    kept: dict[str, Tensor] = {}
    if (
        work.with_sums
        and work.needs_gradient
        and not work.overwrite
        and z.dim() == 2
        and z.dtype == torch.float32
        and z.numel() * z.element_size() <= _KEEP
    ):
        work.kept = new_like(z)
        kept['gradient'] = work.kept
    _run(
        True,
        work,
        z,
        rows=rows,
        **kept,
        **_new_sums(work, z),
        **_sigmoid_fields(work, z),
    )
    return rows


def sigmoid_backward(
    work: Any, z: Tensor, upstream: Tensor, out: Tensor | None
) -> Tensor:
    """Gradient, in ``out`` if given, which may be the logits."""
    # A second backward pass through the same graph finds none.
    kept, work.kept = work.kept, None
    if kept is not None:
        out = kept
    elif out is None:
        out = new_like(z)
    _run(
        False,
        work,
        z,
        gradient=out,
        upstream=upstream,
        kept=int(kept is not None),
        **_sigmoid_fields(work, z),
    )
    return out
