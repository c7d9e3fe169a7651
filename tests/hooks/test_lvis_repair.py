"""Every kind of run mends lvis, once its evaluators have imported it."""

import importlib.util
import sys

import numpy as np
import pytest

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
