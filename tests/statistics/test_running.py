"""The engine of the statistics, one process."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lt_losses_mm
from lt_losses_mm.losses import (
    EqualizedFocalLoss,
    SigmoidEqualizationLoss,
    SoftmaxEqualizationLoss,
)
from lt_losses_mm.statistics import (
    RunningStatistics,
    commit_statistics,
    discard_pending,
    optimizer_steps,
    reset_statistics,
    statistics_modules,
)


class Sums(RunningStatistics):
    """The engine without maths."""

    statistic_names = ('a', 'b')

    def __init__(self, num_classes=3, decay=1.0):
        super().__init__()
        self.init_statistics(decay)
        self.resize_statistics(num_classes)

    def see(self, a, b=0.0):
        size = self.a.shape
        self.observe(torch.stack([torch.full(size, a), torch.full(size, b)]))


def values(module):
    return [s.tolist() for s in module.statistics.values()]


def trained(loss_type=SigmoidEqualizationLoss, num_classes=3, steps=3):
    """A loss with statistics of no round numbers."""
    loss = loss_type(num_classes=num_classes)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        logits = torch.randn(9, num_classes, generator=generator)
        loss(logits, torch.randint(num_classes, (9,), generator=generator))
        loss.commit()
    return loss


def equal(one, other):
    assert one.statistics.keys() == other.statistics.keys()
    return all(
        torch.equal(one.statistics[name], other.statistics[name])
        for name in one.statistics
    )


# ------------------------------------------------------- pending and commit
def test_nothing_is_seen_before_the_commit():
    sums = Sums()
    sums.see(1.0, 2.0)
    sums.see(0.5)
    assert values(sums) == [[0.0] * 3] * 2
    sums.commit()
    assert values(sums) == [[1.5] * 3, [2.0] * 3]
    sums.commit()
    assert values(sums) == [[1.5] * 3, [2.0] * 3]


def test_calls_between_two_steps_see_the_same_statistics():
    """Levels of a pyramid, micro-batches: g changes with the step only."""
    loss = trained(EqualizedFocalLoss)
    logits, labels = torch.randn(6, 3), torch.tensor([0, 0, 0, 1, 1, 2])
    whole = copy.deepcopy(loss)
    first = loss(logits, labels)
    for level in range(3):
        loss(logits[level::3], labels[level::3])
    assert torch.equal(loss(logits, labels), first)
    discard_pending(loss)
    for level in range(3):
        loss(logits[level::3], labels[level::3])
    whole(logits, labels)
    for module in (loss, whole):
        module.commit()
    torch.testing.assert_close(loss.statistics, whole.statistics)
    assert loss(logits, labels) != first


def test_decay():
    sums = Sums(decay=0.5)
    for _ in range(3):
        sums.see(8.0)
        sums.commit()
    # 8 + 8 / 2 + 8 / 4
    assert values(sums)[0] == [14.0] * 3
    sums.commit()
    assert values(sums)[0] == [7.0] * 3


def test_decay_of_a_loss():
    logits, labels = torch.zeros(4, 2), torch.tensor([0, 0, 0, 1])
    loss = SoftmaxEqualizationLoss(num_classes=2, decay=0.25)
    for _ in range(2):
        loss(logits, labels)
        loss.commit()
    assert loss.pos_count.tolist() == [3.75, 1.25]


@pytest.mark.parametrize('decay', [0, -0.5, 1.5, float('nan'), '1'])
def test_decay_out_of_range(decay):
    with pytest.raises(ValueError, match='decay='):
        SoftmaxEqualizationLoss(num_classes=2, decay=decay)


def test_discard_and_reset():
    sums = Sums()
    sums.see(1.0)
    sums.commit()
    sums.see(5.0)
    discard_pending(sums)
    sums.commit()
    assert values(sums)[0] == [1.0] * 3
    sums.see(5.0)
    reset_statistics(sums)
    sums.commit()
    assert values(sums) == [[0.0] * 3] * 2


def test_resize_keeps_what_fits():
    sums = Sums(3)
    sums.see(1.0)
    sums.commit()
    sums.see(1.0)
    sums.resize_statistics(3)
    sums.commit()
    assert values(sums)[0] == [2.0] * 3
    sums.see(1.0)
    sums.resize_statistics(5)
    sums.commit()
    assert values(sums) == [[0.0] * 5] * 2


def test_a_broken_sum_is_left_out_whole():
    sums = Sums()
    sums.see(1.0)
    sums.commit()
    for bad in (float('nan'), float('inf')):
        sums.see(2.0, bad)
        sums.commit()
    assert values(sums) == [[1.0] * 3, [0.0] * 3]
    sums.see(2.0)
    sums.commit()
    assert values(sums)[0] == [3.0] * 3


class Cascade(nn.Module):
    """Three independent losses, one of which hangs in the model twice."""

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList(Sums(n) for n in (2, 3, 4))
        self.again = self.stages[0]
        self.neck = nn.Linear(2, 2)


def test_one_commit_for_all_losses_of_a_model():
    model = Cascade()
    for factor, stage in enumerate(model.stages, 1):
        stage.see(factor * 1.0, factor * 10.0)
    assert len(list(statistics_modules(model))) == 3
    commit_statistics(model)
    assert [values(stage) for stage in model.stages] == [
        [[1.0] * 2, [10.0] * 2],
        [[2.0] * 3, [20.0] * 3],
        [[3.0] * 4, [30.0] * 4],
    ]


def test_a_broken_loss_does_not_stop_the_others():
    model = Cascade()
    for stage in model.stages:
        stage.see(1.0)
    model.stages[1].see(float('nan'))
    commit_statistics(model)
    assert [values(stage)[0][0] for stage in model.stages] == [1, 0, 1]


def test_a_model_without_statistics():
    commit_statistics(nn.Linear(2, 2))


# ------------------------------------------------------------ dtype, copies
@pytest.mark.parametrize('cast', ['half', 'bfloat16', 'double', 'float'])
def test_model_casts_leave_float64(cast):
    model = nn.Sequential(nn.Linear(2, 2), trained())
    loss = model[1]
    expected = copy.deepcopy(loss)
    loss(torch.zeros(2, 3), torch.tensor([0, 1]))
    expected(torch.zeros(2, 3), torch.tensor([0, 1]))
    getattr(model, cast)()
    assert model[0].weight.dtype != torch.float64 or cast == 'double'
    assert {s.dtype for s in loss.statistics.values()} == {torch.float64}
    assert equal(loss, expected)
    # What is pending has not lost anything either.
    loss.commit()
    expected.commit()
    assert equal(loss, expected)
    assert {n for n, _ in model.named_buffers()} >= {
        '1.pos_grad',
        '1.neg_grad',
    }


def test_small_increments_of_large_sums():
    """In fp32 a sum of 2^24 no longer grows by 1."""
    sums = Sums(1)
    sums.see(2.0**24)
    sums.commit()
    for _ in range(3):
        sums.see(1.0)
        sums.commit()
    assert sums.a.item() == 2**24 + 3


def test_moving_to_another_device():
    sums = Sums()
    sums.to('meta')
    assert sums.a.device.type == sums._pending.device.type == 'meta'


@pytest.mark.parametrize(
    'duplicate',
    [
        copy.deepcopy,
        lambda module: pickle.loads(pickle.dumps(module)),
    ],
    ids=['deepcopy', 'pickle'],
)
def test_copies_are_equal_and_independent(duplicate):
    loss = trained()
    twin = duplicate(loss)
    assert equal(loss, twin)
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 1, 2])
    assert torch.equal(loss(logits, labels), twin(logits, labels))
    loss.discard_pending()
    before = copy.deepcopy(loss)
    twin.commit()
    assert equal(loss, before)
    assert not equal(loss, twin)


def test_statistics_carry_no_graph():
    loss = SoftmaxEqualizationLoss(num_classes=2)
    logits = torch.zeros(2, 2, requires_grad=True)
    loss(logits, torch.tensor([0, 1])).backward()
    loss.commit()
    assert not any(s.requires_grad for s in loss.statistics.values())


# -------------------------------------------------------------- checkpoints
def saved(module):
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    return torch.load(file)


@pytest.mark.parametrize('half', [False, True])
def test_checkpoints_are_exact(half):
    model = nn.Sequential(nn.Linear(2, 2), trained())
    if half:
        model.half()
    state = saved(model)
    fresh = nn.Sequential(
        nn.Linear(2, 2), SigmoidEqualizationLoss(num_classes=3)
    )
    if half:
        fresh.half()
    fresh.load_state_dict(state)
    assert equal(fresh[1], model[1])
    assert fresh[1].statistics_mismatch is None
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 1, 2])
    for loss in (fresh[1], model[1]):
        loss(logits, labels)
        loss.commit()
    assert equal(fresh[1], model[1])


def test_loading_does_not_share_memory():
    loss = trained()
    twin = SigmoidEqualizationLoss(num_classes=3)
    twin.load_state_dict(loss.state_dict())
    twin.reset_statistics()
    assert loss.pos_grad.any()


def test_unknown_classes_follow_the_checkpoint():
    loss = trained(num_classes=5)
    fresh = SigmoidEqualizationLoss()
    fresh.load_state_dict(saved(loss))
    assert equal(fresh, loss)
    fresh.set_num_classes(5)
    assert equal(fresh, loss)
    fresh(torch.zeros(2, 5), torch.tensor([0, 4]))
    loss(torch.zeros(2, 5), torch.tensor([0, 4]))
    fresh.commit()
    loss.commit()
    assert equal(fresh, loss)


def test_other_classes_than_the_checkpoint():
    state = {f'loss_cls.{k}': v for k, v in saved(trained()).items()}
    model = nn.Module()
    model.loss_cls = SigmoidEqualizationLoss(num_classes=4)
    with pytest.raises(RuntimeError) as error:
        model.load_state_dict(state, strict=False)
    message = model.loss_cls.statistics_mismatch
    assert message in str(error.value)
    for part in (
        'SigmoidEqualizationLoss',
        'num_classes=4',
        'expected 3',
        'loss_cls.pos_',
        'load_from',
    ):
        assert part in message
    assert values(model.loss_cls) == [[0.0] * 4] * 3
    # The next load that fits clears it.
    model.loss_cls.load_state_dict(trained(num_classes=4).state_dict())
    assert model.loss_cls.statistics_mismatch is None


def test_a_checkpoint_without_statistics():
    """Such as one of a model that was trained with cross-entropy."""
    loss = trained()
    before = copy.deepcopy(loss)
    missing, _ = loss.load_state_dict({}, strict=False)
    assert {'pos_grad', 'neg_grad', 'pos_count'} <= set(missing)
    assert equal(loss, before)


def test_a_checkpoint_of_unfilled_statistics():
    loss = trained()
    before = copy.deepcopy(loss)
    loss.load_state_dict(SigmoidEqualizationLoss().state_dict())
    assert loss.statistics_mismatch is None
    assert equal(loss, before)


# ---------------------------------------------------------- forgotten commit
class Loop:
    """A training loop of one's own, on 4 points of 3 classes."""

    def __init__(self, loss, lr=0.1, **kwargs):
        torch.manual_seed(0)
        self.model = nn.Linear(2, 3)
        self.loss = loss
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=lr, **kwargs
        )
        self.images = torch.randn(4, 2)
        self.labels = torch.tensor([0, 0, 1, 2])

    def backward(self):
        self.optimizer.zero_grad()
        loss = self.loss(self.model(self.images), self.labels)
        loss.backward()
        return loss.item()

    def step(self):
        value = self.backward()
        self.optimizer.step()
        return value


def test_a_forgotten_commit_stops_the_training():
    loop = Loop(SoftmaxEqualizationLoss(num_classes=3))
    for _ in range(9):
        loop.step()
    with pytest.raises(RuntimeError) as error:
        loop.step()
    for part in (
        'SoftmaxEqualizationLoss',
        '10 optimizer steps',
        'StatisticsHook',
        'lt_losses_mm.commit_statistics(model)',
    ):
        assert part in str(error.value)
    # Having been told, the user commits, and training goes on.
    commit_statistics(loop.loss)
    for _ in range(9):
        loop.step()


def test_a_forgotten_commit_of_a_copy():
    loss = copy.deepcopy(SoftmaxEqualizationLoss(num_classes=3))
    loop = Loop(pickle.loads(pickle.dumps(loss)))
    with pytest.raises(RuntimeError, match='without a commit'):
        for _ in range(10):
            loop.step()


def test_gradient_accumulation_is_no_forgotten_commit():
    loop = Loop(SoftmaxEqualizationLoss(num_classes=3))
    for _ in range(3):
        for _ in range(25):
            loop.backward()
        loop.optimizer.step()
        commit_statistics(loop.loss)
    assert loop.loss.pos_count.tolist() == [150, 75, 75]


def test_losses_that_do_not_train_are_not_waited_for():
    loop = Loop(nn.CrossEntropyLoss())
    fresh = SoftmaxEqualizationLoss(num_classes=3)
    in_eval = SoftmaxEqualizationLoss(num_classes=3).eval()
    for _ in range(12):
        in_eval(loop.model(loop.images), loop.labels)
        with torch.no_grad():
            fresh(loop.model(loop.images), loop.labels)
        loop.step()


def test_a_loss_that_was_only_looked_at_is_not_waited_for():
    """In a notebook, say; or one of a training that was broken off."""
    other = SoftmaxEqualizationLoss(num_classes=3)
    other(torch.zeros(2, 3), torch.tensor([0, 1]))
    loop = Loop(nn.CrossEntropyLoss())
    for _ in range(12):
        loop.step()


def test_the_loop_of_the_documentation():
    """Each step commits, and the loss follows its own statistics."""
    loop = Loop(SoftmaxEqualizationLoss(num_classes=3))
    assert loop.loss.pos_grad.sum() == 0
    for step in range(30):
        prior = loop.loss.prior_counts.float()
        with torch.no_grad():
            expected = F.cross_entropy(
                loop.model(loop.images) + prior.log(), loop.labels
            )
        assert loop.step() == pytest.approx(expected.item(), rel=1e-5)
        commit_statistics(loop.loss)
        assert loop.loss.pos_count.tolist() == [
            2 * (step + 1),
            step + 1,
            step + 1,
        ]
    assert lt_losses_mm.commit_statistics is commit_statistics


# --------------------------------------------------------- optimizer steps
def test_steps_of_all_optimizers_count():
    before = optimizer_steps()
    for optimizer in (torch.optim.SGD, torch.optim.AdamW):
        weight = nn.Parameter(torch.ones(1))
        weight.grad = torch.ones(1)
        optimizer([weight], lr=0.1).step()
    assert optimizer_steps() == before + 2


def scaler():
    kind = getattr(torch.amp, 'GradScaler', None)
    if kind is None:
        pytest.skip('this torch scales gradients on CUDA only')
    return kind('cpu', init_scale=2.0)


@pytest.mark.parametrize('fused', [False, True])
def test_steps_that_a_scaler_skips_do_not_count(fused):
    """An overflow of scaled gradients leaves weights and statistics alone."""
    grad_scaler = scaler()
    kwargs = dict(fused=True) if fused else {}
    loop = Loop(SoftmaxEqualizationLoss(num_classes=3), **kwargs)
    done = optimizer_steps()
    counted = []
    for overflow in (False, True, False, True):
        loop.optimizer.zero_grad()
        loss = loop.loss(loop.model(loop.images), loop.labels)
        grad_scaler.scale(loss).backward()
        if overflow:
            loop.model.weight.grad[0, 0] = float('inf')
        before = loop.model.weight.detach().clone()
        grad_scaler.step(loop.optimizer)
        grad_scaler.update()
        assert torch.equal(before, loop.model.weight) == overflow
        if optimizer_steps() > done:
            commit_statistics(loop.loss)
        else:
            discard_pending(loop.loss)
        done = optimizer_steps()
        counted.append(loop.loss.pos_count.sum().item())
    assert counted == [4, 4, 8, 8]
