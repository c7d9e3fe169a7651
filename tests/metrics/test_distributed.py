# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Two processes report what one process reports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import lt_losses_mm

# Seven samples on two ranks: the sampler repeats the first one as padding.
SCRIPT = """
import json, os, sys
import torch
from mmengine.dist import get_rank
from mmengine.dataset import DefaultSampler
from lt_losses_mm.metrics import FrequencyGroupIoU, LongTailAccuracy

if 'RANK' in os.environ:
    torch.distributed.init_process_group('gloo')
torch.manual_seed(0)
scores = torch.rand(7, 3).softmax(1)
labels = torch.arange(7)[:, None] % 3
masks = torch.randint(3, (7, 2, 1, 5, 4))
accuracy = LongTailAccuracy(class_counts=[500, 50, 5])
iou = FrequencyGroupIoU(class_counts=[500, 50, 5])
iou.dataset_meta = dict(classes='abc')
for i in DefaultSampler(range(7), shuffle=False):
    accuracy.process({}, [dict(gt_label=labels[i], pred_score=scores[i])])
    iou.process({}, [dict(gt_sem_seg=dict(data=masks[i, 0]),
                          pred_sem_seg=dict(data=masks[i, 1]))])
result = {**accuracy.evaluate(7), **iou.evaluate(7)}
with open(f'{sys.argv[1]}_{get_rank()}.json', 'w') as file:
    json.dump(result, file)
if 'RANK' in os.environ:
    torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_agree_with_one(tmp_path):
    script = tmp_path / 'evaluate.py'
    script.write_text(SCRIPT)
    root = str(Path(lt_losses_mm.__file__).parents[1])
    run = dict(
        check=True,
        cwd=tmp_path,
        timeout=300,
        env=dict(os.environ, PYTHONPATH=root),
    )
    subprocess.run([sys.executable, script, 'alone'], **run)
    subprocess.run(
        [
            sys.executable,
            '-m',
            'torch.distributed.run',
            '--standalone',
            '--nproc_per_node=2',
            script,
            'both',
        ],
        **run,
    )
    alone, *both = (
        json.loads((tmp_path / f'{name}.json').read_text())
        for name in ('alone_0', 'both_0', 'both_1')
    )
    assert len(alone) == 12
    for result in both:
        assert result == pytest.approx(alone)
