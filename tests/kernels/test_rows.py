"""Fast paths against the functional form: losses, gradients and sums."""

import copy
import itertools

import pytest
import torch

from lt_losses_mm.functional.equalization import (
    FOCAL,
    QUALITY_FOCAL,
    focal_parameters,
)
from lt_losses_mm.functional.two_sided import SHIFTED_BCE, WEIGHTED_BCE
from lt_losses_mm.kernels import (
    PATHS,
    Batch,
    Dropped,
    Seesaw,
    Shifted,
    native,
    path,
    sigmoid_rows,
    softmax_rows,
    split_columns,
    use_path,
)
from lt_losses_mm.kernels import eager as eager_module
from lt_losses_mm.kernels import rows as rows_module
from lt_losses_mm.losses import (
    BalancedSigmoidLoss,
    BalancedSoftmaxLoss,
    SeesawSoftmaxLoss,
    SigmoidEqualizationLoss,
)

K = 7
FAST = [
    'eager',
    pytest.param(
        'native',
        marks=pytest.mark.skipif(
            native.load() is None, reason='no C++ compiler'
        ),
    ),
]
# The last is wider than what threads share by rows in the native path.
SIZES = {
    'matrix': (70, K),
    'one row': (1, K),
    'one column': (3, 1),
    'map': (2, K, 5, 3),
    'map of many pixels': (2, K, 17, 16),
    'volume': (2, K, 3, 2, 2),
    'one pixel': (3, K, 1, 1),
    'wide': (67, 66_000),
}
torch.manual_seed(0)


def parameters(columns, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw():
        return torch.rand(columns, generator=generator)

    return dict(
        shift=(4 * draw() - 2,),
        weights=(1 + 4 * draw(), draw()),
        focal=focal_parameters(2 + 8 * draw(), 1 + draw(), 0.25),
        counts=(1000 * draw()).clamp(min=1).log(),
        drop=draw().where(torch.arange(columns) % 3 > 0, 0),
    )


def shifted(batch, p, sums=True, **_):
    return softmax_rows(Shifted(p['shift'][0]), batch, sums=sums)


def seesaw(batch, p, sums=True, **_):
    counts = p['counts']
    adjust = Seesaw(counts, counts, 0.8, 2.0, 1e-2)
    return softmax_rows(adjust, batch, sums=sums)


def dropped(batch, p, sums=True, seed=(1, 2), **_):
    # Background, where logits have it, is the last column.
    adjust = Dropped(p['drop'], torch.tensor(seed), batch.logits.size(1) - 1)
    return softmax_rows(adjust, batch, sums=sums)


def shifted_bce(batch, p, sums=True, **kwargs):
    return sigmoid_rows(SHIFTED_BCE, p['shift'], batch, sums=sums, **kwargs)


def weighted_bce(batch, p, sums=True, **kwargs):
    return sigmoid_rows(WEIGHTED_BCE, p['weights'], batch, sums=sums, **kwargs)


def focal(batch, p, sums=True, **kwargs):
    return sigmoid_rows(FOCAL, p['focal'], batch, sums=sums, **kwargs)


def quality(batch, p, sums=True, **kwargs):
    q = torch.linspace(0.05, 1, batch.labels.numel()).view(batch.labels.shape)
    return sigmoid_rows(
        QUALITY_FOCAL, p['focal'], batch, at_label=(q,), sums=sums, **kwargs
    )


SOFTMAX = [shifted, seesaw, dropped]
SIGMOID = [shifted_bce, weighted_bce, focal, quality]


def make(size, dtype=torch.float32, background=False, scale=3.0):
    generator = torch.Generator().manual_seed(sum(size))
    logits = scale * torch.randn(size, generator=generator)
    rows = size[:1] + size[2:]
    highest = size[1] + background
    labels = torch.randint(0, highest, rows, generator=generator)
    if labels.numel() > 2:
        labels.view(-1)[1] = 255
    return logits.to(dtype), labels


def compute(path, formula, logits, labels, upstream=None, **kwargs):
    fields = {
        key: kwargs.pop(key)
        for key in ('row_weight', 'element_weight', 'overwrite')
        if key in kwargs
    }
    logits = logits.detach().requires_grad_()
    with use_path(path):
        batch = Batch(logits, labels, 255, **fields)
        losses, sums = formula(batch, parameters(logits.size(1)), **kwargs)
        if upstream is None:
            upstream = torch.linspace(-1, 2, losses.numel())
            upstream = upstream.view(losses.shape).to(losses.dtype)
        (gradient,) = torch.autograd.grad(losses, logits, upstream)
    return losses.detach(), gradient, sums


def agree(found, expected, rtol=1e-5, atol=1e-6, gradient_rtol=None):
    losses, gradient, sums = found
    tolerance = dict(rtol=rtol, atol=atol)
    torch.testing.assert_close(losses, expected[0], **tolerance)
    assert gradient.dtype == expected[1].dtype
    torch.testing.assert_close(
        gradient, expected[1], rtol=gradient_rtol or rtol, atol=atol
    )
    assert (sums is None) == (expected[2] is None)
    if sums is None:
        return
    for ours, theirs in zip(sums, expected[2]):
        assert ours.dtype == torch.float64
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=10 * atol)


# -------------------------------------------------------------------- values
@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('formula', SOFTMAX + SIGMOID)
@pytest.mark.parametrize('fast', FAST)
def test_agrees_with_the_functional_form(fast, formula, size):
    logits, labels = make(SIZES[size], background=formula in SIGMOID)
    if logits.dim() > 2 or formula in SOFTMAX:
        labels = labels.where(labels != logits.size(1), 0)
    expected = compute('functional', formula, logits.double(), labels)
    found = compute(fast, formula, logits, labels)
    agree(
        (found[0].double(), found[1].double(), found[2]),
        expected,
        rtol=2e-5,
        atol=2e-6,
    )


@pytest.mark.parametrize('formula', SOFTMAX + SIGMOID)
def test_eager_in_float64_is_exact(formula):
    for size in ('matrix', 'map'):
        logits, labels = make(SIZES[size], torch.float64)
        labels = labels.where(labels != K, 0)
        agree(
            compute('eager', formula, logits, labels),
            compute('functional', formula, logits, labels),
            rtol=1e-12,
            atol=1e-12,
        )


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('formula', SOFTMAX + SIGMOID)
@pytest.mark.parametrize('size', ['matrix', 'map of many pixels'])
@pytest.mark.parametrize('fast', FAST)
def test_half_precision(fast, size, formula, dtype):
    # As accurate as fp32 of the rounded logits, but for the gradient's type.
    logits, labels = make(SIZES[size], dtype)
    expected = compute('functional', formula, logits.float(), labels)
    losses, gradient, sums = compute(fast, formula, logits, labels)
    assert losses.dtype == torch.float32
    assert gradient.dtype == dtype
    rtol = torch.finfo(dtype).eps
    agree(
        (losses, gradient.float(), sums),
        expected,
        rtol=2e-5,
        atol=2e-6,
        gradient_rtol=rtol,
    )


def test_half_precision_in_every_value():
    # A shift of 0 and one class besides: the gradient is that of a sigmoid.
    if native.load() is None:
        pytest.skip('no C++ compiler')
    for dtype in (torch.float16, torch.bfloat16):
        bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
        z = bits.view(dtype)
        logits = torch.stack([z, torch.zeros_like(z)], 1)
        labels = torch.zeros(len(z), dtype=torch.int64)
        results = []
        for how in ('functional', 'native'):
            with use_path(how):
                x = logits.clone().requires_grad_()
                losses, _ = softmax_rows(
                    Shifted(torch.zeros(2)), Batch(x, labels)
                )
                # So small that fp16 gradients become subnormal.
                losses.backward(torch.full_like(losses, 2.0**-12))
                results += [losses.detach(), x.grad]
        close = dict(equal_nan=True)
        torch.testing.assert_close(results[2], results[0], **close)
        gap = (results[3].float() - results[1].float()).abs()
        finite = results[1].isfinite()
        assert (results[3].isnan() == results[1].isnan()).all()
        # One unit in the last place, at most, also of subnormal numbers.
        size = results[1].abs()
        above = (size.view(torch.int16) + 1).view(dtype)
        unit = above.float() - size.float()
        assert (gap[finite] <= unit[finite]).all()


@pytest.mark.parametrize('formula', SOFTMAX + SIGMOID)
@pytest.mark.parametrize('fast', FAST)
def test_weights(fast, formula):
    for size in ('matrix', 'map'):
        logits, labels = make(SIZES[size])
        row = torch.rand(labels.shape)
        row.view(-1)[::3] = 0
        kinds = [dict(row_weight=row)]
        if formula in SIGMOID:
            element = torch.rand(logits.shape)
            element[..., 0] = 0
            kinds.append(dict(element_weight=element))
        for kind in kinds:
            agree(
                compute(fast, formula, logits, labels, **kind),
                compute('functional', formula, logits, labels, **kind),
                rtol=2e-5,
                atol=2e-6,
            )


@pytest.mark.parametrize('formula', [shifted_bce, weighted_bce])
@pytest.mark.parametrize('fast', FAST)
def test_spared_background(fast, formula):
    for background, size in itertools.product(
        (False, True), ('matrix', 'map of many pixels')
    ):
        logits, labels = make(SIZES[size], background=background)
        spare = dict(spare_background=True)
        expected = compute('functional', formula, logits, labels, **spare)
        agree(compute(fast, formula, logits, labels, **spare), expected)
        plain = compute(fast, formula, logits, labels)
        assert torch.allclose(plain[0], expected[0]) == (not background)


@pytest.mark.parametrize('formula', SOFTMAX + SIGMOID)
@pytest.mark.parametrize('fast', FAST)
def test_any_memory_layout(fast, formula):
    logits, labels = make((6, K + 2, 4, 3))
    labels = labels.clamp(max=K - 1).where(labels != 255, 255)
    wide_matrix = torch.randn(9, K + 3)
    views = [
        (logits[:, :K], labels),
        (logits[:, :K].contiguous(memory_format=torch.channels_last), labels),
        (logits[::2, :K], labels[::2]),
        (logits[:, :K, ::2], labels[:, ::2]),
        (wide_matrix[:, 1 : K + 1], torch.arange(9) % K),
        (torch.randn(K, 9).t(), torch.arange(9) % K),
    ]
    for z, y in views:
        expected = compute('functional', formula, z.contiguous(), y)
        found = compute(fast, formula, z, y)
        agree(found, expected)
        assert found[1].shape == z.shape


@pytest.mark.parametrize('formula', SOFTMAX + SIGMOID)
@pytest.mark.parametrize('fast', FAST)
@pytest.mark.parametrize('size', ['matrix', 'map'])
def test_large_logits(fast, formula, size):
    for dtype, scale in itertools.product(
        (torch.float32, torch.bfloat16), (1e2, 1e4)
    ):
        logits, labels = make(SIZES[size], dtype, scale=scale)
        expected = compute('functional', formula, logits, labels)
        found = compute(fast, formula, logits, labels)
        assert found[0].isfinite().all()
        assert found[1].isfinite().all()
        agree(found, expected, rtol=1e-4, atol=1e-5, gradient_rtol=1e-2)


@pytest.mark.parametrize('formula', SOFTMAX + SIGMOID)
@pytest.mark.parametrize('fast', FAST)
def test_faulty_logits_are_not_hidden(fast, formula):
    # A gradient scaler looks for them; the rows besides are unharmed.
    for size, bad in itertools.product(
        ('matrix', 'map of many pixels'), (torch.nan, torch.inf)
    ):
        logits, labels = make(SIZES[size])
        logits[0, 3] = bad
        if formula in SIGMOID and bad == torch.inf:
            continue
        losses, gradient, _ = compute(fast, formula, logits, labels)
        expected = compute('functional', formula, logits, labels)
        kept = labels[0] != 255
        assert not losses[0][kept].isfinite().any()
        assert (losses.isfinite() == expected[0].isfinite()).all()
        assert gradient[0, 3][kept].isnan().all()
        assert gradient[1:].isfinite().all()


@pytest.mark.parametrize('formula', SOFTMAX + SIGMOID)
@pytest.mark.parametrize('fast', FAST)
def test_rows_left_out_may_hold_anything(fast, formula):
    for size in ('matrix', 'map of many pixels'):
        logits, labels = make(SIZES[size])
        expected = compute(fast, formula, logits, labels)
        logits.movedim(1, -1)[labels == 255] = torch.nan
        agree(compute(fast, formula, logits, labels), expected)


@pytest.mark.parametrize('formula', [shifted, dropped, shifted_bce])
@pytest.mark.parametrize('fast', FAST)
def test_masked_logits(fast, formula):
    # As in masked softmax: a column that is out of the question.
    for size in ('matrix', 'map'):
        logits, labels = make(SIZES[size])
        logits[:, 2] = -torch.inf
        labels = labels.where(labels != 2, 1)
        found = compute(fast, formula, logits, labels)
        agree(found, compute('functional', formula, logits, labels))
        assert (found[1][:, 2] == 0).all()


# ---------------------------------------------------------------------- draws
def left_out(path, logits, labels, **kwargs):
    """Elements whose gradient is exactly 0, as (rows, K)."""
    _, gradient, _ = compute(path, dropped, logits, labels, **kwargs)
    return (gradient == 0).movedim(1, -1).flatten(0, -2)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('fast', [*FAST, 'functional'])
def test_a_draw_depends_on_seed_row_and_column_only(fast, dtype, monkeypatch):
    columns, upstream = 40, torch.ones(2, 17, 16)
    logits = torch.randn(2, columns, 17, 16).to(dtype)
    labels = torch.randint(columns, (2, 17, 16))
    labels[0, 3] = 255

    def of_map(logits, **kwargs):
        return left_out(fast, logits, labels, upstream=upstream, **kwargs)

    expected = left_out('functional', logits, labels, upstream=upstream)
    assert 0.2 < expected.float().mean() < 0.5
    assert torch.equal(of_map(logits), expected)
    last = logits.contiguous(memory_format=torch.channels_last)
    assert torch.equal(of_map(last), expected)
    matrix = logits.movedim(1, -1).reshape(-1, columns)
    strided = torch.cat([matrix, matrix], 1)[:, :columns]
    for z in (matrix, strided):
        found = left_out(
            fast, z, labels.flatten(), upstream=upstream.flatten()
        )
        assert torch.equal(found, expected)
    # The parts of the eager path, in both ways that maps are cut.
    for size in (columns, 100 * columns, 300 * columns):
        monkeypatch.setattr(eager_module, '_ON_CPU', size)
        assert torch.equal(of_map(logits), expected)
        assert torch.equal(of_map(last), expected)
    for seed in ((1, 3), (2, 2), (2**32 - 1, 2**32 - 1)):
        found = of_map(logits, seed=seed)
        assert not torch.equal(found, expected)
        again = left_out(
            'functional', logits, labels, upstream=upstream, seed=seed
        )
        assert torch.equal(found, again)


@pytest.mark.skipif(native.load() is None, reason='no C++ compiler')
@pytest.mark.parametrize('size', [(300, 66_000), (300, 9), (3, 9, 20, 20)])
def test_a_draw_does_not_depend_on_threads(size):
    logits, labels = make(size)
    before = torch.get_num_threads()
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(left_out('native', logits, labels))
    torch.set_num_threads(before)
    assert torch.equal(*found)


@pytest.mark.parametrize('path', [*FAST, 'functional'])
@pytest.mark.parametrize('size', ['matrix', 'map'])
def test_what_is_never_left_out(path, size):
    logits, labels = make(SIZES[size])
    upstream = torch.ones(labels.shape)
    adjust = Dropped(torch.ones(K), torch.tensor([5, 6]), K - 1)
    with use_path(path):
        z = logits.requires_grad_()
        losses, _ = softmax_rows(adjust, Batch(z, labels, 255))
        (gradient,) = torch.autograd.grad(losses, z, upstream)
    gradient = gradient.movedim(1, -1)
    background, ignored = labels == K - 1, labels == 255
    assert background.any()
    assert ignored.any()
    # Of rows with an object only the label is left: log 1.
    assert (losses[~background] == 0).all()
    assert (gradient[~background] == 0).all()
    assert (gradient[background] != 0).all()
    plain = torch.nn.functional.cross_entropy(
        logits, labels, reduction='none', ignore_index=255
    )
    torch.testing.assert_close(losses[background], plain[background])


@pytest.mark.parametrize('path', [*FAST, 'functional'])
@pytest.mark.parametrize('is_map', [False, True])
def test_infinite_and_large_logits_of_a_draw(path, is_map):
    inf = torch.inf
    labels = torch.tensor([0, 0, 0, 0, 1])
    logits = torch.tensor(
        [
            [1e4, -1e4, 0.0],  # column 1 is left out for certain
            [-1e4, 1e4, -1e4],
            [0.0, inf, -inf],  # all others are out of the question
            [-inf, 3.0, 0.0],  # the label is
            [0.0, 1e4, 1e4],
        ]
    )
    expected = [0, 0.6931, 0, inf, 0.6931]
    if is_map:
        logits, labels = logits.t()[None, ..., None], labels[None, :, None]
    adjust = Dropped(torch.tensor([0.0, 1, 0]), torch.tensor([3, 4]), 3)
    with use_path(path):
        z = logits.requires_grad_()
        losses, _ = softmax_rows(adjust, Batch(z, labels))
        (gradient,) = torch.autograd.grad(losses.sum(), z)
    torch.testing.assert_close(
        losses.flatten(), torch.tensor(expected), rtol=1e-4, atol=1e-4
    )
    assert gradient.isfinite().all()
    # Not of the row whose label it is.
    assert (gradient.select(1, 1).flatten()[:4] == 0).all()


# ------------------------------------------------------------------ behaviour
@pytest.mark.parametrize('formula', SOFTMAX + SIGMOID)
@pytest.mark.parametrize('fast', FAST)
def test_runs_can_be_repeated_to_the_last_bit(fast, formula):
    logits, labels = make((300, K))
    first = compute(fast, formula, logits, labels)
    second = compute(fast, formula, logits, labels)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    for a, b in zip(first[2], second[2]):
        assert torch.equal(a, b)


@pytest.mark.parametrize('formula', SOFTMAX + SIGMOID)
@pytest.mark.parametrize('fast', FAST)
def test_second_derivatives(fast, formula):
    logits, labels = make((4, K), torch.float64)
    results = []
    for how in ('functional', fast):
        z = logits.clone().requires_grad_()
        with use_path(how):
            p = parameters(K)
            losses, _ = formula(Batch(z, labels, 255), p, sums=False)
            (first,) = torch.autograd.grad(losses.sum(), z, create_graph=True)
            (second,) = torch.autograd.grad(first.square().sum(), z)
        results.append(second)
    torch.testing.assert_close(*results)
    assert results[0].any()


@pytest.mark.parametrize('formula', SOFTMAX + SIGMOID)
def test_gradients_of_the_eager_path(formula):
    logits, labels = make((4, K), torch.float64)
    with use_path('eager'):
        torch.autograd.gradcheck(
            lambda z: formula(
                Batch(z, labels, 255), parameters(K), sums=False
            )[0],
            logits.requires_grad_(),
            check_forward_ad=False,
        )


@pytest.mark.parametrize('formula', SOFTMAX + SIGMOID)
@pytest.mark.parametrize('size', ['matrix', 'map', 'channels last'])
@pytest.mark.parametrize('fast', FAST)
def test_overwriting_the_logits(fast, formula, size):
    logits, labels = make(SIZES['map' if size != 'matrix' else size])
    if size == 'channels last':
        logits = logits.contiguous(memory_format=torch.channels_last)
    expected = compute(fast, formula, logits, labels)
    leaf = logits.clone().requires_grad_()
    with use_path(fast):
        z = leaf * 1
        where = z.data_ptr()
        batch = Batch(z, labels, 255, overwrite=True)
        losses, _ = formula(batch, parameters(K))
        before = z.detach().clone()
        assert torch.equal(before, logits)  # until backward
        seen = []
        z.register_hook(lambda g: seen.append(g.data_ptr()))
        upstream = torch.linspace(-1, 2, losses.numel()).view(losses.shape)
        losses.backward(upstream)
    assert seen == [where]
    torch.testing.assert_close(leaf.grad, expected[1])


@pytest.mark.parametrize('fast', FAST)
def test_overwriting_what_others_need_is_an_error(fast):
    leaf = torch.randn(5, K, requires_grad=True)
    labels = torch.arange(5)
    with use_path(fast):
        z = leaf * 1
        batch = Batch(z, labels, overwrite=True)
        other = (z * z).sum()
        losses, _ = shifted(batch, parameters(K), sums=False)
        with pytest.raises(RuntimeError, match='modified by an inplace'):
            (other + losses.sum()).backward()


@pytest.mark.parametrize('fast', FAST)
def test_a_leaf_is_never_overwritten(fast):
    leaf = torch.randn(5, K, requires_grad=True)
    before = leaf.detach().clone()
    with use_path(fast):
        batch = Batch(leaf, torch.arange(5), overwrite=True)
        shifted(batch, parameters(K), sums=False)[0].sum().backward()
    assert torch.equal(leaf.detach(), before)
    assert leaf.grad.data_ptr() != leaf.data_ptr()


@pytest.mark.parametrize('fast', FAST)
def test_losses_have_the_option(fast):
    for cls in (BalancedSoftmaxLoss, SigmoidEqualizationLoss):
        kwargs = dict(class_counts=range(1, K + 1))
        if cls is SigmoidEqualizationLoss:
            kwargs['background'] = 'negatives'
        leaf = torch.randn(5, K, requires_grad=True)
        with use_path(fast):
            loss = cls(**kwargs, overwrite_logits=True)
            z = leaf * 1
            loss(z, torch.arange(5)).backward()
        # It holds the gradient now.
        torch.testing.assert_close(z.detach(), leaf.grad)


# ------------------------------------------------------------------- choosing
def test_the_switch():
    assert path() in ('native', 'eager', 'functional')
    before = path()
    with use_path('functional'):
        assert path() == 'functional'
    assert path() == before
    with pytest.raises(ValueError, match="path='fast', expected one of"):
        with use_path('fast'):
            pass


def took(monkeypatch, call):
    """The engines that a call used."""
    engines = []
    for name in ('eager', 'native'):
        engine = getattr(rows_module, name)
        for function in ('softmax_forward', 'sigmoid_forward'):
            inner = getattr(engine, function)

            def spy(*args, inner=inner, name=name):
                engines.append(name)
                return inner(*args)

            monkeypatch.setattr(engine, function, spy)
    call()
    return engines


def test_paths_that_are_taken(monkeypatch):
    softmax = BalancedSoftmaxLoss(class_counts=[3, 2, 1])
    sigmoid = BalancedSigmoidLoss(class_counts=[3, 2, 1])
    labels = torch.tensor([0, 1])

    def call(dtype=torch.float32, labels=labels, size=(2, 3)):
        logits = torch.zeros(size, dtype=dtype, requires_grad=True)
        softmax(logits, labels)
        sigmoid(logits, labels)

    fastest = 'native' if native.load() else 'eager'
    with use_path('native'):
        assert took(monkeypatch, call) == [fastest] * 2
        assert took(monkeypatch, lambda: call(torch.bfloat16)) == [fastest] * 2
        # float64 is for tests; soft labels have no closed form here.
        assert took(monkeypatch, lambda: call(torch.float64)) == ['eager'] * 2
        assert took(monkeypatch, lambda: call(labels=torch.eye(3)[:2])) == []
    with use_path('eager'):
        assert took(monkeypatch, call) == ['eager'] * 2
    with use_path('functional'):
        assert took(monkeypatch, call) == []


def test_transforms_take_the_functional_form():
    loss = BalancedSoftmaxLoss(class_counts=[3, 2, 1])
    logits, labels = torch.randn(4, 2, 3), torch.tensor([0, 2])
    found = torch.func.vmap(lambda z: loss(z, labels))(logits)
    expected = torch.stack([loss(z, labels) for z in logits])
    torch.testing.assert_close(found, expected)


def test_no_grad_and_copies():
    loss = BalancedSoftmaxLoss(class_counts=[3, 2, 1])
    logits, labels = torch.randn(2, 3), torch.tensor([0, 2])
    with torch.no_grad():
        value = loss(logits, labels)
    torch.testing.assert_close(copy.deepcopy(loss)(logits, labels), value)


def test_a_batch_is_freed_with_its_graph():
    import weakref

    logits = torch.randn(4, K, requires_grad=True) * 1
    watch = weakref.ref(logits)
    losses, _ = shifted(
        Batch(logits, torch.arange(4)), parameters(K), sums=False
    )
    losses.sum().backward()
    del logits
    assert watch() is None


@pytest.mark.parametrize('formula', SOFTMAX + SIGMOID)
@pytest.mark.parametrize('fast', FAST)
def test_backward_twice(fast, formula):
    logits, labels = make(SIZES['matrix'])
    z = logits.requires_grad_()
    with use_path(fast):
        losses, _ = formula(Batch(z, labels, 255), parameters(K))
        first, second = (
            torch.autograd.grad(losses.sum(), z, retain_graph=True)[0]
            for _ in range(2)
        )
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize('fast', FAST)
def test_views_of_leaves_and_expanded_logits_are_not_overwritten(fast):
    leaf = torch.randn(2 * K, requires_grad=True)
    before = leaf.detach().clone()
    labels = torch.arange(2)
    with use_path(fast):
        batch = Batch(leaf.view(2, K), labels, overwrite=True)
        shifted(batch, parameters(K), sums=False)[0].sum().backward()
        assert torch.equal(leaf.detach(), before)
        row = torch.randn(K, requires_grad=True)
        found = []
        for overwrite in (False, True):
            logits = (row * 1).expand(4, K)
            batch = Batch(logits, torch.arange(4), overwrite=overwrite)
            losses, _ = shifted(batch, parameters(K), sums=False)
            found.append(torch.autograd.grad(losses.sum(), row)[0])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize('fast', FAST)
def test_shapes_that_do_not_fit(fast):
    logits, labels = torch.randn(3, K), torch.tensor([0, 1, 2])
    p = parameters(K)
    short = parameters(K - 1)
    with use_path(fast):
        for formula in (shifted, seesaw, dropped, weighted_bce, focal):
            with pytest.raises(ValueError, match='one value a logit column'):
                formula(Batch(logits, labels), short)
        with pytest.raises(ValueError, match='expected that of the labels'):
            shifted(Batch(logits, labels, row_weight=torch.ones(1)), p)
        with pytest.raises(ValueError, match='labels of shape'):
            shifted(Batch(logits, labels[:2]), p)
        expected = shifted(Batch(logits, labels), p)[0]
        found = shifted(Batch(logits, labels.int()), p)[0]
    assert torch.equal(found, expected)


@pytest.mark.parametrize('fast', FAST)
def test_weights_that_want_a_gradient_get_one(fast):
    logits, labels = torch.randn(3, K), torch.tensor([0, 1, 2])
    weight = torch.rand(3, K, requires_grad=True)
    with use_path(fast):
        batch = Batch(logits, labels, element_weight=weight)
        weighted_bce(batch, parameters(K), sums=False)[0].sum().backward()
    assert weight.grad.any()


@pytest.mark.parametrize('formula', SOFTMAX + SIGMOID)
@pytest.mark.parametrize('fast', FAST)
def test_autocast_does_not_round_sums(fast, formula):
    logits, labels = make((300, K))
    expected = compute(fast, formula, logits, labels)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found = compute(fast, formula, logits, labels)
    for a, b in zip(found[2], expected[2]):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize('fast', FAST)
def test_negative_element_weights(fast):
    logits, labels = make(SIZES['matrix'])
    weight = torch.randn(logits.shape)
    agree(
        compute(fast, weighted_bce, logits, labels, element_weight=weight),
        compute(
            'functional', weighted_bce, logits, labels, element_weight=weight
        ),
        rtol=2e-5,
        atol=2e-6,
    )


# ---------------------------------------------------------- changed in place
@pytest.mark.parametrize('path', FAST)
@pytest.mark.parametrize('changed', ['labels', 'element_weight'])
def test_inputs_changed_before_backward_are_an_error(path, changed):
    logits = torch.randn(4, 5, requires_grad=True)
    inputs = dict(
        labels=torch.tensor([0, 4, 1, 2]), element_weight=torch.ones(4, 5)
    )
    ones = torch.ones(5)
    with use_path(path):
        rows, _ = sigmoid_rows(
            WEIGHTED_BCE, (ones, ones), Batch(logits, **inputs)
        )
        inputs[changed].zero_()
        with pytest.raises(RuntimeError, match='modified by an inplace'):
            rows.sum().backward()


# ------------------------------------------------- classes beside objectness
def objectness_loss(cls, **kwargs):
    loss = cls(background='objectness', **kwargs)
    loss.get_cls_channels(5)
    return loss


@pytest.mark.parametrize('path', PATHS)
@pytest.mark.parametrize('overwrite', [False, True])
@pytest.mark.parametrize(
    ('cls', 'kwargs'),
    [
        (BalancedSoftmaxLoss, dict(class_counts=[9, 7, 5, 3, 1])),
        (SeesawSoftmaxLoss, dict(num_classes=5)),
    ],
)
def test_gradient_of_split_columns(path, overwrite, cls, kwargs):
    torch.manual_seed(0)
    leaf = torch.randn(6, 7, requires_grad=True)
    labels = torch.tensor([0, 4, 5, 5, 2, -100])

    def gradient(path, **more):
        with use_path(path):
            loss = objectness_loss(cls, **kwargs, **more)
            logits = leaf * 1
            (found,) = torch.autograd.grad(loss(logits, labels), leaf)
        return found

    torch.testing.assert_close(
        gradient(path, overwrite_logits=overwrite), gradient('functional')
    )


@pytest.mark.parametrize('path', PATHS)
def test_second_derivative_of_split_columns(path):
    torch.manual_seed(0)
    logits = torch.randn(4, 7, dtype=torch.double, requires_grad=True)
    labels = torch.tensor([0, 4, 5, 2])
    loss = objectness_loss(BalancedSoftmaxLoss, class_counts=[9, 7, 5, 3, 1])
    with use_path(path):
        assert torch.autograd.gradgradcheck(
            lambda z: loss(z, labels), (logits,)
        )


@pytest.mark.parametrize('path', ['native', 'eager'])
def test_parts_of_split_columns_used_elsewhere(path):
    """Gradients that arrive from several places are not taken for ours."""
    torch.manual_seed(0)
    logits = torch.randn(4, 7, requires_grad=True)
    batch = Batch(logits, torch.tensor([0, 4, 1, 2]))
    with use_path(path):
        first, second = split_columns(batch, 5)
        rows, _ = softmax_rows(Shifted(torch.zeros(5)), first)
        rows.register_hook(lambda g: g.clone())
        first.logits.register_hook(lambda g: g.clone().clone())
        value = rows.sum() + first.logits.square().sum() + second.sum()
        (found,) = torch.autograd.grad(value, logits)
    copy = logits.detach().requires_grad_()
    value = torch.nn.functional.cross_entropy(
        copy[:, :5], batch.labels, reduction='sum'
    )
    value = value + copy[:, :5].square().sum() + copy[:, 5:].sum()
    torch.testing.assert_close(found, torch.autograd.grad(value, copy)[0])
