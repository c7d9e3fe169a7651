"""A Runner of a few milliseconds: points in the plane, a linear model."""

import copy
import logging

import pytest
import torch
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from mmengine.runner import Runner
from torch import nn

import lt_losses_mm  # noqa: F401

COUNTS = (6, 3, 1)


class PlaneDataset(BaseDataset):
    METAINFO = dict(classes=('a', 'b', 'c'))

    def __init__(self, counts=COUNTS, names='abcdefg', **kwargs):
        self.counts = counts
        super().__init__(
            metainfo=dict(classes=tuple(names[: len(counts)])),
            # Which collects garbage of the whole process, a third of a second.
            serialize_data=False,
            **kwargs,
        )

    def load_data_list(self):
        return [
            dict(x=torch.tensor([1.0 * j, -1.0 * j]), gt_label=j)
            for j, n in enumerate(self.counts)
            for _ in range(n)
        ]

    def get_cat_ids(self, idx):
        return [self.get_data_info(idx)['gt_label']]


class PlaneHead(nn.Module):
    def __init__(self, num_classes, loss):
        super().__init__()
        self.num_classes = num_classes
        self.fc = nn.Linear(2, num_classes)
        self.loss_module = MODELS.build(loss)

    def forward(self, x):
        return self.fc(x)


class PlaneModel(BaseModel):
    def __init__(self, loss, num_classes=3):
        super().__init__()
        self.head = PlaneHead(num_classes, loss)

    def forward(self, x, gt_label, mode='tensor', **kwargs):
        logits = self.head(x)
        if mode == 'loss':
            return dict(loss=self.head.loss_module(logits, gt_label))
        return list(logits)


class PlaneMetric(BaseMetric):
    seen = []

    def process(self, data_batch, data_samples):
        self.results.extend(data_samples)

    def compute_metrics(self, results):
        PlaneMetric.seen.append(torch.stack(results).cpu())
        return dict(mean=torch.stack(results).mean().item())


@pytest.fixture(autouse=True)
def registered():
    """In the root registry for one test only."""
    PlaneMetric.seen.clear()
    known = (
        (DATASETS, PlaneDataset),
        (MODELS, PlaneModel),
        (METRICS, PlaneMetric),
    )
    for registry, cls in known:
        registry.register_module(module=cls)
    yield
    for registry, cls in known:
        del registry._module_dict[cls.__name__]


@pytest.fixture
def loader():

    def make(counts=COUNTS, wrapper=None, names='abcdefg', **kwargs):
        dataset = dict(type='PlaneDataset', counts=counts, names=names)
        if wrapper:
            dataset = dict(wrapper, dataset=dataset)
        return dict(
            batch_size=5,
            num_workers=0,
            collate_fn=dict(type='default_collate'),
            sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=dataset,
            **kwargs,
        )

    return make


@pytest.fixture
def log():
    """Messages of all runners of the test."""
    records = []

    class Keep(logging.Handler):
        def emit(self, record):
            records.append(record)

    keep = Keep()
    yield records, keep


@pytest.fixture
def make_runner(tmp_path, loader, request, log, monkeypatch):
    records, keep = log
    # It asks compilers and drivers for their versions.
    monkeypatch.setattr(Runner, '_log_env', lambda self, env_cfg: None)

    def make(loss=None, num_classes=3, train=None, **kwargs):
        cfg = dict(
            model=dict(
                type='PlaneModel',
                num_classes=num_classes,
                loss=loss or dict(type='lt_losses_mm.BalancedSoftmaxLoss'),
            ),
            work_dir=str(tmp_path),
            train_dataloader=loader() if train is None else train,
            train_cfg=dict(by_epoch=True, max_epochs=1),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
            val_dataloader=loader((2, 2, 2)),
            val_cfg=dict(),
            val_evaluator=dict(type='PlaneMetric'),
            default_hooks=dict(logger=None),
            randomness=dict(seed=0),
            experiment_name=f'{request.node.name}{len(records)}{id(kwargs)}',
        )
        cfg.update(kwargs)
        for key in [k for k, v in cfg.items() if v is False]:
            del cfg[key]
        runner = Runner(**copy.deepcopy(cfg))
        runner.logger.addHandler(keep)
        return runner

    yield make
    MMLogger._instance_dict.clear()
