# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Which class a label is: compared between data sets, files and counts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from mmengine.dataset import BaseDataset, RepeatDataset
from torch.utils.data import ConcatDataset as TorchConcat

from lt_losses_mm.priors import (
    ClassCounts,
    class_names,
    count_dataset,
    empty_classes,
    joined,
    same_labels,
)
from lt_losses_mm.priors import names as names_module


class Labels(BaseDataset):
    def __init__(self, names, labels=(0, 0, 1), **kwargs):
        self.labels = labels
        metainfo = {} if names is None else dict(classes=names)
        super().__init__(metainfo=metainfo, serialize_data=False, **kwargs)

    def load_data_list(self):
        return [dict(gt_label=label) for label in self.labels]


def _warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.levelname == 'WARNING']


# ------------------------------------------------------------- empty classes
def test_empty_classes_are_named():
    counts = ClassCounts([0, 4, 0], 'instance', ('cat', 'dog', 'owl'))
    told = empty_classes(counts)
    assert told.startswith('2 of 3 classes have no training sample')
    for words in ('instance', "'cat', 'owl'", 'metainfo.classes'):
        assert words in told
    assert 'ignored' not in told
    assert empty_classes(ClassCounts([1, 2])) is None


def test_empty_classes_are_told_with_what_was_ignored():
    told = empty_classes(ClassCounts([0, 4], 'pixel', ignored=0.25))
    for words in ('pixel', '(25 %', ': 0;', 'ignore_index'):
        assert words in told


def test_causes_of_empty_classes_fit_folders():
    told = empty_classes(ClassCounts([5, 0], source='CustomDataset'))
    for words in ('folders spell otherwise', 'suffix that is read'):
        assert words in told


def test_the_first_ten_are_named():
    names = tuple(f'class{i}' for i in range(1000))
    told = empty_classes(ClassCounts([0] * 999 + [1], names=names))
    assert "'class9' and 989 more" in told
    assert 'class10' not in told and len(told) < 600


# ------------------------------------------------------------------ data sets
def test_names_of_wrapped_data():
    part = Labels(('a', 'b'))
    assert class_names(RepeatDataset(part, 3)) == ('a', 'b')
    both = TorchConcat([RepeatDataset(part, 3), Labels(('a', 'b'))])
    assert class_names(both) == ('a', 'b')
    assert class_names(Labels(None)) is None
    assert class_names(TorchConcat([Labels(None), part])) == ('a', 'b')


@pytest.mark.parametrize(
    'others, words',
    [
        (('b', 'a'), "'a' 0 / 1, 'b' 1 / 0"),
        (('b', 'c'), "'b' 1 / 0"),
        (('x', ' A'), "'a' 0 / 1"),
        (('c', 'b', 'a'), "'a' 0 / 2"),
    ],
)
def test_one_class_with_two_labels(others, words):
    both = TorchConcat([Labels(('a', 'b')), Labels(others)])
    with pytest.raises(ValueError) as caught:
        count_dataset(both)
    for word in ('metainfo.classes', 'Labels', words, 'Fix: '):
        assert word in str(caught.value)


def test_another_spelling_of_the_same_label_is_no_fault(caplog):
    both = TorchConcat([Labels(('Cat', 'a_b')), Labels(('cat', 'a b'))])
    assert count_dataset(both).names == ('Cat', 'a_b')
    assert not _warnings(caplog)


def test_other_names_of_the_same_labels_are_told(caplog):
    both = TorchConcat([Labels(('cat', 'dog')), Labels(('cat', 'wolf'))])
    assert count_dataset(both).counts.tolist() == [4, 2]
    (told,) = _warnings(caplog)
    assert "1: 'dog' and 'wolf'" in told and 'by position' in told


@pytest.mark.parametrize('other', ['class 2', 'klass 1', 'plass 11', 'x'])
def test_names_that_are_close_are_other_names(caplog, other):
    same_labels(('class 1', 'a'), f'data of {other}', (other, 'a'), 'y')
    assert f"0: 'class 1' and {other!r}" in _warnings(caplog)[0]


def test_a_slip_of_the_pen_is_no_news(caplog):
    names = (('speaker_(stero_equipment)',), ('speaker_(stereo_equipment)',))
    same_labels(names[0], 'the file', names[1], 'the data set')
    assert not _warnings(caplog)


def test_parts_with_further_classes():
    both = TorchConcat([Labels(('a', 'b')), Labels(('a', 'b', 'c'))])
    assert class_names(both) == ('a', 'b', 'c')
    with pytest.raises(ValueError, match="the 3 classes.*Labels lacks 'c'"):
        count_dataset(both)


def test_case_that_tells_classes_apart():
    same_labels(('A', 'a', 'b'), 'x', ('A', 'a', 'b'), 'y')
    with pytest.raises(ValueError, match="'A' 0 / 1, 'a' 1 / 0"):
        same_labels(('A', 'a', 'b'), 'x', ('a', 'A', 'b'), 'y')


def test_a_comma_is_missing():
    for names in ('kiln', 'k'):
        with pytest.raises(ValueError) as caught:
            count_dataset(Labels(names, (0,)))
        for words in ('metainfo.classes', 'comma', f'({names!r},)'):
            assert words in str(caught.value)


# ----------------------------------------------------------- counts with names
COUNTS = ClassCounts([9, 5, 1], names=('cat', 'dog', 'owl'), source='c.json')


def test_counts_are_joined_by_name(caplog):
    found = joined(COUNTS, ('owl', 'Cat', 'dog'), 'the data')
    assert found.counts.tolist() == [1, 9, 5]
    assert found.names == ('owl', 'Cat', 'dog')
    assert (found.unit, found.source) == ('image', 'c.json')
    (told,) = _warnings(caplog)
    for words in ("class_counts='c.json'", 'order', "'cat' 0 / 1"):
        assert words in told


def test_letters_with_accents_are_one_or_two_characters():
    counts = ClassCounts([1, 9], names=('caf\u00e9', 'bar'), source='c.json')
    found = joined(counts, ('bar', 'cafe\u0301'), 'the data')
    assert found.counts.tolist() == [9, 1]


def test_counts_of_further_classes_are_left_out(caplog):
    caplog.set_level('INFO')
    names_module._say_once.cache_clear()
    for _ in range(2):
        found = joined(COUNTS, ('owl', 'cat'), 'the data')
        assert found.counts.tolist() == [1, 9]
        assert found.names == ('owl', 'cat')
    (told,) = [r.getMessage() for r in caplog.records]
    for words in ("class_counts='c.json'", "1 are left out ('dog')"):
        assert words in told
    # One of a name that is not asked for may be there twice.
    counts = ClassCounts([9, 5, 1], names=('cat', 'cat', 'owl'))
    assert joined(counts, ['owl'], 'the data').counts.tolist() == [1]


@pytest.mark.parametrize('names', [None, COUNTS.names, list(COUNTS.names)])
def test_nothing_to_join(names, caplog):
    assert joined(COUNTS, names, 'the data') is COUNTS
    bare = ClassCounts([9, 5, 1])
    assert joined(bare, ('x', 'y', 'z'), 'the data') is bare
    assert not _warnings(caplog)


@pytest.mark.parametrize(
    'names, words',
    [
        (('cat', 'emu'), ["missing: 'emu'", "among them: 'dog', 'owl'"]),
        (('cat', 'cat'), ['one count for each of the 2 classes']),
        (('cat', 'dog', 'owl', 'emu'), ["missing: 'emu'"]),
        (('dog', 'owl', 'emu'), ["missing: 'emu'", "among them: 'cat'"]),
    ],
)
def test_counts_of_other_classes(names, words):
    with pytest.raises(ValueError) as caught:
        joined(COUNTS, names, 'the data')
    for word in ("class_counts='c.json'", 'the data', 'Fix: ', *words):
        assert word in str(caught.value)


def test_counts_whose_names_are_doubled_are_not_joined():
    counts = ClassCounts([9, 5, 1], names=('cat', 'cat', 'owl'))
    with pytest.raises(ValueError, match='class_counts='):
        joined(counts, ('owl', 'cat', 'cat'), 'the data')


def test_counts_with_other_names_are_taken_by_position(caplog):
    found = joined(COUNTS, ('cat', 'dog', 'Eule'), 'the data')
    assert found.counts.tolist() == [9, 5, 1]
    assert "2: 'owl' and 'Eule'" in _warnings(caplog)[0]


def test_messages_stay_short():
    names = tuple(f'class {i}' for i in range(5000))
    counts = ClassCounts(np.ones(5000), names=names)
    with pytest.raises(ValueError) as caught:
        joined(counts, ('emu', *names[2:]), 'the data')
    assert len(str(caught.value)) < 600
    with pytest.raises(ValueError) as caught:
        same_labels(names, 'x', names[::-1], 'y')
    assert 'and 4990 more' in str(caught.value)
    assert len(str(caught.value)) < 1000


# ---------------------------------------------------------------- COCO and VOC
@pytest.fixture
def coco(tmp_path):
    datasets = pytest.importorskip('mmdet.datasets')

    def make(
        names,
        classes,
        boxes=(0, 0, 1),
        kind='CocoDataset',
        ids=None,
        **kwargs,
    ):
        ids = ids or [3 * i + 1 for i in range(len(names))]
        path = tmp_path / f'{len(list(tmp_path.iterdir()))}.json'
        content = dict(
            # Not the list of the categories, but its key.
            info=dict(categories=[1, 2]),
            images=[
                dict(id=i, width=64, height=64, file_name=f'{i}.jpg')
                for i in range(len(boxes))
            ],
            annotations=[
                dict(
                    id=i,
                    image_id=i,
                    category_id=ids[k],
                    bbox=[2, 2, 30, 30],
                    area=900,
                    iscrowd=0,
                )
                for i, k in enumerate(boxes)
            ],
            categories=[dict(id=i, name=n) for i, n in zip(ids, names)],
        )
        path.write_text(json.dumps(content, ensure_ascii=False))
        return getattr(datasets, kind)(
            ann_file=str(path),
            metainfo=dict(classes=classes),
            data_prefix=dict(img=''),
            **kwargs,
        )

    return make


def test_labels_follow_the_file(coco, caplog):
    """The data set filters the categories by name, in the file's order."""
    dataset = coco(('猫', 'dog', 'owl'), ('owl', '猫', 'dog'), (0, 0, 1, 2))
    counts = count_dataset(dataset)
    assert counts.names == ('猫', 'dog', 'owl')
    assert counts.counts.tolist() == [2, 1, 1]
    (told,) = _warnings(caplog)
    assert 'another order' in told and "'owl' 0 / 2" in told
    part = coco(('cat', 'dog', 'owl'), ('cat', 'owl'), (0, 0, 2))
    assert count_dataset(part).names == ('cat', 'owl')


def test_all_names_are_misspelt(coco):
    """Without a category there are no labels, and every count is zero."""
    with pytest.raises(ValueError, match=r"lacks 'a', 'b'.*\('A', 'B'\)"):
        count_dataset(coco(('A', 'B'), ('a', 'b')))
    with pytest.raises(ValueError, match=r"=\(1, 2\), .*\('1', '2'\)"):
        count_dataset(coco(('1', '2'), (1, 2)))
    # Such as those of COCO, which are the data set's own.
    with pytest.raises(
        ValueError, match=r"none of.*the file \('hen', 'owl'\)"
    ):
        count_dataset(coco(('hen', 'owl'), ('person', 'bicycle')))


def lvis(coco, names, classes, boxes):
    """As LVISV1Dataset numbers its labels: by the categories of the file."""
    from mmdet.datasets import LVISV1Dataset

    dataset = coco(names, names, boxes)
    dataset.__class__ = type('LVIS', (LVISV1Dataset,), {})
    dataset._metainfo['classes'] = classes
    return dataset


@pytest.mark.parametrize(
    'names, classes, words',
    [
        ('root a b c', 'a b c', "not in metainfo.classes: 'root'"),
        ('c a b', 'a b q', "'c'; in metainfo.classes alone: 'q'; places in"),
        ('a b c', 'b c q', 'num_classes=3'),
    ],
)
def test_lvis_has_the_labels_of_its_file(coco, names, classes, words):
    names, classes = tuple(names.split()), tuple(classes.split())
    dataset = lvis(coco, names, classes, (1, 1, 2))
    with pytest.raises(ValueError) as caught:
        count_dataset(dataset)
    for word in (words, '.json', 'classes=(...)) with all these names in '):
        assert word in str(caught.value)


def test_lvis_with_the_names_of_its_file(coco, caplog):
    dataset = lvis(coco, ('c', 'a', 'b'), ('a', 'b', 'c'), (0, 0, 1))
    counts = count_dataset(dataset)
    assert counts.names == ('c', 'a', 'b')
    assert counts.counts.tolist() == [2, 1, 0]
    assert 'another order' in caplog.text
    other = lvis(coco, ('c', 'a', 'b'), ('c', 'a', 'q'), (0, 0, 1))
    assert count_dataset(other).counts.tolist() == [2, 1, 0]
    assert "2: 'q' and 'b'" in caplog.text


def test_stock_names_of_coco(coco, caplog):
    """Whoever forgets metainfo has the 80 names of the data set itself."""
    from mmdet.datasets import CocoDataset

    stock = CocoDataset.METAINFO['classes']
    with pytest.raises(
        ValueError,
        match=r"only 'person', 'car' of them.*write metainfo=dict\(classes="
        r".*\('person', 'car', 'drone'\)",
    ):
        count_dataset(coco(('person', 'car', 'drone'), stock))
    helmets = coco(('person', 'helmet', 'vest'), stock, (0, 1, 2))
    assert count_dataset(helmets).counts.tolist() == [1] + 79 * [0]
    assert "left out ('helmet', 'vest')" in caplog.text
    assert "of the file ('person', 'helmet', 'vest')" in caplog.text
    helmets._metainfo['CLASSES'] = ('person', 'helmet', 'vest')
    for dataset in (RepeatDataset(helmets, 2), TorchConcat([helmets])):
        with pytest.raises(ValueError, match="write 'classes' instead of 'CL"):
            class_names(dataset)


@pytest.mark.parametrize(
    'classes, words',
    [
        (('a', 'b', ''), 'a blank one at place 2. Fix: delete'),
        (('\ufeffa', 'b', 'c'), 'save the file of names as UTF-8 without'),
        (('a', 'b', 'a'), "each class once, got 'a' several times"),
    ],
)
def test_what_is_no_name(classes, words):
    with pytest.raises(ValueError, match=words):
        class_names(Labels(classes))


def test_imagenet_has_two_cranes():
    class Stock(Labels):
        METAINFO = dict(classes=('crane', 'crane'))

    assert class_names(Stock(None)) == ('crane', 'crane')


# ----------------------------------------------- files of MMEngine's own form
@pytest.mark.parametrize('form', ['classes', 'categories'])
def test_names_beside_the_labels(tmp_path, caplog, form):
    names = ('a', 'b', 'c')
    metainfo = dict(
        classes=names,
        categories=[
            dict(id=i, category_name=name) for i, name in enumerate(names)
        ][::-1],
    )
    path = tmp_path / f'{form}.json'
    labels = [[0], [0, 1], [0], [2]]
    content = dict(
        metainfo={form: metainfo[form]},
        data_list=[dict(gt_label=label) for label in labels],
    )
    path.write_text(json.dumps(content))

    def make(classes):
        metainfo = dict(classes=classes)
        return BaseDataset(
            str(path), metainfo, data_prefix={}, serialize_data=False
        )

    assert count_dataset(make(names)).counts.tolist() == [3, 1, 1]
    assert not _warnings(caplog)
    counts = count_dataset(make(('c', 'b', 'a')))
    assert counts.names == names and counts.counts.tolist() == [3, 1, 1]
    assert "'c' 0 / 2" in _warnings(caplog)[0]
    with pytest.raises(ValueError, match="not in metainfo.classes: 'a'"):
        count_dataset(make(('c', 'b', 'x')))


@pytest.mark.parametrize(
    'classes', [('cat', 'cat', 'dog'), ['cat', 'dog'] * 2]
)
def test_a_name_that_metainfo_has_twice(coco, classes):
    with pytest.raises(ValueError, match="each class once, got 'cat'"):
        count_dataset(coco(('cat', 'dog'), classes))


def test_no_name_in_metainfo_means_all(coco):
    counts = count_dataset(coco(('cat', 'dog'), (), (0, 0, 1)))
    assert counts.counts.tolist() == [2, 1]
    assert counts.names == ('cat', 'dog')


@pytest.mark.parametrize('misspelt', ['tuned', 'Turned'])
def test_a_name_that_the_file_lacks(coco, misspelt):
    dataset = coco(('slate', 'turned', 'flat'), ('slate', misspelt, 'flat'))
    with pytest.raises(ValueError) as caught:
        count_dataset(dataset)
    for words in (f"lacks '{misspelt}'", "('turned')", '.json', 'Fix: '):
        assert words in str(caught.value)


def test_the_last_classes_may_be_missing(coco):
    """No label is shifted, unless the name was meant to be there."""
    counts = count_dataset(coco(('car', 'bus'), ('car', 'bus', 'van')))
    assert counts.names == ('car', 'bus', 'van')
    assert counts.counts.tolist() == [2, 1, 0]
    with pytest.raises(ValueError, match="lacks 'lorri'"):
        count_dataset(coco(('car', 'bus', 'lorry'), ('car', 'bus', 'lorri')))


def test_a_doubled_name(coco):
    dataset = coco(('fish', 'fish', 'net'), ('fish', 'net'), ids=[0, 1, 2])
    with pytest.raises(ValueError) as caught:
        count_dataset(dataset)
    for words in ("several ids for 'fish'", '3 labels for 2', '.json'):
        assert words in str(caught.value)


def test_two_files_with_different_orders(coco, caplog):
    from mmdet.datasets import ConcatDataset

    names = ('cat', 'dog')
    one, two = coco(names, names), coco(('dog', 'cat'), names)
    with pytest.raises(ValueError, match="'cat' 0 / 1, 'dog' 1 / 0"):
        count_dataset(ConcatDataset([one, two]))


def test_metainfo_that_is_a_list(coco):
    from mmdet.datasets import ConcatDataset

    one, two = (coco(('cat', 'dog'), ('cat', 'dog')) for _ in range(2))
    one._metainfo['palette'] = [(1, 1, 1), (2, 2, 2)]
    both = ConcatDataset([one, two])
    assert isinstance(both.metainfo, list)
    counts = count_dataset(RepeatDataset(dict(type=lambda: both), 2))
    assert counts.counts.tolist() == [8, 4]
    assert counts.names == ('cat', 'dog')


@pytest.fixture
def voc(tmp_path):
    datasets = pytest.importorskip('mmdet.datasets')
    (tmp_path / 'Annotations').mkdir()
    for i, name in enumerate(('dog', 'Dog', 'cat', 'horse')):
        (tmp_path / f'Annotations/{i}.xml').write_text(
            '<annotation><size><width>64</width><height>64</height></size>'
            f'<object><name>{name}</name><bndbox><xmin>2</xmin><ymin>2</ymin>'
            '<xmax>30</xmax><ymax>30</ymax></bndbox></object></annotation>'
        )
    (tmp_path / 'train.txt').write_text('0\n1\n2\n3\n')
    dataset = datasets.VOCDataset(
        data_root=str(tmp_path),
        ann_file='train.txt',
        data_prefix=dict(sub_data_root='VOC2007/'),
        metainfo=dict(classes=('cat', 'dog')),
        lazy_init=True,
    )
    dataset.data_prefix = dict(sub_data_root=str(tmp_path))
    return dataset


def test_names_of_voc_in_another_case(voc, caplog):
    assert count_dataset(voc).counts.tolist() == [1, 1]
    (told,) = [w for w in _warnings(caplog) if 'spelt' in w]
    assert "'Dog' (class 'dog', 1x)" in told and 'horse' not in told


def test_objects_of_voc_that_no_class_has(voc, caplog):
    """Also those that a filter takes with their images."""
    caplog.set_level('INFO')
    voc._metainfo['classes'] = ('cat', 'dog', 'hors')
    voc.filter_cfg = dict(filter_empty_gt=True)
    assert count_dataset(voc).counts.tolist() == [1, 1, 0]
    assert "'horse' (class 'hors', 1x)" in caplog.text
    voc._metainfo['classes'] = ('cat', 'Dog')
    names_module._read.clear()
    assert class_names(voc) == ('cat', 'Dog')
    assert "none of metainfo.classes: 'horse' (1x)" in caplog.text


def test_no_name_of_voc_is_a_class(voc, caplog):
    """As where somebody's own data have the data set's own names."""
    voc._metainfo['classes'] = ('aeroplane', 'bicycle')
    with pytest.raises(ValueError, match='has none'):
        count_dataset(voc)
    (told,) = _warnings(caplog)
    assert "names of the files ('Dog', 'cat', 'dog', 'horse')" in told


def test_other_ranks_do_not_read_the_files_of_voc(voc, monkeypatch):
    read = []
    monkeypatch.setattr(names_module, '_object_names', read.append)
    distributed = names_module.distributed
    monkeypatch.setattr(distributed, 'is_initialized', lambda: True)
    monkeypatch.setattr(distributed, 'get_rank', lambda: 1)
    assert class_names(voc) == ('cat', 'dog')
    assert not read


def test_boxes_that_are_ignored_are_a_share(coco):
    dataset = coco(('cat', 'dog'), ('cat', 'dog'), (0, 0, 0, 1))
    assert count_dataset(dataset).ignored == 0
    for info in (0, 1, 2):
        dataset = _ignore(dataset, info)
    counts = count_dataset(dataset, unit='image')
    assert counts.ignored == 0.75
    assert '75 %' in empty_classes(counts)


def _ignore(dataset, index):
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    for instance in infos[index]['instances']:
        instance['ignore_flag'] = 1
    dataset.serialize_data, dataset.data_list = False, infos
    return dataset


# --------------------------------------------------------------------- folders
@pytest.fixture
def folders(tmp_path):
    datasets = pytest.importorskip('mmpretrain.datasets')

    def make(*names, **kwargs):
        root = tmp_path / '-'.join(names)
        for name in names:
            (root / name).mkdir(parents=True)
            (root / name / 'a.jpg').write_bytes(b'')
        return datasets.CustomDataset(data_root=str(root), **kwargs)

    return make


@pytest.mark.parametrize(
    'name', ['.ipynb_checkpoints', '__MACOSX', '@eaDir', '$RECYCLE.BIN']
)
def test_a_folder_of_the_system_is_no_class(folders, name):
    with pytest.raises(ValueError) as caught:
        count_dataset(folders('cat', 'dog', name))
    for words in (repr(name), 'delete that folder'):
        assert words in str(caught.value)
    with pytest.raises(ValueError, match='delete that folder'):
        folders('owl', name, metainfo=dict(classes=('owl',)))


def test_folders_that_are_not_as_many_as_the_classes(folders):
    """The host raises an AssertionError, which counts them."""
    with pytest.raises(ValueError, match="not in metainfo.classes: 'b'; .*re"):
        folders('a', 'b', 'c', metainfo=dict(classes=('a', 'c')))
    with pytest.raises(ValueError, match="names of folders in .*lacks 'd'"):
        folders('a', 'e', metainfo=dict(classes=('a', 'd', 'e')))


def test_folders_without_an_image(folders):
    dataset = folders('cat', 'dog', 'notes')
    assert names_module.empty_folders(RepeatDataset(dataset, 2)) == []
    Path(dataset.img_prefix, 'notes/a.jpg').unlink()
    dataset = type(dataset)(data_root=dataset.img_prefix)
    assert names_module.empty_folders(RepeatDataset(dataset, 2)) == ['notes']


# ------------------------------------------------------------- nothing is left
def test_no_box_is_left(coco):
    filtered = dict(filter_cfg=dict(filter_empty_gt=True))
    with pytest.raises(ValueError, match=r"names of the file \('hen', 'owl'"):
        coco(('hen', 'owl'), ('person', 'bicycle'), **filtered)
    with pytest.raises(
        ValueError,
        match=r"but none is left.*filter_empty_gt.*'hen', 'owl', and .*'emu'",
    ) as caught:
        coco(('hen', 'owl', 'emu'), ('hen', 'owl'), (2, 2), **filtered)
    assert 'at least one array' in str(caught.value.__cause__)


def test_no_object_is_left(voc):
    voc._metainfo['classes'] = ('a', 'b')
    voc.filter_cfg = dict(filter_empty_gt=True)
    with pytest.raises(ValueError, match="XML files have 'Dog', 'cat', 'dog"):
        voc.full_init()


def test_no_mask_is_left(tmp_path):
    datasets = pytest.importorskip('mmseg.datasets')
    (tmp_path / 'a.png').write_bytes(b'')
    with pytest.raises(ValueError, match="write img_suffix='.png'"):
        datasets.BaseSegDataset(
            data_prefix=dict(img_path=str(tmp_path), seg_map_path=''),
            metainfo=dict(classes=('a', 'b')),
        )


def test_no_line_is_left(tmp_path):
    datasets = pytest.importorskip('mmpretrain.datasets')
    path = tmp_path / 'train.txt'
    path.write_text('')
    with pytest.raises(ValueError, match='train.txt.*fill that file'):
        datasets.CustomDataset(ann_file=str(path), data_root=str(tmp_path))


def test_other_errors_of_a_data_set_stay(tmp_path):
    class Broken(BaseDataset):
        def load_data_list(self):
            raise ValueError('mine')

    with pytest.raises(ValueError, match='^mine$'):
        Broken()


def test_names_of_folders(folders, caplog):
    assert class_names(folders('10', '9', '1')) == ('1', '10', '9')
    named = folders('n1', 'n2', metainfo=dict(classes=('cat', 'dog')))
    assert class_names(named) == ('cat', 'dog')
    assert not _warnings(caplog)
    swapped = folders('cat', 'dog', metainfo=dict(classes=('dog', 'cat')))
    assert class_names(swapped) == ('cat', 'dog')
    assert 'another order' in _warnings(caplog)[0]
