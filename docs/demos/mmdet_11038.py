# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""What ``EQLV2Loss`` of mmdet computes in Mask R-CNN, and what ours does.

Run ``python docs/demos/mmdet_11038.py`` (CPU, seconds, MMDetection 3.x). Each
row has the expected number, that of ``EQLV2Loss``, with an asterisk where it
is another, and that of ``lt_losses_mm.SigmoidEqualizationLoss``. Expected is
the paper's formula, called as heads of mmdet call a loss; it is computed here
in float64 and, for statistics, by autograd. The exit status is 1 if a row is
not as ``mmdet_11038.md`` says.
"""

from __future__ import annotations

import functools
import math
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.distributed
import torch.nn.functional as F
from mmdet.models.losses import EQLV2Loss
from mmdet.models.task_modules.samplers import OHEMSampler
from mmdet.registry import MODELS
from mmengine.hub import get_config
from mmengine.logging import MMLogger
from torch import Tensor, multiprocessing, nn

from lt_losses_mm import commit_statistics
from lt_losses_mm.losses import SigmoidEqualizationLoss

# The config of the report; its head is that of every Mask R-CNN, R50, FPN.
CONFIG = 'mmdet::lvis/mask-rcnn_r50_fpn_sample1e-3_ms-1x_lvis-v1.py'
CLASSES = 6
BACKGROUND = CLASSES
GAMMA, MU, ALPHA = 12.0, 0.8, 4.0
RANKS = 2
STEPS = 3

# One entry a row: whether each loss is as expected; what contradicts the page.
results: list[tuple[bool, bool]] = []
failures: list[str] = []


# ------------------------------------------------------------------- output
def section(title: str) -> None:
    """Print the head of a table."""
    print(f'\n{title}\n{"":46}{"expected":>11}{"EQLV2Loss":>11}{"ours":>11}')


def row(
    name: str, expected: Any, theirs: Any, ours: Any, differs: bool = True
) -> None:
    """Print a row and note whether it is as the document says.

    Args:
        name (str): What is computed.
        expected (float | str): What should come out.
        theirs (float | str): What mmdet's loss gives.
        ours (float | str): What our loss gives.
        differs (bool): The claim: whether that of mmdet is not the expected.
    """
    right = _same(expected, theirs), _same(expected, ours)
    results.append(right)
    cells = _text(expected), _text(theirs, right[0]), _text(ours, right[1])
    print(f'  {name:44}' + ''.join(f'{cell:>11}' for cell in cells))
    if right != (not differs, True):
        failures.append(
            f'{name}: expected {expected}, EQLV2Loss {theirs} (said to '
            f'{"differ" if differs else "agree"}), ours {ours}'
        )


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, str) or isinstance(b, str):
        return a == b
    return math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-6)


def _text(value: Any, right: bool = True) -> str:
    text = value if isinstance(value, str) else f'{value:.4g}'
    return text if right else f'{text}*'


# ---------------------------------------------------------------- the three
class Reference:
    """EQLv2 as its paper defines it; one process, float64.

    Args:
        num_classes (int): C; logits have C + 1 columns, background last.
    """

    def __init__(self, num_classes: int = CLASSES) -> None:
        self.pos_grad = torch.zeros(num_classes, dtype=torch.float64)
        self.neg_grad = torch.zeros(num_classes, dtype=torch.float64)

    def negative_weight(self) -> Tensor:
        """r, (C,); 1 before there are gradients."""
        ratio = self.pos_grad / (self.neg_grad + 1e-10)
        r = 1 / (1 + torch.exp(-GAMMA * (ratio - MU)))
        return torch.where(self.pos_grad + self.neg_grad > 0, r, 1.0)

    def row_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of each row, (N,)."""
        target = F.one_hot(labels, logits.size(1)).double()
        r = torch.cat([self.negative_weight(), torch.ones(1)])
        weight = target * (1 + ALPHA * (1 - r)) + (1 - target) * r
        p = logits.double().sigmoid()
        likelihood = target * p + (1 - target) * (1 - p)
        return -(weight * likelihood.log()).sum(1)

    def step(self, *batches: tuple[Tensor, Tensor]) -> None:
        """Add the gradients of batches that share one optimizer step."""
        sums = []
        for logits, labels in batches:
            logits = logits.detach().double().requires_grad_()
            total = self.row_loss(logits, labels).sum()
            (grad,) = torch.autograd.grad(total, logits)
            positive = F.one_hot(labels, logits.size(1)) * grad.abs()
            sums.append((positive.sum(0), (grad.abs() - positive).sum(0)))
        for positive, negative in sums:
            self.pos_grad += positive[:-1]
            self.neg_grad += negative[:-1]


@functools.lru_cache(maxsize=None)
def stock_config() -> Any:
    """The config of mmdet that all heads come from."""
    return get_config(CONFIG)


def build_head(loss: str, num_classes: int = CLASSES, **loss_args) -> Any:
    """The stock head with few classes, thin features and another loss."""
    cfg = stock_config().model.roi_head.bbox_head.copy()
    cfg.update(in_channels=1, fc_out_channels=8, num_classes=num_classes)
    cfg.loss_cls = dict(type=loss, num_classes=num_classes, **loss_args)
    return MODELS.build(cfg)


def mmdet_head(*args: Any, **loss_args: Any) -> Any:
    """The stock head with mmdet's loss."""
    return build_head('EQLV2Loss', *args, **loss_args)


def our_head(*args: Any, **loss_args: Any) -> Any:
    """The stock head with our loss."""
    return build_head(
        'lt_losses_mm.SigmoidEqualizationLoss', *args, **loss_args
    )


def head_loss(
    head: Any, logits: Tensor, labels: Tensor, weights: Tensor | None = None
) -> float:
    """``loss_cls`` of the head, called as the RoI head of mmdet calls it."""
    if weights is None:
        weights = torch.ones(len(labels))
    losses = head.loss(logits, None, None, labels, weights, None, None)
    return losses['loss_cls'].item()


def roi_batch(step: int = 0, rank: int = 0) -> tuple[Tensor, Tensor]:
    """Logits (8, C + 1) and labels (8,) of 4 objects and 4 background RoIs.

    Objects are of classes 0 and 1 on rank 0, of 2 and 3 on rank 1.
    """
    count = 8 * (CLASSES + 1)
    logits = torch.arange(count).mul(1.7).add(step + 3 * rank).cos() * 2 - 1
    objects = torch.tensor([0, 0, 0, 1]) + 2 * rank
    labels = torch.cat([objects, torch.full((4,), BACKGROUND)])
    return logits.view(8, CLASSES + 1), labels


def attempt(function: Any, *args: Any, **kwargs: Any) -> Any:
    """The result of a call, or 'error'."""
    try:
        return function(*args, **kwargs)
    except (RuntimeError, ValueError, IndexError):
        return 'error'


# ----------------------------------------------------------------- sections
def what_agrees() -> None:
    """The formula: two steps of one process, all weights 1."""
    section('0. What agrees: two steps of one process, all label weights 1')
    reference, theirs, ours = Reference(), mmdet_head(), our_head()
    for step in range(2):
        batch = roi_batch(step)
        row(
            f'loss, step {step + 1}',
            reference.row_loss(*batch).mean().item(),
            head_loss(theirs, *batch),
            head_loss(ours, *batch),
            differs=False,
        )
        reference.step(batch)
        commit_statistics(ours)
    for name in ('pos_grad', 'neg_grad'):
        row(
            f'{name} of class 1 after both',
            *(
                getattr(owner, name)[1].item()
                for owner in (
                    reference,
                    theirs.loss_cls,
                    ours.loss_cls.statistics,
                )
            ),
            differs=False,
        )


def logits_at_test(num_classes: int = CLASSES) -> dict[str, Tensor]:
    """Logits of five RoIs; what is not named is at -5."""
    low = torch.full((num_classes + 1,), -5.0)
    last = num_classes
    named = {
        'A one class answers': {0: 3.0, last: -4.0},
        'B background answers': {last: 4.0},
        'C nothing answers': {},
        'D two classes answer': {1: 4.0, 2: 4.0, last: -4.0},
        'E one class and background answer': {3: 3.0, last: 2.0},
    }
    found = {}
    for name, values in named.items():
        found[name] = low.clone()
        for column, value in values.items():
            found[name][column] = value
    return found


def predict(head: Any, logits: Tensor) -> Tensor:
    """Scores that go into the NMS, best class of each RoI."""
    boxes = torch.tensor([[0.0, 0.0, 0.0, 9.0, 9.0]]).expand(len(logits), -1)
    results = head.predict_by_feat(
        rois=(boxes,),
        cls_scores=(logits,),
        bbox_preds=(logits.new_zeros(len(logits), 4 * head.num_classes),),
        batch_img_metas=[dict(img_shape=(800, 1333))],
        rcnn_test_cfg=None,
    )
    return results[0].scores[:, :-1].amax(1)


def activation() -> None:
    """Scores at test."""
    section('1. Score of the best class of a RoI, BBoxHead.predict_by_feat')
    theirs, ours = mmdet_head(), our_head()
    names, logits = zip(*logits_at_test().items())
    logits = torch.stack(logits)
    sigmoid = logits.double().sigmoid()
    scores = [
        (sigmoid[:, :-1] * (1 - sigmoid[:, -1:])).amax(1),
        predict(theirs, logits),
        predict(ours, logits),
    ]
    for name, *values in zip(names, *scores):
        row(name, *(value.item() for value in values))
    row(
        'order of A to E',
        *(
            ''.join(names[i][0] for i in best.argsort(descending=True))
            for best in scores
        ),
    )
    theirs.loss_cls.custom_cls_channels = True
    row(
        'order, with custom_cls_channels = True',
        *(
            ''.join(names[i][0] for i in best.argsort(descending=True))
            for best in (scores[0], predict(theirs, logits), scores[2])
        ),
        differs=False,
    )
    row(
        'A, with custom_cls_channels = True',
        scores[0][0].item(),
        predict(theirs, logits)[0].item(),
        scores[2][0].item(),
        differs=False,
    )
    wide = torch.stack(list(logits_at_test(1203).values()))
    row(
        'A among 1203 classes',
        scores[0][0].item(),
        predict(mmdet_head(1203), wide)[0].item(),
        predict(our_head(1203), wide)[0].item(),
    )


def channels() -> None:
    """Who chooses the columns, and what the head asks the loss."""
    section('2. Output channels, and what the head asks of the loss')
    found = []
    for build, cls, method in (
        (mmdet_head, EQLV2Loss, 'get_channel_num'),
        (our_head, SigmoidEqualizationLoss, 'get_cls_channels'),
    ):
        with mock.patch.object(
            cls, method, autospec=True, side_effect=getattr(cls, method)
        ) as asked:
            head = build()
        loss = head.loss_cls
        flags = [
            getattr(loss, f'custom_{name}', False)
            for name in ('cls_channels', 'activation', 'accuracy')
        ]
        methods = ['get_cls_channels', 'get_activation', 'get_accuracy']
        with mock.patch.object(
            cls,
            'get_activation',
            autospec=True,
            side_effect=cls.get_activation,
        ) as activated:
            predict(head, torch.zeros(1, CLASSES + 1))
        found.append(
            (
                sum(flags),
                sum(hasattr(loss, name) for name in methods),
                'yes' if asked.called else 'no',
                'yes' if activated.called else 'no',
                head.fc_cls.out_features,
            )
        )
    names = (
        ('custom_* flags set, of 3', 3, True),
        ('methods that the flags stand for, of 3', 3, True),
        ('its channel method is called by the head', 'yes', True),
        ('get_activation is called by predict_by_feat', 'yes', True),
        ('fc_cls.out_features for 6 classes', CLASSES + 1, False),
    )
    for (name, expected, differs), theirs, ours in zip(names, *found):
        row(name, expected, theirs, ours, differs=differs)


def label_weights() -> None:
    """Weights per RoI."""
    section('3. Label weights, BBoxHead.loss')
    logits, labels = roi_batch()
    ones = torch.ones(8)
    objects = (labels != BACKGROUND).float()
    per_row = Reference().row_loss(logits, labels)
    for name, weights, differs in (
        ('loss, all weights 1', ones, False),
        ('loss, background RoIs at 0', objects, True),
        ('loss, all weights 0', 0 * ones, True),
        ('loss, train_cfg.pos_weight = 2', 1 + objects, True),
    ):
        divisor = max((weights > 0).sum().item(), 1)
        row(
            name,
            (per_row * weights).sum().item() / divisor,
            head_loss(mmdet_head(), logits, labels, weights),
            head_loss(our_head(), logits, labels, weights),
            differs=differs,
        )
    theirs, ours = mmdet_head(), our_head()
    for head in (theirs, ours):
        head_loss(head, logits, labels, 0 * ones)
    commit_statistics(ours)
    row(
        'sum of neg_grad, all weights 0',
        0.0,
        theirs.loss_cls.neg_grad.sum().item(),
        ours.loss_cls.statistics.neg_grad.sum().item(),
    )


def reductions() -> None:
    """Averaging factor, reductions, empty input."""
    section('4. avg_factor, reductions, no RoIs')
    logits, labels = roi_batch()
    weights = torch.ones(8)
    per_row = Reference().row_loss(logits, labels)

    batch = (logits, labels, weights)
    total = per_row.sum().item()
    for name, expected, built, called in (
        ('loss, avg_factor=16', total / 16, {}, dict(avg_factor=16)),
        (
            "loss, reduction_override='sum'",
            total,
            {},
            dict(reduction_override='sum'),
        ),
        (
            "loss, reduction='sum' in the config",
            total,
            dict(reduction='sum'),
            {},
        ),
    ):
        row(
            name,
            expected,
            *(
                build(**built).loss_cls(*batch, **called).item()
                for build in (mmdet_head, our_head)
            ),
        )
    row(
        "number of losses, reduction_override='none'",
        8,
        *(
            build().loss_cls(*batch, reduction_override='none').numel()
            for build in (mmdet_head, our_head)
        ),
    )
    hardest = per_row.topk(2).indices.tolist()
    row(
        'OHEMSampler.hard_mining, 2 of 8 RoIs',
        str(hardest),
        attempt(mine, mmdet_head(), logits, labels),
        attempt(mine, our_head(), logits, labels),
    )
    none = (logits[:0], labels[:0], weights[:0])
    row(
        'loss_cls, no RoIs',
        0.0,
        *(build().loss_cls(*none).item() for build in (mmdet_head, our_head)),
    )
    row(
        'BBoxHead.loss, no RoIs',
        'left out',
        *(
            'loss_cls'
            if 'loss_cls'
            in head.loss(none[0], None, None, *none[1:], None, None)
            else 'left out'
            for head in (mmdet_head(), our_head())
        ),
        differs=False,
    )


def mine(head: Any, logits: Tensor, labels: Tensor) -> str:
    """The two hardest RoIs, as a training with OHEM picks them."""
    context = SimpleNamespace(
        bbox_head=head,
        _bbox_forward=lambda feats, rois: dict(cls_score=logits),
    )
    sampler = OHEMSampler(num=8, pos_fraction=0.25, context=context)
    found = sampler.hard_mining(
        torch.arange(8), 2, torch.zeros(8, 4), labels, None
    )
    return str(found.tolist())


# -------------------------------------------------------------------- ranks
def train_rank(rank: int, folder: str) -> None:
    """Statistics of one of two ranks after three steps, into a file."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        'gloo',
        init_method=f'file://{folder}/store',
        rank=rank,
        world_size=RANKS,
        # If the other rank fails to start.
        timeout=timedelta(minutes=2),
    )
    heads = dict(
        theirs=mmdet_head(),
        synchronized=mmdet_head(use_distributed=True),
        ours=our_head(),
    )
    for step in range(STEPS):
        for head in heads.values():
            head_loss(head, *roi_batch(step, rank))
        commit_statistics(heads['ours'])
    found = {
        name: (
            head.loss_cls.pos_grad,
            head.loss_cls.map_func(head.loss_cls.pos_neg),
        )
        for name, head in heads.items()
        if name != 'ours'
    }
    loss = heads['ours'].loss_cls
    found['ours'] = loss.statistics.pos_grad, loss.weights()[1]
    torch.save(found, f'{folder}/rank{rank}.pt')
    torch.distributed.destroy_process_group()


def two_ranks() -> None:
    """Statistics under data-parallel training."""
    section('5. Statistics of 2 ranks (gloo) after 3 steps')
    reference = Reference()
    for step in range(STEPS):
        batches = [roi_batch(step, rank) for rank in range(RANKS)]
        reference.step(*batches)
    expected = (reference.pos_grad, reference.negative_weight())
    with tempfile.TemporaryDirectory() as folder:
        others = [
            multiprocessing.get_context('spawn').Process(
                target=train_rank, args=(rank, folder)
            )
            for rank in range(1, RANKS)
        ]
        for process in others:
            process.start()
        train_rank(0, folder)
        for process in others:
            process.join()
        ranks = [
            torch.load(Path(folder, f'rank{rank}.pt')) for rank in range(RANKS)
        ]
    for what, name in enumerate(('pos_grad', 'weight of negatives')):
        for j in (1, 3):
            for rank, found in enumerate(ranks):
                row(
                    f'{name}, class {j}, on rank {rank}',
                    expected[what][j].item(),
                    found['theirs'][what][j].item(),
                    found['ours'][what][j].item(),
                )
    row(
        'largest difference between ranks, pos_grad',
        0.0,
        *(
            (ranks[0][name][0] - ranks[1][name][0]).abs().max().item()
            for name in ('theirs', 'ours')
        ),
    )
    row(
        'pos_grad, class 3, use_distributed=True',
        expected[0][3].item(),
        ranks[0]['synchronized'][0][3].item(),
        ranks[0]['ours'][0][3].item(),
        differs=False,
    )
    batch = roi_batch()
    row(
        'loss, use_distributed=True, one process',
        Reference().row_loss(*batch).mean().item(),
        attempt(head_loss, mmdet_head(use_distributed=True), *batch),
        head_loss(our_head(), *batch),
    )


# --------------------------------------------------------------------- bias
def initial_bias() -> None:
    """The loss before training, 1203 classes."""
    section('6. A fresh head, 1203 classes: 512 background RoIs')
    prior = 0.001
    theirs, ours = mmdet_head(1203), our_head(1203)
    for head in (theirs, ours):
        head.init_weights()
    # A Runner does this for our losses.
    nn.init.constant_(ours.fc_cls.bias, ours.loss_cls.initial_bias)
    # Features of zeros: what remains is the bias.
    features = torch.zeros(512, 1, 7, 7)
    labels = torch.full((512,), 1203)
    losses = []
    for head in (theirs, ours):
        with torch.no_grad():
            logits, _ = head(features)
        losses.append(head_loss(head, logits, labels))
        commit_statistics(head)
    negatives = [
        owner.neg_grad[0].item()
        for owner in (theirs.loss_cls, ours.loss_cls.statistics)
    ]
    row(
        'bias of fc_cls',
        math.log(prior / (1 - prior)),
        theirs.fc_cls.bias[0].item(),
        ours.fc_cls.bias[0].item(),
    )
    row(
        'loss per RoI',
        -math.log(prior) - 1203 * math.log(1 - prior),
        *losses,
    )
    row('neg_grad of each class after one step', 512 * prior, *negatives)
    row(
        'positive RoIs, at least, until its ratio is mu',
        *(
            math.ceil(MU * negative / (1 + ALPHA))
            for negative in (512 * prior, *negatives)
        ),
    )


# ------------------------------------------------------------- accumulation
def second_call() -> None:
    """Statistics between two optimizer steps."""
    section('7. Two calls before one optimizer step, and a pass of evaluation')
    first, second = roi_batch(0), roi_batch(1)
    reference, theirs, ours = Reference(), mmdet_head(), our_head()
    owners = (reference, theirs.loss_cls, ours.loss_cls.statistics)
    heads = (theirs, ours)

    for head in heads:
        head_loss(head, *first)
    row(
        'pos_grad of class 1 after the first call',
        *(owner.pos_grad[1].item() for owner in owners),
    )
    row(
        'loss of the second call',
        reference.row_loss(*second).mean().item(),
        *(head_loss(head, *second) for head in heads),
    )
    reference.step(first, second)
    commit_statistics(ours)
    for name in ('pos_grad', 'neg_grad'):
        row(
            f'{name} of class 1 after the step',
            *(getattr(owner, name)[1].item() for owner in owners),
        )

    reference, theirs, ours = Reference(), mmdet_head(), our_head()
    for head in (theirs, ours):
        head.eval()
        with torch.no_grad():
            head_loss(head, *first)
    commit_statistics(ours)
    row(
        'pos_grad of class 1, eval() and no_grad()',
        0.0,
        theirs.loss_cls.pos_grad[1].item(),
        ours.loss_cls.statistics.pos_grad[1].item(),
    )


def main() -> int:
    """Print all tables; 1 if one of them is not as described."""
    torch.set_num_threads(1)
    # How layers are initialised is logged to stdout.
    MMLogger.get_current_instance().setLevel('WARNING')
    print('* is not the expected result')
    what_agrees()
    activation()
    channels()
    label_weights()
    reductions()
    two_ranks()
    initial_bias()
    second_call()
    theirs, ours = (wrong.count(False) for wrong in zip(*results))
    print(
        f'\n{len(results)} rows: EQLV2Loss differs from what is expected in '
        f'{theirs}, ours in {ours}'
    )
    for failure in failures:
        print(f'not as described: {failure}', file=sys.stderr)
    return int(bool(failures))


if __name__ == '__main__':
    sys.exit(main())
