"""What a Runner tells the heads of the hosts, before training starts.

The heads belong to the model, but are not called: what is looked at happens
before the first batch.
"""

import logging
import math
from types import SimpleNamespace as Namespace

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from torch import nn

from lt_losses_mm.hooks.loss_setup import check_head
from lt_losses_mm.losses import LOSSES as ALL
from lt_losses_mm.losses import LongTailLoss
from lt_losses_mm.registry import MODELS

C = 3
# 1 / (C + 1) has the logit -log C; 0.001 is for many classes.
PRIOR = -math.log(C)
QUIET = dict(type='lt_losses_mm.StatisticsHook', interval=0, draw=False)

LOSSES = {cls.__name__: cls for cls in ALL}
SIGMOID = [name for name, cls in LOSSES.items() if cls.use_sigmoid]
RUNNING = [
    name
    for name, cls in LOSSES.items()
    if cls(class_counts=[6, 3, 1]).statistics is not None
]

ROI = dict(in_channels=4, roi_feat_size=1, fc_out_channels=8)
ANCHORS = dict(type='AnchorGenerator', ratios=[1.0], scales=[2.0], strides=[8])
DENSE = dict(in_channels=8, feat_channels=8, anchor_generator=ANCHORS)

# Host, key of the loss, other arguments.
HEADS = dict(
    BBoxHead=('mmdet', 'loss_cls', dict(in_channels=4, roi_feat_size=1)),
    Shared2FCBBoxHead=('mmdet', 'loss_cls', ROI),
    RetinaHead=('mmdet', 'loss_cls', DENSE),
    ATSSHead=('mmdet', 'loss_cls', dict(DENSE, norm_cfg=None)),
    GFLHead=('mmdet', 'loss_cls', dict(DENSE, norm_cfg=None)),
    RTMDetHead=(
        'mmdet',
        'loss_cls',
        dict(DENSE, norm_cfg=None, with_objectness=False),
    ),
    RTMDetSepBNHead=('mmdet', 'loss_cls', dict(DENSE, with_objectness=False)),
    TOODHead=('mmdet', 'loss_cls', dict(DENSE, norm_cfg=None)),
    VFNetHead=('mmdet', 'loss_cls', dict(in_channels=8, norm_cfg=None)),
    PAAHead=('mmdet', 'loss_cls', dict(DENSE, norm_cfg=None)),
    YOLOFHead=(
        'mmdet',
        'loss_cls',
        dict(in_channels=8, num_cls_convs=1, anchor_generator=ANCHORS),
    ),
    FoveaHead=('mmdet', 'loss_cls', dict(in_channels=8)),
    RPNHead=('mmdet', 'loss_cls', DENSE),
    FCNMaskHead=('mmdet', 'loss_mask', dict(in_channels=8)),
    SABLHead=('mmdet', 'loss_cls', {}),
    DoubleConvFCBBoxHead=(
        'mmdet',
        'loss_cls',
        dict(ROI, num_convs=1, num_fcs=1, conv_out_channels=8),
    ),
    PIDHead=('mmseg', 'loss_decode', dict(in_channels=8, channels=8)),
    ArcFaceClsHead=('mmpretrain', 'loss', dict(in_channels=8)),
    YOLOXHead=('mmdet', 'loss_cls', dict(in_channels=8, feat_channels=8)),
    FreeAnchorRetinaHead=('mmdet', 'loss_cls', DENSE),
    LinearClsHead=('mmpretrain', 'loss', dict(in_channels=8)),
    MultiLabelLinearClsHead=('mmpretrain', 'loss', dict(in_channels=8)),
    FCNHead=('mmseg', 'loss_decode', dict(in_channels=8, channels=8)),
    SegformerHead=(
        'mmseg',
        'loss_decode',
        dict(in_channels=[8, 8], in_index=[0, 1], channels=8),
    ),
)


def host_build(host, cfg):
    registry = pytest.importorskip(f'{host}.registry')
    pytest.importorskip(f'{host}.models')
    # A Runner leaves its own scope behind.
    with DefaultScope.overwrite_default_scope(host):
        return registry.MODELS.build(ConfigDict(cfg))


def build_head(kind, loss, **kwargs):
    """A head as its host builds it; ``loss`` is a name or a config."""
    host, key, arguments = HEADS[kind]
    if isinstance(loss, str):
        cls = LOSSES[loss]
        loss = dict(type=f'lt_losses_mm.{loss}')
        if cls.uses_counts:
            loss['class_counts'] = [6, 3, 1]
        if 'anchor_generator' in arguments or kind == 'VFNetHead':
            loss['use_sigmoid'] = cls.use_sigmoid
    cfg = dict(arguments, type=kind, num_classes=C, **{key: loss})
    if kind == 'RPNHead':
        del cfg['num_classes']
    return host_build(host, dict(cfg, **kwargs))


@pytest.fixture
def train(make_runner):
    """Train a model that has the given head besides its own."""

    def run(head, **kwargs):
        runner = make_runner(
            dict(type='lt_losses_mm.BalancedSoftmaxLoss'),
            custom_hooks=[QUIET],
            val_dataloader=False,
            val_cfg=False,
            val_evaluator=False,
            **kwargs,
        )
        runner.model.extra = head
        runner.train()
        return runner

    return run


def messages(log, what):
    return [r.getMessage() for r in log[0] if what in r.getMessage()]


# -------------------------------------------------------------- initial bias
CLASSIFIERS = dict(
    BBoxHead='fc_cls',
    Shared2FCBBoxHead='fc_cls',
    LinearClsHead='fc',
    MultiLabelLinearClsHead='fc',
    FCNHead='conv_seg',
    SegformerHead='conv_seg',
)


@pytest.mark.parametrize('kind', CLASSIFIERS)
def test_initial_bias_of_each_kind_of_head(train, log, kind):
    head = build_head(kind, 'SigmoidEqualizationLoss')
    train(head)
    classifier = getattr(head, CLASSIFIERS[kind])
    assert classifier.bias.tolist() == pytest.approx(
        [PRIOR] * len(classifier.bias)
    )
    # As the host does, and as the recipes do.
    assert 0 < classifier.weight.std() < 0.02
    (told,) = messages(log, 'bias of')
    assert (
        CLASSIFIERS[kind] in told
        and f'{PRIOR:.2f}' in told
        and 'extra' in told
    )


@pytest.mark.parametrize(
    'num_classes, prior', [(1203, 0.001), (999, 0.001), (19, 0.05), (1, 0.5)]
)
def test_initial_probability_by_default(num_classes, prior):
    loss = MODELS.build(
        dict(type='SigmoidEqualizationLoss', num_classes=num_classes)
    )
    assert loss.initial_bias == pytest.approx(math.log(prior / (1 - prior)))


@pytest.mark.parametrize('name', SIGMOID)
def test_initial_bias_of_each_sigmoid_loss(train, name):
    head = build_head('Shared2FCBBoxHead', name)
    columns = head.fc_cls.out_features
    assert columns == C + (name == 'SigmoidEqualizationLoss')
    train(head)
    assert head.fc_cls.bias.tolist() == pytest.approx([PRIOR] * columns)
    other = head.fc_reg.bias
    assert not other.any()


def test_initial_bias_may_be_chosen_or_left_to_the_head(train):
    loss = dict(type='lt_losses_mm.SigmoidEqualizationLoss')
    chosen = build_head('BBoxHead', dict(loss, bias_prior=0.05))
    train(chosen)
    expected = math.log(0.05 / 0.95)
    assert chosen.fc_cls.bias.tolist() == pytest.approx([expected] * 4)
    left = build_head('BBoxHead', dict(loss, bias_prior=None))
    train(left)
    assert not left.fc_cls.bias.any()


def test_softmax_losses_leave_the_bias_alone(train, log):
    losses = [n for n in LOSSES if n not in SIGMOID]
    for loss in losses:
        head = build_head('Shared2FCBBoxHead', loss)
        train(head)
        assert not head.fc_cls.bias.any()
    assert not messages(log, 'bias of')


@pytest.mark.parametrize(
    'kind, attribute',
    [
        ('RetinaHead', 'retina_cls'),
        ('ATSSHead', 'atss_cls'),
        ('GFLHead', 'gfl_cls'),
    ],
)
def test_dense_heads_have_a_prior_of_their_own(train, log, kind, attribute):
    head = build_head(kind, 'EqualizedQualityFocalLoss')
    train(head)
    own = math.log(0.01 / 0.99)
    bias = getattr(head, attribute).bias
    assert bias.tolist() == pytest.approx([own] * C)
    assert not messages(log, 'bias of')


@pytest.mark.parametrize('resume', [False, True])
def test_a_checkpoint_wins_over_the_initial_bias(
    train, make_runner, tmp_path, resume
):
    head = build_head('Shared2FCBBoxHead', 'SigmoidEqualizationLoss')
    runner = train(head)
    path = str(tmp_path / 'epoch_1.pth')
    saved = torch.load(path, weights_only=False)
    saved['state_dict']['extra.fc_cls.bias'] = torch.arange(C + 1.0)
    torch.save(saved, path)
    head = build_head('Shared2FCBBoxHead', 'SigmoidEqualizationLoss')
    how = dict(load_from=path, resume=resume)
    if resume:
        how['train_cfg'] = dict(by_epoch=True, max_epochs=2)
    runner = train(head, **how)
    assert runner.epoch == (2 if resume else 1)
    assert head.fc_cls.bias.tolist() == [0, 1, 2, 3]


def test_a_head_that_is_a_plain_module(make_runner):
    """PlaneHead is no BaseModule, so that nothing initialises it."""
    runner = make_runner(
        dict(type='lt_losses_mm.SigmoidEqualizationLoss'),
        custom_hooks=[QUIET],
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=1e-9)),
    )
    runner.train()
    bias = runner.model.head.fc.bias
    assert bias.tolist() == pytest.approx([PRIOR] * C)


@pytest.mark.parametrize('kind', ['vit', 'dii', 'ddr'])
def test_what_is_told_about_the_bias_is_true(train, log, kind):
    """Heads that name the classifier otherwise, or initialise it later."""
    loss = dict(type='lt_losses_mm.SigmoidEqualizationLoss')
    if kind == 'vit':
        head = host_build(
            'mmpretrain',
            dict(
                type='VisionTransformerClsHead',
                num_classes=C,
                in_channels=8,
                loss=loss,
            ),
        )
        classifier = head.layers.head
    elif kind == 'dii':
        head = host_build(
            'mmdet',
            dict(
                type='DIIHead',
                num_classes=C,
                num_ffn_fcs=2,
                num_heads=2,
                num_cls_fcs=1,
                num_reg_fcs=1,
                feedforward_channels=8,
                in_channels=8,
                dynamic_conv_cfg=dict(
                    type='DynamicConv',
                    in_channels=8,
                    feat_channels=4,
                    out_channels=8,
                    input_feat_shape=7,
                ),
                loss_cls=loss,
                loss_iou=dict(type='GIoULoss'),
            ),
        )
        classifier = head.fc_cls
    else:
        head = host_build(
            'mmseg',
            dict(
                type='DDRHead',
                in_channels=4,
                channels=4,
                num_classes=C,
                norm_cfg=dict(type='BN'),
                loss_decode=[loss, loss],
            ),
        )
        classifier = head.conv_seg
    train(head)
    started = bool(messages(log, 'bias of'))
    assert started == torch.allclose(classifier.bias, torch.tensor(PRIOR))
    if kind == 'dii':
        own = math.log(0.01 / 0.99)
        assert classifier.bias.tolist() == pytest.approx([own] * C)
    else:
        assert messages(log, 'bias_prior')


def test_layers_that_initialise_themselves(train):
    """NormedLinear, of the LVIS configs of Seesaw Loss, resets its bias."""
    head = build_head(
        'Shared2FCBBoxHead',
        'SigmoidEqualizationLoss',
        cls_predictor_cfg=dict(type='NormedLinear'),
    )
    train(head)
    assert head.fc_cls.bias.tolist() == pytest.approx([PRIOR] * (C + 1))


def test_an_initialised_model_keeps_its_bias(train):
    head = build_head('Shared2FCBBoxHead', 'SigmoidEqualizationLoss')
    head.init_weights()
    nn.init.constant_(head.fc_cls.bias, 0.5)
    train(head)
    assert (head.fc_cls.bias == 0.5).all()


# ------------------------------------------------------------------- quality
QUALITY_HEADS = [
    'GFLHead',
    'RTMDetHead',
    'RTMDetSepBNHead',
    'TOODHead',
    'VFNetHead',
]


@pytest.mark.parametrize(
    'kind, reason',
    [
        ('YOLOXHead', 'positive anchors alone'),
        ('FreeAnchorRetinaHead', 'never calls loss_cls'),
        ('PAAHead', 'unreduced terms'),
        ('RPNHead', 'no classes apart'),
    ],
)
def test_heads_that_cannot_serve_a_loss_refuse_it(train, kind, reason):
    for name in ('EqualizedFocalLoss', 'EqualizedQualityFocalLoss'):
        head = build_head(
            kind, dict(type=f'lt_losses_mm.{name}', use_sigmoid=True)
        )
        with pytest.raises(ValueError, match=f'{kind}.*{reason}'):
            train(head)


@pytest.mark.parametrize('kind', QUALITY_HEADS)
def test_heads_that_learn_a_quality_refuse_other_losses(train, kind):
    for name in [n for n, cls in LOSSES.items() if not cls.takes_quality]:
        head = build_head(kind, name)
        with pytest.raises(
            ValueError,
            match=f'extra.loss_cls.*{name}.*{kind}.*EqualizedQualityFocalLoss',
        ):
            train(head)


@pytest.mark.parametrize('kind', [k for k in QUALITY_HEADS if k[0] != 'T'])
def test_heads_that_learn_a_quality_take_eqfl(train, kind):
    head = build_head(kind, 'EqualizedQualityFocalLoss')
    train(head)
    assert head.loss_cls.num_classes == C


@pytest.mark.parametrize('activated', [None, False, True])
def test_tood_hands_over_probabilities(train, activated):
    """As logits they would make a loss that looks fine and learns nothing."""
    loss = dict(
        type='lt_losses_mm.EqualizedQualityFocalLoss', use_sigmoid=True
    )
    if activated is not None:
        loss['activated'] = activated
    head = build_head('TOODHead', loss)
    if activated:
        train(head)
        return
    with pytest.raises(ValueError, match='extra.loss_cls.*activated=True'):
        train(head)


def test_other_heads_hand_over_logits(train):
    loss = dict(
        type='lt_losses_mm.EqualizedQualityFocalLoss',
        use_sigmoid=True,
        activated=True,
    )
    with pytest.raises(ValueError, match='extra.loss_cls.*activated=False'):
        train(build_head('GFLHead', loss))


def test_first_loss_of_tood_gets_probabilities_too(train):
    loss = dict(
        type='lt_losses_mm.EqualizedQualityFocalLoss',
        use_sigmoid=True,
        activated=True,
    )
    focal = dict(type='lt_losses_mm.EqualizedFocalLoss', use_sigmoid=True)
    train_cfg = dict(
        initial_epoch=4,
        initial_assigner=dict(type='ATSSAssigner', topk=4),
        assigner=dict(type='TaskAlignedAssigner', topk=4),
        alpha=1,
        beta=6,
    )
    head = build_head(
        'TOODHead', loss, initial_loss_cls=focal, train_cfg=train_cfg
    )
    with pytest.raises(ValueError, match='extra.initial_loss_cls.*TOODHead'):
        train(head)
    head = build_head(
        'TOODHead', loss, initial_loss_cls=loss, train_cfg=train_cfg
    )
    train(head)


def test_vfnet_without_varifocal_loss_takes_labels(train):
    focal = dict(type='lt_losses_mm.EqualizedFocalLoss', use_sigmoid=True)
    head = build_head(
        'VFNetHead',
        dict(type='VarifocalLoss', use_sigmoid=True),
        loss_cls_fl=focal,
        use_vfl=False,
    )
    train(head)
    assert head.loss_cls.num_classes == C


# ------------------------------------------------------- what no loss serves
@pytest.mark.parametrize('name', ['BalancedSigmoidLoss', 'EqualizedFocalLoss'])
def test_a_proposal_network_of_any_kind_is_refused(train, name):
    two_stage = nn.Module()
    two_stage.rpn_head = build_head('RetinaHead', name)
    with pytest.raises(
        ValueError,
        match=f"extra.rpn_head.loss_cls: type='{name}', expected the host's "
        'own loss, .*no classes apart. Fix: leave loss_cls of this head',
    ):
        train(two_stage)


@pytest.mark.parametrize('name', ['BalancedSigmoidLoss', 'EqualizedFocalLoss'])
def test_the_loss_of_a_mask_is_refused(train, name):
    with pytest.raises(
        ValueError,
        match='extra.loss_mask: .* because it tells an object from '
        '.*leave loss_mask of this head as it was',
    ):
        train(build_head('FCNMaskHead', dict(type=f'lt_losses_mm.{name}')))


def test_a_head_of_normalised_features_is_served(train):
    train(build_head('ArcFaceClsHead', 'BalancedSoftmaxLoss'))


def test_several_tasks_need_counts_of_their_own(train):
    def several(counts):
        heads = nn.Module()
        heads.task_heads = nn.ModuleDict(
            {
                task: build_head(
                    'LinearClsHead',
                    dict(type=f'lt_losses_mm.{loss}', class_counts=counts),
                )
                for task, loss in (
                    ('shape', 'SoftmaxEqualizationLoss'),
                    ('tint', 'BalancedSoftmaxLoss'),
                )
            }
        )
        return heads

    with pytest.raises(
        ValueError,
        match="extra.task_heads.shape.loss_module: class_counts='auto', .*"
        "task 'shape', .*class_counts to the loss of each task",
    ):
        train(several('auto'))
    train(several([6, 3, 1]))


# ------------------------------------------------------ softmax and sigmoid
@pytest.mark.parametrize('name', SIGMOID[:2])
def test_dense_heads_have_to_be_told_of_a_sigmoid(train, name):
    loss = dict(type=f'lt_losses_mm.{name}', class_counts=[6, 3, 1])
    with pytest.raises(
        ValueError,
        match='extra.loss_cls: use_sigmoid=False, expected True, because '
        'RetinaHead .*write use_sigmoid=True beside type',
    ):
        train(build_head('RetinaHead', loss))


@pytest.mark.parametrize('kind', ['FoveaHead', 'YOLOFHead'])
def test_heads_that_read_sigmoids(train, kind):
    loss = dict(type='lt_losses_mm.BalancedSoftmaxLoss')
    with pytest.raises(
        ValueError, match=f'loss over a sigmoid, because {kind}.*BalancedSigm'
    ):
        train(build_head(kind, loss))
    train(
        build_head(
            kind,
            dict(type='lt_losses_mm.EqualizedFocalLoss', use_sigmoid=True),
        )
    )


def test_heads_that_read_a_softmax(train):
    for loss in ('SigmoidEqualizationLoss', 'BalancedSigmoidLoss'):
        with pytest.raises(
            ValueError, match='loss over a softmax, because SABLHead.*Balanced'
        ):
            train(build_head('SABLHead', loss))
    train(build_head('SABLHead', 'BalancedSoftmaxLoss'))


# ------------------------------------------------------ what the log tells
@pytest.mark.parametrize(
    'kind, name, fix',
    [
        ('DoubleConvFCBBoxHead', 'EqualizedFocalLoss', 'BalancedSoftmaxLoss'),
        ('DoubleConvFCBBoxHead', 'EqualizationLoss', 'BalancedSoftmaxLoss'),
        ('DoubleConvFCBBoxHead', 'BalancedSigmoidLoss', "d='objectness' bes"),
        ('DoubleConvFCBBoxHead', 'SeesawSoftmaxLoss', "d='keep_odds' beside"),
        ('SABLHead', 'SeesawSoftmaxLoss', "background='keep_odds' beside"),
    ],
)
def test_heads_whose_columns_are_their_own(train, kind, name, fix):
    with pytest.raises(
        ValueError, match=f'fits the 4 columns that {kind} always .*{fix}'
    ):
        train(build_head(kind, name))


@pytest.mark.parametrize(
    'loss',
    [
        dict(type='BalancedSoftmaxLoss'),
        dict(type='SigmoidEqualizationLoss'),
        dict(type='BalancedSigmoidLoss', background='objectness'),
        dict(type='SeesawSoftmaxLoss', background='keep_odds'),
    ],
    ids=lambda loss: loss['type'],
)
def test_losses_that_fit_columns_of_the_heads_own(train, loss):
    loss = dict(loss, type=f'lt_losses_mm.{loss["type"]}')
    head = build_head('DoubleConvFCBBoxHead', loss)
    train(head)
    labels = torch.tensor([0, 1, 2, 3])
    head.loss_cls(head.fc_cls(torch.zeros(4, 8)), labels).backward()


def test_the_boundary_term_of_pidnet_is_refused(train):
    ours = dict(type='lt_losses_mm.BalancedSoftmaxLoss')
    host = dict(type='CrossEntropyLoss')
    train(build_head('PIDHead', [ours, ours, dict(type='BoundaryLoss'), ours]))
    with pytest.raises(
        ValueError, match=r'loss_decode.2: .*it tells bound.*\]'
    ):
        train(build_head('PIDHead', [host, host, ours, host]))
    for losses in (ours, [ours, ours]):
        with pytest.raises(ValueError, match='a list of 4 losses, which PID'):
            train(build_head('PIDHead', losses))


def test_parameters_that_are_not_the_defaults_are_told(train, log):
    loss = dict(
        type='lt_losses_mm.EqualizedFocalLoss',
        use_sigmoid=True,
        alpha=0.75,
        loss_weight=2.0,
    )
    train(build_head('RetinaHead', loss))
    (told,) = messages(log, 'EqualizedFocalLoss has')
    assert told == (
        'extra.loss_cls: EqualizedFocalLoss has alpha=0.75 (default 0.25)'
    )


@pytest.mark.parametrize('kind', ['RetinaHead', 'YOLOFHead'])
def test_no_focal_factor_in_a_dense_head(train, log, kind):
    for name in SIGMOID:
        if not LOSSES[name].takes_quality:
            loss = dict(type=f'lt_losses_mm.{name}', use_sigmoid=True)
            train(build_head(kind, dict(loss, class_counts=[6, 3, 1])))
    if kind == 'RetinaHead':
        train(build_head(kind, 'BalancedSoftmaxLoss'))
    told = messages(log, 'no focal factor')
    assert [line.split()[1] for line in told] == [
        'BalancedSigmoidLoss',
        'EqualizationLoss',
        'SigmoidEqualizationLoss',
        *(['BalancedSoftmaxLoss'] if kind == 'RetinaHead' else []),
    ]


@pytest.mark.parametrize(
    'kind', ['Shared2FCBBoxHead', 'MultiLabelLinearClsHead', 'FCNHead']
)
def test_other_heads_need_no_focal_factor(train, log, kind):
    train(build_head(kind, 'BalancedSigmoidLoss'))
    assert not messages(log, 'no focal factor')


# ------------------------------------------- classes of the head and the data
def compare(names, loss='SigmoidEqualizationLoss', kind='LinearClsHead', **kw):
    """A head for C classes meets data with these names."""
    head = build_head(kind, dict(type=f'lt_losses_mm.{loss}', **kw))
    parts = [
        Namespace(metainfo=dict(classes=part) if part else {})
        for part in (names if isinstance(names, list) else [names])
    ]
    check_beside(head, Namespace(datasets=parts))


def check_beside(head, dataset):
    runner = Namespace(
        logger=logging.getLogger('test'),
        model=nn.ModuleDict(dict(head=head)),
        _train_loop=Namespace(dataloader=Namespace(dataset=dataset)),
    )
    check_head(runner, 'head.loss_module', head.loss_module, head)


@pytest.mark.parametrize('loss', ['BalancedSoftmaxLoss', *RUNNING])
@pytest.mark.parametrize('names', [('a', 'b'), tuple('abcd')])
def test_head_and_data_have_other_classes(loss, names):
    with pytest.raises(
        ValueError,
        match=rf'head.loss_module: num_classes=3, expected {len(names)} for '
        r"LinearClsHead, as the training data have the classes 'a', 'b'.*"
        rf'Fix: write num_classes={len(names)} in LinearClsHead, .*'
        'give class_counts as a list',
    ):
        compare(names, loss)
    compare(('a', 'b', 'c'), loss)
    # Transforms may make other classes of them.
    compare(names, loss, class_counts=[6, 3, 1])


def test_folders_without_an_image_are_named():
    head = build_head(
        'LinearClsHead', dict(type='lt_losses_mm.BalancedSoftmaxLoss')
    )
    folders = {name: i for i, name in enumerate('abcd')}
    dataset = Namespace(
        folder_to_idx=folders,
        metainfo=dict(classes=tuple(folders)),
        get_gt_labels=lambda: np.array([0, 2, 3]),
    )
    with pytest.raises(ValueError, match=r"without an image \('b'\), write"):
        check_beside(head, dataset)


def test_box_heads_of_panoptic_data_have_the_things():
    head = build_head(
        'LinearClsHead', dict(type='lt_losses_mm.SeesawSoftmaxLoss')
    )
    meta = dict(classes=tuple('abcde'), thing_classes=tuple('abc'))
    check_beside(head, Namespace(metainfo=meta))
    meta['thing_classes'] = tuple('abcd')
    with pytest.raises(ValueError, match='num_classes=3, expected 5'):
        check_beside(head, Namespace(metainfo=meta))


def test_a_forgotten_comma():
    for loss in ('BalancedSoftmaxLoss', 'SigmoidEqualizationLoss'):
        for name in ('kiln', 'cat'):
            with pytest.raises(
                ValueError,
                match=f"metainfo.classes='{name}', expected a sequence of .*"
                rf"a comma makes one of it, classes=\('{name}',\)",
            ):
                compare(name, loss)


def test_many_names_are_cut_short():
    names = tuple(f'a name that is rather long {i}' for i in range(1203))
    with pytest.raises(ValueError, match='and 1193 more') as caught:
        compare(names)
    assert len(str(caught.value)) < 1000


def test_data_sets_with_metainfo_of_their_own():
    compare([('a', 'b', 'c'), None, ('a', 'b', 'c')])
    with pytest.raises(ValueError, match='num_classes=3, expected 4 for'):
        compare([('a', 'b', 'c'), tuple('abcd')])
    with pytest.raises(ValueError, match="'a' 0 / 1"):
        compare([('a', 'b', 'c'), tuple('cab')])


def test_data_without_names_say_nothing():
    compare(())


# --------------------------------------------------------- number of classes
@pytest.mark.parametrize('kind', ['RetinaHead', 'LinearClsHead', 'FCNHead'])
@pytest.mark.parametrize('name', RUNNING)
def test_the_head_tells_the_number_of_classes(train, monkeypatch, kind, name):
    """A config of such a loss needs no key at all, nor the data counted."""
    loss = dict(type=f'lt_losses_mm.{name}')
    if kind == 'RetinaHead':
        loss['use_sigmoid'] = LOSSES[name].use_sigmoid
    head = build_head(kind, loss)
    (loss,) = (m for m in head.modules() if isinstance(m, LongTailLoss))
    assert not hasattr(loss, 'num_classes')
    train(head)
    assert loss.num_classes == C
    assert loss.statistics.num_classes == C
    assert not loss.class_counts.numel()


@pytest.mark.parametrize('name', RUNNING)
def test_another_number_than_the_heads_is_an_error(train, name):
    loss = dict(type=f'lt_losses_mm.{name}', num_classes=4)
    with pytest.raises(
        ValueError, match='extra.*: num_classes=4, expected num_classes=3 of'
    ):
        train(build_head('LinearClsHead', loss))


@pytest.mark.parametrize('name', RUNNING)
def test_counts_for_plots_may_be_counted(train, name):
    loss = dict(type=f'lt_losses_mm.{name}', class_counts='auto')
    head = build_head('LinearClsHead', loss)
    train(head)
    assert head.loss_module.class_counts.tolist() == [6, 3, 1]


def test_losses_without_a_prior_correct_nothing_twice(train, loader, log):
    balanced = dict(type='ClassBalancedDataset', oversample_thr=0.9)
    head = nn.ModuleList(
        build_head(
            'LinearClsHead',
            dict(type=f'lt_losses_mm.{name}', class_counts=[6, 3, 1]),
        )
        for name in RUNNING
    )
    train(head, train=loader(wrapper=balanced))
    assert not messages(log, 'Double correction')


@pytest.mark.parametrize('kind', ['LinearClsHead', 'FCNHead'])
def test_eql_without_background(train, log, kind):
    """Then nothing is ever a negative of a rare class."""
    train(build_head(kind, 'EqualizationSoftmaxLoss'))
    assert not messages(log, 'no rows of background')
    train(build_head(kind, 'EqualizationLoss'))
    (told,) = messages(log, 'no rows of background')
    assert 'extra' in told and 'EqualizationSoftmaxLoss' in told


def test_eql_with_background(train, log):
    train(build_head('Shared2FCBBoxHead', 'EqualizationLoss'))
    train(build_head('RetinaHead', 'EqualizationLoss'))
    assert not messages(log, 'no rows of background')
