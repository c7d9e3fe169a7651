"""One, two and four processes train the same model.

Each global batch of 12 rows is cut into uneven parts, some of them empty; a
rank without rows does not call the loss at all, as mmdet's RoI heads do not.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lt_losses_mm

SCRIPT = """
import sys
import torch
from mmengine import dist
from mmengine.dataset import BaseDataset
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import Runner
import lt_losses_mm
from lt_losses_mm.statistics import running

C, ROWS, STEPS = 5, 12, 8
PARTS = {1: (12,), 2: (9, 3), 4: (7, 0, 4, 1)}
LOSSES = (
    'SigmoidEqualizationLoss', 'SoftmaxEqualizationLoss',
    'EqualizedFocalLoss', 'EqualizedQualityFocalLoss',
)


@DATASETS.register_module()
class Parts(BaseDataset):
    METAINFO = dict(classes=tuple('abcde'))

    def load_data_list(self):
        world = dist.get_world_size()
        generator = torch.Generator().manual_seed(0)
        items = []
        for step in range(STEPS):
            x = torch.randn(ROWS, 4, generator=generator).double()
            y = torch.randint(0, C, (ROWS,), generator=generator)
            x[:, 0] += y
            sizes = PARTS[world]
            sizes = sizes[step % world:] + sizes[:step % world]
            for a, b in zip(x.split(sizes), y.split(sizes)):
                items.append(dict(x=a, y=b))
        return items


@MODELS.register_module()
class Toy(BaseModel):
    curve = []

    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(4, C * len(LOSSES)).double()
        self.used = torch.nn.Parameter(torch.zeros(1).double())
        self.losses = torch.nn.ModuleList([
            MODELS.build(dict(type=f'lt_losses_mm.{name}', num_classes=C))
            for name in LOSSES
        ])

    def forward(self, x, y, mode, **kwargs):
        x, y = x[0], y[0]
        logits = self.fc(x).split(C, 1)
        rows = torch.tensor([float(len(y))], dtype=torch.float64)
        dist.all_reduce(rows, 'mean')
        # A rank without rows uses no parameter but this one.
        total = self.used.sum() * 0
        if len(y):
            for z, loss in zip(logits, self.losses):
                # Levels of a pyramid: two calls, one part each.
                for part in (slice(0, 2), slice(2, None)):
                    total = total + loss(
                        z[part], y[part], avg_factor=rows.item())
        value = total.detach().clone()
        dist.all_reduce(value, 'mean')
        Toy.curve.append(value.item())
        if Toy.die_at == len(Toy.curve):
            raise KeyboardInterrupt
        return dict(loss=total)


def run(name, accumulate, resume=False, die_at=None, folder=None):
    Toy.curve, Toy.die_at = [], die_at
    torch.manual_seed(0)
    runner = Runner(
        model=dict(type='Toy'),
        work_dir=f'{sys.argv[1]}/{folder or name}',
        train_dataloader=dict(
            batch_size=1, num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='pseudo_collate'),
            dataset=dict(type='Parts'),
        ),
        train_cfg=dict(by_epoch=False, max_iters=STEPS),
        optim_wrapper=dict(
            optimizer=dict(type='SGD', lr=0.5),
            accumulative_counts=accumulate,
        ),
        default_hooks=dict(
            logger=None, checkpoint=dict(
                type='CheckpointHook', interval=4, by_epoch=False)),
        cfg=dict(model_wrapper_cfg=dict(
            type='MMDistributedDataParallel', find_unused_parameters=True,
            device_ids=None,
        )),
        launcher='pytorch' if dist.get_world_size() > 1 else 'none',
        randomness=dict(seed=0), resume=resume, experiment_name=name,
        custom_hooks=[dict(type='lt_losses_mm.StatisticsHook',
                           interval=0, draw=False)],
    )
    try:
        runner.train()
    except KeyboardInterrupt:
        return None
    model = getattr(runner.model, 'module', runner.model)
    return dict(curve=Toy.curve, weight=model.fc.weight.detach(),
                state={k: v for k, v in model.state_dict().items()
                       if k.endswith('.statistics.sums')})


if 'RANK' in __import__('os').environ:
    torch.distributed.init_process_group('gloo')
collectives = []


class Counted:
    def __getattr__(self, name):
        return getattr(torch.distributed, name)

    def all_reduce(self, tensor):
        collectives.append(tensor.numel())
        return torch.distributed.all_reduce(tensor)


# Those of the statistics alone; the model and DDP have others.
running.distributed = Counted()

results = {}
for accumulate in (1, 4):
    collectives.clear()
    results[f'accumulate {accumulate}'] = run(f'a{accumulate}', accumulate)
    results[f'collectives {accumulate}'] = list(collectives)
    assert run(f'k{accumulate}', accumulate, die_at=7) is None
    results[f'resumed {accumulate}'] = run(
        f'r{accumulate}', accumulate, resume=True, folder=f'k{accumulate}')
torch.save(results, f'{sys.argv[1]}/{dist.get_rank()}.pt')
if 'RANK' in __import__('os').environ:
    torch.distributed.destroy_process_group()
"""


def launch(ranks, folder):
    folder.mkdir()
    script = folder / 'train.py'
    script.write_text(SCRIPT)
    root = str(Path(lt_losses_mm.__file__).parents[1])
    torchrun = ['-m', 'torch.distributed.run', '--standalone']
    command = [sys.executable]
    if ranks > 1:
        command += [*torchrun, f'--nproc_per_node={ranks}']
    done = subprocess.run(
        [*command, str(script), str(folder)],
        cwd=folder,
        timeout=600,
        env=dict(os.environ, PYTHONPATH=root, OMP_NUM_THREADS='1'),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [
        torch.load(folder / f'{rank}.pt', weights_only=False)
        for rank in range(ranks)
    ]


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    return launch(1, tmp_path_factory.mktemp('ranks') / '1')[0]


@pytest.mark.slow
def test_one_process(alone):
    for key in ('accumulate 1', 'accumulate 4'):
        state = alone[key]['state']
        assert len(state) == 4
        for value in state.values():
            _, _, pos_count = value
            assert value.shape == (3, 5)
            assert pos_count.sum() == 12 * 8
    # Four micro-batches see the same statistics, so that the curves differ.
    assert alone['accumulate 1']['curve'] != alone['accumulate 4']['curve']


@pytest.mark.slow
@pytest.mark.parametrize('ranks', [2, 4])
def test_ranks_agree_with_one_process(alone, tmp_path, ranks):
    found = launch(ranks, tmp_path / str(ranks))
    for accumulate in (1, 4):
        expected = alone[f'accumulate {accumulate}']
        for result in found:
            same(result[f'accumulate {accumulate}'], expected)
            same(result[f'resumed {accumulate}'], expected, since=4)
            # One collective a step, for the four losses of the model.
            sums = [4 * 3 * 5] * (8 // accumulate)
            assert result[f'collectives {accumulate}'] == sums


@pytest.mark.slow
def test_a_killed_run_resumes_exactly(alone):
    for accumulate in (1, 4):
        same(
            alone[f'resumed {accumulate}'],
            alone[f'accumulate {accumulate}'],
            since=4,
            tolerance=0,
        )


def same(result, expected, since=0, tolerance=1e-6):
    # Heads add 1e-7 to avg_factor, which is a rank's share of the rows.
    close = dict(rtol=tolerance, atol=tolerance / 100)
    curve = torch.tensor(expected['curve'][since:])
    torch.testing.assert_close(torch.tensor(result['curve']), curve, **close)
    torch.testing.assert_close(result['weight'], expected['weight'], **close)
    assert result['state'].keys() == expected['state'].keys()
    for name, value in expected['state'].items():
        torch.testing.assert_close(result['state'][name], value, **close)
