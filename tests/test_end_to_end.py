"""Each host's Runner trains, saves, resumes and tests our configs."""

from pathlib import Path

import pytest
import torch
from mmengine.runner import Runner

from lt_losses_mm.datasets import DigitsProfile, prepare_digits
from lt_losses_mm.recipes import read_config

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).parent.parent / 'configs'
PROFILE = dict(
    num_classes=40, max_count=12, imbalance_factor=12.0, test_count=1
)
TASKS = dict(
    classification=(
        'mmpretrain',
        'head.loss_module',
        ['accuracy/all', 'accuracy/few', 'accuracy/ece', 'accuracy/top1'],
    ),
    detection=(
        'mmdet',
        'roi_head.bbox_head.loss_cls',
        [f'lvis/bbox_AP{group}' for group in ('', 'r', 'c')],
    ),
    segmentation=(
        'mmseg',
        'decode_head.loss_decode',
        ['mIoU', 'iou/mIoU', 'iou/head', 'iou/tail'],
    ),
)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('data') / 'digits'
    prepare_digits(root, DigitsProfile(**PROFILE))
    return root


def run(task, method, root, work_dir, epochs, test=False, **options):
    host = TASKS[task][0]
    pytest.importorskip(host)
    (path,) = (CONFIGS / task / 'digits').glob('*cross-entropy*.py')
    cfg = read_config(path, method)
    cfg.work_dir = str(work_dir)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.update(root=str(root), profile=PROFILE)
    cfg.test_dataloader = cfg.val_dataloader
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        if isinstance(evaluator, dict):
            evaluator.ann_file = str(root / 'lvis' / 'test.json')
    cfg.train_cfg.update(max_epochs=epochs, val_interval=epochs)
    cfg.merge_from_dict(options)
    cfg.experiment_name = work_dir.name + str(len(list(work_dir.glob('*'))))
    runner = Runner.from_cfg(cfg)
    return runner, (runner.test() if test else runner.train())


@pytest.mark.parametrize('method', ['balanced_softmax', 'balanced_sigmoid'])
@pytest.mark.parametrize('task', TASKS)
def test_train_save_resume_test(task, method, root, tmp_path):
    _, loss, metrics = TASKS[task]
    run(task, method, root, tmp_path, epochs=1)
    first = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)
    counts = first['state_dict'][f'{loss}.class_counts']
    assert counts.shape == (40,) and counts.max() > 5 * counts.min()

    runner, _ = run(task, method, root, tmp_path, epochs=2, resume=True)
    assert runner.epoch == 2
    last = torch.load(tmp_path / 'epoch_2.pth', weights_only=False)
    assert last['meta']['iter'] == 2 * first['meta']['iter']
    torch.testing.assert_close(
        last['state_dict'][f'{loss}.class_counts'], counts
    )

    checkpoint = str(tmp_path / 'epoch_2.pth')
    options = dict(load_from=checkpoint)
    tester, plain = run(task, method, root, tmp_path, 2, True, **options)
    assert set(metrics) <= plain.keys()
    assert all(value >= 0 for key, value in plain.items() if key in metrics)
    assert tester.model.get_submodule(loss).class_counts.equal(counts)

    options['custom_hooks'] = [
        dict(type='lt_losses_mm.PostHocLogitAdjustmentHook', tau=50.0)
    ]
    _, adjusted = run(task, method, root, tmp_path, 2, True, **options)
    assert any(adjusted[name] != plain[name] for name in metrics)


@pytest.mark.parametrize('task', TASKS)
def test_statistics_go_on_after_a_resume(task, root, tmp_path):
    """They are committed in each host, and are part of its checkpoints."""
    key = f'{TASKS[task][1]}.statistics.sums'
    sums = []
    for epoch in (1, 2):
        run(
            task,
            'sigmoid_equalization',
            root,
            tmp_path,
            epochs=epoch,
            resume=epoch == 2,
        )
        path = tmp_path / f'epoch_{epoch}.pth'
        state = torch.load(path, weights_only=False)['state_dict']
        sums.append(state[key])
    first, last = sums
    assert first.shape == (3, 40) and first.dtype == torch.float64
    assert first.isfinite().all() and (first[1] > 0).all()
    assert (last >= first).all() and (last[1] > first[1]).all()
    seen, again = (s[2].sum().item() for s in sums)
    assert seen > 0 and 1.5 * seen < again < 2.5 * seen
