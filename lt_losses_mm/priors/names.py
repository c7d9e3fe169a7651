# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Which class a label is: names said, compared, and joined by name.

A data set says its names in ``metainfo['classes']``. Where its labels come
from another list (the categories of a COCO file, folders), that list says
which label has which name, whatever ``metainfo`` says.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import logging
import mmap
import os
import re
import unicodedata
import weakref
from collections import Counter
from typing import Any, Iterator, Mapping, Sequence, Tuple
from xml.etree import ElementTree

import numpy as np
from torch import distributed

from ..messages import fault, listed, logger
from .counts import ClassCounts
from .sampling import BASE_DATASET, kind_of, leaves

Names = Tuple[str, ...]

_read: Any = weakref.WeakSet()  # data sets whose XML files were read
# Folders that systems and tools leave beside one's own.
_NO_CLASS = re.compile(
    r'\.|(__MACOSX|@eaDir|lost\+found|\$RECYCLE\.BIN)$|System Volume Inf'
)
_CAUSES = dict(
    pixel='masks whose values are no labels (0 and 255, colours), an '
    'ignore_index that is a class, or reduce_zero_label',
    other='a name in metainfo.classes that annotations or folders spell '
    'otherwise, a folder that is no class or whose files have no suffix that '
    'is read, or a filter '
    'that takes all images of a class',
)


def empty_classes(counts: ClassCounts) -> str | None:
    """What to warn of where classes have no sample; None if all have one.

    It names the classes, the unit, the share that was ignored
    (``counts.ignored``) and what causes it most often.

    Args:
        counts: As they were counted.
    """
    empty = np.flatnonzero(counts.counts == 0).tolist()
    if not empty:
        return None
    which = [counts.names[i] if counts.names else i for i in empty]
    ignored = (
        f' ({100 * counts.ignored:.3g} % of what is labelled is ignored)'
        if counts.ignored
        else ''
    )
    cause = _CAUSES['pixel' if counts.unit == 'pixel' else 'other']
    return (
        f'{len(empty)} of {counts.num_classes} classes have no training '
        f'sample, counted by {counts.unit}{ignored}: {listed(which)}; they '
        'are treated as being as rare as the rarest class that has one. If '
        f'that is not so in your data, look for {cause}.'
    )


def class_names(dataset: Any) -> Names | None:
    """The C class names of a built data set, in the order of its labels.

    Args:
        dataset: Of any host, wrapped or not.

    Returns:
        None if they are unknown; the longest list where one part has more
        classes than another.

    Raises:
        ValueError: If names and labels of a part contradict each other, or
            two parts give one class two labels.
    """
    known = [
        (leaf, names)
        for leaf in leaves(dataset)
        for names in [label_names(leaf)]
        if names is not None
    ]
    if not known:
        return None
    first, names = known[0]
    for leaf, others in known[1:]:
        same_labels(names, describe_leaf(first), others, describe_leaf(leaf))
    return max((found for _, found in known), key=len)


def same_labels(
    names: Names | None,
    owner: str,
    others: Names | None,
    other_owner: str,
    fatal: bool = True,
) -> None:
    """Raise ValueError if one class has two labels; warn of other names.

    Args:
        names: The C names in label order, or None.
        owner: What they are of.
        others: The names to compare with.
        other_owner: What these are of.
        fatal: Whether to raise; else it is a warning as well.
    """
    if names is None or others is None or names == others:
        return
    moved = _moved(names, others)
    if moved:
        problem = fault(
            'metainfo.classes',
            others,
            f'the same label for each class in {owner} and {other_owner}, '
            f'got there / here: {moved}',
            'give both the same metainfo.classes, in one order (a COCO file '
            'or folders that lack a class or have another order shift the '
            'labels: make them agree)',
        )
        if fatal:
            raise problem
        _say_once(str(problem))
        return
    _warn_of_renamed(names, owner, others, other_owner)


def joined(
    counts: ClassCounts, names: Sequence[str] | None, owner: str
) -> ClassCounts:
    """Counts in the order of these names, if both have names.

    Args:
        counts: With or without names.
        names: The C names in label order, or None.
        owner: What they are of.

    Returns:
        The counts, re-ordered if their names are the same in another order;
        those of these names alone, if there are more.

    Raises:
        ValueError: If names are missing, or one class has two labels.
    """
    if counts.names is None or names is None:
        return counts
    names = tuple(map(str, names))
    if counts.names == names:
        return counts
    ours, theirs = _plain(counts.names, names)
    missing = [n for n, p in zip(names, theirs) if p not in ours]
    further = [n for n, p in zip(counts.names, ours) if p not in theirs]
    moved = _moved(counts.names, names)
    often = Counter(ours)
    doubled = len(set(theirs)) < len(theirs) or any(
        often[name] > 1 for name in theirs
    )
    chosen = len(ours) > len(theirs)
    if len(ours) < len(theirs) or ((chosen or moved) and (missing or doubled)):
        raise fault(
            'class_counts',
            counts.source,
            f'one count for each of the {len(names)} classes of {owner}; '
            f'missing: {listed(missing) or "none"}; not among them: '
            f'{listed(further) or "none"}',
            'correct the names in either, or count the data anew '
            "(class_counts='auto', or `mim run mm-lt-losses "
            'class_statistics CONFIG --out counts.json`)',
        )
    if chosen or moved:
        order = [ours.index(name) for name in theirs]
        if chosen:
            _say_once(
                f'class_counts={counts.source!r} has {len(ours)} classes, of '
                f'which {owner} has {len(theirs)}: their counts are taken by '
                f'name, and {len(further)} are left out ({listed(further)})',
                logging.INFO,
            )
        else:
            logger.warning(
                f'class_counts={counts.source!r} has its names in another '
                f'order than {owner}: the counts are joined by name (places '
                f'in the file / in the data: {moved})'
            )
        return dataclasses.replace(
            counts, counts=counts.counts[order], names=names
        )
    _warn_of_renamed(counts.names, counts.source, names, owner)
    return counts


def describe_leaf(leaf: Any) -> str:
    """Class and file of a data set, for messages."""
    where = getattr(leaf, 'ann_file', '') or getattr(leaf, 'data_root', '')
    return f'{type(leaf).__name__} ({where})' if where else type(leaf).__name__


def check_class_key(metainfo: Any, owner: str) -> None:
    """Raise if class names stand under a key that no host reads.

    Args:
        metainfo: Of a data set.
        owner (str): Whose data set it is.

    Raises:
        ValueError: Such as for ``CLASSES``, the key of versions 0.x.
    """
    if not isinstance(metainfo, Mapping):
        return
    for key, names in metainfo.items():
        if key != 'classes' and str(key).lower() == 'classes':
            if list(metainfo.get('classes') or ()) == list(names or ()):
                continue
            raise fault(
                'metainfo',
                {key: names},
                "the class names under the key 'classes'",
                f"write 'classes' instead of {key!r}, which nothing reads",
                owner,
            )


def label_names(leaf: Any) -> Names | None:
    """Names of one data set by label, after a look at its annotations."""
    metainfo, owner = getattr(leaf, 'metainfo', None), describe_leaf(leaf)
    check_class_key(metainfo, owner)
    said = metainfo.get('classes') if isinstance(metainfo, Mapping) else None
    if isinstance(said, str):
        raise fault(
            'metainfo.classes',
            said,
            'a sequence of names, of which a string is none: its characters '
            'would be the classes',
            f'a comma makes one of it, classes=({said!r},); if it is a file '
            'of names, correct its path',
            owner,
        )
    # Without a name in it, data sets take all that their file has.
    said = tuple(map(str, () if said is None else said)) or None
    _check_names(said, owner)
    stock = said is not None and said == tuple(
        (getattr(leaf, 'METAINFO', None) or {}).get('classes') or ()
    )
    found = _names_in_file(leaf)
    twice = [name for name, times in Counter(said).items() if times > 1]
    # ImageNet has two classes 'crane'.
    if twice and not stock and found != said:
        raise fault(
            'metainfo.classes',
            said,
            f'each class once, got {listed(twice)} several times, so that a '
            'name has no label of its own',
            'remove the second of each name, or tell two classes apart by '
            'their names',
            owner,
        )
    if said is None or found is None or found == said:
        _warn_of_spelling(leaf, said)
        return said or found
    often = Counter(found) - Counter(said)
    doubled = [name for name in often if name in said]
    if doubled:
        raise fault(
            'ann_file',
            leaf.ann_file,
            f'each category name once, got several ids for {listed(doubled)}'
            f', so that there are {len(found)} labels for {len(said)} classes',
            'remove the second category of that name from the file (exports '
            'add a root category without boxes), or rename it',
            type(leaf).__name__,
        )
    missing = [name for name in said if name not in found]
    if len(found) < len(said):
        source = (
            f'folders in {leaf.img_prefix!r}'
            if hasattr(leaf, 'folder_to_idx')
            else f'categories of {leaf.ann_file!r}'
        )
        categories = [str(c.get('name')) for c in categories_of(leaf) or ()]
        left_out = [name for name in categories if name not in found]
        spelt = {name.lower(): name for name in left_out}
        near = [
            spelt[close]
            for name in missing
            for close in difflib.get_close_matches(name.lower(), spelt, 1)
        ]
        if found and found == said[: len(found)] and not near:
            # The last are missing: no label is shifted.
            if left_out:
                _say_once(
                    f'{owner}: categories of the file are left out '
                    f'({listed(left_out)}), while it has none for '
                    f'{listed(missing)}. Fix: metainfo=dict(classes=(...)) '
                    'in the data set, with the names of the file '
                    f'({listed(categories)}), and their number as '
                    'num_classes of the heads.'
                )
            return said
        if stock or not (found or near):
            raise fault(
                'metainfo.classes',
                leaf.metainfo['classes'],
                f'names of {source}, which has '
                + (f'only {listed(found)}' if found else 'none')
                + f' of them: {type(leaf).__name__} would '
                + ('shift labels' if found else 'leave out all boxes'),
                'write metainfo=dict(classes=(...)) in the data set, with the '
                f'names of the file ({listed(categories or found)})',
            )
        raise fault(
            'metainfo.classes',
            leaf.metainfo['classes'],
            f'names of {source}, which lacks '
            f'{listed(missing)}: {type(leaf).__name__} would shift the '
            'labels of all classes after it',
            'spell it as there'
            + (f' ({listed(near)})' if near else '')
            + ', or add it there',
        )
    moved = _moved(said, found)
    # From here on all labels are places in the file, or of folders.
    if len(found) > len(said) or (missing and moved):
        further = [name for name in found if name not in said]
        raise fault(
            'metainfo.classes',
            leaf.metainfo['classes'],
            f'the {len(found)} names that labels have in the file or by '
            f'folder: not in metainfo.classes: {listed(further) or "none"}; '
            f'in metainfo.classes alone: {listed(missing) or "none"}'
            + (
                f'; places in metainfo.classes / labels: {moved}'
                if moved
                else ''
            ),
            'remove from the data what is no class, or write '
            'metainfo=dict(classes=(...)) with all these names in their '
            f'order ({listed(found)}), and num_classes={len(found)} in the '
            'heads',
            owner,
        )
    if missing:
        if len(missing) < len(said) or not hasattr(leaf, 'folder_to_idx'):
            _warn_of_renamed(said, 'metainfo.classes', found, owner)
        return said
    _say_once(
        f'{owner}: metainfo.classes has another order than the '
        'labels, which follow the file or folders (places in metainfo.classes'
        f' / labels: {moved}). Counts and their names go by the '
        'labels; where others show names, they will be wrong. Fix: '
        'metainfo.classes in the order of the labels.'
    )
    return found


def _check_names(said: Names | None, owner: str) -> None:
    """Refuse what a file of names may have beside names."""
    for place, name in enumerate(said or ()):
        if not name.strip():
            raise fault(
                'metainfo.classes',
                said,
                f'a name for each class, got a blank one at place {place}',
                'delete that name, or the blank line of the file of names',
                owner,
            )
        if name.startswith('\ufeff'):
            raise fault(
                'metainfo.classes',
                said,
                'names alone, got a byte order mark before the first one',
                'save the file of names as UTF-8 without a byte order mark',
                owner,
            )


def _names_in_file(leaf: Any) -> Names | None:
    """Names by label where something else than ``metainfo`` orders them."""
    folders = getattr(leaf, 'folder_to_idx', None)
    if folders:
        hidden = [name for name in folders if _NO_CLASS.match(name)]
        if hidden:
            raise fault(
                'data_prefix',
                getattr(leaf, 'img_prefix', ''),
                f'one folder a class, got {listed(hidden)}, which shifts the '
                'labels and is a class too many',
                'delete that folder, or move it away',
                type(leaf).__name__,
            )
        return tuple(sorted(folders, key=folders.get))
    ids = getattr(leaf, 'cat_ids', None)
    if ids is None:
        return getattr(leaf, 'names_in_file', None) or _names_beside(leaf)
    # None are left where no category has a name of metainfo.classes.
    categories = categories_of(leaf)
    if categories is None:
        return None
    names = {c['id']: str(c.get('name', c['id'])) for c in categories}
    return tuple(names[i] for i in ids)


def empty_folders(dataset: Any) -> list[str]:
    """Folders of a data set that count as classes without any image."""
    empty = []
    for leaf in leaves(dataset):
        folders = getattr(leaf, 'folder_to_idx', {})
        used = set(leaf.get_gt_labels().tolist()) if folders else ()
        empty += [name for name in folders if folders[name] not in used]
    return empty


def _names_beside(leaf: Any) -> Names | None:
    """Names that a file of MMEngine's own form has beside its labels."""
    path = getattr(leaf, 'ann_file', None)
    if (
        kind_of(leaf, 'load_data_list') != BASE_DATASET
        or not isinstance(path, str)
        or not os.path.isfile(path)
    ):
        return None
    return _names_of_labels(path, os.stat(path).st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _names_of_labels(path: str, changed: int) -> Names | None:
    from mmengine.fileio import load

    metainfo = load(path)['metainfo']
    names = metainfo.get('classes')
    if not names:  # The form of MMPretrain's documentation.
        categories = metainfo.get('categories') or ()
        names = [
            c['category_name']
            for c in sorted(categories, key=lambda c: c['id'])
        ]
    return tuple(map(str, names)) or None


def categories_of(leaf: Any) -> list[dict[str, Any]] | None:
    """The categories of the COCO file of a data set, if it has one."""
    path = getattr(leaf, 'ann_file', None)
    if (
        not hasattr(leaf, 'cat_ids')
        or not isinstance(path, str)
        or not os.path.isfile(path)
    ):
        return None
    ids = set(leaf.cat_ids)
    for found in _lists_of_categories(path, os.stat(path).st_mtime_ns):
        if ids <= {c.get('id') for c in found}:
            return found
    return None


@functools.lru_cache(maxsize=8)
def _lists_of_categories(
    path: str, changed: int
) -> list[list[dict[str, Any]]]:
    """Parse these lists alone: the rest of the file may be a gigabyte."""
    lists = []
    with open(path, 'rb') as file:
        text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        for match in re.finditer(rb'"categories"\s*:\s*(?=\[)', text):
            for size in _sizes(len(text) - match.end()):
                part = text[match.end() : match.end() + size]
                try:
                    found, _ = json.JSONDecoder().raw_decode(
                        part.decode('utf-8', 'ignore')
                    )
                except ValueError:
                    continue  # It is longer.
                if all(isinstance(c, dict) for c in found):
                    lists.append(found)
                break
    return lists


def _sizes(most: int) -> Iterator[int]:
    size = 2**20
    while size < most:
        yield size
        size *= 8
    yield most


def _warn_of_spelling(leaf: Any, said: Names | None) -> None:
    """VOC-like files: mmdet drops objects whose name is no class.

    Nothing but the log depends on it, so the main process alone reads them.
    """
    if distributed.is_available() and distributed.is_initialized():
        if distributed.get_rank() != 0:
            return
    if not said or not _is_voc(leaf) or leaf in _read:
        return
    _read.add(leaf)
    used = object_names(leaf)
    if used and used.keys().isdisjoint(said):
        _say_once(
            f'{describe_leaf(leaf)}: all objects are left out, as none has a '
            f'name of metainfo.classes. Fix: metainfo=dict(classes=(...)) in '
            f'the data set, with the names of the files '
            f'({listed(sorted(used))}).'
        )
    (plain,) = _plain(said)
    odd, others = [], []
    for name in sorted(used.keys() - set(said)):
        number = used[name]
        close = difflib.get_close_matches(_plain([name])[0][0], plain, 1, 0.8)
        if close:
            meant = said[plain.index(close[0])]
            odd.append(f'{name!r} (class {meant!r}, {number}x)')
        else:
            others.append(f'{name!r} ({number}x)')
    if odd:
        more = f' and {len(odd) - 10} more' if len(odd) > 10 else ''
        _say_once(
            f'{describe_leaf(leaf)}: objects are left out whose name is '
            f'spelt otherwise than in metainfo.classes: '
            f'{", ".join(odd[:10])}{more}. Fix: one spelling in all files.'
        )
    if others:
        more = f' and {len(others) - 10} more' if len(others) > 10 else ''
        _say_once(
            f'{describe_leaf(leaf)}: objects are left out whose name is none '
            f'of metainfo.classes: {", ".join(others[:10])}{more}',
            logging.INFO,
        )


def _is_voc(leaf: Any) -> bool:
    return hasattr(leaf, '_parse_instance_info')


def object_names(leaf: Any) -> Counter[str]:
    """How often the XML files of a data set have each name, filters aside."""
    return Counter(
        name
        for info in leaf.load_data_list()
        for name in _object_names(info.get('xml_path', ''))
    )


def _object_names(path: str) -> list[str]:
    if not os.path.isfile(path):
        return []
    return [
        found.findtext('name') or ''
        for found in ElementTree.parse(path).getroot().iter('object')
    ]


def _plain(*lists: Sequence[str]) -> list[list[str]]:
    """Names without case and blanks, if they stay different in all lists.

    Letters with accents are one character (macOS decomposes those of files).
    """
    plain = [
        [
            re.sub(
                r'[\s_-]+',
                ' ',
                unicodedata.normalize('NFC', n.strip().casefold()),
            )
            for n in names
        ]
        for names in lists
    ]
    if all(len(set(p)) == len(set(n)) for p, n in zip(plain, lists)):
        return plain
    return [list(names) for names in lists]


def same_word(name: str, other: str) -> bool:
    """Equal, or a slip of the pen in a long name, as one in LVIS's file."""
    return name == other or (
        re.findall(r'\d+', name) == re.findall(r'\d+', other)
        and difflib.SequenceMatcher(None, name, other).ratio() > 0.9
    )


def _moved(names: Names, others: Names) -> str:
    """The classes whose labels differ, or nothing."""
    before, now = _plain(names, others)
    after = {name: i for i, name in enumerate(now)}
    moved = [
        f'{names[i]!r} {i} / {after[name]}'
        for i, name in enumerate(before)
        if after.get(name, i) != i
    ]
    more = f' and {len(moved) - 10} more' if len(moved) > 10 else ''
    return ', '.join(moved[:10]) + more


def _warn_of_renamed(
    names: Names, owner: str, others: Names, other_owner: str
) -> None:
    odd = [
        f'{i}: {a!r} and {b!r}'
        for i, (a, b, p, q) in enumerate(
            zip(names, others, *_plain(names, others))
        )
        if not same_word(p, q)
    ]
    if odd:
        more = f' and {len(odd) - 10} more' if len(odd) > 10 else ''
        _say_once(
            f'{owner} and {other_owner} give labels different names: '
            f'{", ".join(odd[:10])}{more}. Labels are taken by position.'
        )


@functools.lru_cache(maxsize=None)
def _say_once(text: str, level: int = logging.WARNING) -> None:
    logger.log(level, text)
