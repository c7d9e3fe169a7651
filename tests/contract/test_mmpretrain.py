"""Through mmpretrain's heads and its data preprocessor."""

import copy

import pytest
import torch
from torch.testing import assert_close

pytest.importorskip('mmpretrain')
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

C = 5
HEADS = dict(
    linear=dict(type='LinearClsHead', in_channels=8),
    stacked=dict(type='StackedLinearClsHead', in_channels=8, mid_channels=[6]),
    vit=dict(type='VisionTransformerClsHead', in_channels=8, hidden_dim=6),
    deit=dict(type='DeiTClsHead', in_channels=8),
    levit=dict(type='LeViTClsHead', in_channels=8, distillation=False),
    efficientformer=dict(
        type='EfficientFormerClsHead', in_channels=8, distillation=False
    ),
    conformer=dict(type='ConformerHead', in_channels=[8, 8]),
)
FEATURES = dict(
    vit=lambda: (torch.randn(4, 8),),
    deit=lambda: ((None, torch.randn(4, 8), torch.randn(4, 8)),),
    conformer=lambda: ([torch.randn(4, 8), torch.randn(4, 8)],),
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def features(kind):
    return FEATURES.get(kind, lambda: (torch.randn(4, 8),))()


def head_of(kind, loss, **kwargs):
    return MODELS.build(dict(HEADS[kind], num_classes=C, loss=loss, **kwargs))


def samples(labels=(0, 1, 4, 4)):
    return [DataSample().set_gt_label(label) for label in labels]


@pytest.fixture(params=['index', 'mixup', 'cutmix', 'smooth', 'onehot'])
def targets(request):
    """Data samples as mmpretrain's own preprocessor makes them."""
    augments = dict(
        mixup=[dict(type='Mixup', alpha=0.8)],
        cutmix=[dict(type='CutMix', alpha=1.0)],
    )
    kwargs = {}
    if request.param in augments:
        kwargs = dict(batch_augments=dict(augments=augments[request.param]))
    preprocessor = MODELS.build(
        dict(
            type='ClsDataPreprocessor',
            num_classes=C,
            to_onehot=request.param == 'onehot',
            **kwargs,
        )
    )
    data = dict(
        inputs=list(torch.randint(0, 255, (4, 3, 8, 8))),
        data_samples=samples(),
    )
    out = preprocessor(data, training=True)['data_samples']
    if request.param == 'smooth':
        for sample in out:
            sample.set_gt_score(
                torch.full((C,), 0.02).scatter(0, sample.gt_label, 0.92)
            )
    assert (request.param == 'index') != ('gt_score' in out[0])
    return out


@pytest.mark.parametrize('kind', HEADS)
def test_loss_and_predict(loss_type, loss_class, cfg, midway, kind, targets):
    head = midway(head_of(kind, cfg(loss_type)))
    feats = features(kind)
    if (
        'gt_score' in targets[0]
        and not loss_class(loss_type).takes_soft_labels
    ):
        with pytest.raises(ValueError, match='soft labels.*remove Mixup'):
            head.loss(feats, targets)
        return
    losses = head.loss(feats, targets)
    # A dict or another key would not reach the optimizer.
    assert set(losses) == {'loss'} and losses['loss'].shape == ()
    losses['loss'].backward()
    grads = [p.grad for p in head.parameters() if p.grad is not None]
    assert grads and all(g.isfinite().all() for g in grads)
    predicted = head.eval().predict(feats, samples())
    assert predicted[0].pred_score.shape == (C,)


OWN = {
    'plain cross-entropy': dict(type='CrossEntropyLoss'),
    'plain binary cross-entropy': dict(
        type='CrossEntropyLoss', use_sigmoid=True
    ),
    'plain focal loss': dict(type='FocalLoss', gamma=2.0, alpha=0.25),
    # With a quality of 1 and no alpha.
    'plain Quality Focal Loss': dict(
        type='FocalLoss', alpha=0.5, loss_weight=2.0
    ),
}


@pytest.mark.parametrize('kind', ['linear', 'conformer'])
def test_neutral_is_mmpretrains_own_loss(
    loss_type, loss_class, neutral_cfg, kind, targets
):
    plain = loss_class(loss_type).plain_form
    soft = 'gt_score' in targets[0]
    theirs = dict(OWN[plain])
    if plain == 'plain cross-entropy':
        theirs['use_soft'] = soft
    if soft and not loss_class(loss_type).takes_soft_labels:
        pytest.skip('refuses soft labels, see test_loss_and_predict')
    if plain == 'plain binary cross-entropy' and not soft:
        pytest.skip("mmpretrain's BCE takes no index labels")
    if 'focal' in plain.lower() and soft and not one_hot(targets):
        pytest.skip("mmpretrain's focal loss knows no soft labels")
    ours = head_of(kind, neutral_cfg(loss_type))
    theirs = head_of(kind, theirs)
    theirs.load_state_dict(ours.state_dict(), strict=False)
    feats = features(kind)
    assert_close(
        ours.loss(feats, targets)['loss'], theirs.loss(feats, targets)['loss']
    )


def one_hot(targets):
    return all(t.gt_score.max() == 1 for t in targets)


def test_prediction_never_contains_the_prior(loss_type, settings, midway):
    feats = features('linear')
    scores = []
    for config in settings(loss_type):
        torch.manual_seed(0)
        head = midway(head_of('linear', config))
        scores.append(head.predict(feats)[0].pred_score)
    assert len(scores) > 1
    for score in scores[1:]:
        assert_close(score, scores[0], rtol=0, atol=0)


def test_a_mixed_image_is_observed_as_a_mixture(
    gradient_type, cfg, midway, observed
):
    """Positive with the weight of its class, negative with the rest."""
    head = midway(head_of('linear', cfg(gradient_type)))
    mixed = DataSample().set_gt_score(torch.tensor([0.7, 0, 0, 0.3, 0]))
    feats = features('linear')[0][:1]
    head.loss((feats,), [mixed])
    (sums,) = observed(head)
    parts = []
    for label in (0, 3):
        other = copy.deepcopy(head)
        other.loss_module.statistics.discard_pending()
        other.loss((feats,), samples((label,)))
        parts += observed(other)
    expected = {
        name: 0.7 * parts[0][name] + 0.3 * parts[1][name] for name in sums
    }
    if head.loss_module.takes_quality:
        # Scores are qualities, of which each makes a whole positive.
        assert sums['pos_count'].tolist() == [1, 0, 0, 1, 0]
        return
    assert_close(sums, expected, rtol=1e-5, atol=1e-6)


def test_training_accuracy(loss_type, cfg):
    head = head_of('linear', cfg(loss_type), cal_acc=True)
    losses = head.loss(features('linear'), samples())
    assert 'accuracy_top-1' in losses


@pytest.mark.parametrize(
    'labels',
    [
        [[0], [1, 4], [], [0, 1, 2, 3, 4]],
        [[1], [2], [3], [4]],
    ],
)
def test_multi_label(
    sigmoid_type, loss_class, cfg, neutral_cfg, midway, observed, labels
):
    head, plain, theirs = (
        MODELS.build(
            dict(
                type='MultiLabelLinearClsHead',
                in_channels=8,
                num_classes=C,
                loss=loss,
            )
        )
        for loss in (
            cfg(sigmoid_type),
            neutral_cfg(sigmoid_type),
            OWN[loss_class(sigmoid_type).plain_form],
        )
    )
    midway(head)
    for other in (plain, theirs):
        other.fc.load_state_dict(head.fc.state_dict())
    data = []
    for hot in labels:
        score = torch.zeros(C)
        score[hot] = 1
        data.append(DataSample().set_gt_score(score))
    feats = (torch.randn(4, 8),)
    loss = head.loss(feats, data)['loss']
    loss.backward()
    assert head.fc.weight.grad.isfinite().all()
    assert_close(
        plain.loss(feats, data)['loss'], theirs.loss(feats, data)['loss']
    )
    for a, b in zip(head.predict(feats), theirs.predict(feats)):
        assert_close(a.pred_score, b.pred_score, rtol=0, atol=0)
    # Each label of an image is a positive of its class.
    for sums in observed(head):
        expected = sum(sample.gt_score for sample in data).double()
        assert_close(sums['pos_count'], expected)


def test_multi_label_base_head(sigmoid_type, cfg):
    head = MODELS.build(dict(type='MultiLabelClsHead', loss=cfg(sigmoid_type)))
    logits = torch.randn(4, C, requires_grad=True)
    data = [DataSample().set_gt_score(torch.ones(C)) for _ in range(4)]
    head.loss((logits,), data)['loss'].backward()
    assert logits.grad.isfinite().all()


def test_multi_task_head(loss_type, cfg):
    head = MODELS.build(
        dict(
            type='MultiTaskHead',
            task_heads=dict(
                a=dict(HEADS['linear'], num_classes=C, loss=cfg(loss_type)),
                b=dict(
                    HEADS['linear'],
                    num_classes=2,
                    loss=cfg(loss_type, class_counts=[9, 1]),
                ),
            ),
        )
    )
    from mmpretrain.structures import MultiTaskDataSample

    data = []
    for a, b in ((0, 1), (4, 0), (2, 1), (1, 1)):
        sample = MultiTaskDataSample()
        sample.set_field(DataSample().set_gt_label(a), 'a')
        sample.set_field(DataSample().set_gt_label(b), 'b')
        data.append(sample)
    losses = head.loss((torch.randn(4, 8),), data)
    assert sum(v for k, v in losses.items() if 'loss' in k).isfinite()


def test_wrong_counts_name_the_way_out(loss_type, cfg):
    head = head_of('linear', cfg(loss_type, class_counts=[3, 2, 1]))
    with pytest.raises(ValueError, match='num_classes=3.*got 5.*head'):
        head.loss(features('linear'), samples())
