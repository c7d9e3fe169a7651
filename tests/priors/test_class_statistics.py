# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""tools/class_statistics.py, on configs and on sources."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from lt_losses_mm.priors import load_class_counts

TOOLS = Path(__file__).resolve().parents[2] / 'tools'


@pytest.fixture
def run(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(TOOLS))
    monkeypatch.setenv('COLUMNS', '120')
    tool = importlib.import_module('class_statistics')

    def call(*arguments):
        monkeypatch.setattr(
            sys, 'argv', ['class_statistics.py', *map(str, arguments)]
        )
        tool.main()
        return ' '.join(capsys.readouterr().out.split())

    return call


@pytest.fixture
def config(tmp_path):
    pytest.importorskip('mmpretrain')
    lines = [f'{i}.jpg {min(i // 3, 2)}\n' for i in range(150)]
    (tmp_path / 'train.txt').write_text(''.join(lines))
    path = tmp_path / 'config.py'
    path.write_text(f"""
default_scope = 'mmpretrain'
train_dataloader = dict(
    batch_size=2,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='ClassBalancedDataset', oversample_thr=0.9, dataset=dict(
            type='CustomDataset', data_root={str(tmp_path)!r},
            ann_file='train.txt', pipeline=[dict(type='LoadImageFromFile')],
            metainfo=dict(classes=['cat', 'dog', 'owl']))))
""")
    return path


def test_source(run, tmp_path):
    out = run(
        '--counts',
        'lvis_v1',
        '--rows',
        2,
        '--unit',
        'instance',
        '--out',
        tmp_path / 'counts.json',
        '--plot',
        tmp_path / 'plot.png',
    )
    for words in (
        '1,270,141',
        '405 frequent, 461 common, 337 rare',
        'banana',
        '50,552',
        'Gini',
        "class_counts='",
    ):
        assert words in out
    saved = load_class_counts(tmp_path / 'counts.json')
    shipped = load_class_counts('lvis_v1', unit='instance')
    assert saved.counts.tolist() == shipped.counts.tolist()
    assert (saved.unit, saved.names) == ('instance', shipped.names)
    assert (tmp_path / 'plot.png').stat().st_size > 10_000


def test_pixels_are_grouped_by_images(run, tmp_path):
    out = run('--counts', 'ade20k', '--out', tmp_path / 'pixels.json')
    assert 'groups (by image counts) │ 131 many, 19 medium, 0 few' in out
    # That file has pixels alone, and the groups are defined for images.
    assert 'groups' not in run('--counts', tmp_path / 'pixels.json')


def test_config(run, config, tmp_path):
    out = run(config, '--out', tmp_path / 'counts.json')
    # The repeat factor of 3 in 150 images at 0.9 is ceil(sqrt(0.9 * 50)).
    saved = load_class_counts(tmp_path / 'counts.json')
    assert saved.counts.tolist() == [21, 21, 144]
    assert saved.names == ('cat', 'dog', 'owl')
    for words in (
        'CustomDataset (150 samples) through DefaultSampler, '
        'ClassBalancedDataset(oversample_thr=0.9)',
        'samples an epoch │ 186',
        'imbalance factor │ 6.85714',
        # The groups are those of the data before balancing.
        '1 many, 0 medium, 2 few',
    ):
        assert words in out


def test_config_options(run, config):
    out = run(
        config,
        '--cfg-options',
        'train_dataloader.dataset.oversample_thr=0.001',
    )
    assert 're-balanced by │ nothing' in out
    assert 'imbalance factor │ 48' in out


@pytest.mark.parametrize('kind', ['lt_losses_mm.ImageList', 'Custom'])
def test_data_without_class_names(run, config, kind):
    """Lists of ImageNet-LT have none; the heads know how many there are."""
    (config.parent / '0.jpg').touch()
    config.write_text(f"""
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet', depth=18, num_classes=7),
    head=dict(type='LinearClsHead', num_classes=4, in_channels=512))
train_dataloader = dict(
    batch_size=2,
    dataset=dict(
        type='{kind}Dataset', data_root={str(config.parent)!r},
        ann_file='train.txt', pipeline=[]))
""")
    out = run(config)
    assert 'classes │ 4' in out and 'classes without samples │ 1' in out
    assert '1 of 4 classes have no training sample' in out


@pytest.mark.parametrize(
    'arguments, words',
    [
        ([], 'either a config file or --counts'),
        (['a.py', '--counts', 'lvis_v1'], 'either a config file or --counts'),
        (['no_such_config.py'], 'no_such_config.py'),
    ],
)
def test_usage(run, arguments, words, capsys):
    with pytest.raises(SystemExit):
        run(*arguments)
    assert words in capsys.readouterr().err


def test_split_that_the_config_has_not(run, config, capsys):
    with pytest.raises(SystemExit):
        run(config, '--split', 'val')
    assert 'no val_dataloader' in capsys.readouterr().err
