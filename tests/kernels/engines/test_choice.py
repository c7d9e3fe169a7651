"""Which engine is taken: as named, unless it cannot do it."""

import os
import subprocess
import sys

import pytest
import torch

from lt_losses_mm import functional
from lt_losses_mm.kernels import ENGINES, engine, use_engine
from lt_losses_mm.kernels.engines import choice, native
from lt_losses_mm.kernels.engines.eager import EAGER_SIGMOID, EAGER_SOFTMAX
from lt_losses_mm.losses import BalancedSigmoidLoss, BalancedSoftmaxLoss

K = 5
FASTEST = 'native' if native.load() else 'eager'


# -------------------------------------------------------------------- naming
def test_for_a_while():
    before = engine()
    for name in ENGINES:
        with use_engine(name):
            assert engine() == name
    with pytest.raises(KeyError), use_engine('reference'):
        raise KeyError
    assert engine() == before


def test_an_unknown_name():
    message = r"engine='fast', expected one of \('native', 'eager', 'refer"
    with pytest.raises(ValueError, match=message), use_engine('fast'):
        pass
    with pytest.raises(ValueError, match=message):
        BalancedSoftmaxLoss(class_counts=[3, 1], engine='fast')


@pytest.mark.parametrize(
    ('value', 'said'),
    [
        ('eager', 'eager'),
        (None, 'native'),
        ('fast', "LT_LOSSES_ENGINE='fast', expected one of ('native',"),
    ],
)
def test_the_variable(value, said):
    environment = dict(os.environ)
    environment.pop(choice._VARIABLE, None)
    if value is not None:
        environment[choice._VARIABLE] = value
    done = subprocess.run(
        [
            sys.executable,
            '-c',
            'from lt_losses_mm.kernels import engine; print(engine())',
        ],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode == 0) == (value != 'fast')
    assert said in (done.stdout if done.returncode == 0 else done.stderr)


# -------------------------------------------------------------------- taking
@pytest.fixture
def took(monkeypatch):
    """The engines that a function used; the reference has no name."""
    engines = []
    for name, found in (
        ('eager', EAGER_SOFTMAX),
        ('eager', EAGER_SIGMOID),
        ('native', native.NATIVE),
    ):

        def spy(*args, inner=found.forward, name=name):
            engines.append(name)
            return inner(*args)

        monkeypatch.setattr(found, 'forward', spy)

    def named(function, *args, **kwargs):
        engines.clear()
        function(*args, **kwargs)
        return engines.copy()

    return named


def call(*, size=(2, 3), dtype=torch.float32, labels=None, **kwargs):
    """Both kinds of losses."""
    if labels is None:
        labels = torch.arange(size[0])
    logits = torch.zeros(size, dtype=dtype, requires_grad=True)
    for cls in (BalancedSoftmaxLoss, BalancedSigmoidLoss):
        cls(class_counts=[3, 2, 1], **kwargs)(logits, labels)


def test_by_what_there_is_to_compute(took):
    with use_engine('native'):
        assert took(call) == [FASTEST] * 2
        for dtype in (torch.bfloat16, torch.float16):
            assert took(call, dtype=dtype) == [FASTEST] * 2
        # float64 is for tests; soft labels have no closed form here.
        assert took(call, dtype=torch.float64) == ['eager'] * 2
        assert took(call, labels=torch.eye(3)[:2]) == []
        assert took(call, size=(0, 3)) == []
    with use_engine('eager'):
        assert took(call) == ['eager'] * 2
    with use_engine('reference'):
        assert took(call) == []


def test_an_argument_comes_before_the_process(took):
    with use_engine('reference'):
        assert took(call, engine='eager') == ['eager'] * 2
        assert took(call, engine='native') == [FASTEST] * 2
        logits, labels = torch.zeros(2, 3), torch.tensor([0, 1])
        prior = torch.full((3,), 1 / 3)
        for name in (
            'balanced_softmax_cross_entropy',
            'balanced_sigmoid_cross_entropy',
        ):
            function = getattr(functional, name)
            for key in ('eager', 'native'):
                found = took(function, logits, labels, prior, engine=key)
                assert found == [FASTEST if key == 'native' else key]
    with use_engine('eager'):
        assert took(call, engine='reference') == []


def test_other_inputs_that_want_a_gradient(took, sigmoid, batch_of, rows):
    logits, labels = torch.zeros(2, K), torch.tensor([0, 1])
    formula = sigmoid(K)
    sizes = dict(element_weight=(2, K))
    if formula.sides.reads_quality:
        sizes['quality'] = 2
    for name, size in sizes.items():
        batch = batch_of(formula, logits, labels, engine='eager')
        values = torch.ones(size)
        setattr(batch, name, values)
        assert took(rows, formula, batch) == ['eager']
        values.requires_grad_()
        assert took(rows, formula, batch) == []


# ---------------------------------------------------------------- transforms
def test_vmap(took, engine, formula, batch_of, rows):
    logits, labels = torch.randn(4, 2, K), torch.tensor([0, 2])
    made = formula(K)

    def losses(z):
        return rows(made, batch_of(made, z, labels, engine=engine))[0]

    expected = torch.stack([losses(z) for z in logits])
    assert took(torch.func.vmap(losses), logits) == []
    torch.testing.assert_close(torch.func.vmap(losses)(logits), expected)
    gradient = torch.func.grad(lambda z: losses(z).sum())
    z = logits.requires_grad_()
    torch.testing.assert_close(
        torch.func.vmap(gradient)(logits.detach()),
        torch.autograd.grad(torch.stack([losses(x) for x in z]).sum(), z)[0],
    )


@pytest.mark.usefixtures('whole_graphs')
@pytest.mark.parametrize('is_map', [False, True])
def test_compiled_code(took, formula, is_map, batch_of, rows):
    """It is traced through the reference, which a compiler can fuse."""
    size = (2, K, 3, 2) if is_map else (6, K)
    logits, labels = torch.randn(size), torch.randint(K, size[:1] + size[2:])
    made = formula(K)

    def losses(z, labels):
        batch = batch_of(made, z, labels, factor=0.5)
        return rows(made, batch, sums=True)

    torch.compiler.reset()
    compiled = torch.compile(losses, backend='eager', fullgraph=True)
    results = []
    for function in (losses, compiled):
        z = logits.clone().requires_grad_()
        value, sums = function(z, labels)
        results.append((value, sums, torch.autograd.grad(value, z)[0]))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)
    assert took(compiled, logits, labels) == []
