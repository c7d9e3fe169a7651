# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""``class_counts='auto'``: counts of what the model sees in one epoch."""

from __future__ import annotations

import reprlib
from typing import Any, Collection, Iterator

import numpy as np
from torch import distributed
from torch.utils.data import ConcatDataset, Subset

from ..messages import fault, listed
from .counts import ClassCounts, check_num_classes, check_unit
from .masks import class_sums
from .names import class_names, describe_leaf, label_names
from .sampling import (
    BASE_DATASET,
    describe_wrappers,
    expected_draws,
    kind_of,
)

_TASK_OF_FORM = dict(
    gt_label='classification',
    instances='detection',
    seg_map_path='segmentation',
)
# The first unit of a task is the default of its literature.
_UNITS_OF_TASK = dict(
    classification=('image',),
    detection=('image', 'instance'),
    segmentation=('pixel', 'image'),
)


def count_dataset(
    dataset: Any,
    *,
    sampler: Any = None,
    num_classes: int | None = None,
    unit: str | None = None,
    ignore_index: int = 255,
    progress: bool = True,
) -> ClassCounts:
    """Expected class counts of one epoch of a built data set of any host.

    Every sample's annotations count as often as the wrappers and the sampler
    are expected to draw it (:func:`expected_draws`), after the data set's
    own filters. Annotations are read without running the pipeline.

    - Classification (``gt_label``): images; a multi-label image counts once
      for each of its classes.
    - Detection (``instances``): images that hold the class, or instances.
      Boxes with ``ignore_flag`` (crowds) do not count.
    - Segmentation (``seg_map_path``): pixels, or images that hold the class.
      The mask files are read once and the result is cached.
    - Any other data set with ``get_cat_ids``: as detection.

    In a distributed run the main process counts and all processes get its
    result, so every rank has to call this.

    Args:
        dataset: The built data set, wrapped or not.
        sampler: The built sampler that draws from it; None draws every
            sample once. Of a loader with a batch sampler this is
            ``loader.batch_sampler.sampler``.
        num_classes: C, needed only for data without ``metainfo['classes']``.
        unit: 'image', 'instance', 'pixel', or None for the first unit of the
            task above.
        ignore_index: Label of the pixels that the loss leaves out: that of
            the head. What the data set says of it rules nothing in mmseg.
        progress: Show a progress bar while mask files are read.

    Returns:
        The counts, in label order; fractional if the sampler is random.

    Raises:
        ValueError: If the wrapper, sampler or form of annotation is unknown,
            a label is out of range, the unit does not fit the task, or no
            class has a sample.
        RuntimeError: On the other processes, if the main one failed.
    """
    answer: list[Any] = [None, None]
    failure = None
    several = distributed.is_available() and distributed.is_initialized()
    if not several or distributed.get_rank() == 0:
        try:
            answer[0] = _count(
                dataset, sampler, num_classes, unit, ignore_index, progress
            )
        except Exception as error:  # the other ranks wait for the broadcast
            failure = error
            answer[1] = f'{type(error).__name__}: {error}'
    if several:
        distributed.broadcast_object_list(answer)
    if failure is not None:
        raise failure
    if answer[1] is not None:
        raise RuntimeError(f'the main process failed with {answer[1]}')
    return answer[0]


def natural_counts(
    dataset: Any,
    *,
    num_classes: int | None = None,
    unit: str | None = None,
    ignore_index: int = 255,
) -> ClassCounts:
    """Class counts of the samples that an epoch draws, each of them once.

    The distribution of the data themselves, whatever wrappers and samplers
    make of it: frequency groups are formed from it. A sample counts once
    though its data set is repeated, or is wrapped several times.

    Args:
        dataset: As in :func:`count_dataset`.
        num_classes: As in :func:`count_dataset`.
        unit: As in :func:`count_dataset`.
        ignore_index: As in :func:`count_dataset`.

    Raises:
        ValueError: As in :func:`count_dataset`.
    """
    drawn: dict[int, tuple[Any, np.ndarray]] = {}
    for leaf, draws in expected_draws(dataset):
        _, before = drawn.get(id(leaf), (leaf, False))
        drawn[id(leaf)] = leaf, before | (draws > 0)
    parts = [
        Subset(leaf, np.flatnonzero(seen).tolist())
        for leaf, seen in drawn.values()
    ]
    return count_dataset(
        ConcatDataset(parts),
        unit=unit,
        num_classes=num_classes,
        ignore_index=ignore_index,
    )


def _count(
    dataset: Any,
    sampler: Any,
    num_classes: int | None,
    unit: str | None,
    ignore_index: int,
    progress: bool,
) -> ClassCounts:
    check_unit(unit)
    leaves = expected_draws(dataset, sampler)
    names = class_names(dataset)
    known = [
        (leaf, said)
        for leaf, _ in leaves
        for said in [label_names(leaf)]
        if said is not None
    ]
    sizes = {len(said) for _, said in known}
    if num_classes is None:
        if names and len(sizes) > 1:
            part, said = min(known, key=lambda one: len(one[1]))
            lacking = listed([name for name in names if name not in said])
            raise fault(
                'metainfo.classes',
                said,
                f'the {len(names)} classes that other parts of the data have '
                f'({listed(names)}); {describe_leaf(part)} lacks {lacking}',
                f'give that part {lacking}, too, in metainfo.classes or as a '
                'folder, with a sample or without',
            )
        if len(sizes) != 1:
            raise fault(
                'class_counts',
                'auto',
                f"one number of metainfo['classes'], got {sorted(sizes)}",
                'say num_classes in all heads alike, or give the data set '
                'metainfo=dict(classes=...)',
            )
        num_classes = sizes.pop()
    total, seen, task = np.zeros(num_classes), np.zeros(2), ''
    for leaf, draws in leaves:
        index = np.flatnonzero(draws)
        if not index.size:
            continue
        form = _form(leaf, int(index[0]))
        task = _TASK_OF_FORM.get(form, 'detection')
        units = _UNITS_OF_TASK[task]
        unit = unit or units[0]
        if unit not in units:
            raise fault(
                'count_unit',
                unit,
                f'{" or ".join(units)} for {type(leaf).__name__} ({task})',
                'choose one of these, or None for the default',
            )
        if task == 'segmentation':
            found, pixels = class_sums(
                leaf,
                index,
                draws[index],
                num_classes,
                unit,
                ignore_index,
                progress,
            )
            total, seen = total + found, seen + pixels
        else:
            found, boxes = _count_labels(
                leaf, index, draws[index], num_classes, form, unit
            )
            total, seen = total + found, seen + boxes
    source = _source(dataset, sampler, leaves)
    if unit == 'pixel' and seen[1] and not seen[0]:
        raise fault(
            'ignore_index',
            ignore_index,
            f'some pixels of another label, but {source} has none',
            'look at reduce_zero_label and at the values of the masks: 0 and '
            '255 alone are no two classes',
        )
    if unit != 'pixel' and not total.any():
        ignored = f', and {seen[1]:.0f} boxes to ignore' if seen[1] else ''
        raise fault(
            'class_counts',
            'auto',
            f'a sample of some class, but {source} has none{ignored}',
            'look at iscrowd and filter_cfg, and compare category_id of the '
            "annotations with id of the categories ('1' is not 1)"
            if task == 'detection'
            else 'look at the labels in the annotations',
        )
    counts = ClassCounts(
        total,
        unit or 'image',
        names if names is not None and len(names) == num_classes else None,
        source,
        float(seen[1] / seen.sum()) if seen.any() else None,
    )
    for size in sizes:
        if size != num_classes:
            check_num_classes(
                ClassCounts(np.ones(size), source=counts.source), num_classes
            )
    return counts


def _source(
    dataset: Any, sampler: Any, leaves: list[tuple[Any, np.ndarray]]
) -> str:
    parts = sorted({type(leaf).__name__ for leaf, _ in leaves})
    around = describe_wrappers(dataset)
    if sampler is not None:
        around.insert(0, type(sampler).__name__)
    through = f' through {", ".join(around)}' if around else ''
    return (
        f'{" + ".join(parts)} ({sum(len(d) for _, d in leaves)} '
        f'samples){through}'
    )


def _form(leaf: Any, sample: int) -> str:
    """The key of a sample that holds its annotations."""
    keys: list[str] = []
    if hasattr(leaf, 'get_data_info'):
        keys = sorted(next(_infos(leaf, np.array([sample]))))
        for key in _TASK_OF_FORM:
            if key in keys:
                return key
    # mmengine's base class has the method, too: it raises.
    if kind_of(leaf, 'get_cat_ids') not in (None, BASE_DATASET):
        return 'get_cat_ids'
    raise fault(
        'class_counts',
        'auto',
        'samples with gt_label, instances or seg_map_path, or a data set '
        f'with get_cat_ids, got {type(leaf).__name__} with {keys}',
        'give class_counts as a list or file',
    )


def _infos(leaf: Any, index: np.ndarray) -> Iterator[dict[str, Any]]:
    """Annotations of the given samples, not to be written to."""
    if (
        kind_of(leaf, 'get_data_info') == BASE_DATASET
        and not leaf.serialize_data
    ):
        # get_data_info would deep-copy each of them: minutes for LVIS.
        return (leaf.data_list[i] for i in index)
    return (leaf.get_data_info(int(i)) for i in index)


def _count_labels(
    leaf: Any,
    index: np.ndarray,
    draws: np.ndarray,
    num_classes: int,
    form: str,
    unit: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws of each class, (C,) float64, and of boxes: kept, ignored."""
    flat: list[Any] = []
    lengths = np.empty(len(index), dtype=np.int64)
    boxes = np.zeros(2)
    for row, (found, ignored) in enumerate(_labels(leaf, index, form)):
        boxes += draws[row] * np.array([len(found), ignored])
        if unit == 'image':
            try:
                found = set(found)
            except TypeError:  # lists of lists
                raise _no_label(leaf, found, num_classes) from None
        flat.extend(found)
        lengths[row] = len(found)
    if not flat:
        return np.zeros(num_classes), boxes
    labels = np.asarray(flat)
    if labels.dtype.kind not in 'iu':
        bad = labels[:1]
    else:
        bad = labels[(labels < 0) | (labels >= num_classes)]
    if bad.size:
        from_one = set(labels.tolist()) == set(range(1, num_classes + 1))
        raise _no_label(leaf, bad.tolist()[0], num_classes, from_one)
    return np.bincount(labels, np.repeat(draws, lengths), num_classes), boxes


def _no_label(
    leaf: Any, found: Any, num_classes: int, from_one: bool = False
) -> ValueError:
    fix = 'correct the annotations, num_classes or metainfo.classes'
    if from_one:
        fix = 'count the labels from 0'
    elif isinstance(found, int) and found < 0:
        fix = 'leave samples without a class out'
    return fault(
        'class_counts',
        'auto',
        f'integer labels 0 to {num_classes - 1}, got {reprlib.repr(found)} '
        f'in {type(leaf).__name__}',
        fix,
    )


def _labels(
    leaf: Any, index: np.ndarray, form: str
) -> Iterator[tuple[Collection[int], int]]:
    """Of each sample, its labels, and the number of ignored boxes."""
    if form == 'get_cat_ids':
        return ((leaf.get_cat_ids(int(i)), 0) for i in index)
    read = _image_labels if form == 'gt_label' else _instance_labels
    return map(read, _infos(leaf, index))


def _image_labels(info: dict[str, Any]) -> tuple[list[int], int]:
    label = info['gt_label']
    if isinstance(label, (list, tuple, set)):
        return list(label), 0
    return np.ravel(label).tolist(), 0


def _instance_labels(info: dict[str, Any]) -> tuple[list[int], int]:
    if 'segments_info' in info:
        # There, instances are the things alone; stuff would count zero.
        raise fault(
            'class_counts',
            'auto',
            'image labels, boxes or masks; panoptic annotations are not '
            'counted',
            'give class_counts as the list or file of the segments of each '
            'class, things and stuff',
        )
    kept = [
        instance['bbox_label']
        for instance in info['instances']
        if not instance.get('ignore_flag')
    ]
    return kept, len(info['instances']) - len(kept)
