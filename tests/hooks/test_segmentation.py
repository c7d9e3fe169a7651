"""Which pixels are not trained: counted, and compared before training."""

import copy
import re

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import nn

from lt_losses_mm.hooks import ClassCountsHook
from lt_losses_mm.hooks.segmentation import (
    check_reduced,
    check_segmentation,
    counted_as,
    label_of_config,
)
from lt_losses_mm.losses import LOSSES, BalancedSoftmaxLoss
from lt_losses_mm.priors import masks as pixel_masks

pytest.importorskip('mmseg')

BALANCED = dict(type='lt_losses_mm.BalancedSoftmaxLoss')
PLAIN = dict(type='CrossEntropyLoss')
OURS = dict(type='lt_losses_mm.FrequencyGroupIoU')
NORM = dict(type='BN')
CLASSES = ('road', 'car', 'pole')


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Write masks; the data set that reads them."""
    monkeypatch.setenv('LT_LOSSES_MM_CACHE', str(tmp_path / 'cache'))
    pixel_masks._counted.clear()

    def write(*masks, folder='ann'):
        for name in ('img', folder):
            (tmp_path / name).mkdir(exist_ok=True)
        for i, mask in enumerate(masks):
            mask = np.asarray(mask)
            mask = mask.astype(np.uint16 if mask.max() > 255 else np.uint8)
            cv2.imwrite(str(tmp_path / f'{folder}/{i}.png'), mask)
            image = np.full((*mask.shape[:2], 3), 99, np.uint8)
            cv2.imwrite(str(tmp_path / f'img/{i}.jpg'), image)
        return dict(
            type='BaseSegDataset',
            data_root=str(tmp_path),
            data_prefix=dict(img_path='img', seg_map_path=folder),
            metainfo=dict(classes=CLASSES),
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='LoadAnnotations'),
                dict(type='PackSegInputs'),
            ],
        )

    return write


def masks(*values, n=4):
    """Masks of 16 x 16: the first value has most pixels, the last fewest."""
    mask = np.full((16, 16), values[0])
    for i, value in enumerate(values[1:], 1):
        mask[: 8 // i, 2 * i : 2 * i + 2] = value
    return [mask] * n


def pixels_of(found, *values):
    return [int(sum((mask == v).sum() for mask in found)) for v in values]


def head(**options):
    return dict(
        dict(
            type='FCNHead',
            in_channels=16,
            in_index=0,
            channels=4,
            num_convs=1,
            concat_input=False,
            num_classes=3,
            norm_cfg=NORM,
            loss_decode=BALANCED,
        ),
        **options,
    )


def config(dataset, decode=None, aux=None, val=None, **options):
    loader = dict(
        batch_size=2,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dataset,
    )
    model = dict(
        type='EncoderDecoder',
        data_preprocessor=dict(type='SegDataPreProcessor', size=(20, 20)),
        backbone=dict(
            type='ResNet',
            depth=18,
            stem_channels=8,
            base_channels=8,
            num_stages=2,
            strides=(1, 2),
            dilations=(1, 1),
            out_indices=(1,),
            norm_cfg=NORM,
        ),
        decode_head=decode or head(),
        test_cfg=dict(mode='whole'),
    )
    if aux is not None:
        model['auxiliary_head'] = aux
    found = dict(
        default_scope='mmseg',
        model=model,
        train_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
        default_hooks=dict(logger=None),
    )
    for split in ('val', 'test'):
        found[f'{split}_dataloader'] = dict(
            loader, batch_size=1, dataset=val or dataset
        )
        found[f'{split}_cfg'] = dict()
        found[f'{split}_evaluator'] = OURS
    return Config(copy.deepcopy(dict(found, **options)))


@pytest.fixture
def ready(tmp_path, request, monkeypatch, caplog):
    """A runner as it is before its first batch."""
    monkeypatch.setattr(Runner, '_log_env', lambda self, env_cfg: None)
    before = DefaultScope.get_current_instance()

    def prepare(cfg):
        cfg.work_dir = str(tmp_path / 'work')
        cfg.experiment_name = f'{request.node.name}{id(cfg)}'
        caplog.clear()
        runner = Runner.from_cfg(cfg)
        runner._train_loop = runner.build_train_loop(runner._train_loop)
        runner._val_loop = runner.build_val_loop(runner._val_loop)
        hook = next(h for h in runner.hooks if type(h) is ClassCountsHook)
        hook.before_run(runner)
        hook.before_train(runner)
        return runner

    yield prepare
    MMLogger._instance_dict.clear()
    DefaultScope._instance_dict.clear()
    if before is not None:
        DefaultScope.get_instance(
            before.instance_name, scope_name=before.scope_name
        )


def counts(runner, name='decode_head'):
    return getattr(runner.model, name).loss_decode.class_counts.tolist()


def told(caplog):
    return [
        r.getMessage()
        for r in caplog.records
        if r.name == 'lt_losses_mm' and 'not said everywhere' in r.getMessage()
    ]


def pasted(cfg, message):
    """The config with the lines that a message gives."""
    lines = re.findall(r'^  (\S+)=(\S+?)(?: \\)?$', message, re.M)
    assert lines
    cfg = copy.deepcopy(cfg)
    cfg.merge_from_dict({key: int(value) for key, value in lines})
    return cfg


# ----------------------------------------------------------------- counts
@pytest.mark.parametrize(
    'value, unlabelled',
    [(11, 11), (0, 0), (255, 255), (None, 255), (-1, 2), (-100, 2)],
)
def test_counts_are_of_the_pixels_that_the_loss_sees(
    data, ready, value, unlabelled
):
    found = masks(0, 1, 2, unlabelled)
    cfg = config(data(*found), head(ignore_index=value))
    if value not in (255, None):
        cfg.model.data_preprocessor.seg_pad_val = value
    runner = ready(cfg)
    expected = pixels_of(found, 0, 1, 2)
    if value == 0:
        expected[0] = 0
    assert counts(runner) == expected
    # The loss leaves out the same.
    runner.model.train()
    batch = runner.model.data_preprocessor(
        next(iter(runner.train_dataloader)), training=True
    )
    label = torch.stack(
        [sample.gt_sem_seg.data[0] for sample in batch['data_samples']]
    )
    loss = runner.model.decode_head.loss_decode
    rows = loss(
        torch.zeros(2, 3, 20, 20),
        label,
        reduction_override='none',
        ignore_index=value,
    )
    kept = label[rows > 0]
    assert (2 * kept.bincount(minlength=3)).tolist() == expected
    rows = loss(torch.zeros(2, 3, 20, 20), label, reduction_override='none')
    assert torch.equal(label[rows > 0], kept)


def test_each_head_has_its_own_counts(data, ready, caplog):
    found = masks(0, 1, 2, 255)
    aux = head(ignore_index=2)
    cfg = config(data(*found), aux=[aux, dict(aux, loss_decode=PLAIN)])
    cfg.model.data_preprocessor.seg_pad_val = 2
    with pytest.raises(ValueError, match=r'ignore_index=2 in .*, got 255 \('):
        ready(cfg)  # which is a label for the auxiliary head
    found = masks(0, 1, 2)
    cfg = config(data(*found), aux=aux)
    cfg.model.data_preprocessor.seg_pad_val = 2
    runner = ready(cfg)
    both = pixels_of(found, 0, 1, 2)
    assert counts(runner) == both
    assert counts(runner, 'auxiliary_head') == [*both[:2], 0]
    assert 'model.decode_head.ignore_index=255' in told(caplog)[0]


def test_the_data_set_rules_nothing(data, ready, caplog):
    found = masks(0, 1, 2)
    cfg = config(dict(data(*found), ignore_index=0))
    assert counts(ready(cfg)) == pixels_of(found, 0, 1, 2)
    (message,) = told(caplog)
    assert 'model.decode_head.ignore_index=255' in message
    assert 'ignore_index=0' in message
    cfg = pasted(cfg, message)
    assert cfg.model.decode_head.ignore_index == 0
    assert counts(ready(cfg)) == [0, *pixels_of(found, 1, 2)]
    assert not told(caplog)


def test_the_loss_says_it_alone(data, ready, caplog):
    found = masks(0, 1, 2, 11)
    loss = dict(BALANCED, ignore_index=11)
    cfg = config(data(*found), head(loss_decode=loss))
    with pytest.raises(ValueError, match='seg_pad_val=255'):
        ready(config(data(*found), head(loss_decode=loss, ignore_index=None)))
    with pytest.raises(ValueError) as error:
        ready(cfg)  # the head passes 255
    runner = ready(pasted(cfg, str(error.value)))
    assert counts(runner) == pixels_of(found, 0, 1, 2)
    assert not told(caplog)


@pytest.mark.parametrize('several', [False, True])
def test_unlabelled_is_eleven(data, ready, caplog, several):
    """One error, with all lines."""
    found = masks(0, 1, 2, 11)
    metrics = [OURS, dict(type='IoUMetric')]
    plain = data(*found)
    rotate = dict(type='RandomRotate', prob=1.0, degree=9)
    load, read, pack = plain['pipeline']
    rotate = dict(type='RandomApply', transforms=[rotate])
    dataset = dict(plain, pipeline=[load, read, rotate, pack])
    aux = [head(), head(loss_decode=PLAIN)] if several else head()
    cfg = config(
        dict(type='RepeatDataset', times=2, dataset=dataset),
        head(loss_decode=[BALANCED, PLAIN] if several else BALANCED),
        aux,
        plain,
        val_evaluator=metrics,
        test_evaluator=metrics[1],
    )
    with pytest.raises(ValueError) as error:
        ready(cfg)
    message = str(error.value)
    assert 'got 11 (' in message and '.png' in message
    assert message.count('--cfg-options \\\n  model.') == 1
    assert message.endswith('=11')
    keys = re.findall(r'^  (\S+)=11(?: \\)?$', message, re.M)
    aux_keys = ['.0', '.1'] if several else ['']
    where = 'train_dataloader.dataset.dataset'
    assert keys == [
        'model.decode_head.ignore_index',
        *(f'model.auxiliary_head{i}.ignore_index' for i in aux_keys),
        'val_evaluator.1.ignore_index',
        'test_evaluator.ignore_index',
        f'{where}.ignore_index',
        'model.data_preprocessor.seg_pad_val',
        f'{where}.pipeline.2.transforms.0.seg_pad_val',
    ]
    runner = ready(pasted(cfg, message))
    assert not told(caplog)
    loss = runner.model.decode_head.loss_decode
    loss = loss[0] if several else loss
    twice = [2 * n for n in pixels_of(found, 0, 1, 2)]
    assert loss.class_counts.tolist() == twice
    assert runner.val_evaluator.metrics[0].ignore_index == 11
    Runner.from_cfg(runner.cfg).train()


def test_metric_of_the_host(data, ready, caplog):
    cfg = config(
        data(*masks(0, 1, 2)),
        head(ignore_index=11),
        val_evaluator=dict(type='IoUMetric'),
    )
    cfg.model.data_preprocessor.seg_pad_val = 11
    ready(cfg)
    (message,) = told(caplog)
    assert 'val_evaluator.ignore_index=255' in message
    assert 'test_evaluator' not in message
    ready(pasted(cfg, message))
    assert not told(caplog)


@pytest.mark.parametrize('train', [True, False])
def test_zero_is_reduced_in_one_of_two(data, ready, caplog, train):
    plain = data(*masks(0, 1, 2))
    reduced = dict(plain, reduce_zero_label=True)
    wrapped = dict(type='RepeatDataset', times=2)
    wrapped['dataset'] = reduced if train else plain
    cfg = config(wrapped, val=plain if train else reduced)
    ready(cfg)
    (message,) = [m for m in caplog.messages if 'reduce_zero_label' in m]
    for words in (
        f'train_dataloader.dataset.dataset.reduce_zero_label={train}, ',
        f'test_dataloader.dataset.reduce_zero_label={not train}. If',
        f'Fix: val_dataloader.dataset.reduce_zero_label={train}, ',
    ):
        assert words in message
    ready(config(wrapped))
    assert 'reduce_zero_label' not in caplog.text
    # What a data set does where nothing is said.
    road = dict(reduced if train else plain, type='ADE20KDataset')
    road.pop('reduce_zero_label', None)
    cfg.val_dataloader.dataset = cfg.test_dataloader.dataset = road
    check_reduced(cfg)
    assert ('reduce_zero_label' in caplog.text) is not train


def test_zero_is_reduced_in_a_type_that_is_a_function(data, caplog):
    """As that of the embedded digits is; their data set is within."""
    plain = data(*masks(0, 1, 2))
    wrapped = dict(type='lt_losses_mm.DigitsDataset', root='', dataset=plain)
    cfg = config(wrapped, val=dict(plain, reduce_zero_label=True))
    check_reduced(cfg)
    assert 'train_dataloader.dataset.dataset.reduce_zero_label=False' in (
        caplog.text
    )


def test_padding(data, ready, caplog):
    dataset = data(*masks(0, 1, 2))
    cfg = config(dataset)
    cfg.model.data_preprocessor.seg_pad_val = 7
    with pytest.raises(ValueError, match=r'seg_pad_val=7.*ignore_index=255'):
        ready(cfg)
    cfg.model.data_preprocessor.seg_pad_val = 0  # a class
    ready(cfg)
    assert 'model.data_preprocessor.seg_pad_val=0' in told(caplog)[0]
    dataset['pipeline'].insert(2, dict(type='Pad', size=(20, 20)))
    ready(config(dataset))
    assert not told(caplog)
    cfg = config(dataset, head(ignore_index=0))
    cfg.model.data_preprocessor.seg_pad_val = 0
    with pytest.raises(ValueError, match=r'2\.pad_val\.seg=255') as error:
        ready(cfg)
    ready(pasted(cfg, str(error.value)))
    assert not told(caplog)


def test_a_model_without_our_losses_is_left_alone(data, ready, caplog):
    cfg = config(data(*masks(0, 1, 2)), head(loss_decode=PLAIN))
    cfg.model.data_preprocessor.seg_pad_val = 7
    ready(cfg)
    assert not told(caplog)


# ------------------------------------------------------------------- heads
@pytest.mark.parametrize('loss_type', LOSSES)
def test_one_logit_for_two_classes(data, ready, loss_type):
    dataset = dict(data(*masks(0, 1)), metainfo=dict(classes=CLASSES[:2]))
    loss = dict(type=f'lt_losses_mm.{loss_type.__name__}')
    binary = dict(num_classes=2, out_channels=1, threshold=0.3)
    sentence = (
        r'model\.auxiliary_head\.out_channels=1, expected 2.*because '
        f'{loss_type.__name__} .*Fix: out_channels=2, and no threshold'
    )
    with pytest.raises(ValueError, match=sentence):
        ready(
            config(
                dataset,
                head(num_classes=2, loss_decode=PLAIN),
                head(loss_decode=loss, **binary),
            )
        )


def segments(**options):
    """As small as Mask2Former's head comes."""
    return dict(
        type='Mask2FormerHead',
        num_classes=3,
        in_channels=[8, 16],
        strides=[4, 4],
        feat_channels=16,
        out_channels=16,
        num_queries=4,
        num_transformer_feat_level=1,
        pixel_decoder=dict(
            type='mmdet.MSDeformAttnPixelDecoder',
            num_outs=1,
            norm_cfg=dict(type='GN', num_groups=2),
            encoder=dict(
                num_layers=1,
                layer_cfg=dict(
                    self_attn_cfg=dict(
                        embed_dims=16, num_heads=2, num_levels=1
                    ),
                    ffn_cfg=dict(embed_dims=16, feedforward_channels=16),
                ),
            ),
            positional_encoding=dict(num_feats=8, normalize=True),
        ),
        positional_encoding=dict(num_feats=8, normalize=True),
        transformer_decoder=dict(
            return_intermediate=True,
            num_layers=1,
            layer_cfg=dict(
                self_attn_cfg=dict(embed_dims=16, num_heads=2),
                cross_attn_cfg=dict(embed_dims=16, num_heads=2),
                ffn_cfg=dict(embed_dims=16, feedforward_channels=16),
            ),
        ),
        loss_cls=dict(BALANCED, class_weight=[1.0, 1.0, 1.0, 0.1], **options),
        loss_mask=dict(type='mmdet.CrossEntropyLoss', use_sigmoid=True),
        loss_dice=dict(type='mmdet.DiceLoss', naive_dice=True, eps=1.0),
        train_cfg=dict(
            num_points=8,
            oversample_ratio=3.0,
            importance_sample_ratio=0.75,
            assigner=dict(
                type='mmdet.HungarianAssigner',
                match_costs=[dict(type='mmdet.ClassificationCost')],
            ),
            sampler=dict(type='mmdet.MaskPseudoSampler'),
        ),
    )


def test_segments_are_counted_by_images(data, ready):
    """Mask2Former: a row is a segment, and each class of an image is one."""
    found = [*masks(0, 1, 2, 11), *masks(0, 1, n=2), *masks(0, 11, n=1)]
    cfg = config(data(*found), dict(segments(), ignore_index=11))
    cfg.model.data_preprocessor.seg_pad_val = 11
    cfg.model.backbone.out_indices = (0, 1)
    runner = ready(cfg)
    loss = runner.model.decode_head.loss_cls
    assert loss.class_counts.tolist() == [7, 6, 4]
    assert loss.known_counts.unit == 'image'
    assert loss.ignore_index is None  # of queries
    assert runner.val_evaluator.metrics[0].class_counts.unit == 'pixel'
    assert runner.val_evaluator.metrics[0].ignore_index == 11
    cfg.model.decode_head.loss_cls.count_unit = 'pixel'
    with pytest.raises(
        ValueError, match="decode_head: count_unit='pixel', expected 'image'"
    ):
        ready(cfg)
    cfg.model.data_preprocessor.seg_pad_val = 255
    del cfg.model.decode_head.loss_cls.count_unit
    with pytest.raises(ValueError, match='seg_pad_val=255.*ignore_index=11'):
        ready(cfg)


@pytest.mark.parametrize(
    'model',
    [
        dict(decode_head=dict(ignore_index=11)),
        dict(decode_head=[dict(ignore_index=3), dict(ignore_index=11)]),
        dict(decode_head=dict(kernel_generate_head=dict(ignore_index=11))),
        dict(
            decode_head=dict(
                ignore_index=None, loss_decode=[dict(ignore_index=11)]
            )
        ),
    ],
    ids=str,
)
def test_label_of_a_config(model):
    assert label_of_config(Config(dict(model=model))) == 11
    assert label_of_config(Config(dict(model=dict(head=dict())))) == 255


def test_segments_of_a_head_without_ignore_index():
    """Of mmdet; other losses of a model are counted by their data."""
    model = nn.Module()
    model.head = nn.Module()
    model.head.loss_cls = loss = BalancedSoftmaxLoss()
    model.own = other = BalancedSoftmaxLoss(ignore_index=7)
    assert counted_as(model, loss) == dict(unit='image', ignore_index=255)
    assert counted_as(model, other) == dict(unit=None, ignore_index=7)


def test_a_head_of_ones_own_without_a_number_of_classes(make_runner):
    """It is not compared with anything, and trains."""

    class OwnHead(nn.Module):
        ignore_index = 11
        loss_decode: nn.Module

    runner = make_runner(
        val_dataloader=False, val_cfg=False, val_evaluator=False
    )
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.model.own = own = OwnHead()
    own.loss_decode = BalancedSoftmaxLoss(class_counts=[6, 3, 1])
    check_segmentation(runner)
    own.num_classes = 3
    check_segmentation(runner)
    assert own.loss_decode.ignore_index == 11
