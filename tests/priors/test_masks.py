# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The pixel pass over masks, against mmseg's own LoadAnnotations."""

from __future__ import annotations

import os
import shutil

import mmcv.transforms as mmcv
import mmengine.utils
import numpy as np
import pytest
from mmengine.dataset import RepeatDataset
from PIL import Image
from torch.utils.data import Subset

import lt_losses_mm.cache
from lt_losses_mm.priors import (
    count_dataset,
    empty_classes,
    masks,
    natural_counts,
)
from lt_losses_mm.priors.masks import StrayLabelError

mmseg = pytest.importorskip('mmseg.datasets')

CLASSES = ('wall', 'sky', 'tree', 'road')


class Streets(mmseg.BaseSegDataset):
    METAINFO = dict(classes=CLASSES)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / 'cache'
    monkeypatch.setenv('LT_LOSSES_MM_CACHE', str(folder))
    masks._counted.clear()
    return folder


@pytest.fixture
def root(tmp_path):
    """Three images with masks of the values 0 to 4 and 255."""
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
def test_reduce_zero_label(root, unit, pipeline, capsys, monkeypatch):
    monkeypatch.setattr('sys.stdout.isatty', lambda: True)
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
    # What the data set says rules nothing; mmseg passes on the head's value.
    dataset = build(
        root,
        metainfo=dict(classes=CLASSES),
        reduce_zero_label=False,
        ignore_index=4,
    )
    pixels = [
        sum((mask == label).sum() for mask in load_all(dataset))
        for label in range(256)
    ]
    total = sum(pixels)
    for ignored, stray in ((4, 255), (255, 4)):
        share = f'{100 * pixels[stray] / total:.3g}'
        with pytest.raises(
            StrayLabelError,
            match=rf"class_counts='auto'.* 0 to 3 .*ignore_index={ignored} in "
            rf'.*0\.png, got {stray} \({share} % .*Fix: .*reduce_zero',
        ) as error:
            count_dataset(dataset, ignore_index=ignored)
        assert error.value.labels == [stray]
    five = type(
        'Five',
        (mmseg.BaseSegDataset,),
        dict(METAINFO=dict(classes=(*CLASSES, 'car'))),
    )
    dataset = build(root, five, reduce_zero_label=False)
    counts = count_dataset(dataset)
    assert counts.counts.tolist() == pixels[:5]
    assert counts.ignored == pytest.approx(pixels[255] / total)
    # A class may be ignored, too; nothing is where no label is negative.
    dataset = build(root, reduce_zero_label=True)
    counts = count_dataset(dataset, ignore_index=255)
    pixels = counts.counts.tolist()
    with pytest.raises(StrayLabelError, match='got 255'):
        count_dataset(dataset, ignore_index=0)
    for path in (root / 'ann').iterdir():
        mask = np.array(Image.open(path))
        Image.fromarray(np.where(mask == 255, 3, mask)).save(path)
        os.utime(path, ns=(1, 1))
    for ignored in (-1, -100, 254, 0):
        dataset = build(root, reduce_zero_label=False)
        counts = natural_counts(
            build(root, five, reduce_zero_label=False), ignore_index=ignored
        ).counts
        assert (counts[0] == 0) == (ignored == 0)
        assert (counts[1:] > 0).all()


class Signed:
    """A loader of the user whose unlabelled pixels are negative."""

    def __call__(self, results):
        results = mmseg.transforms.LoadAnnotations()(results)
        mask = results['gt_seg_map'].astype(np.int16)
        return dict(results, gt_seg_map=np.where(mask == 255, -100, mask))


class LoadSignedAnnotations(Signed):
    """Under a name that is known to be a loader's."""


def test_negative_labels(root):
    dataset = build(root)
    dataset.pipeline.transforms = [LoadSignedAnnotations()]
    counts = count_dataset(dataset, ignore_index=-100).counts
    assert counts.tolist() == expected(dataset, 'pixel', 4)
    with pytest.raises(StrayLabelError, match='got -100'):
        count_dataset(dataset)


def rewrite(root, change, suffix='.png'):
    """Save the second mask anew."""
    path = root / 'ann/1.png'
    mask = np.array(Image.open(path))
    path.unlink()
    change(mask).save(path.with_suffix(suffix))


@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'LA'])
def test_masks_with_channels(root, mode):
    rewrite(root, lambda mask: Image.fromarray(mask).convert(mode))
    channels = len(mode)
    with pytest.raises(
        ValueError, match=rf'ann/1\.png, got \(7, 9, {channels}\).*one channel'
    ):
        count_dataset(build(root))


def test_volumes(root):
    class LoadBiomedicalAnnotation:
        def __call__(self, results):
            results = mmseg.transforms.LoadAnnotations()(results)
            mask = results['gt_seg_map'].astype(np.float32)
            return dict(results, gt_seg_map=np.stack([mask] * 5))

    dataset = build(root)
    once = np.array(expected(dataset, 'pixel', 4))
    dataset.pipeline.transforms = [LoadBiomedicalAnnotation()]
    assert count_dataset(dataset).counts.tolist() == (5 * once).tolist()


def test_masks_without_a_pixel_of_a_class(root):
    for path in (root / 'ann').iterdir():
        mask = np.array(Image.open(path))
        Image.fromarray(np.where(mask > 2, 255, 0).astype('u1')).save(path)
    counts = count_dataset(build(root, reduce_zero_label=False))
    assert counts.counts.tolist()[1:] == [0, 0, 0]
    assert "'sky', 'tree', 'road'" in empty_classes(counts)
    with pytest.raises(ValueError, match='ignore_index=255.*reduce_zero'):
        count_dataset(build(root))  # 0 is unlabelled, too


def test_masks_with_a_palette(root):
    before = count_dataset(build(root)).counts.tolist()

    def paint(mask):
        image = Image.fromarray(mask)
        image.putpalette(np.arange(768, dtype=np.uint8) ** 2)
        return image

    rewrite(root, paint)
    assert count_dataset(build(root)).counts.tolist() == before
    load = dict(type='mmseg.LoadAnnotations', imdecode_backend='cv2')
    with pytest.raises(ValueError, match=r"1\.png.*'pillow'"):
        count_dataset(build(root, pipeline=[load]))


def test_masks_of_16_bits(root):
    before = count_dataset(build(root)).counts.tolist()

    def wide(value):
        return lambda mask: Image.fromarray(
            np.where(mask == 255, value, mask).astype(np.uint16)
        )

    rewrite(root, wide(255))
    assert count_dataset(build(root)).counts.tolist() == before
    rewrite(root, wide(65535))
    assert count_dataset(build(root)).counts.tolist() == before
    rewrite(root, lambda mask: wide(258)(np.minimum(mask, 255)))
    with pytest.raises(ValueError, match=r'8 bits.*ann/1\.png, got 258'):
        count_dataset(build(root))


def test_masks_that_cannot_be_read(root):
    (root / 'ann/1.png').write_bytes(b'no image')
    with pytest.raises(ValueError, match=r'ann/1\.png \(Unidentified'):
        count_dataset(build(root))


def test_masks_as_jpeg(root):
    for index in range(3):
        path = root / f'ann/{index}.png'
        Image.open(path).save(path.with_suffix('.jpg'))
    dataset = build(root, seg_map_suffix='.jpg')
    with pytest.raises(StrayLabelError, match='and .* more .*PNG: JPEG'):
        count_dataset(dataset)


@pytest.mark.parametrize('nested', [False, True])
def test_transforms_of_the_user_are_named(root, nested, caplog):
    apply = mmcv.RandomApply
    later = Signed()
    dataset = build(root)
    dataset.pipeline.transforms = [
        Streets,  # before the masks are loaded
        mmseg.transforms.LoadAnnotations(),
        mmseg.transforms.PhotoMetricDistortion(),
        apply([later]) if nested else later,
    ]
    for _ in range(2):
        assert count_dataset(dataset).counts.sum()
    (told,) = [r for r in caplog.records if 'of no host' in r.getMessage()]
    assert (
        'Signed' in told.getMessage() and 'list or file' in told.getMessage()
    )
    assert 'type' not in told.getMessage()
    with pytest.raises(
        StrayLabelError, match="got 4 .*Fix: if 'Signed' changes labels.*list"
    ):
        other = build(root, reduce_zero_label=False)
        other.pipeline.transforms = dataset.pipeline.transforms[2:]
        count_dataset(other)


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
    with pytest.raises(
        FileNotFoundError, match=r'ann/1\.png. Fix: correct data_p'
    ):
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
    monkeypatch.setattr('sys.stdout.isatty', lambda: True)
    return found


def test_cache(root, cache, passes):
    dataset = build(root)
    first = count_dataset(dataset)
    assert len(list(cache.glob('pixels-*.npz'))) == 1
    # The second time no mask is opened, whatever the unit or the wrapper.
    for again in (build(root), RepeatDataset(build(root), 2)):
        masks._counted.clear()
        counts = count_dataset(again).counts / (len(again) / 3)
        assert counts.tolist() == first.counts.tolist()
    assert count_dataset(build(root), unit='image').counts.tolist() == (
        expected(dataset, 'image', 4)
    )
    assert passes == [3]
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize('load', [{}, dict(reduce_zero_label=True)])
def test_one_pass_whatever_the_loader_has_learnt(root, passes, load):
    """Mmseg's loader takes reduce_zero_label from the first mask."""
    load = dict(type='mmseg.LoadAnnotations', **load)
    dataset = build(root, pipeline=[load])
    for ignored in (255, 3, 255):
        try:
            count_dataset(dataset, ignore_index=ignored)
        except StrayLabelError:
            assert ignored == 3
    masks._counted.clear()
    count_dataset(build(root, pipeline=[load]), unit='image')
    count_dataset(build(root))
    assert passes == [3]


def test_cache_key_of_mmdet_knows_reduce_zero_label(root, passes):
    """Which its loader does not show."""
    mmdet = pytest.importorskip('mmdet.datasets')
    for reduce in (True, False):
        load = mmdet.transforms.LoadAnnotations(
            with_bbox=False, with_seg=True, reduce_zero_label=reduce
        )
        dataset = build(root, reduce_zero_label=False)
        dataset.pipeline.transforms = [load]
        if reduce:
            count_dataset(dataset)
        else:
            with pytest.raises(StrayLabelError, match='got 4'):
                count_dataset(dataset)
    assert passes == [3, 3]


def test_cache_key_knows_the_data_and_the_options(root, passes):
    before = count_dataset(build(root)).counts
    count_dataset(Subset(build(root), [0, 1]))
    count_dataset(build(root, metainfo=dict(classes=CLASSES[::-1])))
    assert passes == [3, 2, 3]
    masks._counted.clear()
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
        masks._counted.clear()
        counts = count_dataset(dataset)
        assert counts.counts.tolist() == expected(dataset, 'pixel', 4)
    assert passes == [3]
    assert "file/cache', expected a folder that you can write" in caplog.text


def test_full_disk(root, passes, cache, monkeypatch, caplog):
    def full(file, **arrays):
        file.write(b'half')
        raise OSError('disk full')

    monkeypatch.setattr(np, 'savez_compressed', full)
    dataset = build(root)
    for _ in range(2):
        counts = count_dataset(dataset)
        assert counts.counts.tolist() == expected(dataset, 'pixel', 4)
    assert passes == [3]  # known to this process
    masks._counted.clear()
    count_dataset(dataset)
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


def test_no_bar_in_a_file(root, passes, monkeypatch, capsys):
    monkeypatch.setattr('sys.stdout.isatty', lambda: False)
    count_dataset(build(root))
    assert passes == [] and 'elapsed' not in capsys.readouterr().out
