# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""How often each class occurs: the value, its sources and its one file form.

A file of ours is a JSON object::

    {"format": "lt_losses_mm.class_counts/1",
     "source": "where the figures come from",
     "counts": {"image": [...], "instance": [...]},
     "names": ["cat", ...],
     "sha256": "..."}

``counts`` maps each unit to one number per class, in label order; the first
unit is the default. ``names`` and ``sha256`` are optional; a checksum, where
there is one, is verified.
"""

from __future__ import annotations

import dataclasses
import difflib
import gc
import hashlib
import json
import math
import os
import pkgutil
import re
import reprlib
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence

import numpy as np

from ..messages import describe, fault, listed, logger

FORMAT = 'lt_losses_mm.class_counts/1'
UNITS = ('image', 'instance', 'pixel')
BENCHMARKS = (
    'ade20k',
    'imagenet_lt',
    'inaturalist18',
    'lvis_v0.5',
    'lvis_v1',
    'places_lt',
)

_SOURCES = (
    'a sequence of numbers, a file (JSON list, lt_losses_mm JSON, '
    'LVIS/COCO JSON, text with one number a line, or .npy), or a '
    f'benchmark name out of {", ".join(BENCHMARKS)}'
)

_SUFFIXES = ('.json', '.txt', '.csv', '.npy', '.npz', '.pkl')
_BINARY = {
    b'PK\x03\x04': 'a zip file (.npz, .pth, .xlsx)',
    b'\x80': 'a pickle',
}

# A key and its list of lists. What it takes of a list nested more deeply
# leaves a bracket too many, which is no JSON: see parse_annotations.
_POLYGONS = re.compile(rb'"segmentation"\s*:\s*\[\s*(?:\[[^\]]*\][\s,]*)*\]')


@dataclasses.dataclass(frozen=True, eq=False)
class ClassCounts:
    """How often each class occurs in the training data.

    Args:
        counts: Shape (C,), finite, not negative, not all zero; stored as a
            read-only float64 array. Fractions (frequencies, expected draws)
            are fine.
        unit: What was counted: 'image' (images that hold the class),
            'instance' (annotated objects) or 'pixel'.
        names: The C class names in label order, if known.
        source: Where the counts come from, for logs and messages.
        ignored: Share of the pixels or boxes, of all that were seen, that the
            data tell to ignore; None if unknown.

    Raises:
        ValueError: If the counts, the unit or the names are not as above.

    Example:
        >>> counts = ClassCounts([500, 50, 5], names=('cat', 'dog', 'owl'))
        >>> counts.num_classes, counts.imbalance_factor
        (3, 100.0)
    """

    counts: np.ndarray
    unit: str = 'image'
    names: tuple[str, ...] | None = None
    source: str = 'list'
    ignored: float | None = None

    def __post_init__(self) -> None:
        check_unit(self.unit)
        counts = _as_vector(self.counts, self.source)
        counts.setflags(write=False)
        object.__setattr__(self, 'counts', counts)
        if self.names is not None:
            object.__setattr__(self, 'names', tuple(map(str, self.names)))
            if len(self.names) != len(counts):
                raise fault(
                    'class_counts',
                    self.source,
                    f'as many names as counts, got {len(self.names)} names '
                    f'and {len(counts)} counts',
                    'correct the names or leave them out',
                )

    @property
    def num_classes(self) -> int:
        """The number of classes C."""
        return len(self.counts)

    @property
    def imbalance_factor(self) -> float:
        """Largest count over the smallest positive count."""
        return float(self.counts.max() / self.counts[self.counts > 0].min())

    @property
    def gini(self) -> float:
        """Gini coefficient in [0, 1): 0 if all classes are equally frequent.

        Mean absolute difference of all pairs of counts over twice their mean
        (Yang et al., "A Survey on Long-Tailed Visual Recognition", 2022,
        Sec. 5), computed from the sorted counts.
        """
        ordered = np.sort(self.counts)
        rank = np.arange(1, len(ordered) + 1)
        spread = (2 * rank - len(ordered) - 1) @ ordered
        return float(spread / (len(ordered) * ordered.sum()))

    def save(self, path: str | os.PathLike) -> None:
        """Write the file that ``class_counts='path'`` reads back."""
        numbers = [
            int(c) if c.is_integer() else c for c in self.counts.tolist()
        ]
        content: dict[str, Any] = dict(
            format=FORMAT, source=self.source, counts={self.unit: numbers}
        )
        if self.names is not None:
            content['names'] = list(self.names)
        Path(path).write_text(json.dumps(content) + '\n', encoding='utf-8')


def load_class_counts(
    class_counts: Any,
    *,
    num_classes: int | None = None,
    unit: str | None = None,
) -> ClassCounts:
    """Read class counts from a sequence, a file or a benchmark's name.

    Args:
        class_counts: A list, tuple, array, tensor or :class:`ClassCounts` of
            shape (C,); the path of a JSON list, of our own JSON file, of an
            LVIS or COCO annotation file, of a text file with one number a
            line, or of a ``.npy`` vector; or a name out of ``BENCHMARKS``.
            Annotation files give the classes in the order of their
            categories. Their annotations are counted as mmdet's data sets
            would load them, without a ``filter_cfg``; ``image_count`` and
            ``instance_count`` only where there are no annotations.
        num_classes: The number of counts that must result, if known.
        unit: 'image', 'instance' or 'pixel' for a source that holds several.
            None takes what the literature uses: images for classification
            and detection, pixels for segmentation. A bare list of numbers
            has no unit of its own and is taken to be in this one.

    Returns:
        The counts, in label order.

    Raises:
        ValueError: If the source is unknown, malformed, in another unit, or
            of the wrong length.
        FileNotFoundError: If it is the path of a file that is not there.

    Example:
        >>> load_class_counts('lvis_v1').num_classes
        1203
        >>> load_class_counts([900, 90, 9], num_classes=3).counts
        array([900.,  90.,   9.])
    """
    check_unit(unit)
    if isinstance(class_counts, ClassCounts):
        if unit not in (None, class_counts.unit):
            raise _unit_fault(unit, class_counts.source, [class_counts.unit])
        loaded = class_counts
    elif isinstance(class_counts, (str, os.PathLike)):
        loaded = _from_name_or_file(os.fspath(class_counts), unit)
    elif isinstance(class_counts, Mapping):
        raise fault(
            'class_counts',
            dict(class_counts),
            _SOURCES,
            'list the numbers in the order of the labels',
        )
    else:
        loaded = ClassCounts(class_counts, unit or 'image')
    check_num_classes(loaded, num_classes)
    return loaded


def check_num_classes(counts: ClassCounts, num_classes: int | None) -> None:
    """Raise ValueError unless there are ``num_classes`` counts (or None)."""
    if num_classes is None or counts.num_classes == num_classes:
        return
    fix = 'give one count per class, in label order, or correct num_classes'
    if counts.num_classes == num_classes + 1:
        fix = (
            'leave the background out: it is no class (or correct num_classes)'
        )
    raise fault(
        'class_counts',
        f'{counts.source} ({counts.num_classes} counts)',
        f'num_classes={num_classes} counts',
        fix,
    )


def check_unit(unit: str | None) -> None:
    """Raise ValueError unless ``unit`` is a unit we know, or None."""
    if unit is not None and unit not in UNITS:
        raise fault(
            'count_unit',
            unit,
            f'one of {", ".join(UNITS)}, or None',
            'None takes the default of the task',
        )


def frequency_groups(
    counts: ClassCounts | Sequence[float] | np.ndarray,
    kind: str = 'shot',
    thresholds: tuple[float, float] | None = None,
) -> dict[str, np.ndarray]:
    """Split the classes by how often they occur in training.

    Args:
        counts: Shape (C,); for the published groups, counts of *images*.
        kind: 'shot' gives many (> 100), medium (20 to 100) and few (< 20):
            Liu et al., "Large-Scale Long-Tailed Recognition in an Open
            World", CVPR 2019, Sec. 5. 'lvis' gives frequent (> 100), common
            (11 to 100) and rare (<= 10): Gupta et al., "LVIS", CVPR 2019,
            Sec. 3.
        thresholds: ``(low, high)`` instead of those: the last group is
            ``count < low``, the first ``count > high``.

    Returns:
        Group name to ascending class indices (int64), from the most to the
        least frequent group. Every class is in exactly one; a group may be
        empty.

    Raises:
        ValueError: If ``kind`` is unknown or ``low > high``.

    Example:
        >>> frequency_groups([500, 60, 3])
        {'many': array([0]), 'medium': array([1]), 'few': array([2])}
    """
    known = dict(
        shot=(('many', 'medium', 'few'), (20, 100)),
        lvis=(('frequent', 'common', 'rare'), (11, 100)),
    )
    if kind not in known:
        raise fault(
            'kind',
            kind,
            f'one of {", ".join(known)}',
            'shot for classification, lvis for LVIS',
        )
    names, default = known[kind]
    try:
        low, high = map(float, default if thresholds is None else thresholds)
        swapped = not low <= high
    except (TypeError, ValueError):
        raise fault(
            'thresholds',
            thresholds,
            '(low, high), two numbers',
            f'write both, as in {default}',
        ) from None
    if swapped:
        raise fault(
            'thresholds',
            thresholds,
            '(low, high) with low <= high',
            'swap them',
        )
    values = (
        counts.counts
        if isinstance(counts, ClassCounts)
        else np.asarray(counts, dtype=np.float64)
    )
    masks = (values > high, (values >= low) & (values <= high), values < low)
    return {name: np.flatnonzero(mask) for name, mask in zip(names, masks)}


def frequency_thirds(
    counts: Sequence[float] | np.ndarray, without: int | None = None
) -> dict[str, np.ndarray]:
    """Cut the classes, by frequency, into three groups of equal size.

    Args:
        counts: Shape (C,). Equal counts are ordered by label.
        without: A class that belongs to no group.

    Returns:
        ``head``, ``body`` and ``tail``: class indices, most frequent first;
        the larger groups come first if C is not a multiple of 3.

    Example:
        >>> frequency_thirds([5, 90, 20])
        {'head': array([1]), 'body': array([2]), 'tail': array([0])}
    """
    order = np.argsort(-np.asarray(counts), kind='stable')
    parts = np.array_split(order[order != without], 3)
    return dict(zip(('head', 'body', 'tail'), parts))


def _as_vector(values: Any, source: str) -> np.ndarray:
    """A float64 copy of shape (C,), checked."""
    if hasattr(values, 'detach'):
        # NumPy has no bfloat16 and cannot read device memory.
        values = values.detach().cpu()
        values = (values if values.is_complex() else values.double()).numpy()
    label = source if source != 'list' else values
    try:
        found = np.array(values)
        if found.dtype.kind in 'cmM':  # NumPy would make numbers of them.
            raise TypeError(f'these are {found.dtype}')
        counts = np.array(found, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        why = reprlib.repr(str(error))
        raise fault(
            'class_counts', label, _SOURCES, f'give plain numbers ({why})'
        ) from error
    if counts.ndim != 1 or counts.size == 0:
        raise fault(
            'class_counts',
            label,
            f'a vector with one number per class, got shape {counts.shape}',
            'give one number per class',
        )
    for bad, what in (
        (~np.isfinite(counts), 'finite numbers'),
        (counts < 0, 'numbers >= 0'),
    ):
        if bad.any():
            first = int(np.flatnonzero(bad)[0])
            raise fault(
                'class_counts',
                label,
                f'{what}, got {counts[first]:g} for class {first}',
                'correct that count',
            )
    if not counts.any():
        raise fault(
            'class_counts',
            label,
            'at least one count above zero',
            'check that the training data have annotations',
        )
    return counts


def _unit_fault(
    unit: str | None, source: str, available: Sequence[str]
) -> ValueError:
    return fault(
        'count_unit',
        unit,
        f'a unit that {source} has: {", ".join(available)}',
        'choose that unit or another class_counts',
    )


def _from_name_or_file(name: str, unit: str | None) -> ClassCounts:
    if name in BENCHMARKS:
        content = pkgutil.get_data(__package__, f'data/{name}.json')
        assert content is not None
        return _from_json(json.loads(content), name, unit)
    path = Path(name).expanduser()
    if path.is_file():
        return _from_file(path, unit)
    if name == 'auto':
        raise fault(
            'class_counts',
            'auto',
            'counts that are known now',
            'train through the MMEngine Runner, which counts the training '
            "data set for 'auto', or call lt_losses_mm.priors.count_dataset",
        )
    if path.is_dir() or len(path.parts) > 1 or path.suffix in _SUFFIXES:
        raise FileNotFoundError(
            describe(
                'class_counts',
                name,
                'an existing file, found '
                f'{"a folder" if path.is_dir() else "none"} at '
                f'{path.absolute()}',
                'give the path of a file in that folder'
                if path.is_dir()
                else 'correct the path (it is relative to the working '
                'directory)',
            )
        )
    close = difflib.get_close_matches(name.lower(), BENCHMARKS, 1)
    raise fault(
        'class_counts',
        name,
        _SOURCES,
        f"write '{close[0]}' if that is the one you mean"
        if close
        else 'use one of these names, or the path of an existing file',
    )


def _from_file(path: Path, unit: str | None) -> ClassCounts:
    text = path.read_bytes()
    for magic, kind in _BINARY.items():
        if text.startswith(magic):
            raise fault(
                'class_counts',
                str(path),
                f'JSON, text or .npy, got {kind}',
                'load it where it was written, and save the numbers with '
                'json.dump(list) or numpy.save',
            )
    if text.startswith(b'\x93NUMPY'):
        try:
            numbers = np.load(path, allow_pickle=False)
        except ValueError as error:
            raise fault(
                'class_counts',
                str(path),
                f'an array of numbers ({error})',
                'save it as one vector of numbers',
            ) from error
        return ClassCounts(numbers, unit or 'image', source=str(path))
    encoding = json.detect_encoding(text)  # By the BOM, or by zeros.
    start = text[:4096].decode(encoding, 'ignore').lstrip('\ufeff \t\r\n')
    if start[:1] in ('[', '{'):
        with _collector_paused():
            content = parse_annotations(text, path)
            return _from_json(content, str(path), unit)
    try:
        lines = text.decode(encoding).splitlines()
    except UnicodeDecodeError as error:
        raise fault(
            'class_counts',
            str(path),
            f'text in UTF-8 or UTF-16 ({error})',
            'save it as UTF-8, with one number a line',
        ) from error
    return _from_lines(lines, str(path), unit)


def parse_annotations(text: bytes, path: Path) -> Any:
    """The JSON value, without polygons: these are most of an LVIS file.

    Args:
        text: What the file holds.
        path: The file, for the error message.

    Raises:
        ValueError: If the text is no JSON.
    """
    try:
        return json.loads(_POLYGONS.sub(b'"segmentation":[]', text))
    except ValueError:
        pass
    try:
        # Nested more deeply, or for the position of the fault.
        return json.loads(text)
    except ValueError as error:
        raise fault(
            'class_counts',
            str(path),
            'valid JSON',
            f'repair the file ({error})',
        ) from error


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Among millions of parsed objects it only costs time: half of it."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _from_lines(
    lines: Sequence[str], source: str, unit: str | None
) -> ClassCounts:
    while lines and not lines[-1].strip():
        lines = lines[:-1]
    numbers = []
    for number, line in enumerate(lines, 1):
        try:
            numbers.append(float(line))
        except ValueError as error:
            raise fault(
                'class_counts',
                source,
                f'one number a line, line {number} is {reprlib.repr(line)}',
                'correct that line, and leave names out (a JSON file may '
                'have them: {"counts": [...], "names": [...]})',
            ) from error
    return ClassCounts(np.array(numbers), unit or 'image', source=source)


def _from_json(content: Any, source: str, unit: str | None) -> ClassCounts:
    if isinstance(content, list):
        content = dict(counts=content)
    if isinstance(content.get('categories'), list):
        return _from_annotations(content, source, unit)
    by_unit, names = content.get('counts'), content.get('names')
    if names is not None and not (
        isinstance(names, list)
        and all(isinstance(name, (str, int)) for name in names)
    ):
        raise fault(
            'class_counts',
            source,
            f'a list of names, got {reprlib.repr(names)}',
            'correct the names or leave them out',
        )
    names = None if names is None else tuple(names)
    if isinstance(by_unit, list):
        # Whatever is in it, it is checked where all counts are.
        numbers = np.array(by_unit, dtype=object)
        return ClassCounts(numbers, unit or 'image', names, source)
    by_unit = by_unit if isinstance(by_unit, dict) else {}
    if not by_unit or not by_unit.keys() <= set(UNITS):
        keys = listed(by_unit or content) or 'none'
        raise fault(
            'class_counts',
            source,
            _SOURCES,
            f'the JSON has only the keys {keys}'
            + (' (captions?)' if 'annotations' in content else '')
            + '; write a list of numbers, or {"counts": [...], '
            '"names": [...]}',
        )
    if content.get('sha256', checksum(by_unit, names)) != checksum(
        by_unit, names
    ):
        raise fault(
            'class_counts',
            source,
            'figures that match their sha256',
            'the file was changed or damaged: install or copy it '
            'anew (in a file of your own, remove the sha256)',
        )
    unit = unit or next(iter(by_unit))
    if unit not in by_unit:
        raise _unit_fault(unit, source, list(by_unit))
    return ClassCounts(by_unit[unit], unit, names, source)


def checksum(
    by_unit: Mapping[str, Sequence[float]], names: Sequence[str] | None
) -> str:
    """SHA-256 (hex) of the figures of one file of our format."""
    figures = json.dumps([list(by_unit.items()), names], separators=(',', ':'))
    return hashlib.sha256(figures.encode()).hexdigest()


def _from_annotations(
    content: Mapping[str, Any], source: str, unit: str | None
) -> ClassCounts:
    """Counts of an LVIS or COCO file, in the order of its categories.

    What mmdet's data sets would leave out does not count.
    """
    unit = unit or 'image'
    if unit == 'pixel':
        raise _unit_fault(unit, source, ['image', 'instance'])
    # Labels are positions in the file, as for mmdet's data sets.
    categories = content['categories']
    ids = _values(categories, 'id', 'categories', source)
    names = tuple(str(c.get('name', c['id'])) for c in categories)
    for what, values in (('id', ids), ('name', names)):
        _require_unique(
            values,
            f'categories with one {what} each',
            source,
            'remove or rename the second one (exports add a root category)',
        )
    field = f'{unit}_count'
    stated = [c.get(field) for c in categories]
    if 'annotations' not in content:
        if None in stated:
            raise fault(
                'class_counts',
                source,
                f'{field} in every category, or annotations',
                'give the whole LVIS/COCO annotation file',
            )
        logger.info(f'{source}: without annotations, its {field} is trusted')
        return ClassCounts(np.array(stated, object), unit, names, source)
    annotated, counted = _annotated_pairs(content, source)
    label = {c: i for i, c in enumerate(ids)}
    unknown = {c for _, c in annotated} - label.keys()
    if unknown:
        raise fault(
            'class_counts',
            source,
            'annotations of the listed categories',
            f'category_id {listed(unknown, 5)} is not in categories',
        )

    def count(pairs: list[tuple[Any, Any]]) -> np.ndarray:
        kept = set(pairs) if unit == 'image' else pairs
        labels = np.array([label[c] for _, c in kept], dtype=np.int64)
        return np.bincount(labels, minlength=len(ids))

    stale = [
        f'{name}: {said}, not {found}'
        for name, said, found in zip(names, stated, count(annotated))
        if said is not None and said != found
    ]
    if stale:
        logger.warning(
            f'{source}: the {field} of {len(stale)} of {len(ids)} categories '
            f'is not that of its annotations ({listed(stale)}). The '
            'annotations are counted.'
        )
    if content['annotations'] and not counted:
        raise fault(
            'class_counts',
            source,
            'annotations that count, but all of its '
            f'{len(content["annotations"])} are crowds, have no area or '
            'belong to images that are not listed',
            "compare image_id with the ids of images ('1' is not 1), and look "
            'at iscrowd and bbox',
        )
    return ClassCounts(count(counted), unit, names, source)


def _annotated_pairs(
    content: Mapping[str, Any], source: str
) -> tuple[list[tuple[Any, Any]], list[tuple[Any, Any]]]:
    """Image and category of the annotations of listed images, no crowds.

    Returns:
        All of them, and those whose boxes mmdet's data sets keep.
    """
    annotations = content['annotations']
    if isinstance(annotations, list) and any(
        isinstance(a, dict) and 'segments_info' in a for a in annotations
    ):
        raise fault(
            'class_counts',
            source,
            'boxes or masks of instances, got panoptic annotations',
            'give the number of segments of each class as a list, things '
            'and stuff',
        )
    image = _values(annotations, 'image_id', 'annotations', source)
    category = _values(annotations, 'category_id', 'annotations', source)
    numbered = [a for a in annotations if 'id' in a]
    _require_unique(
        _values(numbered, 'id', 'annotations', source),
        'annotations with one id each',
        source,
        'number the annotations anew (files that were merged have such ids)',
    )
    listed_images = content.get('images')
    sizes = None
    if listed_images is not None:
        found = _values(listed_images, 'id', 'images', source)
        sizes = {
            i: (entry.get('width'), entry.get('height'))
            for i, entry in zip(found, listed_images)
        }
    annotated, counted = [], []
    for pair, annotation in zip(zip(image, category), annotations):
        if annotation.get('iscrowd') or annotation.get('ignore'):
            continue
        if sizes is not None and pair[0] not in sizes:
            continue
        annotated.append(pair)
        width, height = sizes[pair[0]] if sizes else (None, None)
        if _has_area(annotation, width, height, source):
            counted.append(pair)
    if len(counted) < len(annotations):
        logger.info(
            f'{source}: {len(counted)} of {len(annotations)} annotations are '
            'counted; the others are crowds, have no area or belong to '
            'images that are not listed'
        )
    return annotated, counted


def _has_area(
    annotation: Mapping[str, Any],
    width: float | None,
    height: float | None,
    source: str,
) -> bool:
    """Whether mmdet's data sets keep a box; what is unknown, they would."""
    if 'bbox' not in annotation:
        return True
    area = annotation.get('area')
    try:
        x, y, w, h = annotation['bbox']
        # In this order a NaN gives no overlap, as there.
        width = math.inf if width is None else width
        height = math.inf if height is None else height
        across = max(0, min(x + w, width) - max(x, 0))
        down = max(0, min(y + h, height) - max(y, 0))
        return not (
            across * down == 0
            or w < 1
            or h < 1
            or (area is not None and area <= 0)
        )
    except (TypeError, ValueError) as error:
        said = {
            key: annotation[key]
            for key in ('id', 'image_id', 'bbox', 'area')
            if key in annotation
        }
        raise fault(
            'class_counts',
            source,
            'bbox=[x, y, width, height] and numbers as area, and as width '
            f'and height of the image, got {reprlib.repr(said)} in an image '
            f'of {reprlib.repr((width, height))}',
            'correct that annotation, or remove it',
        ) from error


def _values(entries: Any, key: str, what: str, source: str) -> list[Any]:
    """The values of one key, which every entry has to have."""
    try:
        values = [entry[key] for entry in entries]
        set(values)
        return values
    except (KeyError, TypeError) as error:
        raise fault(
            'class_counts',
            source,
            f'a list of {what}, each with {key}, a number or a text',
            'repair the file, or give the counts as a list',
        ) from error


def _require_unique(
    values: Sequence[Any], what: str, source: str, fix: str
) -> None:
    if len(set(values)) < len(values):
        twice = [v for v, n in Counter(values).items() if n > 1]
        raise fault(
            'class_counts',
            source,
            f'{what}, got {listed(twice)} more than once',
            fix,
        )
