# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""``tools/train.py`` and ``tools/test.py``, run as scripts in this process."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

TOOLS = Path(__file__).parents[2] / 'tools'

CONFIG = """
default_scope = 'mmpretrain'
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
train_dataloader = dict(batch_size=4, num_workers=0)
val_dataloader = dict(batch_size=4, num_workers=2)
val_cfg = dict()
val_evaluator = dict(type='Accuracy')
custom_hooks = [dict(type='EMAHook')]
load_from = 'pretrained.pth'
"""


class RecordingRunner:
    """Stands in for a runner: notes its config and what it is asked to do."""

    def __init__(self, cfg: Config) -> None:
        self.cfg = cfg
        self.called: list[str] = []

    def train(self) -> None:
        self.called.append('train')

    def test(self) -> None:
        self.called.append('test')


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Run a tool with arguments in an empty folder; return its runner."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(TOOLS))
    monkeypatch.setenv('LOCAL_RANK', '')
    monkeypatch.delenv('LOCAL_RANK')
    Path('cfg.py').write_text(CONFIG)
    Path('model.pth').touch()

    def call(tool: str, *arguments: str) -> RecordingRunner:
        built = []

        def from_cfg(cfg):
            built.append(RecordingRunner(cfg))
            return built[-1]

        monkeypatch.setattr(Runner, 'from_cfg', from_cfg)
        monkeypatch.setattr(sys, 'argv', [f'{tool}.py', *arguments])
        monkeypatch.delitem(sys.modules, '_launch', raising=False)
        runpy.run_path(str(TOOLS / f'{tool}.py'), run_name='__main__')
        (runner,) = built
        assert runner.called == [tool]
        return runner

    return call


@pytest.fixture
def error(call, capsys):
    """Run a tool that must refuse its arguments; return what it says."""

    def error(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stop:
            call(*arguments)
        assert stop.value.code == 2
        return capsys.readouterr().err

    return error


def append(text: str) -> None:
    Path('cfg.py').write_text(CONFIG + text)


@pytest.mark.parametrize(
    'arguments', [('train', 'cfg.py'), ('test', 'cfg.py', 'model.pth')]
)
class TestBoth:
    def test_work_dir_is_option_then_config_then_name(self, call, arguments):
        assert call(*arguments).cfg.work_dir == 'work_dirs/cfg'
        append("work_dir = 'mine'\n")
        assert call(*arguments).cfg.work_dir == 'mine'
        assert call(*arguments, '--work-dir', 'x').cfg.work_dir == 'x'

    def test_cfg_options_keep_their_types(self, call, arguments):
        cfg = call(
            *arguments,
            '--cfg-options',
            'optim_wrapper.optimizer.lr=0.5',
            'new.shape=[8,9]',
        ).cfg
        assert cfg.optim_wrapper.optimizer.lr == 0.5
        assert cfg.new.shape == [8, 9]

    def test_launcher_and_local_rank(self, call, arguments):
        assert call(*arguments).cfg.launcher == 'none'
        assert os.environ['LOCAL_RANK'] == '0'
        del os.environ['LOCAL_RANK']
        # torch.distributed.launch passes --local_rank up to torch 1,
        # --local-rank from torch 2 on.
        call(*arguments, '--local_rank', '2')
        assert os.environ['LOCAL_RANK'] == '2'
        cfg = call(*arguments, '--launcher', 'pytorch', '--local-rank=3').cfg
        assert cfg.launcher == 'pytorch'
        assert os.environ['LOCAL_RANK'] == '2', 'the environment comes first'

    def test_missing_config(self, error, arguments):
        tool, _, *rest = arguments
        message = error(tool, 'configs/nothing.py', *rest)
        assert "no such file: 'configs/nothing.py'" in message
        assert f'mim {tool} mm-lt-losses NAME.py' in message

    RECIPE = (
        "_base_ = ['losses/{{$LT_LOSS:cross_entropy}}.py']\n"
        "model = dict(head=dict(loss=_base_.pop('lt_loss')))\n"
    )

    @pytest.fixture
    def recipe(self, monkeypatch):
        """A config that takes its loss from LT_LOSS."""
        # Undone after the test, whatever the tools set.
        monkeypatch.setenv('LT_LOSS', 'seesaw')
        monkeypatch.delenv('LT_LOSS')
        Path('losses').symlink_to(TOOLS.parent / 'configs/_base_/losses')
        Path('cfg.py').write_text(self.RECIPE + CONFIG)

    @pytest.mark.parametrize('by', ['option', 'environment'])
    def test_the_loss_of_a_recipe(
        self, call, arguments, recipe, monkeypatch, capsys, by
    ):
        cfg = call(*arguments).cfg
        assert cfg.model.head.loss.type == 'CrossEntropyLoss'
        assert cfg.work_dir == 'work_dirs/cfg'
        if by == 'option':
            arguments = (*arguments, '--loss', 'balanced_softmax')
        else:
            monkeypatch.setenv('LT_LOSS', 'balanced_softmax')
        cfg = call(*arguments).cfg
        assert cfg.model.head.loss.type == 'lt_losses_mm.BalancedSoftmaxLoss'
        # The baseline is not resumed, nor overwritten.
        assert cfg.work_dir == 'work_dirs/cfg_balanced-softmax'
        # On record in the config that the Runner writes.
        assert 'lt_losses_mm.BalancedSoftmaxLoss' in cfg.pretty_text

    def test_an_unknown_loss(self, error, arguments, recipe):
        message = ' '.join(error(*arguments, '--loss', 'seasaw').split())
        assert "LT_LOSS='seasaw', expected a file of" in message
        assert 'quality_focal, seesaw, sigmoid_equalization' in message

    @pytest.mark.parametrize('text', ['', "_base_ = 'named.py'\n"])
    def test_a_config_with_a_loss_of_its_own(
        self, error, call, arguments, recipe, monkeypatch, text
    ):
        Path('named.py').write_text(
            "_base_ = ['recipe.py', 'losses/seesaw.py']\n"
            'model = dict(head=dict(loss={{_base_.lt_loss}}))\n'
        )
        Path('cfg.py').rename('recipe.py')
        Path('cfg.py').write_text(text or CONFIG)
        call(*arguments)
        monkeypatch.setenv('LT_LOSS', 'balanced_softmax')
        message = ' '.join(error(*arguments).split())
        assert "cfg.py: LT_LOSS='balanced_softmax', expected none" in message
        assert 'unset LT_LOSS' in message

    def test_missing_host(self, error, arguments, monkeypatch):
        # Nothing but an installed module makes find_spec find mmseg.
        append("default_scope = 'mmseg'\n")
        monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
        message = error(*arguments)
        assert "default_scope='mmseg' in cfg.py" in message
        assert 'onedl-mmsegmentation' in message
        assert 'mmsegmentation (classic' in message

    def test_mmpretrain_dataloaders(self, call, arguments):
        cfg = call(*arguments).cfg
        assert cfg.train_dataloader == dict(
            batch_size=4,
            num_workers=0,
            collate_fn=dict(type='default_collate'),
            pin_memory=torch.cuda.is_available(),
            persistent_workers=False,
        )
        assert cfg.val_dataloader.persistent_workers is True
        assert 'test_dataloader' not in cfg

    def test_mmpretrain_dataloaders_as_written(self, call, arguments):
        cfg = call(
            *arguments,
            '--cfg-options',
            'val_dataloader.persistent_workers=False',
            'val_dataloader.collate_fn.type=pseudo_collate',
        ).cfg
        assert cfg.val_dataloader.persistent_workers is False
        assert cfg.val_dataloader.collate_fn.type == 'pseudo_collate'

    def test_other_hosts_keep_their_dataloaders(self, call, arguments):
        append("default_scope = 'mmengine'\n")
        cfg = call(*arguments).cfg
        assert cfg.train_dataloader == dict(batch_size=4, num_workers=0)

    def test_runner_type(self, call, arguments, monkeypatch):
        append("runner_type = 'MyRunner'\n")
        built = []
        monkeypatch.setattr(
            'mmengine.registry.RUNNERS.build',
            lambda cfg: built.append(cfg) or RecordingRunner(cfg),
        )
        with pytest.raises(ValueError, match='not enough values'):
            call(*arguments)  # Runner.from_cfg built none
        assert built[0].runner_type == 'MyRunner'

    def test_plugin_bases_are_known_while_parsing(self, call, arguments):
        from mmengine.config.utils import MODULE2PACKAGE

        call(*arguments)
        assert MODULE2PACKAGE['mmseg'] == 'mmseg'
        assert MODULE2PACKAGE['lt_losses_mm'] == 'lt_losses_mm'

    def test_help_offers_no_gpus(self, call, arguments, capsys):
        # mim adds --gpus or --device to tools whose help mentions --gpus.
        with pytest.raises(SystemExit) as stop:
            call(arguments[0], '--help')
        assert stop.value.code == 0
        assert '--gpus' not in capsys.readouterr().out


class TestTrain:
    @pytest.mark.parametrize(
        ('arguments', 'resume', 'load_from'),
        [
            ((), None, 'pretrained.pth'),
            (('--resume',), True, None),
            (('--resume', 'auto'), True, None),
            (('--resume', 'epoch_3.pth'), True, 'epoch_3.pth'),
        ],
    )
    def test_resume(self, call, arguments, resume, load_from):
        cfg = call('train', 'cfg.py', *arguments).cfg
        assert cfg.get('resume') is resume
        assert cfg.load_from == load_from

    def test_no_validate(self, call):
        cfg = call('train', 'cfg.py', '--no-validate').cfg
        assert cfg.val_cfg is None
        assert cfg.val_dataloader is None
        assert cfg.val_evaluator is None

    def test_auto_scale_lr(self, call):
        append('auto_scale_lr = dict(base_batch_size=16)\n')
        assert 'enable' not in call('train', 'cfg.py').cfg.auto_scale_lr
        cfg = call('train', 'cfg.py', '--auto-scale-lr').cfg
        assert cfg.auto_scale_lr == dict(base_batch_size=16, enable=True)

    @pytest.mark.parametrize(
        'text',
        ['', 'auto_scale_lr = None\n', 'auto_scale_lr = dict(enable=False)\n'],
    )
    def test_auto_scale_lr_without_base(self, error, call, text):
        append(text)
        message = error('train', 'cfg.py', '--auto-scale-lr')
        assert 'no auto_scale_lr.base_batch_size' in ' '.join(message.split())

    @pytest.mark.parametrize('text', ['', "optim_wrapper.update(type='{}')\n"])
    @pytest.mark.parametrize('name', ['OptimWrapper', 'mmengine.OptimWrapper'])
    def test_amp(self, call, monkeypatch, text, name):
        monkeypatch.setattr('mmengine.device.get_device', lambda: 'cuda')
        append(text.format(name))
        cfg = call('train', 'cfg.py', '--amp').cfg
        assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
        assert cfg.optim_wrapper.loss_scale == 'dynamic'
        assert cfg.optim_wrapper.optimizer.type == 'SGD'

    def test_amp_keeps_the_loss_scale(self, call, monkeypatch):
        monkeypatch.setattr('mmengine.device.get_device', lambda: 'cuda')
        append('optim_wrapper.update(loss_scale=512.)\n')
        cfg = call('train', 'cfg.py', '--amp').cfg
        assert cfg.optim_wrapper.loss_scale == 512.0

    def test_amp_in_the_config_already(self, call):
        append("optim_wrapper.update(type='AmpOptimWrapper', dtype='x')\n")
        cfg = call('train', 'cfg.py', '--amp').cfg
        assert cfg.optim_wrapper.dtype == 'x'
        assert 'loss_scale' not in cfg.optim_wrapper

    def test_amp_beside_another_wrapper(self, error, call):
        append("optim_wrapper.update(type='ApexOptimWrapper')\n")
        message = error('train', 'cfg.py', '--amp')
        assert "optim_wrapper.type is 'ApexOptimWrapper'" in message

    def test_amp_without_accelerator(self, error, monkeypatch):
        monkeypatch.setattr('mmengine.device.get_device', lambda: 'cpu')
        assert 'no accelerator found' in error('train', 'cfg.py', '--amp')


class TestTest:
    def test_checkpoint_is_loaded_not_resumed(self, call):
        append('resume = True\n')
        cfg = call('test', 'cfg.py', 'model.pth').cfg
        assert cfg.load_from == 'model.pth'
        assert cfg.resume is False

    def test_checkpoint_may_be_a_url(self, call):
        url = 'https://example.org/model.pth'
        assert call('test', 'cfg.py', url).cfg.load_from == url

    def test_missing_checkpoint(self, error):
        message = error('test', 'cfg.py', 'nothing.pth')
        assert "checkpoint: no such file: 'nothing.pth'" in message

    def test_post_hoc_tau(self, call):
        hooks = call('test', 'cfg.py', 'model.pth').cfg.custom_hooks
        assert hooks == [dict(type='EMAHook')]
        argument = '--post-hoc-tau=1.5'
        cfg = call('test', 'cfg.py', 'model.pth', argument).cfg
        assert cfg.custom_hooks == [
            dict(type='EMAHook'),
            dict(type='lt_losses_mm.PostHocLogitAdjustmentHook', tau=1.5),
        ]

    def test_post_hoc_tau_without_other_hooks(self, call):
        append('custom_hooks = None\n')
        cfg = call('test', 'cfg.py', 'model.pth', '--post-hoc-tau', '0.5').cfg
        (hook,) = cfg.custom_hooks
        assert hook.tau == 0.5

    def test_out_must_be_a_pickle(self, error):
        message = error('test', 'cfg.py', 'model.pth', '--out', 'a.json')
        assert "got 'a.json'" in message


TOY = """
default_scope = 'mmengine'
model = dict(type='ToyModel')
dataset = [dict(x=float(i)) for i in range(4)]
sampler = dict(type='DefaultSampler', shuffle=False)
train_dataloader = dict(
    batch_size=2, num_workers=0, dataset=dataset, sampler=sampler)
test_dataloader = train_dataloader
test_evaluator = dict(type='ToyMetric')
train_cfg = dict(by_epoch=True, max_epochs=1)
test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
"""


def test_train_resume_and_test_with_a_real_runner(
    monkeypatch, tmp_path, capsys
):
    """The arguments do in MMEngine what their help says."""
    import pickle

    from mmengine.evaluator import BaseMetric
    from mmengine.model import BaseModel
    from mmengine.registry import METRICS, MODELS

    seen = []

    class ToyModel(BaseModel):
        def __init__(self, data_preprocessor=None):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x, mode='tensor'):
            seen.append(mode)
            out = self.weight - torch.as_tensor(x)
            return dict(loss=out.abs().mean()) if mode == 'loss' else [out]

    class ToyMetric(BaseMetric):
        def process(self, data_batch, data_samples):
            self.results.extend(data_samples)

        def compute_metrics(self, results):
            return dict(number=len(results))

    monkeypatch.setitem(MODELS._module_dict, 'ToyModel', ToyModel)
    monkeypatch.setitem(METRICS._module_dict, 'ToyMetric', ToyMetric)
    monkeypatch.syspath_prepend(str(TOOLS))
    monkeypatch.chdir(tmp_path)
    Path('toy.py').write_text(TOY)

    def call(tool, *arguments):
        seen.clear()
        monkeypatch.setattr(sys, 'argv', [tool, 'toy.py', *arguments])
        runpy.run_path(str(TOOLS / f'{tool}.py'), run_name='__main__')

    call('train')
    assert seen == ['loss'] * 2
    call('train', '--resume', '--cfg-options', 'train_cfg.max_epochs=3')
    assert seen == ['loss'] * 4, 'epochs 2 and 3 only'
    checkpoint = 'work_dirs/toy/epoch_3.pth'
    assert torch.load(checkpoint, weights_only=False)['meta']['iter'] == 6

    call('test', checkpoint, '--out', 'out.pkl')
    assert seen == ['predict'] * 2
    with open('out.pkl', 'rb') as file:
        assert len(pickle.load(file)) == 2
