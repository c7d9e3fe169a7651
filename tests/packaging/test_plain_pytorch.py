# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The wheel in an environment that has torch and numpy, and nothing else."""

from __future__ import annotations

import re
from importlib.metadata import distribution
from pathlib import Path

import pytest
from environments import new_environment, pip, run
from packaging.requirements import Requirement

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / 'docs' / 'outside_openmmlab.md'
ABSENT = ('mmengine', 'mmcv', 'mmdet', 'matplotlib', 'scipy', 'cv2', 'pytest')
NOTHING_ELSE = f"""
import importlib.util
import sys

import lt_losses_mm

assert 'site-packages' in lt_losses_mm.__file__
for name in {ABSENT}:
    assert importlib.util.find_spec(name) is None, name
try:
    import mmengine
except ModuleNotFoundError:
    pass
else:
    raise AssertionError('mmengine is there')
for name in lt_losses_mm.__all__:
    assert hasattr(lt_losses_mm, name), name
assert not hasattr(lt_losses_mm, 'hooks')
"""
LOSSES = """
import torch
from lt_losses_mm import commit_statistics, reset_statistics
from lt_losses_mm.losses import LOSSES

torch.manual_seed(0)
labels = torch.tensor([0, 0, 0, 0, 1, 2])
for cls in LOSSES:
    loss = cls(class_counts=[500, 60, 3])
    model = torch.nn.Linear(5, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(12):
        value = loss(model(torch.randn(6, 5)), labels)
        optimizer.zero_grad()
        value.backward()
        assert value.isfinite() and model.weight.grad.any(), cls
        optimizer.step()
        commit_statistics(loss)
    if loss.statistics is not None:
        assert loss.statistics.pos_count.tolist() == [48, 12, 12], cls
        again = cls(num_classes=3)
        again.load_state_dict(loss.state_dict())
        assert again.statistics.pos_count.tolist() == [48, 12, 12], cls
        reset_statistics(loss)
        assert not loss.statistics.sums.any(), cls
    print(cls.__name__, 'works')
"""
FUNCTIONS = """
import inspect
import torch
from lt_losses_mm import functional as F

prior, one = torch.tensor([0.7, 0.2, 0.1]), torch.ones(3)
values = dict(
    logits=torch.zeros(2, 3),
    labels=torch.tensor([0, 2]),
    log_counts=prior.log(),
    focusing=2 * one,
)
for name in F.__all__:
    wanted = [
        name
        for name, parameter in inspect.signature(
            getattr(F, name)
        ).parameters.items()
        if parameter.default is parameter.empty
    ]
    # Priors, ratios, probabilities and weights: one number a class.
    found = getattr(F, name)(*[values.get(key, prior) for key in wanted])
    if 'logits' in wanted:
        assert found.shape == (2,) and found.isfinite().all(), name
    else:
        assert all(part.shape == (3,) for part in found), name
"""
PRIORS = """
import json
from pathlib import Path

import torch
from lt_losses_mm.losses import BalancedSoftmaxLoss
from lt_losses_mm.priors import load_class_counts

Path('counts.txt').write_text('500\\n60\\n3\\n')
Path('counts.json').write_text(json.dumps([500, 60, 3]))
lvis = dict(categories=[
    dict(id=1 + i, name=str(i), image_count=n, instance_count=n)
    for i, n in enumerate([500, 60, 3])
])
Path('lvis.json').write_text(json.dumps(lvis))
for source in ([500, 60, 3], 'counts.txt', 'counts.json', 'lvis.json'):
    unit = 'image' if source == 'lvis.json' else None
    counts = load_class_counts(source, num_classes=3, unit=unit)
    assert list(counts.counts) == [500, 60, 3], source
    loss = BalancedSoftmaxLoss(class_counts=source, count_unit=unit)
    assert loss.class_counts.tolist() == [500, 60, 3], source
assert load_class_counts('imagenet_lt').counts.max() == 1280
"""
LOOP = f"""
import torch

torch.manual_seed(0)
model = torch.nn.Linear(5, 3)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loader = [(torch.randn(4, 5), torch.tensor([0, 0, 1, 2])) for _ in range(12)]
{re.search(r'```python(.*?)```', PAGE.read_text('utf-8'), re.S)[1]}
assert criterion.statistics.pos_count.tolist() == [24, 12, 12]
"""


def closure(*names: str) -> set[str]:
    """Distributions, with all that they require."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        for line in distribution(name).requires or ():
            required = Requirement(line)
            if required.marker is None or required.marker.evaluate():
                waiting.append(required.name)
    return found


@pytest.fixture(scope='module')
def python(wheel, tmp_path_factory) -> Path:
    """Python of an environment with the wheel, torch and numpy."""
    folder = tmp_path_factory.mktemp('plain')
    python = new_environment(folder)
    pip('--python', python, 'install', '--no-deps', wheel, cwd=folder)
    (site,) = (folder / 'lib').glob('python*/site-packages')
    for name in closure('torch', 'numpy'):
        known = distribution(name)
        for top in {file.parts[0] for file in known.files or ()}:
            if top not in ('..', '__pycache__') and not (site / top).exists():
                (site / top).symlink_to(known.locate_file(top))
    return python


@pytest.mark.parametrize(
    'code',
    [
        pytest.param(NOTHING_ELSE, id='nothing else is there'),
        pytest.param(LOSSES, id='losses and statistics'),
        pytest.param(FUNCTIONS, id='functions'),
        pytest.param(PRIORS, id='counts of lists and files'),
        pytest.param(LOOP, id='the loop of the page'),
    ],
)
def test_without_mmengine(python: Path, code: str, tmp_path: Path) -> None:
    run(python, '-I', '-c', code, cwd=tmp_path)


def test_auto_says_what_is_missing(python: Path, tmp_path: Path) -> None:
    """Counts that only a Runner can find are an error with a way out."""
    code = (
        'import torch\n'
        'from lt_losses_mm.losses import BalancedSoftmaxLoss\n'
        'try:\n'
        '    BalancedSoftmaxLoss()(torch.zeros(1, 3), torch.tensor([0]))\n'
        'except (RuntimeError, ValueError) as error:\n'
        '    print(error)\n'
    )
    out = run(python, '-I', '-c', code, cwd=tmp_path)
    assert "class_counts='auto'" in out
    assert 'list' in out
