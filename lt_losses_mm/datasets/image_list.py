# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Image classification from list files: ImageNet-LT, Places-LT, iNaturalist.

ImageNet-LT and Places-LT are published as text files of one
``<path> <label>`` a line (Liu et al., "Large-Scale Long-Tailed Recognition in
an Open World", CVPR 2019); iNaturalist 2018 is used in the same form (Kang
et al., "Decoupling Representation and Classifier for Long-Tailed
Recognition", ICLR 2020), or as the competition's own ``train2018.json``.
"""

from __future__ import annotations

import json
import reprlib
from pathlib import Path
from typing import Any, Iterable, Iterator, Sequence

from mmengine.dataset import BaseDataset
from mmengine.fileio import exists, get, join_path

from lt_losses_mm.messages import describe, fault
from lt_losses_mm.registry import DATASETS


class ClassificationDataset(BaseDataset):
    """What the hosts ask of a data set whose samples have a ``gt_label``."""

    @property
    def CLASSES(self) -> tuple[str, ...] | None:  # noqa: N802
        """The class names, under the name that mmpretrain's hooks use."""
        return self._metainfo.get('classes')

    def get_cat_ids(self, idx: int) -> list[int]:
        return [int(self.get_data_info(idx)['gt_label'])]

    def get_gt_labels(self) -> Any:
        """Labels of all samples, shape ``(N,)``, int64."""
        import numpy as np

        return np.array(
            [self.get_cat_ids(i)[0] for i in range(len(self))], np.int64
        )


@DATASETS.register_module()
class ImageListDataset(ClassificationDataset):
    """Images and labels by a list file, as the long-tail benchmarks have it.

    A list is text, ``<path> <label>`` a line, in UTF-8 or UTF-16, with or
    without a byte order mark. Paths are split off at the last blank or tab
    and never interpreted, so that every public variant of the lists
    (``val/n01440764/x.JPEG`` or ``val/x.JPEG``, ``train/airfield/x.jpg`` or
    ``data_256/a/airfield/x.jpg``) is read; labels count from 0. A name that
    ends in ``.json`` is read as one of the two forms of iNaturalist 2018:
    the competition's (``images``, ``annotations``, ``categories``) or the
    flat one of BBN (Zhou et al., CVPR 2020) with ``fpath`` in the
    annotations.

    Args:
        ann_file: The list, relative to ``data_root``.
        data_root: Folder of the data set.
        data_prefix: Folder that the paths of the list are relative to, itself
            relative to ``data_root``; a string or ``dict(img_path=...)``.
        classes: C class names in label order, or a text file of one name a
            line. Where it is None, ``metainfo`` or the categories of a JSON
            list give them; otherwise they stay unknown.
        metainfo: As for every MMEngine data set.
        **kwargs: Of :class:`mmengine.dataset.BaseDataset`: ``pipeline``,
            ``test_mode``, ``indices``, ``lazy_init``, ...

    Raises:
        FileNotFoundError: If the list, the file of class names or the first
            image of the list is missing.
        ValueError: If a line or a label is not as expected.

    Examples:
        >>> train_dataset = dict(
        ...     type='lt_losses_mm.ImageListDataset',
        ...     data_root='data/imagenet_lt',
        ...     ann_file='ImageNet_LT_train.txt')
    """

    def __init__(
        self,
        ann_file: str,
        data_root: str = '',
        data_prefix: str | dict = '',
        classes: str | Sequence[str] | None = None,
        metainfo: dict | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(data_prefix, str):
            data_prefix = dict(img_path=data_prefix)
        if isinstance(classes, (str, Path)):
            _require(str(classes), 'classes', 'give the names themselves')
            classes = _lines(str(classes), 'classes')
        if classes is not None:
            metainfo = dict(metainfo or {}, classes=tuple(classes))
        super().__init__(
            ann_file=ann_file,
            data_root=data_root,
            data_prefix=data_prefix,
            metainfo=metainfo,
            **kwargs,
        )

    def load_data_list(self) -> list[dict[str, Any]]:
        """Read the list.

        Returns:
            Per sample ``img_path`` (str) and ``gt_label`` (int).
        """
        _require(
            self.ann_file,
            'ann_file',
            "give the path of the benchmark's list, or write one, a line "
            "'<path> <label>' a sample",
        )
        if self.ann_file.endswith('.json'):
            samples = self._read_json()
        else:
            samples = _read_lines(self.ann_file)
        classes = self._metainfo.get('classes')
        prefix = self.data_prefix['img_path']
        data_list = []
        for name, label in samples:
            if classes is not None and label >= len(classes):
                raise fault(
                    'ann_file',
                    self.ann_file,
                    f'labels 0 to {len(classes) - 1} for the {len(classes)} '
                    f'classes, got {label} for {name!r}',
                    'give the classes of this list, or count its labels '
                    'from 0',
                )
            data_list.append(
                dict(img_path=join_path(prefix, name), gt_label=label)
            )
        if not data_list:
            raise fault(
                'ann_file',
                self.ann_file,
                "lines '<path> <label>', but it holds no sample",
                'fetch the list again',
            )
        first = data_list[0]['img_path']
        if not exists(first):
            raise FileNotFoundError(
                describe(
                    'data_root',
                    self.data_root,
                    f'the first image of {self.ann_file!r} at {first!r}, '
                    'found none',
                    'write / for each \\ in the list'
                    if '\\' in first
                    else 'set data_prefix to the folder that the paths of the '
                    'list are relative to, or write a list for your folders '
                    'with `mim run mm-lt-losses prepare_dataset`',
                )
            )
        return data_list

    def _read_json(self) -> Iterable[tuple[str, int]]:
        content = json.loads(get(self.ann_file))  # With or without a BOM.
        annotations = content.get('annotations', [])
        if 'images' not in content:
            return [(a['fpath'], a['category_id']) for a in annotations]
        categories = sorted(content['categories'], key=lambda c: c['id'])
        ids = [category['id'] for category in categories]
        if ids != list(range(len(ids))):
            raise fault(
                'ann_file',
                self.ann_file,
                'category ids 0 to C - 1 as in iNaturalist 2018, got '
                f'category ids from {min(ids)} to {max(ids)} for {len(ids)} '
                'categories',
                "write a text list '<path> <label>' of it",
            )
        names = tuple(str(category['name']) for category in categories)
        self.names_in_file = names  # To compare with those of the config.
        self._metainfo.setdefault('classes', names)
        files = {
            image['id']: image['file_name'] for image in content['images']
        }
        return [(files[a['image_id']], a['category_id']) for a in annotations]


def _read_lines(ann_file: str) -> Iterator[tuple[str, int]]:
    for number, line in enumerate(_lines(ann_file, 'ann_file'), 1):
        if not line.strip():
            continue
        name, label = ('', *line.rsplit(maxsplit=1))[-2:]
        if not name or not (label.isascii() and label.isdigit()):
            raise fault(
                'ann_file',
                ann_file,
                "'<path> <label>' with a blank between and a label that is 0 "
                f'or more, got {reprlib.repr(line)} in line {number}',
                'correct the line, or fetch the list again',
            )
        yield name.strip(), int(label)


def _lines(path: str, key: str) -> list[str]:
    content = get(path)
    try:
        return content.decode(json.detect_encoding(content)).splitlines()
    except UnicodeDecodeError as error:
        raise fault(
            key,
            path,
            f'text in UTF-8 or UTF-16 ({error})',
            'save it as UTF-8',
        ) from error


def _require(path: str, key: str, fix: str) -> None:
    if not exists(path):
        raise FileNotFoundError(
            describe(
                key,
                path,
                'a file, found none',
                f'correct {key} or data_root; {fix}',
                'lt_losses_mm.ImageListDataset',
            )
        )
