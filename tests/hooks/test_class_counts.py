"""``class_counts='auto'`` through the real Runner."""

import functools

import pytest
import torch
from mmengine.runner import Runner

from lt_losses_mm import integration
from lt_losses_mm.hooks import (
    ATTACHED,
    ClassCountsHook,
    LossSetupHook,
    training_data,
)
from lt_losses_mm.losses import BalancedSoftmaxLoss
from lt_losses_mm.losses.host_protocol import choose_counts
from lt_losses_mm.priors import ClassCounts, names

AUTO = dict(type='lt_losses_mm.BalancedSoftmaxLoss')
FIXED = dict(AUTO, class_counts=[6, 3, 1])
EQL = dict(type='lt_losses_mm.EqualizationSoftmaxLoss')
BALANCED = dict(type='ClassBalancedDataset', oversample_thr=0.9)


def counts_of(runner):
    return runner.model.head.loss_module.class_counts.tolist()


def messages(log, what):
    return [r.getMessage() for r in log[0] if what in r.getMessage()]


@pytest.mark.parametrize('named', [None, *ATTACHED])
def test_each_runner_has_one_of_each(make_runner, named):
    hooks = (
        dict(custom_hooks=[dict(type=f'lt_losses_mm.{named.__name__}')])
        if named
        else {}
    )
    runner = make_runner(**hooks)
    kinds = [type(hook) for hook in runner.hooks]
    assert [kinds.count(hook) for hook in ATTACHED] == [1] * len(ATTACHED)
    # What a head cannot serve need not be counted.
    assert kinds.index(LossSetupHook) < kinds.index(ClassCountsHook)


def test_installing_again_changes_nothing():
    register_hooks = Runner.register_hooks
    integration.install()
    assert Runner.register_hooks is register_hooks


def test_another_package_may_wrap_the_runner_first(monkeypatch):
    """functools.wraps marks their function, too."""
    plain = Runner.register_hooks
    while hasattr(plain, '__wrapped__'):
        plain = plain.__wrapped__

    @functools.wraps(plain)
    def theirs(self, *args, **kwargs):
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(Runner, 'register_hooks', theirs)
    integration.install()
    assert Runner.register_hooks is not theirs


def test_counts_are_there_before_the_first_batch(make_runner, log):
    runner = make_runner(AUTO)
    assert counts_of(runner) == []
    runner.train()
    assert counts_of(runner) == [6, 3, 1]
    (told,) = messages(log, 'filled from')
    assert 'PlaneDataset' in told and 'head.loss_module' in told


def test_counts_are_those_of_what_the_model_sees(make_runner, loader, log):
    for wrapper, expected in (
        (dict(type='RepeatDataset', times=2), [12, 6, 2]),
        (BALANCED, [12, 6, 3]),
    ):
        runner = make_runner(AUTO, train=loader(wrapper=wrapper))
        runner.train()
        drawn = torch.zeros(3)
        for i in range(len(runner.train_dataloader.dataset)):
            drawn[runner.train_dataloader.dataset[i]['gt_label']] += 1
        assert counts_of(runner) == drawn.tolist() == expected
    assert not messages(log, 'Double correction')


def test_counts_of_a_part_of_the_data(make_runner, loader):
    """num_batch_per_epoch draws the first samples alone."""
    train = loader(wrapper=dict(type='RepeatDataset', times=2))
    runner = make_runner(AUTO, train=dict(train, num_batch_per_epoch=3))
    runner.train()
    # Ten samples and then five of the same again.
    assert counts_of(runner) == [6 + 5, 3, 1]
    train = loader((6, 3, 1))
    runner = make_runner(AUTO, train=dict(train, num_batch_per_epoch=1))
    runner.train()
    assert counts_of(runner) == [5, 0, 0]


@pytest.mark.parametrize('update_buffers', [False, True])
def test_ema_copies_a_filled_model(make_runner, update_buffers):
    runner = make_runner(
        AUTO,
        custom_hooks=[dict(type='EMAHook', update_buffers=update_buffers)],
    )
    runner.train()
    ema = next(h for h in runner.hooks if type(h).__name__ == 'EMAHook')
    assert counts_of(runner) == [6, 3, 1]
    averaged = ema.ema_model.module.head.loss_module
    assert averaged.class_counts.tolist() == [6, 3, 1]


def test_the_checkpoint_holds_the_counts(make_runner, tmp_path):
    make_runner(AUTO).train()
    path = str(tmp_path / 'epoch_1.pth')
    state = torch.load(path, weights_only=False)['state_dict']
    assert state['head.loss_module.class_counts'].tolist() == [6, 3, 1]
    # A run that only tests has no training data.
    alone = make_runner(
        AUTO,
        load_from=path,
        train_dataloader=False,
        train_cfg=False,
        optim_wrapper=False,
    )
    alone.val()
    assert counts_of(alone) == [6, 3, 1]


def test_resume(make_runner, tmp_path, log):
    make_runner(AUTO).train()
    runner = make_runner(
        AUTO, resume=True, train_cfg=dict(by_epoch=True, max_epochs=2)
    )
    runner.train()
    assert runner.epoch == 2
    assert counts_of(runner) == [6, 3, 1]
    assert not messages(log, 'replaced')


def test_resume_equals_one_run(make_runner, tmp_path):
    two = dict(by_epoch=True, max_epochs=2)
    whole = make_runner(AUTO, train_cfg=two, work_dir=str(tmp_path / 'a'))
    whole.train()
    make_runner(AUTO, work_dir=str(tmp_path / 'b')).train()
    resumed = make_runner(
        AUTO, train_cfg=two, resume=True, work_dir=str(tmp_path / 'b')
    )
    resumed.train()
    for a, b in zip(whole.model.parameters(), resumed.model.parameters()):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_fine_tuning_takes_the_new_data_sets_counts(
    make_runner, loader, tmp_path, log
):
    make_runner(AUTO).train()
    path = str(tmp_path / 'epoch_1.pth')
    runner = make_runner(AUTO, train=loader((1, 2, 7)), load_from=path)
    runner.train()
    assert counts_of(runner) == [1, 2, 7]
    assert messages(log, 'replaced')


def test_fine_tuning_for_another_number_of_classes(
    make_runner, loader, tmp_path
):
    make_runner(AUTO).train()
    path = str(tmp_path / 'epoch_1.pth')
    runner = make_runner(
        AUTO,
        num_classes=4,
        train=loader((1, 2, 7, 1)),
        val_dataloader=loader((1, 1, 1, 1)),
        load_from=path,
    )
    runner.train()
    assert counts_of(runner) == [1, 2, 7, 1]


def test_explicit_counts_stay(make_runner, loader, tmp_path):
    make_runner(AUTO).train()
    runner = make_runner(
        FIXED, train=loader((1, 2, 7)), load_from=str(tmp_path / 'epoch_1.pth')
    )
    runner.train()
    assert counts_of(runner) == [6, 3, 1]


@pytest.mark.parametrize('kind', ['Softmax', 'Sigmoid'])
def test_double_correction_warns_once(make_runner, loader, log, kind):
    make_runner(
        dict(FIXED, type=f'lt_losses_mm.Balanced{kind}Loss'),
        train=loader(wrapper=BALANCED),
        train_cfg=dict(by_epoch=True, max_epochs=2),
    ).train()
    (warning,) = messages(log, 'Double correction')
    assert 'ClassBalancedDataset(oversample_thr=0.9)' in warning
    assert 'head.loss_module' in warning and "'auto'" in warning


@pytest.mark.parametrize(
    'loss, wrapper',
    [
        (FIXED, None),
        (FIXED, dict(type='RepeatDataset', times=2)),
        (dict(FIXED, tau=0), BALANCED),
        (AUTO, BALANCED),
        # Their counts tell rare classes from frequent ones, or are for plots.
        (dict(EQL, class_counts=[6, 3, 1], threshold=2), BALANCED),
        (dict(type='lt_losses_mm.SoftmaxEqualizationLoss'), BALANCED),
        (
            dict(
                type='lt_losses_mm.SoftmaxEqualizationLoss',
                class_counts=[6, 3, 1],
            ),
            BALANCED,
        ),
    ],
)
def test_no_double_correction(make_runner, loader, log, loss, wrapper):
    make_runner(loss, train=loader(wrapper=wrapper)).train()
    assert not messages(log, 'Double correction')


def test_a_run_that_only_validates_counts_nothing(make_runner):
    runner = make_runner(
        AUTO, train_dataloader=False, train_cfg=False, optim_wrapper=False
    )
    runner.val()
    assert counts_of(runner) == []


def test_the_data_are_not_counted_without_need(make_runner, monkeypatch):
    monkeypatch.setattr(training_data, 'count_dataset', None)
    make_runner(FIXED).train()


def test_validation_between_epochs(make_runner):
    runner = make_runner(
        AUTO, train_cfg=dict(by_epoch=True, max_epochs=2, val_interval=1)
    )
    runner.train()
    (metric,) = runner.val_loop.evaluator.metrics
    assert len(metric.seen) == 2


@pytest.mark.parametrize('given', [[6, 3], [6, 3, 1, 1]], ids=str)
def test_counts_must_be_those_of_the_head(make_runner, given):
    """Two counts for three classes: the third would pass as background."""
    runner = make_runner(dict(AUTO, class_counts=given))
    with pytest.raises(
        ValueError,
        match=r'head.loss_module: class_counts=\[6.*'
        f'num_classes=3 of PlaneHead, not {len(given)} classes',
    ):
        runner.train()


def test_losses_in_a_list(make_runner, loader, monkeypatch):
    """Mmseg's loss_decode: a ModuleList, each loss with counts of its own."""
    runner = make_runner(AUTO)
    runner.model.head.more = torch.nn.ModuleList(
        [BalancedSoftmaxLoss(), BalancedSoftmaxLoss(class_counts=[5, 4, 3])]
    )
    runner.train()
    first, second = runner.model.head.more
    assert first.class_counts.tolist() == [6, 3, 1]
    assert second.class_counts.tolist() == [5, 4, 3]


def test_data_without_class_names_take_the_heads_number(
    make_runner, monkeypatch
):
    monkeypatch.setattr(
        'mmengine.dataset.BaseDataset.metainfo', property(lambda self: {})
    )
    runner = make_runner(AUTO)
    runner.train()
    assert counts_of(runner) == [6, 3, 1]


def test_metrics_without_the_data_use_the_checkpoint(make_runner, log):
    runner = make_runner(
        AUTO, train_dataloader=False, train_cfg=False, optim_wrapper=False
    )
    runner.model.head.loss_module.set_class_counts([60, 30, 10])
    counts = ClassCountsHook()._natural_counts(runner, None)
    assert counts.counts.tolist() == [60, 30, 10]
    assert any('in the checkpoint' in r.getMessage() for r in log[0])


def test_groups_are_those_of_the_samples_that_are_drawn(make_runner, loader):
    balanced = dict(loader(wrapper=BALANCED), num_batch_per_epoch=2)
    for train, expected in (
        (loader(wrapper=BALANCED), [6, 3, 1]),
        # Of twenty-one draws the first ten, five samples of class 0.
        (balanced, [5, 0, 0]),
    ):
        runner = make_runner(AUTO, train=train)
        counts = ClassCountsHook()._natural_counts(runner, None)
        assert counts.counts.tolist() == expected


def test_other_failures_are_not_taken_for_missing_data(
    make_runner, monkeypatch
):
    def fail(*args, **kwargs):
        raise RuntimeError('the main process failed')

    runner = make_runner(AUTO)
    runner.train()
    monkeypatch.setattr(training_data, 'natural_counts', fail)
    with pytest.raises(RuntimeError, match='main process'):
        ClassCountsHook()._natural_counts(runner, None)


@pytest.fixture
def named(tmp_path):
    """A file of counts with names, which are not in the order of the data."""
    path = tmp_path / 'named.json'
    ClassCounts([6, 1, 3], names=('a', 'c', 'b'), source='me').save(path)
    return dict(AUTO, class_counts=str(path))


def test_counts_of_a_file_are_joined_by_name(make_runner, named, log):
    runner = make_runner(named)
    runner.train()
    assert counts_of(runner) == [6, 3, 1]
    assert runner.model.head.loss_module.known_counts.names == tuple('abc')
    (told,) = messages(log, 'joined by name')
    assert 'named.json' in told and "'c' 1 / 2" in told


def test_counts_of_a_file_with_other_names(make_runner, loader, named):
    runner = make_runner(named, train=loader(names='abd'))
    with pytest.raises(ValueError, match="named.json.*missing: 'd'"):
        runner.train()


def test_counts_of_a_file_for_a_part_of_the_classes(make_runner, tmp_path):
    path = tmp_path / 'part.json'
    ClassCounts([6, 1], names=('a', 'c'), source='me').save(path)
    runner = make_runner(dict(AUTO, class_counts=str(path)))
    with pytest.raises(ValueError, match="part.json.*missing: 'b'"):
        runner.train()


@pytest.mark.parametrize('kind', ['BalancedSoftmaxLoss', 'SeesawSoftmaxLoss'])
def test_counts_of_a_file_with_further_classes(make_runner, tmp_path, kind):
    path = tmp_path / 'more.json'
    ClassCounts([1, 9, 6, 3], names=('c', 'd', 'a', 'b')).save(path)
    loss = dict(type=f'lt_losses_mm.{kind}', class_counts=str(path))
    runner = make_runner(loss)
    runner.train()
    assert counts_of(runner) == [6, 3, 1]
    alone = make_runner(
        loss,
        load_from=str(tmp_path / 'epoch_1.pth'),
        train_dataloader=False,
        train_cfg=False,
        optim_wrapper=False,
    )
    alone.val()
    assert counts_of(alone) == [6, 3, 1]


def test_roi_heads_take_counts_of_further_classes():
    counts = ClassCounts([1, 9, 6, 3], names=('c', 'd', 'a', 'b'))
    loss = BalancedSoftmaxLoss(class_counts=counts)
    assert loss.get_cls_channels(3) == 4
    choose_counts(loss, ClassCounts([6, 3, 1], names=tuple('abc')))
    assert (loss.num_classes, loss.class_counts.tolist()) == (3, [6, 3, 1])
    with pytest.raises(
        ValueError, match="class_counts='4 counts', expected 3"
    ):
        BalancedSoftmaxLoss(class_counts=[1, 9, 6, 3]).get_cls_channels(3)


def test_counts_of_classes_that_a_transform_makes(
    make_runner, loader, tmp_path
):
    path = tmp_path / 'two.json'
    ClassCounts([6, 4], names=('yes', 'no'), source='me').save(path)
    runner = make_runner(
        dict(AUTO, class_counts=str(path)),
        num_classes=2,
        train=loader((6, 0, 0)),
    )
    runner.train()
    assert counts_of(runner) == [6, 4]


def test_empty_classes_are_named(make_runner, loader, log):
    make_runner(AUTO, train=loader((6, 0, 1))).train()
    (told,) = messages(log, 'no training sample')
    assert 'head.loss_module: 1 of 3 classes' in told and "'b'" in told


@pytest.mark.parametrize('loss', [AUTO, FIXED, EQL], ids=lambda x: x['type'])
def test_validation_with_other_labels(make_runner, loader, loss, log):
    """A folder without a picture of b: c is label 1 there, and 2 here."""
    data = loader((2, 2), names='ac')
    names._say_once.cache_clear()
    # A metric of somebody's own may not compare labels.
    make_runner(loss, val_dataloader=data).train()
    told, lacks = messages(log, 'the evaluated data')
    assert "the evaluated data have no 'c'" in lacks
    for words in ('training data', "'c' 2 / 1", 'Fix: '):
        assert words in told
    ours = dict(type='lt_losses_mm.LongTailAccuracy')
    runner = make_runner(loss, val_dataloader=data, val_evaluator=ours)
    with pytest.raises(ValueError, match="'c' 2 / 1.*Fix: "):
        runner.train()


def test_validation_without_the_last_class(make_runner, loader, log):
    """No label is shifted: told at the start, and evaluated where it can."""
    data = loader((2, 2), names='ab')
    names._say_once.cache_clear()
    make_runner(AUTO, val_dataloader=data).train()
    (told,) = messages(log, "the evaluated data have no 'c'")
    assert 'Fix: write metainfo=dict(classes=(...)) in the evaluated' in told
    # A COCO file that lacks a category of metainfo.
    runner = make_runner(AUTO)
    coco = runner.val_loop.dataloader.dataset
    coco.cat_ids, coco.ann_file = [3, 5], 'val.json'
    runner.train()
    (told,) = messages(log, 'an IndexError in CocoMetric')
    assert "'c'" in told and "add them to the categories of 'val.json'" in told
    for counts in ('auto', [60, 30, 10]):
        ours = dict(type='lt_losses_mm.LongTailAccuracy', class_counts=counts)
        runner = make_runner(AUTO, val_dataloader=data, val_evaluator=ours)
        (metric,) = runner.val_loop.evaluator.metrics
        metric.process = lambda *args: None
        metric.evaluate = lambda size: {}
        runner.train()
        assert metric.class_counts.num_classes == 3
    ours['type'] = 'lt_losses_mm.FrequencyGroupIoU'
    runner = make_runner(AUTO, val_dataloader=data, val_evaluator=ours)
    with pytest.raises(ValueError, match="evaluated data have no 'c'"):
        runner.train()
    assert runner.iter == 0


@pytest.mark.parametrize('loss', [AUTO, EQL], ids=lambda x: x['type'])
@pytest.mark.parametrize('counts', ['auto', [6, 3, 1], None], ids=str)
def test_validation_with_one_class_more(
    make_runner, loader, log, counts, loss
):
    data = loader((2, 2, 2, 2))
    names._say_once.cache_clear()
    make_runner(loss, val_dataloader=data).train()
    (told,) = messages(log, "have 'd' besides")
    assert 'Fix: take them out of the evaluated data' in told
    ours = dict(type='lt_losses_mm.LongTailAccuracy', class_counts=counts)
    runner = make_runner(loss, val_dataloader=data, val_evaluator=ours)
    with pytest.raises(ValueError, match="have 'd' besides.*Fix: take them"):
        runner.train()
    assert runner.iter == 0


def test_resume_with_other_labels(make_runner, loader, tmp_path):
    make_runner(AUTO).train()
    moved = dict(train=loader(names='acb'), val_dataloader=loader(names='acb'))
    two = dict(by_epoch=True, max_epochs=2)
    runner = make_runner(AUTO, resume=True, train_cfg=two, **moved)
    with pytest.raises(ValueError, match="checkpoint.*'b' 1 / 2, 'c' 2 / 1"):
        runner.train()
    assert runner.iter == 2
    # Fine-tuning is free.
    path = str(tmp_path / 'epoch_1.pth')
    make_runner(AUTO, load_from=path, **moved).train()


@pytest.mark.parametrize('run', ['val', 'test'])
def test_labels_of_a_checkpoint_are_those_of_the_test_data(
    make_runner, loader, tmp_path, log, run
):
    """The config has changed its training data as well."""
    make_runner(AUTO).train()
    moved = loader((2, 2, 2), names='acb')
    names._say_once.cache_clear()

    def evaluate(metric):
        runner = make_runner(
            AUTO,
            train=loader(names='acb'),
            val_dataloader=moved,
            val_evaluator=metric,
            test_dataloader=moved,
            test_evaluator=metric,
            test_cfg=dict(),
            load_from=str(tmp_path / 'epoch_1.pth'),
        )
        getattr(runner, run)()

    evaluate(dict(type='PlaneMetric'))
    (told,) = messages(log, 'the evaluated data')
    assert "'b' 1 / 2, 'c' 2 / 1" in told
    for counts in ('auto', [6, 3, 1], None):
        ours = dict(type='lt_losses_mm.LongTailAccuracy', class_counts=counts)
        with pytest.raises(ValueError, match="'b' 1 / 2, 'c' 2 / 1"):
            evaluate(ours)


def test_test_data_with_other_labels(make_runner, loader, tmp_path):
    metric = dict(
        val_dataloader=loader(names='acb'),
        val_evaluator=dict(type='lt_losses_mm.LongTailAccuracy'),
    )
    with pytest.raises(ValueError, match="'b' 1 / 2, 'c' 2 / 1"):
        make_runner(AUTO, **metric).val()
    make_runner(AUTO).train()
    # The checkpoint has the names of the labels, whatever metainfo says, where
    # the training data are not there.
    path = tmp_path / 'epoch_1.pth'
    checkpoint = torch.load(path, weights_only=False)
    assert checkpoint['meta']['label_names'] == ('a', 'b', 'c')
    checkpoint['meta']['dataset_meta'] = dict(classes=('a', 'c', 'b'))
    torch.save(checkpoint, path)
    alone = make_runner(
        AUTO,
        load_from=str(path),
        train_dataloader=False,
        train_cfg=False,
        optim_wrapper=False,
        **metric,
    )
    with pytest.raises(ValueError, match="'b' 1 / 2, 'c' 2 / 1"):
        alone.val()


@pytest.mark.parametrize('trained_here', [True, False])
def test_counts_of_a_file_in_a_run_that_only_tests(
    make_runner, named, tmp_path, trained_here
):
    """The file has the order a, c, b, and labels have a, b, c."""
    make_runner(named).train()
    path = tmp_path / 'epoch_1.pth'
    if not trained_here:  # without this package, which saves the names
        checkpoint = torch.load(path, weights_only=False)
        del checkpoint['meta']['label_names']
        torch.save(checkpoint, path)
    alone = make_runner(
        named,
        load_from=str(path),
        train_dataloader=False,
        train_cfg=False,
        optim_wrapper=False,
        val_evaluator=dict(type='lt_losses_mm.LongTailAccuracy'),
    )
    (metric,) = alone.val_loop.evaluator.metrics
    metric.process = lambda *args: None
    metric.evaluate = lambda size: {}
    alone.val()
    assert metric.class_counts.counts.tolist() == [6, 3, 1]


def test_groups_of_a_file_are_joined_by_name(make_runner, named, log):
    evaluator = dict(
        type='lt_losses_mm.LongTailAccuracy',
        class_counts=named['class_counts'],
    )
    runner = make_runner(AUTO, val_evaluator=evaluator)
    runner.train_cfg = None
    runner._val_loop = runner.build_val_loop(runner._val_loop)
    ClassCountsHook()._fill_metrics(runner, runner._val_loop)
    (metric,) = runner._val_loop.evaluator.metrics
    assert metric.class_counts.counts.tolist() == [6, 3, 1]
