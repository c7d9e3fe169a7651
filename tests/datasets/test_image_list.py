# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""ImageListDataset: every public form of the lists, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from mmengine.dataset import ClassBalancedDataset

from lt_losses_mm.priors import class_names, count_dataset
from lt_losses_mm.registry import DATASETS

# The forms in which the three benchmarks' lists are published.
VARIANTS = [
    'train/n01440764/n01440764_762.JPEG',
    'val/ILSVRC2012_val_00029930.JPEG',
    'data_256/a/apartment_building/outdoor/00004851.jpg',
    'train_val2018/Plantae/7291/9f8ecb39e5f767e39e9b28e34488f179.jpg',
    'a folder with blanks/a file.jpg',
]


def build(root, **options):
    return DATASETS.build(
        dict(
            type='lt_losses_mm.ImageListDataset',
            data_root=str(root),
            **{'ann_file': 'list.txt', **options},
        )
    )


def write(root, *lines, name='list.txt'):
    (root / name).write_text('\n'.join([*lines, '']))
    for line in lines:
        path = root / line.rsplit(' ', 1)[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.mark.parametrize('path', VARIANTS)
def test_reads_every_form_of_a_path(tmp_path, path):
    write(tmp_path, f'{path} 3')
    info = build(tmp_path).get_data_info(0)
    assert info['img_path'] == str(tmp_path / path)
    assert info['gt_label'] == 3


def test_joins_the_prefix(tmp_path):
    write(tmp_path, 'images/a.jpg 0')
    (tmp_path / 'list.txt').write_text('a.jpg 0\n')
    for prefix in ('images', dict(img_path='images')):
        info = build(tmp_path, data_prefix=prefix).get_data_info(0)
        assert info['img_path'] == str(tmp_path / 'images/a.jpg')


def test_gives_what_hosts_ask_for(tmp_path):
    write(tmp_path, 'a.jpg 0', 'b.jpg 2', 'c.jpg 0')
    dataset = build(tmp_path, classes=['x', 'y', 'z'])
    assert dataset.CLASSES == dataset.metainfo['classes'] == ('x', 'y', 'z')
    assert dataset.get_gt_labels().tolist() == [0, 2, 0]
    assert dataset.get_cat_ids(1) == [2]
    assert count_dataset(dataset).counts.tolist() == [2, 0, 1]
    # Class 2 has a third of the images: ceil(sqrt(0.5 / (1 / 3))) = 2.
    balanced = ClassBalancedDataset(dataset, oversample_thr=0.5)
    assert balanced.repeat_indices == [0, 1, 1, 2]


def test_reads_classes_from_a_file(tmp_path):
    write(tmp_path, 'a.jpg 1')
    (tmp_path / 'names.txt').write_text('cat\nblack dog\n')
    dataset = build(tmp_path, classes=str(tmp_path / 'names.txt'))
    assert dataset.CLASSES == ('cat', 'black dog')


def test_without_classes_counting_needs_their_number(tmp_path):
    write(tmp_path, 'a.jpg 1')
    dataset = build(tmp_path)
    assert dataset.CLASSES is None
    assert count_dataset(dataset, num_classes=3).counts.tolist() == [0, 1, 0]


def inaturalist(root):
    """A list as in train2018.json: ids of the images are not positions."""
    files = ['train_val2018/Aves/1/x.jpg', 'train_val2018/Fungi/0/y.jpg']
    write(root, *(f'{name} 0' for name in files))
    return dict(
        images=[dict(id=7 - i, file_name=f) for i, f in enumerate(files)],
        annotations=[
            dict(id=1, image_id=6, category_id=0),
            dict(id=2, image_id=7, category_id=1),
        ],
        categories=[dict(id=1, name='wren'), dict(id=0, name='morel')],
    )


def test_reads_the_json_of_inaturalist(tmp_path):
    content = inaturalist(tmp_path)
    (tmp_path / 'train2018.json').write_text(json.dumps(content))
    dataset = build(tmp_path, ann_file='train2018.json')
    assert dataset.CLASSES == ('morel', 'wren')
    found = [dataset.get_data_info(i) for i in range(2)]
    assert [info['gt_label'] for info in found] == [0, 1]
    assert found[0]['img_path'].endswith('Fungi/0/y.jpg')


def test_reads_the_flat_json_of_bbn(tmp_path):
    write(tmp_path, 'x.jpg 0')
    content = dict(
        annotations=[dict(image_id=1, fpath='x.jpg', category_id=5)],
        num_classes=8142,
    )
    (tmp_path / 'flat.json').write_text(json.dumps(content))
    dataset = build(tmp_path, ann_file='flat.json')
    assert dataset.get_gt_labels().tolist() == [5]


def test_names_are_compared_with_those_of_the_json(tmp_path):
    (tmp_path / 'train.json').write_text(json.dumps(inaturalist(tmp_path)))
    classes = ('wren', 'morel')
    dataset = build(tmp_path, ann_file='train.json', classes=classes)
    assert class_names(dataset) == ('morel', 'wren')


def test_refuses_ids_that_are_no_labels(tmp_path):
    content = inaturalist(tmp_path)
    for category in content['categories']:
        category['id'] += 1
    (tmp_path / 'train.json').write_text(json.dumps(content))
    with pytest.raises(ValueError, match='category ids from 1 to 2 .*Fix'):
        build(tmp_path, ann_file='train.json')


@pytest.mark.parametrize(
    ('line', 'options', 'message'),
    [
        (
            'b.jpg',
            {},
            "expected '<path> <label>'.* got 'b.jpg' in line 2.*Fix",
        ),
        ('b.jpg -1', {}, "got 'b.jpg -1' in line 2"),
        ('b.jpg cat', {}, "got 'b.jpg cat' in line 2"),
        (
            'b.jpg 2',
            dict(classes=['x', 'y']),
            "labels 0 to 1 for the 2 classes, got 2 for 'b.jpg'.*Fix",
        ),
    ],
)
def test_names_the_line_at_fault(tmp_path, line, options, message):
    write(tmp_path, 'a.jpg 0', line)
    with pytest.raises(ValueError, match=message):
        build(tmp_path, **options)


@pytest.mark.parametrize(
    'encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be']
)
@pytest.mark.parametrize('between', [' ', '\t', ' \t '])
@pytest.mark.parametrize('end', ['\n', '\r\n', ' \n'])
def test_reads_lists_of_windows(tmp_path, encoding, between, end):
    names = ('été 1.jpg', 'b.jpg')
    for name in names:
        (tmp_path / name).touch()
    text = ''.join(f'{name}{between}{i}{end}' for i, name in enumerate(names))
    (tmp_path / 'list.txt').write_bytes(text.encode(encoding))
    (tmp_path / 'names.txt').write_bytes('chat\r\nété'.encode(encoding))
    data = build(tmp_path, classes=str(tmp_path / 'names.txt'))
    assert data.metainfo['classes'] == ('chat', 'été')
    assert [data.get_data_info(i)['gt_label'] for i in (0, 1)] == [0, 1]
    path = data.get_data_info(0)['img_path']
    assert path == str(tmp_path / names[0])


@pytest.mark.parametrize(
    'content, words',
    [
        ('狗.jpg 0'.encode('gbk'), 'UTF-8 or UTF-16'),
        (b'a.jpg,0', "got 'a.jpg,0' in line 1"),
        (b'a.jpg 1.0', "got 'a.jpg 1.0' in line 1"),
        (b'a.jpg 0\nb.j', "got 'b.j' in line 2"),
        (b'x' * 10**6, 'in line 1'),
    ],
)
def test_other_lists_are_one_sentence(tmp_path, content, words):
    (tmp_path / 'list.txt').write_bytes(content)
    with pytest.raises(ValueError) as caught:
        build(tmp_path)
    assert words in str(caught.value) and 'Fix: ' in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


def test_paths_of_windows(tmp_path):
    (tmp_path / 'list.txt').write_text('img\\a.jpg 0')
    with pytest.raises(FileNotFoundError, match='Fix: write / for each'):
        build(tmp_path)


def test_refuses_an_empty_list(tmp_path):
    write(tmp_path)
    with pytest.raises(ValueError, match=r'holds no sample.*Fix'):
        build(tmp_path)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(ann_file='none.txt'), "ann_file='.*none.txt.*Fix: correct"),
        (dict(classes='none.txt'), "classes='none.txt.*Fix: correct"),
        (dict(data_prefix='train'), 'first image .*train/a.jpg.*data_prefix'),
    ],
)
def test_says_what_is_missing(tmp_path, options, message):
    write(tmp_path, 'a.jpg 0')
    with pytest.raises(FileNotFoundError, match=message):
        build(tmp_path, **options)


def test_feeds_a_classifier_of_mmpretrain(tmp_path):
    pytest.importorskip('mmpretrain')
    import cv2
    from mmengine.registry import init_default_scope

    write(tmp_path, 'a.png 2')
    cv2.imwrite(str(tmp_path / 'a.png'), np.full((8, 6, 3), 9, np.uint8))
    init_default_scope('mmpretrain')
    pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
    sample = build(tmp_path, pipeline=pipeline)[0]
    assert sample['inputs'].shape == (3, 8, 6)
    assert sample['data_samples'].gt_label.tolist() == [2]
