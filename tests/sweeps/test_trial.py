"""Trials of a plan: their configs, and what their key depends on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lt_losses_mm.recipes import losses
from lt_losses_mm.sweeps import origin, worker
from lt_losses_mm.sweeps.plan import Plan, PlanError
from lt_losses_mm.sweeps.trial import trials_of

DIGITS = (
    'lt_losses_mm::classification/digits/'
    'resnet18-c16_1xb64-20e-cross-entropy_digits-lt.py'
)
OWN = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    head=dict(
        type='LinearClsHead', num_classes=3, in_channels=4,
        loss=dict(type='CrossEntropyLoss'),
    ),
)
train_dataloader = dict(
    dataset=dict(type='CustomDataset', data_root='DATA', ann_file='train.txt')
)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
"""


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Trials of a plan that is given as text, by their names."""
    monkeypatch.chdir(tmp_path)
    data = tmp_path / 'data'
    data.mkdir()
    (data / 'train.txt').write_text('a.png 0\n')
    Path('own.py').write_text(OWN.replace('DATA', str(data)))

    def make(more='', methods='[cross_entropy, balanced_softmax]', task=''):
        Path('plan.yaml').write_text(
            f'name: p\nseeds: [0, 1]\nmethods: {methods}\ntasks:\n'
            f'  own:\n    config: own.py\n    metrics: {{overall: a/b}}\n'
            f'{task}{more}'
        )
        plan = Plan('plan.yaml', losses())
        trials, _ = trials_of(plan, Path('sweep'))
        return {str(trial): trial for trial in trials}

    return make


def test_a_loss_takes_its_place_in_any_config(make):
    trials = make()
    assert list(trials) == [
        f'own/{method}/{seed}'
        for seed in (0, 1)
        for method in ('cross_entropy', 'balanced_softmax')
    ]
    # The own loss of a config stays as it is there.
    own = trials['own/cross_entropy/0'].config()
    assert own.model.head.loss == dict(type='CrossEntropyLoss')
    loss = trials['own/balanced_softmax/1'].config().model.head.loss
    assert loss == dict(
        type='lt_losses_mm.BalancedSoftmaxLoss', loss_weight=1.0
    )
    assert trials['own/balanced_softmax/1'].config().randomness.seed == 1


def test_all_is_what_fits(make):
    trials = make(methods='all')
    found = {trial.method for trial in trials.values()}
    assert {'cross_entropy', 'vs', 'seesaw'} <= found
    assert not found & {'focal', 'quality_focal', 'equalized_quality_focal'}


def test_a_recipe_has_the_loss_from_its_bases(make):
    trials = make(
        f'  digits:\n    config: {DIGITS}\n    metrics: {{overall: a/b}}\n'
    )
    cfg = trials['digits/balanced_softmax/0'].config()
    assert cfg.model.head.loss.type == 'lt_losses_mm.BalancedSoftmaxLoss'
    assert 'lt_loss' not in cfg


def test_options_of_task_method_and_both(make):
    trials = make(
        'define:\n'
        '  tau: {loss: balanced_softmax, grid: {loss.tau: [0.5, 2]}}\n'
        '  post:\n'
        '    needs: {load_from: cross_entropy}\n'
        '    test: true\n'
        '    hooks: [{type: lt_losses_mm.PostHocLogitAdjustmentHook}]\n',
        '[cross_entropy, tau, post]',
        '    options: {optim_wrapper.optimizer.lr: 0.2}\n'
        '    overrides:\n'
        '      cross_entropy: {options: {optim_wrapper.optimizer.lr: 1e-3}}\n',
    )
    half = trials['own/tau[tau=0.5]/0'].config()
    assert half.model.head.loss.tau == 0.5
    assert half.optim_wrapper.optimizer.lr == 0.2
    assert trials['own/tau[tau=2]/0'].config().model.head.loss.tau == 2
    plain = trials['own/cross_entropy/0']
    assert plain.config().optim_wrapper.optimizer.lr == 1e-3
    post = trials['own/post/0']
    assert list(post.needed) == [plain]
    assert post.test
    hook = dict(type='lt_losses_mm.PostHocLogitAdjustmentHook')
    assert post.config().custom_hooks == [hook]
    assert 'own/cross_entropy/0' in post.config().load_from
    plain.folder.mkdir(parents=True)
    (plain.folder / worker.DONE).write_text('{"checkpoint": "/a/epoch_9.pth"}')
    assert post.config().load_from == '/a/epoch_9.pth'


def test_several_teachers(make):
    trials = make(
        'define:\n  student: {needs: {model.teachers: [cross_entropy, vs]}}\n',
        '[cross_entropy, student]',
    )
    # `vs` is trained because it is needed.
    assert 'own/vs/1' in trials
    assert [str(t) for t in trials['own/student/1'].needed] == [
        'own/cross_entropy/1',
        'own/vs/1',
    ]
    assert len(trials['own/student/1'].config().model.teachers) == 2


def keys(trials):
    return {name: trial.key for name, trial in trials.items()}


def changed(before, after):
    return {name for name in before if before[name] != after[name]}


def test_what_a_key_depends_on(make, tmp_path):
    before = keys(make())
    assert len(set(before.values())) == 4
    assert keys(make()) == before
    # Nothing that is said of the plan, or where it lies.
    assert keys(make('budget: {hours: 3}\n')) == before
    lr = keys(make(task='    options: {optim_wrapper.optimizer.lr: 0.3}\n'))
    assert changed(before, lr) == set(before)
    one = keys(
        make('define: {balanced_softmax: {options: {loss.tau: 0.5}}}\n')
    )
    assert changed(before, one) == {
        f'own/balanced_softmax/{seed}' for seed in (0, 1)
    }
    (tmp_path / 'data' / 'train.txt').write_text('a.png 1\n')
    assert changed(before, keys(make())) == set(before)


def test_a_stage_changes_with_the_one_before(make):
    more = 'define: {second: {needs: {load_from: balanced_softmax}}}\n'
    methods = '[balanced_softmax, second]'
    before = keys(make(more, methods))
    after = keys(
        make(
            more.replace(
                '{second',
                '{balanced_softmax: {options: {loss.tau: 2}}, second',
            ),
            methods,
        )
    )
    assert changed(before, after) == set(before)


def test_code_without_comments(tmp_path, monkeypatch):
    """A loss has a digest of its own; comments and docstrings have none."""
    package = tmp_path / 'lt_losses_mm'
    losses = package / 'losses'
    for room in (*origin.ROOMS, *origin.LOSS_ROOMS):
        (package / room).mkdir(parents=True)
    (losses / '__init__.py').write_text(
        'from .one import One\nfrom .two import Two\n'
        'LOSSES: tuple = (One, Two)\n'
    )
    for name in ('one', 'two', 'base'):
        (losses / f'{name}.py').write_text('"""Doc."""\n\nX = 1  # kept\n')
    monkeypatch.setattr(origin, 'PACKAGE', package)
    origin.loss_modules.cache_clear()
    try:
        before = origin.code(['one'])
        assert 'two' not in before
        assert origin.changed(before) == []
        (losses / 'one.py').write_text('"""D."""\n# New.\n\n\nX = 1  # kept\n')
        (losses / 'two.py').write_text('X = 2\n')
        assert origin.changed(before) == []
        (losses / 'one.py').write_text('"""D."""\nX = 3  # kept\n')
        assert origin.changed(before) == ['losses/one']
        (losses / 'base.py').write_text('X = 3\n')
        assert origin.changed(before) == ['losses', 'losses/one']
        # Without a loss of the package the rooms of losses do not count.
        assert 'kernels' not in origin.code([])
    finally:
        origin.loss_modules.cache_clear()


def test_the_folder_of_a_trial(make):
    trial = make()['own/balanced_softmax/0']
    trial.prepare(['a/b'])
    told = json.loads((trial.folder / worker.TRIAL).read_text())
    assert told['train'][-3:] == [
        str(trial.folder / '.config' / 'as_trained.py'),
        '--work-dir',
        str(trial.folder),
    ]
    assert told['metrics'] == ['a/b']
    assert told['checkpoint'] == ''
    text = (trial.folder / 'config.py').read_text()
    assert 'lt_losses_mm.BalancedSoftmaxLoss' in text


def test_counts_of_another_number_of_classes(make):
    with pytest.raises(PlanError, match='plan.yaml:') as error:
        make('define: {vs: {options: {loss.class_counts: [1, 2]}}}', '[vs]')
    assert "class_counts='2 counts', expected 3, as many" in str(error.value)
