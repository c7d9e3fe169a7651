# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The recipes of docs/outside_openmmlab.md do what they say.

The plain loop always runs; that of a library where the library is installed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lt_losses_mm.losses import (
    BalancedSoftmaxLoss,
    LongTailLoss,
    SoftmaxEqualizationLoss,
)

PAGE = Path(__file__).parents[1] / 'docs' / 'outside_openmmlab.md'
# 24 samples of 3 classes, by 4: 6 batches.
LABELS = torch.tensor([0] * 16 + [1] * 6 + [2] * 2)


def recipe(heading: str) -> str:
    """The code below a heading of the page."""
    section = PAGE.read_text('utf-8').split(f'## {heading}\n')[1]
    return re.search(r'```python\n(.*?)```', section, re.S)[1]


@pytest.fixture
def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(LABELS), generator=generator)
    images = torch.randn(len(LABELS), 5, generator=generator)
    return TensorDataset(images, LABELS[order])


def check_statistics(criterion: SoftmaxEqualizationLoss, epochs: int) -> None:
    """Each sample was counted once an epoch, and nothing is left."""
    counted = criterion.statistics.pos_count
    assert counted.tolist() == (LABELS.bincount() * epochs).tolist()
    assert not criterion.statistics.pending.any()


def test_plain_loop(data: TensorDataset) -> None:
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    before = model.weight.clone()
    names: dict[str, Any] = dict(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        loader=DataLoader(data, batch_size=4),
    )
    exec(recipe('A loop of your own'), names)
    check_statistics(names['criterion'], 1)
    assert not model.weight.equal(before)


class OfHuggingFace(nn.Module):
    """A model as the Trainer calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(5, 3)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        return {'logits': self.classifier(pixel_values)}


@pytest.mark.parametrize('accumulated', [1, 2])
def test_hugging_face_trainer(
    data: TensorDataset, tmp_path: Path, accumulated: int
) -> None:
    """Two half batches train as one: the divisor is that of the step."""
    transformers = pytest.importorskip('transformers')
    pytest.importorskip('accelerate')

    def train(batch: int, accumulated: int, criterion: LongTailLoss) -> Any:
        torch.manual_seed(0)
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulated,
            num_train_epochs=2,
            learning_rate=0.1,
            lr_scheduler_type='constant',
            max_grad_norm=0.0,
            optim='sgd',
            report_to=[],
            save_strategy='no',
            disable_tqdm=True,
            remove_unused_columns=False,
            use_cpu=True,
        )
        names: dict[str, Any] = dict(
            model=OfHuggingFace(),
            criterion=criterion,
            training_arguments=arguments,
            train_dataset=[
                dict(pixel_values=image, labels=label) for image, label in data
            ],
        )
        exec(recipe('Hugging Face Trainer'), names)
        assert names['trainer'].state.global_step == 12
        return names['model']

    criterion = SoftmaxEqualizationLoss(num_classes=3)
    model = train(4 // accumulated, accumulated, criterion)
    check_statistics(model.criterion, 2)
    assert 'criterion.statistics.sums' in model.state_dict()
    whole = train(4, 1, SoftmaxEqualizationLoss(num_classes=3))
    torch.testing.assert_close(
        model.classifier.weight, whole.classifier.weight
    )


@pytest.mark.parametrize('accumulated', [1, 2])
def test_lightning(data: TensorDataset, accumulated: int) -> None:
    lightning = pytest.importorskip('lightning')
    torch.manual_seed(0)
    criterion = SoftmaxEqualizationLoss(num_classes=3)
    names: dict[str, Any] = dict(torch=torch)
    exec(recipe('Lightning'), names)
    commits = []
    commit = criterion.statistics.commit
    criterion.statistics.commit = lambda: commits.append(commit())
    model = names['Classifier'](nn.Linear(5, 3), criterion)
    trainer = lightning.Trainer(
        max_epochs=2,
        accumulate_grad_batches=accumulated,
        accelerator='cpu',
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(data, batch_size=4))
    check_statistics(criterion, 2)
    assert len(commits) == 12 // accumulated
    assert 'criterion.statistics.sums' in model.state_dict()


def test_alternative_of_the_loop() -> None:
    """The loss in the comment of the first recipe."""
    (call,) = re.findall(r'# criterion = (.*\))', recipe('A loop of your own'))
    loss = eval(call, dict(BalancedSoftmaxLoss=BalancedSoftmaxLoss))
    assert loss(torch.zeros(1, 3), torch.tensor([2])) > torch.tensor(3.0).log()
