# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""CIFAR-LT: the published profile, and the images that it keeps."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from lt_losses_mm.datasets import long_tail_counts
from lt_losses_mm.priors import count_dataset
from lt_losses_mm.registry import DATASETS

FOLDER = dict(CIFAR10LT='cifar-10-batches-py', CIFAR100LT='cifar-100-python')
PER_CLASS = 6


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """Both sets with few images: pixel 0 is the image's number."""
    root = tmp_path_factory.mktemp('cifar')
    for kind, classes, key, meta, splits in (
        (
            'CIFAR10LT',
            10,
            'labels',
            ('batches.meta', 'label_names'),
            dict(train=[f'data_batch_{i}' for i in range(1, 6)]),
        ),
        (
            'CIFAR100LT',
            100,
            'fine_labels',
            ('meta', 'fine_label_names'),
            dict(train=['train']),
        ),
    ):
        folder = root / FOLDER[kind]
        folder.mkdir()
        splits['test'] = ['test_batch' if classes == 10 else 'test']
        rng = np.random.RandomState(classes)
        for files in splits.values():
            labels = rng.permutation(np.repeat(range(classes), PER_CLASS))
            data = np.zeros((len(labels), 3072), np.uint8)
            data[:, 0] = np.arange(len(labels)) % 256
            data[:, 1024] = labels
            for file, part in zip(
                files, np.array_split(np.arange(len(labels)), len(files))
            ):
                content = {'data': data[part], key: labels[part].tolist()}
                (folder / file).write_bytes(pickle.dumps(content, 2))
        names = [f'name {i}' for i in range(classes)]
        (folder / meta[0]).write_bytes(pickle.dumps({meta[1]: names}, 2))
    return root


def build(root, kind='CIFAR100LT', **options):
    return DATASETS.build(
        dict(type=f'lt_losses_mm.{kind}', data_root=str(root), **options)
    )


# Sums of the profile of LDAM's imbalance_cifar.py.
@pytest.mark.parametrize(
    ('classes', 'factor', 'total', 'last'),
    [
        (100, 1, 50000, 500),
        (100, 10, 19573, 50),
        (100, 50, 12608, 10),
        (100, 100, 10847, 5),
        (100, 200, 9502, 2),
        (10, 10, 20431, 500),
        (10, 50, 13996, 100),
        (10, 100, 12406, 50),
        (10, 200, 11203, 25),
    ],
)
def test_profile_is_the_published_one(classes, factor, total, last):
    counts = long_tail_counts(50000 // classes, factor, classes)
    assert counts.sum() == total
    assert (counts[0], counts[-1]) == (50000 // classes, last)
    assert (np.diff(counts) <= 0).all()


@pytest.mark.parametrize('kind', FOLDER)
def test_train_split_follows_the_profile(root, kind):
    dataset = build(root, kind, imbalance_factor=3)
    classes = len(dataset.CLASSES)
    expected = long_tail_counts(PER_CLASS, 3, classes)
    assert count_dataset(dataset).counts.tolist() == expected.tolist()
    assert dataset.CLASSES == tuple(f'name {i}' for i in range(classes))


@pytest.mark.parametrize('kind', FOLDER)
def test_test_split_is_whole(root, kind):
    counts = count_dataset(build(root, kind, split='test')).counts
    assert set(counts) == {PER_CLASS}


def test_images_have_their_labels_and_layout(root):
    dataset = build(root, imbalance_factor=1)
    for i in (0, 17, 599):
        info = dataset.get_data_info(i)
        assert info['img'].shape == (32, 32, 3)
        assert info['img'].dtype == np.uint8
        # Channel-major in the file: byte 1024 is the first green one.
        assert info['img'][0, 0].tolist() == [i % 256, info['gt_label'], 0]


def test_keeps_the_first_images_so_that_sets_are_nested(root):
    order = build(root, imbalance_factor=1)
    whole = [order.get_data_info(i) for i in range(len(order))]
    seen: dict = {}
    first = []
    profile = long_tail_counts(PER_CLASS, 6, 100)
    for info in whole:
        label = info['gt_label']
        seen[label] = seen.get(label, 0) + 1
        if seen[label] <= profile[label]:
            first.append(info['img'][0, 0, 0])
    cut = build(root, imbalance_factor=6)
    assert [
        cut.get_data_info(i)['img'][0, 0, 0] for i in range(len(cut))
    ] == first


def test_reads_keys_of_bytes(root, tmp_path):
    folder = tmp_path / FOLDER['CIFAR100LT']
    folder.mkdir()
    for file in ('train', 'meta'):
        content = pickle.loads((root / folder.name / file).read_bytes())
        content = {key.encode(): value for key, value in content.items()}
        if file == 'meta':
            content = {
                key: [name.encode() for name in names]
                for key, names in content.items()
            }
        (folder / file).write_bytes(pickle.dumps(content))
    dataset = build(tmp_path, imbalance_factor=2)
    assert dataset.CLASSES[3] == 'name 3'
    assert len(dataset) == len(build(root, imbalance_factor=2))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (
            dict(imbalance_factor=0.01),
            'imbalance_factor=0.01, .*at least 1.*Fix: give 100',
        ),
        (dict(split='val'), "split='val', expected 'train' or 'test'"),
    ],
)
def test_refuses_wrong_options(root, options, message):
    with pytest.raises(ValueError, match=message):
        build(root, **options)


def test_says_where_the_files_should_be(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r'data_root=.*cifar-100-python.*Fix: unpack'
    ):
        build(tmp_path)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            lambda c: c.pop('fine_labels'),
            'expected the keys data, fine_labels .*got',
        ),
        (
            lambda c: c['fine_labels'].pop(),
            'as many images as fine_labels .*got 600 and 599',
        ),
        (
            lambda c: c.update(fine_labels=[0] * 300 + c['fine_labels'][300:]),
            'expected 100 classes of equal size',
        ),
    ],
)
def test_refuses_damaged_files(root, tmp_path, change, message):
    folder = tmp_path / FOLDER['CIFAR100LT']
    folder.mkdir()
    for file in ('train', 'meta'):
        content = pickle.loads((root / folder.name / file).read_bytes())
        if file == 'train':
            change(content)
        (folder / file).write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=f'{message}.*Fix: unpack'):
        build(tmp_path)


def test_passes_a_pipeline_of_mmpretrain(root):
    pytest.importorskip('mmpretrain')
    from mmengine.registry import init_default_scope

    init_default_scope('mmpretrain')
    pipeline = [
        dict(type='RandomCrop', crop_size=32, padding=4),
        dict(type='RandomFlip', prob=0.5),
        dict(type='PackInputs'),
    ]
    sample = build(root, pipeline=pipeline)[0]
    assert sample['inputs'].shape == (3, 32, 32)
    assert 0 <= sample['data_samples'].gt_label.item() < 100
