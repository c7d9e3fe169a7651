"""The one-line change, applied to configs that the hosts ship.

Each case inherits a stock config and replaces the loss, as a user would. The
models are shrunk (never the head's wiring), built, trained for one step on
generated data, and asked to predict.
"""

import importlib
import logging
from types import SimpleNamespace as Namespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope
from torch.utils.data import DataLoader

import lt_losses_mm
from lt_losses_mm import commit_statistics
from lt_losses_mm.hooks import LossSetupHook
from lt_losses_mm.statistics import GradientStatistics

slow = pytest.mark.slow

SOFTMAX = "dict(_delete_=True, type='lt_losses_mm.BalancedSoftmaxLoss', "
SIGMOID = (
    "dict(_delete_=True, type='lt_losses_mm.BalancedSigmoidLoss', "
    'use_sigmoid=True, '
)


# Losses that learn from gradients need no counts, nor any other key.
DRIVEN = "dict(_delete_=True, type='lt_losses_mm.{}'{})".format
SIGMOID_EQL = DRIVEN('SigmoidEqualizationLoss', '')
SOFTMAX_EQL = DRIVEN('SoftmaxEqualizationLoss', '')
EFL = DRIVEN('EqualizedFocalLoss', ', use_sigmoid=True')
EQFL = DRIVEN('EqualizedQualityFocalLoss', ', use_sigmoid=True')


class Case(NamedTuple):
    """A stock config, the change, and what makes the model small."""

    config: str
    change: str
    small: dict
    shape: tuple = (64, 64)
    terms: int = 1


def counts(n):
    return f'class_counts=range(1, {n + 1}))'


# ------------------------------------------------------------------- mmdet
R18 = {
    'backbone.depth': 18,
    'backbone.base_channels': 8,
    'backbone.norm_eval': False,
    'backbone.frozen_stages': -1,
    'backbone.init_cfg': None,
}
FPN = {**R18, 'neck.in_channels': [8, 16, 32, 64], 'neck.out_channels': 16}
RCNN = {
    **FPN,
    'rpn_head.in_channels': 16,
    'rpn_head.feat_channels': 16,
    'roi_head.bbox_roi_extractor.out_channels': 16,
    'train_cfg.rpn_proposal.max_per_img': 20,
    'test_cfg.rpn.max_per_img': 20,
}
ONE_HEAD = {
    'roi_head.bbox_head.in_channels': 16,
    'roi_head.bbox_head.fc_out_channels': 16,
}
MASK_RCNN = {
    **RCNN,
    **ONE_HEAD,
    'roi_head.mask_roi_extractor.out_channels': 16,
    'roi_head.mask_head.in_channels': 16,
    'roi_head.mask_head.conv_out_channels': 16,
}
DENSE = {
    **FPN,
    'bbox_head.in_channels': 16,
    'bbox_head.feat_channels': 16,
    'bbox_head.stacked_convs': 1,
    'bbox_head.init_cfg': None,
}
DETR = {
    **R18,
    'neck.in_channels': [16, 32, 64],
    'encoder.num_layers': 1,
    'decoder.num_layers': 2,
    'encoder.layer_cfg.ffn_cfg.feedforward_channels': 16,
    'decoder.layer_cfg.ffn_cfg.feedforward_channels': 16,
    'num_queries': 20,
    'test_cfg.max_per_img': 20,
}
LEAF_ROI = 'model = dict(roi_head=dict(bbox_head=dict(loss_cls={})))'
LEAF_DENSE = 'model = dict(bbox_head=dict(loss_cls={}))'
EACH_HEAD = """
model = _base_.model
for head in model.roi_head.bbox_head:
    head.loss_cls = {}
del head
"""


def stages(n, **kwargs):
    return {
        f'roi_head.bbox_head.{i}.{key}': value
        for i in range(n)
        for key, value in kwargs.items()
    }


DETECTORS = dict(
    mask_rcnn_lvis=Case(
        'mmdet::lvis/mask-rcnn_r50_fpn_sample1e-3_ms-1x_lvis-v1.py',
        LEAF_ROI.format(SOFTMAX + "class_counts='lvis_v1')"),
        MASK_RCNN,
    ),
    faster_rcnn=Case(
        'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
        LEAF_ROI.format(SIGMOID + counts(80)),
        {**RCNN, **ONE_HEAD},
    ),
    faster_rcnn_objectness=Case(
        'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
        LEAF_ROI.format(SOFTMAX + "background='objectness', " + counts(80)),
        {**RCNN, **ONE_HEAD},
    ),
    faster_rcnn_ohem=Case(
        'mmdet::faster_rcnn/faster-rcnn_r50_fpn_ohem_1x_coco.py',
        LEAF_ROI.format(SOFTMAX + counts(80)),
        {**RCNN, **ONE_HEAD},
    ),
    cascade_rcnn=Case(
        'mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py',
        EACH_HEAD.format(
            "dict(type='lt_losses_mm.BalancedSoftmaxLoss', " + counts(80)
        ),
        {**RCNN, **stages(3, in_channels=16, fc_out_channels=16)},
        terms=3,
    ),
    sparse_rcnn=Case(
        'mmdet::sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py',
        EACH_HEAD.format(
            "dict(type='lt_losses_mm.BalancedSigmoidLoss', " + counts(80)
        ),
        {
            **R18,
            'neck.in_channels': [8, 16, 32, 64],
            'rpn_head.num_proposals': 20,
            'test_cfg.rcnn.max_per_img': 20,
            **stages(6, feedforward_channels=16),
        },
        terms=6,
    ),
    mask_rcnn_lvis_sigmoid_eql=Case(
        'mmdet::lvis/mask-rcnn_r50_fpn_sample1e-3_ms-1x_lvis-v1.py',
        LEAF_ROI.format(SIGMOID_EQL),
        MASK_RCNN,
    ),
    mask_rcnn_lvis_eql=Case(
        'mmdet::lvis/mask-rcnn_r50_fpn_sample1e-3_ms-1x_lvis-v1.py',
        LEAF_ROI.format(
            DRIVEN(
                'EqualizationLoss',
                ", class_counts='lvis_v1', "
                'threshold=1.1e-3, num_images=100170',
            )
        ),
        MASK_RCNN,
    ),
    cascade_rcnn_softmax_eql=Case(
        'mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py',
        EACH_HEAD.format("dict(type='lt_losses_mm.SoftmaxEqualizationLoss')"),
        {**RCNN, **stages(3, in_channels=16, fc_out_channels=16)},
        terms=3,
    ),
    retinanet_efl=Case(
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
        LEAF_DENSE.format(EFL),
        DENSE,
        terms=5,
    ),
    gfl_eqfl=Case(
        'mmdet::gfl/gfl_r50_fpn_1x_coco.py',
        LEAF_DENSE.format(EQFL),
        {**DENSE, 'bbox_head.norm_cfg': None},
        terms=5,
    ),
    rtmdet_eqfl=Case(
        'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
        LEAF_DENSE.format(EQFL),
        {
            'backbone.widen_factor': 0.125,
            'backbone.init_cfg': None,
            'neck.in_channels': [32, 64, 128],
            'neck.out_channels': 32,
            'bbox_head.in_channels': 32,
            'bbox_head.feat_channels': 32,
        },
        terms=3,
    ),
    tood_eqfl=Case(
        'mmdet::tood/tood_r50_fpn_1x_coco.py',
        LEAF_DENSE.format(EQFL.replace(')', ', activated=True)')),
        {
            **DENSE,
            'bbox_head.norm_cfg': None,
            'bbox_head.stacked_convs': 2,
            'train_cfg.initial_epoch': 0,
        },
        terms=5,
    ),
    vfnet_eqfl=Case(
        'mmdet::vfnet/vfnet_r50_fpn_1x_coco.py',
        LEAF_DENSE.format(EQFL),
        {**DENSE, 'bbox_head.norm_cfg': None},
    ),
    retinanet=Case(
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
        LEAF_DENSE.format(SIGMOID + counts(80)),
        DENSE,
    ),
    atss=Case(
        'mmdet::atss/atss_r50_fpn_1x_coco.py',
        LEAF_DENSE.format(SIGMOID + counts(80)),
        {**DENSE, 'bbox_head.norm_cfg': None},
    ),
    fcos=Case(
        'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
        LEAF_DENSE.format(SIGMOID + counts(80)),
        {**DENSE, 'bbox_head.norm_cfg': None},
    ),
    detr=Case(
        'mmdet::detr/detr_r50_8xb2-150e_coco.py',
        LEAF_DENSE.format(
            SOFTMAX + 'class_weight=1.0, bg_cls_weight=0.1, ' + counts(80)
        ),
        {**DETR, 'neck.in_channels': [64]},
        terms=2,
    ),
    detr_sigmoid=Case(
        'mmdet::detr/detr_r50_8xb2-150e_coco.py',
        LEAF_DENSE.format(SIGMOID + counts(80)),
        {**DETR, 'neck.in_channels': [64]},
        terms=2,
    ),
    deformable_detr=Case(
        'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
        LEAF_DENSE.format(SIGMOID + counts(80)),
        DETR,
        terms=2,
    ),
    dino=Case(
        'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
        LEAF_DENSE.format(SIGMOID + counts(80)),
        {**DETR, 'dn_cfg.group_cfg.num_dn_queries': 4},
        terms=5,
    ),
    mask2former=Case(
        'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
        'model = dict(panoptic_head=dict(loss_cls={}))'.format(
            SOFTMAX
            + 'loss_weight=2.0, class_weight=[1.0] * 80 + [0.1], '
            + counts(80)
        ),
        {
            **R18,
            'panoptic_head.in_channels': [8, 16, 32, 64],
            'panoptic_head.num_queries': 20,
            'panoptic_head.pixel_decoder.encoder.num_layers': 1,
            'panoptic_head.transformer_decoder.num_layers': 2,
            'panoptic_head.num_transformer_feat_level': 3,
            'test_cfg.max_per_image': 20,
        },
        terms=3,
    ),
)


def detection_data(model, case):
    from mmdet.testing import demo_mm_inputs

    height, width = case.shape
    heads = [m for m in model.modules() if hasattr(m, 'loss_cls')]
    return demo_mm_inputs(
        2,
        image_shapes=[(3, height, width)] * 2,
        num_items=[3, 1],
        num_classes=heads[-1].num_classes,
        # RTMDet takes masks, if there are any, for those of RTMDet-Ins.
        with_mask='rtmdet' not in case.config,
    )


# -------------------------------------------------------------- mmpretrain
HEAD = 'model = dict(head=dict(loss={}))'
R18_CLS = {
    'backbone.depth': 18,
    'backbone.base_channels': 8,
    'backbone.stem_channels': 8,
    'head.in_channels': 64,
}
IMAGENET_LT = SOFTMAX + "class_counts='imagenet_lt')"
CLASSIFIERS = dict(
    resnet50=Case(
        'mmpretrain::resnet/resnet50_8xb32_in1k.py',
        HEAD.format(IMAGENET_LT),
        R18_CLS,
    ),
    resnet50_mixup=Case(
        'mmpretrain::resnet/resnet50_8xb32-mixup_in1k.py',
        HEAD.format(IMAGENET_LT),
        R18_CLS,
    ),
    resnet50_mixup_softmax_eql=Case(
        'mmpretrain::resnet/resnet50_8xb32-mixup_in1k.py',
        HEAD.format(SOFTMAX_EQL),
        R18_CLS,
    ),
    resnet18_cifar_efl=Case(
        'mmpretrain::resnet/resnet18_8xb16_cifar10.py',
        HEAD.format(EFL),
        {
            'backbone.base_channels': 8,
            'backbone.stem_channels': 8,
            'head.in_channels': 64,
        },
        (32, 32),
    ),
    resnet50_sigmoid=Case(
        'mmpretrain::resnet/resnet50_8xb256-rsb-a2-300e_in1k.py',
        HEAD.format(SIGMOID + "class_counts='imagenet_lt')"),
        R18_CLS,
    ),
    resnet18_cifar=Case(
        'mmpretrain::resnet/resnet18_8xb16_cifar10.py',
        HEAD.format(SOFTMAX + counts(10)),
        {
            'backbone.base_channels': 8,
            'backbone.stem_channels': 8,
            'head.in_channels': 64,
        },
        (32, 32),
    ),
    vit=Case(
        'mmpretrain::vision_transformer/vit-base-p16_64xb64_in1k.py',
        HEAD.format(IMAGENET_LT),
        {
            'backbone.arch': dict(
                _delete_=True,
                embed_dims=16,
                num_layers=2,
                num_heads=2,
                feedforward_channels=16,
            ),
            'backbone.img_size': 64,
            'head.in_channels': 16,
        },
    ),
    swin_mixup_cutmix=Case(
        'mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py',
        HEAD.format(IMAGENET_LT),
        {
            'backbone.arch': dict(
                _delete_=True,
                embed_dims=8,
                depths=[1, 1, 1, 1],
                num_heads=[1, 1, 1, 1],
            ),
            'head.in_channels': 64,
        },
        (224, 224),
    ),
    conformer=Case(
        'mmpretrain::conformer/conformer-tiny-p16_8xb128_in1k.py',
        HEAD.format(IMAGENET_LT),
        {},
    ),
    vgg_multi_label_sigmoid_eql=Case(
        'mmpretrain::vgg/vgg16_8xb16_voc.py',
        # MultiLabelClsHead does not know the number of classes.
        HEAD.format(SIGMOID_EQL.replace(')', ', num_classes=20)')),
        {'backbone.depth': 11, 'backbone.init_cfg': None},
        (224, 224),
    ),
    vgg_multi_label=Case(
        'mmpretrain::vgg/vgg16_8xb16_voc.py',
        HEAD.format(SIGMOID + counts(20)),
        {'backbone.depth': 11, 'backbone.init_cfg': None},
        (224, 224),
    ),
)


def classification_data(model, case):
    from mmpretrain.structures import DataSample

    head = model.head
    num_classes = getattr(head, 'num_classes', None) or 20
    several = type(head).__name__ == 'MultiLabelClsHead'
    samples = []
    for label in (0, num_classes - 1):
        sample = DataSample()
        if several:
            sample.set_gt_score(torch.eye(num_classes)[label])
        else:
            sample.set_gt_label(label)
        samples.append(sample)
    return dict(
        inputs=torch.randint(0, 255, (2, 3, *case.shape)), data_samples=samples
    )


# ------------------------------------------------------------------- mmseg
ADE20K = SOFTMAX + "class_counts='ade20k'"
DECODE = f"""
model = dict(
    decode_head=dict(loss_decode={ADE20K})),
    auxiliary_head=dict(loss_decode={ADE20K}, loss_weight=0.4)))
"""
R18_SEG = {
    'pretrained': None,
    'backbone.depth': 18,
    'backbone.base_channels': 8,
    'backbone.stem_channels': 8,
    'decode_head.in_channels': 64,
    'decode_head.channels': 16,
    'auxiliary_head.in_channels': 32,
    'auxiliary_head.channels': 16,
}
SEGMENTORS = dict(
    fcn=Case(
        'mmseg::fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512.py',
        DECODE,
        R18_SEG,
        terms=2,
    ),
    fcn_softmax_eql=Case(
        'mmseg::fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512.py',
        DECODE.replace(ADE20K, SOFTMAX_EQL[:-1]),
        R18_SEG,
        terms=2,
    ),
    segformer_efl=Case(
        'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
        f'model = dict(decode_head=dict(loss_decode={EFL}))',
        {
            'pretrained': None,
            'backbone.init_cfg': None,
            'backbone.num_layers': [1, 1, 1, 1],
        },
    ),
    deeplabv3plus=Case(
        'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512.py',
        DECODE,
        {
            **R18_SEG,
            'decode_head.c1_in_channels': 8,
            'decode_head.c1_channels': 8,
        },
        terms=2,
    ),
    upernet=Case(
        'mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512.py',
        DECODE,
        {**R18_SEG, 'decode_head.in_channels': [8, 16, 32, 64]},
        terms=2,
    ),
    pspnet_ohem=Case(
        'mmseg::pspnet/pspnet_r50-d8_4xb4-80k_ade20k-512x512.py',
        DECODE.replace(
            'decode_head=dict(',
            'decode_head=dict(sampler=dict('
            "type='OHEMPixelSampler', min_kept=1000), ",
            1,
        ),
        R18_SEG,
        terms=2,
    ),
    segformer=Case(
        'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
        f'model = dict(decode_head=dict(loss_decode={ADE20K})))',
        {
            'pretrained': None,
            'backbone.init_cfg': None,
            'backbone.num_layers': [1, 1, 1, 1],
        },
    ),
    pointrend=Case(
        'mmseg::point_rend/pointrend_r50_4xb4-160k_ade20k-512x512.py',
        EACH_HEAD.replace('roi_head.bbox_head', 'decode_head')
        .replace('loss_cls', 'loss_decode')
        .format(
            "dict(type='lt_losses_mm.BalancedSoftmaxLoss', "
            "class_counts='ade20k')"
        ),
        {
            'pretrained': None,
            'backbone.depth': 18,
            'backbone.base_channels': 8,
            'backbone.stem_channels': 8,
            'neck.in_channels': [8, 16, 32, 64],
            'train_cfg.num_points': 32,
            'test_cfg.subdivision_num_points': 32,
        },
        terms=2,
    ),
)


def segmentation_data(model, case):
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    samples = []
    for _ in range(2):
        label = torch.randint(0, 150, (1, *case.shape))
        label[0, :4] = 255
        samples.append(
            SegDataSample(
                gt_sem_seg=PixelData(data=label),
                metainfo=dict(
                    img_shape=case.shape,
                    ori_shape=case.shape,
                    pad_shape=case.shape,
                ),
            )
        )
    return dict(
        inputs=list(torch.randint(0, 255, (2, 3, *case.shape))),
        data_samples=samples,
    )


FAMILIES = dict(
    mmdet=(DETECTORS, detection_data),
    mmpretrain=(CLASSIFIERS, classification_data),
    mmseg=(SEGMENTORS, segmentation_data),
)
LONG = {
    'mask_rcnn_lvis_eql',
    'segformer_efl',
    'vgg_multi_label_sigmoid_eql',
    'detr_sigmoid',
    'mask2former',
    'sparse_rcnn',
    'vgg_multi_label',
    'deeplabv3plus',
    'upernet',
    'pointrend',
}
CASES = [
    pytest.param(
        host, name, id=f'{host}-{name}', marks=slow if name in LONG else []
    )
    for host, (cases, _) in FAMILIES.items()
    for name in cases
]


@pytest.fixture
def built(tmp_path, monkeypatch):
    """A stock model as it is before the first batch."""

    def build(host, case, change):
        pytest.importorskip(host)
        importlib.import_module(f'{host}.models')
        path = tmp_path / 'config.py'
        path.write_text(f"_base_ = ['{case.config}']\n{change}\n")
        cfg = Config.fromfile(path)
        cfg.merge_from_dict(
            {f'model.{key}': value for key, value in case.small.items()}
        )
        if 'data_preprocessor' in cfg:  # as the Runner does
            cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
        torch.manual_seed(0)
        np.random.seed(0)
        # TOODHead looks up the epoch of the run.
        monkeypatch.setattr(MessageHub, '_instance_dict', {})
        MessageHub.get_current_instance().update_info('epoch', 1)
        with DefaultScope.overwrite_default_scope(host):
            registry = importlib.import_module(f'{host}.registry')
            model = revert_sync_batchnorm(registry.MODELS.build(cfg.model))
            # What a Runner does before training.
            runner = Namespace(
                model=model,
                logger=logging.getLogger('test'),
                _train_loop=Namespace(dataloader=DataLoader([0])),
            )
            LossSetupHook().before_run(runner)
            model.init_weights()
        return model.train()

    return build


@pytest.mark.parametrize('host, name', CASES)
def test_one_line_change(host, name, built):
    cases, data_of = FAMILIES[host]
    case = cases[name]
    model = built(host, case, case.change)
    with DefaultScope.overwrite_default_scope(host):
        losses = [
            m
            for m in model.modules()
            if isinstance(m, lt_losses_mm.losses.LongTailLoss)
        ]
        assert losses
        calls = []
        for loss in losses:
            loss.register_forward_hook(lambda *args: calls.append(args[-1]))

        optim = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-2))
        data = data_of(model, case)
        before = {k: v.clone() for k, v in model.named_parameters()}
        logs = model.train_step(data, optim)
        assert logs['loss'].isfinite(), logs
        assert sum(c.requires_grad for c in calls) >= case.terms
        assert sum(c.sum() for c in calls) > 0
        assert any(
            'head' in k or 'classifier' in k
            for k, v in model.named_parameters()
            if not torch.equal(v, before[k])
        )

        commit_statistics(model)
        for loss in losses:
            if isinstance(loss.statistics, GradientStatistics):
                assert loss.statistics.neg_grad.max() > 0
                assert loss.statistics.ratio.isfinite().any()

        model.eval()
        with torch.no_grad():
            results = model.test_step(data_of(model, case))
        assert len(results) == 2


@pytest.mark.parametrize(
    'host, name',
    [
        pytest.param(
            host,
            name,
            id=f'{host}-{name}',
            marks=[] if name in ('fcos', 'retinanet_efl') else slow,
        )
        for host, (cases, _) in FAMILIES.items()
        for name in cases
    ],
)
def test_training_starts_where_the_hosts_does(host, name, built, caplog):
    """Not at more than ten times its loss, or a warning says why."""
    cases, data_of = FAMILIES[host]
    case = cases[name]
    # The bias of the heads is what this is about.
    small = {k: v for k, v in case.small.items() if k != 'bbox_head.init_cfg'}
    case = case._replace(small=small)
    model = built(host, case, case.change)
    places = [
        name
        for name, module in model.named_modules()
        if isinstance(module, lt_losses_mm.losses.LongTailLoss)
    ]

    def first(model):
        terms = []

        def keep(module, args, value):
            if value.numel() == 1:  # a sampler asks for the rows
                terms.append(value.item())

        for place in places:
            model.get_submodule(place).register_forward_hook(keep)
        torch.manual_seed(0)
        np.random.seed(0)
        with torch.no_grad(), DefaultScope.overwrite_default_scope(host):
            data = model.data_preprocessor(data_of(model, case), True)
            model(**data, mode='loss')
        return sum(terms)

    ours, theirs = first(model), first(built(host, case, ''))
    assert 0 < ours and 0 < theirs
    if 'no focal factor' in caplog.text:
        # These models have few anchors and queries: real ones start higher.
        assert ours > 5 * theirs
    else:
        assert ours < 10 * theirs
    if 'lt_losses_mm.EqualizedFocalLoss' in case.change and host == 'mmdet':
        assert ours == pytest.approx(theirs, rel=1e-4)
