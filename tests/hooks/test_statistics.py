"""Statistics of losses through the real Runner."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import MODELS
from torch import nn
from torch.testing import assert_close

from lt_losses_mm.hooks import StatisticsHook
from lt_losses_mm.hooks.statistics import _Owner, _owners
from lt_losses_mm.statistics import RunningStatistics, statistics_modules

LOSS = dict(type='lt_losses_mm.SigmoidEqualizationLoss', bias_prior=None)
QUIET = dict(type='lt_losses_mm.StatisticsHook', interval=0, draw=False)
DRIVEN = [
    'SigmoidEqualizationLoss',
    'SoftmaxEqualizationLoss',
    'EqualizedFocalLoss',
    'EqualizedQualityFocalLoss',
]


@pytest.fixture
def make(make_runner):

    def build(loss=None, hook=None, **kwargs):
        return make_runner(
            {**LOSS, **(loss or {})},
            custom_hooks=[{**QUIET, **(hook or {})}],
            **kwargs,
        )

    return build


@pytest.fixture
def commits(monkeypatch):
    """Pending sums at each commit."""
    seen = []
    commit = RunningStatistics.commit

    def spy(self, sums=None):
        seen.append(self.pending.clone() if sums is None else sums.clone())
        return commit(self, sums)

    monkeypatch.setattr(RunningStatistics, 'commit', spy)
    return seen


def loss_of(runner):
    return runner.model.head.loss_module


def state_of(runner):
    return loss_of(runner).statistics.sums.clone()


def messages(log, what):
    return [r.getMessage() for r in log[0] if what in r.getMessage()]


@pytest.mark.parametrize('named', [True, False])
def test_each_runner_has_one(make_runner, named):
    hooks = dict(custom_hooks=[dict(QUIET)]) if named else {}
    runner = make_runner(**hooks)
    found = [h for h in runner.hooks if isinstance(h, StatisticsHook)]
    assert len(found) == 1
    assert found[0].interval == (0 if named else 500)


@pytest.mark.parametrize('name', DRIVEN)
def test_a_loss_learns_its_classes_and_its_statistics(make_runner, name):
    runner = make_runner(
        dict(type=f'lt_losses_mm.{name}'), custom_hooks=[dict(QUIET)]
    )
    runner.train()
    loss = loss_of(runner)
    assert loss.num_classes == 3
    # Ten images, seen once.
    assert loss.statistics.pos_count.tolist() == [6, 3, 1]
    assert (loss.statistics.pos_grad > 0).all() and (
        loss.statistics.neg_grad > 0
    ).all()
    assert not loss.statistics.pending.any()


def test_one_commit_a_step(make, commits):
    make().train()
    assert [c[2].sum().item() for c in commits] == [5, 5]


def test_gradient_accumulation_commits_with_the_step(make, loader, commits):
    train = dict(loader(), batch_size=2)
    runner = make(
        train=train,
        optim_wrapper=dict(
            optimizer=dict(type='SGD', lr=0.1), accumulative_counts=2
        ),
    )
    runner.train()
    # Five batches of two: the fifth is a step of its own.
    assert [c[2].sum().item() for c in commits] == [4, 4, 2]


def test_a_skipped_step_leaves_no_trace(make, monkeypatch, commits):
    """As a gradient scaler does on inf: no optimizer.step()."""
    calls = []

    def step(self, **kwargs):
        calls.append(1)
        if len(calls) != 1:
            self.optimizer.step(**kwargs)

    monkeypatch.setattr(OptimWrapper, 'step', step)
    runner = make()
    runner.train()
    assert len(calls) == 2
    assert [c[2].sum().item() for c in commits] == [5]
    assert loss_of(runner).statistics.pos_count.sum() == 5


@pytest.mark.parametrize('skipped', [False, True])
def test_optimizers_that_call_no_hooks(make, monkeypatch, commits, skipped):
    """torch.compile of torch 2.1 takes the hooks off all optimizers."""

    @torch.no_grad()
    def step(self):
        for weight in self.param_groups[0]['params']:
            weight -= 0.1 * weight.grad

    step.hooked = True  # as it says of itself that it calls them
    monkeypatch.setattr(torch.optim.SGD, 'step', step)
    calls = []

    def step_or_skip(self, **kwargs):
        calls.append(1)
        if len(calls) > skipped:
            self.optimizer.step(**kwargs)

    monkeypatch.setattr(OptimWrapper, 'step', step_or_skip)
    make().train()
    assert [c[2].sum().item() for c in commits] == ([5] if skipped else [5, 5])


@pytest.mark.parametrize('skipped', [False, True])
def test_a_model_that_is_compiled(make, commits, caplog, monkeypatch, skipped):
    runner = make(cfg=dict(compile=dict(backend='eager')))
    torch._dynamo.reset()
    if skipped:
        calls = []

        def step(self, **kwargs):
            calls.append(1)
            if len(calls) > 1:
                self.optimizer.step(**kwargs)

        monkeypatch.setattr(OptimWrapper, 'step', step)
    runner.train()
    assert [c[2].sum().item() for c in commits] == ([5] if skipped else [5, 5])
    assert 'commit_statistics' not in caplog.text


def test_optimizers_are_left_as_they_were(make):
    """Also where a scheduler of PyTorch has put its own around the step."""
    runner = make()
    wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.optim_wrapper, optimizer = wrapper, wrapper.optimizer
    before = optimizer.step
    runner.train()
    assert optimizer.step == before
    owner = _Owner([wrapper], [])
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    owner.release()
    owner.stepped = False
    optimizer.step()
    assert owner.stepped


@pytest.mark.parametrize('fused', [False, True])
def test_a_gradient_scaler_that_skips(make, commits, monkeypatch, fused):
    """The real one of PyTorch, on the CPU, with a gradient of inf.

    A fused optimizer is called all the same, and skips inside its kernel.
    """
    if not hasattr(torch.amp, 'GradScaler'):
        pytest.skip('this torch scales gradients on CUDA only')
    optimizer = dict(type='SGD', lr=0.1, **(dict(fused=True) if fused else {}))
    runner = make(optim_wrapper=dict(optimizer=optimizer))
    scaler = torch.amp.GradScaler('cpu', init_scale=2.0**16)
    weight, weights = runner.model.head.fc.weight, []

    def step(self, **kwargs):
        if not weights:
            weights.append(weight.detach().clone())
            for p in runner.model.parameters():
                p.grad.fill_(torch.inf)
        scaler.scale(torch.zeros(()))
        scaler.step(self.optimizer)
        scaler.update()
        weights.append(weight.detach().clone())

    monkeypatch.setattr(OptimWrapper, 'step', step)
    runner.train()
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
    assert [c[2].sum().item() for c in commits] == [5]


def test_several_optimizers_commit_together(make_runner, loader, commits):
    """One that steps in every iteration must not end the other's cycle."""

    class TwoSteps(MODELS.get('PlaneModel')):
        def train_step(self, data, optim_wrapper):
            loss = self(**data, mode='loss')['loss']
            for wrapper in optim_wrapper.values():
                wrapper.update_params(loss + 0 * self.head.fc.weight.sum())
                loss = self(**data, mode='loss')['loss']
            return dict(loss=loss)

    model = TwoSteps(dict(LOSS), 3)
    runner = make_runner(
        model=model,
        custom_hooks=[QUIET],
        train=dict(loader((4, 3, 1)), batch_size=2),
        optim_wrapper=OptimWrapperDict(
            often=OptimWrapper(torch.optim.SGD([model.head.fc.bias], lr=0.1)),
            rarely=OptimWrapper(
                torch.optim.SGD([model.head.fc.weight], lr=0.1),
                accumulative_counts=2,
            ),
        ),
    )
    runner.train()
    # Three passes an iteration, two images each, four iterations.
    assert [c[2].sum().item() for c in commits] == [12, 12]


class Adversaries(nn.Module):
    """A head, beside a discriminator with a loss of its own."""

    def __init__(self):
        super().__init__()
        self.generator = MODELS.get('PlaneModel')(dict(LOSS), 3).head
        self.discriminator = MODELS.get('PlaneModel')(dict(LOSS), 2).head
        for head in (self.generator, self.discriminator):
            head.loss_module.set_num_classes(head.num_classes)

    def forward(self, x, gt_label, mode='loss'):
        return dict(
            generator=self.generator.loss_module(self.generator(x), gt_label),
            discriminator=self.discriminator.loss_module(
                self.discriminator(x), gt_label.clamp(max=1)
            ),
        )


def adversaries(accumulate=1):
    """A model, and a wrapper for each of its halves."""
    model = Adversaries()
    return model, OptimWrapperDict(
        **{
            name: OptimWrapper(
                torch.optim.SGD(half.parameters(), lr=0.1),
                accumulative_counts=accumulate if name == 'generator' else 1,
            )
            for name, half in model.named_children()
        }
    )


def seen(model):
    return [
        int(half.loss_module.statistics.pos_count.sum())
        for half in model.children()
    ]


@pytest.fixture
def train_adversaries(make_runner):
    """Trains with the optimizers that take part in each iteration."""

    def run(schedule, accumulate=1):
        model, wrappers = adversaries(accumulate)
        turns, history = iter(schedule), []

        class Alternating(BaseModel):
            def __init__(self):
                super().__init__()
                self.both = model

            def forward(self, x, gt_label, mode='loss', **kwargs):
                return self.both(x, gt_label)

            def train_step(self, data, optim_wrapper):
                history.append(seen(self.both))
                losses = self(**self.data_preprocessor(data))
                for name in next(turns):
                    optim_wrapper[name].update_params(losses[name])
                return {}

        # It trains a copy of the model.
        runner = make_runner(
            model=Alternating(),
            custom_hooks=[QUIET],
            optim_wrapper=wrappers,
            train_cfg=dict(by_epoch=False, max_iters=len(schedule)),
            val_dataloader=False,
            val_cfg=False,
            val_evaluator=False,
        )
        runner.train()
        return [*history, seen(runner.model.both)][1:]

    return run


def test_each_optimizer_commits_for_its_own_model(train_adversaries):
    """Five rows an iteration, which both halves see."""
    both = ('generator', 'discriminator')
    assert train_adversaries([both] * 2) == [[5, 5], [10, 10]]
    # What was due and did not come is dropped, as a skipped step is.
    assert train_adversaries(
        [('discriminator',), ('discriminator',), both, ('generator',)]
    ) == [[0, 5], [0, 10], [5, 15], [10, 15]]


def test_a_discriminator_does_not_end_the_cycle_of_the_generator(
    train_adversaries,
):
    """The generator accumulates gradients of two iterations."""
    both = ('generator', 'discriminator')
    assert train_adversaries([both] * 4, accumulate=2) == [
        [0, 5],
        [10, 10],
        [10, 15],
        [20, 20],
    ]


def test_flattened_parameters_belong_to_all_optimizers():
    """Some engines train copies, from which the model is written."""
    model, wrappers = adversaries()
    for wrapper in wrappers.values():
        for group in wrapper.optimizer.param_groups:
            group['params'] = [p.detach().clone() for p in group['params']]
    (owner,) = _owners(model, wrappers, list(statistics_modules(model)))
    assert owner.wrappers == list(wrappers.values())
    assert len(owner.statistics) == 2


def test_steps_of_an_unknown_optimizer_commit_nothing(make, commits):
    """Of a meta learner, or of another model: the loss's own never steps."""
    runner = make()
    weight = nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    other = torch.optim.SGD([weight], lr=0.1)

    class Elsewhere(Hook):
        priority = 54

        def after_train_iter(self, *args, **kwargs):
            other.step()

    runner.register_hook(Elsewhere())
    runner.optim_wrapper = OptimWrapper(
        torch.optim.SGD(runner.model.parameters(), lr=0.1)
    )
    runner.optim_wrapper.step = lambda **kwargs: None
    runner.train()
    assert weight.item() < 0.9
    assert not commits and not loss_of(runner).statistics.sums.any()


def test_wrappers_of_other_engines_do_not_tell(commits):
    """Whether a step was due; the optimizer in it tells whether it was."""
    weight = nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    sums = RunningStatistics(['a'], 2)
    owner = _Owner([SimpleNamespace(optimizer=optimizer)], [sums])
    sums.pending += 1
    owner.commit()
    assert not commits and sums.pending.any()
    optimizer.step()
    owner.commit()
    assert [c.tolist() for c in commits] == [[[1, 1]]]
    owner.release()
    optimizer.step()
    owner.commit()
    assert len(commits) == 1


def test_without_an_optimizer_each_iteration_is_a_step(commits):
    owner = _Owner([object()], [RunningStatistics(['a'], 2)])
    owner.commit()
    assert len(commits) == 1


def test_statistics_are_resumed_exactly(make, tmp_path):
    whole = make(train_cfg=dict(by_epoch=True, max_epochs=3))
    whole.train()
    first = make(
        train_cfg=dict(by_epoch=True, max_epochs=2),
        work_dir=str(tmp_path / 'b'),
    )
    first.train()
    second = make(
        train_cfg=dict(by_epoch=True, max_epochs=3),
        work_dir=str(tmp_path / 'b'),
        resume=True,
    )
    second.train()
    assert_close(state_of(second), state_of(whole), rtol=0, atol=0)
    assert loss_of(second).statistics.pos_count.tolist() == [18, 9, 3]


@pytest.mark.parametrize('keep', [False, True])
def test_fine_tuning_starts_anew(make, tmp_path, log, keep):
    make().train()
    tuned = make(
        hook=dict(keep_on_load=keep),
        load_from=str(tmp_path / 'epoch_1.pth'),
        work_dir=str(tmp_path / 'b'),
    )
    tuned.train()
    assert loss_of(tuned).statistics.pos_count.tolist() == [
        n * (1 + keep) for n in (6, 3, 1)
    ]
    assert len(messages(log, 'are dropped')) == (not keep)


@pytest.mark.parametrize('how', ['init_cfg', 'load_checkpoint'])
def test_statistics_that_come_with_weights_are_dropped(
    make, tmp_path, log, how
):
    make().train()
    path = str(tmp_path / 'epoch_1.pth')
    tuned = make(work_dir=str(tmp_path / 'b'))
    if how == 'init_cfg':
        tuned.model.init_cfg = dict(type='Pretrained', checkpoint=path)
    else:
        tuned.load_checkpoint(path)
    tuned.train()
    assert loss_of(tuned).statistics.pos_count.tolist() == [6, 3, 1]
    assert len(messages(log, 'are dropped')) == 1


def test_a_look_at_the_loss_before_training_is_not_counted(make):
    runner = make(dict(num_classes=3))
    loss_of(runner)(torch.zeros(3, 3, requires_grad=True), torch.arange(3))
    runner.train()
    assert loss_of(runner).statistics.pos_count.tolist() == [6, 3, 1]


def test_a_loss_that_is_never_called_is_told_once(make_runner, log):

    class Deaf(MODELS.get('PlaneModel')):
        def forward(self, x, gt_label, mode='tensor', **kwargs):
            logits = self.head(x)
            if mode == 'loss':
                return dict(loss=logits.square().mean())
            return list(logits)

    make_runner(
        model=Deaf(dict(LOSS), 3),
        custom_hooks=[dict(QUIET, interval=1)],
        train_cfg=dict(by_epoch=True, max_epochs=2),
    ).train()
    (told,) = messages(log, 'has seen no positive sample')
    assert 'head.loss_module' in told and 'SigmoidEqualizationLoss' in told


def test_resuming_with_other_classes_is_an_error(make, loader, tmp_path):
    make().train()
    other = make(
        num_classes=4,
        train=loader((4, 3, 2, 1)),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        resume=True,
    )
    with pytest.raises(
        ValueError,
        match=r'head.loss_module.*num_classes=4, expected 3.*resume',
    ):
        other.train()


def test_fine_tuning_for_other_classes_goes_on(make, loader, tmp_path):
    make().train()
    other = make(
        num_classes=4,
        train=loader((4, 3, 2, 1)),
        load_from=str(tmp_path / 'epoch_1.pth'),
        work_dir=str(tmp_path / 'b'),
    )
    other.train()
    assert loss_of(other).statistics.pos_count.tolist() == [4, 3, 2, 1]


@pytest.mark.parametrize('update_buffers', [False, True])
def test_averaging_of_weights_leaves_statistics_alone(
    make_runner, make, tmp_path, update_buffers
):
    plain = make(train_cfg=dict(by_epoch=True, max_epochs=2))
    plain.train()
    averaged = make_runner(
        LOSS,
        custom_hooks=[
            dict(QUIET),
            dict(type='EMAHook', momentum=0.5, update_buffers=update_buffers),
        ],
        train_cfg=dict(by_epoch=True, max_epochs=2, val_interval=1),
        work_dir=str(tmp_path / 'b'),
    )
    averaged.train()
    value = state_of(plain)
    assert value.any()
    saved = torch.load(tmp_path / 'b' / 'epoch_2.pth', weights_only=False)
    key = 'head.loss_module.statistics.sums'
    for found in (
        state_of(averaged),
        saved['state_dict'][key],
        saved['ema_state_dict'][f'module.{key}'],
    ):
        assert_close(found, value, rtol=0, atol=0)


@pytest.mark.parametrize('update_buffers', [False, True])
def test_averaging_of_weights_resumes_exactly(
    make_runner, tmp_path, update_buffers
):
    def run(folder, epochs, **kwargs):
        runner = make_runner(
            LOSS,
            custom_hooks=[
                dict(QUIET),
                dict(
                    type='EMAHook',
                    momentum=0.5,
                    update_buffers=update_buffers,
                ),
            ],
            train_cfg=dict(by_epoch=True, max_epochs=epochs),
            work_dir=str(tmp_path / folder),
            **kwargs,
        )
        runner.train()
        return runner

    whole = run('a', 3)
    run('b', 2)
    resumed = run('b', 3, resume=True)
    assert_close(state_of(resumed), state_of(whole), rtol=0, atol=0)


def test_validation_and_test_change_nothing(make):
    runner = make()
    runner.train()
    before = state_of(runner)
    runner.val()
    assert_close(state_of(runner), before, rtol=0, atol=0)


def test_health_log(make, log):
    make(
        hook=dict(interval=1), train_cfg=dict(by_epoch=True, max_epochs=1)
    ).train()
    # Two iterations, the second of which ends the epoch.
    told = messages(log, 'gradient ratio')
    assert len(told) == 2
    assert 'head.loss_module' in told[0]
    for word in ('min', 'median', 'max', 'at the clamp', 'never seen'):
        assert word in told[0]
    # Only the first class is in the first batch.
    assert '66.7% never seen positive' in told[0]
    assert '0.0% never seen positive' in told[-1]


@pytest.mark.parametrize('counts', [(6, 3, 1), (6, 3, 1, 0)], ids=str)
def test_a_loss_that_does_nothing_is_told_once(
    make_runner, loader, log, counts
):
    """All ratios at 1: Equalized Focal Loss is the focal loss.

    A class without samples has ratio 0, and says nothing about the method.
    """
    runner = make_runner(
        dict(
            type='lt_losses_mm.EqualizedFocalLoss',
            # Positives alone have gradients: everything starts at p = 0.
            bias_prior=1e-6,
        ),
        num_classes=len(counts),
        train=loader(counts),
        val_dataloader=False,
        val_cfg=False,
        val_evaluator=False,
        custom_hooks=[dict(QUIET, interval=1)],
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)),
    )
    runner.train()
    (told,) = messages(log, 'treats all classes as')
    assert 'EqualizedFocalLoss' in told and 'plain focal loss' in told


def test_scalars_reach_the_visualizer_and_the_checkpoint(make, tmp_path):
    runner = make(hook=dict(interval=1))
    runner.train()
    (file,) = tmp_path.glob('*/vis_data/scalars.json')
    text = file.read_text()
    saved = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)
    for group in ('head', 'body', 'tail'):
        key = f'statistics/head.loss_module/ratio_{group}'
        assert key in text
        assert key in saved['message_hub']['log_scalars']


def test_a_picture_every_epoch(make, tmp_path):
    make(
        hook=dict(draw=True), train_cfg=dict(by_epoch=True, max_epochs=2)
    ).train()
    found = sorted(p.name for p in tmp_path.glob('*/vis_data/vis_image/*.png'))
    assert found == [
        'gradient_ratio.head.loss_module_2.png',
        'gradient_ratio.head.loss_module_4.png',
    ]


def test_a_picture_every_validation_of_a_loop_without_epochs(make, tmp_path):
    make(
        hook=dict(draw=True),
        train_cfg=dict(by_epoch=False, max_iters=4, val_interval=2),
    ).train()
    assert len(list(tmp_path.glob('*/vis_data/vis_image/*.png'))) == 2


def test_models_without_statistics_are_left_alone(make_runner, log, tmp_path):
    make_runner(custom_hooks=[dict(QUIET, interval=1, draw=True)]).train()
    assert not messages(log, 'gradient ratio')
    assert not list(tmp_path.glob('*/vis_data/vis_image/*.png'))


@pytest.mark.parametrize('interval', [-1, 1.5, None])
def test_interval_is_checked(interval):
    with pytest.raises(ValueError, match='interval=.*int >= 0'):
        StatisticsHook(interval=interval)
