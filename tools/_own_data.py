# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Stand-ins for data sets of users, from the doubles of the benchmarks.

A benchmark has a double of its own. Of other data only the config is known:
what it says of folders, suffixes and classes is filled with the pictures of a
double, whose labels are taken modulo the number of classes.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, Callable, Iterator

import numpy as np
from _doubles import make_double

# Data set, folder to write, number of classes, folder of doubles, split.
Writer = Callable[[dict, Path, int, Path, str], None]


def make_own_data(
    datasets: list[tuple[str, dict]], path: str, model: dict, root: Path
) -> None:
    """Write what data sets with the same ``data_root`` need.

    Args:
        datasets: ``'train'`` or ``'val'`` and the config of the data set.
        path: Their ``data_root``, without ``data/``.
        model: Config of the model, which has the number of classes.
        root: What becomes ``data``.

    Raises:
        FileNotFoundError: If a data set is of a type that is not in
            ``WRITERS``.
    """
    kinds = {str(dataset['type']).split('.')[-1] for _, dataset in datasets}
    if not kinds or not kinds <= set(WRITERS):
        raise FileNotFoundError(
            f'data/{path} is not there, expected the data, or one of '
            f'{", ".join(WRITERS)} with this folder as data_root, for which '
            f'a stand-in can be made; got {", ".join(kinds) or "none"}. Fix: '
            f'--data-root DIR, where DIR/{path} holds the data'
        )
    num_classes = max(
        part['num_classes'] for part in walk(model) if 'num_classes' in part
    )
    with tempfile.TemporaryDirectory() as doubles:
        for split, dataset in datasets:
            kind = str(dataset['type']).split('.')[-1]
            WRITERS[kind](
                dataset, root / path, num_classes, Path(doubles), split
            )


def walk(value: Any) -> Iterator[dict]:
    """All dictionaries in ``value``, itself included, outermost first."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from walk(item)


def _coco(
    dataset: dict, folder: Path, num_classes: int, root: Path, split: str
) -> None:
    """Boxes and masks in COCO's format."""
    source = make_double('lvis_v1', root)
    path = source / 'annotations' / f'lvis_v1_{split}.json'
    content = json.loads(path.read_text())
    names = (dataset.get('metainfo') or {}).get('classes', ())
    if len(names) != num_classes:
        raise ValueError(
            f'metainfo.classes of {dataset["type"]}: expected the names of '
            f'the {num_classes} classes of the model, got {names!r}. Fix: '
            'metainfo=dict(classes=(...)), as in the JSON file'
        )
    content['categories'] = [
        dict(id=i, name=name) for i, name in enumerate(names)
    ]
    for annotation in content['annotations']:
        annotation['category_id'] %= num_classes
        annotation['iscrowd'] = 0
    images = folder / dataset['data_prefix']['img']
    images.mkdir(parents=True, exist_ok=True)
    for image in content['images']:
        where, image['file_name'] = image['coco_url'].split('/')[-2:]
        shutil.copy(source / where / image['file_name'], images)
    path = folder / dataset['ann_file']
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def _masks(
    dataset: dict, folder: Path, num_classes: int, root: Path, split: str
) -> None:
    """Images and masks of the same names; no pixel is without a label."""
    import cv2

    source = make_double('ade20k', root)
    split = dict(train='training', val='validation')[split]
    images = folder / dataset['data_prefix']['img_path']
    masks = folder / dataset['data_prefix']['seg_map_path']
    images.mkdir(parents=True, exist_ok=True)
    masks.mkdir(parents=True, exist_ok=True)
    for path in sorted((source / 'images' / split).iterdir()):
        name = path.stem + dataset.get('img_suffix', '.jpg')
        cv2.imwrite(str(images / name), cv2.imread(str(path)))
        path = source / 'annotations' / split / f'{path.stem}.png'
        mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) % num_classes
        name = path.stem + dataset.get('seg_map_suffix', '.png')
        cv2.imwrite(str(masks / name), mask.astype(np.uint8))


def _folders(
    dataset: dict, folder: Path, num_classes: int, root: Path, split: str
) -> None:
    """Images in one folder a class."""
    source = make_double('imagenet_lt', root)
    paths = sorted((source / 'train').rglob('*.JPEG'))
    prefix: Any = dataset['data_prefix']
    if not isinstance(prefix, str):
        prefix = prefix['img_path']
    for label in range(num_classes):
        target = folder / prefix / f'class_{label:04d}'
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(paths[label % len(paths)], target / f'{split}.jpg')


WRITERS: dict[str, Writer] = {
    'CocoDataset': _coco,
    'BaseSegDataset': _masks,
    'CustomDataset': _folders,
}
