"""Through mmdet's heads that learn the quality of a box with its class."""

import copy

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import MessageHub
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
STRIDES = (8, 16)
POINTS = dict(type='MlvlPointGenerator', offset=0, strides=list(STRIDES))
ANCHORS = dict(
    type='AnchorGenerator', ratios=[1.0], scales=[2.0], strides=list(STRIDES)
)
ATSS = dict(
    assigner=dict(type='ATSSAssigner', topk=4),
    allowed_border=-1,
    pos_weight=-1,
    debug=False,
)
GFL = dict(
    anchor_generator=ANCHORS,
    norm_cfg=None,
    loss_bbox=dict(type='GIoULoss'),
    train_cfg=ATSS,
    reg_max=4,
)
HEADS = dict(
    GFLHead=GFL,
    # Its default for loss_ld is no registered name.
    LDHead=dict(
        GFL, loss_ld=dict(type='KnowledgeDistillationKLDivLoss', T=10)
    ),
    RTMDetHead=dict(
        norm_cfg=dict(type='BN'),
        anchor_generator=POINTS,
        bbox_coder=dict(type='DistancePointBBoxCoder'),
        loss_bbox=dict(type='GIoULoss'),
        with_objectness=False,
        train_cfg=dict(
            assigner=dict(type='DynamicSoftLabelAssigner', topk=4),
            allowed_border=-1,
            pos_weight=-1,
            debug=False,
        ),
    ),
    TOODHead=dict(
        norm_cfg=None,
        anchor_type='anchor_free',
        anchor_generator=ANCHORS,
        loss_bbox=dict(type='GIoULoss'),
        train_cfg=dict(
            initial_epoch=0,
            initial_assigner=dict(type='ATSSAssigner', topk=4),
            assigner=dict(type='TaskAlignedAssigner', topk=4),
            alpha=1,
            beta=6,
            allowed_border=-1,
            pos_weight=-1,
            debug=False,
        ),
    ),
    VFNetHead=dict(
        norm_cfg=None,
        strides=list(STRIDES),
        regress_ranges=((-1, 16), (16, 1e8)),
        anchor_generator=dict(
            type='AnchorGenerator',
            ratios=[1.0],
            octave_base_scale=2,
            scales_per_octave=1,
            center_offset=0.0,
            strides=list(STRIDES),
        ),
        train_cfg=ATSS,
    ),
)
QFL = dict(type='QualityFocalLoss', use_sigmoid=True, beta=2.0)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def epoch(monkeypatch):
    """TOODHead looks up the epoch of the run."""
    monkeypatch.setattr(MessageHub, '_instance_dict', {})
    MessageHub.get_current_instance().update_info('epoch', 1)


@pytest.fixture
def eqfl(cfg):
    return cfg('EqualizedQualityFocalLoss', use_sigmoid=True)


def head_of(kind, loss_cls):
    torch.manual_seed(0)
    if kind == 'TOODHead':
        # It hands over probabilities, mmdet's own losses have the same key.
        loss_cls = dict(loss_cls, activated=True)
    return MODELS.build(
        ConfigDict(
            type=kind,
            num_classes=C,
            in_channels=8,
            feat_channels=8,
            stacked_convs=2,
            loss_cls=loss_cls,
            test_cfg=TEST_CFG,
            **HEADS[kind],
        )
    )


def features():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 8, n, n, generator=generator) for n in (4, 2)]


def objects(labels=(0, 4)):
    boxes = torch.tensor([[2.0, 2, 18, 18], [14, 12, 30, 28]])
    return [
        InstanceData(
            bboxes=boxes[: len(labels)], labels=torch.tensor(labels).long()
        )
    ]


def losses_of(head, instances):
    outs = head(features())
    teacher = []
    if type(head).__name__ == 'LDHead':
        teacher = [[torch.randn_like(x) for x in outs[1]]]
    return head.loss_by_feat(*outs, instances, [META], *teacher)


def total(losses):
    return sum(
        sum(v) if isinstance(v, (list, tuple)) else v for v in losses.values()
    )


def classifier(head):
    for name in ('gfl_cls', 'rtm_cls', 'tood_cls', 'vfnet_cls'):
        if hasattr(head, name):
            return getattr(head, name)


@pytest.mark.parametrize('kind', HEADS)
def test_loss_and_predict(kind, eqfl, midway):
    head = midway(head_of(kind, eqfl))
    assert head.cls_out_channels == C
    for instances in (objects(), objects(())):
        head.zero_grad()
        total(losses_of(head, instances)).backward()
        grad = classifier(head).weight.grad
        assert grad.isfinite().all() and grad.any()
    found = head.eval().predict_by_feat(
        *head(features())[:2],
        batch_img_metas=[META],
        cfg=TEST_CFG,
        rescale=False,
    )[0]
    assert len(found.scores) and found.scores.isfinite().all()
    assert found.labels.max() < C


@pytest.mark.parametrize('kind', HEADS)
def test_neutral_is_quality_focal_loss(kind, eqfl):
    """And so are its gradients, on every level, with an object and without."""
    ours, theirs = head_of(kind, eqfl), head_of(kind, QFL)
    theirs.load_state_dict(ours.state_dict(), strict=False)
    for instances in (objects(), objects(())):
        results = []
        for head in (ours, theirs):
            head.zero_grad()
            torch.manual_seed(1)
            losses = losses_of(head, instances)
            total(losses).backward()
            results.append((losses, classifier(head).weight.grad))
        assert_close(*results, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('kind', HEADS)
def test_statistics_of_the_positives(kind, eqfl, midway, observed):
    """Those with a quality above 0, in all levels, by their class."""
    head = midway(head_of(kind, eqfl))
    calls = []
    head.loss_cls.register_forward_hook(
        lambda _, args, out: calls.append(args)
    )
    losses_of(head, objects())
    counted = torch.zeros(C, dtype=torch.float64)
    for _, target, *_ in calls:
        if isinstance(target, tuple):
            labels, quality = target
            labels = labels[quality > 0]
        else:
            labels = target.nonzero()[:, 1]
        counted += labels.bincount(minlength=C).double()
    (sums,) = observed(head)
    assert counted[[0, 4]].min() > 0
    assert_close(sums['pos_count'], counted)
    assert sums['pos_grad'][[0, 4]].min() > 0
    assert not sums['pos_grad'][1:4].any()
    assert sums['neg_grad'].min() > 0


@pytest.mark.parametrize('soft', [False, True])
def test_a_pair_is_the_map_of_qualities(build, rows, observed, soft):
    """What GFL passes, and what VFNet passes, of the same boxes."""
    logits, labels = rows(labels=6, dtype=torch.float64)
    quality = torch.rand(12).double() if soft else torch.ones(12).double()
    quality[3] = 0
    labels[:2], labels[4] = torch.tensor([5, -100]), 2
    maps = torch.zeros(12, 5).double()
    kept = labels >= 0
    has = kept & (labels < 5)
    maps[has] = maps[has].scatter(1, labels[has, None], quality[has, None])
    pair, map_ = (build('EqualizedQualityFocalLoss') for _ in range(2))
    ours = pair(logits, (labels, quality), reduction_override='none')
    assert_close(
        ours[kept], map_(logits[kept], maps[kept], reduction_override='none')
    )
    assert_close(observed(pair), observed(map_))
    if not soft:
        labels[3] = 5
        index = build('EqualizedQualityFocalLoss')
        assert_close(ours, index(logits, labels, reduction_override='none'))


def test_quality_is_the_target(build):
    """The loss is least, and its gradient 0, where p is the quality."""
    loss = build('EqualizedQualityFocalLoss')
    p = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    logits = torch.full((19, 5), -30.0, dtype=torch.float64)
    logits[:, 2] = p.logit()
    logits.requires_grad_()
    labels, quality = torch.full((19,), 2), torch.full((19,), 0.6)
    values = loss(logits, (labels, quality), reduction_override='none')
    assert p[values.argmin()] == pytest.approx(0.6)
    values.sum().backward()
    assert logits.grad[11, 2].abs() < 1e-6
    assert (logits.grad[:11, 2] < 0).all() and (logits.grad[12:, 2] > 0).all()


def test_derivatives_of_pairs(build, rows):
    logits, labels = rows(labels=6, dtype=torch.float64)
    quality = torch.rand(12, dtype=torch.float64)
    loss = build('EqualizedQualityFocalLoss')
    assert torch.autograd.gradcheck(
        lambda z: loss(z, (labels, quality), avg_factor=3.0),
        logits.requires_grad_(),
    )


@pytest.mark.parametrize('shape', [(4, 1), (3,), (4, 5)], ids=str)
def test_quality_of_another_shape(build, shape):
    loss = build('EqualizedQualityFocalLoss')
    with pytest.raises(ValueError, match=r'quality of shape.*\(4,\)'):
        loss(torch.zeros(4, 5), (torch.arange(4), torch.rand(shape)))


@pytest.mark.parametrize('kind', ['GFLHead', 'LDHead', 'RTMDetHead'])
def test_other_losses_say_what_they_miss(loss_type, loss_class, cfg, kind):
    """Without a Runner, which says it before training, the loss does."""
    sigmoid = loss_class(loss_type).use_sigmoid
    head = head_of(kind, cfg(loss_type, use_sigmoid=sigmoid))
    if loss_class(loss_type).takes_quality:
        losses_of(head, objects())
        return
    with pytest.raises(TypeError, match='EqualizedQualityFocalLoss'):
        losses_of(head, objects())


def test_a_copy_of_the_head(eqfl, midway, observed):
    """The states of two heads (EMA, a teacher) are their own."""
    head = midway(head_of('GFLHead', eqfl))
    clone = copy.deepcopy(head)
    losses_of(head, objects())
    (ours,), (theirs,) = observed(head), observed(clone)
    assert ours['pos_grad'].any() and not theirs['pos_grad'].any()
