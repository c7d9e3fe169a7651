"""What autograd sees of the kernels: derivatives, memory, inputs' lives."""

import weakref

import pytest
import torch
import torch.nn.functional as F

from lt_losses_mm.kernels import (
    WEIGHTED_BCE,
    Batch,
    Seesaw,
    Shifted,
    TwoSided,
    reduce_rows,
    softmax_rows,
)

K = 7
SIZES = {'matrix': (70, K), 'map': (2, K, 5, 3)}
SHIFT = Shifted(torch.linspace(-1, 1, K))


def close(*args, **kwargs):
    torch.testing.assert_close(*args, **kwargs)


def grad(value, *inputs, **kwargs):
    found = torch.autograd.grad(value, inputs, **kwargs)
    return found if len(found) > 1 else found[0]


def smooth(formula):
    """Without the factors that no gradient is to flow through."""
    made = formula(K)
    if isinstance(made, Seesaw):
        made.q = 0
    return made


# --------------------------------------------------------------- derivatives
def test_gradients(engine, formula, make, batch_of, rows):
    """Of float64, which the native engine leaves to the eager one."""
    logits, labels = make((4, K), torch.float64)
    made = smooth(formula)

    def function(z):
        return rows(made, batch_of(made, z, labels, engine=engine))[0]

    logits.requires_grad_()
    torch.autograd.gradcheck(function, logits)
    torch.autograd.gradgradcheck(function, logits)


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('weighted', [False, True])
def test_second_derivatives(
    fast, formula, size, weighted, make, batch_of, rows
):
    logits, labels = make(SIZES[size])
    fields = {}
    if weighted:
        fields = dict(row_weight=torch.rand(labels.shape), factor=0.3)
    results = []
    for engine in ('reference', fast):
        z = logits.clone().requires_grad_()
        batch = batch_of(formula(K), z, labels, engine=engine, **fields)
        value = rows(formula(K), batch)[0].sum()
        first = grad(value, z, create_graph=True)
        results.append((first, grad(first.square().sum(), z)))
    close(*results, rtol=1e-4, atol=1e-5)
    assert results[0][1].any()


@pytest.mark.parametrize('factor', [None, 0.3])
def test_backward_twice(fast, formula, factor, make, batch_of, rows):
    logits, labels = make(SIZES['matrix'])
    z = logits.requires_grad_()
    batch = batch_of(formula(K), z, labels, factor=factor, engine=fast)
    value = rows(formula(K), batch, sums=True)[0].sum()
    first = grad(value, z, retain_graph=True)
    expected = first.clone()
    first.zero_()  # as a clipped or an accumulated one is changed
    close(grad(value, z, retain_graph=True), expected)


def test_rows_without_weight_may_be_anything(
    fast, formula, make, batch_of, rows
):
    logits, labels = make(SIZES['matrix'])
    weight = torch.ones(labels.shape)
    labels[1], weight[1], logits[1] = 0, 0, torch.nan
    z = logits.requires_grad_()
    batch = batch_of(
        formula(K), z, labels, row_weight=weight, factor=1.0, engine=fast
    )
    found = grad(rows(formula(K), batch, sums=True)[0], z)
    assert not found[1].any() and found[0].isfinite().all()


def test_without_a_gradient(engine, formula, make, compute, batch_of, rows):
    logits, labels = make(SIZES['matrix'])
    expected = compute(engine, formula, logits, labels)
    batch = batch_of(formula(K), logits, labels, engine=engine)
    losses, sums = rows(formula(K), batch, sums=True)
    assert not losses.requires_grad
    close((losses, sums), (expected[0], expected[2]))
    assert rows(formula(K), batch)[1] is None


# ----------------------------------------------------------------- reduction
@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('size', SIZES)
def test_a_factor_reduces(
    engine, formula, weighted, size, make, compute, batch_of, rows
):
    logits, labels = make(SIZES[size])
    weight = torch.rand(labels.shape) if weighted else None
    upstream = torch.full(labels.shape, 0.3)
    if weighted:
        upstream = upstream * weight
    losses, gradient, _ = compute(engine, formula, logits, labels, upstream)
    z = logits.requires_grad_()
    for factor in (0.3, torch.tensor(0.3), torch.tensor(0.3).double()):
        batch = batch_of(
            formula(K),
            z,
            labels,
            row_weight=weight,
            factor=factor,
            engine=engine,
        )
        value, _ = rows(formula(K), batch)
        close(value.float(), (losses * upstream).sum())
        # Upstream of the value is not 1.
        close(grad(2 * value, z), 2 * gradient)


def test_reduction_by_hand():
    losses = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    weight = torch.tensor([[1, 0], [2, 1]], dtype=torch.float64)
    assert reduce_rows(losses, weight, 0.5).item() == 5.5
    assert reduce_rows(losses, weight, 0.5).dtype == torch.float32
    assert reduce_rows(losses, None, torch.tensor(0.25)).item() == 2.5


@pytest.mark.parametrize('learned', ['row_weight', 'factor', 'both'])
def test_weights_of_rows_that_want_a_gradient(
    engine, formula, learned, make, compute, batch_of, rows
):
    logits, labels = make(SIZES['map'])
    row_weight, factor = torch.rand(labels.shape), torch.tensor(0.7)
    row_weight.requires_grad_(learned != 'factor')
    factor.requires_grad_(learned != 'row_weight')
    losses, gradient, sums = compute(
        engine,
        formula,
        logits,
        labels,
        upstream=(row_weight * factor).detach(),
        row_weight=row_weight.detach(),
    )
    z = logits.requires_grad_()
    batch = batch_of(
        formula(K),
        z,
        labels,
        row_weight=row_weight,
        factor=factor,
        engine=engine,
    )
    value, found = rows(formula(K), batch, sums=True)
    value.backward()
    close((z.grad, found), (gradient, sums))
    assert not found.requires_grad
    if row_weight.requires_grad:
        close(row_weight.grad, losses * 0.7)
    if factor.requires_grad:
        close(factor.grad, (losses * row_weight).sum().detach())


def test_weights_of_elements_that_want_a_gradient(
    engine, sigmoid, make, batch_of, rows
):
    logits, labels = make((3, K), ignored=False)
    weight = torch.rand(3, K, requires_grad=True)
    made = sigmoid(K)
    batch = batch_of(
        made, logits, labels, element_weight=weight, engine=engine
    )
    rows(made, batch)[0].sum().backward()
    close(
        weight.grad,
        made.loss(logits, labels, batch.ignore_index, batch.quality),
    )


# --------------------------------------------------------------- overwriting
@pytest.mark.parametrize('size', [*SIZES, 'channels last'])
def test_overwriting_the_logits(
    fast, formula, size, make, compute, batch_of, rows
):
    logits, labels = make(SIZES['map' if size != 'matrix' else size])
    if size == 'channels last':
        logits = logits.contiguous(memory_format=torch.channels_last)
    expected = compute(fast, formula, logits, labels)
    leaf = logits.clone().requires_grad_()
    z = leaf * 1
    where = z.data_ptr()
    batch = batch_of(formula(K), z, labels, overwrite=True, engine=fast)
    losses, _ = rows(formula(K), batch, sums=True)
    assert torch.equal(z.detach(), logits)  # until backward
    seen = []
    z.register_hook(lambda g: seen.append(g.data_ptr()))
    upstream = torch.linspace(-1, 2, losses.numel()).view(losses.shape)
    losses.backward(upstream)
    assert seen == [where]
    close(leaf.grad, expected[1])


def test_overwriting_what_others_need_is_an_error(fast):
    leaf = torch.randn(5, K, requires_grad=True)
    z = leaf * 1
    batch = Batch(z, torch.arange(5), overwrite=True, engine=fast)
    other = (z * z).sum()
    losses, _ = softmax_rows(SHIFT, batch)
    with pytest.raises(RuntimeError, match='modified by an inplace'):
        (other + losses.sum()).backward()


@pytest.mark.parametrize('view', [False, True])
def test_leaves_and_their_views_are_never_overwritten(fast, view):
    leaf = torch.randn((2 * K,) if view else (2, K), requires_grad=True)
    before = leaf.detach().clone()
    logits = leaf.view(2, K) if view else leaf
    batch = Batch(logits, torch.arange(2), overwrite=True, engine=fast)
    softmax_rows(SHIFT, batch)[0].sum().backward()
    assert torch.equal(leaf.detach(), before)
    assert leaf.grad.data_ptr() != leaf.data_ptr()


def test_expanded_logits_are_not_overwritten(fast):
    row = torch.randn(K, requires_grad=True)
    found = []
    for overwrite in (False, True):
        logits = (row * 1).expand(4, K)
        batch = Batch(
            logits, torch.arange(4), overwrite=overwrite, engine=fast
        )
        found.append(grad(softmax_rows(SHIFT, batch)[0].sum(), row))
    close(*found)


# -------------------------------------------------------------------- inputs
def test_a_batch_is_freed_with_its_graph(engine):
    logits = torch.randn(4, K, requires_grad=True) * 1
    watch = weakref.ref(logits)
    batch = Batch(logits, torch.arange(4), engine=engine)
    losses, _ = softmax_rows(SHIFT, batch)
    losses.sum().backward()
    del logits, batch
    assert watch() is None


def test_inputs_changed_before_backward_are_an_error(
    fast, sigmoid, make, batch_of, rows
):
    logits, labels = make((6, K))
    made, ones = sigmoid(K), torch.ones(6)
    logits.requires_grad_()
    for name in (
        'labels',
        'row_weight',
        'element_weight',
        'quality',
        'factor',
    ):
        batch = batch_of(
            made,
            logits,
            labels.clone(),
            row_weight=ones.clone(),
            factor=torch.tensor(0.5),
            engine=fast,
        )
        if name == 'element_weight':
            batch.element_weight = torch.ones(6, K)
        if name == 'quality' and not made.sides.reads_quality:
            continue
        value, _ = rows(made, batch)
        getattr(batch, name).zero_()
        with pytest.raises(RuntimeError, match='modified by an inplace'):
            value.backward()


def test_shapes_that_do_not_fit(engine, formula, make, batch_of, rows):
    logits, labels = make((3, K), ignored=False)
    made = formula(K)

    def fails(match, made=made, labels=labels, **fields):
        batch = batch_of(made, logits, labels, engine=engine)
        for name, value in fields.items():
            setattr(batch, name, value)
        with pytest.raises(ValueError, match=match):
            rows(made, batch)

    fails(f'a formula of {K - 1} columns, expected {K}', formula(K - 1))
    # Objectness is said, and never taken for granted.
    fails(f'a formula of {K - 2} columns, expected {K}', formula(K - 2))
    fails(r'labels of shape \(2,\) do not fit', labels=labels[:2])
    fails(
        rf'labels of shape \(3, {K}\) do not fit',
        labels=torch.zeros(3, K, dtype=torch.int64),
    )
    fails(r'shape \(1,\), expected \(3,\)', row_weight=torch.ones(1))
    if isinstance(made, TwoSided):
        fails(
            rf'shape \(3, 1\), expected \(3, {K}\)',
            element_weight=torch.ones(3, 1),
        )
        if made.sides.reads_quality:
            fails(r'shape \(3, 1\), expected', quality=torch.ones(3, 1))


def test_parameters_that_do_not_fit():
    five, six = torch.ones(5), torch.ones(6)
    for make in (
        lambda: Shifted(five, six),
        lambda: Shifted(five.view(1, 5)),
        lambda: Seesaw(five, six),
        lambda: TwoSided(WEIGHTED_BCE, (five, six)),
    ):
        with pytest.raises(ValueError, match='one value a logit column each'):
            make()


@pytest.mark.parametrize('size', [(0, K), (0, K, 2, 3), (2, K, 0, 3)])
def test_nothing_at_all(engine, formula, size, compute):
    labels = torch.zeros(size[:1] + size[2:], dtype=torch.int64)
    losses, gradient, sums = compute(
        engine, formula, torch.zeros(size), labels
    )
    assert losses.shape == labels.shape
    assert gradient.shape == size
    assert not sums.any()


# ------------------------------------------------- classes beside objectness
def beside(softmax, logits, labels, **fields):
    """Classes and objectness in one, and by two cross-entropies."""
    made = softmax(K)
    if hasattr(made, 'num_classes'):
        made.num_classes = K  # no label of a class is background's
    batch = Batch(logits, labels, 255, objectness=True, **fields)
    together, sums = softmax_rows(made, batch, sums=True)
    objects = labels.masked_fill(labels == K, 255)
    alone = Batch(logits[:, :K], objects, 255, engine='reference')
    alone.row_weight = fields.get('row_weight')
    apart, expected = softmax_rows(made, alone, sums=True)
    is_background = (labels == K).long().masked_fill(labels == 255, 255)
    apart = apart + F.cross_entropy(
        logits[:, K:].float(),
        is_background,
        reduction='none',
        ignore_index=255,
    )
    return together, apart, sums, expected


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('size', [(40, K + 2), (2, K + 2, 4, 3)])
@pytest.mark.parametrize('overwrite', [False, True])
@pytest.mark.parametrize('weighted', [False, True])
def test_objectness(engine, softmax, dtype, size, overwrite, weighted, make):
    logits, labels = make(size, dtype)
    labels = labels.clamp(max=K).where(labels != 255, 255)
    assert set(labels.unique().tolist()) >= {K, 255}
    fields = dict(row_weight=torch.rand(labels.shape)) if weighted else {}
    leaf = logits.requires_grad_()
    z = leaf * 1
    together, apart, sums, expected = beside(
        softmax, z, labels, overwrite=overwrite, engine=engine, **fields
    )
    close((together, sums), (apart, expected), rtol=1e-5, atol=1e-5)
    upstream = torch.linspace(-1, 2, labels.numel()).view(labels.shape)
    theirs = grad(apart, leaf, grad_outputs=upstream, retain_graph=True)
    # The other graph is done with the logits.
    del apart
    ours = grad(together, leaf, grad_outputs=upstream)
    close(ours, theirs, rtol=max(1e-5, torch.finfo(dtype).eps), atol=1e-5)


def test_objectness_with_a_factor(engine, softmax, make):
    logits, labels = make((40, K + 2))
    labels = labels.clamp(max=K).where(labels != 255, 255)
    weight = torch.rand(40)
    z = logits.requires_grad_()
    value, rows = (
        softmax_rows(
            softmax(K),
            Batch(
                z,
                labels,
                255,
                row_weight=weight,
                factor=f,
                engine=engine,
                objectness=True,
            ),
        )[0]
        for f in (0.1, None)
    )
    close(value, (rows * weight).sum() * 0.1)
    close(grad(value, z), grad(rows, z, grad_outputs=weight * 0.1))


def test_second_derivatives_of_objectness(engine, softmax, make):
    logits, labels = make((4, K + 2), torch.float64)
    labels = labels.clamp(max=K).where(labels != 255, 255)
    made = softmax(K)
    if isinstance(made, Seesaw):
        made.q = 0

    def function(z):
        batch = Batch(z, labels, 255, engine=engine, objectness=True)
        return softmax_rows(made, batch)[0]

    logits.requires_grad_()
    torch.autograd.gradcheck(function, logits)
    torch.autograd.gradgradcheck(function, logits)


def test_logits_of_objectness_that_are_used_elsewhere(engine, make):
    """Gradients that arrive from several places are not taken for ours."""
    logits, labels = make((4, K + 2), ignored=False)
    labels = labels.clamp(max=K - 1)
    z = logits.requires_grad_()
    part = z[:, :K]
    part.register_hook(lambda g: g.clone())
    losses, _ = softmax_rows(
        SHIFT, Batch(z, labels, engine=engine, objectness=True)
    )
    value = losses.sum() + part.square().sum() + z[:, K:].sum()
    plain = F.cross_entropy(part + SHIFT.shift, labels, reduction='sum')
    plain = plain + F.cross_entropy(z[:, K:], 0 * labels, reduction='sum')
    plain = plain + part.square().sum() + z[:, K:].sum()
    close(grad(value, z), grad(plain, z))


def test_objectness_has_no_soft_labels(engine):
    logits = torch.zeros(2, K + 2)
    batch = Batch(logits, logits.softmax(1), engine=engine, objectness=True)
    with pytest.raises(
        ValueError,
        match=r"background='objectness', expected another policy\. Fix: soft",
    ):
        softmax_rows(SHIFT, batch)
