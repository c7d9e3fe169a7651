"""What a plan may say, and the one sentence on each mistake."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lt_losses_mm.recipes import losses
from lt_losses_mm.sweeps.plan import Plan, PlanError
from lt_losses_mm.sweeps.trial import command_of, trials_of

ROOT = Path(__file__).resolve().parents[2]
CLASSIFICATION = (
    'lt_losses_mm::classification/digits/'
    'resnet18-c16_1xb64-20e-cross-entropy_digits-lt.py'
)
PLAN = """\
name: toy
seeds: [0, 1]
methods: [plain, higher, later]
tasks:
  first:
    config: config.py
    metrics: {overall: accuracy/all, tail: accuracy/few}
    baseline: plain
define:
  plain: {}
  higher: {options: {lr: 0.2}}
  later: {needs: {load_from: plain}, test: true}
"""
DIGITS = f"""\
name: digits
seeds: [0]
methods: [cross_entropy, balanced_softmax]
tasks:
  first:
    config: {CLASSIFICATION}
    metrics: {{overall: accuracy/all, tail: accuracy/few}}
"""
SEARCH = """\
search:
  method: balanced_softmax
  parameters:
    loss.tau: {low: 0.25, high: 2.0}
  trials: 2
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'config.py').write_text('lr = 0.1\nmodel = dict()\n')
    return tmp_path


def built(folder, text):
    """A plan, and its trials."""
    path = folder / 'plan.yaml'
    path.write_text(text)
    plan = Plan(path, losses())
    return plan, trials_of(plan, folder / 'work')[0]


def refused(folder, text):
    """``LINE: KEY=VALUE, expected ...`` of a plan."""
    with pytest.raises(PlanError) as caught:
        built(folder, text)
    said = str(caught.value)
    assert '\n' not in said
    assert said.startswith(f'{folder / "plan.yaml"}:')
    return said.removeprefix(f'{folder / "plan.yaml"}:')


# What is replaced, by what, and what is said of it: line, key and value at
# its beginning, and words that follow.
MISTAKES = {
    'unknown key': (
        'seeds:',
        'seed:',
        '2: seed=[0, 1], expected one of the keys name, seeds,',
        'Fix: write seeds.',
    ),
    'unknown key of a task': (
        'baseline: plain',
        'basline: plain',
        "8: tasks.first.basline='plain', expected one of the keys config,",
        'Fix: write baseline.',
    ),
    'unknown key of a method': (
        'test: true',
        'tests: true',
        '12: define.later.tests=True, expected one of the keys loss,',
        'Fix: write test.',
    ),
    'key like no other': (
        'baseline: plain',
        'x: plain',
        "8: tasks.first.x='plain', expected one of the keys",
        'Fix: take it out.',
    ),
    'missing key': (
        'seeds: [0, 1]\n',
        '',
        '1: seeds=None, expected a list of different whole numbers',
        'Fix: add the key seeds.',
    ),
    'missing key of a task': (
        '    config: config.py\n',
        '',
        '5: tasks.first.config=None, expected path of a config',
        'Fix: add the key config.',
    ),
    'missing metric': (
        'overall: accuracy/all, ',
        '',
        '7: tasks.first.metrics.overall=None, expected a key of the log',
        'Fix: add the key overall.',
    ),
    'wrong type': (
        'seeds: [0, 1]',
        'seeds: 2',
        '2: seeds=2, expected a list of different whole numbers',
        '[0, 1, 2]',
    ),
    'wrong type in a list': (
        'seeds: [0, 1]',
        'seeds: [0, one]',
        "2: seeds.1='one', expected a whole number, 0 or more",
        '',
    ),
    'the same seed twice': (
        'seeds: [0, 1]',
        'seeds: [1, 1]',
        '2: seeds=[1, 1], expected a list of different whole numbers',
        '',
    ),
    'seed with a point': (
        'seeds: [0, 1]',
        'seeds: [1.0]',
        '2: seeds.0=1.0, expected a whole number, 0 or more',
        '',
    ),
    'a method twice in a long list': (
        'methods: [plain, higher, later]',
        'methods: [a, b, c, d, e, f, g, plain, higher, plain]',
        '3: methods=[',
        'that "define" has, or all; \'plain\' is there twice',
    ),
    'option below a number': (
        'lr: 0.2',
        'lr.x: 0.2',
        '11: define.higher.options.lr.x=0.2, expected a key of the config, '
        "which has no 'x' in lr.x",
        '',
    ),
    'loss of a config without a model': (
        'lr: 0.2',
        'loss.tau: 0.2',
        '11: define.higher.options.loss.tau=0.2, expected a config whose '
        'model has a head with a loss, but: ',
        '',
    ),
    'wrong type of a flag': (
        'test: true',
        'test: 1',
        '12: define.later.test=1, expected true, if the checkpoint',
        '',
    ),
    'no task': (
        PLAN[PLAN.index('tasks:') : PLAN.index('define:')],
        'tasks: {}\n',
        '4: tasks={}, expected at least one entry',
        '',
    ),
    'name with a slash': (
        'name: toy',
        'name: a/b',
        "1: name='a/b', expected a word of letters, digits",
        '',
    ),
    'name of a task': (
        '  first:',
        '  "a b":',
        "5: tasks.a b='a b', expected a word of letters, digits",
        '',
    ),
    'empty method': (
        'plain: {}',
        'plain:',
        '10: define.plain=None, expected a method: loss, options,',
        '',
    ),
    'doubled key': (
        'seeds: [0, 1]',
        'seeds: [0]\nseeds: [1]',
        "3: plan='seeds: [1]', expected YAML, but: the key 'seeds' is there "
        'twice',
        'Fix: take one of them out.',
    ),
    'tab': (
        '    config: config.py',
        '\tconfig: config.py',
        "6: plan='config: config.py', expected YAML, but: found character "
        "'\\t'",
        '',
    ),
    'bracket': (
        'seeds: [0, 1]',
        'seeds: [0, 1',
        "3: plan='methods: [plain, higher, later]', expected YAML, but: ",
        "expected ',' or ']', but got",
    ),
    'reference to nothing': (
        'config: config.py',
        'config: *other',
        "6: plan='config: *other', expected YAML, but:",
        "undefined alias 'other'",
    ),
    'unknown method': (
        '[plain, higher,',
        '[plain, highest,',
        "3: methods.1='highest', expected one of",
        'Fix: write higher.',
    ),
    'unknown loss': (
        'plain: {}',
        'plain: {loss: balanced_sofmax}',
        "10: define.plain.loss='balanced_sofmax', expected one of",
        'Fix: write balanced_softmax.',
    ),
    'unknown baseline': (
        'baseline: plain',
        'baseline: cross_entropy',
        "8: tasks.first.baseline='cross_entropy', expected one of plain, "
        'higher, later',
        '',
    ),
    'override of another method': (
        'baseline: plain',
        'overrides: {vs: {options: {lr: 1}}}',
        "8: tasks.first.overrides.vs='vs', expected one of plain, higher, "
        'later',
        '',
    ),
    'need of nothing': (
        'load_from: plain',
        'load_from: plian',
        "12: define.later.needs.load_from='plian', expected one of",
        'Fix: write plain.',
    ),
    'need of itself': (
        'load_from: plain',
        'load_from: later',
        "12: define.later.needs.load_from='later', expected one of",
        '',
    ),
    'circle': (
        'plain: {}',
        'plain: {needs: {load_from: later}}',
        "12: define.later.needs='plain', expected no circle, got "
        'plain -> later -> plain',
        '',
    ),
    'test of nothing': (
        'needs: {load_from: plain}, test',
        'test',
        '12: define.later.test=True, expected a checkpoint to test',
        'Fix: add needs: {load_from: METHOD}.',
    ),
    'too many trials': (
        'define:',
        'budget: {trials: 5}\ndefine:',
        '9: budget.trials=5, expected at least 6, the trials of this plan',
        'Fix: raise it, or exclude some.',
    ),
    'no hours': (
        'define:',
        'budget: {hours: 0}\ndefine:',
        '9: budget.hours=0, expected hours after which no trial is started',
        '',
    ),
    'missing config': (
        'config: config.py',
        'config: confg.py',
        "6: tasks.first.config='confg.py', expected a file, and there is no",
        'confg.py',
    ),
    'missing config of the package': (
        'config: config.py',
        'config: lt_losses_mm::confg.py',
        "6: tasks.first.config='lt_losses_mm::confg.py', expected a file",
        '',
    ),
    'missing config of a method': (
        'baseline: plain',
        'overrides: {higher: {config: other.py}}',
        "8: tasks.first.overrides.higher.config='other.py', expected a file",
        '',
    ),
    'option of no place': (
        'lr: 0.2',
        'optimizer.lr: 0.2',
        '11: define.higher.options.optimizer.lr=0.2, expected a key of the '
        "config, which has no 'optimizer'",
        '',
    ),
    'option of no place in a task': (
        'baseline: plain',
        'options: {optimizer.lr: 0.2}',
        '8: tasks.first.options.optimizer.lr=0.2, expected a key of the ',
        '',
    ),
    'option of no place in an override': (
        'baseline: plain',
        'overrides: {plain: {options: {optimizer.lr: 1}}}',
        '8: tasks.first.overrides.plain.options.optimizer.lr=1, expected a ',
        '',
    ),
    'option of no place in a grid': (
        'higher: {options: {lr: 0.2}}',
        'higher:\n    options: {lr: 0.2}\n    grid: {optimizer.lr: [1, 2]}',
        '13: define.higher.grid.optimizer.lr=1, expected a key of the config',
        '',
    ),
    'empty grid': (
        'options: {lr: 0.2}',
        'grid: {lr: []}',
        '11: define.higher.grid.lr=[], expected a list of values',
        '',
    ),
    'excluded by a wrong key': (
        'define:',
        'exclude: [{tsk: first}]\ndefine:',
        "9: exclude.0.tsk='first', expected one of the keys task,",
        'Fix: write task.',
    ),
    'excluded, but not there': (
        'define:',
        'exclude: [{task: frist}]\ndefine:',
        "9: exclude.0.task='frist', expected one of first",
        'Fix: write first.',
    ),
    'excluded method, but not there': (
        'define:',
        'exclude: [{method: highr}]\ndefine:',
        "9: exclude.0.method='highr', expected one of",
        'Fix: write higher.',
    ),
    'nothing left': (
        'define:',
        'exclude: [{task: first}]\ndefine:',
        '3: methods=[',
        'expected a method that a task takes and no rule excludes',
    ),
    'one of a grid as baseline': (
        'plain: {}',
        'plain: {grid: {lr: [1, 2]}}',
        "8: tasks.first.baseline='plain', expected one of plain[lr=1], ",
        "Fix: write one of its points, e.g. 'plain[lr=1]'.",
    ),
    'override of what a grid sets': (
        '    baseline: plain\ndefine:\n  plain: {}\n',
        '    overrides: {plain: {options: {lr: 3}}}\ndefine:\n'
        '  plain: {grid: {lr: [1, 2]}}\n',
        '8: tasks.first.overrides.plain.options.lr=3, expected a key that '
        'the grid of plain has not',
        'Fix: take it out here or there.',
    ),
    'excluded point, but not there': (
        'define:',
        "exclude: [{method: 'higher[lr=0.3]'}]\ndefine:",
        "9: exclude.0.method='higher[lr=0.3]', expected one of",
        '',
    ),
    'hook without a type': (
        'plain: {}',
        'plain: {hooks: [{tau: 1}]}',
        '10: define.plain.hooks.0.type=None, expected the name of a hook',
        'Fix: add the key type.',
    ),
    'GPUs that are no number': (
        'baseline: plain',
        'gpus: all',
        "8: tasks.first.gpus='all', expected a number of GPUs",
        '',
    ),
}


@pytest.mark.parametrize('name', MISTAKES)
def test_a_mistake_is_one_sentence(folder, name):
    old, new, begins, has = MISTAKES[name]
    assert PLAN.count(old) == 1
    said = refused(folder, PLAN.replace(old, new))
    assert re.match(r'\d+: ', said)
    assert said.startswith(begins)
    assert has in said


@pytest.mark.parametrize(
    'text, begins',
    {
        'empty': ('', '1: plan=None, expected a plan: name, seeds,'),
        'comments': ('# nothing', '1: plan=None, expected a plan: name,'),
        'list': ('- 1\n- 2\n', '1: plan=[1, 2], expected a plan: name,'),
        'word': ('hello', "1: plan='hello', expected a plan: name, seeds,"),
    }.values(),
)
def test_no_plan_at_all(folder, text, begins):
    assert refused(folder, text).startswith(begins)


def test_no_file(folder):
    with pytest.raises(PlanError, match='expected a YAML file in UTF-8'):
        Plan(folder / 'nothing.yaml', losses())
    (folder / 'latin.yaml').write_bytes(b'name: \xe4')
    with pytest.raises(PlanError, match='expected a YAML file in UTF-8'):
        Plan(folder / 'latin.yaml', losses())


LOSS_MISTAKES = {
    'parameter that the loss of the host has not': (
        '    options: {loss.tau: 2}\n',
        '8: tasks.first.options.loss.tau=2, expected a parameter of '
        'CrossEntropyLoss, the loss of cross_entropy, which are use_sigmoid, ',
    ),
    'counts of other classes': (
        '    options: {loss.class_counts: [1, 2]}\n    methods: '
        '[balanced_softmax]\n',
        '8: tasks.first.options.loss.class_counts=[1, 2], expected what the '
        "loss takes, but: BalancedSoftmaxLoss: class_counts='2 counts', "
        'expected 40',
    ),
    'parameter of another loss': (
        '    options: {loss.gamma: 2}\n    methods: [balanced_softmax]\n',
        '8: tasks.first.options.loss.gamma=2, expected a parameter of '
        'BalancedSoftmaxLoss, which are num_classes, class_counts, tau,',
    ),
    'value that the loss refuses': (
        'define:\n  balanced_softmax: {options: {loss.tau: -1}}\n',
        '9: define.balanced_softmax.options.loss.tau=-1, expected what the '
        'loss takes, but: BalancedSoftmaxLoss: tau=-1, expected',
    ),
    'value of a grid that the loss refuses': (
        'define:\n  balanced_softmax: {grid: {loss.tau: [1, -1]}}\n',
        '9: define.balanced_softmax.grid.loss.tau=-1, expected what the '
        'loss takes, but: BalancedSoftmaxLoss: tau=-1, expected',
    ),
    'loss that the head does not take': (
        '    methods: [cross_entropy, equalized_quality_focal]\n',
        "8: tasks.first.methods.1='equalized_quality_focal', expected "
        'methods whose loss the head of lt_losses_mm::classification',
    ),
}


@pytest.mark.parametrize('name', LOSS_MISTAKES)
def test_what_a_loss_does_not_take(folder, name):
    if 'host' in name:
        pytest.importorskip('mmpretrain')
    lines, begins = LOSS_MISTAKES[name]
    assert refused(folder, DIGITS + lines).startswith(begins)


SEARCH_MISTAKES = {
    'unknown method': (
        'method: balanced_softmax',
        'method: balanced_sofmax',
        "9: search.method='balanced_sofmax', expected one of",
        'Fix: write balanced_softmax.',
    ),
    'low above high': (
        'low: 0.25',
        'low: 3',
        '11: search.parameters.loss.tau.low=3, expected less than high, 2.0',
        '',
    ),
    'logarithm of nothing': (
        'low: 0.25',
        'log: true, low: 0',
        '11: search.parameters.loss.tau.low=0, expected more than 0, because '
        'log is true',
        'Fix: raise it, or take log out.',
    ),
    'no end': (
        'low: 0.25, ',
        '',
        "11: search.parameters.loss.tau={'high': 2.0}, expected a list of "
        'values, or {low:',
        '',
    ),
    'one number': (
        '{low: 0.25, high: 2.0}',
        '0.5',
        '11: search.parameters.loss.tau=0.5, expected a list of values, or',
        '',
    ),
    'unknown key': (
        'trials: 2',
        'trails: 2',
        '12: search.trails=2, expected one of the keys method, parameters,',
        'Fix: write trials.',
    ),
    'metric of no task': (
        'trials: 2',
        'trials: 2\n  metric: head',
        '7: tasks.first.metrics.head=None, expected the metric that the '
        'search compares',
        'Fix: add the key head, or another metric to search.',
    ),
    'no metric': (
        'trials: 2',
        'trials: 2\n  metric: best',
        "13: search.metric='best', expected the metric that shall be high: "
        'tail,',
        '',
    ),
    'parameter of another loss': (
        'loss.tau',
        'loss.gamma',
        '11: search.parameters.loss.gamma=0.25, expected a parameter of '
        'BalancedSoftmaxLoss, which are num_classes, class_counts, tau,',
        'Fix: name one of them.',
    ),
    'value that the loss refuses': (
        'low: 0.25',
        'low: -1.0',
        '11: search.parameters.loss.tau=-1.0, expected what the loss takes, ',
        '',
    ),
    'no head takes it': (
        'method: balanced_softmax',
        'method: equalized_quality_focal',
        "9: search.method='equalized_quality_focal', expected a method that "
        'a head of first takes',
        '',
    ),
}


@pytest.mark.parametrize('name', SEARCH_MISTAKES)
def test_a_mistake_of_a_search(folder, name):
    pytest.importorskip('optuna')
    from lt_losses_mm.sweeps.search import Search

    old, new, begins, has = SEARCH_MISTAKES[name]
    assert SEARCH.count(old) == 1
    path = folder / 'plan.yaml'
    path.write_text(DIGITS + SEARCH.replace(old, new))
    with pytest.raises(PlanError) as caught:
        Search(
            Plan(path, losses()),
            folder / 'work',
            ['first'],
            folder / 'ledger.csv',
        )
    said = str(caught.value).removeprefix(f'{path}:')
    assert said.startswith(begins)
    assert has in said


def test_a_search_that_the_plan_has_not(folder, sweep_tool):
    (folder / 'plan.yaml').write_text(PLAN)
    with pytest.raises(SystemExit, match='search=None, expected method, par'):
        sweep_tool('search', folder / 'plan.yaml')


@pytest.mark.slow
@pytest.mark.parametrize(
    'path',
    sorted((ROOT / 'benchmarks' / 'sweeps').glob('*.yaml')),
    ids=lambda path: path.stem,
)
def test_committed_plans_need_no_data(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    plan = Plan(path, losses())
    trials, _ = trials_of(plan, tmp_path)
    for task in plan.tasks:
        own = {trial.method for trial in trials if trial.task == task}
        assert plan.baseline_of(task) in own
        assert len(own) > 1


SEGMENTATION = """
default_scope = 'mmseg'
model = dict(
    type='EncoderDecoder',
    decode_head=dict(
        type='FCNHead',
        num_classes=3,
        loss_decode=[dict(type='DiceLoss'), LOSS],
    ),
)
"""


class TestSeveralLosses:
    plan = PLAN.replace('plain, higher, later', 'cross_entropy, vs').replace(
        '    baseline: plain\n', ''
    )

    def test_the_one_of_the_classes_is_replaced(self, folder):
        own = "dict(type='CrossEntropyLoss')"
        (folder / 'config.py').write_text(SEGMENTATION.replace('LOSS', own))
        text = self.plan + '  vs: {options: {loss.tau: 2}}\n'
        _, (plain, vs, *_) = built(folder, text)
        assert [
            [loss.type for loss in trial.cfg.model.decode_head.loss_decode]
            for trial in (plain, vs)
        ] == [
            ['DiceLoss', 'CrossEntropyLoss'],
            ['DiceLoss', 'lt_losses_mm.VSLoss'],
        ]
        assert vs.cfg.model.decode_head.loss_decode[1].tau == 2

    def test_none_of_the_classes(self, folder):
        own = "dict(type='LovaszLoss')"
        (folder / 'config.py').write_text(SEGMENTATION.replace('LOSS', own))
        said = refused(folder, self.plan)
        assert said.startswith("6: tasks.first.config='config.py', expected a")
        assert "loss_decode=['DiceLoss', 'LovaszLoss'], expected one" in said


def test_options_that_may_do_nothing_are_named(folder):
    (folder / 'config.py').write_text(
        'lr = 0.1\ntrain_cfg = dict(max_epochs=3)\n'
        "a = dict(type='EpochBasedTrainLoop', max_epochs=3)\n"
    )
    path = folder / 'plan.yaml'
    options = '{lr: 1, train_cfg.max_epoch: 5, lrr: 2, train_cfg.max_epochs: 4'
    options += ', a.val_begin: 3'  # A parameter of the class.
    path.write_text(
        PLAN.replace('baseline: plain', f'options: {options}}}').replace(
            'options: {lr: 0.2}', 'options: {train_cfg.begin: 1}'
        )
    )
    _, notes = trials_of(Plan(path, losses()), folder)
    place = f'{path}:8: tasks.first.options'
    assert notes == [
        f'{place}.lr=1 is a variable of the config that MMEngine does not '
        'read; what the file makes of it stays as it is',
        f'{place}.train_cfg.max_epoch=5 is a new key of the config; there is '
        'max_epochs',
        f'{place}.lrr=2 is a new key of the config; there is lr',
        f'{path}:11: define.higher.options.train_cfg.begin=1 is a new key of '
        'the config',
    ]


class TestWhatIsMade:
    def test_order_and_names(self, folder):
        plan, trials = built(folder, PLAN)
        # Each method once before one has its second seed.
        assert [str(trial) for trial in trials] == [
            f'first/{method}/{seed}'
            for seed in (0, 1)
            for method in ('plain', 'higher', 'later')
        ]
        assert [trial.cfg.lr for trial in trials[:2]] == [0.1, 0.2]
        assert plan.baseline_of('first') == 'plain'
        assert [str(t) for t in trials[2].needed] == ['first/plain/0']
        assert command_of(plan, trials[1]).endswith('--only first/higher/0')

    def test_a_trial_that_others_need_comes_first(self, folder):
        _, trials = built(
            folder,
            PLAN.replace('[plain, higher, later]', '[later]').replace(
                '    baseline: plain\n', ''
            ),
        )
        assert [trial.method for trial in trials[:2]] == ['plain', 'later']

    def test_exclusion(self, folder):
        _, trials = built(
            folder,
            PLAN + 'exclude: [{method: higher, seed: 1}, {method: later}]\n',
        )
        assert [str(trial) for trial in trials] == [
            'first/plain/0',
            'first/higher/0',
            'first/plain/1',
        ]

    def test_grid(self, folder):
        _, trials = built(
            folder,
            PLAN.replace(
                '{options: {lr: 0.2}}',
                '{grid: {lr: [1e-3, 2], model.depth: [a, b]}}',
            ),
        )
        found = {
            trial.method: (trial.cfg.lr, trial.cfg.model.get('depth'))
            for trial in trials
            if trial.method not in ('plain', 'later')
        }
        assert found == {
            'higher[lr=0.001,depth=a]': (0.001, 'a'),
            'higher[lr=0.001,depth=b]': (0.001, 'b'),
            'higher[lr=2,depth=a]': (2, 'a'),
            'higher[lr=2,depth=b]': (2, 'b'),
        }
        assert len({trial.key for trial in trials}) == len(trials)

    def test_points_are_named_as_others_are(self, folder):
        plan, trials = built(
            folder,
            PLAN.replace('baseline: plain', 'baseline: higher[lr=1]')
            .replace(
                'define:',
                '    overrides:\n'
                '      higher: {options: {decay: 1, model.a: 1}}\n'
                '      higher[lr=2]: {options: {decay: 2}}\n'
                "exclude: [{method: 'higher[lr=2]', seed: 1}]\ndefine:",
            )
            .replace('options: {lr: 0.2}', 'grid: {lr: [1, 2, 3]}')
            .replace('load_from: plain', "load_from: 'higher[lr=3]'")
            .replace('[plain, higher,', "[plain, 'higher[lr=1]', higher,"),
        )
        assert plan.baseline_of('first') == 'higher[lr=1]'
        by_name = {str(trial): trial for trial in trials}
        assert list(by_name) == [
            f'first/{method}/{seed}'
            for seed in (0, 1)
            for method in (
                'plain',
                'higher[lr=1]',
                *(['higher[lr=2]'] if seed == 0 else []),
                'higher[lr=3]',
                'later',
            )
        ]
        assert [
            (trial.cfg.lr, trial.cfg.decay, trial.cfg.model.a)
            for trial in trials[1:4]
        ] == [(1, 1, 1), (2, 2, 1), (3, 1, 1)]
        (needed,) = by_name['first/later/0'].needed
        assert str(needed) == 'first/higher[lr=3]/0'

    def test_a_grid_is_excluded_by_its_name(self, folder):
        _, trials = built(
            folder,
            PLAN.replace('options: {lr: 0.2}', 'grid: {lr: [1, 2]}')
            + 'exclude: [{method: higher}]\n',
        )
        assert {trial.method for trial in trials} == {'plain', 'later'}

    def test_a_point_is_shown_by_its_name(self, folder, sweep_tool, capsys):
        path, work = folder / 'plan.yaml', folder / 'work'
        path.write_text(
            PLAN.replace('options: {lr: 0.2}', 'grid: {lr: [1, 2]}')
        )
        for more in (['run', '--dry-run'], ['status']):
            sweep_tool(*more, path, '--folder', work)
            said = capsys.readouterr().out
            assert 'higher[lr=1]' in said
            assert 'higher[lr=2]' in said

    def test_only_a_grid(self, folder, tool):
        plan, trials = built(
            folder, PLAN.replace('options: {lr: 0.2}', 'grid: {lr: [1, 2]}')
        )
        found = tool.chosen(plan, trials, ['first/higher'], folder)
        assert {trial.method for trial in found} == {
            'higher[lr=1]',
            'higher[lr=2]',
        }

    def test_seeds_of_a_task(self, folder):
        _, trials = built(
            folder, PLAN.replace('baseline: plain', 'seeds: [7]')
        )
        assert {trial.seed for trial in trials} == {7}
        assert trials[0].cfg.randomness.seed == 7

    def test_needs_of_several(self, folder):
        _, trials = built(
            folder,
            PLAN.replace(
                'later: {needs: {load_from: plain}, test: true}',
                'later: {needs: {teachers: [plain, higher]}}',
            ),
        )
        later = trials[2]
        assert [str(one) for one in later.needed] == [
            'first/plain/0',
            'first/higher/0',
        ]
        assert later.config().teachers == [
            '<the last checkpoint of first/plain/0>',
            '<the last checkpoint of first/higher/0>',
        ]

    def test_gpus(self, folder):
        _, trials = built(folder, PLAN.replace('baseline: plain', 'gpus: 8'))
        assert {trial.gpus for trial in trials} == {8}

    def test_task_then_method_then_both(self, folder):
        _, trials = built(
            folder,
            PLAN.replace(
                'baseline: plain',
                'options: {lr: 0.3, decay: 1}\n'
                '    overrides: {later: {options: {decay: 2}}}',
            ),
        )
        assert [(t.cfg.lr, t.cfg.decay) for t in trials[:3]] == [
            (0.3, 1),
            (0.2, 1),
            (0.3, 2),
        ]

    def test_what_no_number_depends_on_changes_no_key(self, folder):
        _, before = built(folder, PLAN)
        config = folder / 'config.py'
        config.write_text(config.read_text() + "work_dir = 'elsewhere'\n")
        _, after = built(folder, PLAN.replace('name: toy', 'name: other'))
        assert [t.key for t in before] == [t.key for t in after]
        config.write_text(config.read_text() + 'decay = 1\n')
        _, other = built(folder, PLAN)
        assert not {t.key for t in before} & {t.key for t in other}

    def test_a_point_of_a_search(self, folder):
        plan, _ = built(folder, DIGITS + SEARCH)
        name = plan.point({'loss.tau': 0.71})
        assert name == 'balanced_softmax[tau=0.71]'
        assert plan.options_of('first', name) == {'loss.tau': 0.71}

    def test_a_loss_that_does_not_fit_is_left_out(self, folder):
        path = folder / 'plan.yaml'
        path.write_text(DIGITS.replace('balanced_softmax', 'quality_focal'))
        trials, left_out = trials_of(Plan(path, losses()), folder)
        assert [trial.method for trial in trials] == ['cross_entropy']
        assert left_out == [
            'first: left out, because the head does not take the loss: '
            'quality_focal'
        ]
