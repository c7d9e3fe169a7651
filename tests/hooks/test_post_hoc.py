"""Post-hoc logit adjustment in the hosts' heads and in a Runner."""

import logging
import math
from types import SimpleNamespace as Namespace

import pytest
import torch
from mmengine.config import ConfigDict
from torch import nn
from torch.testing import assert_close

from lt_losses_mm.hooks import PostHocLogitAdjustmentHook
from lt_losses_mm.priors.shift import sigmoid_shift, softmax_shift

COUNTS = [100.0, 25.0, 10.0, 5.0, 1.0]
C = 5
TAU = 0.8
CE = dict(type='CrossEntropyLoss')
BCE = dict(type='CrossEntropyLoss', use_sigmoid=True)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def with_background():
    return TAU * softmax_shift(torch.tensor(COUNTS), C + 1)


def classes_only():
    return TAU * softmax_shift(torch.tensor(COUNTS), C)


def one_by_one():
    return TAU * sigmoid_shift(torch.tensor(COUNTS))


def logits_of(out):
    """All tensors of logits in the output of a head."""
    if isinstance(out, torch.Tensor):
        return [out]
    first = out[0]
    return list(first) if isinstance(first, (list, tuple)) else [first]


def check(model, run, shift, dim=-1, repeat=1, take=logits_of, **kwargs):
    """Adjusted == logits - tau * shift, and all is as before afterwards."""
    runner = Namespace(model=model, logger=logging.getLogger('test'))
    hook = PostHocLogitAdjustmentHook(tau=TAU, class_counts=COUNTS, **kwargs)
    model.eval()
    before = take(run())
    for start, end in (
        (hook.before_val, hook.after_val),
        (hook.before_test, hook.after_test),
    ):
        start(runner)
        adjusted = take(run())
        # Starting twice adjusts once.
        start(runner)
        again = take(run())
        end(runner)
        after = take(run())
        assert len(before) == len(adjusted)
        for z, moved, twice, restored in zip(before, adjusted, again, after):
            expected = (
                z.movedim(dim, -1) - shift.repeat(repeat).float()
            ).movedim(-1, dim)
            assert_close(moved, expected, rtol=1e-5, atol=1e-5)
            assert_close(twice, moved, rtol=0, atol=0)
            assert_close(restored, z, rtol=0, atol=0)
    assert not any(
        {'forward', 'encode_decode'} & set(vars(m)) for m in model.modules()
    )


# ---------------------------------------------------------------- mmdet
@pytest.fixture
def mmdet_models():
    return pytest.importorskip('mmdet.registry').MODELS


def test_bbox_head(mmdet_models):
    head = mmdet_models.build(
        dict(
            type='Shared2FCBBoxHead',
            in_channels=2,
            fc_out_channels=4,
            roi_feat_size=2,
            num_classes=C,
            loss_cls=CE,
        )
    )
    model = nn.ModuleDict(dict(bbox_head=head))
    x = torch.randn(7, 2, 2, 2)
    check(model, lambda: head(x), with_background())
    # BBoxHead applies a softmax even to this loss.
    head.loss_cls.use_sigmoid = True
    check(model, lambda: head(x), with_background())


def test_background_prior(mmdet_models):
    head = mmdet_models.build(
        dict(
            type='BBoxHead',
            in_channels=2,
            roi_feat_size=1,
            with_avg_pool=True,
            num_classes=C,
            loss_cls=CE,
        )
    )
    x = torch.randn(7, 2, 1, 1)
    shift = TAU * softmax_shift(torch.tensor(COUNTS), C + 1, 0.9)
    check(nn.Sequential(head), lambda: head(x), shift, background=0.9)
    assert math.isclose(shift[-1], TAU * math.log(6 * 0.9))


def test_cascade_of_heads_and_no_rpn(mmdet_models):
    heads = nn.ModuleList(
        mmdet_models.build(
            dict(
                type='BBoxHead',
                in_channels=2,
                roi_feat_size=1,
                with_avg_pool=True,
                num_classes=C,
                loss_cls=CE,
            )
        )
        for _ in range(3)
    )
    rpn = mmdet_models.build(
        dict(
            type='RPNHead',
            in_channels=2,
            feat_channels=2,
            loss_cls=BCE,
            anchor_generator=dict(
                type='AnchorGenerator', scales=[8], ratios=[1.0], strides=[4]
            ),
        )
    )
    model = nn.ModuleDict(
        dict(rpn_head=rpn, roi_head=nn.ModuleDict(dict(bbox_head=heads)))
    )
    x = torch.randn(7, 2, 1, 1)
    maps = (torch.randn(1, 2, 5, 5),)
    rpn.eval()
    for head in heads:
        check(model, lambda head=head: head(x), with_background())
    check(model, lambda: rpn(maps), torch.zeros(1), dim=1)


@pytest.mark.parametrize('sigmoid', [True, False])
@pytest.mark.parametrize('width', [4, C, C + 1])
@pytest.mark.parametrize('kind', ['RetinaHead', 'FCOSHead', 'ATSSHead'])
def test_maps(mmdet_models, kind, width, sigmoid):
    """Maps as wide as there are classes must not confuse it."""
    extra = dict(
        RetinaHead=dict(
            anchor_generator=dict(
                type='AnchorGenerator',
                ratios=[0.5, 1.0, 2.0],
                scales=[2.0],
                strides=[8, 16],
            )
        ),
        FCOSHead=dict(
            norm_cfg=None,
            strides=[8, 16],
            regress_ranges=((-1, 16), (16, 1e8)),
        ),
        ATSSHead=dict(
            norm_cfg=None,
            anchor_generator=dict(
                type='AnchorGenerator',
                ratios=[1.0],
                scales=[2.0],
                strides=[8, 16],
            ),
        ),
    )[kind]
    head = mmdet_models.build(
        ConfigDict(
            type=kind,
            num_classes=C,
            in_channels=2,
            feat_channels=2,
            stacked_convs=1,
            loss_cls=dict(CE, use_sigmoid=sigmoid),
            **extra,
        )
    )
    maps = (torch.randn(2, 2, width, width), torch.randn(2, 2, 2, width))
    check(
        nn.Sequential(head),
        lambda: head(maps),
        one_by_one() if sigmoid else with_background(),
        dim=1,
        repeat=3 if kind == 'RetinaHead' else 1,
    )


@pytest.mark.parametrize('sigmoid', [True, False])
def test_detr(mmdet_models, sigmoid):
    head = mmdet_models.build(
        ConfigDict(
            type='DETRHead',
            num_classes=C,
            embed_dims=4,
            loss_cls=dict(CE, use_sigmoid=sigmoid),
            train_cfg=None,
        )
    )
    for queries in (3, C, C + 1):
        hidden = torch.randn(2, 1, queries, 4)
        check(
            nn.Sequential(head),
            lambda hidden=hidden: head(hidden),
            one_by_one() if sigmoid else with_background(),
        )


@pytest.mark.parametrize('sigmoid', [True, False])
def test_deformable_detr(mmdet_models, sigmoid):
    head = mmdet_models.build(
        ConfigDict(
            type='DeformableDETRHead',
            num_classes=C,
            embed_dims=4,
            num_pred_layer=2,
            loss_cls=dict(CE, use_sigmoid=sigmoid),
            train_cfg=None,
        )
    )
    hidden = torch.randn(2, 1, C, 4)
    references = [torch.rand(1, C, 4)] * 2
    check(
        nn.Sequential(head),
        lambda: head(hidden, references),
        one_by_one() if sigmoid else with_background(),
    )


@pytest.mark.parametrize('sigmoid', [True, False])
def test_sparse_rcnn(mmdet_models, sigmoid):
    head = mmdet_models.build(
        ConfigDict(
            type='DIIHead',
            num_classes=C,
            num_heads=2,
            num_cls_fcs=1,
            num_reg_fcs=1,
            feedforward_channels=4,
            in_channels=4,
            dynamic_conv_cfg=dict(
                type='DynamicConv',
                in_channels=4,
                feat_channels=2,
                out_channels=4,
                input_feat_shape=7,
            ),
            loss_cls=dict(CE, use_sigmoid=sigmoid),
        )
    )
    x, proposals = torch.randn(6, 4, 7, 7), torch.randn(1, 6, 4)
    check(
        nn.Sequential(head),
        lambda: head(x, proposals),
        one_by_one() if sigmoid else with_background(),
    )


# ------------------------------------------------------------- mmpretrain
@pytest.fixture
def mmpretrain_models():
    return pytest.importorskip('mmpretrain.registry').MODELS


def test_linear_head(mmpretrain_models):
    head = mmpretrain_models.build(
        dict(type='LinearClsHead', num_classes=C, in_channels=2, loss=CE)
    )
    x = (torch.randn(7, 2),)
    check(nn.Sequential(head), lambda: head(x), classes_only(), dim=1)
    scores = torch.stack([s.pred_score for s in head.predict(x)])
    assert_close(scores, head(x).softmax(1))


def test_multi_label_head(mmpretrain_models):
    """Predicts each class for itself, and so is corrected."""
    head = mmpretrain_models.build(
        dict(
            type='MultiLabelLinearClsHead',
            num_classes=C,
            in_channels=2,
            loss=BCE,
        )
    )
    x = (torch.randn(7, 2),)
    check(nn.Sequential(head), lambda: head(x), one_by_one(), dim=1)


def test_conformer_head(mmpretrain_models):
    """Its prediction is the sum of two classifiers, each with the prior."""
    head = mmpretrain_models.build(
        dict(type='ConformerHead', num_classes=C, in_channels=[2, 2], loss=CE)
    )
    x = ([torch.randn(7, 2), torch.randn(7, 2)],)
    check(nn.Sequential(head), lambda: head(x), classes_only(), take=list)


# ------------------------------------------------------------------ mmseg
FCN = dict(
    type='FCNHead',
    in_channels=32,
    in_index=3,
    channels=4,
    num_convs=1,
    concat_input=False,
    num_classes=C,
    loss_decode=[CE, dict(type='DiceLoss')],
)
CASCADES = dict(
    single=FCN,
    ocr=[
        FCN,
        dict(
            FCN,
            type='OCRHead',
            ocr_channels=4,
            num_convs=None,
            concat_input=None,
        ),
    ],
    point=[
        FCN,
        dict(
            type='PointHead',
            in_channels=[4],
            in_index=[0],
            channels=4,
            num_fcs=1,
            coarse_pred_each_layer=True,
            num_classes=C,
            loss_decode=CE,
        ),
    ],
)


@pytest.mark.parametrize('kind', CASCADES)
def test_segmentors(kind):
    """Only the result is adjusted, not what one head tells the next."""
    models = pytest.importorskip('mmseg.registry').MODELS
    heads = CASCADES[kind]
    cascade = isinstance(heads, list)
    if cascade:
        heads = [{k: v for k, v in h.items() if v is not None} for h in heads]
    model = models.build(
        ConfigDict(
            type='CascadeEncoderDecoder' if cascade else 'EncoderDecoder',
            backbone=dict(
                type='ResNetV1c',
                depth=18,
                stem_channels=4,
                base_channels=4,
                norm_cfg=dict(type='BN'),
            ),
            decode_head=heads,
            auxiliary_head=None
            if cascade
            else dict(FCN, in_channels=16, in_index=2),
            train_cfg=dict(),
            test_cfg=dict(
                mode='whole',
                subdivision_steps=1,
                subdivision_num_points=9,
                scale_factor=2,
            ),
            **(dict(num_stages=2) if cascade else {}),
        )
    )
    x = torch.randn(1, 3, 64, 64)
    metas = [dict(img_shape=(64, 64), ori_shape=(64, 64), pad_shape=(64, 64))]
    check(model, lambda: model.inference(x, metas), classes_only(), dim=1)
    inner = model.decode_head[0] if cascade else model.auxiliary_head
    features = model.eval().extract_feat(x)
    check(model, lambda: inner(features), torch.zeros(C), dim=1)


# ----------------------------------------------------------------- Runner
HOOK = dict(type='lt_losses_mm.PostHocLogitAdjustmentHook')
PLAIN = dict(
    type='lt_losses_mm.BalancedSoftmaxLoss', class_counts=[6, 3, 1], tau=0
)


def predictions(runner):
    """What the last validation saw, and what the model says by itself."""
    (metric,) = runner.val_loop.evaluator.metrics
    dataset = runner.val_dataloader.dataset
    x = torch.stack([dataset[i]['x'] for i in range(len(dataset))])
    with torch.no_grad():
        return metric.seen[-1], runner.model.head(x)


@pytest.mark.parametrize('counts', ['auto', [6, 3, 1]], ids=str)
def test_in_validation_but_not_in_training(make_runner, counts):
    epochs = dict(by_epoch=True, max_epochs=2, val_interval=1)
    runner = make_runner(
        PLAIN,
        train_cfg=epochs,
        custom_hooks=[dict(HOOK, class_counts=counts, tau=2.0)],
    )
    runner.train()
    seen, own = predictions(runner)
    shift = softmax_shift(torch.tensor([6.0, 3.0, 1.0]), 3).float()
    assert_close(seen, own - 2 * shift)
    without = make_runner(PLAIN, train_cfg=epochs)
    without.train()
    for a, b in zip(runner.model.parameters(), without.model.parameters()):
        assert_close(a, b, rtol=0, atol=0)


def test_without_training_data(make_runner):
    alone = dict(train_dataloader=False, train_cfg=False, optim_wrapper=False)
    runner = make_runner(PLAIN, custom_hooks=[HOOK], **alone)
    with pytest.raises(RuntimeError, match='auto.*expected training data'):
        runner.val()
    make_runner(
        PLAIN, custom_hooks=[dict(HOOK, class_counts=[6, 3, 1])], **alone
    ).val()


@pytest.mark.parametrize('run', ['val', 'train'])
def test_evaluated_data_with_other_labels(make_runner, loader, run):
    data = loader((2, 2, 2), names='acb')
    runner = make_runner(PLAIN, custom_hooks=[HOOK], val_dataloader=data)
    with pytest.raises(ValueError, match="'b' 1 / 2, 'c' 2 / 1"):
        getattr(runner, run)()
    assert runner.iter == 0


def test_counts_of_another_number_of_classes(make_runner):
    runner = make_runner(
        PLAIN, custom_hooks=[dict(HOOK, class_counts=[6, 3, 1, 1, 1])]
    )
    with pytest.raises(ValueError, match=r'=\[6.*3 logit columns.*got 5'):
        runner.val()


def test_a_model_without_a_classifier():
    runner = Namespace(model=nn.Linear(2, 2), logger=logging.getLogger('test'))
    with pytest.raises(RuntimeError, match="='Linear'.*classification head"):
        PostHocLogitAdjustmentHook(class_counts=COUNTS).before_test(runner)


@pytest.mark.parametrize(
    'key, value',
    [
        ('tau', -1),
        ('background', 'objectness'),
        ('background', 2.0),
        ('class_counts', [0, 0]),
        ('class_counts', 'no_such_benchmark'),
    ],
)
def test_options(key, value):
    with pytest.raises(ValueError, match=key):
        PostHocLogitAdjustmentHook(**{'class_counts': COUNTS, key: value})
