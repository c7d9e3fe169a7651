# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""tools/class_statistics.py, on configs and on sources."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path

import pytest

from lt_losses_mm.priors import ClassCounts, load_class_counts

TOOLS = Path(__file__).resolve().parents[2] / 'tools'


@pytest.fixture
def run(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(TOOLS))
    monkeypatch.setenv('COLUMNS', '250')
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


def test_pixels_are_grouped_by_rank(run, tmp_path):
    """Twenty pixels are nothing, and every class is in many images."""
    out = run('--counts', 'ade20k', '--out', tmp_path / 'pixels.json')
    assert 'groups (by pixel counts) │ 50 head, 50 body, 50 tail' in out
    again = run('--counts', tmp_path / 'pixels.json')
    assert 'groups (by pixel counts) │ 50 head, 50 body, 50 tail' in again
    shot = run('--counts', 'ade20k', '--groups', 'shot')
    assert 'groups (by image counts) │ 131 many, 19 medium, 0 few' in shot


@pytest.mark.parametrize('name', ['lvis_mine.json', 'mine.json'])
def test_the_name_of_a_file_decides_nothing(run, tmp_path, name):
    path = tmp_path / name
    path.write_text('[500, 50, 15]')
    assert '1 many, 1 medium, 1 few' in run('--counts', path)
    content = dict(
        images=[dict(id=i) for i in range(15)],
        categories=[dict(id=1, name='cat'), dict(id=2, name='dog')],
        annotations=[
            dict(image_id=i, category_id=1 + (i > 10), bbox=[0, 0, 9, 9])
            for i in range(15)
        ],
    )
    path.write_text(json.dumps(content))
    assert '0 frequent, 1 common, 1 rare' in run('--counts', path)


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
        f'Class counts of {config}',
        str(tmp_path / 'train.txt'),
        'Head: none with a classification loss',
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


MODEL = """
model = dict(head=dict(type='LinearClsHead', num_classes=3, loss=dict({loss})))
test_dataloader = dict(dataset=dict(
    type='CustomDataset', data_root={root!r}, ann_file='{test}',
    pipeline=[], metainfo=dict(classes=['cat', 'dog', 'owl'])))
"""


@pytest.fixture
def advice(run, config, tmp_path):
    (tmp_path / 'even.txt').write_text('a.jpg 0\nb.jpg 1\nc.jpg 2\n')
    (tmp_path / 'part.txt').write_text('a.jpg 0\n' * 9 + 'c.jpg 2\n')
    text = config.read_text()

    def call(
        loss="type='CrossEntropyLoss'", test='even.txt', *, other='', old=''
    ):
        model = MODEL.format(loss=loss, root=str(tmp_path), test=test)
        config.write_text((text + model).replace(old or ' ', other or ' '))
        out = run(config, '--cfg-options', UNBALANCED)
        return out[out.index('Head:') :]

    return call


UNBALANCED = 'train_dataloader.dataset.oversample_thr=0.001'


def test_advice_for_a_classifier(advice):
    out = advice()
    for words in (
        'Head: LinearClsHead with CrossEntropyLoss (softmax).',
        'Test set: balanced, test_dataloader has an imbalance factor of 1 ',
        "First try: type='lt_losses_mm.BalancedSoftmaxLoss'. Why: on the ",
    ):
        assert words in out


@pytest.mark.parametrize(
    'loss, words',
    [
        ("type='CrossEntropyLoss', use_sigmoid=True", 'BalancedSigmoidLoss'),
        ("type='mmpretrain.AsymmetricLoss'", 'BalancedSigmoidLoss'),
        (
            "type='FocalLoss'",
            'not known. Why: nothing was measured for FocalLoss',
        ),
        (
            "type='lt_losses_mm.SeesawSoftmaxLoss'",
            "BalancedSoftmaxLoss', not SeesawSoftmaxLoss, which the config",
        ),
        (
            "type='lt_losses_mm.BalancedSoftmaxLoss'",
            'BalancedSoftmaxLoss, which the config has already. Why: on the ',
        ),
    ],
)
def test_advice_follows_the_loss_of_the_host(advice, loss, words):
    assert f'First try: {words}' in advice(loss).replace(
        "type='lt_losses_mm.", ''
    )


@pytest.mark.parametrize(
    'options, words',
    [
        (
            dict(test='part.txt'),
            'not balanced, test_dataloader has an imbalance factor of 9 '
            '(image counts) and 1 classes without a sample',
        ),
        (dict(test='lost.txt'), 'test data not known ('),
        (dict(old='test_dataloader', other='x'), 'Test set: none in this'),
        (dict(old='LinearClsHead', other='YOLOXHead'), 'none of these losses'),
    ],
)
def test_advice_says_what_is_odd(advice, options, words):
    assert words in advice(**options)


def test_nothing_to_correct(run, config, tmp_path):
    (tmp_path / 'train.txt').write_text('a.jpg 0\nb.jpg 1\nc.jpg 2\n')
    model = MODEL.format(
        loss="type='CrossEntropyLoss'", root=str(tmp_path), test='train.txt'
    )
    config.write_text(config.read_text() + model)
    assert (
        'First try: nothing. Why: the largest class has only 1 times'
        in run(config)
    )


def test_numbers_of_the_advice_are_those_of_the_page(run):
    """Each is in a row of the table that is written from the ledger."""
    tool = importlib.import_module('class_statistics')
    digits, page = (
        (TOOLS.parent / f'docs/{name}.md').read_text()
        for name in ('digits', 'which_loss')
    )
    for key, (_, why) in tool.FIRST.items():
        for number in re.findall(r'\d+\.\d', why):
            if tool.MEASURED in why:
                assert f'| {number} ± ' in digits, (key, number)
            else:
                assert number in page, (key, number)


@pytest.mark.parametrize(
    'scope, head, loss, classes, words',
    [
        ('mmdet', 'Shared2FCBBoxHead', {}, 80, 'BalancedSoftmaxLoss'),
        ('mmdet', 'Shared2FCBBoxHead', {}, 500, 'SigmoidEqualizationLoss'),
        ('mmdet', 'ATSSHead', 'FocalLoss', 80, 'keep the loss'),
        ('mmdet', 'FCOSHead', None, 80, 'keep the loss'),
        ('mmpretrain', 'LinearClsHead', None, 9, 'BalancedSoftmaxLoss'),
        ('mmpretrain', 'MultiLabelLinearClsHead', None, 9, 'BalancedSigmoid'),
        ('mmdet', 'ATSSHead', 'FocalLoss', 1203, 'EqualizedFocalLoss'),
        ('mmdet', 'DINOHead', 'FocalLoss', 1203, 'keep the loss'),
        ('mmdet', 'GFLHead', 'QualityFocalLoss', 80, 'EqualizedQuality'),
        ('mmdet', 'DETRHead', {}, 80, "count_unit='image'"),
        ('mmseg', 'FCNHead', {}, 19, 'BalancedSoftmaxLoss'),
        ('mmseg', 'Mask2FormerHead', {}, 19, "count_unit='image'"),
        ('mmseg', 'FCNHead', 'FocalLoss', 19, 'not known'),
    ],
)
def test_advice_for_heads(run, scope, head, loss, classes, words):
    """As the page says; None is what the head has by default."""
    if loss is None:
        pytest.importorskip(f'{scope}.models')
    tool = importlib.import_module('class_statistics')
    part = dict(type=head)
    if loss is not None:
        part['loss_cls'] = dict(type=loss or 'CrossEntropyLoss')
    found = tool.heads_of_config(
        dict(default_scope=scope, model=dict(bbox_head=part))
    )
    counts = ClassCounts([100] + [1] * (classes - 1))
    lines = tool.advise(dict(default_scope=scope), list(found), counts)
    (line,) = (one for one in lines if one.startswith('First try: '))
    assert words in line.split('Why:')[0]


@pytest.mark.parametrize(
    'scope, head, loss, classes, words',
    [
        ('mmdet', 'RetinaHead', 'BalancedSigmoid', 80, 'keep the loss of the'),
        ('mmdet', 'RetinaHead', 'EqualizedFocal', 80, 'keep the loss of the'),
        ('mmdet', 'RetinaHead', 'EqualizedFocal', 1203, None),
        ('mmdet', 'GFLHead', 'EqualizedQualityFocal', 80, None),
        ('mmdet', 'Shared2FCBBoxHead', 'BalancedSoftmax', 80, None),
        ('mmdet', 'Shared2FCBBoxHead', 'SigmoidEqualization', 1203, None),
        ('mmdet', 'Shared2FCBBoxHead', 'BalancedSigmoid', 80, 'BalancedSoft'),
        ('mmdet', 'DINOHead', 'EqualizedFocal', 80, 'keep the loss of the'),
        ('mmdet', 'DETRHead', 'BalancedSoftmax', 80, None),
        ('mmseg', 'FCNHead', 'SigmoidEqualization', 19, 'BalancedSoftmax'),
        ('mmpretrain', 'LinearClsHead', 'EqualizedFocal', 9, 'BalancedSoft'),
        ('mmpretrain', 'MultiLabelLinearClsHead', 'BalancedSigmoid', 9, None),
    ],
)
def test_advice_where_a_loss_of_ours_is(
    run, scope, head, loss, classes, words
):
    """As the page says: it stays where it is the first there alone."""
    tool = importlib.import_module('class_statistics')
    loss += 'Loss'
    sigmoid = 'Softmax' not in loss
    ours = dict(type=f'lt_losses_mm.{loss}', use_sigmoid=sigmoid)
    cfg = dict(
        default_scope=scope,
        model=dict(bbox_head=dict(type=head, loss_cls=ours)),
    )
    counts = ClassCounts([100] + [1] * (classes - 1))
    lines = tool.advise(cfg, list(tool.heads_of_config(cfg)), counts)
    (line,) = (one for one in lines if one.startswith('First try: '))
    if words is None:
        assert f'{loss}, which the config has already.' in line
    else:
        assert words in line and f'not {loss}, which the config has.' in line


def test_heads_of_each_host():
    tool = importlib.import_module('class_statistics')
    found = tool.heads_of_config(
        dict(
            model=dict(
                rpn_head=dict(type='RPNHead', loss_cls=dict(type='X')),
                roi_head=dict(
                    bbox_head=[
                        dict(
                            type='Shared2FCBBoxHead',
                            num_classes=5,
                            loss_cls=dict(type='CrossEntropyLoss'),
                        )
                    ]
                ),
                decode_head=dict(
                    type='FCNHead',
                    num_classes=4,
                    loss_decode=[dict(type='CrossEntropyLoss', loss_weight=2)],
                ),
                bbox_head=dict(
                    type='GFLHead',
                    loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True),
                ),
            )
        )
    )
    assert [tuple(head[:4]) for head in found] == [
        ('Shared2FCBBoxHead', 'CrossEntropyLoss', 'softmax', 5),
        ('FCNHead', 'CrossEntropyLoss', 'softmax', 4),
        ('GFLHead', 'QualityFocalLoss', 'quality', None),
    ]


@pytest.mark.parametrize('kind', ['CustomDataset', 'ImageListDataset'])
def test_lists_without_names_take_the_number_of_the_heads(
    run, config, tmp_path, kind
):
    text = config.read_text() + MODEL.format(
        loss="type='CrossEntropyLoss'", root=str(tmp_path), test='train.txt'
    ).replace('num_classes=3', 'num_classes=4')
    text = text.replace(
        ",\n            metainfo=dict(classes=['cat', 'dog', 'owl'])", ''
    )
    text = text.replace(", metainfo=dict(classes=['cat', 'dog', 'owl'])", '')
    if kind == 'ImageListDataset':
        text = text.replace(
            "'CustomDataset'", "'lt_losses_mm.ImageListDataset'"
        )
        (tmp_path / 'train.txt').write_text('a.jpg 0\na.jpg 1\nb.jpg 1\n')
        (tmp_path / 'a.jpg').touch()
    config.write_text(text)
    out = run(config, '--cfg-options', UNBALANCED)
    assert 'classes │ 4' in out and 'without samples │' in out
    assert 'classes have no training sample, counted by image: ' in out
