# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Pixels per label of segmentation masks: one pass over files, then kept."""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple

import numpy as np
import torch

from .. import cache
from ..hosts import HOSTS
from ..messages import describe, fault, listed, logger

# Whose transforms leave the labels of pixels as they are.
_HOST_PACKAGES = {'builtins', 'mmcv', 'mmengine', *(h.name for h in HOSTS)}


class LabelPixels(NamedTuple):
    """How many pixels of which label a mask has; an entry for each pair.

    What the labels mean is not known here: one pass serves heads that ignore
    different labels.
    """

    mask: np.ndarray  # (M,), position among the samples that were read
    label: np.ndarray  # (M,) int64
    pixels: np.ndarray  # (M,) int64


class StrayLabelError(ValueError):
    """Masks hold labels that are neither classes nor ignored."""

    def __init__(self, message: str, labels: list[int]) -> None:
        super().__init__(message)
        self.labels = labels


# Of this process: the masks of remote storage are not kept on disk.
_counted: dict[str, LabelPixels] = {}


def class_sums(
    dataset: Any,
    index: np.ndarray,
    draws: np.ndarray,
    num_classes: int,
    unit: str,
    ignore_index: int = 255,
    progress: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Sum the pixels of every class over masks that are drawn so often.

    The masks are read by the data set's own annotation loader (the one of
    its pipeline, else mmseg's default), so ``reduce_zero_label``,
    ``label_map`` and the decoder are those of training. Later transforms are
    not simulated; a warning names those that are of no host, as they may
    change labels.

    What a pass finds is kept in :func:`lt_losses_mm.cache.folder`, under a
    key made of the paths, sizes and modification times of the masks and of
    all options of the loader.

    Args:
        dataset: A data set whose ``get_data_info`` gives ``seg_map_path``.
        index: Shape (N,), the samples to read.
        draws: Shape (N,), how often each of them is drawn.
        num_classes: C.
        unit: ``'pixel'``, or ``'image'`` for the masks that hold the class.
        ignore_index: Label of the pixels that the loss leaves out.
        progress: Show a progress bar, on a terminal and if MMEngine is
            there to draw it.

    Returns:
        The sums, shape (C,), float64, and the pixels that count and that are
        ignored, shape (2,).

    Raises:
        StrayLabelError: If a mask holds a label that is neither a class nor
            ignored.
        ValueError: If a file is no mask of one 8-bit label a pixel, or
            nothing is known to load masks with.
        FileNotFoundError: If a mask is missing.
    """
    found = _label_pixels(dataset, index, progress)
    drawn = draws[found.mask] * found.pixels
    ignored = found.label == ignore_index
    counted = (found.label >= 0) & (found.label < num_classes) & ~ignored
    stray = ~(ignored | counted)
    if stray.any():
        where = dataset.get_data_info(int(index[found.mask[stray][0]]))
        share = drawn[stray].sum() / drawn.sum()
        raise _stray_labels(
            dataset,
            np.unique(found.label[stray]).tolist(),
            f'labels 0 to {num_classes - 1} or ignore_index={ignore_index} '
            f'in {where["seg_map_path"]}',
            f'{100 * share:.3g} % of all pixels',
        )
    weight = drawn if unit == 'pixel' else draws[found.mask]
    sums = np.bincount(found.label[counted], weight[counted], num_classes)
    seen = np.array([drawn[counted].sum(), drawn[ignored].sum()])
    if seen[1]:
        share = f'{100 * seen[1] / seen.sum():.3g} % of the pixels'
        logger.info(
            f'{share} of {len(index)} masks have the label ignore_index='
            f'{ignore_index} and are left out'
        )
    return sums, seen


def _stray_labels(
    dataset: Any, labels: list[int], expected: str, share: str
) -> StrayLabelError:
    own = _own_transforms(dataset)
    fix = (
        'set ignore_index of the heads, reduce_zero_label or '
        'metainfo.classes of the data set'
    )
    if '.jp' in expected.lower():
        fix = 'save the masks as PNG: JPEG changes labels'
    elif own:
        fix = (
            f'if {own} changes labels, which is not counted, give '
            f'class_counts as a list or file; else {fix}'
        )
    return StrayLabelError(
        describe(
            'class_counts',
            'auto',
            f'{expected}, got {listed(labels)} ({share})',
            fix,
        ),
        labels,
    )


def _label_pixels(
    dataset: Any, index: np.ndarray, progress: bool
) -> LabelPixels:
    load = _loader(dataset)
    key, local = _key(dataset, index, load)
    if key in _counted:
        return _counted[key]
    own = _own_transforms(dataset)
    if own:
        logger.warning(
            f"class_counts='auto' counts masks as {type(load).__name__} reads "
            f'them. {own} is of no host: if it changes labels, the counts are '
            'not those of training, and class_counts has to be given as a '
            'list or file'
        )
    kept = cache.folder() / f'pixels-{key[:32]}.npz' if local else None
    if kept is not None and kept.is_file():
        with np.load(kept) as stored:
            found = LabelPixels(*(stored[k] for k in LabelPixels._fields))
    else:
        found = _count(dataset, index, load, kept, progress)
    _counted[key] = found
    return found


def _count(
    dataset: Any,
    index: np.ndarray,
    load: Callable[[dict], dict],
    kept: Path | None,
    progress: bool,
) -> LabelPixels:
    where = f', then kept in {kept}' if kept else ''
    logger.info(f'Counting the pixels of {len(index)} masks once{where}')
    bar = None
    # In a file each step would be a line.
    if progress and sys.stdout.isatty() and sys.modules.get('mmengine'):
        from mmengine.utils import ProgressBar

        # Its default is the stdout of the time when mmengine was imported.
        bar = ProgressBar(len(index), file=sys.stdout)

    def count(sample: int) -> tuple[np.ndarray, np.ndarray]:
        return _count_mask(load, dataset.get_data_info(int(sample)))

    rows = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for row in pool.map(count, index):
            rows.append(row)
            if bar is not None:
                bar.update()
    if bar is not None:
        bar.file.write('\n')
    found = LabelPixels(
        np.repeat(np.arange(len(rows)), [len(labels) for labels, _ in rows]),
        *(np.concatenate(parts).astype(np.int64) for parts in zip(*rows)),
    )
    if kept is not None:
        try:
            # Another run may read or write the same entry at this moment.
            with cache.in_one_step(kept) as part, part.open('wb') as file:
                np.savez_compressed(file, **found._asdict())
        except OSError as error:
            logger.warning(
                f'The pixel counts could not be kept in {kept} ({error}): '
                'the next run will read the masks again.'
            )
    return found


def _count_mask(
    load: Callable[[dict], dict], info: dict
) -> tuple[np.ndarray, np.ndarray]:
    """The labels of a mask, and the pixels of each."""
    path = info['seg_map_path']
    try:
        mask = load(dict(info))['gt_seg_map']
    except FileNotFoundError as error:
        raise _no_mask(path) from error
    except Exception as error:
        # What decoders raise does not name the file.
        raise fault(
            'class_counts',
            'auto',
            f'a mask that {type(load).__name__} can read, got {path} '
            f'({type(error).__name__}: {str(error)[:200]})',
        ) from error
    # mmseg's LoadBiomedicalAnnotation reads volumes.
    if mask.ndim != 2 and 'Biomedical' not in type(load).__name__:
        raise fault(
            'class_counts',
            'auto',
            f'a mask of shape (height, width), one label a pixel, in {path}, '
            f'got {mask.shape}',
            'save the masks with one channel (one with a palette needs '
            "imdecode_backend='pillow' in LoadAnnotations)",
        )
    if mask.dtype != np.uint8:
        # As the hosts pack it.
        return np.unique(mask.astype(np.int64), return_counts=True)
    if _of_a_host(load) and os.path.isfile(path):
        _check_depth(path)
    # Faster than NumPy's, and it lets the other threads run.
    flat = torch.from_numpy(np.ascontiguousarray(mask)).flatten()
    pixels = torch.bincount(flat).numpy()
    labels = np.flatnonzero(pixels)
    return labels, pixels[labels]


def _no_mask(path: str) -> FileNotFoundError:
    return FileNotFoundError(
        describe(
            'class_counts',
            'auto',
            f'a mask for each image, found none at {path}',
            'correct data_prefix.seg_map_path and seg_map_suffix of the data '
            'set, or add the mask',
        )
    )


def _check_depth(path: str) -> None:
    """Refuse a mask whose labels do not survive the cut to 8 bits."""
    from PIL import Image, UnidentifiedImageError

    try:
        picture = Image.open(path)  # which reads the header alone
    except UnidentifiedImageError:
        return  # of a format that the loader alone knows
    with picture:
        if picture.mode[0] not in 'IF':
            return
        labels = np.asarray(picture)
    # 65535, 'unlabelled' in 16 bits, becomes 255, which is that in 8.
    wide = ~((labels >= 0) & (labels <= 255) | (labels == 65535))
    if wide.any():
        raise fault(
            'class_counts',
            'auto',
            f'labels of 8 bits, to which the host cuts masks, in {path}, got '
            f'{labels[wide].max()}',
            'save the masks with 8 bits, and labels from 0 on',
        )


def _of_a_host(transform: Any) -> bool:
    return type(transform).__module__.split('.')[0] in _HOST_PACKAGES


def transforms_within(
    pipeline: Any, key: str = ''
) -> Iterator[tuple[str, Any]]:
    """All transforms, those inside of RandomApply and the like, too.

    Each with its key in a config.
    """
    for i, one in enumerate(getattr(pipeline, 'transforms', pipeline)):
        here = f'{key}.{i}'
        yield here, one
        package = type(one).__module__.split('.')[0]
        if isinstance(one, (list, tuple)) or type(one).__name__ == 'Compose':
            yield from transforms_within(one, here)
        elif package == 'mmcv' and hasattr(one, 'transforms'):
            yield from transforms_within(one, f'{here}.transforms')


def _transforms(dataset: Any) -> list[Any]:
    pipeline = getattr(dataset, 'pipeline', ())
    return [one for _, one in transforms_within(pipeline)]


def _is_loader(transform: Any) -> bool:
    name = type(transform).__name__
    return name.startswith('Load') and 'Annotation' in name


def _own_transforms(dataset: Any) -> str:
    """Names of transforms of no host that may see labels, or ''."""
    transforms = _transforms(dataset)
    first = next(
        (i for i, one in enumerate(transforms) if _is_loader(one)), -1
    )
    return listed(
        type(one).__name__
        for one in transforms[first + 1 :]
        if not _of_a_host(one)
    )


def _loader(dataset: Any) -> Callable[[dict], dict]:
    for transform in _transforms(dataset):
        if _is_loader(transform):
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


def _key(dataset: Any, index: np.ndarray, load: Any) -> tuple[str, bool]:
    """What the counts depend on, and whether all of it is on local disks."""
    options = dict(vars(load))
    # mmseg's loader takes this one from the first mask that it reads.
    reduce = options.pop('reduce_zero_label', None)
    cls = type(load)
    parts: list[Any] = ['pixels/2', cls.__module__, cls.__name__, options]
    local = not getattr(dataset, 'backend_args', None)
    if not _of_a_host(load):
        source = getattr(sys.modules.get(cls.__module__), '__file__', None)
        if source is None:
            local = False
        else:
            parts.append(os.stat(source).st_mtime_ns)
    for sample in index:
        info = dataset.get_data_info(int(sample))
        path = info['seg_map_path']
        local = local and '://' not in path
        if local:
            try:
                stat = os.stat(path)
            except FileNotFoundError as error:
                raise _no_mask(path) from error
            parts += os.path.abspath(path), stat.st_size, stat.st_mtime_ns
        else:
            parts.append(path)
        parts += (
            info.get('reduce_zero_label') if reduce is None else reduce,
            info.get('label_map'),
            info.get('format_seg_map'),
        )
    key = hashlib.sha256('\n'.join(map(repr, parts)).encode()).hexdigest()
    return key, local
