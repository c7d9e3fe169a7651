"""The engines against the reference: losses, gradients and sums."""

import itertools
from dataclasses import replace

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F

from lt_losses_mm.kernels import (
    SHIFTED_BCE,
    WEIGHTED_BCE,
    Batch,
    Dropped,
    Seesaw,
    Shifted,
    TwoSided,
)
from lt_losses_mm.kernels.engines import eager, native

K = 7
# The last is wider than what threads share by rows in the native engine.
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
CLOSE = dict(rtol=2e-5, atol=2e-6)
needs_compiler = pytest.mark.skipif(
    native.load() is None, reason='no C++ compiler'
)


def is_sigmoid(formula):
    return isinstance(formula(1), TwoSided)


# -------------------------------------------------------------------- values
@pytest.mark.parametrize('size', SIZES)
def test_values(fast, formula, size, make, compute, agree):
    # A label of background is none of the softmax's columns.
    logits, labels = make(SIZES[size], background=is_sigmoid(formula))
    expected = compute('reference', formula, logits.double(), labels)
    losses, gradient, sums = compute(fast, formula, logits, labels)
    agree((losses.double(), gradient.double(), sums), expected, **CLOSE)


@pytest.mark.parametrize('size', ['matrix', 'map'])
def test_eager_in_float64_is_exact(formula, size, make, compute, agree):
    logits, labels = make(SIZES[size], torch.float64)
    agree(
        compute('eager', formula, logits, labels),
        compute('reference', formula, logits, labels),
        rtol=1e-12,
        atol=1e-12,
    )


@hypothesis.given(data=st.data())
@hypothesis.settings(
    max_examples=15,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
def test_any_batch(fast, formula, make, compute, agree, data):
    sizes = st.integers(1, 9)
    pixels = data.draw(st.lists(st.integers(1, 4), max_size=3))
    size = (data.draw(sizes), data.draw(sizes), *pixels)
    logits, labels = make(size, background=is_sigmoid(formula))
    fields = {}
    if data.draw(st.booleans()):
        fields['row_weight'] = torch.rand(labels.shape)
    elif is_sigmoid(formula) and data.draw(st.booleans()):
        fields['element_weight'] = torch.rand(logits.shape)
    if data.draw(st.booleans()):
        fields['factor'] = data.draw(st.sampled_from([0.5, 1 / 3]))
    agree(
        compute(fast, formula, logits, labels, **fields),
        compute('reference', formula, logits, labels, **fields),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('size', ['matrix', 'map of many pixels'])
def test_half_precision(fast, formula, size, dtype, make, compute, agree):
    # As accurate as fp32 of the rounded logits, but for the gradient's type.
    logits, labels = make(SIZES[size], dtype)
    expected = compute('reference', formula, logits.float(), labels)
    losses, gradient, sums = compute(fast, formula, logits, labels)
    assert losses.dtype == torch.float32
    assert gradient.dtype == dtype
    agree(
        (losses, gradient.float(), sums),
        expected,
        **CLOSE,
        gradient_rtol=torch.finfo(dtype).eps,
    )


@needs_compiler
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_in_every_value(dtype, rows):
    # A shift of 0 and one class besides: the gradient is that of a sigmoid.
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    z = bits.view(dtype)
    logits = torch.stack([z, torch.zeros_like(z)], 1)
    labels = torch.zeros(len(z), dtype=torch.int64)
    results = []
    for engine in ('reference', 'native'):
        x = logits.clone().requires_grad_()
        losses, _ = rows(
            Shifted(torch.zeros(2)), Batch(x, labels, engine=engine)
        )
        # So small that fp16 gradients become subnormal.
        losses.backward(torch.full_like(losses, 2.0**-12))
        results += [losses.detach(), x.grad]
    torch.testing.assert_close(results[2], results[0], equal_nan=True)
    gap = (results[3].float() - results[1].float()).abs()
    finite = results[1].isfinite()
    assert (results[3].isnan() == results[1].isnan()).all()
    # One unit in the last place, at most, also of subnormal numbers.
    size = results[1].abs()
    above = (size.view(torch.int16) + 1).view(dtype)
    unit = above.float() - size.float()
    assert (gap[finite] <= unit[finite]).all()


@pytest.mark.parametrize('size', ['matrix', 'map'])
def test_weights(fast, formula, size, make, compute, agree):
    logits, labels = make(SIZES[size])
    row = torch.rand(labels.shape)
    row.view(-1)[::3] = 0
    # With a factor, the result is reduced.
    kinds = [dict(row_weight=row), dict(row_weight=row, factor=0.1)]
    if is_sigmoid(formula):
        element = torch.randn(logits.shape)
        element[..., 0] = 0
        kinds.append(dict(element_weight=element))
        kinds.append(dict(element_weight=element, factor=torch.tensor(2.0)))
    for kind in kinds:
        agree(
            compute(fast, formula, logits, labels, **kind),
            compute('reference', formula, logits, labels, **kind),
            **CLOSE,
        )


@pytest.mark.parametrize('sides', [SHIFTED_BCE, WEIGHTED_BCE])
@pytest.mark.parametrize('size', ['matrix', 'map of many pixels'])
@pytest.mark.parametrize('background', [False, True])
def test_spared_background(
    fast, sides, size, background, make, compute, agree
):
    logits, labels = make(SIZES[size], background=background)
    parameters = [torch.linspace(0.5, 3, K)] * len(sides.neutral)
    plain = TwoSided(sides, parameters)
    spared = replace(plain, spare_background=True)
    expected = compute('reference', spared, logits, labels)
    agree(compute(fast, spared, logits, labels), expected)
    losses = compute(fast, plain, logits, labels)[0]
    assert torch.allclose(losses, expected[0]) == (not background)


def test_any_memory_layout(fast, formula, make, compute, agree):
    logits, labels = make((6, K + 2, 4, 3))
    labels = labels.clamp(max=K - 1).where(labels != 255, 255)
    wide_matrix = torch.randn(9, K + 3)
    last = dict(memory_format=torch.channels_last)
    views = [
        (logits[:, :K], labels),
        (logits[:, :K].contiguous(**last), labels),
        (logits[::2, :K], labels[::2]),
        (logits[:, :K, ::2], labels[:, ::2]),
        (wide_matrix[:, 1 : K + 1], torch.arange(9) % K),
        (torch.randn(K, 9).t(), torch.arange(9) % K),
    ]
    for z, y in views:
        weight = torch.rand(y.shape)
        expected = compute(
            'reference', formula, z.contiguous(), y, row_weight=weight
        )
        found = compute(fast, formula, z, y, row_weight=weight)
        agree(found, expected)
        assert found[1].shape == z.shape


def test_element_weights_of_maps(fast, sigmoid, make, compute, agree):
    logits, labels = make(SIZES['map'])
    weight = torch.rand(logits.shape)
    expected = compute(
        'reference', sigmoid, logits, labels, element_weight=weight
    )
    last = dict(memory_format=torch.channels_last)
    for z, w in itertools.product(
        (logits, logits.contiguous(**last)),
        (weight, weight.contiguous(**last)),
    ):
        agree(compute(fast, sigmoid, z, labels, element_weight=w), expected)


@pytest.mark.parametrize('size', ['matrix', 'map'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('scale', [1e2, 1e4])
def test_large_logits(fast, formula, size, dtype, scale, make, compute, agree):
    logits, labels = make(SIZES[size], dtype, scale=scale)
    expected = compute('reference', formula, logits, labels)
    found = compute(fast, formula, logits, labels)
    assert found[0].isfinite().all()
    assert found[1].isfinite().all()
    agree(found, expected, rtol=1e-4, atol=1e-5, gradient_rtol=1e-2)


@pytest.mark.parametrize('size', ['matrix', 'map of many pixels'])
def test_faulty_logits_are_not_hidden(fast, formula, size, make, compute):
    """A gradient scaler looks for them; the rows besides are unharmed."""
    logits, labels = make(SIZES[size])
    kept = labels[0] != 255
    # Sigmoids have a finite gradient at infinity.
    for bad in [torch.nan, *[torch.inf] * (not is_sigmoid(formula))]:
        logits[0, 3] = bad
        losses, gradient, _ = compute(fast, formula, logits, labels)
        expected = compute('reference', formula, logits, labels)
        assert not losses[0][kept].isfinite().any()
        assert (losses.isfinite() == expected[0].isfinite()).all()
        assert gradient[0, 3][kept].isnan().all()
        assert gradient[1:].isfinite().all()


@pytest.mark.parametrize('size', ['matrix', 'map of many pixels'])
def test_rows_left_out_may_hold_anything(
    fast, formula, size, make, compute, agree
):
    logits, labels = make(SIZES[size])
    expected = compute(fast, formula, logits, labels)
    logits.movedim(1, -1)[labels == 255] = torch.nan
    agree(compute(fast, formula, logits, labels), expected)


@pytest.mark.parametrize('size', ['matrix', 'map'])
def test_masked_logits(fast, maskable, size, make, compute, agree):
    """As in masked softmax: a column that is out of the question."""
    logits, labels = make(SIZES[size])
    logits[:, 2] = -torch.inf
    labels = labels.where(labels != 2, 1)
    found = compute(fast, maskable, logits, labels)
    agree(found, compute('reference', maskable, logits, labels))
    assert (found[1][:, 2] == 0).all()


def test_runs_can_be_repeated_to_the_last_bit(fast, formula, make, compute):
    logits, labels = make((300, K))
    first = compute(fast, formula, logits, labels)
    second = compute(fast, formula, logits, labels)
    for a, b in zip(first, second):
        assert torch.equal(a, b)


def test_autocast_does_not_round_sums(fast, formula, make, compute, agree):
    logits, labels = make((300, K))
    expected = compute(fast, formula, logits, labels)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found = compute(fast, formula, logits, labels)
    agree(found, expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_parameters_of_another_type(fast, formula, dtype, make, compute):
    """Priors of counts are float64, and a model in bf16 has its own."""
    made = formula(K)
    fields = {}
    for name, value in vars(made).items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            fields[name] = value.double()
        elif name == 'parameters':
            fields[name] = [v.double() for v in value]
    logits, labels = make(SIZES['matrix'], dtype)
    found = compute(fast, replace(made, **fields), logits, labels)
    expected = compute(fast, made, logits, labels)
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b)


# -------------------------------------------------------------------- labels
def test_labels_of_other_integers(engine, formula, make, compute):
    logits, labels = make(SIZES['matrix'])
    expected = compute(engine, formula, logits, labels)
    for dtype in (torch.int32, torch.uint8):
        found = compute(engine, formula, logits, labels.to(dtype))
        for a, b in zip(found, expected):
            assert torch.equal(a, b)


def test_labels_with_strides(fast, formula, make, compute):
    logits, labels = make(SIZES['matrix'])
    expected = compute(fast, formula, logits, labels)
    strided = torch.stack([labels, labels * 0], 1)[:, 0]
    for a, b in zip(compute(fast, formula, logits, strided), expected):
        assert torch.equal(a, b)


# --------------------------------------------------------------------- draws
def left_out(result):
    """Elements whose gradient is exactly 0, as (rows, K)."""
    return (result[1] == 0).movedim(1, -1).flatten(0, -2)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_a_draw_depends_on_seed_row_and_column_only(
    engine, dtype, compute, monkeypatch
):
    columns, ones = 40, torch.ones(2, 17, 16)
    p = torch.rand(columns).where(torch.arange(columns) % 3 > 0, 0)
    formula = Dropped(p, torch.tensor((1, 2)), columns - 1)
    logits = torch.randn(2, columns, 17, 16).to(dtype)
    labels = torch.randint(columns, (2, 17, 16))
    labels[0, 3] = 255

    def of_map(logits, formula=formula, engine=engine):
        return left_out(compute(engine, formula, logits, labels, ones))

    expected = of_map(logits, engine='reference')
    assert 0.2 < expected.float().mean() < 0.5
    assert torch.equal(of_map(logits), expected)
    last = logits.contiguous(memory_format=torch.channels_last)
    assert torch.equal(of_map(last), expected)
    matrix = logits.movedim(1, -1).reshape(-1, columns)
    strided = torch.cat([matrix, matrix], 1)[:, :columns]
    for z in (matrix, strided):
        found = compute(engine, formula, z, labels.flatten(), ones.flatten())
        assert torch.equal(left_out(found), expected)
    # The parts of the eager engine, in both ways that maps are cut.
    for size in (columns, 100 * columns, 300 * columns):
        monkeypatch.setattr(eager, '_ON_CPU', size)
        assert torch.equal(of_map(logits), expected)
        assert torch.equal(of_map(last), expected)
    for seed in ((1, 3), (2, 2), (2**32 - 1, 2**32 - 1)):
        other = replace(formula, seed=torch.tensor(seed))
        found = of_map(logits, other)
        assert not torch.equal(found, expected)
        assert torch.equal(found, of_map(logits, other, 'reference'))


@needs_compiler
@pytest.mark.parametrize('size', [(300, 66_000), (300, 9), (3, 9, 20, 20)])
def test_nothing_depends_on_threads(formula, size, make, compute, agree):
    logits, labels = make(size)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(compute('native', formula, logits, labels))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*map(left_out, found))
    agree(*found)


@pytest.mark.parametrize('size', ['matrix', 'map'])
def test_what_is_never_left_out(engine, size, make, compute):
    logits, labels = make(SIZES[size])
    formula = Dropped(torch.ones(K), torch.tensor([5, 6]), K - 1)
    ones = torch.ones(labels.shape)
    losses, gradient, _ = compute(engine, formula, logits, labels, ones)
    gradient = gradient.movedim(1, -1)
    background, ignored = labels == K - 1, labels == 255
    assert background.any()
    assert ignored.any()
    # Of rows with an object only the label is left: log 1.
    assert (losses[~background] == 0).all()
    assert (gradient[~background] == 0).all()
    assert (gradient[background] != 0).all()
    plain = F.cross_entropy(logits, labels, reduction='none', ignore_index=255)
    torch.testing.assert_close(losses[background], plain[background])


@pytest.mark.parametrize('is_map', [False, True])
def test_infinite_and_large_logits_of_a_draw(engine, is_map, compute):
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
    formula = Dropped(torch.tensor([0.0, 1, 0]), torch.tensor([3, 4]), 3)
    ones = torch.ones(labels.shape)
    losses, gradient, _ = compute(engine, formula, logits, labels, ones)
    torch.testing.assert_close(
        losses.flatten(), torch.tensor(expected), rtol=1e-4, atol=1e-4
    )
    assert gradient.isfinite().all()
    # Not of the row whose label it is.
    assert (gradient.select(1, 1).flatten()[:4] == 0).all()


# ----------------------------------------------------------------- constants
def test_seesaw_with_infinite_counts(engine, make, compute, agree):
    """Those of background, in one role, and minus infinity in the other."""
    counts = torch.arange(1.0, K).log()
    infinite = torch.tensor([torch.inf])
    formula = Seesaw(
        torch.cat([counts, infinite]), torch.cat([counts, -infinite])
    )
    logits, labels = make(SIZES['matrix'])
    assert (labels == K - 1).any()
    found = compute(engine, formula, logits, labels)
    agree(found, compute('reference', formula, logits, labels), **CLOSE)
    assert found[0].isfinite().all()
