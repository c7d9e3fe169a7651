# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""tools/gradient_ratio.py, on checkpoints of a training."""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from lt_losses_mm.losses import (
    EqualizedFocalLoss,
    SeesawSoftmaxLoss,
    SoftmaxEqualizationLoss,
)

pytest.importorskip('matplotlib')
ROOT = Path(__file__).resolve().parents[2]


def _load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_plane = _load(ROOT / 'tests/hooks/conftest.py')
registered, loader = _plane.registered, _plane.loader
log, make_runner = _plane.log, _plane.make_runner
tool = _load(ROOT / 'tools/gradient_ratio.py')

EFL = dict(type='lt_losses_mm.EqualizedFocalLoss', bias_prior=None)


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(
            sys, 'argv', ['gradient_ratio.py', *map(str, arguments)]
        )
        capsys.readouterr()
        tool.main()
        return ' '.join(capsys.readouterr().out.split())

    return call


@pytest.fixture
def fail(run, capsys):

    def call(*arguments):
        with pytest.raises(SystemExit):
            run(*arguments)
        return ' '.join(capsys.readouterr().err.split())

    return call


@pytest.fixture
def figures(monkeypatch):
    """What the tool has drawn."""
    drawn = []
    draw_ratio = tool.draw_ratio

    def spy(*args, **kwargs):
        drawn.append(draw_ratio(*args, **kwargs))
        return drawn[-1]

    monkeypatch.setattr(tool, 'draw_ratio', spy)
    return drawn


@pytest.fixture
def train(make_runner, tmp_path):
    """Train two epochs; return the last checkpoint and the loss."""

    def train(loss=EFL, with_config=True):
        runner = make_runner(
            loss,
            train_cfg=dict(by_epoch=True, max_epochs=2),
            cfg=dict(model=dict(head=dict(loss=loss))) if with_config else {},
        )
        runner.train()
        return tmp_path / 'epoch_2.pth', runner.model.head.loss_module

    return train


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_checkpoint_of_a_training(train, run, figures, tmp_path):
    path, loss = train(dict(EFL, class_counts=[6, 3, 1]))
    out = run(path, '--csv', 'table.csv')
    health = loss.statistics.health(loss.saturated())
    assert (
        f'head.loss_module: gradient ratio {health["min"]:.3g} min, '
        f'{health["median"]:.3g} median, {health["max"]:.3g} max; '
        f'{health["saturated"]:.1%} of classes at the clamp, '
        '0.0% never seen positive'
    ) in out
    assert 'Wrote table.csv Wrote gradient_ratio.png' in out
    assert (tmp_path / 'gradient_ratio.png').stat().st_size > 10_000

    rows = list(csv.reader((tmp_path / 'table.csv').open()))
    assert rows[0] == [
        'class',
        'count',
        'pos_grad',
        'neg_grad',
        'pos_count',
        'ratio',
    ]
    for label, (row, count) in enumerate(zip(rows[1:], (6, 3, 1))):
        assert list(map(float, row)) == [
            label,
            count,
            loss.statistics.pos_grad[label].item(),
            loss.statistics.neg_grad[label].item(),
            2 * count,
            loss.statistics.ratio[label].item(),
        ]
    # The curves of the training are there.
    assert len(figures[0].axes) == 3


def test_clamp_is_that_of_the_config(train, run, figures):
    """Softmax-EQL has another clamp than Equalized Focal Loss."""
    loss = dict(
        type='SoftmaxEqualizationLoss', floor=1e9, class_counts='no_such_file'
    )
    path, _ = train(dict(loss, class_counts=None))
    checkpoint = torch.load(path, weights_only=False)
    meta = checkpoint['meta']
    # Neither files of counts nor imports of the training must be here.
    meta['cfg'] = meta['cfg'].replace('None', "'no_such_file.json'")
    meta['cfg'] += "\ncustom_imports = dict(imports=['no_such_module'])\n"
    torch.save(checkpoint, path)
    assert '100.0% of classes at the clamp' in run(path)
    assert 'at the clamp: 3' in legend(figures[0])


def test_clamp_without_a_config(train, run, figures, tmp_path):
    path, loss = train(with_config=False)
    out = run(path, '--csv', 'table.csv')
    assert 'unknown share of classes at the clamp' in out
    assert not any('clamp' in text for text in legend(figures[0]))
    # Nor has it class counts.
    rows = list(csv.DictReader((tmp_path / 'table.csv').open()))
    assert [row['count'] for row in rows] == [''] * 3
    assert [
        float(row['ratio']) for row in rows
    ] == loss.statistics.ratio.tolist()


class TwoLosses(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = EqualizedFocalLoss(num_classes=2)
        self.second = SoftmaxEqualizationLoss(class_counts=[5, 2, 1])
        for loss in (self.first, self.second):
            loss(torch.zeros(3, loss.num_classes), torch.tensor([0, 0, 1]))
            loss.statistics.commit()


@pytest.fixture
def two_losses(tmp_path):
    """A bare state_dict, of a training without a Runner."""
    path = tmp_path / 'two.pth'
    torch.save(TwoLosses().state_dict(), path)
    return path


def test_several_losses(run, two_losses, figures, tmp_path):
    out = run(two_losses, '--out', 'a.svg', '--csv', 'b.csv')
    assert 'first: ' in out and 'second: ' in out
    for file in ('a.first.svg', 'a.second.svg', 'b.first.csv', 'b.second.csv'):
        assert f'Wrote {file}' in out
        assert (tmp_path / file).is_file()
    assert 'never seen positive: 1' not in legend(figures[0])
    assert 'never seen positive: 1' in legend(figures[1])


def test_one_of_several_losses(run, two_losses, tmp_path):
    out = run(two_losses, '--loss', 'second', '--out', 'a.png')
    assert 'first' not in out
    assert (tmp_path / 'a.png').is_file()


def test_bare_loss(run, tmp_path):
    """Its keys have no prefix, so it has no name."""
    torch.save(TwoLosses().first.state_dict(), tmp_path / 'loss.pth')
    assert 'loss: gradient ratio' in run(tmp_path / 'loss.pth')


def test_config_of_the_nearest_loss():
    configs = [
        ('decode_head.loss_decode', dict(type=EqualizedFocalLoss, gamma=3.0)),
        ('auxiliary_head.loss_decode', dict(type=EqualizedFocalLoss)),
    ]
    for path, _ in configs:
        assert isinstance(tool.build(path, 3, configs), EqualizedFocalLoss)
    assert tool.build('decode_head.loss_decode', 3, configs).gamma == 3
    assert tool.build('auxiliary_head.loss_decode', 3, configs).gamma == 2
    # Two that are equally near, and not the same: it is not known.
    assert tool.build('student.loss_decode', 3, configs) is None
    same = [(path, dict(cfg, gamma=3.0)) for path, cfg in configs]
    assert tool.build('student.loss_decode', 3, same).gamma == 3


def test_faults(fail, two_losses, tmp_path):
    text, pickled = tmp_path / 'config.py', tmp_path / 'tensor.pth'
    text.write_text('model = dict()')
    torch.save(torch.zeros(3), pickled)
    other = tmp_path / 'other.pth'
    torch.save(dict(state_dict=nn.Linear(2, 2).state_dict()), other)
    untrained = tmp_path / 'untrained.pth'
    torch.save(SoftmaxEqualizationLoss().state_dict(), untrained)
    # Statistics, but of labels.
    seesaw = tmp_path / 'seesaw.pth'
    torch.save(SeesawSoftmaxLoss(num_classes=3).state_dict(), seesaw)

    assert 'no such file: nothing.pth' in fail('nothing.pth')
    assert f'{text} is no checkpoint' in fail(text)
    assert f'{pickled} is no checkpoint' in fail(pickled)
    for path in (other, untrained, seesaw):
        assert f'{path} holds no gradient statistics' in fail(path)
    assert '--loss third: expected one of first, second' in fail(
        two_losses, '--loss', 'third'
    )
    assert 'No such file or directory' in fail(
        two_losses, '--out', tmp_path / 'no_such_folder/a.png'
    )
    assert 'No such file or directory' in fail(
        two_losses, '--csv', tmp_path / 'no_such_folder/a.csv'
    )
    assert 'expected a .png, .pdf or .svg' in fail(two_losses, '--out', 'a.x')
    assert 'expected a .png, .pdf or .svg' in fail(two_losses, '--out', 'a')
