# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Pixels per class of segmentation masks: one pass over files, then cached."""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable

import numpy as np
import torch

from .. import cache
from ..hosts import HOSTS
from ..messages import fault, logger


def pixel_table(
    dataset: Any, index: np.ndarray, num_classes: int, progress: bool = True
) -> np.ndarray:
    """Count the pixels of every class in every mask.

    The masks are read by the data set's own annotation loader (the one of
    its pipeline, else mmseg's default), so ``reduce_zero_label``,
    ``label_map`` and the decoder are those of training. Later transforms are
    not simulated. Pixels of the data set's ``ignore_index`` (255 if it has
    none) do not count.

    The result is kept in :func:`lt_losses_mm.cache.folder`, under a key made
    of the paths, sizes and modification times of the masks and of all
    options named here.

    Args:
        dataset: A data set whose ``get_data_info`` gives ``seg_map_path``.
        index: Shape (N,), the samples to read.
        num_classes: C.
        progress: Show a progress bar, if MMEngine is there to draw it.

    Returns:
        Shape (N, C), uint32, pixels.

    Raises:
        ValueError: If a mask holds a label that is neither a class nor
            ignored, or nothing is known to load masks with.
        FileNotFoundError: If a mask is missing.
    """
    load = _loader(dataset)
    ignore_index = getattr(dataset, 'ignore_index', 255)
    kept = _cache_path(dataset, index, load, num_classes, ignore_index)
    if kept is not None and kept.is_file():
        with np.load(kept) as stored:
            return stored['pixels']

    def count(sample: int) -> np.ndarray:
        info = dataset.get_data_info(int(sample))
        mask = load(dict(info))['gt_seg_map']
        if mask.dtype in (np.uint16, np.uint32):
            mask = mask.astype(np.int64)  # torch does not count them
        # Faster than NumPy's, and it lets the other threads run.
        pixels = torch.bincount(
            torch.from_numpy(np.ascontiguousarray(mask)).flatten(),
            minlength=max(num_classes, ignore_index + 1),
        ).numpy()
        pixels[ignore_index] = 0
        stray = np.flatnonzero(pixels[num_classes:])
        if stray.size:
            raise fault(
                'class_counts',
                'auto',
                f'labels 0 to {num_classes - 1} or ignore_index='
                f'{ignore_index} in {info["seg_map_path"]}, got '
                f'{num_classes + stray[0]}',
                'set ignore_index, reduce_zero_label or metainfo.classes of '
                'the data set',
            )
        return pixels[:num_classes]

    where = f', then kept in {kept}' if kept else ''
    logger.info(f'Counting the pixels of {len(index)} masks once{where}')
    bar = None
    if progress and sys.modules.get('mmengine'):
        from mmengine.utils import ProgressBar

        # Its default is the stdout of the time when mmengine was imported.
        bar = ProgressBar(len(index), file=sys.stdout)
    table = np.zeros((len(index), num_classes), dtype=np.uint32)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for row, pixels in enumerate(pool.map(count, index)):
            table[row] = pixels
            if bar is not None:
                bar.update()
    if bar is not None:
        bar.file.write('\n')
    if kept is not None:
        try:
            # Another run may read or write the same entry at this moment.
            with cache.in_one_step(kept) as part, part.open('wb') as file:
                np.savez_compressed(file, pixels=table)
        except OSError as error:
            logger.warning(
                f'The pixel counts could not be kept in {kept} ({error}): '
                'the next run will read the masks again.'
            )
    return table


def _loader(dataset: Any) -> Callable[[dict], dict]:
    pipeline = getattr(dataset, 'pipeline', None)
    for transform in getattr(pipeline, 'transforms', ()):
        name = type(transform).__name__
        if name.startswith('Load') and 'Annotation' in name:
            return transform
    packages = {cls.__module__.split('.')[0] for cls in type(dataset).__mro__}
    for host in HOSTS:
        if host.name in packages and host.mask_loader is not None:
            module, name = host.mask_loader
            return getattr(importlib.import_module(module), name)()
    raise fault(
        'class_counts',
        'auto',
        f'LoadAnnotations in the pipeline of {type(dataset).__name__}, got '
        'none',
        'add it, or give class_counts as a list or file',
    )


def _cache_path(
    dataset: Any,
    index: np.ndarray,
    load: Any,
    num_classes: int,
    ignore_index: int,
) -> Path | None:
    """Where the table belongs; None if the masks are not local files."""
    cls = type(load)
    parts: list[Any] = [
        'pixels/1',
        num_classes,
        ignore_index,
        cls.__module__,
        repr(load),
    ]
    for sample in index:
        info = dataset.get_data_info(int(sample))
        path = info['seg_map_path']
        if '://' in path or getattr(dataset, 'backend_args', None):
            return None
        stat = os.stat(path)
        parts.append(
            (
                os.path.abspath(path),
                stat.st_size,
                stat.st_mtime_ns,
                info.get('label_map'),
                info.get('reduce_zero_label'),
            )
        )
    key = hashlib.sha256('\n'.join(map(repr, parts)).encode()).hexdigest()
    return cache.folder() / f'pixels-{key[:32]}.npz'
