"""Through mmdet's RoI heads: whole ``loss`` and ``predict``."""

import copy

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch.testing import assert_close

from lt_losses_mm import commit_statistics

pytest.importorskip('mmdet')
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample

C = 5
META = dict(
    img_shape=(64, 64), scale_factor=(1.0, 1.0), batch_input_shape=(64, 64)
)
NMS = ConfigDict(
    score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=100
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def bbox_head(loss_cls, kind='Shared2FCBBoxHead', **kwargs):
    size = (
        dict(with_avg_pool=True)
        if kind == 'BBoxHead'
        else dict(fc_out_channels=8)
    )
    return MODELS.build(
        dict(
            type=kind,
            in_channels=4,
            roi_feat_size=7,
            num_classes=C,
            loss_cls=loss_cls,
            **size,
            **kwargs,
        )
    )


def targets(head, labels, weights=None):
    n = len(labels)
    return (
        torch.zeros(n, 5),
        labels,
        torch.ones(n) if weights is None else weights,
        torch.zeros(n, 4),
        (labels < C).float().unsqueeze(1).expand(n, 4),
    )


LABELS = torch.tensor([0, 1, 2, 3, 4, 4, 5, 5, 5])


@pytest.mark.parametrize(
    'kind', ['BBoxHead', 'Shared2FCBBoxHead', 'Shared4Conv1FCBBoxHead']
)
def test_loss(policy, cfg, midway, kind):
    name, background = policy
    head = midway(bbox_head(cfg(name, background=background), kind))
    head.init_weights()
    features = torch.randn(9, 4, 7, 7)
    scores, boxes = head(features)
    assert scores.shape[1] == head.loss_cls.columns(C)[0]
    losses = head.loss(scores, boxes, *targets(head, LABELS))
    assert losses['loss_cls'].shape == () and losses['loss_cls'] > 0
    assert 0 <= losses['acc'].item() <= 100
    (losses['loss_cls'] + losses['loss_bbox']).backward()
    assert head.fc_cls.weight.grad.isfinite().all()
    # Every logit column learns.
    assert (head.fc_cls.weight.grad.abs().sum(1) > 0).all()
    # OHEMSampler's call
    none = head.loss(
        scores, None, *targets(head, LABELS), reduction_override='none'
    )
    assert none['loss_cls'].shape == (9,)
    assert_close(none['loss_cls'].mean(), losses['loss_cls'])


def test_padded_rois_do_not_count(loss_type, cfg, midway, observed):
    head, other = (midway(bbox_head(cfg(loss_type))) for _ in range(2))
    scores = torch.randn(9, head.fc_cls.out_features)
    weights = (LABELS != 4).float()
    padded = head.loss(scores, None, *targets(head, LABELS, weights))
    kept = LABELS != 4
    alone = other.loss(scores[kept], None, *targets(head, LABELS[kept]))
    assert_close(padded['loss_cls'], alone['loss_cls'])
    assert_close(observed(head), observed(other))


def test_neutral_is_mmdets_own_loss(softmax_type, neutral_cfg, one_softmax):
    ours = bbox_head(neutral_cfg(softmax_type, **one_softmax(softmax_type)))
    theirs = bbox_head(dict(type='CrossEntropyLoss'))
    scores = torch.randn(9, C + 1)
    weights = torch.tensor([1.0, 1, 0, 1, 1, 1, 0, 1, 1])
    a, b = (
        head.loss(scores, None, *targets(head, LABELS, weights))
        for head in (ours, theirs)
    )
    assert_close(a['loss_cls'], b['loss_cls'])
    assert_close(a['acc'].float(), b['acc'].float())


def test_neutral_is_the_plain_loss(sigmoid_type, neutral_cfg, plain):
    """Mmdet's own sigmoid losses do not fit its RoI heads."""
    head = bbox_head(neutral_cfg(sigmoid_type))
    scores = torch.randn(9, head.fc_cls.out_features)
    losses = head.loss(scores, None, *targets(head, LABELS))
    assert_close(
        losses['loss_cls'], plain(sigmoid_type, scores, LABELS).mean()
    )


def test_the_head_tells_the_number_of_classes(running_type, cfg):
    """No counts, no number in the config, no Runner."""
    head = bbox_head(cfg(running_type, num_classes=None))
    assert head.loss_cls.num_classes == C
    scores = torch.randn(9, head.fc_cls.out_features)
    assert head.loss(scores, None, *targets(head, LABELS))['loss_cls'] > 0
    head.loss_cls.statistics.commit()
    assert head.loss_cls.statistics.pos_count.tolist() == [1, 1, 1, 1, 2]
    with pytest.raises(
        ValueError,
        match="(num_classes=3|='3 counts').*5.*bbox_head.num_classes",
    ):
        bbox_head(cfg(running_type, num_classes=3))


def test_no_rois(running_type, cfg, midway):
    """The head then leaves out the call; the commit has nothing to add."""
    head = midway(bbox_head(cfg(running_type)))
    before = head.loss_cls.statistics.sums.clone()
    none = torch.zeros(0).long()
    losses = head.loss(
        torch.zeros(0, head.fc_cls.out_features), None, *targets(head, none)
    )
    assert 'loss_cls' not in losses
    commit_statistics(head)
    assert_close(head.loss_cls.statistics.sums, before, rtol=0, atol=0)


def test_objectness_of_sigmoid_losses(sigmoid_with_objectness, cfg):
    """EQLv2: C + 1 classifiers in RoI heads, and their product at test."""
    name = sigmoid_with_objectness
    head = bbox_head(cfg(name, background='objectness'))
    assert head.fc_cls.out_features == C + 1
    scores = torch.randn(8, C + 1)
    p = scores.sigmoid()
    activation = head.loss_cls.get_activation(scores)
    assert_close(activation[:, :C], p[:, :C] * (1 - p[:, C:]))
    assert_close(activation[:, C:], p[:, C:])
    found = predict(head, scores, 8)
    assert_close(
        found.scores.sort().values,
        (p[:, :C] * (1 - p[:, C:])).flatten().sort().values,
    )


def test_no_objectness_of_sigmoid_losses(sigmoid_type, loss_class, cfg):
    """C classifiers, and a column of zeros that NMS takes for background."""
    for background in loss_class(sigmoid_type).background_policies:
        if background == 'objectness':
            continue
        background = 0.9 if background is float else background
        head = bbox_head(cfg(sigmoid_type, background=background))
        assert head.fc_cls.out_features == C
        scores = torch.randn(8, C)
        activation = head.loss_cls.get_activation(scores)
        assert_close(activation[:, :C], scores.sigmoid())
        assert not activation[:, C:].any()


def predict(head, scores, n):
    side = torch.arange(n).float() * 6
    rois = torch.stack([torch.zeros(n), side, side, side + 5, side + 5], dim=1)
    return head.predict_by_feat(
        rois=(rois,),
        cls_scores=(scores,),
        bbox_preds=(torch.zeros(n, 4 * C),),
        batch_img_metas=[META],
        rcnn_test_cfg=NMS,
    )[0]


def test_predict(policy, cfg):
    name, background = policy
    head = bbox_head(cfg(name, background=background))
    columns = head.fc_cls.out_features
    scores = torch.full((C + 1, columns), -8.0)
    scores.fill_diagonal_(8.0)
    if columns == C + 2:  # objectness: two columns tell object from none
        scores[:C, C:] = torch.tensor([8.0, -8.0])
        scores[C, C:] = torch.tensor([-8.0, 8.0])
    activation = head.loss_cls.get_activation(scores)
    assert activation.shape == (C + 1, C + 1)
    assert (activation >= 0).all() and (activation <= 1).all()
    # Each class is detectable, the last one, too, and none is background.
    found = predict(head, scores, C + 1)
    sure = found[found.scores > 0.9]
    assert sorted(sure.labels.tolist()) == list(range(C))
    assert_close(
        sure.scores.sort().values, activation[:C, :C].diagonal().sort().values
    )
    assert (activation[C, :C] < 0.1).all()


def test_prediction_never_contains_the_prior(policy, settings, midway):
    """Nor the statistics."""
    name, background = policy
    results = []
    for config in settings(name, background=background):
        torch.manual_seed(0)
        head = midway(bbox_head(config))
        scores = torch.randn(8, head.fc_cls.out_features)
        results.append(predict(head, scores, 8))
    assert len(results) > 1
    for result in results[1:]:
        for key in ('scores', 'labels', 'bboxes'):
            assert_close(
                getattr(result, key), getattr(results[0], key), rtol=0, atol=0
            )


def test_auto_head_has_its_channels_before_the_counts(policy, cfg):
    name, background = policy
    head = bbox_head(cfg(name, background=background, class_counts='auto'))
    assert head.fc_cls.out_features == head.loss_cls.columns(C)[0]
    assert head.loss_cls.num_classes == C
    scores = torch.randn(4, head.fc_cls.out_features)
    assert len(predict(head, scores, 4).scores)


def test_counts_of_another_number_of_classes(loss_type, cfg):
    with pytest.raises(
        ValueError,
        match="(num_classes=3|='3 counts').*5.*bbox_head.num_classes",
    ):
        bbox_head(cfg(loss_type, class_counts=[3, 2, 1]))


# ------------------------------------------------------------- whole heads
def roi_head(loss_cls, stages=None, sampler='RandomSampler'):
    head = dict(
        type='Shared2FCBBoxHead',
        in_channels=4,
        fc_out_channels=8,
        roi_feat_size=2,
        num_classes=C,
        loss_cls=loss_cls,
    )
    train_cfg = dict(
        assigner=dict(
            type='MaxIoUAssigner',
            pos_iou_thr=0.5,
            neg_iou_thr=0.5,
            min_pos_iou=0.5,
        ),
        sampler=dict(
            type=sampler,
            num=8,
            pos_fraction=0.5,
            neg_pos_ub=-1,
            add_gt_as_proposals=True,
        ),
        pos_weight=-1,
        debug=False,
    )
    extractor = dict(
        type='SingleRoIExtractor',
        roi_layer=dict(type='RoIAlign', output_size=2, sampling_ratio=0),
        out_channels=4,
        featmap_strides=[4],
    )
    many = dict(type='StandardRoIHead', bbox_head=head, train_cfg=train_cfg)
    if stages:
        many = dict(
            type='CascadeRoIHead',
            num_stages=stages,
            stage_loss_weights=[1, 0.5, 0.25][:stages],
            bbox_head=[
                dict(head, reg_class_agnostic=i > 0) for i in range(stages)
            ],
            train_cfg=[train_cfg] * stages,
        )
    return MODELS.build(
        ConfigDict(many, bbox_roi_extractor=extractor, test_cfg=NMS)
    )


def scene():
    boxes = torch.tensor([[4.0, 4, 20, 20], [30, 30, 50, 50], [8, 40, 24, 60]])
    sample = DetDataSample(metainfo=META)
    sample.gt_instances = InstanceData(
        bboxes=boxes, labels=torch.tensor([0, 3, 4])
    )
    proposals = InstanceData(
        bboxes=torch.cat(
            [
                boxes + 1,
                boxes + 12,
                torch.rand(6, 2).repeat(1, 2) * 20
                + torch.tensor([0.0, 0, 20, 20]),
            ]
        )
    )
    proposals.scores = torch.ones(len(proposals.bboxes))
    return (torch.randn(1, 4, 16, 16),), [proposals], [sample]


def check_roi_head(head):
    features, proposals, samples = scene()
    losses = head.loss(features, proposals, samples)
    total = sum(v for k, v in losses.items() if 'loss' in k)
    assert total.shape == () and total.isfinite()
    total.backward()
    features, proposals, samples = scene()
    head.eval()
    with torch.no_grad():
        results = head.predict(features, proposals, samples)[0]
    assert results.scores.isfinite().all()
    assert results.labels.max() < C
    return losses


def test_standard_roi_head(policy, cfg):
    name, background = policy
    check_roi_head(roi_head(cfg(name, background=background)))


def test_cascade_refines_and_averages(policy, cfg):
    name, background = policy
    head = roi_head(cfg(name, background=background), stages=3)
    losses = check_roi_head(head)
    assert {f's{i}.loss_cls' for i in range(3)} <= set(losses)
    assert len({id(stage.loss_cls) for stage in head.bbox_head}) == 3


def test_cascade_stages_have_statistics_of_their_own(
    running_type, cfg, observed
):
    """Each stage has its own boxes, hence positives, hence gradients."""
    head = roi_head(cfg(running_type), stages=3)
    calls = record_calls(head)
    features, proposals, samples = scene()
    head.loss(features, proposals, samples)
    sums = observed(head)
    for stage, own in enumerate(sums):
        ((scores, labels, weight),) = calls[stage]
        alone = copy.deepcopy(head.bbox_head[stage].loss_cls)
        alone.statistics.reset()
        alone(scores, labels, weight)
        assert_close(observed(alone), [own])
    if 'neg_grad' in alone.statistics.names:
        first, *others = [own['neg_grad'] for own in sums]
        assert not any(first.equal(other) for other in others)
    commit_statistics(head)
    for stage, own in zip(head.bbox_head, sums):
        sums = torch.stack(list(own.values()))
        assert_close(stage.loss_cls.statistics.sums, sums)


def record_calls(head):
    """Inputs of the losses of a RoI head in training, a list for each."""
    heads = head.bbox_head
    heads = heads if isinstance(heads, torch.nn.ModuleList) else [heads]
    calls = [[] for _ in heads]
    for own, stage in zip(calls, heads):
        stage.loss_cls.register_forward_hook(
            lambda loss, args, out, own=own: (
                own.append(args[:3]) if out.requires_grad else None
            )
        )
    return calls


@pytest.mark.parametrize('stages', [None, 2])
def test_ohem_sampler(loss_type, cfg, observed, stages):
    head = roi_head(cfg(loss_type), stages=stages, sampler='OHEMSampler')
    calls = record_calls(head)
    check_roi_head(head)
    # The sampler's look at all boxes is not observed.
    for sums, ((_, labels, _),) in zip(observed(head), calls):
        assert len(labels) == 8
        assert_close(
            sums['pos_count'],
            labels.bincount(minlength=C + 1)[:C].double(),
        )


def test_dii_head_of_sparse_rcnn(loss_type, cfg, one_softmax):
    """Chooses its channels by ``loss_cls.use_sigmoid``."""
    head = MODELS.build(
        ConfigDict(
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
            loss_cls=cfg(loss_type, **one_softmax(loss_type)),
            loss_bbox=dict(type='L1Loss'),
            loss_iou=dict(type='GIoULoss'),
        )
    )
    scores, boxes, *_ = head(torch.randn(6, 8, 7, 7), torch.randn(1, 6, 8))
    assert scores.shape == (1, 6, C + (not head.loss_cls.use_sigmoid))
    for labels in (torch.tensor([0, 4, 5, 5, 3, 5]), torch.full((6,), 5)):
        head.zero_grad()
        # The head hands over the number of positives, a tensor, may be zero.
        head.get_targets = lambda labels=labels, **_: (
            labels,
            torch.ones(6),
            torch.rand(6, 4),
            torch.ones(6, 4),
        )
        losses = head.loss_and_target(
            scores.flatten(0, 1),
            boxes.flatten(0, 1),
            None,
            None,
            torch.ones(6, 4),
        )['loss_bbox']
        assert losses['loss_cls'].shape == ()
        losses['loss_cls'].backward(retain_graph=True)
        assert head.fc_cls.weight.grad.isfinite().all()


def sabl_head(loss_cls):
    return MODELS.build(
        dict(
            type='SABLHead',
            num_classes=C,
            cls_in_channels=4,
            reg_in_channels=8,
            cls_out_channels=8,
            reg_offset_out_channels=8,
            reg_cls_out_channels=8,
            loss_cls=loss_cls,
        )
    )


def test_sabl_head(softmax_type, cfg, one_softmax):
    """Builds its own C + 1 channels and asks no loss."""
    head = sabl_head(cfg(softmax_type, **one_softmax(softmax_type)))
    scores = head.cls_forward(torch.randn(6, 4, 7, 7))
    losses = head.loss(
        scores,
        None,
        torch.zeros(6, 5),
        torch.arange(6),
        torch.ones(6),
        (None, None),
        (None, None),
    )
    losses['loss_cls'].backward()
    assert head.fc_cls.weight.grad.isfinite().all()


def test_a_head_of_fixed_channels_cannot_serve_objectness(
    softmax_with_objectness, cfg
):
    head = sabl_head(cfg(softmax_with_objectness, background='objectness'))
    with pytest.raises(ValueError, match='5 columns.*objectness.*got 6'):
        head.loss(
            torch.randn(6, C + 1),
            None,
            torch.zeros(6, 5),
            torch.arange(6),
            torch.ones(6),
            (None, None),
            (None, None),
        )


def test_a_head_with_a_fixed_softmax_cannot_serve_a_sigmoid(sigmoid_type, cfg):
    head = sabl_head(cfg(sigmoid_type))
    with pytest.raises(ValueError, match='logits of 5 columns.*got 6'):
        head.loss(
            torch.randn(6, C + 1),
            None,
            torch.zeros(6, 5),
            torch.arange(6),
            torch.ones(6),
            (None, None),
            (None, None),
        )
