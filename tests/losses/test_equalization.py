"""The equalization family: initial states, identities, what is not counted."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

import lt_losses_mm
from lt_losses_mm.kernels import ENGINES, use_engine
from lt_losses_mm.losses import (
    BalancedSoftmaxLoss,
    EqualizationLoss,
    EqualizationSoftmaxLoss,
    EqualizedFocalLoss,
    EqualizedQualityFocalLoss,
    SigmoidEqualizationLoss,
    SoftmaxEqualizationLoss,
)

C = 4
DRIVEN = dict(
    sigmoid=SigmoidEqualizationLoss,
    softmax=SoftmaxEqualizationLoss,
    focal=EqualizedFocalLoss,
    quality=EqualizedQualityFocalLoss,
)
# A frequent class, two in between, one never seen positive.
POS = (80.0, 3.0, 0.5, 0.0)
NEG = (40.0, 4.0, 1.0, 5.0)


def fill(loss, pos=POS, neg=NEG):
    for name, values in (('pos_grad', pos), ('neg_grad', neg)):
        getattr(loss.statistics, name).copy_(torch.tensor(values))
    return loss


def make(name, **kwargs):
    return DRIVEN[name](num_classes=C, **kwargs)


@pytest.fixture(params=DRIVEN)
def name(request):
    return request.param


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(5)
    logits = 2 * torch.randn(8, C, dtype=torch.float64, generator=generator)
    return logits, torch.tensor([0, 1, 2, 3, 0, 1, 0, 2])


def observed(loss, *args, **kwargs):
    """What one optimizer step adds to the statistics, (3, C)."""
    loss = copy.deepcopy(loss)
    before = loss.statistics.sums.clone()
    loss(*args, **kwargs)
    lt_losses_mm.commit_statistics(loss)
    return loss.statistics.sums - before


FLOAT32 = dict(rtol=1e-5, atol=1e-6)


def close(ours, expected, **kwargs):
    kwargs = {'rtol': 1e-10, 'atol': 1e-12, **kwargs}
    torch.testing.assert_close(ours, expected, **kwargs)


def plain_rows(name, logits, labels):
    one_hot = F.one_hot(labels, C).double()
    bce = F.binary_cross_entropy_with_logits(logits, one_hot, reduction='none')
    gap = (one_hot - logits.sigmoid()).abs()
    alpha = torch.where(one_hot > 0, 0.25, 0.75)
    return dict(
        sigmoid=bce.sum(1),
        softmax=F.cross_entropy(logits, labels, reduction='none'),
        focal=(alpha * gap**2 * bce).sum(1),
        quality=(gap**2 * bce).sum(1),
    )[name]


# ----------------------------------------------------------- initial states
def test_begins_as_its_plain_form(name, batch):
    loss = make(name)
    close(loss(*batch, reduction_override='none'), plain_rows(name, *batch))
    assert not loss.statistics.sums.any()


def test_first_step_of_sigmoid_eql():
    """A class not yet seen positive has its negatives all but turned off."""
    loss = make('sigmoid')
    loss(torch.zeros(6, C), torch.tensor([0, 0, 0, 0, 1, 1]))
    loss.statistics.commit()
    close(
        loss.statistics.pos_grad, torch.tensor([2.0, 1.0, 0.0, 0.0]).double()
    )
    close(
        loss.statistics.neg_grad, torch.tensor([1.0, 2.0, 3.0, 3.0]).double()
    )
    q, r = loss.weights()
    assert [round(v, 4) for v in q.tolist()] == [1.0, 4.8936, 4.9997, 4.9997]
    assert [round(v, 6) for v in r.tolist()[2:]] == [6.8e-5, 6.8e-5]


@pytest.mark.parametrize(('scale', 'factors'), [(8, (10, 5)), (4, (6, 3))])
def test_first_step_of_equalized_focal(scale, factors):
    for name in ('focal', 'quality'):
        loss = make(name, scale_factor=scale)
        assert [f.tolist() for f in loss.factors()] == [[2.0] * C, [1.0] * C]
        loss(torch.zeros(6, C), torch.tensor([0, 0, 0, 0, 0, 1]))
        loss.statistics.commit()
        assert tuple(f[3].item() for f in loss.factors()) == factors
        assert tuple(f[0].item() for f in loss.factors()) == (2, 1)


def test_first_step_of_softmax_eql():
    """An unseen class stands log(1e-4) = -9.2 below one of gradient 1."""
    loss = make('softmax')
    logits = torch.zeros(2, C, dtype=torch.float64)
    fill(loss, (1, 1, 1, 0))
    value = loss(logits, torch.tensor([3, 0]), reduction_override='none')
    expected = torch.tensor([3.0001e4, 3.0001], dtype=torch.float64)
    close(value.exp(), expected)


def test_initial_loss_of_lvis():
    """1203 classes and background: 834 a RoI, with the bias prior 1.2."""
    loss = SigmoidEqualizationLoss(num_classes=1203)
    columns = loss.get_cls_channels(1203)
    background = torch.tensor([1203])
    logits = torch.zeros(1, columns)
    assert loss(logits, background).item() == pytest.approx(834.5, abs=0.1)
    assert loss.initial_bias == pytest.approx(-math.log(999))
    logits += loss.initial_bias
    # 1.2 for the classes, and 6.9 for each positive, here background
    assert loss(logits, background).item() == pytest.approx(
        1.2 + 6.9, abs=0.02
    )


def test_rare_classes_of_lvis():
    """The published threshold is a share of the 99388 annotated images."""
    loss = EqualizationLoss(
        class_counts='lvis_v1',
        count_unit='image',
        threshold=1.1e-3,
        num_images=99388,
    )
    assert loss.tail().sum() == 815


# --------------------------------------------------------------- identities
@pytest.mark.parametrize('background', ['keep_odds', 0.8, 'objectness'])
@pytest.mark.parametrize('tau', [1.0, 0.4])
def test_softmax_eql_is_balanced_softmax_of_gradients(background, tau):
    pos = (80.0, 3.0, 0.5, 0.25)
    kwargs = dict(background=background, tau=tau)
    ours = fill(make('softmax', **kwargs), pos)
    theirs = BalancedSoftmaxLoss(class_counts=pos, **kwargs)
    for columns in theirs.columns(C):
        labels = torch.tensor([0, 1, 2, 3, 3])
        if columns > C:
            labels[0] = C
        logits = torch.randn(5, columns, dtype=torch.float64)
        close(ours(logits, labels), theirs(logits, labels))


@pytest.mark.parametrize(
    ('indicator', 'gradients'),
    [('pos', (80, 3, 0.5, 1e-4)), ('neg', NEG), ('both', (120, 7, 1.5, 5))],
)
def test_indicators_of_softmax_eql(batch, indicator, gradients):
    loss = fill(make('softmax', indicator=indicator))
    shift = torch.tensor(gradients, dtype=torch.float64).log()
    close(loss(*batch), F.cross_entropy(batch[0] + shift, batch[1]))


def test_zero_scale_factor_is_the_plain_form(batch):
    for name in ('focal', 'quality'):
        loss = fill(make(name, scale_factor=0))
        ours = loss(*batch, reduction_override='none')
        close(ours, plain_rows(name, *batch))


def test_positives_that_outweigh_negatives_are_the_plain_form(batch):
    for name in ('sigmoid', 'focal', 'quality'):
        loss = fill(make(name), pos=(80.0,) * C, neg=(4.0,) * C)
        ours = loss(*batch, reduction_override='none')
        close(ours, plain_rows(name, *batch))
        assert loss.saturated().all()


def test_negative_alpha_is_no_alpha(batch):
    without = fill(make('focal', alpha=-1))(*batch)
    halves = fill(make('focal', alpha=0.5))(*batch)
    close(without, 2 * halves)


def test_eql_without_rare_classes_is_bce(batch):
    loss = EqualizationLoss(class_counts=[9, 5, 2, 1], threshold=1)
    ours = loss(*batch, reduction_override='none')
    close(ours, plain_rows('sigmoid', *batch))


@pytest.mark.parametrize(
    'kwargs', [dict(drop_probability=0), dict(threshold=1)]
)
def test_eql_of_softmax_that_leaves_out_nothing_is_ce(batch, kwargs):
    loss = EqualizationSoftmaxLoss(class_counts=[9, 5, 2, 1], **kwargs)
    ours = loss(*batch, reduction_override='none')
    close(ours, plain_rows('softmax', *batch))


def test_eql_of_softmax_leaves_out_a_share():
    loss = EqualizationSoftmaxLoss(
        class_counts=[900, 1], drop_probability=0.75
    )
    torch.manual_seed(0)
    rows = loss(
        torch.zeros(4000, 2),
        torch.zeros(4000, dtype=torch.long),
        reduction_override='none',
    )
    left_out = (rows == 0).double().mean().item()
    assert left_out == pytest.approx(0.75, abs=0.03)
    # Drawn for each row, and the class itself never loses its own term.
    rows = loss(torch.zeros(9, 2), torch.ones(9).long())
    assert rows.item() == pytest.approx(math.log(2))


def random_softmax(drop=0.6, classes=6):
    return EqualizationSoftmaxLoss(
        class_counts=[500, 1] * (classes // 2),
        drop_probability=drop,
        reduction='none',
    )


def with_seed(call, seed=0):
    torch.manual_seed(seed)
    return call()


@pytest.mark.parametrize('size', [(40, 6), (40, 7), (3, 6, 5, 4)])
def test_all_engines_of_eql_of_softmax_draw_the_same(size):
    loss = random_softmax()
    logits = torch.randn(size)
    labels = torch.randint(size[1], size[:1] + size[2:])
    labels.view(-1)[2] = -100 if len(size) == 2 else 255

    def run(engine):
        with use_engine(engine):
            z = logits.clone().requires_grad_()
            rows = loss(z, labels)
            rows.sum().backward()
            return rows.detach(), z.grad

    expected = with_seed(lambda: run('reference'))
    assert (expected[1] == 0).any()
    for engine in ENGINES:
        rows, gradient = with_seed(lambda engine=engine: run(engine))
        close(rows, expected[0], **FLOAT32)
        close(gradient, expected[1], **FLOAT32)
        assert torch.equal(gradient == 0, expected[1] == 0)
        # Each call draws anew.
        assert not torch.equal(run(engine)[1] == 0, gradient == 0)


@pytest.mark.parametrize('engine', ENGINES)
def test_derivatives_of_eql_of_softmax(engine):
    loss = random_softmax()
    labels = torch.tensor([0, 1, 6, 3, -100])
    logits = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)

    def call(z):
        return with_seed(lambda: loss(z, labels))

    with use_engine(engine):
        torch.autograd.gradcheck(call, logits, check_forward_ad=False)
        torch.autograd.gradgradcheck(call, logits)


@pytest.mark.parametrize('engine', ENGINES)
def test_checkpoints_of_eql_of_softmax_draw_the_same(engine):
    loss = random_softmax()
    labels = torch.arange(30) % 6
    logits = torch.randn(30, 6, requires_grad=True)

    def call(z):
        return loss(2 * z, labels).sum()

    def gradient(value):
        return torch.autograd.grad(value(), logits)[0]

    with use_engine(engine):
        expected = with_seed(lambda: gradient(lambda: call(logits)))
        found = with_seed(
            lambda: gradient(
                lambda: checkpoint(call, logits, use_reentrant=False)
            )
        )
    close(found, expected, **FLOAT32)


def test_eql_of_softmax_compiles_with_its_draw():
    loss = random_softmax()
    torch._dynamo.reset()
    # Elsewhere it is left out, and called as it is.
    whole = hasattr(torch.compiler, 'is_compiling')
    compiled = torch.compile(loss, backend='eager', fullgraph=whole)
    for size in ((40, 7), (3, 6, 5, 4)):
        logits = torch.randn(size)
        labels = torch.randint(6, size[:1] + size[2:])
        found = with_seed(lambda z=logits, y=labels: compiled(z, y))
        expected = with_seed(lambda z=logits, y=labels: loss(z, y))
        close(found, expected, **FLOAT32)


def test_soft_labels_of_eql_of_softmax_have_the_same_draw():
    loss = random_softmax()
    logits, labels = torch.randn(40, 6), torch.arange(40) % 6
    soft = F.one_hot(labels, 6).float()
    found = with_seed(lambda: loss(logits, soft))
    close(found, with_seed(lambda: loss(logits, labels)), **FLOAT32)


# ------------------------------------------------------------- large logits
@pytest.mark.parametrize(
    'dtype', [torch.float32, torch.float16, torch.bfloat16]
)
def test_large_logits(name, dtype):
    """|z| of 8.5, 17 and 10000: what float64 gives, in statistics too."""
    values = torch.tensor([-1e4, -17.0, -8.5, 0.0, 8.5, 17.0, 1e4])
    generator = torch.Generator().manual_seed(2)
    order = [torch.randperm(7, generator=generator)[:C] for _ in range(60)]
    logits = values[torch.stack(order)].to(dtype)
    labels = torch.randint(C, (60,), generator=generator)

    def train(logits):
        loss = fill(make(name))
        leaf = logits.clone().requires_grad_()
        loss(leaf, labels, reduction_override='sum').backward()
        loss.statistics.commit()
        rows = loss.eval()(logits, labels, reduction_override='none')
        return [
            value.double() for value in (rows, leaf.grad, loss.statistics.sums)
        ]

    eps = 2 * max(torch.finfo(dtype).eps, 1e-5)
    for ours, exact in zip(train(logits), train(logits.double())):
        assert ours.isfinite().all()
        close(ours, exact, rtol=eps, atol=1e-6)


# -------------------------------------------------------------- soft labels
def test_soft_labels_are_a_mixture_of_classes(batch):
    """Mixup: t of one class, 1 - t of another."""
    loss = fill(make('softmax'))
    logits, t = batch[0][:1], 0.3
    soft = torch.tensor([[t, 0, 0, 1 - t]])
    of_first = observed(loss, logits, torch.tensor([0]))
    of_second = observed(loss, logits, torch.tensor([3]))
    close(
        observed(loss, logits, soft),
        t * of_first + (1 - t) * of_second,
        rtol=1e-6,
    )


def test_soft_labels_are_a_mixture_of_both_sides(batch):
    logits, t = batch[0][:1], 0.3
    for name in ('sigmoid', 'focal'):
        loss = fill(make(name))
        present = observed(loss, logits, torch.ones(1, C))
        absent = observed(loss, logits, torch.zeros(1, C))
        background = observed(loss, logits, torch.tensor([C]))
        close(absent, background)
        close(
            observed(loss, logits, torch.full((1, C), t)),
            t * present + (1 - t) * absent,
            rtol=1e-6,
        )


def test_soft_labels_of_the_quality_form_are_qualities(batch):
    loss = fill(make('quality'))
    logits, labels = batch
    quality = torch.tensor([0.9, 0.1, 0.0, 1.0, 0.4, 0.2, 0.0, 0.7])
    soft = F.one_hot(labels, C) * quality.unsqueeze(1)
    of_map = observed(loss, logits, soft)
    close(observed(loss, logits, (labels, quality)), of_map)
    # Three rows of class 0, one of which has a quality of 0
    assert of_map[2].tolist() == [2, 2, 1, 1]
    close(loss(logits, (labels, quality)), loss(logits, soft))


def test_an_index_label_has_quality_one(batch):
    loss = fill(make('quality'))
    logits, labels = batch
    close(loss(logits, labels), loss(logits, (labels, torch.ones(8))))


def test_background_as_a_row_of_zeros(batch):
    """Multi-hot targets write background (or no label at all) as zeros."""
    logits = batch[0][:2]
    labels = torch.tensor([C, 2])
    soft = F.one_hot(labels, C + 1)[:, :C].double()
    losses = [fill(make(name)) for name in ('sigmoid', 'focal', 'quality')]
    losses.append(EqualizationLoss(class_counts=[900, 90, 9, 1]))
    for loss in losses:
        close(
            loss(logits, labels, reduction_override='none'),
            loss(logits, soft, reduction_override='none'),
        )


# ---------------------------------------------------- what does not count
def test_rows_without_weight_do_not_count(name, batch):
    loss = fill(make(name))
    logits, labels = batch
    weight = torch.tensor([1.0, 0, 0, 2.5, 1, 0, 0.5, 1]).double()
    kept = weight > 0
    ours = observed(loss, logits, labels, weight)
    close(ours, observed(loss, logits[kept], labels[kept], weight[kept]))
    assert ours[2].tolist() == [3, 0, 1, 1]
    assert not observed(loss, logits, labels, 0 * weight).any()


def test_weights_are_factors_of_gradients_not_of_counts(name, batch):
    loss = fill(make(name))
    plain = observed(loss, *batch)
    half = observed(loss, *batch, torch.full((8,), 0.5).double())
    close(half[:2], 0.5 * plain[:2])
    close(half[2], plain[2])
    assert plain[:2].sum() > 0


def test_elements_without_weight_do_not_count(batch):
    for name in ('sigmoid', 'focal', 'quality'):
        loss = fill(make(name))
        weight = torch.ones(8, C).double()
        weight[:, 1] = 0
        expected = observed(loss, *batch)
        expected[:, 1] = 0
        close(observed(loss, *batch, weight), expected)


def test_ignored_rows_do_not_count(name, batch):
    loss = fill(make(name))
    logits, labels = batch
    ignored = labels.clone()
    ignored[[0, 5]] = -100
    kept = ignored >= 0
    expected = observed(loss, logits[kept], labels[kept])
    close(observed(loss, logits, ignored), expected)
    ignored[[0, 5]] = 255
    close(observed(loss, logits, ignored, ignore_index=255), expected)
    everything = torch.full((8,), -100)
    assert not observed(loss, logits, everything).any()


def test_normalisation_does_not_count(name, batch):
    expected = observed(fill(make(name)), *batch)
    for loss_weight, call in (
        (1.0, dict(reduction_override='none')),
        (1.0, dict(reduction_override='sum')),
        (3.0, dict(avg_factor=17.0)),
    ):
        loss = fill(make(name, loss_weight=loss_weight))
        close(observed(loss, *batch, **call), expected)
    logits = batch[0].clone().requires_grad_()
    close(observed(fill(make(name)), logits, batch[1]), expected)


def test_passes_that_do_not_train_do_not_count(name, batch):
    loss = fill(make(name))
    with torch.no_grad():
        assert not observed(loss, *batch).any()
    with torch.inference_mode():
        loss(*batch)
    loss.eval()
    loss(*batch)
    loss.train()
    before = loss.statistics.sums.clone()
    loss.statistics.commit()
    assert torch.equal(loss.statistics.sums, before)


def test_background_is_no_class():
    logits = torch.randn(5, C + 1, dtype=torch.float64)
    labels = torch.tensor([0, C, C, 3, C])
    softmax = fill(make('softmax'))
    ours = observed(softmax, logits, labels)
    assert ours.shape == (3, C)
    close(ours[2], torch.tensor([1, 0, 0, 1]).double())
    # Rows of background are negatives of all classes.
    prior = softmax.learned_prior()
    shift = torch.cat([(C * prior / prior.sum()).log(), prior.new_zeros(1)])
    p = (logits + shift).softmax(1)
    expected = p[:, :C].sum(0)
    expected[0] -= p[0, 0]
    expected[3] -= p[3, 3]
    close(ours[1], expected)


def test_background_classifiers_are_no_class():
    logits = torch.randn(5, C + 2, dtype=torch.float64)
    labels = torch.tensor([0, C, C, 3, C])
    sigmoid = fill(make('sigmoid'))
    sigmoid.get_cls_channels(C)
    close(
        observed(sigmoid, logits[:, : C + 1], labels),
        observed(fill(make('sigmoid')), logits[:, :C], labels),
    )
    # Softmax classes that know no background learn from objects only.
    softmax = fill(make('softmax', background='objectness'))
    close(
        observed(softmax, logits, labels),
        observed(softmax, logits[[0, 3], :C], labels[[0, 3]]),
    )


def test_a_rank_without_rows(name):
    loss = fill(make(name))
    logits = torch.zeros(0, C, requires_grad=True)
    value = loss(logits, torch.zeros(0, dtype=torch.long), avg_factor=1.0)
    value.backward()
    assert value.item() == 0
    assert not observed(loss, logits, torch.zeros(0, dtype=torch.long)).any()


@pytest.mark.parametrize('bad', [math.nan, math.inf])
def test_a_broken_batch_does_not_poison(name, batch, bad):
    loss = fill(make(name))
    logits, labels = batch
    expected = observed(loss, logits, labels)
    broken = logits.clone()
    broken[0] = bad
    added = observed(loss, broken, labels)
    assert added.isfinite().all()
    if math.isnan(bad):
        assert not added.any()
    loss(broken, labels)
    loss.statistics.commit()
    fill(loss)
    close(observed(loss, logits, labels), expected)


def test_steepness_of_zero_is_refused():
    """Zero times an infinite ratio is NaN, from the first batch on."""
    with pytest.raises(ValueError, match='steepness=0'):
        make('sigmoid', steepness=0)


def test_probabilities_are_taken_back_in_their_own_type():
    """Beyond what fp32 tells from 1: the eps of the type limits the logits."""
    labels = torch.tensor([0, 1])
    logits = torch.tensor([[20.0, -3.0], [-20.0, 2.0]], dtype=torch.double)
    plain = EqualizedQualityFocalLoss(num_classes=2)
    loss = EqualizedQualityFocalLoss(num_classes=2, activated=True)
    torch.testing.assert_close(
        loss(logits.sigmoid(), labels, reduction_override='none'),
        plain(logits, labels, reduction_override='none'),
    )
