# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The pixel pass over masks, against mmseg's own LoadAnnotations."""

from __future__ import annotations

import os
import shutil

import mmengine.utils
import numpy as np
import pytest
from mmengine.dataset import RepeatDataset
from torch.utils.data import Subset

import lt_losses_mm.cache
from lt_losses_mm.priors import count_dataset

mmseg = pytest.importorskip('mmseg.datasets')

CLASSES = ('wall', 'sky', 'tree', 'road')


class Streets(mmseg.BaseSegDataset):
    METAINFO = dict(classes=CLASSES)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / 'cache'
    monkeypatch.setenv('LT_LOSSES_MM_CACHE', str(folder))
    return folder


@pytest.fixture
def root(tmp_path):
    """Three images with masks of the values 0 to 4 and 255."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for folder in ('img', 'ann'):
        (tmp_path / folder).mkdir()
    for index in range(3):
        # The last mask lacks the values from 3 on.
        values = [0, 1, 2, 3, 4, 255] if index < 2 else [0, 1, 2, 255]
        mask = rng.choice(values, (6 + index, 9)).astype(np.uint8)
        Image.fromarray(mask).save(tmp_path / f'ann/{index}.png')
        (tmp_path / f'img/{index}.jpg').touch()
    return tmp_path


def build(root, cls=Streets, **options):
    options = dict(
        dict(
            data_root=str(root),
            data_prefix=dict(img_path='img', seg_map_path='ann'),
            reduce_zero_label=True,
        ),
        **options,
    )
    return cls(**options)


def load_all(dataset):
    """Every mask, as the host's transform gives it."""
    load = mmseg.transforms.LoadAnnotations()
    return [
        load(dataset.get_data_info(i))['gt_seg_map']
        for i in range(len(dataset))
    ]


def expected(dataset, unit, num_classes):
    loaded = load_all(dataset)
    per_mask = np.array(
        [
            [(mask == label).sum() for label in range(num_classes)]
            for mask in loaded
        ]
    )
    return (per_mask if unit == 'pixel' else per_mask > 0).sum(0).tolist()


@pytest.mark.parametrize('unit', ['pixel', 'image'])
@pytest.mark.parametrize(
    'pipeline',
    [
        [],
        [
            dict(type='mmseg.LoadImageFromFile'),
            dict(type='mmseg.LoadAnnotations', imdecode_backend='cv2'),
        ],
    ],
)
def test_reduce_zero_label(root, unit, pipeline, capsys):
    dataset = build(root, pipeline=pipeline)
    counts = count_dataset(dataset, unit=unit)
    assert counts.counts.tolist() == expected(dataset, unit, 4)
    assert (counts.unit, counts.names) == (unit, CLASSES)
    assert '3/3' in capsys.readouterr().out


class LoadSomeAnnotations:
    """A loader of the user, of any type and memory layout."""

    def __init__(self, dtype):
        self.dtype = dtype

    def __call__(self, results):
        results = mmseg.transforms.LoadAnnotations()(results)
        mask = results['gt_seg_map'].astype(self.dtype)[::-1].T
        return dict(results, gt_seg_map=mask)


@pytest.mark.parametrize(
    'dtype', ['uint8', 'uint16', 'uint32', 'int16', 'int32', 'int64']
)
def test_masks_of_any_integer_type(root, dtype):
    dataset = build(root)
    dataset.pipeline.transforms = [LoadSomeAnnotations(dtype)]
    counts = count_dataset(dataset).counts
    assert counts.tolist() == expected(dataset, 'pixel', 4)


def test_default_unit_is_the_pixel(root, capsys):
    assert count_dataset(build(root), progress=False).unit == 'pixel'
    assert '3/3' not in capsys.readouterr().out


@pytest.mark.parametrize('reduce', [True, False])
def test_label_map(root, reduce):
    # Drops a class and swaps two; without reduce_zero_label, the value 4 has
    # no class and is to be ignored.
    if not reduce:
        from PIL import Image

        for path in (root / 'ann').iterdir():
            mask = np.array(Image.open(path))
            mask[mask == 4] = 255
            Image.fromarray(mask).save(path)
    dataset = build(
        root,
        metainfo=dict(classes=('road', 'wall', 'sky')),
        reduce_zero_label=reduce,
    )
    assert dataset.label_map is not None
    counts = count_dataset(dataset)
    assert counts.counts.tolist() == expected(dataset, 'pixel', 3)
    assert counts.names == ('road', 'wall', 'sky')


def test_ignore_index(root):
    dataset = build(
        root,
        metainfo=dict(classes=CLASSES),
        reduce_zero_label=False,
        ignore_index=4,
    )
    # 255 is now neither a class nor ignored.
    with pytest.raises(
        ValueError,
        match=r"class_counts='auto'.*ignore_index=4.*\.png, got 255.*Fix",
    ):
        count_dataset(dataset)
    with pytest.raises(ValueError, match=r'0 to 3 .*got 4.*Fix.*reduce_zero'):
        count_dataset(build(root, reduce_zero_label=False))
    five = type(
        'Five',
        (mmseg.BaseSegDataset,),
        dict(METAINFO=dict(classes=(*CLASSES, 'car'))),
    )
    dataset = build(root, five, reduce_zero_label=False)
    assert count_dataset(dataset).counts.tolist() == expected(
        dataset, 'pixel', 5
    )


def test_ade20k(root):
    dataset = build(root, mmseg.ADE20KDataset)
    counts = count_dataset(dataset)
    assert counts.num_classes == 150
    assert counts.counts.tolist() == expected(dataset, 'pixel', 150)


def test_through_wrappers(root):
    dataset = build(root)
    once = np.array(expected(dataset, 'pixel', 4))
    assert (
        count_dataset(RepeatDataset(dataset, 3)).counts.tolist()
        == (3 * once).tolist()
    )
    first, _, last = (
        np.bincount(m.ravel(), minlength=256)[:4] for m in load_all(dataset)
    )
    assert (
        count_dataset(Subset(dataset, [0, 2, 2])).counts.tolist()
        == (first + 2 * last).tolist()
    )


def test_only_drawn_masks_are_read(root):
    dataset = build(root)
    (root / 'ann/1.png').unlink()
    assert count_dataset(Subset(dataset, [0])).counts.sum() > 0
    with pytest.raises(FileNotFoundError, match=r'ann/1\.png'):
        count_dataset(dataset)


@pytest.fixture
def passes(monkeypatch):
    """The number of masks of every pass over files."""
    found = []

    class Counted(mmengine.utils.ProgressBar):
        def __init__(self, task_num, **kwargs):
            found.append(task_num)
            super().__init__(task_num, **kwargs)

    monkeypatch.setattr(mmengine.utils, 'ProgressBar', Counted)
    return found


def test_cache(root, cache, passes):
    dataset = build(root)
    first = count_dataset(dataset)
    assert len(list(cache.glob('pixels-*.npz'))) == 1
    # The second time no mask is opened, whatever the unit or the wrapper.
    for again in (build(root), RepeatDataset(build(root), 2)):
        counts = count_dataset(again).counts / (len(again) / 3)
        assert counts.tolist() == first.counts.tolist()
    assert count_dataset(build(root), unit='image').counts.tolist() == (
        expected(dataset, 'image', 4)
    )
    assert passes == [3]
    assert len(list(cache.iterdir())) == 1


def test_cache_key_knows_the_data_and_the_options(root, passes):
    before = count_dataset(build(root)).counts
    count_dataset(Subset(build(root), [0, 1]))
    count_dataset(build(root, metainfo=dict(classes=CLASSES[::-1])))
    assert passes == [3, 2, 3]
    shutil.copy(root / 'ann/2.png', root / 'ann/0.png')
    os.utime(root / 'ann/0.png', ns=(1, 1))
    dataset = build(root)
    after = count_dataset(dataset).counts
    assert passes == [3, 2, 3, 3]
    assert after.tolist() == expected(dataset, 'pixel', 4) != before.tolist()


def test_cache_that_cannot_be_written(
    root, passes, tmp_path, monkeypatch, caplog
):
    (tmp_path / 'file').touch()
    (tmp_path / 'spare').mkdir()
    monkeypatch.setenv('LT_LOSSES_MM_CACHE', str(tmp_path / 'file/cache'))
    monkeypatch.setattr(
        lt_losses_mm.cache.tempfile, 'tempdir', str(tmp_path / 'spare')
    )
    dataset = build(root)
    for _ in range(2):
        counts = count_dataset(dataset)
        assert counts.counts.tolist() == expected(dataset, 'pixel', 4)
    assert passes == [3]
    assert "file/cache', expected a folder that can be written" in caplog.text


def test_full_disk(root, passes, cache, monkeypatch, caplog):
    def full(file, **arrays):
        file.write(b'half')
        raise OSError('disk full')

    monkeypatch.setattr(np, 'savez_compressed', full)
    dataset = build(root)
    for _ in range(2):
        counts = count_dataset(dataset)
        assert counts.counts.tolist() == expected(dataset, 'pixel', 4)
    assert passes == [3, 3]
    assert 'could not be kept' in caplog.text
    assert not list(cache.iterdir())


def test_user_cache_folder(root, tmp_path, monkeypatch):
    monkeypatch.delenv('LT_LOSSES_MM_CACHE')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
    count_dataset(build(root))
    assert len(list((tmp_path / 'xdg/lt_losses_mm').glob('*.npz'))) == 1


def test_semantic_masks_of_mmdet(root):
    mmdet = pytest.importorskip('mmdet.datasets')
    cls = type(
        'Masks', (mmdet.BaseSegDataset,), dict(METAINFO=dict(classes=CLASSES))
    )
    load = dict(
        type='mmdet.LoadAnnotations',
        with_bbox=False,
        with_seg=True,
        reduce_zero_label=True,
    )
    options = dict(
        data_root=str(root),
        data_prefix=dict(img_path='img', seg_map_path='ann'),
    )
    counts = count_dataset(cls(**options, pipeline=[load]))
    assert counts.counts.tolist() == expected(build(root), 'pixel', 4)
    with pytest.raises(ValueError, match='LoadAnnotations.*Masks.*Fix'):
        count_dataset(cls(**options))
