"""What an evaluation would say after an epoch is said at the start."""

import importlib.util
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from lt_losses_mm.metrics import LongTailAccuracy

REMOVED = not hasattr(np, 'float')


@pytest.fixture
def lvis_eval(monkeypatch, tmp_path):
    path = tmp_path / 'eval.py'
    path.write_text('import numpy as np\n\ndef f():\n    return np.float\n')
    spec = importlib.util.spec_from_file_location('lvis.eval', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, 'lvis.eval', module)
    return module


@pytest.mark.skipif(not REMOVED, reason='this NumPy still has np.float')
@pytest.mark.parametrize('run', ['train', 'val', 'test'])
def test_a_runner_mends_lvis(make_runner, loader, lvis_eval, run):
    runner = make_runner(
        test_dataloader=loader((2, 2, 2)),
        test_cfg=dict(),
        test_evaluator=dict(type='PlaneMetric'),
    )
    with pytest.raises(AttributeError):
        lvis_eval.f()
    getattr(runner, run)()
    assert lvis_eval.f() is float


class PlaneAccuracy(LongTailAccuracy):
    """Of points that are all taken for class 0."""

    def process(self, data_batch, data_samples):
        self.check_class_counts(3)
        self.results += [(i % 3, 0, 1.0, 3) for i in range(len(data_samples))]


@pytest.fixture
def evaluate(make_runner, loader):
    """A run with our metric, and what its hooks ask for."""

    def make(save_best=None, metric=None, val=(2, 2, 2), **kwargs):
        METRICS.register_module(module=PlaneAccuracy, force=True)
        if save_best is not None:
            kwargs['default_hooks'] = dict(
                logger=None,
                checkpoint=dict(
                    type='CheckpointHook', save_best=save_best, rule='greater'
                ),
            )
        return make_runner(
            train=loader((60, 30, 10)),
            val_dataloader=loader(val),
            val_evaluator=metric or dict(type='PlaneAccuracy'),
            **kwargs,
        )

    yield make
    METRICS._module_dict.pop('PlaneAccuracy', None)


TOP_GROUPS = dict(type='PlaneAccuracy', thresholds=(20, 50))


@pytest.mark.parametrize(
    'key, metric, val, message',
    [
        (
            'accuracy/many',
            None,
            (2, 2, 2),
            'one of accuracy/all, accuracy/class_mean, accuracy/ece, '
            'accuracy/medium, accuracy/few; no class is many by its training '
            r'image count \(many 0, medium 2, few 1\)',
        ),
        ('few', None, (2, 2, 2), 'one of accuracy/all'),
        ('accuracy/tail', None, (2, 2, 2), 'one of accuracy/all'),
        ('accuracy/per_class', None, (2, 2, 2), 'one of accuracy/all'),
        (
            'tail/few',
            dict(type='PlaneAccuracy', prefix='val'),
            (2, 2, 2),
            'val/few',
        ),
        (
            ['accuracy/all', 'accuracy/few'],
            dict(type='PlaneAccuracy', class_counts=None),
            (2, 2, 2),
            'class_counts=None gives no groups',
        ),
        (
            'accuracy/few',
            TOP_GROUPS,
            (2, 2, 0),
            'no class that is few has a sample in the validation data',
        ),
        # Beside a metric that we do not know, only what we know is refused.
        (
            'accuracy/many',
            [dict(type='PlaneMetric'), dict(type='PlaneAccuracy')],
            (2, 2, 2),
            'no class is many',
        ),
    ],
)
def test_a_key_that_is_not_reported_ends_the_run_at_its_start(
    evaluate, key, metric, val, message
):
    runner = evaluate(key, metric, val)
    with pytest.raises(ValueError, match=message):
        runner.train()
    assert runner.iter == 0


@pytest.mark.parametrize(
    'key, metric',
    [
        ('accuracy/few', None),
        ('auto', None),
        ('accuracy/many', TOP_GROUPS),
        ('val/all', dict(type='PlaneAccuracy', prefix='val')),
        ('mean', [dict(type='PlaneMetric'), dict(type='PlaneAccuracy')]),
        ('mean', dict(type='PlaneMetric')),
    ],
)
def test_a_key_that_is_reported_is_left_alone(evaluate, key, metric):
    runner = evaluate(key, metric)
    runner.train()
    assert runner.iter == 20


def test_what_other_hooks_watch(evaluate):
    stop = dict(type='EarlyStoppingHook', monitor='accuracy/many')
    with pytest.raises(ValueError, match='monitor of EarlyStoppingHook'):
        evaluate(custom_hooks=[stop]).train()


class Quiet(BaseMetric):
    default_prefix = 'quiet'

    def process(self, data_batch, data_samples):
        self.results += data_samples

    def compute_metrics(self, results):
        return {}


class Named(Quiet):
    def compute_metrics(self, results):
        return dict(n=len(self.dataset_meta['classes']))


@pytest.mark.parametrize('run', ['train', 'val'])
@pytest.mark.parametrize(
    'metainfo, message',
    [
        ({}, "val_dataloader: .* a key 'classes', whose names Named reads"),
        (dict(CLASSES=('a', 'b', 'c')), "'classes' instead of 'CLASSES'"),
        (
            dict(classes=('cat',), CLASSES=('a', 'b', 'c')),
            "'classes' instead of 'CLASSES'",
        ),
    ],
)
def test_names_that_a_metric_reads(make_runner, metainfo, message, run):
    runner = make_runner()
    runner.val_loop.evaluator.metrics.append(Named())
    runner.val_loop.evaluator.dataset_meta = metainfo
    with pytest.raises(ValueError, match=message):
        getattr(runner, run)()
    assert runner.iter == 0


def test_names_that_nobody_reads_may_be_missing(make_runner):
    runner = make_runner()
    runner.val_loop.evaluator.dataset_meta = {}
    runner.train()


def test_both_spellings_of_the_same_names(make_runner):
    runner = make_runner()
    meta = dict(classes=('a', 'b', 'c'), CLASSES=['a', 'b', 'c'])
    runner.val_loop.evaluator.dataset_meta = meta
    runner.train()


def test_class_names_of_versions_0x_in_the_training_data(make_runner):
    runner = make_runner(val_dataloader=None, val_cfg=None, val_evaluator=None)
    runner.train_loop.dataloader.dataset._metainfo = dict(CLASSES='abc')
    with pytest.raises(ValueError, match="metainfo=.*write 'classes'"):
        runner.train()


@pytest.mark.parametrize(
    'images, categories, missing',
    [
        ({}, dict(frequency='r'), 'images have no neg_category_ids and no'),
        (
            dict(neg_category_ids=[], not_exhaustive_category_ids=[]),
            {},
            'categories have no frequency',
        ),
    ],
)
@pytest.mark.parametrize('run', ['train', 'val'])
def test_lvis_metrics_need_fields_of_lvis(
    make_runner, images, categories, missing, run
):
    class LVISMetric(Quiet):
        _lvis_api = SimpleNamespace(
            dataset=dict(
                images=[dict(id=1, **images)],
                categories=[dict(id=1, **categories)],
            )
        )

    runner = make_runner()
    runner.val_loop.evaluator.metrics.append(LVISMetric())
    with pytest.raises(ValueError, match=f'LVISMetric of .*{missing}'):
        getattr(runner, run)()


def test_our_metrics_compare_names_at_the_start(make_runner):
    class Picky(PlaneAccuracy):
        def check_names(self):
            raise ValueError('other names')

    runner = make_runner()
    runner.val_loop.evaluator.metrics.append(Picky(class_counts=None))
    runner.val_loop.evaluator.dataset_meta = dict(classes=('a', 'b', 'c'))
    with pytest.raises(ValueError, match='other names'):
        runner.train()


def test_our_metrics_name_labels_as_the_data_number_them(
    make_runner, monkeypatch
):
    """Labels follow the folders, and metainfo has another order."""
    runner = make_runner()
    metric = PlaneAccuracy(class_counts=[6, 3, 1], per_class=True)
    runner.val_loop.evaluator.metrics.append(metric)
    runner.val_loop.evaluator.dataset_meta = dict(classes=('c', 'b', 'a'))
    folders = dict(a=0, b=1, c=2)
    data = runner.val_loop.dataloader.dataset
    monkeypatch.setattr(data, 'folder_to_idx', folders, raising=False)
    runner.train()
    assert metric.names() == ('a', 'b', 'c')
