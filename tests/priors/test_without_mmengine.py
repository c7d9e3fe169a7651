# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Class counts need torch and numpy alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import lt_losses_mm

SCRIPT = """
import pathlib, sys, types
for name in ('mmengine', 'mmcv', 'mmdet', 'mmpretrain', 'mmseg'):
    sys.modules[name] = None  # importing it is an error
sys.path.insert(0, sys.argv[1])

import numpy as np
import torch
from lt_losses_mm import priors
from lt_losses_mm.priors import masks, shift

assert priors.load_class_counts([9, 3, 1]).num_classes == 3
path = pathlib.Path(sys.argv[2], 'counts.json')
priors.load_class_counts(torch.tensor([9, 3, 1])).save(path)
assert priors.load_class_counts(str(path)).counts.tolist() == [9, 3, 1]
for name in priors.BENCHMARKS:
    counts = priors.load_class_counts(name).counts
    shifts = shift.softmax_shift(torch.tensor(counts), len(counts))
    assert shifts.isfinite().all(), name


class Images(torch.utils.data.Dataset):
    labels = [0, 0, 1, 2]
    metainfo = dict(classes=('a', 'b', 'c'))

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        raise NotImplementedError

    def get_cat_ids(self, index):
        return [self.labels[index]]


twice = torch.utils.data.ConcatDataset([Images(), Images()])
assert priors.count_dataset(twice).counts.tolist() == [4, 2, 2]


class LoadAnnotations:
    def __call__(self, info):
        return dict(gt_seg_map=np.array([[0, 1], [1, 255]], np.uint8))


class Masks(Images):
    pipeline = types.SimpleNamespace(transforms=[LoadAnnotations()])

    def get_data_info(self, index):
        return dict(seg_map_path=str(path))


assert priors.count_dataset(Masks()).counts.tolist() == [4, 8, 0]
print('fine')
"""


def test_lists_files_benchmarks_and_data_sets(tmp_path):
    package = Path(lt_losses_mm.__file__).parent
    done = subprocess.run(
        [sys.executable, '-c', SCRIPT, str(package.parent), str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=dict(LT_LOSSES_MM_CACHE=str(tmp_path / 'cache')),
    )
    assert done.stdout == 'fine\n', done.stderr
