"""Seesaw Loss as a module: what is counted, and mmdet's own as a reference."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import lt_losses_mm
from lt_losses_mm.functional import seesaw_cross_entropy
from lt_losses_mm.kernels import ENGINES, use_engine
from lt_losses_mm.losses import SeesawSoftmaxLoss

C = 4
COUNTS = (500.0, 60.0, 9.0, 2.0)


@pytest.fixture(params=ENGINES)
def engine(request):
    with use_engine(request.param):
        yield request.param


def make(counts=COUNTS, roi=False, **kwargs):
    loss = SeesawSoftmaxLoss(num_classes=C, **kwargs)
    loss.statistics.pos_count.copy_(torch.tensor(counts))
    if roi:
        loss.get_cls_channels(C)
    return loss


def draw(columns, n=30, labels=None, size=(), seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(
        n, columns, *size, dtype=torch.float64, generator=generator
    )
    return logits, torch.randint(
        0, labels or columns, (n, *size), generator=generator
    )


def counted(loss, *args, **kwargs):
    """What one optimizer step adds to the counts."""
    loss = copy.deepcopy(loss)
    before = loss.statistics.pos_count.clone()
    loss(*args, **kwargs)
    lt_losses_mm.commit_statistics(loss)
    return (loss.statistics.pos_count - before).tolist()


# ------------------------------------------------------------------- counts
def test_counts_wait_for_the_optimizer_step(engine):
    """The current batch is not among the counts that its loss reads."""
    loss = SeesawSoftmaxLoss(num_classes=2, q=0, p=1)
    logits, labels = torch.zeros(4, 2), torch.tensor([0, 0, 0, 1])
    for _ in range(2):
        assert_close(loss(logits, labels), torch.tensor(2.0).log())
        assert loss.statistics.pos_count.tolist() == [0, 0]
    loss.statistics.commit()
    assert loss.statistics.pos_count.tolist() == [6, 2]
    rows = loss(logits, labels, reduction_override='none')
    assert_close(rows.exp(), torch.tensor([4 / 3, 4 / 3, 4 / 3, 2]))
    loss.statistics.commit()
    assert loss.statistics.pos_count.tolist() == [9, 3]


@pytest.mark.parametrize('reduction', ['none', 'mean', 'sum'])
def test_a_row_counts_once_whatever_its_weight(engine, reduction):
    logits, labels = draw(C, n=6)
    labels[:] = torch.tensor([0, 1, 1, 2, 3, 3])
    weight = torch.tensor([0.5, 3.0, 0.0, 1.0, 0.0, 0.0])
    loss = make(reduction=reduction, loss_weight=0.1)
    assert counted(loss, logits, labels, weight) == [1, 1, 1, 0]
    assert counted(loss, logits, labels) == [1, 2, 1, 2]


@pytest.mark.parametrize(
    ('columns', 'background'),
    [(C, 'objectness'), (C + 1, 'keep_odds'), (C + 2, 'objectness')],
)
def test_ignored_rows_and_background_are_not_counted(
    engine, columns, background
):
    loss = make(roi=columns > C, background=background)
    labels = torch.tensor([0, 3, -100, 3, 2, -100])
    if columns > C:
        labels[0] = C
    logits, _ = draw(columns, n=6)
    assert counted(loss, logits, labels) == [float(columns == C), 0, 1, 2]


def test_ignored_pixels_are_not_counted(engine):
    logits, labels = draw(C, n=2, size=(3, 5))
    labels[0] = 255
    expected = labels[1].flatten().bincount(minlength=C)
    assert counted(make(), logits, labels) == expected.tolist()
    # The layout of memory is no matter.
    last = logits.to(memory_format=torch.channels_last)
    assert counted(make(), last, labels) == expected.tolist()


def test_what_does_not_train_is_not_counted(engine):
    batch = draw(C)
    assert not any(counted(make().eval(), *batch))
    with torch.no_grad():
        assert not any(counted(make(), *batch))
    empty = torch.zeros(0, C), torch.zeros(0).long()
    assert not any(counted(make(), *empty))


def test_a_class_without_samples_is_taken_for_one_sample():
    logits, labels = draw(C)
    assert_close(
        make((500, 60, 9, 0))(logits, labels),
        make((500, 60, 9, 1))(logits, labels),
    )


def test_decay():
    loss = make((8, 4, 2, 0), decay=0.5)
    loss(torch.zeros(1, C), torch.tensor([3]))
    loss.statistics.commit()
    assert loss.statistics.pos_count.tolist() == [4, 2, 1, 1]


def test_checkpoint(tmp_path):
    trained = make()
    batch = draw(C)
    trained(*batch)
    trained.statistics.commit()
    torch.save(trained.state_dict(), tmp_path / 'loss.pth')
    state = torch.load(tmp_path / 'loss.pth', weights_only=True)
    assert set(state) == {'class_counts', 'statistics.sums'}
    loss = SeesawSoftmaxLoss()
    loss.load_state_dict(state)
    assert loss.num_classes == C
    assert (
        loss.statistics.pos_count.tolist()
        == trained.statistics.pos_count.tolist()
    )
    assert_close(loss(*batch), trained(*batch))
    with pytest.raises(RuntimeError, match='num_classes=3, expected 4'):
        SeesawSoftmaxLoss(num_classes=3).load_state_dict(state)


# --------------------------------------------------------------- background
def test_objectness_is_a_second_softmax(engine):
    """Classes compete in rows with an object, objectness in all rows."""
    loss = make(roi=True)
    logits, labels = draw(C + 2, labels=C + 1)
    labels[0], labels[1], labels[2] = C, -100, 3
    logits.requires_grad_()
    rows = loss(logits, labels, reduction_override='none')
    z = logits.detach()
    has_object = (labels < C) & (labels >= 0)
    expected = F.cross_entropy(
        z[:, C:],
        (labels == C).long().masked_fill(labels == -100, -100),
        reduction='none',
    )
    expected[has_object] += seesaw_cross_entropy(
        z[has_object, :C], labels[has_object], loss.statistics.pos_count.log()
    )
    assert_close(rows.detach(), expected)
    rows.sum().backward()
    assert not logits.grad[~has_object, :C].any()
    assert not logits.grad[1].any()
    assert logits.grad[0, C:].all()


def test_background_in_the_softmax(engine):
    """Its rows are those of cross-entropy without the compensation."""
    logits, labels = draw(C + 1)
    assert (labels == C).any()
    plain = F.cross_entropy(logits, labels, reduction='none')
    loss = make(roi=True, background='keep_odds', q=0)
    rows = loss(logits, labels, reduction_override='none')
    assert_close(rows[labels == C], plain[labels == C])
    assert (rows[labels == 0] < plain[labels == 0]).all()
    # The rarest class is not mitigated.
    assert_close(rows[labels == 3], plain[labels == 3])


def test_test_scores_are_the_product():
    loss = make(roi=True)
    logits, _ = draw(C + 2)
    scores = loss.get_activation(logits)
    classes, is_object = logits[:, :C].softmax(1), logits[:, C:].softmax(1)
    assert_close(scores[:, :C], classes * is_object[:, :1])
    assert_close(scores[:, C], is_object[:, 1])


@pytest.mark.parametrize('columns', [C + 1, C + 2])
def test_objectness_is_for_roi_heads(columns):
    """Elsewhere two columns too many are a wrong number of classes."""
    with pytest.raises(ValueError, match=f'num_classes=4.*got {columns}'):
        make()(torch.zeros(1, columns), torch.tensor([0]))
    loss = make(background='keep_odds')
    assert loss(torch.zeros(1, C + 1), torch.tensor([0])) > 0


# ------------------------------------------------------------------ engines
@pytest.mark.parametrize(
    ('columns', 'size'), [(C, ()), (C, (2, 3)), (C + 1, ()), (C + 2, ())]
)
def test_all_engines_agree(columns, size):
    logits, labels = draw(columns, labels=min(columns, C + 1), size=size)
    labels.view(-1)[::7] = 255
    weight = torch.rand(labels.shape, dtype=torch.float64)
    results = []
    for name in ENGINES:
        loss = make(
            roi=columns > C,
            background='keep_odds' if columns == C + 1 else 'objectness',
        )
        z = logits.clone().requires_grad_()
        with use_engine(name):
            value = loss(z, labels, weight, ignore_index=255)
            value.backward()
        loss.statistics.commit()
        results.append((value.detach(), z.grad, loss.statistics.pos_count))
    for other in results[:-1]:
        assert_close(other, results[-1])


# ---------------------------------------------------------------- arguments
@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('p', -0.1),
        ('p', 'high'),
        ('q', -1),
        ('q', float('inf')),
        ('score_floor', 0),
        ('score_floor', 1.1),
        ('score_floor', '1e-2'),
    ],
)
def test_arguments_out_of_range(key, value):
    with pytest.raises(ValueError, match=f'SeesawSoftmaxLoss: {key}='):
        SeesawSoftmaxLoss(num_classes=C, **{key: value})


# -------------------------------------------------------------- mmdet's own
def reference(labels, **kwargs):
    """Mmdet's loss in a training whose counts are ours *before* this batch.

    It adds the batch before it computes, so that is taken off here.
    """
    losses = pytest.importorskip('mmdet.models.losses')
    theirs = losses.SeesawLoss(num_classes=C, **kwargs)
    theirs.cum_samples[:C] = torch.tensor(COUNTS)
    theirs.cum_samples -= labels.bincount(minlength=C + 1)
    return theirs


@pytest.mark.parametrize('weighted', [False, True])
def test_mmdets_own(engine, weighted):
    """In a RoI head, which passes ``avg_factor``: value and gradient."""
    logits, labels = draw(C + 2, labels=C + 1)
    weight = torch.ones(30, dtype=torch.float64)
    if weighted:
        weight = torch.rand(30, dtype=torch.float64).float().double()
    ours, theirs = make(roi=True), reference(labels, return_dict=False)
    gradients = []
    for loss in (ours, theirs):
        z = logits.clone().requires_grad_()
        value = loss(z, labels, weight, avg_factor=17.0)
        value.backward()
        gradients.append((value.detach(), z.grad))
    assert_close(*gradients, rtol=1e-5, atol=1e-6)
    ours.statistics.commit()
    assert_close(
        ours.statistics.pos_count,
        torch.tensor(COUNTS).double() + labels.bincount(minlength=C + 1)[:C],
    )
    assert_close(ours.get_activation(logits), theirs.get_activation(logits))


def test_mmdets_own_term_by_term(engine):
    logits, labels = draw(C + 2, labels=C + 1)
    theirs = reference(labels, reduction='none')(logits, labels)
    rows = make(roi=True)(logits, labels, reduction_override='none')
    has_object = labels < C
    classes = make()(
        logits[has_object, :C], labels[has_object], reduction_override='none'
    )
    close = dict(rtol=1e-5, atol=1e-6)
    assert_close(classes, theirs['loss_cls_classes'], **close)
    objectness = theirs['loss_cls_objectness']
    assert_close(rows[~has_object], objectness[~has_object], **close)
    assert_close(rows[has_object], classes + objectness[has_object], **close)
