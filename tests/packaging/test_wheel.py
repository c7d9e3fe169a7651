# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The built wheel in an environment that does not know the checkout."""

from __future__ import annotations

import sys
import sysconfig
import zipfile
from pathlib import Path

import environments
import pytest
from environments import new_environment, pip, run
from mmengine.config import Config

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
# mim knows a host by its distribution's name.
HOSTS = {
    'classification': ('onedl-mmpretrain', 'mmpretrain'),
    'detection': ('onedl-mmdetection', 'mmdet'),
    'segmentation': ('onedl-mmsegmentation', 'mmsegmentation'),
}
# A few images; the images themselves are made once per session.
FEW = [
    '--cfg-options',
    'train_dataloader.batch_size=2',
    'train_dataloader.dataset.dataset.indices=4',
    'test_dataloader.dataset.dataset.indices=4',
    'train_cfg.max_epochs=1',
    'val_cfg=None',
    'val_dataloader=None',
    'val_evaluator=None',
]


def leaf(task: str, loss: str) -> Path:
    """The config of the embedded benchmark for a task and a loss."""
    (path,) = (ROOT / 'configs' / task / 'digits').glob(f'*{loss}*.py')
    return path


def add_this_environment(python: Path) -> None:
    """Let ``python`` import torch and the hosts, not what is editable here.

    The ``.pth`` files of a folder named in a ``.pth`` file are not read.
    """
    paths = sysconfig.get_paths()
    (site,) = (python.parents[1] / 'lib').glob('python*/site-packages')
    lines = dict.fromkeys((paths['purelib'], paths['platlib']))
    (site / 'parent.pth').write_text('\n'.join(lines) + '\n')


@pytest.fixture(scope='session')
def installed(wheel, tmp_path_factory) -> Path:
    """Python of an environment with the wheel; torch and hosts from here."""
    folder = tmp_path_factory.mktemp('environment')
    python = new_environment(folder)
    pip('--python', python, 'install', '--no-deps', wheel, cwd=folder)
    add_this_environment(python)
    return python


@pytest.fixture(scope='session')
def workplace(tmp_path_factory) -> Path:
    """The folder where users' commands run; the digits are made there."""
    return tmp_path_factory.mktemp('workplace')


def test_contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (n for n in names if n.endswith('.dist-info/METADATA'))
        requires = [
            line
            for line in archive.read(metadata).decode().splitlines()
            if line.startswith('Requires-Dist') and 'extra ==' not in line
        ]
    assert requires == ['Requires-Dist: numpy']
    mim = 'lt_losses_mm/.mim/'
    configs = {
        f'{mim}{path.relative_to(ROOT)}'
        for path in (ROOT / 'configs').rglob('*')
        if path.is_file() and '__pycache__' not in path.parts
    }
    tools = {f'{mim}tools/{path.name}' for path in ROOT.glob('tools/*.py')}
    assert configs and {f'{mim}tools/train.py', f'{mim}tools/test.py'} <= tools
    sweeps = {
        f'{mim}{path.relative_to(ROOT)}'
        for path in ROOT.glob('benchmarks/sweeps/*')
    }
    assert any(name.endswith('.yaml') for name in sweeps)
    assert {n for n in names if n.startswith(mim)} == {
        *configs,
        *tools,
        *sweeps,
        f'{mim}model-index.yml',
    }
    assert 'lt_losses_mm/py.typed' in names
    data = {n for n in names if n.startswith('lt_losses_mm/priors/data/')}
    assert len(data) == len(list(ROOT.glob('lt_losses_mm/priors/data/*.json')))
    assert data
    # Whatever lies beside the modules, wherever that is.
    sources = {
        str(path.relative_to(ROOT))
        for path in ROOT.glob('lt_losses_mm/**/*')
        if path.suffix in ('.cpp', '.json', '.typed', '.html', '.css', '.js')
    }
    assert any(name.endswith('native.cpp') for name in sources)
    assert sources <= names
    assert not any('entry_points' in name for name in names)
    # onedl-mim takes the first line of the sorted RECORD for the package.
    assert min(names).startswith('lt_losses_mm/')


def test_sdist_gives_the_same_wheel(source, wheel, tmp_path):
    code = (
        'import sys; from setuptools import build_meta; '
        'build_meta.build_sdist(sys.argv[1])'
    )
    run(sys.executable, '-c', code, tmp_path, cwd=source)
    (sdist,) = tmp_path.glob('mm_lt_losses-*.tar.gz')
    pip(
        'wheel',
        '--no-deps',
        '--no-build-isolation',
        f'--wheel-dir={tmp_path}',
        sdist,
        cwd=tmp_path,
    )
    names = [
        zipfile.ZipFile(path).namelist()
        for path in (wheel, tmp_path / wheel.name)
    ]
    assert sorted(names[0]) == sorted(names[1])


def test_the_wheel_is_what_is_imported(installed, workplace):
    code = 'import lt_losses_mm; print(lt_losses_mm.__file__)'
    path = run(installed, '-c', code, cwd=workplace).split()[-1]
    assert Path(path).is_relative_to(installed.parents[1])


@pytest.mark.parametrize('task', HOSTS)
def test_mim_train_and_test_by_name(installed, workplace, task):
    name = leaf(task, 'balanced-softmax').name
    work_dir = workplace / 'by-name' / task
    mim = (installed, '-m', 'mim')
    options = (f'--work-dir={work_dir}', *FEW)
    run(*mim, 'train', 'mm-lt-losses', name, *options, cwd=workplace)
    checkpoint = work_dir / 'epoch_1.pth'
    assert checkpoint.is_file()
    run(
        *(*mim, 'test', 'mm-lt-losses', name),
        *(f'--checkpoint={checkpoint}', *options),
        cwd=workplace,
    )


# One benchmark of each host, on its double, for a step or two.
BENCHMARKS = {
    'cifar100': (
        'resnet32_1xb128-60e-bf16-balanced-softmax_cifar100-lt-if100.py',
        'train_cfg.max_epochs=1',
        'test_dataloader.dataset.indices=16',
    ),
    'lvis_v1': (
        'retinanet_r50_fpn_equalized-focal_sample1e-3-ms-2x_lvis-v1.py',
        'train_cfg.max_epochs=1',
        'train_dataloader.dataset.dataset.indices=2',
        'train_dataloader.dataset.dataset.pipeline.2.scales=[(213,128)]',
        'test_dataloader.dataset.indices=2',
        'test_dataloader.dataset.pipeline.1.scale=(213,128)',
        'model.backbone.init_cfg=None',
    ),
    'ade20k': (
        'fcn_r50-d8_4xb4-160k-cross-entropy_ade20k-512x512.py',
        'train_cfg.max_iters=2',
        'default_hooks.checkpoint.interval=2',
        'train_dataloader.dataset.pipeline.2.scale=(256,64)',
        'train_dataloader.dataset.pipeline.3.crop_size=(64,64)',
        'test_dataloader.dataset.indices=2',
        'test_dataloader.dataset.pipeline.1.scale=(256,64)',
        'model.data_preprocessor.size=(64,64)',
        'model.pretrained=None',
    ),
}


@pytest.mark.parametrize('benchmark', BENCHMARKS)
def test_mim_train_and_test_of_a_benchmark(installed, tmp_path, benchmark):
    name, *changes = BENCHMARKS[benchmark]
    mim = (installed, '-m', 'mim')
    make = ('run', 'mm-lt-losses', 'make_double', benchmark, 'data')
    run(*mim, *make, cwd=tmp_path)
    # A recipe takes another loss.
    loss = ['--loss=balanced_softmax'] * ('cross-entropy' in name)
    options = (
        *('--work-dir=work', *loss, '--cfg-options', *changes),
        *('val_cfg=None', 'val_dataloader=None', 'val_evaluator=None'),
        *('train_dataloader.batch_size=2', 'train_dataloader.num_workers=0'),
        *('train_dataloader.persistent_workers=False',),
    )
    run(*mim, 'train', 'mm-lt-losses', name, *options, cwd=tmp_path)
    (checkpoint,) = (tmp_path / 'work').glob('*_[12].pth')
    # What was trained is on record.
    assert "type='lt_losses_mm." in (tmp_path / 'work' / name).read_text()
    run(
        *(*mim, 'test', 'mm-lt-losses', name),
        *(f'--checkpoint={checkpoint}', *options),
        cwd=tmp_path,
    )


@pytest.mark.parametrize('task', HOSTS)
def test_mim_train_of_the_host_by_path(installed, workplace, task):
    host = environments.installed(*HOSTS[task])
    (site,) = (installed.parents[1] / 'lib').glob('python*/site-packages')
    relative = leaf(task, 'balanced-softmax').relative_to(ROOT)
    config = site / 'lt_losses_mm' / '.mim' / relative
    work_dir = workplace / 'by-path' / task
    run(
        *(installed, '-m', 'mim', 'train', host, config),
        *(f'--work-dir={work_dir}', *FEW),
        cwd=workplace,
    )
    assert (work_dir / 'epoch_1.pth').is_file()


def test_mim_search_lists_the_configs(installed, workplace):
    out = run(
        *(installed, '-m', 'mim', 'search', 'mm-lt-losses'),
        '--valid-config',
        cwd=workplace,
    )
    for task in HOSTS:
        assert leaf(task, 'balanced-softmax').stem in out


PLAN = """
name: few
seeds: [0]
methods: [cross_entropy, post_hoc]
tasks:
  digits:
    config: lt_losses_mm::classification/digits/RECIPE
    metrics: {overall: accuracy/all}
    options:
      train_dataloader.batch_size: 2
      train_dataloader.dataset.dataset.indices: 4
      val_dataloader.dataset.dataset.indices: 4
      test_dataloader.dataset.dataset.indices: 4
      train_cfg.max_epochs: 1
define:
  post_hoc:
    needs: {load_from: cross_entropy}
    test: true
    hooks: [{type: lt_losses_mm.PostHocLogitAdjustmentHook}]
"""


def test_a_sweep_from_the_wheel(installed, workplace):
    recipe = leaf('classification', 'cross-entropy').name
    (workplace / 'plan.yaml').write_text(PLAN.replace('RECIPE', recipe))
    sweep = (installed, '-m', 'mim', 'run', 'mm-lt-losses', 'sweep')
    out = run(*sweep, 'run', 'plan.yaml', cwd=workplace)
    assert 'report: work_dirs/few/report.html' in out
    ledger = (workplace / 'work_dirs/few/ledger.csv').read_text()
    again = 'mim run mm-lt-losses sweep run plan.yaml --only digits/post_hoc/0'
    assert again in ledger
    assert (workplace / 'work_dirs/few/report.html').stat().st_size > 10_000


BUILD = """
import sys
import lt_losses_mm
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

config = Config.fromfile(sys.argv[1])
init_default_scope(config.default_scope)
print(type(MODELS.build(config.model)).__module__)
"""


@pytest.mark.parametrize('task', HOSTS)
def test_a_config_elsewhere_inherits_from_the_wheel(installed, tmp_path, task):
    readme = ROOT / 'configs' / task / 'own-data/README.md'
    text = readme.read_text().split('```python\n')[1].split('```')[0]
    assert text.startswith("_base_ = 'lt_losses_mm::")
    (tmp_path / 'mine.py').write_text(text)
    out = run(installed, '-c', BUILD, 'mine.py', cwd=tmp_path)
    host = dict(
        classification='mmpretrain', detection='mmdet', segmentation='mmseg'
    )
    assert f'{host[task]}.models' in out


def test_mim_gridsearch_over_the_loss(installed, workplace):
    key = 'model.head.loss.type'
    losses = [
        f'lt_losses_mm.Balanced{kind}Loss' for kind in ('Softmax', 'Sigmoid')
    ]
    name = leaf('classification', 'balanced-softmax').name
    work_dir = workplace / 'grid'
    run(
        *(installed, '-m', 'mim', 'gridsearch', 'mm-lt-losses', name),
        *('--search-args', f'--{key} {" ".join(losses)}'),
        *(f'--work-dir={work_dir}', *FEW),
        cwd=workplace,
    )
    for loss in losses:
        (folder,) = workplace.glob(f'grid_search_{key}_{loss}')
        (config,) = folder.glob('*.py')
        assert Config.fromfile(config).model.head.loss.type == loss
        assert (folder / 'epoch_1.pth').is_file()


@pytest.mark.skipif(
    environments.installed('onedl-mim') is None,
    reason='openmim does not search a clone',
)
def test_editable_install_trains_by_name(source, workplace, tmp_path):
    python = new_environment(tmp_path)
    add_this_environment(python)
    pip(
        *('--python', python, 'install', '--no-deps'),
        *('--no-build-isolation', '--editable', source),
        cwd=tmp_path,
    )
    name = leaf('classification', 'balanced-softmax').name
    work_dir = tmp_path / 'work'
    out = run(
        *(python, '-m', 'mim', 'train', 'mm-lt-losses', name),
        *(f'--work-dir={work_dir}', *FEW),
        cwd=workplace,
    )
    assert str(source / 'tools' / 'train.py') in out
    assert (work_dir / 'epoch_1.pth').is_file()
    base = leaf('classification', 'balanced-softmax').relative_to(ROOT)
    (tmp_path / 'mine.py').write_text(
        f"_base_ = 'lt_losses_mm::{base.relative_to('configs').as_posix()}'"
    )
    out = run(python, '-c', BUILD, 'mine.py', cwd=tmp_path)
    assert 'mmpretrain.models' in out
