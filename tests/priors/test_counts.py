# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Class counts: every source, the shipped figures, faults, groups."""

from __future__ import annotations

import gc
import io
import json
import pickle
import pkgutil

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from lt_losses_mm.priors import (
    BENCHMARKS,
    ClassCounts,
    count_dataset,
    frequency_groups,
    load_class_counts,
)

NUMBERS = [50, 0, 2.5, 7]
counts_lists = st.lists(
    st.one_of(st.integers(0, 10**9), st.floats(1e-6, 1e9)),
    min_size=1,
    max_size=30,
).filter(any)

ANNOTATIONS = dict(
    images=[dict(id=i) for i in range(3)],
    # Not in the order of the ids, which are neither 0-based nor dense.
    categories=[
        dict(id=9, name='owl'),
        dict(id=2, name='cat'),
        dict(id=4, name='dog'),
    ],
    annotations=[
        dict(id=1, image_id=0, category_id=2),
        dict(id=2, image_id=0, category_id=2),
        dict(id=3, image_id=1, category_id=2, iscrowd=0),
        dict(id=4, image_id=1, category_id=9),
        dict(id=5, image_id=2, category_id=9, iscrowd=1),
    ],
)


def _npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _coco(**fields):
    """A file with a box of each of two categories, but for these fields."""
    content = dict(
        images=[dict(id=0)],
        categories=[dict(id=1, name='a'), dict(id=2, name='b')],
        annotations=[dict(image_id=0, category_id=c) for c in (1, 2)],
    )
    return json.dumps(dict(content, **fields)).encode()


def _write(path, content):
    path.write_text(
        content if isinstance(content, str) else json.dumps(content)
    )
    return path


@pytest.mark.parametrize(
    'source',
    [
        list,
        tuple,
        np.array,
        torch.tensor,
        lambda v: torch.tensor(v, dtype=torch.bfloat16, requires_grad=True),
        ClassCounts,
    ],
)
def test_sequences(source):
    counts = load_class_counts(source(NUMBERS), num_classes=4)
    assert counts.counts.tolist() == NUMBERS
    assert counts.counts.dtype == np.float64
    assert counts.unit == 'image'


@pytest.mark.parametrize(
    'content',
    [
        NUMBERS,
        dict(counts=NUMBERS),
        dict(counts=dict(image=NUMBERS)),
        '50\n0\n2.5\n7',
        '50\r\n0\r\n2.5\r\n7\r\n\r\n',
        ' [50, 0, 2.5, 7]\n',
    ],
)
@pytest.mark.parametrize('suffix', ['.json', '.txt', ''])
def test_files(tmp_path, content, suffix):
    path = _write(tmp_path / f'counts{suffix}', content)
    for form in (path, str(path)):
        counts = load_class_counts(form, num_classes=4)
        assert counts.counts.tolist() == NUMBERS
        assert counts.source == str(path)


@given(
    numbers=counts_lists,
    unit=st.sampled_from(['image', 'instance', 'pixel']),
    named=st.booleans(),
)
def test_saved_file_reads_back(tmp_path_factory, numbers, unit, named):
    path = tmp_path_factory.mktemp('counts') / 'counts.json'
    names = tuple(f'classe n° {i}' for i in range(len(numbers)))
    saved = ClassCounts(numbers, unit, names if named else None, 'here')
    saved.save(path)
    read = load_class_counts(path)
    assert read.counts.tolist() == saved.counts.tolist() == numbers
    assert (read.unit, read.names) == (unit, saved.names)
    assert load_class_counts(path, unit=unit).unit == unit


def test_annotations_are_counted_in_order_of_the_file(tmp_path):
    path = _write(tmp_path / 'instances.json', ANNOTATIONS)
    images = load_class_counts(path)
    assert images.names == ('owl', 'cat', 'dog')
    assert images.counts.tolist() == [1, 2, 0]
    instances = load_class_counts(path, unit='instance')
    assert instances.counts.tolist() == [1, 3, 0]
    assert (images.unit, instances.unit) == ('image', 'instance')


@pytest.mark.parametrize(
    'segmentation',
    [
        [[1.5, 2, 3, 4, 5, 6]],
        [[1, 2], [3, 4e-1, -5]],
        [],
        [[]],
        [[[1], [2]], [3]],
        [['[', 'a]'], 'b'],
        dict(size=[2, 3], counts=[0, 6]),
        dict(size=[2, 3], counts='[[06'),
    ],
)
@pytest.mark.parametrize('indent', [None, 1])
def test_polygons_do_not_disturb(tmp_path, segmentation, indent):
    content = json.loads(json.dumps(ANNOTATIONS))
    content['categories'][0]['name'] = 'a "segmentation": [[1, 2]]'
    for annotation in content['annotations']:
        # Neither the first key nor the last.
        category = annotation.pop('category_id')
        annotation.update(segmentation=segmentation, category_id=category)
    path = _write(
        tmp_path / 'instances.json', json.dumps(content, indent=indent)
    )
    images = load_class_counts(path)
    assert images.counts.tolist() == [1, 2, 0]
    assert images.names == ('a "segmentation": [[1, 2]]', 'cat', 'dog')


def test_a_fault_is_told_at_its_place_in_the_file(tmp_path):
    text = '{"segmentation": [[1, 2]], "a": 1 "b": 2}'
    path = _write(tmp_path / 'instances.json', text)
    with pytest.raises(ValueError, match=f'char {text.index(chr(34) + "b")}'):
        load_class_counts(path)


@pytest.mark.parametrize('paused', [True, False])
def test_the_garbage_collector_is_left_as_it_was(tmp_path, paused):
    (tmp_path / 'right.json').write_text('[1, 2]')
    (tmp_path / 'wrong.json').write_text('[1, 2')
    before = gc.isenabled()
    (gc.disable if paused else gc.enable)()
    try:
        load_class_counts(tmp_path / 'right.json')
        assert gc.isenabled() is not paused
        with pytest.raises(ValueError, match='valid JSON'):
            load_class_counts(tmp_path / 'wrong.json')
        assert gc.isenabled() is not paused
    finally:
        (gc.enable if before else gc.disable)()


def test_annotations_win_over_counts_in_categories(tmp_path, caplog):
    """Such counts stay where annotations are cut away: they are checked."""
    content = json.loads(json.dumps(ANNOTATIONS))
    for category in content['categories']:
        category['image_count'] = category['id'] * 10
    path = _write(tmp_path / 'lvis.json', content)
    assert load_class_counts(path).counts.tolist() == [1, 2, 0]
    (told,) = [r for r in caplog.records if r.levelname == 'WARNING']
    for words in (str(path), 'image_count of 3 of 3', "'owl: 90, not 1'"):
        assert words in told.getMessage()
    caplog.clear()
    # No instance_count there, so there is nothing to compare.
    instances = load_class_counts(path, unit='instance')
    assert instances.counts.tolist() == [1, 3, 0]
    assert not [r for r in caplog.records if r.levelname == 'WARNING']


def test_counts_in_categories_that_are_right_are_no_news(tmp_path, caplog):
    content = json.loads(json.dumps(ANNOTATIONS))
    for category, number in zip(content['categories'], (1, 2, 0)):
        category['image_count'] = number
    load_class_counts(_write(tmp_path / 'lvis.json', content))
    assert not [r for r in caplog.records if r.levelname == 'WARNING']


def test_counts_in_categories_are_trusted_without_annotations(
    tmp_path, caplog
):
    content = json.loads(json.dumps(ANNOTATIONS))
    del content['annotations']
    for category in content['categories']:
        category['image_count'] = category['id'] * 10
    path = _write(tmp_path / 'lvis.json', content)
    with caplog.at_level('INFO', 'lt_losses_mm'):
        assert load_class_counts(path).counts.tolist() == [90, 20, 40]
    assert 'its image_count is trusted' in caplog.text


def _box(annotation, box=(5, 5, 20, 20), **more):
    image, category = annotation
    area = box[2] * box[3]
    return dict(
        image_id=image, category_id=category, bbox=box, area=area, **more
    )


LOADED = dict(
    images=[dict(id=i, width=64, height=48, file_name='') for i in (0, 1)],
    categories=[dict(id=7, name='cup'), dict(id=3, name='urn')],
    annotations=[
        _box((0, 7)),
        _box((0, 3)),
        _box((1, 3)),
        _box((2, 7)),  # an image that is not listed
        _box((1, 7), (5, 5, 0, 20)),
        _box((1, 7), (5, 5, 20, 0.5)),
        _box((1, 7), (64, 5, 20, 20)),
        _box((1, 7), (5, -20, 20, 20)),
        dict(_box((1, 7)), area=0),
        _box((1, 7), iscrowd=1),
        _box((1, 7), ignore=1),
        _box((1, 3), (60, 40, 20, 20)),  # partly outside
        _box((1, 7), (float('nan'), 5, 20, 20)),
        _box((1, 7), (5, 5, 20, float('nan'))),
        dict(_box((1, 3)), area=float('nan')),
    ],
)


def test_a_file_counts_as_the_data_set_that_loads_it(tmp_path):
    path = _write(tmp_path / 'train.json', _with_ids(LOADED))
    assert load_class_counts(path).counts.tolist() == [1, 2]
    instances = load_class_counts(path, unit='instance')
    assert instances.counts.tolist() == [1, 4]
    mmdet = pytest.importorskip('mmdet.datasets')
    dataset = mmdet.CocoDataset(
        ann_file=str(path),
        metainfo=dict(classes=('cup', 'urn')),
        data_prefix=dict(img=''),
    )
    for unit, counts in (('image', [1, 2]), ('instance', [1, 4])):
        counted = count_dataset(dataset, unit=unit)
        assert counted.counts.tolist() == counts


@pytest.mark.parametrize('area', [{}, dict(area=None)])
def test_boxes_of_unknown_area_are_counted(tmp_path, area):
    boxes = [_box((0, 7)), _box((1, 7)), _box((1, 3), (5, 5, 0, 20))]
    for box in boxes:
        del box['area']
    content = dict(LOADED, annotations=[dict(box, **area) for box in boxes])
    path = _write(tmp_path / 'train.json', _with_ids(content))
    assert load_class_counts(path).counts.tolist() == [2, 0]


def _with_ids(content):
    annotations = [dict(a, id=i) for i, a in enumerate(content['annotations'])]
    return dict(content, annotations=annotations)


@pytest.mark.parametrize(
    'name, unit, num_classes, total, largest, smallest',
    [
        ('imagenet_lt', 'image', 1000, 115846, 1280, 5),
        ('places_lt', 'image', 365, 62500, 4980, 5),
        ('inaturalist18', 'image', 8142, 437513, 1000, 2),
        ('lvis_v1', 'image', 1203, 360952, 1977, 1),
        ('lvis_v1', 'instance', 1203, 1270141, 50552, 1),
        ('lvis_v0.5', 'instance', 1230, 693958, None, 1),
    ],
)
def test_published_totals(name, unit, num_classes, total, largest, smallest):
    counts = load_class_counts(name, unit=unit)
    assert counts.num_classes == num_classes
    assert counts.counts.sum() == total
    assert counts.counts.min() == smallest
    if largest is not None:
        assert counts.counts.max() == largest


@pytest.mark.parametrize(
    'name, sizes',
    [('lvis_v1', [405, 461, 337]), ('lvis_v0.5', [315, 461, 454])],
)
def test_published_lvis_groups(name, sizes):
    groups = frequency_groups(load_class_counts(name), 'lvis')
    assert list(groups) == ['frequent', 'common', 'rare']
    assert [len(g) for g in groups.values()] == sizes


@pytest.mark.parametrize(
    'name, sizes',
    [
        ('imagenet_lt', [385, 479, 136]),
        ('places_lt', [131, 163, 71]),
        ('inaturalist18', [842, 4076, 3224]),
    ],
)
def test_published_shot_groups(name, sizes):
    groups = frequency_groups(load_class_counts(name))
    assert [len(g) for g in groups.values()] == sizes


def test_ade20k():
    counts = load_class_counts('ade20k')
    assert (counts.unit, counts.num_classes) == ('pixel', 150)
    assert (counts.names[0], counts.counts[0]) == ('wall', 0.1576)
    assert counts.names[149] == 'flag'
    images = load_class_counts('ade20k', unit='image').counts
    assert 0 < images.min() and images.max() <= 20210


@pytest.mark.parametrize(
    'name, cls',
    [('lvis_v1', 'LVISV1Dataset'), ('lvis_v0.5', 'LVISV05Dataset')],
)
def test_lvis_is_in_the_label_order_of_mmdet(name, cls):
    datasets = pytest.importorskip('mmdet.datasets')
    theirs = getattr(datasets, cls).METAINFO['classes']
    ours = load_class_counts(name).names
    differing = [(a, b) for a, b in zip(ours, theirs) if a != b]
    assert len(ours) == len(theirs)
    # mmdet mended one misspelt name of the LVIS file.
    assert differing in (
        [],
        [('speaker_(stero_equipment)', 'speaker_(stereo_equipment)')],
    )


def test_ade20k_is_in_the_label_order_of_mmseg():
    datasets = pytest.importorskip('mmseg.datasets')
    theirs = datasets.ADE20KDataset.METAINFO['classes']
    assert load_class_counts('ade20k').names == tuple(
        name.strip() for name in theirs
    )


@pytest.mark.parametrize('name', BENCHMARKS)
def test_a_changed_figure_is_noticed(name, tmp_path):
    shipped = pkgutil.get_data('lt_losses_mm.priors', f'data/{name}.json')
    content = json.loads(shipped)
    unit = next(iter(content['counts']))
    path = _write(tmp_path / 'copy.json', content)
    untouched = load_class_counts(path)
    assert untouched.counts.tolist() == load_class_counts(name).counts.tolist()
    assert untouched.unit == unit
    content['counts'][unit][3] += 1
    _write(path, content)
    with pytest.raises(ValueError, match='sha256.*Fix: .*'):
        load_class_counts(path)


@pytest.mark.parametrize(
    'bad, words',
    [
        ([3, -1], ['>= 0', '-1', 'class 1']),
        ([3, float('nan')], ['finite', 'nan', 'class 1']),
        ([float('inf'), 3], ['finite', 'inf', 'class 0']),
        ([0, 0], ['above zero', r'\[0, 0\]']),
        ([], ['one number per class', r'\(0,\)']),
        ([[1, 2]], ['one number per class', r'\(1, 2\)']),
        (['a'], ['sequence of numbers', "'a'"]),
        (None, ['shape']),
        ({'cat': 3}, ['order of the labels']),
        ('auto', ['Runner', 'count_dataset']),
        ('lvis', ["write 'lvis_v1'", 'places_lt']),
        ('LVIS_V1', ["write 'lvis_v1'"]),
        ('qwertz', ['inaturalist18', 'path']),
    ],
)
def test_bad_sources(bad, words):
    with pytest.raises(ValueError) as caught:
        load_class_counts(bad)
    for word in ['class_counts=', 'expected', 'Fix: ', *words]:
        assert caught.match(word)


@pytest.mark.parametrize(
    'content, words',
    [
        ('[1, 2', ['valid JSON']),
        ('{"a": 1}', ['only the keys', "'a'"]),
        ('{"counts": {}}', ['only the keys']),
        ('12\nx\n3\n', ['line 2', "'x'"]),
        ('12\n\n3\n', ['line 2']),
        ('', ['one number per class']),
        (dict(categories=[dict(id=1)]), ['image_count in every category']),
        (
            dict(ANNOTATIONS, annotations=[dict(image_id=0, category_id=77)]),
            ['77'],
        ),
        (dict(ANNOTATIONS, annotations=[]), ['above zero']),
        (
            dict(counts=dict(image=[1, 2]), names=['a']),
            ['1 names and 2 counts'],
        ),
    ],
)
def test_bad_files(tmp_path, content, words):
    path = _write(tmp_path / 'bad.json', content)
    with pytest.raises(ValueError) as caught:
        load_class_counts(path)
    for word in ['class_counts=', 'bad.json', 'expected', 'Fix: ', *words]:
        assert caught.match(word)


@pytest.mark.parametrize(
    'encoding', ['utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be']
)
@pytest.mark.parametrize(
    'content, counts',
    [
        ('500\r\n60\r\n3\r\n', [500, 60, 3]),
        ('[500, 60, 3]', [500, 60, 3]),
        (json.dumps(ANNOTATIONS), [1, 2, 0]),
    ],
)
def test_files_of_windows(tmp_path, encoding, content, counts):
    path = tmp_path / 'counts'
    path.write_bytes(content.encode(encoding))
    assert load_class_counts(path).counts.tolist() == counts


def test_arrays(tmp_path):
    np.save(tmp_path / 'c.npy', np.array([500, 60, 3], np.int16))
    counts = load_class_counts(tmp_path / 'c.npy', unit='pixel')
    assert (counts.counts.tolist(), counts.unit) == ([500, 60, 3], 'pixel')


@pytest.mark.parametrize(
    'data, words',
    [
        (pickle.dumps(dict(class_freq=[5, 6])), ['a pickle', 'json.dump']),
        (b'PK\x03\x04rest', ['zip', 'numpy.save']),
        (_npy(np.array([[1, 2]])), ['shape']),
        (_npy(np.array(['a', 'b'])), ['plain numbers']),
        (_npy(np.array([1 + 2j])), ['plain numbers', 'complex128']),
        (_npy(np.array(['2020-01-01'], 'M8[D]')), ['plain numb', 'datetime']),
        (
            _coco(annotations=[dict(image_id=0, category_id=3, id=[1])]),
            ['annotations, each with id'],
        ),
        (_npy(np.array([dict()])), ['array of numbers']),
        ('猫,500\n狗,60'.encode('gbk'), ['UTF-8', 'save it as UTF-8']),
        (b'cat,500\ndog,60', ['line 1', 'names']),
        (b'x' * 10**6, ['line 1']),
        (b'null', ['line 1']),
        (b'[1, null]', ['finite', 'class 1']),
        (b'{"counts": {"cat": 5}}', ["keys 'cat'", '"names": [...]}']),
        (b'{}', ['the keys none']),
        (b'{"counts": 5}', ["keys 'counts'"]),
        (b'{"counts": [1, 2], "names": [null, null]}', ['a list of names']),
        (b'[[1, 2], [3]]', ['plain numbers']),
        (b'["' + b'x' * 10**6 + b'", 2]', ['plain numbers']),
        (b'[{"a": 1}]', ['plain numbers']),
        (b'[1' + b'0' * 400 + b']', ['plain numbers']),
        (b'{"counts": {"image": null}}', ['shape']),
        (b'{"counts": [1, 2], "names": "ab"}', ['list of names']),
        (b'{"counts": [1, 2], "names": ["a"]}', ['1 names and 2 counts']),
        (
            b'{"images": [], "annotations": [{"caption": "a cup"}]}',
            ["'annotations'", 'captions'],
        ),
        (b'{"categories": [null]}', ['categories, each with id']),
        (b'{"categories": [{"name": "a"}]}', ['categories, each with id']),
        (_coco(annotations=None), ['annotations, each with image_id']),
        (_coco(annotations=[{}]), ['annotations, each with image_id']),
        (
            _coco(annotations=[dict(image_id=0)]),
            ['annotations, each with category_id'],
        ),
        (
            _coco(annotations=[dict(image_id=[0], category_id=1)]),
            ['annotations, each with image_id'],
        ),
        (_coco(images=[{}]), ['images, each with id']),
        (
            _coco(annotations=[dict(id=1, image_id=0, segments_info=[])]),
            ['panoptic', 'segments'],
        ),
        (
            _coco(
                annotations=[
                    dict(id=1, image_id=0, category_id=1),
                    dict(id=1, image_id=0, category_id=2),
                ]
            ),
            ['annotations with one id each', 'got 1 more'],
        ),
        (
            _coco(categories=[dict(id=0, name='a'), dict(id=1, name='a')]),
            ['one name', "'a'"],
        ),
        (
            _coco(categories=[dict(id=1, name='a'), dict(id=1, name='b')]),
            ['one id', 'got 1 more'],
        ),
        (
            _coco(
                annotations=[dict(image_id=0, category_id=1, bbox=[1, None])]
            ),
            ["'bbox': [1, None]", "'image_id': 0"],
        ),
        (
            _coco(
                images=[dict(id=0, width=9, height=9)],
                annotations=[dict(image_id='0', category_id=1)],
            ),
            ['images that are not listed', "'1' is not 1"],
        ),
        (
            _coco(
                annotations=[
                    dict(id=5, image_id=0, category_id=1, bbox=None, area=None)
                ]
            ),
            ["'id': 5", "'bbox': None"],
        ),
        (
            _coco(
                annotations=[
                    dict(image_id=0, category_id=i) for i in range(10**5)
                ]
            ),
            ['category_id', 'more is not in categories'],
        ),
    ],
)
def test_other_files_are_one_sentence(tmp_path, data, words):
    path = tmp_path / 'c.txt'
    path.write_bytes(data)
    with pytest.raises(ValueError) as caught:
        load_class_counts(path)
    for word in ('class_counts=', 'c.txt', 'expected', 'Fix: ', *words):
        assert word in str(caught.value)
    assert len(str(caught.value)) < 600 + len(str(path))


@pytest.mark.parametrize('path', ['no/such/file', 'nothing.json', 'no.txt'])
def test_missing_file(path):
    with pytest.raises(FileNotFoundError, match=f"class_counts='{path}'.*Fix"):
        load_class_counts(path)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match='found a folder at /.*Fix: '):
        load_class_counts(tmp_path)


def test_wrong_number():
    with pytest.raises(ValueError, match=r'3 counts.*num_classes=5.*Fix'):
        load_class_counts([1, 2, 3], num_classes=5)
    with pytest.raises(ValueError, match='leave the background out'):
        load_class_counts([1, 2, 3], num_classes=2)


@pytest.mark.parametrize(
    'source, unit',
    [
        ('imagenet_lt', 'pixel'),
        ('lvis_v1', 'pixel'),
        ('ade20k', 'instance'),
        (ClassCounts([1], 'image'), 'instance'),
    ],
)
def test_unit_that_the_source_has_not(source, unit):
    with pytest.raises(ValueError, match=f"count_unit='{unit}'.*image.*Fix"):
        load_class_counts(source, unit=unit)


def test_unknown_unit(tmp_path):
    path = _write(tmp_path / 'a.json', ANNOTATIONS)
    with pytest.raises(ValueError, match="count_unit='pixel'.*Fix"):
        load_class_counts(path, unit='pixel')
    with pytest.raises(ValueError, match="count_unit='box'.*pixel.*Fix"):
        load_class_counts([1, 2], unit='box')


def test_counts_cannot_be_changed():
    source = np.array([1.0, 2.0])
    counts = ClassCounts(source)
    with pytest.raises(ValueError):
        counts.counts[0] = 5
    source[0] = 5
    assert counts.counts[0] == 1


@given(counts_lists, st.floats(0.5, 8), st.randoms())
def test_imbalance_measures(numbers, factor, random):
    counts = ClassCounts(numbers)
    pairs = np.abs(counts.counts[:, None] - counts.counts).sum()
    mean_difference = pairs / (2 * len(numbers) * counts.counts.sum())
    assert counts.gini == pytest.approx(mean_difference, abs=1e-9)
    shuffled = random.sample(numbers, len(numbers))
    scaled = ClassCounts(np.array(shuffled) * factor)
    assert scaled.gini == pytest.approx(counts.gini, abs=1e-9)
    assert counts.imbalance_factor >= 1


@given(
    counts_lists,
    st.sampled_from(['shot', 'lvis']),
    st.one_of(st.none(), st.tuples(st.integers(0, 50), st.integers(50, 500))),
)
def test_groups_part_the_classes(numbers, kind, thresholds):
    groups = frequency_groups(numbers, kind, thresholds)
    members = np.concatenate(list(groups.values()))
    assert sorted(members) == list(range(len(numbers)))
    values = np.array(numbers)
    top, middle, low = (values[g] for g in groups.values())
    bounds = thresholds or ((20, 100) if kind == 'shot' else (11, 100))
    assert (top > bounds[1]).all() and (low < bounds[0]).all()
    assert ((middle >= bounds[0]) & (middle <= bounds[1])).all()


def test_group_borders():
    groups = frequency_groups([101, 100, 20, 19, 0])
    assert [g.tolist() for g in groups.values()] == [[0], [1, 2], [3, 4]]
    groups = frequency_groups([101, 100, 11, 10, 1], 'lvis')
    assert [g.tolist() for g in groups.values()] == [[0], [1, 2], [3, 4]]


def test_bad_groups():
    with pytest.raises(ValueError, match="kind='coco'.*shot, lvis"):
        frequency_groups([1, 2], 'coco')
    with pytest.raises(ValueError, match='thresholds=.*low <= high'):
        frequency_groups([1, 2], thresholds=(9, 3))
    for bad in (100, (1, 2, 3), 'ab', (None, 5)):
        with pytest.raises(ValueError, match='thresholds=.*two numbers.*100'):
            frequency_groups([1, 2], thresholds=bad)


def test_labels_are_positions_in_the_annotation_file(tmp_path):
    """As for mmdet's data sets, whatever the order of the ids."""
    categories = [dict(id=i, name=f'c{i}', image_count=i) for i in (3, 1, 2)]
    path = tmp_path / 'lvis.json'
    path.write_text(json.dumps(dict(categories=categories)))
    counts = load_class_counts(path)
    assert counts.counts.tolist() == [3, 1, 2]
    assert counts.names == ('c3', 'c1', 'c2')
