# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""tools/dry_run.py: what it runs, what it shrinks, what it notes."""

from __future__ import annotations

import argparse
import contextlib
import copy
import csv
import functools
import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.config import utils as config_utils
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from lt_losses_mm.recipes import (
    CONFIGS,
    fits,
    leaves,
    loss_configs,
    losses,
    read_config,
    read_leaf,
)

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / 'tools' / 'dry_run.py'


@pytest.fixture(scope='module')
def tool():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        spec = importlib.util.spec_from_file_location('dry_run', SCRIPT)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


DIGITS = (
    'classification/digits/'
    'resnet18-c16_1xb64-20e-balanced-softmax_digits-lt.py',
    'detection/digits/'
    'faster-rcnn_r18-c32_fpn_balanced-softmax_random-8e_digits-lt.py',
    'segmentation/digits/'
    'fcn_r18-c32_1xb8-16e-balanced-softmax_digits-lt-128x128.py',
)


class Runs:
    """Stands in for the processes of the configs, and for those they leave."""

    def __init__(self):
        self.names = []
        self.losses = []
        self.scopes = []
        self.environments = []
        self.results = {}
        self.classes = []

    def start(self, command, env, stdin, stdout, stderr, text):
        assert stdin == stdout == subprocess.PIPE and text
        assert command[2] == '--serve'
        self.scopes.append(command[3])
        self.environments.append(env)
        return Process(self)

    def run(self, loss, command):
        """Write a result; return the exit code."""
        name = Path(command[0]).name
        self.names.append(name)
        self.losses.append(loss)
        folder = Path(command[command.index('--work-dir') + 1], 'data')
        self.classes.append(list(folder.glob('own/train/*')))
        result = dict(status='pass', losses='2.5 2.25', metrics='mIoU=1')
        result.update(self.results.get(name, {}))
        if result['status'] == 'crash':
            return -9
        file = Path(command[command.index('--result') + 1])
        file.write_text(json.dumps(result))
        return 0


class Process(contextlib.nullcontext):
    """A server, at the same time the pipes to and from it."""

    returncode = 3

    def __init__(self, runs):
        super().__init__(self)
        self.runs = runs
        self.stdin = self.stdout = self
        self.said = ''

    def write(self, text):
        self.said += text

    def flush(self):
        _, loss, command = json.loads(self.said)
        self.said = ''
        self.code = self.runs.run(loss, command)

    def readline(self):
        if self.runs.results.get('server') == 'crash':
            return ''
        return f'{self.code}\n'

    def close(self):
        pass


@pytest.fixture
def runs(tool, monkeypatch, tmp_path):
    """A package with three configs, none of which is really run."""
    monkeypatch.chdir(tmp_path)
    configs = tmp_path / 'package' / 'configs'
    for name in ('_base_/base', 'a/first', 'a/second', 'b/third'):
        path = configs / f'{name}.py'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('train_dataloader = dict(batch_size=4)\n')
    monkeypatch.setattr(tool, 'CONFIGS', configs)
    runs = Runs()
    monkeypatch.setattr(subprocess, 'Popen', runs.start)
    return runs


@pytest.fixture
def call(tool, monkeypatch, capsys):
    """Call the tool; return its exit code and what it says."""

    def call(*arguments):
        argv = ['dry_run.py', *map(str, arguments)]
        monkeypatch.setattr(sys, 'argv', argv)
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            tool.main()
        captured = capsys.readouterr()
        return stop.value.code, ' '.join(
            (captured.err if stop.value.code == 2 else captured.out).split()
        )

    return call


def read(work_dir='work_dirs/dry_run'):
    """The rows of the table of results."""
    with Path(work_dir, 'results.csv').open(newline='') as file:
        return {row['config']: row for row in csv.DictReader(file)}


class TestArguments:
    def test_names_paths_and_all(self, runs, call):
        code, out = call('third', 'first.py', 'package/configs/a/second.py')
        assert code == 0 and '3 of 3 pass' in out
        assert runs.names == ['third.py', 'first.py', 'second.py']
        assert call('--all', '--work-dir', 'other')[0] == 0
        assert runs.names[3:] == ['first.py', 'second.py', 'third.py']

    def test_a_config_of_the_user(self, runs, call):
        Path('mine.py').write_text('model = dict()\n')
        assert 'pass mine.py' in call('mine.py')[1]

    def test_parts_are_disjoint_and_complete(self, runs, call):
        for part in ('1/2', '2/2'):
            assert call('--all', '--part', part)[0] == 0
        assert runs.names == ['first.py', 'third.py', 'second.py']

    def test_processes_see_no_gpu(self, runs, call, monkeypatch):
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '0')
        call('first')
        assert runs.environments[0]['CUDA_VISIBLE_DEVICES'] == ''
        assert os.environ['CUDA_VISIBLE_DEVICES'] == '0'

    @pytest.mark.parametrize('jobs', [1, 3])
    def test_jobs(self, runs, call, jobs):
        assert '3 of 3 pass' in call('--all', '--jobs', jobs)[1]
        assert sorted(runs.names) == ['first.py', 'second.py', 'third.py']

    def test_faults(self, runs, call):
        twin = Path('package/configs/b/first.py')
        twin.write_text('')
        for arguments, message in {
            (): 'give either configs or --all',
            ('first', '--all'): 'give either configs or --all',
            ('fourth',): "'fourth' is no file, and 0 configs below",
            ('first',): "'first' is no file, and 2 configs below",
            ('base',): "'base' is no file, and 0 configs below",
            ('--all', '--part', '0/3'): "1 <= K <= N, got '0/3'",
            ('--all', '--part', '4/3'): "1 <= K <= N, got '4/3'",
            ('--all', '--part', 'x'): "1 <= K <= N, got 'x'",
            ('third', '--part', '2/2'): 'no configs to run',
            ('third', '--steps', '0'): '--steps: expected at least 1, got 0',
            ('third', '--jobs', '0'): '--jobs: expected at least 1, got 0',
        }.items():
            code, error = call(*arguments)
            assert code == 2 and message in error
        assert not runs.names


class TestLosses:
    """Recipes with other losses, which are chosen in the environment."""

    @pytest.fixture
    def recipe(self, runs):
        folder = Path('package/configs/_base_/losses')
        folder.mkdir()
        for name, kind in {
            'plain': 'Plain',
            'first': 'lt_losses_mm.BalancedSoftmaxLoss',
            'second': 'lt_losses_mm.EqualizedQualityFocalLoss',
            'third': 'lt_losses_mm.BalancedSigmoidLoss',
        }.items():
            (folder / f'{name}.py').write_text(
                f"lt_loss = dict(_delete_=True, type='{kind}')\n"
            )
        Path('package/configs/a/first.py').write_text(
            "_base_ = ['../_base_/losses/{{$LT_LOSS:plain}}.py']\n"
            "loss = _base_.pop('lt_loss')\n"
            'model = dict(head=dict(num_classes=3, loss=loss))\n'
        )
        Path('package/configs/a/own.py').write_text(
            "_base_ = ['./first.py', '../_base_/losses/third.py']\n"
        )
        for path in ('a/second.py', 'b/third.py'):
            Path('package/configs', path).unlink()

    def test_all_that_fit(self, recipe, runs, call):
        assert call('--all', '--losses', 'all')[0] == 0
        # A named leaf has its loss, and not every loss fits.
        assert set(runs.names) == {'first.py'}
        assert runs.losses == ['first', 'plain', 'third']
        assert sorted(read()) == [
            f'a/first.py LT_LOSS={loss}' for loss in runs.losses
        ]
        code, out = call('--all', '--losses', 'all')
        assert code == 0 and out.count('(ran before)') == 3

    def test_some(self, recipe, runs, call):
        assert call('first', '--losses', 'third', 'second')[0] == 0
        assert runs.losses == ['third']

    def test_the_environment_is_not_that_of_the_runs(
        self, recipe, runs, call, monkeypatch
    ):
        monkeypatch.setenv('LT_LOSS', 'first')
        assert call('--all')[0] == 0
        assert runs.losses == [None, None]
        assert call('first', '--losses', 'third')[0] == 0
        assert runs.losses[2:] == ['third']
        assert not any('LT_LOSS' in env for env in runs.environments)
        assert os.environ['LT_LOSS'] == 'first'

    def test_faults(self, recipe, runs, call):
        code, error = call('--all', '--losses', 'forth')
        assert code == 2 and 'some of first, plain, second, third' in error
        code, error = call('own', '--losses', 'first')
        assert code == 2 and 'no configs to run' in error
        assert not runs.names


class TestResults:
    def test_row(self, runs, call):
        out = call('first')[1]
        row = read()['a/first.py']
        assert row['status'] == 'pass' and float(row['seconds']) >= 0
        assert row['losses'] == '2.5 2.25' and row['metrics'] == 'mIoU=1'
        assert '[1/1] pass a/first.py' in out
        assert 'losses 2.5, after resuming 2.25 mIoU=1' in out

    def test_what_has_passed_is_not_run_again(self, runs, call):
        call('first', 'second')
        code, out = call('--all')
        assert code == 0 and '3 of 3 pass' in out
        assert out.count('(ran before)') == 2
        assert runs.names == ['first.py', 'second.py', 'third.py']
        assert list(read()) == ['a/first.py', 'a/second.py', 'b/third.py']

    def test_what_has_changed_is_run_again(self, runs, call):
        call('--all')
        path = Path('package/configs/a/second.py')
        path.write_text('train_dataloader = dict(batch_size=5)\n')
        call('--all')
        assert runs.names[3:] == ['second.py']
        call('--all', '--steps', 2)
        assert len(runs.names) == 7

    def test_other_data_are_run_again(self, runs, call):
        for arguments in ((), ('--data-root', 'd'), ('--data-root', 'e')):
            for kept in (False, True):
                out = call('first', *arguments)[1]
                assert ('(ran before)' in out) == kept
        assert '(ran before)' in call('first', '--data-root', './x/../e')[1]

    def test_results_of_earlier_versions_are_known(self, tool):
        cfg = Config(dict(a=1))
        assert tool.digest(cfg, 3, None) == '7c4843f275e4'
        assert tool.digest(cfg, 3, 'd') != '7c4843f275e4'

    def test_what_has_failed_is_run_again(self, runs, call):
        runs.results['second.py'] = dict(status='fail', error='KeyError: 1')
        code, out = call('--all')
        assert code == 1 and '2 of 3 pass' in out
        assert 'fail a/second.py KeyError: 1 (see ' in out
        assert read()['a/second.py']['error'].startswith('KeyError: 1')
        runs.results.clear()
        assert call('--all')[0] == 0
        assert runs.names[3:] == ['second.py']
        assert read()['a/second.py']['error'] == ''

    def test_a_process_that_dies(self, runs, call):
        runs.results['first.py'] = dict(status='crash')
        code, out = call('first')
        assert code == 1 and 'ended with exit code -9' in out

    def test_a_server_that_dies(self, runs, call):
        for name in ('first.py', 'second.py'):
            runs.results[name] = dict(status='crash')
        runs.results['server'] = 'crash'
        code, out = call('first', 'second')
        assert code == 1 and out.count('ended with exit code 3') == 2
        assert runs.scopes == ['None', 'None']

    def test_hosts_do_not_meet(self, runs, call):
        for name, scope in (('first', 'mmdet'), ('second', 'mmdet')):
            path = Path(f'package/configs/a/{name}.py')
            path.write_text(f'default_scope = {scope!r}\n')
        assert call('--all')[0] == 0
        assert runs.scopes == ['mmdet', 'None']

    def test_a_config_that_cannot_be_read(self, runs, call):
        Path('package/configs/a/first.py').write_text('1 / 0\n')
        code, out = call('--all')
        assert code == 1 and '2 of 3 pass' in out
        assert 'ZeroDivisionError' in read()['a/first.py']['error']
        log = Path('work_dirs/dry_run/logs/a__first.py.log')
        assert 'Traceback' in log.read_text()

    def test_only_logs_and_results_stay(self, runs, call):
        call('first')
        call('first')
        work_dir = Path('work_dirs/dry_run')
        left = {p.name for p in work_dir.rglob('*') if p.is_file()}
        assert left == {'results.csv', 'a__first.py.log'}
        assert not list((work_dir / 'runs').iterdir())


class TestDoubles:
    @pytest.fixture
    def made(self, tool, monkeypatch):
        made = []
        monkeypatch.setattr(
            tool, 'make_double', lambda name, root: made.append((name, root))
        )
        return made

    @pytest.mark.parametrize(
        ('dataset', 'names'),
        [
            (dict(data_root='data/lvis_v1/'), ['lvis_v1']),
            (dict(ann_file='data/lvis_v0.5/annotations/a'), ['lvis_v0.5']),
            (dict(data_root='data/ade/ADEChallengeData2016'), ['ade20k']),
            (
                dict(type='lt_losses_mm.CIFAR100LT', data_root='data'),
                ['cifar100'],
            ),
            (dict(type='lt_losses_mm.DigitsDataset', root='data/digits'), []),
            (dict(data_root='/elsewhere/lvis_v1'), []),
            (dict(type='lt_losses_mm.ImageListDataset', data_root='data'), []),
        ],
    )
    def test_which(self, tool, made, tmp_path, dataset, names):
        wrapped = dict(type='ClassBalancedDataset', dataset=dataset)
        tool.make_doubles(
            Config(dict(train_dataloader=dict(dataset=wrapped))),
            tmp_path,
            tmp_path / 'runs',
        )
        assert made == [(name, tmp_path) for name in names]

    def test_real_data_stay(self, tool, made, tmp_path):
        dataset = dict(data_root='data/lvis_v1/')
        cfg = Config(dict(val_dataloader=dict(dataset=dataset)))
        (tmp_path / 'lvis_v1').mkdir()
        tool.make_doubles(cfg, tmp_path, tmp_path / 'runs')
        assert not made
        # A double that is there is checked.
        (tmp_path / 'lvis_v1' / tool.MARKER).touch()
        tool.make_doubles(cfg, tmp_path, tmp_path / 'runs')
        assert made

    def test_data_without_a_double(self, tool, made, tmp_path):
        dataset = dict(type='Mine', data_root='data/mine/')
        cfg = Config(dict(model={}, train_dataloader=dict(dataset=dataset)))
        message = 'mine is not there, expected .* got Mine. Fix: --data-root'
        with pytest.raises(FileNotFoundError, match=message):
            tool.make_doubles(cfg, tmp_path, tmp_path / 'runs')
        (tmp_path / 'mine').mkdir()
        tool.make_doubles(cfg, tmp_path, tmp_path / 'runs')


class TestOwnData:
    """What is not a benchmark is made from what the config says."""

    SPLITS = ('train', 'val', 'test')

    @pytest.fixture
    def make(self, tool, tmp_path):
        """Make stand-ins; return their folder."""

        def make(train, val, test, num_classes=3):
            cfg = dict(
                model=dict(head=dict(num_classes=num_classes)),
                train_dataloader=dict(dataset=dict(dataset=train)),
                val_dataloader=dict(dataset=val),
                test_dataloader=dict(dataset=test),
            )
            tool.make_doubles(
                Config(cfg), tmp_path / 'real', tmp_path / 'made'
            )
            return tmp_path / 'made'

        return make

    def test_coco(self, make):
        dataset = dict(
            type='CocoDataset',
            data_root='data/own-coco/',
            metainfo=dict(classes=('a', 'b', 'c')),
        )
        folder = make(
            *(
                dict(
                    dataset,
                    ann_file=f'annotations/{split}.json',
                    data_prefix=dict(img=f'{split}/'),
                )
                for split in self.SPLITS
            )
        )
        for split in self.SPLITS:
            path = folder / 'own-coco' / 'annotations' / f'{split}.json'
            content = json.loads(path.read_text())
            names = {c['id']: c['name'] for c in content['categories']}
            assert list(names.values()) == ['a', 'b', 'c']
            used = {a['category_id'] for a in content['annotations']}
            assert used == set(names)
            images = folder / 'own-coco' / split
            for image in content['images']:
                assert (images / image['file_name']).is_file()

    def test_coco_needs_the_names(self, make):
        dataset = dict(type='CocoDataset', data_root='data/own-coco')
        with pytest.raises(ValueError, match='names of the 3 classes'):
            make(dataset, dataset, dataset)

    def test_masks(self, make):
        import cv2

        folder = make(
            *(
                dict(
                    type='BaseSegDataset',
                    data_root='data/own-masks',
                    img_suffix='.png',
                    seg_map_suffix='_mask.png',
                    data_prefix=dict(
                        img_path=f'{split}/images',
                        seg_map_path=f'{split}/masks',
                    ),
                )
                for split in self.SPLITS
            )
        )
        for split in self.SPLITS:
            images = sorted(
                (folder / 'own-masks' / split / 'images').iterdir()
            )
            masks = sorted((folder / 'own-masks' / split / 'masks').iterdir())
            assert [p.stem + '_mask.png' for p in images] == [
                p.name for p in masks
            ]
            values = {
                value
                for path in masks
                for value in cv2.imread(str(path), -1).flat
            }
            assert values == {0, 1, 2}

    FOLDERS = dict(
        type='mmpretrain.CustomDataset', data_root='data/own', ann_file=''
    )

    def test_folders(self, make):
        folder = make(
            dict(self.FOLDERS, data_prefix='train'),
            dict(self.FOLDERS, data_prefix=dict(img_path='val')),
            dict(self.FOLDERS, data_prefix='test'),
        )
        for split in self.SPLITS:
            folders = list((folder / 'own' / split).iterdir())
            assert len(folders) == 3
            assert all(list(folder.glob('*.jpg')) for folder in folders)

    def test_real_data_stay(self, make, tmp_path):
        (tmp_path / 'real' / 'own').mkdir(parents=True)
        assert not make(*[dict(self.FOLDERS, data_prefix='')] * 3).exists()

    def test_they_are_where_the_config_looks(self, tool, make, tmp_path):
        made = make(*[dict(self.FOLDERS, data_prefix='')] * 3)
        (tmp_path / 'real' / 'mine').mkdir(parents=True)
        found = tool.relocate(
            ['data/own/', 'data/mine', 'data/none'],
            str(tmp_path / 'real'),
            made,
        )
        assert found == [
            f'{made}/own/',
            f'{tmp_path}/real/mine',
            f'{tmp_path}/real/none',
        ]

    def test_each_run_has_its_own(self, runs, call):
        """Those of another number of classes would not fit."""
        loader = dict(dataset=dict(self.FOLDERS, data_prefix='train'))
        for num_classes in (7, 4):
            Path('mine.py').write_text(
                f'model = dict(num_classes={num_classes})\n'
                f'train_dataloader = {loader}\n'
            )
            assert call('mine.py')[0] == 0
        assert [len(found) for found in runs.classes] == [7, 4]


def types(tree):
    """Every type and number of classes in a config, with its place."""
    found = {}

    def visit(value, place):
        items = value if isinstance(value, dict) else {}
        if isinstance(value, (list, tuple)):
            items = dict(enumerate(value))
        for key, item in items.items():
            if key in ('type', 'num_classes'):
                found[(*place, key)] = item
            visit(item, (*place, key))

    visit(tree, ())
    return found


class TestShrink:
    MODEL = dict(
        type='Detector',
        data_preprocessor=dict(size=(1024, 1024), pad_size_divisor=32),
        backbone=dict(
            depth=50, init_cfg=dict(type='Pretrained', checkpoint='a.pth')
        ),
        neck=dict(
            init_cfg=[
                dict(type='Pretrained', checkpoint='b.pth'),
                dict(type='Normal', std=0.01),
            ]
        ),
        head=dict(num_classes=1203, scales=[8], init_cfg=dict(type='Normal')),
        train_cfg=dict(rcnn=dict(sampler=dict(type='Random', num=512))),
        test_cfg=dict(
            rpn=dict(nms_pre=1000, max_per_img=1000),
            rcnn=dict(score_thr=1e-4, max_per_img=300),
        ),
    )
    PIPELINE = [
        dict(type='Resize', scale=(1333, 800), keep_ratio=True),
        dict(
            type='RandomChoice',
            transforms=[
                [dict(type='RandomChoiceResize', scales=[(480, 1333)])],
                [dict(type='RandomCrop', crop_size=(384, 600))],
            ],
        ),
        dict(type='RandomAffine', scale=(0.5, 1.5)),
        dict(type='Pad', size=None, size_divisor=32),
    ]

    def config(self, **options):
        loader = dict(
            batch_size=16,
            num_workers=4,
            persistent_workers=True,
            prefetch_factor=2,
            dataset=dict(
                type='Wrapper',
                dataset=dict(data_root='data/x/', pipeline=self.PIPELINE),
            ),
        )
        return Config(
            copy.deepcopy(
                dict(
                    default_scope='mmdet',
                    model=self.MODEL,
                    optim_wrapper=dict(type='OptimWrapper'),
                    train_dataloader=loader,
                    val_dataloader=dict(loader, batch_size=1),
                    val_evaluator=[dict(ann_file='data/x/val.json')],
                    load_from='c.pth',
                    **options,
                )
            )
        )

    def test_loaders(self, tool):
        cfg = self.config()
        notes = tool.shrink(cfg, '/d', Path('/own'))
        for loader, size in (
            (cfg.train_dataloader, 2),
            (cfg.val_dataloader, 1),
        ):
            assert loader.batch_size == size
            assert loader.num_workers == 0
            assert loader.persistent_workers is False
            assert 'prefetch_factor' not in loader
        assert 'train batch of 16 is 2' in notes
        assert not any('val batch' in note for note in notes)

    def test_paths(self, tool):
        cfg = self.config(
            other='data/counts.json', word='data', n=[('data/',)]
        )
        tool.shrink(cfg, '/d', Path('/own'))
        assert cfg.train_dataloader.dataset.dataset.data_root == '/d/x/'
        assert cfg.val_evaluator[0].ann_file == '/d/x/val.json'
        assert (cfg.other, cfg.word, cfg.n) == (
            '/d/counts.json',
            'data',
            [('/d/',)],
        )
        cifar = tool.relocate(
            dict(data_root='data', ann_file=''), '/d', Path('/own')
        )
        assert cifar == dict(data_root='/d', ann_file='')

    def test_made_up_data_are_named(self, tool, tmp_path):
        (tmp_path / 'x').mkdir()
        cfg = self.config()
        assert 'made up: data/x' in tool.shrink(cfg, '/d', tmp_path)
        assert cfg.val_dataloader.dataset.dataset.data_root == f'{tmp_path}/x/'
        notes = tool.shrink(self.config(), '/d', Path('/own'))
        assert not any('made up' in note for note in notes)

    def test_sizes_keep_their_proportions(self, tool):
        cfg = self.config()
        notes = tool.shrink(cfg, '/d', Path('/own'))
        resize, choice, affine, pad = (
            cfg.train_dataloader.dataset.dataset.pipeline
        )
        # The largest short side, here of the padded batch, becomes 64.
        assert cfg.model.data_preprocessor.size == (64, 64)
        assert resize.scale == (83, 50)
        assert choice.transforms[0][0].scales == [(30, 83)]
        assert choice.transforms[1][0].crop_size == (24, 38)
        assert affine.scale == (0.5, 1.5)
        assert pad['size'] is None and pad.size_divisor == 32
        assert cfg.model.head.scales == [8]
        assert 'image sizes are 0.062 of what they were' in notes

    def test_queries_need_pixels(self, tool):
        cfg = self.config()
        cfg.model.num_queries = 900
        cfg.model.test_cfg = dict(max_per_img=300)
        notes = tool.shrink(cfg, '', Path('/own'))
        assert cfg.model.num_queries == cfg.model.test_cfg.max_per_img == 16
        assert any('16 regions of an image' in note for note in notes)

    @pytest.mark.parametrize(
        ('scope', 'sizes'), [('mmseg', (42, 32)), ('mmdet', (170, 128))]
    )
    def test_windows_of_sliding_inference(self, tool, scope, sizes):
        cfg = self.config()
        cfg.default_scope = scope
        cfg.model.data_preprocessor.size = (256, 256)
        cfg.train_dataloader.dataset.dataset.pipeline = []
        cfg.val_dataloader.dataset.dataset.pipeline = []
        cfg.model.test_cfg = dict(crop_size=(170, 128), stride=(170, 128))
        tool.shrink(cfg, '/d', Path('/own'))
        assert cfg.model.test_cfg.crop_size == sizes
        assert cfg.model.test_cfg.stride == sizes

    def test_small_images_and_classifiers_keep_their_size(self, tool):
        for scope, size in (('mmpretrain', 224), ('mmdet', 48)):
            cfg = self.config()
            cfg.default_scope = scope
            cfg.model.data_preprocessor.size = (size, size)
            pipeline = [dict(type='Resize', scale=(size, size))]
            cfg.train_dataloader.dataset.dataset.pipeline = pipeline
            cfg.val_dataloader.dataset.dataset.pipeline = pipeline
            assert not any(
                'size' in note for note in tool.shrink(cfg, '/d', Path('/own'))
            )
            (resize,) = cfg.train_dataloader.dataset.dataset.pipeline
            assert resize.scale == (size, size)

    def test_regions(self, tool):
        cfg = self.config()
        notes = tool.shrink(cfg, '/d', Path('/own'))
        assert cfg.model.train_cfg.rcnn.sampler.num == 16
        assert cfg.model.test_cfg == dict(
            rpn=dict(nms_pre=1000, max_per_img=16),
            rcnn=dict(score_thr=1e-4, max_per_img=16),
        )
        assert '16 regions of an image instead of 300 or 512 or 1000' in notes

    def test_no_weights(self, tool):
        cfg = self.config()
        cfg.model.teacher = dict(pretrained='torchvision://resnet50')
        notes = tool.shrink(cfg, '/d', Path('/own'))
        assert cfg.load_from is None
        assert 'init_cfg' not in cfg.model.backbone
        assert cfg.model.neck.init_cfg == [dict(type='Normal', std=0.01)]
        assert cfg.model.head.init_cfg == dict(type='Normal')
        assert cfg.model.teacher == {}
        names = ('c.pth', 'a.pth', 'b.pth', 'torchvision://resnet50')
        assert [n for n in notes if n.startswith('not loaded')] == [
            f'not loaded: {name}' for name in names
        ]

    def test_mixed_precision(self, tool):
        cfg = self.config()
        cfg.optim_wrapper = dict(
            type='AmpOptimWrapper', dtype='bfloat16', clip_grad=dict(a=1)
        )
        notes = tool.shrink(cfg, '/d', Path('/own'))
        assert cfg.optim_wrapper == dict(
            type='OptimWrapper', clip_grad=dict(a=1)
        )
        assert any('mixed precision' in note for note in notes)

    @pytest.mark.parametrize('path', DIGITS)
    def test_real_configs_keep_their_parts(self, tool, path):
        cfg = Config.fromfile(ROOT / 'configs' / path)
        before = types(cfg.to_dict())
        tool.shrink(cfg, '/d', Path('/own'))
        assert types(cfg.to_dict()) == before


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.scale = 1.0

    def forward(self, x, mode='tensor'):
        logits = self.layer(x)
        if mode == 'loss':
            return dict(loss=self.scale * logits.square().mean())
        return [SimpleNamespace() for _ in x]


def loader(batch_size):
    return dict(
        dataset=torch.utils.data.TensorDataset(torch.ones(20, 4)),
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=lambda batch: dict(x=torch.stack([x for (x,) in batch])),
        batch_size=batch_size,
    )


class Metric(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results += [1] * len(data_samples)

    def compute_metrics(self, results):
        return dict(images=len(results), per_class=[1, 2])


class Saboteur(Hook):
    """Makes the loss infinite in one step."""

    def __init__(self, step):
        self.step = step

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 == self.step:
            runner.model.scale = math.inf


class Thief(Hook):
    """Takes the checkpoint away."""

    def after_run(self, runner):
        Path(runner.work_dir, 'last_checkpoint').unlink()


class TestTraining:
    LENGTHS = [
        dict(by_epoch=True, max_epochs=90, val_interval=10),
        dict(by_epoch=False, max_iters=1000, val_interval=100),
        dict(type='EpochBasedTrainLoop', max_epochs=90, val_interval=10),
        dict(type='IterBasedTrainLoop', max_iters=1000, val_interval=100),
    ]

    @pytest.fixture
    def train(self, tool, monkeypatch, tmp_path):
        """Call the tool with a runner of objects, not of a config."""
        train_and_evaluate = tool.train_and_evaluate

        def train(train_cfg, steps=3, hooks=(), **options):

            def build_runner(cfg):
                return Runner(
                    model=Model(),
                    work_dir=str(tmp_path),
                    train_dataloader=loader(2),
                    val_dataloader=loader(2),
                    val_evaluator=[Metric()],
                    optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
                    train_cfg=dict(cfg.train_cfg),
                    val_cfg=dict(cfg.val_cfg),
                    default_hooks=dict(cfg.default_hooks),
                    custom_hooks=list(hooks),
                    resume=cfg.resume,
                    experiment_name=f'{tmp_path.name}_{cfg.experiment_name}',
                    default_scope='mmengine',
                    log_level='ERROR',
                    **options,
                )

            monkeypatch.setattr(tool, 'build_runner', build_runner)
            keys = dict.fromkeys(options, 'another one')
            cfg = Config(dict(train_cfg=train_cfg, val_cfg=dict(), **keys))
            return train_and_evaluate(cfg, steps)

        return train

    @pytest.mark.parametrize('train_cfg', LENGTHS)
    def test_train_save_resume_evaluate(self, train, train_cfg):
        losses, metrics = train(train_cfg)
        assert len(losses) == 4
        assert losses == sorted(losses, reverse=True)
        # One batch, and only numbers.
        assert metrics == dict(images=2)

    def test_test_set_where_it_differs(self, train):
        _, metrics = train(
            self.LENGTHS[0],
            test_cfg=dict(),
            test_dataloader=loader(5),
            test_evaluator=[Metric(prefix='test')],
        )
        assert metrics == {'images': 2, 'test/images': 5}

    @pytest.mark.parametrize('step', [2, 4])
    def test_losses_have_to_be_finite(self, train, step):
        with pytest.raises(
            FloatingPointError, match=f'step {step}: expected finite losses'
        ):
            train(self.LENGTHS[0], hooks=[Saboteur(step)])

    def test_a_model_without_a_loss(self, train, monkeypatch):
        monkeypatch.setattr(
            Model, 'train_step', lambda *args, **kwargs: dict(acc=1.0)
        )
        with pytest.raises(FloatingPointError, match="got {'acc': 1.0}"):
            train(self.LENGTHS[0])

    def test_no_checkpoint_to_resume_from(self, train):
        with pytest.raises(RuntimeError, match='go on after step 3, got'):
            train(self.LENGTHS[0], hooks=[Thief()])

    @pytest.fixture
    def child(self, tool, monkeypatch, tmp_path):
        """Call the process of a config; return its exit code and its row."""

        def child(train_and_evaluate):
            monkeypatch.setattr(tool, 'train_and_evaluate', train_and_evaluate)
            config, result = tmp_path / 'c.py', tmp_path / 'result.json'
            config.write_text(
                "default_scope = 'mmengine'\n"
                'model = dict()\n'
                'optim_wrapper = dict()\n'
            )
            parser = argparse.ArgumentParser()
            args = argparse.Namespace(
                config=[str(config)],
                result=str(result),
                data_root='data',
                work_dir=str(tmp_path),
                steps=3,
            )
            return tool.child(parser, args), json.loads(result.read_text())

        return child

    def test_a_pass_is_reported(self, train, child):
        code, row = child(lambda cfg, steps: train(self.LENGTHS[0], steps))
        assert code == 0 and row['status'] == 'pass' and 'error' not in row
        assert len(row['losses'].split()) == 4
        assert row['metrics'] == 'images=2' and float(row['peak MB']) > 0

    def test_an_error_is_reported(self, child):
        code, row = child(lambda cfg, steps: {}['a key'])
        assert code == 1 and row['status'] == 'fail'
        assert row['error'] == "KeyError: 'a key'" and 'losses' not in row

    def test_a_loss_that_is_not_finite_is_reported(self, train, child):
        code, row = child(
            lambda cfg, steps: train(self.LENGTHS[0], hooks=[Saboteur(2)])
        )
        assert code == 1 and row['status'] == 'fail'
        assert row['error'].startswith('FloatingPointError: step 2: expected')


@pytest.fixture
def environment(monkeypatch):
    """That of processes which use this package."""
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    monkeypatch.setenv('PYTHONPATH', str(ROOT), prepend=os.pathsep)


def test_processes_end_with_the_parent(environment, tmp_path):
    """Then nothing goes on in the folder that the next call deletes."""
    (tmp_path / 'sleep.py').write_text(
        "import time\nopen('started', 'w').close()\ntime.sleep(60)\n"
    )
    (tmp_path / 'log').touch()
    command = ('sleep.py', '--result', 'result.json')
    with subprocess.Popen(
        [sys.executable, str(SCRIPT), '--serve', 'None'],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            process.stdin.write(json.dumps(('log', None, command)) + '\n')
            process.stdin.flush()
            while not (tmp_path / 'started').exists():
                assert process.poll() is None
                time.sleep(0.1)
            # What happens to the pipe when its only writer ends.
            process.stdin.close()
            # The first process waits for the one of the config.
            assert process.wait(timeout=20) == 0
            assert process.stdout.read() == '1\n'
        finally:
            process.kill()


CHANGES = dict(
    # Not where it is only read.
    crash=(
        'import os\n'
        "if os.environ.get('CUDA_VISIBLE_DEVICES') == '':\n"
        '    os.abort()\n',
        'the process ended with exit code -6',
    ),
    sound=('', ''),
    metric=(
        "val_evaluator = dict(_delete_=True, type='Accuracy', topk=(1, 500))",
        'ValueError: Top-500 accuracy is unavailable',
    ),
    classes=(
        'model = dict(head=dict(num_classes=9))',
        'ValueError: BalancedSoftmaxLoss: num_classes=9, expected 10',
    ),
    weight=(
        "model = dict(head=dict(loss=dict(loss_weight=float('nan'))))",
        'ValueError: BalancedSoftmaxLoss: loss_weight=nan, expected',
    ),
    rate=(
        'optim_wrapper = dict(optimizer=dict(lr=1e38))',
        'FloatingPointError: step 2: expected finite losses',
    ),
)


def test_broken_configs_fail(environment, call, monkeypatch, tmp_path):
    """Real configs in real processes, beside one that is not broken."""
    pytest.importorskip('mmpretrain.registry')
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    monkeypatch.chdir(tmp_path)
    leaf = 'resnet32_1xb128-200e-balanced-softmax_cifar10-lt-if200.py'
    base = ROOT / 'configs' / 'classification' / 'cifar-lt' / leaf
    for name, (change, _) in CHANGES.items():
        Path(f'{name}.py').write_text(f'_base_ = {str(base)!r}\n{change}\n')
    # One at a time, hence all after the crash in what it was forked from.
    code, out = call(*(f'{name}.py' for name in CHANGES))
    assert code == 1 and f'1 of {len(CHANGES)} pass' in out
    rows = read()
    for name, (_, error) in CHANGES.items():
        row = rows[f'{name}.py']
        assert row['status'] == ('fail' if error else 'pass')
        assert row['error'].startswith(error) and error in out


@pytest.fixture(scope='session')
def doubles(tmp_path_factory):
    return tmp_path_factory.mktemp('doubles')


@pytest.mark.slow
def test_one_config_of_each_task_by_name(environment, doubles, tmp_path):
    """As an installed wheel has it: the tools beside the configs."""
    package = tmp_path / 'lt_losses_mm' / '.mim'
    for folder in ('configs', 'tools'):
        shutil.copytree(ROOT / folder, package / folder)
    script = package / 'tools' / 'dry_run.py'
    names = [Path(path).stem for path in DIGITS]
    done = subprocess.run(
        [sys.executable, str(script), *names, '--data-root', str(doubles)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    rows = list(read(tmp_path / 'work_dirs/dry_run').values())
    assert [row['config'] for row in rows] == list(DIGITS)
    metrics = ('accuracy/few=', 'lvis/bbox_APr=', 'iou/tail=')
    for row, metric in zip(rows, metrics):
        assert row['status'] == 'pass'
        assert len(row['losses'].split()) == 4
        assert metric in row['metrics']
        assert 100 < float(row['peak MB']) < 10_000


LOSSES = '|'.join(loss.replace('_', '-') for loss in losses())
NAME = re.compile(
    r'(?P<model>.+?)(?P<batch>_\d+xb\d+-\d+[ek](-mixup|-bf16)?)?'
    rf'[_-](?P<loss>{LOSSES})(-normed(-mask)?)?'
    r'_((?P<schedule>.+)_)?(?P<data>[^_]+?)(-if\d+)?'
)


@functools.lru_cache(None)
def every_run():
    """All leaves with their own loss, and all recipes with others that fit.

    Each with the type of the head that takes the loss.
    """
    found, heads = {}, {}
    with pytest.MonkeyPatch.context() as patch:
        # MMEngine reads all metafiles of a host again for each of its bases.
        load = functools.lru_cache(None)(config_utils.load)
        patch.setattr(config_utils, 'load', load)
        for path in leaves():
            leaf = read_leaf(path)
            if leaf.is_recipe:
                recipe = read_config(path)
                heads[path] = loss_configs(recipe)[0][0].type
                for loss in losses():
                    if loss != leaf.loss and fits(recipe, loss):
                        found[path, loss] = heads[path]
    for path in leaves():
        found[path, None] = heads[read_leaf(path).recipe]
    return found


def traits(path, loss):
    """What a run shows to work: a model, a schedule, a loss in such heads."""
    name = NAME.fullmatch(path.stem)
    assert name, f'{path.name} does not follow the pattern of the names'
    folder = path.parent
    kind = path.relative_to(CONFIGS).parts[0]
    if kind == 'detection':
        # Elsewhere all heads hand the loss the same.
        kind = every_run()[path, loss]
    found = {('loss', kind, loss or read_leaf(path).loss)}
    if loss is None:
        found |= {
            ('model', folder, name['data'], name['model']),
            ('schedule', folder, name['batch'], name['schedule']),
        }
    return found


@functools.lru_cache(None)
def runs_of_ci():
    """Leaves, and recipes with other losses, that have all traits of all runs.

    Whichever shows most of what was not shown yet comes next; among equals
    a leaf comes before a recipe with another loss, and a small model before
    a large one.
    """
    shown = {run: traits(*run) for run in every_run()}
    missing = set().union(*shown.values())
    left = sorted(
        shown,
        key=lambda run: (
            run[1] is not None,
            'digits' not in run[0].stem,
            'r101' in run[0].stem,
            str(run),
        ),
    )
    chosen = []
    while missing:
        chosen.append(max(left, key=lambda run: len(shown[run] & missing)))
        left.remove(chosen[-1])
        missing -= shown[chosen[-1]]
    return chosen


def test_the_runs_of_ci_are_a_choice():
    pytest.importorskip('mmdet')
    pytest.importorskip('mmseg')
    chosen = runs_of_ci()
    assert len(set(chosen)) == len(chosen)
    assert {loss for _, loss in chosen if loss} <= set(losses())
    assert {path.parent for path in leaves()} == {p.parent for p, _ in chosen}
    # What takes most of the time of CI.
    assert len(chosen) <= 100


def part_of_ci(path):
    """Classifiers, segmentors, or the folder of a detector."""
    path = path.relative_to(CONFIGS)
    kind = path.parts[0]
    return path.parent.as_posix() if kind == 'detection' else kind


@pytest.mark.slow
@pytest.mark.parametrize('part', sorted({part_of_ci(p) for p in leaves()}))
def test_the_runs_of_ci(
    environment, call, doubles, monkeypatch, tmp_path, part
):
    """In parts, for the processes of the tests to share them."""
    monkeypatch.chdir(tmp_path)
    chosen = [run for run in runs_of_ci() if part_of_ci(run[0]) == part]
    own = [path for path, loss in chosen if loss is None]
    calls = [own] if own else []
    for recipe in dict.fromkeys(path for path, loss in chosen if loss):
        others = [loss for path, loss in chosen if path == recipe and loss]
        calls.append([recipe, '--losses', *others])
    for arguments in calls:
        # One step before resuming, and one after it.
        code, out = call(*arguments, '--data-root', doubles, '--steps', 1)
        assert code == 0, out
    # The table has those of all calls.
    assert len(read()) == len(chosen)
    assert all(row['status'] == 'pass' for row in read().values())
