"""Through mmseg's decode and auxiliary heads."""

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.structures import PixelData
from torch.testing import assert_close

pytest.importorskip('mmseg')
import mmseg
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

C = 5
BN = dict(type='BN')
HEADS = dict(
    fcn=dict(
        type='FCNHead',
        in_channels=4,
        channels=4,
        num_convs=1,
        concat_input=False,
    ),
    aux=dict(
        type='FCNHead',
        in_channels=[2, 4],
        in_index=[0, 1],
        channels=6,
        num_convs=1,
        input_transform='resize_concat',
        concat_input=False,
    ),
    segformer=dict(
        type='SegformerHead', in_channels=[2, 4], in_index=[0, 1], channels=4
    ),
    uper=dict(
        type='UPerHead',
        in_channels=[2, 4],
        in_index=[0, 1],
        channels=4,
        pool_scales=(1, 2),
    ),
    psp=dict(type='PSPHead', in_channels=4, channels=4, pool_scales=(1, 2)),
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def head_of(kind, loss, **kwargs):
    return MODELS.build(
        ConfigDict(
            HEADS[kind],
            num_classes=C,
            norm_cfg=BN,
            dropout_ratio=0.0,
            loss_decode=loss,
            **kwargs,
        )
    )


def features(kind):
    maps = [torch.randn(2, 2, 8, 8), torch.randn(2, 4, 4, 4)]
    return maps if isinstance(HEADS[kind]['in_channels'], list) else maps[1:]


def samples(ignored=()):
    """Labels of 16 x 16, four times the features; image 0 may be empty."""
    out = []
    for i in range(2):
        label = torch.randint(0, C, (1, 16, 16))
        label[0, :3] = 255
        if i in ignored:
            label.fill_(255)
        sample = SegDataSample(
            metainfo=dict(img_shape=(16, 16), ori_shape=(16, 16))
        )
        sample.gt_sem_seg = PixelData(data=label)
        out.append(sample)
    return out


def stack(data):
    return torch.stack([s.gt_sem_seg.data[0] for s in data])


def with_index(kind):
    return dict(in_index=0) if kind in ('fcn', 'psp') else {}


@pytest.mark.parametrize('ignored', [(), (0,), (0, 1)], ids=str)
@pytest.mark.parametrize('kind', HEADS)
def test_loss_and_predict(loss_type, cfg, build, midway, kind, ignored):
    head = midway(head_of(kind, cfg(loss_type), **with_index(kind)))
    maps, data = features(kind), samples(ignored)
    losses = head.loss(maps, data, None)
    name = build(loss_type).loss_name
    # mmseg trains on what is called loss_..., and on nothing else.
    assert name.startswith('loss_') and set(losses) == {name, 'acc_seg'}
    losses[name].backward()
    grad = head.conv_seg.weight.grad
    assert grad.isfinite().all() and grad.any() == (len(ignored) < 2)
    assert (losses[name] > 0) == (len(ignored) < 2)
    out = head.predict(
        maps, [s.metainfo for s in data], ConfigDict(mode='whole')
    )
    assert out.shape == (2, C, 16, 16)


@pytest.mark.parametrize(
    'keys',
    [
        dict(),
        dict(avg_non_ignore=False),
        dict(avg_non_ignore=True),
        dict(class_weight=[0.5 + i for i in range(C)]),
    ],
    ids=str,
)
def test_neutral_is_mmsegs_own_loss(softmax_type, neutral_cfg, keys):
    if 'class_weight' in keys and mmseg.__version__.startswith('1.2.'):
        pytest.skip('class_weight and ignored pixels crash in mmseg 1.2')
    ours = head_of(
        'fcn',
        neutral_cfg(softmax_type, **keys),
        in_index=0,
    )
    theirs = head_of(
        'fcn',
        dict(type='CrossEntropyLoss', **keys),
        in_index=0,
    )
    logits, data = torch.randn(2, C, 16, 16), samples()
    a, b = (h.loss_by_feat(logits, data) for h in (ours, theirs))
    assert_close(a[ours.loss_decode.loss_name], b['loss_ce'])


def test_neutral_is_the_plain_loss(
    sigmoid_type, loss_class, neutral_cfg, plain
):
    """Mmseg's own BCE divides by the number of classes, too."""
    ours = head_of('fcn', neutral_cfg(sigmoid_type), in_index=0)
    logits, data = torch.randn(2, C, 16, 16), samples()
    a = ours.loss_by_feat(logits, data)[ours.loss_decode.loss_name]
    kept = stack(data) != 255
    rows = plain(sigmoid_type, logits.movedim(1, -1)[kept], stack(data)[kept])
    assert_close(a, rows.sum() / kept.numel())
    if loss_class(sigmoid_type).plain_form == 'plain binary cross-entropy':
        own = dict(type='CrossEntropyLoss', use_sigmoid=True)
        theirs = head_of('fcn', own, in_index=0)
        b = theirs.loss_by_feat(logits, data)['loss_ce']
        assert_close(a, C * b)


def test_prediction_never_contains_the_prior(loss_type, settings, midway):
    maps, scores = features('fcn'), []
    for config in settings(loss_type):
        torch.manual_seed(0)
        head = midway(head_of('fcn', config, in_index=0).eval())
        scores.append(
            head.predict(
                maps, [dict(img_shape=(16, 16))] * 2, ConfigDict(mode='whole')
            )
        )
    assert len(scores) > 1
    for score in scores[1:]:
        assert_close(score, scores[0], rtol=0, atol=0)


def test_statistics_are_sums_over_pixels(
    running_type, cfg, build, midway, observed
):
    """Of the labelled ones, at the size of the labels."""
    head = midway(head_of('fcn', cfg(running_type), in_index=0))
    logits, data = torch.randn(2, C, 16, 16), samples((0,))
    head.loss_by_feat(logits, data)
    labels = stack(data)
    kept = labels != 255
    assert 0 < kept.sum() < 256
    alone = build(running_type)
    alone(logits.movedim(1, -1)[kept], labels[kept])
    assert_close(observed(head), observed(alone), rtol=1e-5, atol=1e-5)
    (sums,) = observed(head)
    expected = labels[kept].bincount(minlength=C).double()
    assert_close(sums['pos_count'], expected)


@pytest.mark.parametrize('thresh', [None, 0.7])
def test_ohem_sampler(loss_type, cfg, build, midway, observed, thresh):
    """Without a threshold the sampler asks the loss which pixels are hard."""
    head = midway(
        head_of(
            'fcn',
            cfg(loss_type),
            in_index=0,
            sampler=dict(type='OHEMPixelSampler', thresh=thresh, min_kept=20),
        )
    )
    logits = torch.randn(2, C, 16, 16, requires_grad=True)
    data = samples()
    losses = head.loss_by_feat(logits, data)
    name = head.loss_decode.loss_name
    losses[name].backward()
    chosen = logits.grad.abs().sum(1) > 0
    assert chosen.any()
    assert (stack(data)[chosen] != 255).all()
    if thresh is None:
        rows = build(loss_type)(
            logits.detach(), stack(data), reduction_override='none'
        )
        assert chosen.sum() == 40
        assert_close(
            rows[chosen].sort().values,
            rows.flatten().topk(40).values.sort().values,
        )
    # The sampler's look at all pixels is not observed.
    for sums in observed(head):
        hard = stack(data)[chosen].bincount(minlength=C)
        assert_close(sums['pos_count'], hard.double())


def test_two_losses_and_two_names(loss_type, cfg):
    alone = head_of('fcn', cfg(loss_type), in_index=0)
    both = head_of(
        'fcn',
        [
            cfg(loss_type, loss_name='loss_a', loss_weight=0.5),
            cfg(loss_type, loss_name='loss_b'),
            cfg(loss_type, loss_name='loss_b'),
            dict(type='DiceLoss'),
        ],
        in_index=0,
    )
    logits, data = torch.randn(2, C, 16, 16), samples()
    one = alone.loss_by_feat(logits, data)[alone.loss_decode.loss_name]
    several = both.loss_by_feat(logits, data)
    assert_close(several['loss_a'], 0.5 * one)
    # Equal names add up.
    assert_close(several['loss_b'], 2 * one)


def test_pixel_weight(loss_type, build):
    logits, labels = torch.randn(2, C, 16, 16), stack(samples())
    loss = build(loss_type)
    weight = torch.zeros(2, 16, 16)
    weight[0, 8] = 1
    none = loss(logits, labels, ignore_index=255, reduction_override='none')
    assert_close(
        loss(logits, labels, weight, ignore_index=255),
        none[0, 8].sum() / labels.numel(),
    )


def test_point_head(loss_type, cfg):
    head = MODELS.build(
        ConfigDict(
            type='PointHead',
            in_channels=[4],
            in_index=[0],
            channels=4,
            num_fcs=1,
            num_classes=C,
            coarse_pred_each_layer=True,
            loss_decode=cfg(loss_type),
        )
    )
    train_cfg = ConfigDict(
        num_points=20, oversample_ratio=3, importance_sample_ratio=0.75
    )
    maps = [torch.randn(2, 4, 4, 4)]
    previous = torch.randn(2, C, 4, 4)
    losses = head.loss(maps, previous, samples((0,)), train_cfg)
    loss = losses['point' + head.loss_decode.loss_name]
    loss.backward()
    assert head.fc_seg.weight.grad.isfinite().all()
    assert head.fc_seg.weight.grad.any()


def test_ddr_head(loss_type, cfg):
    """Calls its first two losses without an ignore_index."""
    head = MODELS.build(
        dict(
            type='DDRHead',
            in_channels=4,
            channels=4,
            num_classes=C,
            norm_cfg=BN,
            loss_decode=[cfg(loss_type)] * 2,
        )
    )
    outs = head((torch.randn(2, 2, 4, 4), torch.randn(2, 4, 4, 4)))
    losses = head.loss_by_feat(outs, samples((0,)))
    sum(v for k, v in losses.items() if 'loss' in k).backward()
    grads = [p.grad for p in head.parameters() if p.grad is not None]
    assert grads and all(g.isfinite().all() for g in grads)


def test_pid_head(loss_type, cfg):
    head = MODELS.build(
        dict(
            type='PIDHead',
            in_channels=4,
            channels=4,
            num_classes=C,
            norm_cfg=BN,
            loss_decode=[
                cfg(loss_type),
                cfg(loss_type),
                dict(type='BoundaryLoss'),
                cfg(loss_type),
            ],
        )
    )
    outs = head(
        (
            torch.randn(2, 2, 4, 4),
            torch.randn(2, 4, 4, 4),
            torch.randn(2, 2, 4, 4),
        )
    )
    data = samples()
    for sample in data:
        sample.gt_edge_map = PixelData(data=torch.randint(0, 2, (1, 16, 16)))
    losses = head.loss_by_feat(outs, data)
    sum(v for k, v in losses.items() if 'loss' in k).backward()


def test_a_single_logit_is_not_served(loss_type, cfg):
    """Mmseg's binary form has one column for two classes."""
    head = head_of('fcn', cfg(loss_type, class_counts=[9, 1]), in_index=0)
    binary = torch.randn(2, 1, 16, 16)
    with pytest.raises(ValueError, match='num_classes=2.*got 1.*head'):
        head.loss_by_feat(binary, samples())


def test_labels_of_reduce_zero_label_forgotten(loss_type, cfg):
    """ADE20K's label 150 of 150 classes is the usual sign."""
    head = head_of('fcn', cfg(loss_type), in_index=0)
    data = samples()
    data[0].gt_sem_seg.data[0, -1, -1] = C
    with pytest.raises(
        ValueError, match='label 5 is out of range.*reduce_zero_label'
    ):
        head.loss_by_feat(torch.randn(2, C, 16, 16), data)
