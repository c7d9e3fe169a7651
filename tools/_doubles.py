# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Tiny doubles of the benchmarks, in their true on-disk formats.

A double has the benchmark's files, fields and number of classes, but a few
small pictures of coloured shapes. A config whose data are not at hand can be
built, stepped and evaluated on it with its real heads. Class names and
figures are the real ones where the package ships them (LVIS, ADE20K);
elsewhere, folders included, they are made up of the label. Below ``root``,
which takes the place of the configs' ``data``::

    lvis_v1/annotations/lvis_v1_{train,val}.json   lvis_v1
    lvis_v1/{train2017,val2017}/000000000001.jpg
    lvis_v0.5/...                                  lvis_v0.5, likewise
    imagenet_lt/ImageNet_LT_{train,val,test}.txt   imagenet_lt
    imagenet_lt/{train,val}/n00000000/...
    places_lt/Places_LT_{train,val,test}.txt       places_lt
    places_lt/data_256/s/scene_000/..., val_256/...
    inaturalist2018/iNaturalist18_{train,val}.txt  inaturalist2018
    inaturalist2018/{train,val}2018.json
    inaturalist2018/train_val2018/Plantae/0/...
    cifar-10-batches-py/, cifar-100-python/        cifar10, cifar100
    ade/ADEChallengeData2016/{images,annotations}/{training,validation}/
                                                   ade20k

The classes that occur are few as well: the most frequent ones of the
benchmark, some rare ones, and always the last one, so that a head with too
few classes fails.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from pathlib import Path
from typing import Any, Callable

import numpy as np

from lt_losses_mm.cache import in_one_step
from lt_losses_mm.datasets import CIFAR10LT, CIFAR100LT
from lt_losses_mm.messages import describe, fault
from lt_losses_mm.priors import load_class_counts

# Raised whenever the same arguments no longer give the same files.
FORMAT = 2
SIDES = (128, 96)
OBJECTS = 8
MARKER = 'double.json'


def make_double(
    name: str, root: str | os.PathLike, seed: int = 0, images: int = 8
) -> Path:
    """Write the double of one benchmark below ``root``, unless it is there.

    The folder appears in one step when it is complete; nothing that exists is
    overwritten.

    Args:
        name: A key of ``DOUBLES``.
        root: What the configs call ``data``.
        seed: Seed of everything that is drawn.
        images: Images of each split, at least 4; of CIFAR, training images of
            each class (which has one test image).

    Returns:
        The folder of the double.

    Raises:
        ValueError: If the name or the number of images is not as expected.
        FileExistsError: If the folder is there, but not as the same double.
        NotADirectoryError: If ``root`` or a folder above it is a file.
    """
    if name not in DOUBLES:
        raise fault(
            'name',
            name,
            f'one of {", ".join(DOUBLES)}',
            'choose the benchmark whose double you want',
        )
    if images < 4:
        raise fault(
            'images',
            images,
            'at least 4, for a long tail with a frequent, a rare and the '
            'last class',
            'leave the default 8',
        )
    folder, write = DOUBLES[name]
    target = Path(root) / folder
    wanted = dict(double=name, format=FORMAT, seed=seed, images=images)
    for parent in target.parents:
        if os.path.lexists(parent) and not parent.is_dir():
            raise NotADirectoryError(
                describe(
                    'root',
                    str(root),
                    f'folders or nothing, but {str(parent)!r} is a file or '
                    'a dead link',
                    'give another root',
                )
            )
    if not os.path.lexists(target):
        with in_one_step(target) as part:
            part.mkdir()
            # RandomState, because its streams are frozen over versions.
            write(part, np.random.RandomState(seed), images)
            (part / MARKER).write_text(json.dumps(wanted))
    marker = target / MARKER
    found = json.loads(marker.read_text()) if marker.is_file() else 'no double'
    if found != wanted:
        raise FileExistsError(
            describe(
                'root',
                str(root),
                f'nothing or {wanted} in {str(target)!r}, which holds {found}',
                'give another root, or move that folder away',
            )
        )
    return target


def _long_tail(counts: np.ndarray, images: int) -> np.ndarray:
    """Labels of a few images: half of them the most frequent class, ...

    The next class has half of the rest, and so on; the last two images are
    of the last class and of the rarest one.
    """
    ranks = np.log2(images / (images - np.arange(images))).astype(int)
    order = np.argsort(-counts, kind='stable')
    labels = order[ranks]
    labels[-2:] = len(counts) - 1, order[-1]
    return labels


def _picture(rng: np.random.RandomState, sides: tuple[int, int]) -> np.ndarray:
    """A noisy ground of one colour, ``(H, W, 3)`` uint8."""
    ground = rng.randint(40, 216, 3) + rng.randint(-20, 21, (*sides, 3))
    return np.clip(ground, 0, 255).astype(np.uint8)


def _write_image(path: Path, image: np.ndarray) -> None:
    import cv2

    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), image):
        raise OSError(f'OpenCV could not write {path}')


def _colour(label: int) -> list[int]:
    """The same colour for a class in every picture."""
    return np.random.RandomState(label).randint(0, 256, 3).tolist()


def _write_list(
    folder: Path,
    rng: np.random.RandomState,
    list_name: str,
    labels: np.ndarray,
    path_of: Callable[[int, int], str],
) -> list[dict[str, Any]]:
    """Write one list file and its images; what JSON lists say of these."""
    import cv2

    lines, records = [], []
    for number, label in enumerate(labels.tolist(), 1):
        path = path_of(label, number)
        image = _picture(rng, SIDES if number % 2 else SIDES[::-1])
        centre = image.shape[1] // 2, image.shape[0] // 2
        cv2.circle(image, centre, rng.randint(20, 45), _colour(label), -1)
        _write_image(folder / path, image)
        lines.append(f'{path} {label}\n')
        height, width = image.shape[:2]
        records.append(
            dict(id=number, file_name=path, height=height, width=width)
        )
    (folder / list_name).write_text(''.join(lines))
    return records


def _imagenet_lt(
    folder: Path, rng: np.random.RandomState, images: int
) -> None:
    labels = _long_tail(load_class_counts('imagenet_lt').counts, images)
    paths = dict(
        train=lambda y, k: f'train/n{y:08d}/n{y:08d}_{k}.JPEG',
        val=lambda y, k: f'train/n{y:08d}/n{y:08d}_{1000 + k}.JPEG',
        test=lambda y, k: f'val/n{y:08d}/ILSVRC2012_val_{k:08d}.JPEG',
    )
    for split, path_of in paths.items():
        _write_list(folder, rng, f'ImageNet_LT_{split}.txt', labels, path_of)


def _places_lt(folder: Path, rng: np.random.RandomState, images: int) -> None:
    labels = _long_tail(load_class_counts('places_lt').counts, images)
    paths = dict(
        train=lambda y, k: f'data_256/s/scene_{y:03d}/{k:08d}.jpg',
        val=lambda y, k: f'data_256/s/scene_{y:03d}/{1000 + k:08d}.jpg',
        test=lambda y, k: f'val_256/Places365_val_{k:08d}.jpg',
    )
    for split, path_of in paths.items():
        _write_list(folder, rng, f'Places_LT_{split}.txt', labels, path_of)


def _inaturalist2018(
    folder: Path, rng: np.random.RandomState, images: int
) -> None:
    counts = load_class_counts('inaturalist18').counts
    labels = _long_tail(counts, images)
    categories = [
        dict(id=i, name=f'species_{i}', supercategory='Plantae')
        for i in range(len(counts))
    ]
    for split in ('train', 'val'):

        def path_of(label: int, number: int, split: str = split) -> str:
            digest = hashlib.md5(f'{split} {number}'.encode()).hexdigest()
            return f'train_val2018/Plantae/{label}/{digest}.jpg'

        name = f'iNaturalist18_{split}.txt'
        records = _write_list(folder, rng, name, labels, path_of)
        content = dict(
            info=dict(description='Format double', version='2018'),
            images=[
                dict(record, license=1, rights_holder='') for record in records
            ],
            licenses=[dict(id=1, name='Apache-2.0', url='')],
            annotations=[
                dict(id=record['id'], image_id=record['id'], category_id=label)
                for record, label in zip(records, labels.tolist())
            ],
            categories=categories,
        )
        (folder / f'{split}2018.json').write_text(json.dumps(content))


def _cifar(
    kind: type[CIFAR10LT] | type[CIFAR100LT],
    folder: Path,
    rng: np.random.RandomState,
    images: int,
) -> None:
    names = [f'class_{i}' for i in range(kind.num_classes)]
    for split, per_class in (('train', images), ('test', 1)):
        labels = rng.permutation(np.repeat(range(kind.num_classes), per_class))
        ground = np.array([_colour(y) for y in labels])[:, :, None]
        noise = rng.randint(-40, 41, (len(labels), 3, 1024))
        data = np.clip(ground + noise, 0, 255).astype(np.uint8)
        files = kind.files[split]
        for name, chosen in zip(
            files, np.array_split(np.arange(len(labels)), len(files))
        ):
            content: dict[str, Any] = {
                'batch_label': f'{split} double',
                kind.label_key: labels[chosen].tolist(),
                'data': data[chosen].reshape(len(chosen), 3072),
                'filenames': [f'{split}_{i:06d}.png' for i in chosen],
            }
            if kind is CIFAR100LT:
                # 20 superclasses; which class is in which is made up.
                content['coarse_labels'] = (labels[chosen] // 5).tolist()
            (folder / name).write_bytes(pickle.dumps(content, 2))
    meta: dict[str, Any] = {kind.meta_key: names}
    if kind is CIFAR100LT:
        meta['coarse_label_names'] = [f'superclass_{i}' for i in range(20)]
    else:
        meta.update(num_cases_per_batch=2 * images, num_vis=3072)
    (folder / kind.meta_file).write_bytes(pickle.dumps(meta, 2))


def _cifar10(folder: Path, rng: np.random.RandomState, images: int) -> None:
    _cifar(CIFAR10LT, folder, rng, images)


def _cifar100(folder: Path, rng: np.random.RandomState, images: int) -> None:
    _cifar(CIFAR100LT, folder, rng, images)


def _ade20k(folder: Path, rng: np.random.RandomState, images: int) -> None:
    share = load_class_counts('ade20k')
    scenes = []
    for split, short in (('training', 'train'), ('validation', 'val')):
        for number in range(1, images + 1):
            sides = SIDES if number % 2 else SIDES[::-1]
            image = _picture(rng, sides)
            # 0 is 'not labelled' in ADE20K: here a stripe at the left.
            mask = np.zeros(sides, np.uint8)
            labels = _long_tail(share.counts, OBJECTS)
            labels[1:4] = rng.choice(
                150, 3, p=share.counts / share.counts.sum()
            )
            for order, label in enumerate(labels):
                low = 8 if order == 0 else rng.randint(8, sides[1] - 24)
                top = 0 if order == 0 else rng.randint(0, sides[0] - 24)
                ends = sides if order == 0 else (top + 24, low + 24)
                mask[top : ends[0], low : ends[1]] = label + 1
                image[top : ends[0], low : ends[1]] = _colour(int(label))
            name = f'ADE_{short}_{number:08d}'
            scenes.append(f'{name} scene\n')
            _write_image(folder / 'images' / split / f'{name}.jpg', image)
            _write_image(folder / 'annotations' / split / f'{name}.png', mask)
    assert share.names is not None
    rows = ['Idx\tRatio\tTrain\tVal\tName\n']
    rows += [
        f'{i}\t{ratio:.4f}\t{images}\t{images}\t{name}\n'
        for i, (ratio, name) in enumerate(zip(share.counts, share.names), 1)
    ]
    (folder / 'objectInfo150.txt').write_text(''.join(rows))
    (folder / 'sceneCategories.txt').write_text(''.join(scenes))


def _lvis(
    version: str, folder: Path, rng: np.random.RandomState, images: int
) -> None:
    (folder / 'annotations').mkdir()
    scenes = _LVIS(version, folder, rng)
    for split in ('train', 'val'):
        # One image of the training split has no annotations, as in LVIS.
        empty = int(split == 'train')
        content = scenes.split(split, images, empty)
        path = folder / 'annotations' / f'lvis_{version}_{split}.json'
        path.write_text(json.dumps(content))


def _lvis_v1(folder: Path, rng: np.random.RandomState, images: int) -> None:
    _lvis('v1', folder, rng, images)


def _lvis_v05(folder: Path, rng: np.random.RandomState, images: int) -> None:
    _lvis('v0.5', folder, rng, images)


class _LVIS:
    """Scenes with LVIS annotations; image ids go on over the splits."""

    def __init__(
        self, version: str, folder: Path, rng: np.random.RandomState
    ) -> None:
        self.version = version
        self.folder = folder
        self.rng = rng
        benchmark = f'lvis_{version}'
        self.instances = load_class_counts(benchmark, unit='instance').counts
        figures = load_class_counts(benchmark, unit='image')
        self.images = figures.counts
        assert figures.names is not None
        self.names = figures.names
        letters = np.digitize(self.images, [11, 101])
        self.pools = [np.flatnonzero(letters == i) for i in range(3)]
        self.letters = ['rcf'[i] for i in letters]
        self.next_image = 1

    def split(self, split: str, images: int, empty: int) -> dict[str, Any]:
        """Write the images of a split and return its LVIS dictionary."""
        records: list[dict] = []
        annotations: list[dict] = []
        for number in range(images + empty):
            labels = self.labels() if number < images else np.empty(0, int)
            found = self.draw(split, number, labels, len(annotations))
            records.append(found[0])
            annotations += found[1]
        # In LVIS the letters of every split describe the training split, the
        # counts their own file. These few images would leave rare classes
        # only, so that the training split has the figures of the real one.
        pairs = [(a['category_id'], a['image_id']) for a in annotations]
        own_instances = np.bincount(
            [c - 1 for c, _ in pairs], minlength=len(self.names)
        )
        own_images = np.bincount(
            [c - 1 for c, _ in set(pairs)], minlength=len(self.names)
        )
        train = split == 'train'
        figures = zip(
            self.images if train else own_images,
            self.instances if train else own_instances,
        )
        categories = [
            dict(
                id=i,
                name=name,
                synset=f'{name}.n.01',
                synonyms=[name],
                **{'def': f'a double of {name}'},
                frequency=letter,
                image_count=int(image_count),
                instance_count=int(instance_count),
            )
            for i, (name, letter, (image_count, instance_count)) in enumerate(
                zip(self.names, self.letters, figures), 1
            )
        ]
        return dict(
            info=dict(description='Format double', version=self.version),
            licenses=[dict(id=1, name='Apache-2.0', url='')],
            images=records,
            annotations=annotations,
            categories=categories,
        )

    def labels(self) -> np.ndarray:
        """Labels of one scene: each frequency group, and the last class."""
        odds = self.instances / self.instances.sum()
        forced = [self.rng.choice(pool[:20]) for pool in self.pools]
        rest = self.rng.choice(len(odds), OBJECTS - 4, p=odds)
        return np.array([*forced, *rest, len(odds) - 1])

    def draw(
        self, split: str, number: int, labels: np.ndarray, annotated: int
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Write one image; its record and its annotations."""
        import cv2

        rng = self.rng
        image = _picture(rng, SIDES if number % 2 else SIDES[::-1])
        height, width = image.shape[:2]
        identity = self.next_image
        self.next_image += 1
        annotations = []
        for k, label in enumerate(labels.tolist(), 1):
            axes = rng.randint(8, 24, 2)
            centre = [
                rng.randint(a, n - a) for a, n in zip(axes, (width, height))
            ]
            outline = cv2.ellipse2Poly(
                centre, axes.tolist(), rng.randint(90), 0, 330, 30
            )
            polygon = np.clip(np.asarray(outline), 0, [width - 1, height - 1])
            cv2.fillPoly(image, [polygon], _colour(label))
            annotations.append(
                dict(
                    id=annotated + k,
                    image_id=identity,
                    category_id=label + 1,
                    bbox=np.r_[polygon.min(0), np.ptp(polygon, 0)].tolist(),
                    area=cv2.contourArea(polygon),
                    segmentation=[polygon.ravel().astype(float).tolist()],
                )
            )
        # A part of LVIS' validation images is in COCO's training folder.
        v1 = self.version == 'v1'
        place = 'train' if split == 'train' or (v1 and number % 2) else 'val'
        name = f'{identity:012d}.jpg'
        _write_image(self.folder / f'{place}2017' / name, image)
        url = f'http://images.cocodataset.org/{place}2017/{name}'
        absent = np.setdiff1d(np.arange(len(self.names)), labels)
        record = dict(
            id=identity,
            width=width,
            height=height,
            coco_url=url,
            flickr_url='',
            date_captured='2013-11-14 17:02:52',
            license=1,
            neg_category_ids=sorted(
                int(i) + 1 for i in rng.choice(absent, 5, replace=False)
            ),
            not_exhaustive_category_ids=[int(i) + 1 for i in labels[3:4]],
        )
        if not v1:
            record['file_name'] = f'COCO_{place}2014_{name}'
        return record, annotations


# Name: folder below the root, what writes it.
DOUBLES: dict[
    str, tuple[str, Callable[[Path, np.random.RandomState, int], None]]
] = {
    'lvis_v1': ('lvis_v1', _lvis_v1),
    'lvis_v0.5': ('lvis_v0.5', _lvis_v05),
    'imagenet_lt': ('imagenet_lt', _imagenet_lt),
    'places_lt': ('places_lt', _places_lt),
    'inaturalist2018': ('inaturalist2018', _inaturalist2018),
    'cifar10': (CIFAR10LT.folder, _cifar10),
    'cifar100': (CIFAR100LT.folder, _cifar100),
    'ade20k': ('ade/ADEChallengeData2016', _ade20k),
}
