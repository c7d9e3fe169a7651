"""Each name is found in each host, by every road, in every order.

Each check runs in a process of its own, as imports cannot be undone. The
program below answers one JSON object a line.
"""

import importlib.util
import itertools
import json
import subprocess
import sys

import pytest

import lt_losses_mm.registry as ours
from lt_losses_mm import integration
from lt_losses_mm.losses import LOSSES, LongTailLoss

HOSTS = ('mmdet', 'mmpretrain', 'mmseg')
PRESENT = tuple(h for h in HOSTS if importlib.util.find_spec(h))
ROOMS = ('MODELS', 'HOOKS', 'METRICS', 'DATASETS', 'OPTIM_WRAPPERS')

PROGRAM = r'''
import importlib, json, os, sys, warnings
warnings.simplefilter('ignore')
HOSTS = ('mmdet', 'mmpretrain', 'mmseg')
ROOMS = ('MODELS', 'HOOKS', 'METRICS', 'DATASETS', 'OPTIM_WRAPPERS')


class Missing:
    """Makes packages absent."""

    def __init__(self, packages):
        self.packages = packages

    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in self.packages:
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)


def ask(names, prefix, scopes):
    """What the registries of the scopes answer, where it is not our class."""
    wrong = []
    for scope in scopes:
        registry = importlib.import_module(f'{scope}.registry')
        for room, known in names.items():
            for name in known:
                got = getattr(registry, room).get(prefix + name)
                module = getattr(got, '__module__', 'nothing')
                if not module.startswith('lt_losses_mm.'):
                    wrong.append(f'{scope} {room} {prefix}{name}: {module}')
    return wrong


def build(names, prefix, scopes):
    """The losses as a config in that scope builds them."""
    wrong = []
    from mmengine.registry import DefaultScope, MODELS
    for scope in scopes:
        with DefaultScope.overwrite_default_scope(scope):
            for name in names:
                cfg = dict(type=prefix + name, class_counts=[3, 1])
                module = type(MODELS.build(cfg)).__module__
                if not module.startswith('lt_losses_mm.'):
                    wrong.append(f'{scope} {prefix}{name}: {module}')
    return wrong


def in_child(work):
    """Run it in a fork, from where no import comes back."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            answer = work()
        except BaseException as error:
            answer = [repr(error)]
        with os.fdopen(write, 'w') as pipe:
            json.dump(answer, pipe)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        answer = json.load(pipe)
    os.waitpid(pid, 0)
    return answer


def prefixed():
    """By the prefixed name, without ever importing the package."""
    imported = 'lt_losses_mm' in sys.modules
    hosts = [h for h in HOSTS if h in PRESENT]
    return (['imported too early'] if imported else []) + ask(
        NAMES, 'lt_losses_mm.', ['mmengine', *hosts]) + build(
            LOSSES, 'lt_losses_mm.', hosts)


def ordered(order):
    for package in order:
        importlib.import_module(package)
        if package != 'lt_losses_mm':
            importlib.import_module(f'{package}.registry')
            importlib.import_module(
                f'{package}.models' if package != 'mmengine' else package)
    hosts = [p for p in order if p != 'lt_losses_mm']
    return ask(NAMES, '', ['mmengine', *hosts]) + build(
        LOSSES, '', hosts) + ask(NAMES, 'lt_losses_mm.', hosts)


def subset(present):
    sys.meta_path.insert(0, Missing(set(HOSTS) - set(present)))
    import lt_losses_mm
    return ask(NAMES, '', ['mmengine', *present]) + ask(
        NAMES, 'lt_losses_mm.', ['mmengine', *present]) + build(
            LOSSES, '', present)


def light():
    """What the package imports beyond mmengine's own Runner."""
    before = set(sys.modules)
    import lt_losses_mm
    new = {name.split('.')[0] for name in set(sys.modules) - before}
    return sorted(new & {
        *HOSTS, 'mmcv', 'matplotlib', 'lvis', 'mlxtend', 'cv2', 'PIL', 'tqdm',
        'pandas', 'scipy', 'sklearn', 'pycocotools', 'torchvision'
    })


def clashes():
    """Names that a host has registered under the same kind."""
    import lt_losses_mm
    found = []
    for host in PRESENT:
        registry = importlib.import_module(f'{host}.registry')
        for room, known in NAMES.items():
            theirs = getattr(registry, room)
            theirs.import_from_location()
            found += [f'{host} {room} {n}' for n in known
                      if n in theirs.module_dict]
    return found


def custom(path):
    """By the bare name, after the custom_imports of a config."""
    from mmengine.config import Config
    from mmengine.registry import DefaultScope, MODELS
    cfg = Config.fromfile(path)
    with DefaultScope.overwrite_default_scope(PRESENT[0]):
        module = type(MODELS.build(cfg.loss)).__module__
    return [] if module.startswith('lt_losses_mm.') else [module]


import torch, mmengine, mmengine.runner, mmengine.hooks
NAMES, LOSSES, PRESENT, JOBS = json.loads(sys.argv[1])
for job, *arguments in JOBS:
    if job not in ('light', 'subset'):
        # What all hosts need is imported once, for the children to share.
        import mmcv.ops, scipy.optimize, torchvision, matplotlib.pyplot
    print(json.dumps(in_child(lambda: globals()[job](*arguments))),
          flush=True)
'''


@pytest.fixture(scope='module')
def names():
    found = {room: sorted(getattr(ours, room).module_dict) for room in ROOMS}
    assert all(found.values())
    return found


@pytest.fixture
def run(names):
    losses = [cls.__name__ for cls in LOSSES]

    def jobs(*work):
        done = subprocess.run(
            [
                sys.executable,
                '-c',
                PROGRAM,
                json.dumps([names, losses, PRESENT, work]),
            ],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        answers = [
            json.loads(line)
            for line in done.stdout.splitlines()
            if line.startswith('[')
        ]
        assert len(answers) == len(work), done.stdout + done.stderr
        return {str(job): a for job, a in zip(work, answers) if a}

    return jobs


def test_names(names):
    """What the package exports is what a config can name."""
    registered = {
        cls
        for cls in ours.MODELS.module_dict.values()
        if issubclass(cls, LongTailLoss)
    }
    assert registered == set(LOSSES)
    # Some by name, so that renaming one is noticed.
    assert {
        'BalancedSoftmaxLoss',
        'BalancedSigmoidLoss',
        'EqualizationLoss',
        'EqualizationSoftmaxLoss',
        'SigmoidEqualizationLoss',
        'SoftmaxEqualizationLoss',
        'SeesawSoftmaxLoss',
        'EqualizedFocalLoss',
        'EqualizedQualityFocalLoss',
    } <= set(names['MODELS'])
    assert {
        'ClassCountsHook',
        'MetricSetupHook',
        'LossSetupHook',
        'PostHocLogitAdjustmentHook',
        'StatisticsHook',
    } <= set(names['HOOKS'])


@pytest.fixture
def config(tmp_path):
    """What a user adds to an existing config."""
    path = tmp_path / 'config.py'
    path.write_text(
        "custom_imports = dict(imports=['lt_losses_mm'])\n"
        "loss = dict(type='BalancedSoftmaxLoss', "
        'class_counts=[3, 1])\n'
    )
    return str(path)


def test_without_hosts(run):
    assert not run(['light'], ['subset', []])


@pytest.mark.skipif(not PRESENT, reason='no host is installed')
def test_with_hosts(run, config):
    """The plugin before all hosts, after them, and never imported."""
    assert not run(
        ['prefixed'],
        ['custom', config],
        ['ordered', ['lt_losses_mm', *PRESENT]],
        ['ordered', [*PRESENT, 'lt_losses_mm']],
        ['clashes'],
    )


@pytest.mark.slow
@pytest.mark.parametrize('first', ['lt_losses_mm', *PRESENT])
def test_bare_names_in_every_order(run, first):
    rest = {'lt_losses_mm', *PRESENT} - {first}
    assert not run(
        *(
            ['ordered', [first, *order]]
            for order in itertools.permutations(sorted(rest))
        )
    )


@pytest.mark.slow
def test_every_subset_of_the_hosts(run):
    assert not run(
        *(
            ['subset', present]
            for n in range(len(PRESENT) + 1)
            for present in itertools.combinations(PRESENT, n)
        )
    )


def test_every_way_to_register_shows_in_the_root():
    from mmengine.registry import HOOKS as ROOT

    room = ours.HOOKS

    class Probe:
        pass

    ways = [
        lambda: room.register_module(name='LtProbe')(Probe),
        lambda: room.register_module(module=Probe, name='LtProbe'),
        lambda: room.register_module('LtProbe')(Probe),
    ]
    for register in ways:
        assert register() is Probe
        try:
            assert room.get('LtProbe') is Probe
            assert ROOT.get('LtProbe') is Probe
        finally:
            room._module_dict.pop('LtProbe', None)
            ROOT._module_dict.pop('LtProbe', None)


def test_the_log_of_the_core_is_that_of_the_run(tmp_path):
    from mmengine.logging import MMLogger

    from lt_losses_mm.messages import logger

    run = MMLogger.get_instance('run', log_file=str(tmp_path / 'run.log'))
    logger.info('compiled once')
    logger.warning('slower')
    for handler in run.handlers:
        handler.flush()
    text = (tmp_path / 'run.log').read_text()
    assert 'INFO - compiled once' in text and 'WARNING - slower' in text


def test_a_line_of_the_log_comes_once(monkeypatch, caplog):
    """Though another package has given the root logger a handler."""
    from lt_losses_mm.messages import logger

    logger.warning('for the root')
    monkeypatch.setattr(logger, 'handlers', [])
    integration.install()
    logger.warning('for the run')
    assert caplog.messages == ['for the root']
