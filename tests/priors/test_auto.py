# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Counts of a data set, against an enumeration of what it draws."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from mmengine.dataset import (
    BaseDataset,
    ClassBalancedDataset,
    ConcatDataset,
    DefaultSampler,
    InfiniteSampler,
    RepeatDataset,
)
from mmengine.runner import Runner
from torch.utils.data import ConcatDataset as TorchConcat
from torch.utils.data import (
    RandomSampler,
    SequentialSampler,
    Subset,
    WeightedRandomSampler,
)

import lt_losses_mm
from lt_losses_mm.priors import (
    count_dataset,
    expected_draws,
    frequency_groups,
    rebalanced_by,
)

NUM_CLASSES = 5
# Class 4 never occurs; one sample has no instance.
LABELS = [[0, 0, 0], [0, 1], [2], [], [0], [0, 0, 3], [1, 2, 2], [0]]


class Boxes(BaseDataset):
    """A detection data set without a pipeline: a sample is its data_info."""

    METAINFO = dict(classes=tuple('abcde'))

    def __init__(self, labels=LABELS, serialize_data=False, **kwargs):
        self.labels = labels
        super().__init__(serialize_data=serialize_data, **kwargs)

    def load_data_list(self):
        return [
            dict(
                image=image,
                instances=[
                    dict(bbox_label=label, ignore_flag=0) for label in labels
                ],
            )
            for image, labels in enumerate(self.labels)
        ]

    def get_cat_ids(self, index):
        instances = self.get_data_info(index)['instances']
        return [instance['bbox_label'] for instance in instances]


class Labels(Boxes):
    """A classification data set."""

    def load_data_list(self):
        return [dict(gt_label=label) for label in self.labels]


def enumerate_counts(dataset, unit, draws=None):
    """Count the samples that the data set really gives, one by one."""
    total = Counter()
    for index in range(len(dataset)) if draws is None else draws:
        labels = [i['bbox_label'] for i in dataset[index]['instances']]
        total.update(labels if unit == 'instance' else set(labels))
    return [total[label] for label in range(NUM_CLASSES)]


def nested(depth):
    """Data sets in random wrappers, nested up to ``depth`` deep."""
    base = st.builds(
        Boxes,
        labels=st.lists(
            st.lists(st.integers(0, NUM_CLASSES - 1), max_size=3),
            min_size=1,
            max_size=6,
        ).filter(any),
    )
    if depth == 0:
        return base
    inner = nested(depth - 1)
    # mmengine's wrappers only take instances of BaseDataset, or configs.
    return st.one_of(
        base,
        st.builds(RepeatDataset, base, st.integers(1, 3)),
        st.builds(ClassBalancedDataset, base, st.floats(0.01, 1)),
        st.builds(lambda *parts: ConcatDataset(parts), base, base),
        st.builds(lambda *parts: TorchConcat(parts), inner, inner),
        inner.flatmap(
            lambda dataset: st.lists(
                st.integers(0, len(dataset) - 1), min_size=1, max_size=9
            ).map(lambda index: Subset(dataset, index))
        ),
        inner.map(lambda dataset: _config_wrapped(dataset)),
    )


def _config_wrapped(dataset):
    return (
        RepeatDataset(dict(type=lambda: dataset), 2)
        if isinstance(dataset, (ConcatDataset, ClassBalancedDataset))
        else dataset
    )


@pytest.mark.parametrize('unit', ['image', 'instance'])
@pytest.mark.parametrize('serialize', [True, False])
def test_plain(unit, serialize):
    dataset = Boxes(serialize_data=serialize)
    counts = count_dataset(dataset, unit=unit)
    assert counts.counts.tolist() == enumerate_counts(dataset, unit)
    assert (counts.unit, counts.names) == (unit, tuple('abcde'))
    assert rebalanced_by(dataset) is None


def test_counting_leaves_the_data_as_they_are():
    dataset = Boxes()
    before = json.dumps(dataset.data_list)
    count_dataset(dataset)
    assert json.dumps(dataset.data_list) == before


@settings(max_examples=60)
@given(dataset=nested(2), unit=st.sampled_from(['image', 'instance']))
def test_any_nesting_of_wrappers(dataset, unit):
    expected = enumerate_counts(dataset, unit)
    if not any(expected):
        with pytest.raises(ValueError, match='has none'):
            count_dataset(dataset, unit=unit)
    else:
        counts = count_dataset(dataset, unit=unit)
        assert counts.counts.tolist() == expected


def test_lazy_data_sets_are_initialised():
    lazy = Boxes(lazy_init=True)
    for dataset in (
        lazy,
        RepeatDataset(Boxes(lazy_init=True), 2, True),
        Subset(Boxes(lazy_init=True), [0, 1]),
        TorchConcat([Boxes(lazy_init=True)]),
    ):
        expected = enumerate_counts(dataset, 'image')
        assert count_dataset(dataset).counts.tolist() == expected


def test_indices_of_a_data_set():
    dataset = Boxes(indices=[0, 5])
    assert count_dataset(dataset).counts.tolist() == [2, 0, 0, 1, 0]


def test_repeat_factors_are_those_of_mmengine():
    balanced = ClassBalancedDataset(Boxes(), 0.5)
    plain = count_dataset(Boxes()).counts
    counts = count_dataset(balanced)
    assert counts.counts.tolist() == enumerate_counts(balanced, 'image')
    assert counts.counts[3] / plain[3] > counts.counts[0] / plain[0]
    assert rebalanced_by(balanced) == (
        'ClassBalancedDataset(oversample_thr=0.5)'
    )
    assert 'ClassBalancedDataset(oversample_thr=0.5)' in counts.source


def test_what_counts_as_rebalanced():
    balanced = dict(
        type=ClassBalancedDataset, dataset=Boxes(), oversample_thr=1e-3
    )
    # So low a threshold repeats nothing.
    assert rebalanced_by(RepeatDataset(balanced, 3)) is None
    balanced['oversample_thr'] = 0.9
    nested = ConcatDataset(
        [Boxes(), dict(type=RepeatDataset, times=3, dataset=balanced)]
    )
    assert rebalanced_by(nested) == 'ClassBalancedDataset(oversample_thr=0.9)'
    assert rebalanced_by(Boxes(), DefaultSampler(Boxes())) is None


@pytest.mark.parametrize(
    'sampler',
    [DefaultSampler, InfiniteSampler, RandomSampler, SequentialSampler],
)
def test_even_samplers(sampler):
    dataset = RepeatDataset(Boxes(), 2)
    built = sampler(dataset)
    counts = count_dataset(dataset, sampler=built, unit='instance')
    assert counts.counts.tolist() == enumerate_counts(dataset, 'instance')
    assert rebalanced_by(dataset, built) is None
    assert sampler.__name__ in counts.source


def build_loader(dataset, batches):
    """As Runner builds it: batches of 3, in one epoch as many as given."""
    return Runner.build_dataloader(
        dict(
            dataset=dict(type=lambda: dataset),
            batch_size=3,
            sampler=dict(type='DefaultSampler', shuffle=False),
            num_batch_per_epoch=batches,
            collate_fn=list,
        )
    )


@pytest.mark.parametrize('unit', ['image', 'instance'])
@pytest.mark.parametrize(
    'dataset',
    [
        Boxes(),
        RepeatDataset(Boxes(), 2),
        TorchConcat([Boxes([[0]]), RepeatDataset(Boxes(), 2)]),
        ClassBalancedDataset(Boxes(), 0.9),
        ConcatDataset([Boxes([[0]]), Boxes()]),
    ],
    ids=lambda dataset: type(dataset).__name__,
)
def test_num_batch_per_epoch(dataset, unit):
    loader = build_loader(dataset, 2)
    assert sum(map(len, loader)) == 6
    found = count_dataset(loader.dataset, sampler=loader.sampler, unit=unit)
    expected = enumerate_counts(dataset, unit, range(6))
    assert found.counts.tolist() == expected
    assert 'num_batch_per_epoch(samples=6)' in found.source


def test_num_batch_per_epoch_beyond_the_end():
    """Only RepeatDataset has samples there."""
    repeated = RepeatDataset(Boxes(), 2)
    loader = build_loader(repeated, 9)
    assert len(loader.dataset) == 27
    expected = enumerate_counts(repeated, 'image', range(27))
    assert count_dataset(loader.dataset).counts.tolist() == expected
    plain = Boxes(serialize_data=True)
    loader = build_loader(plain, 9)
    with pytest.raises(IndexError):
        list(loader)
    expected = enumerate_counts(plain, 'image')
    assert count_dataset(loader.dataset).counts.tolist() == expected


def test_num_batch_per_epoch_hides_no_rebalancing():
    balanced = ClassBalancedDataset(Boxes(), 0.9)
    name = 'ClassBalancedDataset(oversample_thr=0.9)'
    assert rebalanced_by(build_loader(balanced, 2).dataset) == name
    assert rebalanced_by(build_loader(Boxes(), 2).dataset) is None


@pytest.mark.parametrize('per_class', [1, 2])
def test_class_aware_sampler(per_class):
    samplers = pytest.importorskip('mmdet.datasets.samplers')
    dataset = Boxes()
    sampler = samplers.ClassAwareSampler(
        dataset, seed=0, num_sample_class=per_class
    )
    ((leaf, draws),) = expected_draws(dataset, sampler)
    assert leaf is dataset
    epochs = 2000
    drawn = np.zeros(len(dataset))
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        np.add.at(drawn, list(sampler), 1)
    assert draws.sum() == pytest.approx(len(dataset))
    # The standard error of a mean is below 1.5 / sqrt(epochs) = 0.034.
    np.testing.assert_allclose(drawn / epochs, draws, atol=0.12)
    # By hand: sample 7 holds class 0 alone, one of five such samples; four
    # classes have samples.
    assert draws[7] == pytest.approx(8 / 4 / 5)
    assert draws[3] == 0
    counts = count_dataset(dataset, sampler=sampler, unit='instance')
    labels = [Counter(labels) for labels in LABELS]
    assert counts.counts == pytest.approx(
        [
            sum(d * c[label] for d, c in zip(draws, labels))
            for label in range(NUM_CLASSES)
        ]
    )
    assert rebalanced_by(dataset, sampler) == 'ClassAwareSampler'


def test_repeat_augmentation_sampler():
    samplers = pytest.importorskip('mmpretrain.datasets.samplers')
    dataset = Boxes()
    even = samplers.RepeatAugSampler(dataset, num_repeats=3, seed=0)
    assert count_dataset(dataset, sampler=even).counts.tolist() == (
        enumerate_counts(dataset, 'image')
    )
    fixed = samplers.RepeatAugSampler(dataset, shuffle=False, seed=0)
    with pytest.raises(ValueError, match='RepeatAugSampler with shuffle'):
        count_dataset(dataset, sampler=fixed)


@pytest.mark.parametrize('host', ['mmdet', 'mmseg'])
def test_mixed_images(host):
    wrappers = pytest.importorskip(f'{host}.datasets.dataset_wrappers')
    mixed = wrappers.MultiImageMixDataset(
        dict(type=ClassBalancedDataset, dataset=Boxes(), oversample_thr=0.5),
        pipeline=[],
    )
    counts = count_dataset(mixed)
    assert counts.counts.tolist() == enumerate_counts(mixed, 'image')
    assert rebalanced_by(mixed).startswith('ClassBalancedDataset')
    uneven = Subset(mixed, [0, 0, 1])
    with pytest.raises(ValueError, match='MultiImageMixDataset with'):
        count_dataset(uneven)


@pytest.mark.parametrize('test_mode', [True, False])
def test_k_fold(test_mode):
    datasets = pytest.importorskip('mmpretrain.datasets')
    folds = datasets.KFoldDataset(
        dict(type=Boxes), fold=1, num_splits=3, seed=4, test_mode=test_mode
    )
    counts = count_dataset(RepeatDataset(dict(type=lambda: folds), 2))
    assert counts.counts.tolist() == [
        2 * n for n in enumerate_counts(folds, 'image')
    ]


class Doubling(DefaultSampler):
    """A sampler that inherits a known one and draws otherwise."""

    def __iter__(self):
        return iter([0] * len(self.dataset))


class Renamed(DefaultSampler):
    """A sampler that draws as its parent does."""


class Shuffling(RepeatDataset):
    """A wrapper that inherits a known one and draws otherwise."""

    def __getitem__(self, index):
        return self.dataset[0]


def test_unknown_sampler_and_wrapper():
    dataset = Boxes()
    for sampler in (Doubling(dataset), WeightedRandomSampler([1.0] * 8, 8)):
        name = type(sampler).__name__
        with pytest.raises(
            ValueError, match=f"class_counts='auto'.*expected.*{name}.*Fix"
        ):
            count_dataset(dataset, sampler=sampler)
        assert rebalanced_by(dataset, sampler) == (
            f'{name} (unknown, it may re-balance)'
        )
    assert count_dataset(dataset, sampler=Renamed(dataset)).counts[0] == 5
    for wrapper in (
        Shuffling(dataset, 2),
        TorchConcat([dataset, Shuffling(dataset, 2)]),
    ):
        with pytest.raises(ValueError, match='wrapper.*got Shuffling.*Fix'):
            count_dataset(wrapper)
        assert 'Shuffling (unknown' in rebalanced_by(wrapper)


@pytest.mark.parametrize(
    'label',
    [int, np.int64, np.array, torch.tensor, lambda v: [v], lambda v: (v,)],
)
def test_classification_labels(label):
    dataset = Labels([label(v) for v in (0, 0, 3, 1)])
    counts = count_dataset(dataset)
    assert counts.counts.tolist() == [2, 1, 0, 1, 0]
    assert counts.unit == 'image'


def test_multi_label_classification():
    dataset = Labels([[0, 1], [], np.array([0, 3, 3])])
    assert count_dataset(dataset).counts.tolist() == [2, 1, 0, 1, 0]


def test_crowds_do_not_count():
    dataset = Boxes()
    dataset.data_list[0]['instances'][0]['ignore_flag'] = 1
    dataset.data_list[7]['instances'][0]['ignore_flag'] = 1
    instances = count_dataset(dataset, unit='instance').counts
    assert instances[0] == enumerate_counts(dataset, 'instance')[0] - 2
    images = count_dataset(dataset).counts
    assert images[0] == enumerate_counts(dataset, 'image')[0] - 1


class OnlyCategories(torch.utils.data.Dataset):
    """A data set of the user's own, with mmengine's get_cat_ids."""

    def __len__(self):
        return len(LABELS)

    def get_cat_ids(self, index):
        return LABELS[index]


def test_data_set_with_get_cat_ids_alone():
    counts = count_dataset(OnlyCategories(), num_classes=5, unit='instance')
    assert counts.counts.tolist() == enumerate_counts(Boxes(), 'instance')
    with pytest.raises(ValueError, match='say num_classes in all heads'):
        count_dataset(OnlyCategories())


@pytest.mark.parametrize(
    'labels, shown',
    [
        ([0, 5], '5'),
        ([-1, 0], '-1 .*leave samples without a class out'),
        ([0.5, 1], '0.5'),
        ([['0'], ['1']], "'0'"),
        ([[[0, 1]], [1]], r'\[\[0, 1\]\]'),
        ([1, 2, 3, 4, 5], '5 .*count the labels from 0'),
    ],
)
def test_label_out_of_range(labels, shown):
    with pytest.raises(
        ValueError, match=f"class_counts='auto'.*0 to 4.*got {shown}"
    ):
        count_dataset(Labels(labels))


def test_faults():
    with pytest.raises(ValueError, match='5 counts.*num_classes=7.*Fix'):
        count_dataset(Boxes(), num_classes=7)
    with pytest.raises(ValueError, match="count_unit='pixel'.*Boxes.*Fix"):
        count_dataset(Boxes(), unit='pixel')
    with pytest.raises(ValueError, match="count_unit='instance'.*Fix"):
        count_dataset(Labels([1, 2]), unit='instance')
    with pytest.raises(ValueError, match="count_unit='box'"):
        count_dataset(Boxes(), unit='box')
    with pytest.raises(
        ValueError, match="has none. .*category_id.*'1' is not"
    ):
        count_dataset(Boxes([[], []]))
    crowds = Boxes([[1], [2]])
    for info in crowds.data_list:
        info['instances'][0]['ignore_flag'] = 1
    with pytest.raises(ValueError, match='has none, and 2 boxes to ignore'):
        count_dataset(crowds)
    with pytest.raises(ValueError, match='none. .*the labels in the annotat'):
        count_dataset(Labels([[], []]))
    with pytest.raises(ValueError, match='has none'):
        count_dataset(Subset(Boxes(), []))
    with pytest.raises(ValueError, match="got Captions with.*'text'.*Fix"):
        count_dataset(Captions())


class Captions(BaseDataset):
    """A data set without classes."""

    METAINFO = Boxes.METAINFO

    def load_data_list(self):
        return [dict(text='an owl')]


@pytest.fixture
def coco(tmp_path):
    """A COCO file with a crowd, a tiny box, and images to filter out."""
    boxes = [
        (0, 1, 40, 0),
        (0, 1, 40, 0),
        (0, 3, 40, 1),
        (1, 3, 40, 0),
        (1, 1, 0.5, 0),
        (3, 3, 40, 0),
    ]
    path = tmp_path / 'train.json'
    path.write_text(
        json.dumps(
            dict(
                images=[
                    dict(
                        id=i,
                        file_name=f'{i}.jpg',
                        width=w,
                        height=64,
                        coco_url=f'http://coco/train2017/{i}.jpg',
                        neg_category_ids=[],
                        not_exhaustive_category_ids=[],
                    )
                    for i, w in enumerate([64, 64, 64, 8])
                ],
                categories=[
                    dict(id=3, name='dog', frequency='f'),
                    dict(id=1, name='cat', frequency='r'),
                ],
                annotations=[
                    dict(
                        id=n,
                        image_id=i,
                        category_id=c,
                        iscrowd=crowd,
                        bbox=[2, 2, size, size],
                        area=size * size,
                        segmentation=[],
                    )
                    for n, (i, c, size, crowd) in enumerate(boxes, 1)
                ],
            )
        )
    )
    return path


def test_coco_of_mmdet_is_counted_as_filtered(coco):
    datasets = pytest.importorskip('mmdet.datasets')
    options = dict(
        ann_file=str(coco),
        metainfo=dict(classes=('cat', 'dog')),
        data_prefix=dict(img=''),
    )
    everything = datasets.CocoDataset(**options)
    assert count_dataset(everything, unit='instance').counts.tolist() == [2, 2]
    filtered = datasets.CocoDataset(
        **options, filter_cfg=dict(filter_empty_gt=True, min_size=32)
    )
    counts = count_dataset(filtered)
    assert counts.counts.tolist() == [1, 1]
    # mmdet takes the labels from the file, whatever the order of classes.
    assert counts.names == ('dog', 'cat')
    swapped = datasets.CocoDataset(
        **dict(options, metainfo=dict(classes=('dog', 'cat')))
    )
    assert count_dataset(swapped).names == ('dog', 'cat')


def test_lvis_of_mmdet(coco):
    datasets = pytest.importorskip('mmdet.datasets')
    pytest.importorskip('lvis')
    content = json.loads(coco.read_text())
    content['categories'] = [
        dict(id=i, name=str(i), frequency='r') for i in range(1, 1204)
    ]
    coco.write_text(json.dumps(content))
    counts = count_dataset(
        datasets.LVISV1Dataset(ann_file=str(coco), data_prefix=dict(img=''))
    )
    assert counts.num_classes == 1203
    assert counts.counts[:4].tolist() == [1, 0, 2, 0]
    assert len(frequency_groups(counts, 'lvis')['rare']) == 1203


def test_data_sets_of_mmpretrain(tmp_path):
    datasets = pytest.importorskip('mmpretrain.datasets')
    lists = tmp_path / 'train.txt'
    lists.write_text('a/1.jpg 0\na/2.jpg 0\nb/3.jpg 2\n')
    single = datasets.CustomDataset(
        data_root=str(tmp_path),
        ann_file='train.txt',
        metainfo=dict(classes=('x', 'y', 'z')),
    )
    assert count_dataset(single).counts.tolist() == [2, 0, 1]
    assert (
        count_dataset(single).counts.tolist()
        == np.bincount(single.get_gt_labels(), minlength=3).tolist()
    )
    multi = tmp_path / 'multi.json'
    multi.write_text(
        json.dumps(
            dict(
                metainfo=dict(classes=['x', 'y', 'z']),
                data_list=[
                    dict(img_path='1.jpg', gt_label=[0, 2]),
                    dict(img_path='2.jpg', gt_label=[2]),
                ],
            )
        )
    )
    dataset = datasets.MultiLabelDataset(ann_file=str(multi))
    assert count_dataset(dataset).counts.tolist() == [1, 0, 2]


SCRIPT = """
import json, sys
import torch
from mmengine.dataset import BaseDataset
from mmengine.dist import get_rank
from lt_losses_mm.priors import count_dataset

class Labels(BaseDataset):
    METAINFO = dict(classes=tuple('abc'))
    labels = [0, 0, 2]
    def load_data_list(self):
        return [dict(gt_label=label) for label in self.labels]

class Wrong(Labels):
    labels = [9]

class NeverRead:
    def __len__(self):
        raise AssertionError('only the main process counts')

torch.distributed.init_process_group('gloo')
main = get_rank() == 0
counts = count_dataset(Labels() if main else NeverRead())
try:
    count_dataset(Wrong() if main else NeverRead())
except Exception as caught:
    error = f'{type(caught).__name__}: {caught}'
with open(f'{get_rank()}.json', 'w') as file:
    json.dump([counts.counts.tolist(), counts.source, error], file)
# Threads of gloo that outlive the interpreter may abort the process.
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_every_rank_gets_what_the_main_process_counted(tmp_path):
    script = tmp_path / 'count.py'
    script.write_text(SCRIPT)
    root = str(Path(lt_losses_mm.__file__).parents[1])
    subprocess.run(
        [
            sys.executable,
            '-m',
            'torch.distributed.run',
            '--standalone',
            '--nproc_per_node=2',
            str(script),
        ],
        check=True,
        cwd=tmp_path,
        timeout=300,
        env=dict(os.environ, PYTHONPATH=root),
    )
    results = [
        json.loads((tmp_path / f'{rank}.json').read_text()) for rank in (0, 1)
    ]
    for counts, source, _ in results:
        assert counts == [2, 0, 1]
        assert source == 'Labels (3 samples)'
    assert results[0][2].startswith("ValueError: class_counts='auto'")
    assert results[1][2].startswith(
        'RuntimeError: the main process failed with ValueError: class_counts'
    )


def test_panoptic_annotations_are_refused():
    from lt_losses_mm.priors.auto import _instance_labels

    with pytest.raises(ValueError, match='panoptic'):
        _instance_labels(dict(instances=[], segments_info=[]))
