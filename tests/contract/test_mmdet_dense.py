"""Through mmdet's dense and DETR-type heads."""

import copy

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch.testing import assert_close

pytest.importorskip('mmdet')
from mmdet.registry import MODELS

C = 5
META = dict(
    img_shape=(32, 32),
    scale_factor=(1.0, 1.0),
    batch_input_shape=(32, 32),
    pad_shape=(32, 32),
)
TEST_CFG = ConfigDict(
    nms_pre=100,
    min_bbox_size=0,
    score_thr=0.0,
    nms=dict(type='nms', iou_threshold=0.6),
    max_per_img=100,
)
ANCHORS = dict(type='AnchorGenerator', ratios=[1.0], scales=[2.0])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def dense_head(kind, loss_cls, strides=(8,)):
    anchors = dict(ANCHORS, strides=list(strides))
    specific = dict(
        RetinaHead=dict(
            anchor_generator=dict(anchors, ratios=[0.5, 1.0, 2.0]),
            train_cfg=dict(
                assigner=dict(
                    type='MaxIoUAssigner',
                    pos_iou_thr=0.5,
                    neg_iou_thr=0.4,
                    min_pos_iou=0,
                ),
                sampler=dict(type='PseudoSampler'),
                allowed_border=-1,
                pos_weight=-1,
                debug=False,
            ),
        ),
        ATSSHead=dict(
            norm_cfg=None,
            anchor_generator=anchors,
            loss_bbox=dict(type='GIoULoss'),
            train_cfg=dict(
                assigner=dict(type='ATSSAssigner', topk=4),
                allowed_border=-1,
                pos_weight=-1,
                debug=False,
            ),
        ),
        FCOSHead=dict(
            norm_cfg=None, strides=strides, regress_ranges=((-1, 1e8),)
        ),
    )
    return MODELS.build(
        ConfigDict(
            type=kind,
            num_classes=C,
            in_channels=4,
            feat_channels=4,
            stacked_convs=1,
            loss_cls=loss_cls,
            test_cfg=TEST_CFG,
            **specific[kind],
        )
    )


def objects(labels=(0, 4)):
    boxes = torch.tensor([[2.0, 2, 18, 18], [14, 12, 30, 28]])
    return [
        InstanceData(
            bboxes=boxes[: len(labels)], labels=torch.tensor(labels).long()
        )
    ]


def dense_loss(head, features, instances=None):
    outs = head(features)
    return outs, head.loss_by_feat(*outs, instances or objects(), [META])


def total(losses):
    return sum(
        sum(v) if isinstance(v, (list, tuple)) else v
        for k, v in losses.items()
        if 'loss' in k
    )


HEADS = ['RetinaHead', 'ATSSHead', 'FCOSHead']


@pytest.mark.parametrize('kind', HEADS)
def test_sigmoid(sigmoid_type, cfg, midway, kind):
    head = midway(dense_head(kind, cfg(sigmoid_type, use_sigmoid=True)))
    assert head.cls_out_channels == C
    features = (torch.randn(1, 4, 4, 4),)
    for instances in (objects(), objects(())):
        head.zero_grad()
        outs, losses = dense_loss(head, features, instances)
        total(losses).backward()
        classifier = {
            'RetinaHead': 'retina_cls',
            'ATSSHead': 'atss_cls',
            'FCOSHead': 'conv_cls',
        }[kind]
        grad = getattr(head, classifier).weight.grad
        assert grad.isfinite().all() and grad.any()
    found = head.predict_by_feat(
        *outs, batch_img_metas=[META], cfg=TEST_CFG, rescale=False
    )[0]
    assert found.labels.max() < C and found.scores.isfinite().all()


@pytest.mark.parametrize('kind', HEADS)
def test_softmax(softmax_type, cfg, one_softmax, midway, kind):
    config = cfg(softmax_type, use_sigmoid=False, **one_softmax(softmax_type))
    head = midway(dense_head(kind, config))
    assert head.cls_out_channels == C + 1
    features = (torch.randn(1, 4, 4, 4),)
    for instances in (objects(), objects(())):
        head.zero_grad()
        outs, losses = dense_loss(head, features, instances)
        total(losses).backward()
    found = head.predict_by_feat(
        *outs, batch_img_metas=[META], cfg=TEST_CFG, rescale=False
    )[0]
    assert found.labels.max() < C and found.scores.isfinite().all()


OWN = {
    'plain cross-entropy': dict(type='CrossEntropyLoss', use_sigmoid=False),
    'plain binary cross-entropy': dict(
        type='CrossEntropyLoss', use_sigmoid=True
    ),
    'plain focal loss': dict(
        type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25
    ),
    # With a quality of 1 and no alpha.
    'plain Quality Focal Loss': dict(
        type='FocalLoss', use_sigmoid=True, alpha=0.5, loss_weight=2.0
    ),
}


@pytest.mark.parametrize('kind', HEADS)
def test_neutral_is_mmdets_own_loss(
    loss_type, loss_class, neutral_cfg, one_softmax, kind
):
    config = neutral_cfg(
        loss_type,
        use_sigmoid=loss_class(loss_type).use_sigmoid,
        **one_softmax(loss_type),
    )
    torch.manual_seed(0)
    ours = dense_head(kind, config)
    torch.manual_seed(0)
    theirs = dense_head(kind, OWN[loss_class(loss_type).plain_form])
    theirs.load_state_dict(ours.state_dict(), strict=False)
    features = (torch.randn(1, 4, 4, 4),)
    losses = [dense_loss(head, features)[1] for head in (ours, theirs)]
    assert_close(*(total(dict(loss=x['loss_cls'])) for x in losses))


@pytest.mark.parametrize('kind', HEADS)
def test_predictions_are_those_of_mmdet(
    policy, loss_class, cfg, strong, midway, kind
):
    """Same logits, same scores: no prior, no shifted column."""
    name, background = policy
    # Where it is the default it is a matter of RoI heads alone.
    default = loss_class(name).background_policies[0] == background
    sigmoid = loss_class(name).use_sigmoid
    if background == 'objectness' and not (sigmoid and default):
        pytest.skip('needs a head that asks the loss for its channels')
    config = cfg(
        name, background=background, use_sigmoid=sigmoid, **strong(name, 2.0)
    )
    ours = midway(dense_head(kind, config))
    theirs = dense_head(
        kind, dict(type='CrossEntropyLoss', use_sigmoid=sigmoid)
    )
    outs = ours((torch.randn(1, 4, 4, 4),))
    outs[0][0].data.normal_(0, 4)
    a, b = (
        head.predict_by_feat(
            *outs, batch_img_metas=[META], cfg=TEST_CFG, rescale=False
        )[0]
        for head in (ours, theirs)
    )
    for key in ('scores', 'labels', 'bboxes'):
        assert_close(getattr(a, key), getattr(b, key))
    assert C - 1 in a.labels


@pytest.mark.parametrize('kind', HEADS)
def test_a_forgotten_use_sigmoid_is_an_error(sigmoid_type, cfg, kind):
    """The head reads that key of the config, before it builds the loss."""
    head = dense_head(kind, cfg(sigmoid_type))
    with pytest.raises(ValueError, match='5 columns.*got 6.*use_sigmoid=True'):
        dense_loss(head, (torch.randn(1, 4, 4, 4),))


@pytest.mark.parametrize('kind', HEADS)
def test_objectness_is_an_error(softmax_with_objectness, cfg, kind):
    head = dense_head(
        kind, cfg(softmax_with_objectness, background='objectness')
    )
    with pytest.raises(ValueError, match="got 6.*'objectness' in RoI heads"):
        dense_loss(head, (torch.randn(1, 4, 4, 4),))


def test_objectness_of_a_sigmoid_is_an_error(sigmoid_with_objectness, cfg):
    """But for the loss that has a form for each kind of head."""
    head = dense_head(
        'RetinaHead',
        cfg(
            sigmoid_with_objectness, background='objectness', use_sigmoid=True
        ),
    )
    if head.loss_cls.background_policies[0] == 'objectness':
        assert head.cls_out_channels == C
        dense_loss(head, (torch.randn(1, 4, 4, 4),))
        return
    with pytest.raises(ValueError, match="got 5.*'objectness' in RoI heads"):
        dense_loss(head, (torch.randn(1, 4, 4, 4),))


# ------------------------------------------------------------------ levels
@pytest.mark.parametrize('kind', ['RetinaHead', 'ATSSHead'])
def test_levels_share_one_state(
    running_type, loss_class, cfg, one_softmax, midway, observed, kind
):
    """Five calls, one state, one sum to commit; RetinaNet's usual levels."""
    config = cfg(
        running_type,
        use_sigmoid=loss_class(running_type).use_sigmoid,
        **one_softmax(running_type),
    )
    strides = [8, 16, 32, 64, 128]
    head = midway(dense_head(kind, config, strides=strides))
    loss, calls = head.loss_cls, []

    def state(module):
        return module.statistics.sums.clone()

    def keep(module, args, kwargs, out):
        weight = kwargs.get('weight', args[2] if len(args) > 2 else None)
        calls.append((*args[:2], weight, state(module)))

    hook = loss.register_forward_hook(keep, with_kwargs=True)
    features = [torch.randn(1, 4, n, n) for n in (16, 8, 4, 2, 1)]
    instances = [
        InstanceData(
            bboxes=torch.tensor([[2.0, 2, 18, 18], [20, 20, 110, 110]]),
            labels=torch.tensor([0, 4]),
        )
    ]
    meta = dict(META, img_shape=(128, 128), pad_shape=(128, 128))
    outs = head(features)
    total(head.loss_by_feat(*outs, instances, [meta])).backward()
    hook.remove()
    assert len(calls) == 5
    assert all(then.equal(state(loss)) for *_, then in calls)

    scores, labels, weight, _ = (torch.cat(x) for x in zip(*calls))
    at_once = copy.deepcopy(loss)
    at_once.statistics.discard_pending()
    at_once(scores.detach().requires_grad_(), labels, weight)
    assert_close(observed(at_once), observed(loss), rtol=1e-4, atol=1e-5)
    (sums,) = observed(loss)
    counted = labels[weight > 0].bincount(minlength=C + 1)[:C]
    assert sums['pos_count'].tolist() == counted.tolist()
    assert counted.sum() > 0 and (weight == 0).any() == (kind == 'RetinaHead')


# ------------------------------------------------------------------- DETR
def detr_head(kind, loss_cls):
    layers = (
        dict(num_pred_layer=3, as_two_stage=True)
        if kind in ('DeformableDETRHead', 'DINOHead')
        else {}
    )
    return MODELS.build(
        ConfigDict(
            type=kind,
            num_classes=C,
            embed_dims=8,
            loss_cls=loss_cls,
            train_cfg=dict(
                assigner=dict(
                    type='HungarianAssigner',
                    match_costs=[
                        dict(type='FocalLossCost', weight=2.0),
                        dict(type='BBoxL1Cost', weight=5.0),
                        dict(type='IoUCost', iou_mode='giou', weight=2.0),
                    ],
                )
            ),
            test_cfg=dict(max_per_img=6),
            **layers,
        )
    )


@pytest.mark.parametrize(
    'kind',
    ['DETRHead', 'ConditionalDETRHead', 'DeformableDETRHead', 'DINOHead'],
)
def test_detr(loss_type, cfg, one_softmax, kind):
    """The head asks ``loss_cls.use_sigmoid`` for its number of columns."""
    head = detr_head(kind, cfg(loss_type, **one_softmax(loss_type)))
    columns = C + (not head.loss_cls.use_sigmoid)
    assert head.cls_out_channels == columns
    scores = torch.randn(2, 1, 10, columns, requires_grad=True)
    boxes = torch.rand(2, 1, 10, 4) * 0.5 + 0.2
    encoder = denoising = []
    if kind in ('DeformableDETRHead', 'DINOHead'):
        encoder = [torch.randn(1, 9, columns), torch.rand(1, 9, 4)]
    if kind == 'DINOHead':
        denoising = [dict(num_denoising_queries=4, num_denoising_groups=1)]
    for instances in (objects(), objects(())):
        scores.grad = None
        losses = head.loss_by_feat(
            scores, boxes, *encoder, instances, [META], *denoising
        )
        total(losses).backward()
        assert scores.grad.isfinite().all() and scores.grad.any()
    found = head.predict_by_feat(scores, boxes, [META], rescale=False)[0]
    assert len(found.scores) and found.labels.max() < C


def test_detr_writes_its_background_weight(softmax_type, cfg, one_softmax):
    """DETRHead turns a number into C + 1 class weights in the config."""
    bare = cfg(softmax_type, **one_softmax(softmax_type))
    weights = dict(class_weight=1.0, bg_cls_weight=0.1)
    head = detr_head('DETRHead', {**bare, **weights})
    logits = torch.zeros(2, C + 1)
    rows = head.loss_cls(
        logits, torch.tensor([5, 5]), reduction_override='none'
    )
    expected = MODELS.build(bare)(
        logits, torch.tensor([5, 5]), reduction_override='none'
    )
    assert_close(rows, 0.1 * expected)


def test_class_loss_of_mask_heads(softmax_type, cfg, one_softmax):
    """MaskFormer reads ``class_weight`` of length C + 1 from the config."""
    head = MODELS.build(
        ConfigDict(
            type='MaskFormerHead',
            in_channels=[4, 4, 4, 4],
            feat_channels=8,
            out_channels=8,
            num_things_classes=3,
            num_stuff_classes=2,
            num_queries=6,
            pixel_decoder=dict(
                type='PixelDecoder',
                norm_cfg=dict(type='GN', num_groups=2),
                act_cfg=dict(type='ReLU'),
            ),
            enforce_decoder_input_project=False,
            positional_encoding=dict(num_feats=4, normalize=True),
            transformer_decoder=dict(
                num_layers=1,
                return_intermediate=True,
                layer_cfg=dict(
                    self_attn_cfg=dict(embed_dims=8, num_heads=2),
                    cross_attn_cfg=dict(embed_dims=8, num_heads=2),
                    ffn_cfg=dict(
                        embed_dims=8, feedforward_channels=8, num_fcs=2
                    ),
                ),
            ),
            loss_cls=cfg(
                softmax_type,
                class_weight=[1.0] * C + [0.1],
                **one_softmax(softmax_type),
            ),
            loss_mask=dict(type='FocalLoss', use_sigmoid=True),
            loss_dice=dict(
                type='DiceLoss',
                use_sigmoid=True,
                activate=True,
                naive_dice=True,
                eps=1.0,
            ),
            train_cfg=dict(
                assigner=dict(
                    type='HungarianAssigner',
                    match_costs=[dict(type='ClassificationCost')],
                ),
                sampler=dict(type='MaskPseudoSampler'),
            ),
            test_cfg=None,
        )
    )
    scores = torch.randn(1, 1, 6, C + 1, requires_grad=True)
    masks = torch.randn(1, 1, 6, 8, 8)
    instances = objects()
    instances[0].masks = torch.zeros(2, 8, 8).long()
    instances[0].masks[:, 2:5] = 1
    losses = head.loss_by_feat(scores, masks, instances, [META])
    losses['loss_cls'].backward()
    assert scores.grad.isfinite().all() and scores.grad.any()


def test_a_loss_without_class_weight_in_a_mask_head(sigmoid_type, cfg):
    with pytest.raises(ValueError, match='class_weight=.*remove it'):
        MODELS.build(cfg(sigmoid_type, class_weight=[1.0] * C + [0.1]))
