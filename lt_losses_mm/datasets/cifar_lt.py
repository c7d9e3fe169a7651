# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""CIFAR-10-LT and CIFAR-100-LT, cut from the official CIFAR files.

Class i of C keeps ``int(n_max * IF**(-i / (C - 1)))`` of its ``n_max``
training images: Cao et al., "Learning Imbalanced Datasets with
Label-Distribution-Aware Margin Loss", NeurIPS 2019, Section 4.1, and
``imbalance_cifar.py`` of its repository, where ``imb_factor`` is 1 / IF. The
test split stays whole.
"""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
from mmengine.fileio import exists, get, join_path

from lt_losses_mm.messages import describe, fault
from lt_losses_mm.registry import DATASETS

from .image_list import ClassificationDataset

URL = 'https://www.cs.toronto.edu/~kriz/'


def long_tail_counts(
    max_count: int, imbalance_factor: float, num_classes: int
) -> np.ndarray:
    """Training images of each class of the exponential profile.

    Args:
        max_count: Images of class 0, the most frequent one.
        imbalance_factor: IF, ``max_count`` over the count of the last class.
        num_classes: C, at least 2.

    Returns:
        Counts of shape ``(C,)``, int64, non-increasing and at least 1 (which
        is more than the formula says only where ``max_count`` < IF).
    """
    share = np.arange(num_classes) / (num_classes - 1)
    counts = max_count * float(imbalance_factor) ** -share
    # A power such as 400 * 100**-1 can come out a hair below the integer.
    return np.maximum(np.floor(counts + 1e-6), 1).astype(np.int64)


class _CIFARLT(ClassificationDataset):
    """What both have in common; see :class:`CIFAR100LT`."""

    folder: str
    archive: str
    files: dict[str, tuple[str, ...]]
    label_key: str
    meta_file: str
    meta_key: str
    num_classes: int

    def __init__(
        self,
        data_root: str,
        imbalance_factor: float = 100,
        split: str = 'train',
        **kwargs: Any,
    ) -> None:
        kind = f'lt_losses_mm.{type(self).__name__}'
        if split not in self.files:
            raise fault('split', split, "'train' or 'test'", owner=kind)
        if not imbalance_factor >= 1:
            raise fault(
                'imbalance_factor',
                imbalance_factor,
                'a number of at least 1: images of the first class over '
                'those of the last one (1 keeps the balanced set)',
                'give 100 for what some papers write as 0.01',
                kind,
            )
        self.split = split
        self.imbalance_factor = imbalance_factor
        super().__init__(data_root=data_root, data_prefix={}, **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Read the pickles and keep the profile's share of each class.

        Returns:
            Per sample ``img``, ``(32, 32, 3)`` uint8 in RGB order, and
            ``gt_label`` (int), in the order of the files.
        """
        meta = self._read(self.meta_file, self.meta_key)
        names = tuple(
            name.decode() if isinstance(name, bytes) else name
            for name in meta[self.meta_key]
        )
        self._metainfo.setdefault('classes', names)
        parts = [
            self._read(name, 'data', self.label_key)
            for name in self.files[self.split]
        ]
        images = np.concatenate([part['data'] for part in parts])
        images = images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        labels = np.concatenate([part[self.label_key] for part in parts])
        if len(images) != len(labels):
            raise self._damaged(
                f'as many images as {self.label_key} in '
                f'{", ".join(self.files[self.split])}, got {len(images)} and '
                f'{len(labels)}'
            )
        found = np.bincount(labels, minlength=self.num_classes)
        keep = found
        if self.split == 'train':
            keep = long_tail_counts(
                int(found.max()), self.imbalance_factor, self.num_classes
            )
        if len(found) != self.num_classes or (found < keep).any():
            raise self._damaged(
                f'{self.num_classes} classes of equal size, got {len(found)} '
                f'classes with {found.min()} to {found.max()} {self.split} '
                'images'
            )
        # The published code shuffles each class with a seed first. The files
        # are shuffled already: their first images are a random choice, too,
        # but the same one for everybody, and the set of a larger IF is a
        # subset of that of a smaller one.
        chosen = np.concatenate(
            [np.flatnonzero(labels == c)[:n] for c, n in enumerate(keep)]
        )
        return [
            dict(img=images[i], gt_label=int(labels[i]))
            for i in np.sort(chosen)
        ]

    def _path(self, name: str) -> str:
        return join_path(self.data_root, self.folder, name)

    def _read(self, name: str, *keys: str) -> dict[str, Any]:
        path = self._path(name)
        if not exists(path):
            raise FileNotFoundError(
                describe(
                    'data_root',
                    self.data_root,
                    f'a file {path!r}, found none',
                    f'unpack {URL}{self.archive} in data_root, so that it '
                    f'holds the folder {self.folder}',
                    f'lt_losses_mm.{type(self).__name__}',
                )
            )
        content = pickle.loads(get(path), encoding='latin1')
        # Python 2 wrote the official files; copies have keys of bytes.
        content = {
            key.decode() if isinstance(key, bytes) else key: value
            for key, value in content.items()
        }
        missing = [key for key in keys if key not in content]
        if missing:
            raise self._damaged(
                f'the keys {", ".join(keys)} in {path!r}, got '
                f'{sorted(content)}'
            )
        return content

    def _damaged(self, expected: str) -> ValueError:
        return fault(
            'data_root',
            self.data_root,
            expected,
            f'unpack {URL}{self.archive} again',
            f'lt_losses_mm.{type(self).__name__}',
        )


@DATASETS.register_module()
class CIFAR100LT(_CIFARLT):
    """CIFAR-100-LT from the official ``cifar-100-python``.

    Training counts fall from 500 for class 0 to ``int(500 / IF)`` for class
    99, in the order of the official labels. Of each class the first images of
    the files are taken, without a seed. Nothing is downloaded; checksums are
    verified by ``tools/prepare_dataset.py cifar``.

    Args:
        data_root: Folder that holds ``cifar-100-python``.
        imbalance_factor: IF, at least 1; published with 10, 50, 100, 200.
        split: 'train', or 'test' for the whole balanced test set.
        **kwargs: Of :class:`mmengine.dataset.BaseDataset`: ``pipeline``,
            ``test_mode``, ``metainfo``, ``indices``, ``lazy_init``, ...

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If an option or a file is not as expected.

    Examples:
        >>> train_dataset = dict(
        ...     type='lt_losses_mm.CIFAR100LT',
        ...     data_root='data',
        ...     imbalance_factor=100)
    """

    folder = 'cifar-100-python'
    archive = 'cifar-100-python.tar.gz'
    files = dict(train=('train',), test=('test',))
    label_key = 'fine_labels'
    meta_file = 'meta'
    meta_key = 'fine_label_names'
    num_classes = 100


@DATASETS.register_module()
class CIFAR10LT(_CIFARLT):
    """CIFAR-10-LT from the official ``cifar-10-batches-py``.

    As :class:`CIFAR100LT`, with counts from 5000 to ``int(5000 / IF)``.

    Args:
        data_root: Folder that holds ``cifar-10-batches-py``.
        imbalance_factor: IF, at least 1; published with 10, 50, 100, 200.
        split: 'train', or 'test' for the whole balanced test set.
        **kwargs: Of :class:`mmengine.dataset.BaseDataset`.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If an option or a file is not as expected.
    """

    folder = 'cifar-10-batches-py'
    archive = 'cifar-10-python.tar.gz'
    files = dict(
        train=tuple(f'data_batch_{i}' for i in range(1, 6)),
        test=('test_batch',),
    )
    label_key = 'labels'
    meta_file = 'batches.meta'
    meta_key = 'label_names'
    num_classes = 10
