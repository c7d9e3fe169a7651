"""The engine of the statistics, one process."""

import copy
import io
import pickle
import subprocess
import sys
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lt_losses_mm
from lt_losses_mm.kernels import Batch
from lt_losses_mm.losses import (
    EqualizedFocalLoss,
    SigmoidEqualizationLoss,
    SoftmaxEqualizationLoss,
)
from lt_losses_mm.statistics import (
    RunningStatistics,
    commit_statistics,
    discard_pending,
    reset_statistics,
    running,
    statistics_modules,
)


class Sums(RunningStatistics):
    """The engine without maths."""

    def __init__(self, num_classes=3, decay=1.0):
        super().__init__(('a', 'b'), num_classes, decay)

    def see(self, a, b=0.0):
        seen = torch.tensor([[a], [b]]).expand(2, self.num_classes)
        labels = torch.zeros(1, dtype=torch.long)
        self.observe(Batch(torch.zeros(1, self.num_classes), labels), seen)


def values(statistics):
    return statistics.sums.tolist()


def trained(loss_type=SigmoidEqualizationLoss, num_classes=3, steps=3):
    """A loss with statistics of no round numbers."""
    loss = loss_type(num_classes=num_classes)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        logits = torch.randn(9, num_classes, generator=generator)
        loss(logits, torch.randint(num_classes, (9,), generator=generator))
        loss.statistics.commit()
    return loss


def equal(one, other):
    assert one.statistics.names == other.statistics.names
    return torch.equal(one.statistics.sums, other.statistics.sums)


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
        module.statistics.commit()
    torch.testing.assert_close(loss.statistics.sums, whole.statistics.sums)
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
        loss.statistics.commit()
    assert loss.statistics.pos_count.tolist() == [3.75, 1.25]


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
    sums.resize(3)
    sums.commit()
    assert values(sums)[0] == [2.0] * 3
    sums.see(1.0)
    sums.resize(5)
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


def test_a_commit_adds_what_all_ranks_have_seen(monkeypatch):
    """In one collective; the other rank is a stand-in."""
    calls = []

    def all_reduce(total):
        calls.append(total.numel())
        total += torch.arange(total.numel())  # what the other rank has

    group = mock.Mock(all_reduce=all_reduce)
    group.is_initialized.return_value = True
    group.get_backend.return_value = 'gloo'
    monkeypatch.setattr(running, 'distributed', group)
    model = Cascade()
    model.stages[0].see(1.0, 10.0)
    commit_statistics(model)
    assert calls == [2 * (2 + 3 + 4)]
    assert [values(stage) for stage in model.stages] == [
        [[1.0, 2.0], [12.0, 13.0]],
        [[4.0, 5.0, 6.0], [7.0, 8.0, 9.0]],
        [[10.0, 11.0, 12.0, 13.0], [14.0, 15.0, 16.0, 17.0]],
    ]
    assert not any(stage.pending.any() for stage in model.stages)


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
    assert loss.statistics.sums.dtype == torch.float64
    assert equal(loss, expected)
    # What is pending has not lost anything either.
    loss.statistics.commit()
    expected.statistics.commit()
    assert equal(loss, expected)
    assert '1.statistics.sums' in dict(model.named_buffers())


def test_small_increments_of_large_sums():
    """In fp32 a sum of 2^24 no longer grows by 1."""
    sums = Sums(1)
    sums.see(2.0**24)
    sums.commit()
    for _ in range(3):
        sums.see(1.0)
        sums.commit()
    assert sums.sums[0].item() == 2**24 + 3


def test_moving_to_another_device():
    sums = Sums()
    sums.to('meta')
    assert sums.sums.device.type == sums.pending.device.type == 'meta'


def test_devices_without_float64():
    """Apple's: to go there in float64 is an error."""
    sums, mps = mock.MagicMock(), torch.device('mps')
    found = running._move(sums, mps)
    sums.float.assert_called_once_with()
    sums.float().to.assert_called_once_with(mps)
    assert found is sums.float().to() and not sums.double.called
    # And back.
    found = running._move(torch.ones(2), torch.device('cpu'))
    assert found.dtype == torch.float64


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
    loss.statistics.discard_pending()
    before = copy.deepcopy(loss)
    twin.statistics.commit()
    assert equal(loss, before)
    assert not equal(loss, twin)


def test_statistics_carry_no_graph():
    loss = SoftmaxEqualizationLoss(num_classes=2)
    logits = torch.zeros(2, 2, requires_grad=True)
    loss(logits, torch.tensor([0, 1])).backward()
    loss.statistics.commit()
    assert not loss.statistics.sums.requires_grad


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
    assert fresh[1].statistics.mismatch is None
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 1, 2])
    for loss in (fresh[1], model[1]):
        loss(logits, labels)
        loss.statistics.commit()
    assert equal(fresh[1], model[1])


def test_loading_does_not_share_memory():
    loss = trained()
    twin = SigmoidEqualizationLoss(num_classes=3)
    twin.load_state_dict(loss.state_dict())
    twin.statistics.reset()
    assert loss.statistics.pos_grad.any()


def test_unknown_classes_follow_the_checkpoint():
    loss = trained(num_classes=5)
    fresh = SigmoidEqualizationLoss()
    fresh.load_state_dict(saved(loss))
    assert equal(fresh, loss)
    fresh.set_num_classes(5)
    assert equal(fresh, loss)
    fresh(torch.zeros(2, 5), torch.tensor([0, 4]))
    loss(torch.zeros(2, 5), torch.tensor([0, 4]))
    fresh.statistics.commit()
    loss.statistics.commit()
    assert equal(fresh, loss)


def test_other_classes_than_the_checkpoint():
    state = {f'loss_cls.{k}': v for k, v in saved(trained()).items()}
    model = nn.Module()
    model.loss_cls = SigmoidEqualizationLoss(num_classes=4)
    with pytest.raises(RuntimeError) as error:
        model.load_state_dict(state, strict=False)
    message = model.loss_cls.statistics.mismatch
    assert message in str(error.value)
    for part in (
        'SigmoidEqualizationLoss',
        'num_classes=4',
        'expected 3',
        'loss_cls.statistics.sums',
        'load_from',
    ):
        assert part in message
    assert values(model.loss_cls.statistics) == [[0.0] * 4] * 3
    # The next load that fits clears it.
    model.loss_cls.load_state_dict(trained(num_classes=4).state_dict())
    assert model.loss_cls.statistics.mismatch is None


def test_a_checkpoint_without_statistics():
    """Such as one of a model that was trained with cross-entropy."""
    loss = trained()
    before = copy.deepcopy(loss)
    missing, _ = loss.load_state_dict({}, strict=False)
    assert 'statistics.sums' in missing
    assert equal(loss, before)


def test_a_checkpoint_of_unfilled_statistics():
    loss = trained()
    before = copy.deepcopy(loss)
    loss.load_state_dict(SigmoidEqualizationLoss().state_dict())
    assert loss.statistics.mismatch is None
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
    # Nine steps are forgiven; the pass after the tenth is an error.
    loop.backward()
    loop.optimizer.step()
    with pytest.raises(RuntimeError) as error:
        loop.backward()
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
    loop.backward()


def test_a_forgotten_commit_of_compiled_code(caplog, monkeypatch):
    """It cannot be noticed in a graph, which is said when it is traced."""
    monkeypatch.setattr(running, '_told', set())
    loop = Loop(SoftmaxEqualizationLoss(num_classes=3))
    model, loss = loop.model, loop.loss
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, y: loss(model(x), y), backend='eager')
    try:
        for _ in range(12):
            loop.optimizer.zero_grad()
            compiled(loop.images, loop.labels).backward()
            loop.optimizer.step()
    except RuntimeError as error:
        # The graph ends before the loss, which notices.
        assert not hasattr(torch.compiler, 'is_compiling')
        assert '10 optimizer steps without a commit' in str(error)
        return
    assert loss.statistics.pending[-1].tolist() == [24, 12, 12]
    (record,) = (r for r in caplog.records if r.name == 'lt_losses_mm')
    assert record.levelname == 'WARNING'
    assert record.message.startswith('SoftmaxEqualizationLoss: it is compiled')
    assert 'lt_losses_mm.commit_statistics(model)' in record.message
    # Whoever is served by a Runner need not hear it.
    loss.statistics.has_runner = True
    caplog.clear()
    running._told.clear()
    torch._dynamo.reset()
    compiled(loop.images, loop.labels)
    assert 'it is compiled' not in caplog.text


def test_a_forgotten_commit_of_a_copy():
    loss = copy.deepcopy(SoftmaxEqualizationLoss(num_classes=3))
    loop = Loop(pickle.loads(pickle.dumps(loss)))
    with pytest.raises(RuntimeError, match='without a commit'):
        for _ in range(11):
            loop.step()


def test_a_copy_in_the_middle_of_a_training():
    """It does not watch the model of the original."""
    loop = Loop(SoftmaxEqualizationLoss(num_classes=3))
    for _ in range(9):
        loop.step()
    for loss in (
        copy.deepcopy(loop.loss),
        pickle.loads(pickle.dumps(loop.loss)),
    ):
        assert equal(loss, loop.loss)
        other = Loop(loss)
        other.backward()
    loop.backward()
    loop.optimizer.step()
    with pytest.raises(RuntimeError, match='without a commit'):
        loop.backward()


def test_gradient_accumulation_is_no_forgotten_commit():
    loop = Loop(SoftmaxEqualizationLoss(num_classes=3))
    for _ in range(3):
        for _ in range(25):
            loop.backward()
        loop.optimizer.step()
        commit_statistics(loop.loss)
    assert loop.loss.statistics.pos_count.tolist() == [150, 75, 75]


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
    assert loop.loss.statistics.pos_grad.sum() == 0
    for step in range(30):
        prior = loop.loss.learned_prior().float()
        with torch.no_grad():
            expected = F.cross_entropy(
                loop.model(loop.images) + prior.log(), loop.labels
            )
        assert loop.step() == pytest.approx(expected.item(), rel=1e-5)
        commit_statistics(loop.loss)
        assert loop.loss.statistics.pos_count.tolist() == [
            2 * (step + 1),
            step + 1,
            step + 1,
        ]
    assert lt_losses_mm.commit_statistics is commit_statistics


# --------------------------------------------------------- optimizer steps
OPTIMIZERS = dict(
    sgd=lambda weights: torch.optim.SGD(weights, lr=0.1),
    one_by_one=lambda weights: torch.optim.SGD(weights, lr=0.1, foreach=False),
    foreach=lambda weights: torch.optim.AdamW(weights, foreach=True),
    closure=lambda weights: torch.optim.LBFGS(weights, max_iter=1),
)


def train(loop, steps):
    for _ in range(steps):
        loop.backward()
        loop.optimizer.step(lambda: torch.zeros(()))


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_steps_of_any_optimizer_are_noticed(name):
    loop = Loop(SoftmaxEqualizationLoss(num_classes=3))
    loop.optimizer = OPTIMIZERS[name](loop.model.parameters())
    train(loop, 10)
    with pytest.raises(RuntimeError, match='10 optimizer steps'):
        loop.backward()


def test_steps_of_a_fused_optimizer_are_noticed():
    """Later than those of others: it leaves versions alone."""
    try:
        loop = Loop(SoftmaxEqualizationLoss(num_classes=3), fused=True)
    except (RuntimeError, TypeError):
        pytest.skip('this torch has no such optimizer on the CPU')
    train(loop, 300)
    commit_statistics(loop.loss)
    with pytest.raises(RuntimeError, match='10 optimizer steps'):
        train(loop, 1200)


def test_a_long_accumulation_of_gradients_is_no_step():
    loop = Loop(SoftmaxEqualizationLoss(num_classes=3))
    for _ in range(1300):
        loop.backward()
    commit_statistics(loop.loss)
    assert loop.loss.statistics.pos_count.sum() == 4 * 1300


def test_steps_are_noticed_under_a_deep_head():
    """The parameter nearest to the logits is found behind many nodes."""
    loop = Loop(SoftmaxEqualizationLoss(num_classes=3))
    loop.model = nn.Sequential(
        nn.Linear(2, 3), *(nn.Softplus() for _ in range(20))
    )
    loop.optimizer = torch.optim.SGD(loop.model.parameters(), lr=0.1)
    with pytest.raises(RuntimeError, match='10 optimizer steps'):
        train(loop, 20)


def test_steps_of_another_model_do_not_count():
    """A discriminator, say, or a second model of the same process."""
    loop, other = (
        Loop(loss)
        for loss in (
            SoftmaxEqualizationLoss(num_classes=3),
            nn.CrossEntropyLoss(),
        )
    )
    for _ in range(25):
        loop.backward()
        other.step()
    # Nor do they bring the loop nearer to an error.
    train(loop, 9)
    loop.backward()
    commit_statistics(loop.loss)
    assert loop.loss.statistics.pos_count.sum() == 4 * (25 + 9 + 1)


def test_inner_steps_of_a_bilevel_method_do_not_count():
    """They make new weights, and leave those of the model alone."""
    loop = Loop(SoftmaxEqualizationLoss(num_classes=3))
    names = [name for name, _ in loop.model.named_parameters()]
    for _ in range(25):
        weights = dict(loop.model.named_parameters())
        for _ in range(2):
            logits = torch.func.functional_call(
                loop.model, weights, loop.images
            )
            value = loop.loss(logits, loop.labels)
            gradients = torch.autograd.grad(value, list(weights.values()))
            weights = {
                name: weights[name] - 0.1 * gradient
                for name, gradient in zip(names, gradients)
            }
    assert loop.loss.statistics.pos_count.sum() == 0
    commit_statistics(loop.loss)
    assert loop.loss.statistics.pos_count.sum() == 4 * 50


def test_gradients_of_torch_func_count_for_nothing():
    """An inner step, whose logits belong to a transform."""
    loop = Loop(SoftmaxEqualizationLoss(num_classes=3))

    def inner(weights):
        logits = torch.func.functional_call(loop.model, weights, loop.images)
        return loop.loss(logits, loop.labels)

    weights = {
        name: weight.detach() for name, weight in loop.model.named_parameters()
    }
    for _ in range(12):
        gradients = torch.func.grad(inner)(weights)
        weights = {
            name: weight - 0.1 * gradients[name]
            for name, weight in weights.items()
        }
    statistics = loop.loss.statistics
    assert not statistics.sums.any() and not statistics.pending.any()


ALONE = """
import torch
from torch.optim import optimizer as module

def hooks():
    return [
        dict(module._global_optimizer_pre_hooks),
        dict(module._global_optimizer_post_hooks),
    ]

class FoundInf:
    '''The flag of a gradient scaler: to read it stops an accelerator.'''

    def item(self):
        raise AssertionError('read on behalf of a user of other losses')

    __bool__ = __float__ = __int__ = item

class Descent(torch.optim.Optimizer):
    def __init__(self, weights):
        super().__init__(weights, {})
        self.found_inf = FoundInf()

    @torch.no_grad()
    def step(self):
        for weight in self.param_groups[0]['params']:
            weight -= 0.1 * weight.grad

def step(criterion):
    model = torch.nn.Linear(2, 3)
    optimizer = Descent(model.parameters())
    labels = torch.tensor([0, 1, 2, 0])
    criterion(model(torch.zeros(4, 2)), labels).backward()
    optimizer.step()

before = hooks()
import lt_losses_mm
step(torch.nn.CrossEntropyLoss())
assert hooks() == before == [{}, {}], hooks()
loss = lt_losses_mm.losses.SigmoidEqualizationLoss(num_classes=3)
step(loss)
lt_losses_mm.commit_statistics(loss)
assert loss.statistics.pos_count.tolist() == [2, 1, 1]
assert hooks() == before, hooks()
"""


@pytest.mark.slow
def test_importing_hooks_no_optimizer():
    """Nor does it read what a gradient scaler leaves on the device."""
    done = subprocess.run(
        [sys.executable, '-c', ALONE], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
