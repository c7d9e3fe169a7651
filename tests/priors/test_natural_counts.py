"""The natural distribution holds each image once, however it is wrapped."""

import pytest
from mmengine.dataset import (
    BaseDataset,
    ClassBalancedDataset,
    ConcatDataset,
    RepeatDataset,
)
from torch.utils.data import ConcatDataset as Joined
from torch.utils.data import Subset

from lt_losses_mm.priors import count_dataset, natural_counts


class Labels(BaseDataset):
    METAINFO = dict(classes=('a', 'b', 'c'))

    def load_data_list(self):
        return [dict(gt_label=label) for label in [0] * 6 + [1] * 3 + [2]]

    def get_cat_ids(self, idx):
        return [self.get_data_info(idx)['gt_label']]


@pytest.fixture
def data():
    return Labels(serialize_data=False)


def counts(dataset):
    return natural_counts(dataset).counts.tolist()


def balanced(dataset):
    return ClassBalancedDataset(dataset, oversample_thr=0.9)


@pytest.mark.parametrize(
    'wrap',
    [
        lambda d: d,
        lambda d: RepeatDataset(d, times=3),
        balanced,
        lambda d: ConcatDataset([d, d]),
        lambda d: Joined([d, RepeatDataset(d, times=2)]),
        lambda d: Joined([balanced(d), d]),
        lambda d: Joined([ConcatDataset([d, d]), balanced(d)]),
        # Two parts that overlap, and hold all samples together.
        lambda d: Joined([Subset(d, range(7)), Subset(d, range(5, 10))]),
    ],
)
def test_each_image_counts_once(data, wrap):
    assert counts(wrap(data)) == [6, 3, 1]


def test_what_is_never_drawn_does_not_count(data):
    part = Subset(data, [0, 0, 6])
    assert counts(part) == [1, 1, 0]
    assert counts(Joined([part, Subset(data, [1])])) == [2, 1, 0]


def test_two_data_sets_add_up(data):
    other = Labels(serialize_data=False)
    assert counts(ConcatDataset([data, other])) == [12, 6, 2]


def test_the_prior_counts_every_draw(data):
    """The other question: what the model sees."""
    twice = ConcatDataset([data, data])
    assert count_dataset(twice).counts.tolist() == [12, 6, 2]
