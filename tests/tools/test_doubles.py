# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Format doubles: what is written, and that the hosts read it."""

from __future__ import annotations

import hashlib
import json
import pickle

import numpy as np
import pytest
from _doubles import DOUBLES, MARKER, make_double
from mmengine.dataset import ClassBalancedDataset
from mmengine.registry import init_default_scope

from lt_losses_mm.priors import (
    count_dataset,
    frequency_groups,
    load_class_counts,
)
from lt_losses_mm.registry import DATASETS

LISTS = {
    'imagenet_lt': ('ImageNet_LT', ('train', 'val', 'test')),
    'places_lt': ('Places_LT', ('train', 'val', 'test')),
    'inaturalist2018': ('iNaturalist18', ('train', 'val')),
}
LVIS = {'lvis_v1': 'LVISV1Dataset', 'lvis_v0.5': 'LVISV05Dataset'}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('data')
    for name in DOUBLES:
        make_double(name, root)
    return root


def checksums(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(
            path.read_bytes()
        ).hexdigest()
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }


def read_lvis(data, name, split):
    path = data / name / 'annotations' / f'{name}_{split}.json'
    return json.loads(path.read_text())


@pytest.mark.parametrize('name', DOUBLES)
def test_same_arguments_same_files(data, tmp_path, name):
    folder = make_double(name, tmp_path)
    assert checksums(folder) == checksums(data / DOUBLES[name][0])


def test_seed_and_size_change_the_files(data, tmp_path):
    other = checksums(make_double('imagenet_lt', tmp_path / 'a', seed=1))
    assert other != checksums(data / 'imagenet_lt')
    more = make_double('imagenet_lt', tmp_path / 'b', images=12)
    lines = (more / 'ImageNet_LT_train.txt').read_text().splitlines()
    assert len(lines) == 12


@pytest.mark.parametrize('name', LISTS)
def test_list_files(data, name):
    prefix, splits = LISTS[name]
    counts = load_class_counts(
        dict(inaturalist2018='inaturalist18').get(name, name)
    )
    for split in splits:
        dataset = DATASETS.build(
            dict(
                type='lt_losses_mm.ImageListDataset',
                data_root=str(data / name),
                ann_file=f'{prefix}_{split}.txt',
                classes=[str(i) for i in range(counts.num_classes)],
            )
        )
        labels = dataset.get_gt_labels()
        assert len(labels) == 8
        assert counts.num_classes - 1 in labels
        # The most frequent class of the benchmark has half of the images.
        assert np.bincount(labels)[counts.counts.argmax()] == 4
        groups = frequency_groups(counts.counts)
        assert np.isin(groups['few'], labels).any()
        import cv2

        for i in range(8):
            image = cv2.imread(dataset.get_data_info(i)['img_path'])
            assert max(image.shape) == 128


@pytest.mark.parametrize(
    ('name', 'kind', 'host'),
    [
        ('cifar10', 'CIFAR10LT', 'CIFAR10'),
        ('cifar100', 'CIFAR100LT', 'CIFAR100'),
    ],
)
def test_cifar(data, name, kind, host):
    for split, most in (('train', 8), ('test', 1)):
        dataset = DATASETS.build(
            dict(type=f'lt_losses_mm.{kind}', data_root=str(data), split=split)
        )
        counts = count_dataset(dataset).counts
        assert (counts.max(), counts.min()) == (most, 1)
    # The host reads the same files, were it not for the checksums.
    cifar = pytest.importorskip('mmpretrain.datasets.cifar')
    cls = getattr(cifar, host)
    double = type('Double', (cls,), dict(_check_integrity=lambda self: True))
    assert len(double(str(data), download=False)) == 8 * len(counts)


def test_cifar_has_every_field(data):
    def read(path):
        return pickle.loads((data / path).read_bytes())

    meta = read('cifar-10-batches-py/batches.meta')
    batch = read('cifar-10-batches-py/data_batch_5')
    assert meta.keys() == {'label_names', 'num_cases_per_batch', 'num_vis'}
    assert batch['data'].shape == (meta['num_cases_per_batch'], 3072)
    fields = {'batch_label', 'labels', 'data', 'filenames'}
    assert batch.keys() == fields
    meta = read('cifar-100-python/meta')
    assert len(meta['fine_label_names']) == 100
    assert len(meta['coarse_label_names']) == 20
    for split in ('train', 'test'):
        batch = read(f'cifar-100-python/{split}')
        assert batch.keys() == fields - {'labels'} | {
            'fine_labels',
            'coarse_labels',
        }
        # Each class is in one superclass.
        pairs = set(zip(batch['fine_labels'], batch['coarse_labels']))
        assert len(pairs) == 100
        assert {coarse for _, coarse in pairs} == set(range(20))


def test_inaturalist2018_json_and_list_say_the_same(data):
    folder = data / 'inaturalist2018'
    for split in ('train', 'val'):
        content = json.loads((folder / f'{split}2018.json').read_text())
        assert [c['id'] for c in content['categories']] == [*range(8142)]
        for image in content['images']:
            assert {'height', 'width', 'license', 'rights_holder'} <= {*image}
        datasets = [
            DATASETS.build(
                dict(
                    type='lt_losses_mm.ImageListDataset',
                    data_root=str(folder),
                    ann_file=name,
                )
            )
            for name in (f'{split}2018.json', f'iNaturalist18_{split}.txt')
        ]
        samples = [
            [dataset.get_data_info(i) for i in range(len(dataset))]
            for dataset in datasets
        ]
        assert samples[0] == samples[1]
        for sample in samples[0]:
            *_, top, group, species, _ = sample['img_path'].split('/')
            assert (top, group) == ('train_val2018', 'Plantae')
            assert species == str(sample['gt_label'])


@pytest.mark.parametrize('name', LVIS)
def test_lvis_has_every_category_with_true_fields(data, name):
    figures = load_class_counts(name)
    groups = frequency_groups(figures.counts, 'lvis')
    for split in ('train', 'val'):
        content = read_lvis(data, name, split)
        categories = content['categories']
        assert [c['id'] for c in categories] == [
            *range(1, figures.num_classes + 1)
        ]
        assert tuple(c['name'] for c in categories) == figures.names
        for letter, group in zip(
            'rcf', (groups['rare'], groups['common'], groups['frequent'])
        ):
            assert {categories[i]['frequency'] for i in group} == {letter}
        for field in ('synset', 'synonyms', 'def'):
            assert all(c[field] for c in categories)
        own = np.zeros(figures.num_classes)
        for annotation in content['annotations']:
            own[annotation['category_id'] - 1] += 1
        instances = [c['instance_count'] for c in categories]
        expected = load_class_counts(name, unit='instance').counts
        assert instances == (expected if split == 'train' else own).tolist()
        present = {
            categories[a['category_id'] - 1]['frequency']
            for a in content['annotations']
        }
        assert present == set('rcf')


@pytest.mark.parametrize('name', LVIS)
def test_lvis_images_and_annotations(data, name):
    ids = set()
    for split in ('train', 'val'):
        content = read_lvis(data, name, split)
        by_image = {image['id']: image for image in content['images']}
        assert not ids & by_image.keys()
        ids |= by_image.keys()
        for annotation in content['annotations']:
            image = by_image[annotation['image_id']]
            polygon = np.reshape(annotation['segmentation'][0], (-1, 2))
            assert len(polygon) >= 3
            low, high = polygon.min(0), polygon.max(0)
            assert (low >= 0).all()
            assert (high < [image['width'], image['height']]).all()
            assert annotation['bbox'] == [*low, *(high - low)]
            assert 0 < annotation['area'] <= np.prod(high - low)
        for image in content['images']:
            present = {
                a['category_id']
                for a in content['annotations']
                if a['image_id'] == image['id']
            }
            assert not present & set(image['neg_category_ids'])
            assert present.issuperset(image['not_exhaustive_category_ids'])
            # v1 names its files in the URL alone.
            assert ('file_name' in image) == (name == 'lvis_v0.5')
    folders = {i['coco_url'].split('/')[-2] for i in content['images']}
    both = {'train2017', 'val2017'}
    assert folders == (both if name == 'lvis_v1' else {'val2017'})


@pytest.mark.parametrize('name', LVIS)
def test_lvis_in_mmdet_with_oversampling(data, name):
    pytest.importorskip('mmdet')
    pytest.importorskip('lvis')
    init_default_scope('mmdet')
    img = dict(train='train2017/', val='val2017/')
    for split, images in (('train', 8), ('val', 8)):
        dataset = DATASETS.build(
            dict(
                type=f'mmdet.{LVIS[name]}',
                data_root=str(data / name),
                ann_file=f'annotations/{name}_{split}.json',
                data_prefix=dict(img='' if name == 'lvis_v1' else img[split]),
                filter_cfg=dict(filter_empty_gt=True, min_size=32),
                pipeline=[
                    dict(type='LoadImageFromFile'),
                    dict(
                        type='LoadAnnotations', with_bbox=True, with_mask=True
                    ),
                    dict(type='PackDetInputs'),
                ],
            )
        )
        # The image without annotations is filtered.
        assert len(dataset) == images
        sample = dataset[0]['data_samples'].gt_instances
        assert len(dataset.metainfo['classes']) - 1 in sample.labels
        assert all(mask.any() for mask in sample.masks.masks)
    # With this threshold an image of a class that no other one has counts
    # ceil(sqrt(1 / (1 / 8))) = 3 times, and each has such a class or shares it
    # with another one: ceil(sqrt(1 / (2 / 8))) = 2.
    balanced = ClassBalancedDataset(dataset, oversample_thr=1.0)
    assert set(np.bincount(balanced.repeat_indices)) <= {2, 3}


@pytest.mark.parametrize('name', LVIS)
def test_lvis_evaluation_finds_the_truth_perfect(data, name):
    pytest.importorskip('mmdet')
    pytest.importorskip('lvis')
    import torch
    from mmdet.evaluation import LVISMetric

    from lt_losses_mm.compat import patch_lvis

    patch_lvis()
    content = read_lvis(data, name, 'val')
    path = data / name / 'annotations' / f'{name}_val.json'
    metric = LVISMetric(str(path), metric='bbox')
    metric.dataset_meta = dict(classes=load_class_counts(name).names)
    for image in content['images']:
        found = [
            a for a in content['annotations'] if a['image_id'] == image['id']
        ]
        boxes = torch.tensor([a['bbox'] for a in found]).float()
        boxes[:, 2:] += boxes[:, :2]
        prediction = dict(
            bboxes=boxes,
            scores=torch.ones(len(found)),
            labels=torch.tensor([a['category_id'] - 1 for a in found]),
        )
        sample = dict(
            img_id=image['id'],
            ori_shape=(image['height'], image['width']),
            pred_instances=prediction,
        )
        metric.process({}, [sample])
    result = metric.evaluate(len(content['images']))
    for key in ('AP', 'APr', 'APc', 'APf'):
        assert result[f'lvis/bbox_{key}'] == pytest.approx(1)


def test_ade20k(data):
    import cv2

    pytest.importorskip('mmseg')
    init_default_scope('mmseg')
    for split in ('training', 'validation'):
        dataset = DATASETS.build(
            dict(
                type='mmseg.ADE20KDataset',
                data_root=str(data / 'ade/ADEChallengeData2016'),
                data_prefix=dict(
                    img_path=f'images/{split}',
                    seg_map_path=f'annotations/{split}',
                ),
                pipeline=[
                    dict(type='LoadImageFromFile'),
                    dict(type='LoadAnnotations', reduce_zero_label=True),
                    dict(type='PackSegInputs'),
                ],
            )
        )
        assert len(dataset) == 8
        for i in range(8):
            info = dataset.get_data_info(i)
            mask = cv2.imread(info['seg_map_path'], cv2.IMREAD_UNCHANGED)
            assert mask.ndim == 2
            assert {0, 1, 150} <= set(np.unique(mask)) <= {*range(151)}
            labels = dataset[i]['data_samples'].gt_sem_seg.data.unique()
            assert {0, 149, 255} <= set(labels.tolist())


def test_ade20k_names_the_scene_of_each_image(data):
    folder = data / 'ade/ADEChallengeData2016'
    lines = (folder / 'sceneCategories.txt').read_text().splitlines()
    images = sorted(path.stem for path in folder.glob('images/*/*.jpg'))
    assert sorted(line.split(' ')[0] for line in lines) == images
    assert all(len(line.split(' ')) == 2 for line in lines)


def test_refuses_doubles_of_another_format(tmp_path):
    marker = make_double('cifar10', tmp_path) / MARKER
    older = dict(json.loads(marker.read_text()), format=1)
    marker.write_text(json.dumps(older))
    with pytest.raises(FileExistsError, match='Fix: give another root'):
        make_double('cifar10', tmp_path)
    assert json.loads(marker.read_text()) == older


def test_refuses_files_and_dead_links_in_the_way(tmp_path):
    (tmp_path / 'file').write_text('mine')
    with pytest.raises(NotADirectoryError, match=r"file' is a file.*Fix: "):
        make_double('imagenet_lt', tmp_path / 'file/data')
    link = tmp_path / 'imagenet_lt'
    link.symlink_to('nowhere')
    with pytest.raises(FileExistsError, match='holds no double'):
        make_double('imagenet_lt', tmp_path)
    assert link.is_symlink()


def test_makes_nothing_twice_and_overwrites_nothing(tmp_path):
    folder = make_double('imagenet_lt', tmp_path)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob('*')}
    assert make_double('imagenet_lt', tmp_path) == folder
    with pytest.raises(FileExistsError, match=r"'seed': 0.*Fix: give another"):
        make_double('imagenet_lt', tmp_path, seed=1)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob('*')} == before
    (folder / MARKER).unlink()
    with pytest.raises(FileExistsError, match=r'holds no double.*Fix'):
        make_double('imagenet_lt', tmp_path)
    assert not list(tmp_path.glob('.*'))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(name='lvis'), "name='lvis', expected one of lvis_v1.*Fix"),
        (dict(name='lvis_v1', images=3), 'images=3, expected at least 4.*Fix'),
    ],
)
def test_refuses_wrong_arguments(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_double(root=tmp_path, **arguments)
