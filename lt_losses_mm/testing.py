# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""What every head may ask of a loss, as checks for any loss.

They need neither a test runner nor a host::

    from lt_losses_mm.testing import check_loss

    check_loss(MyLoss, sharpness=2.0)

What is special about a loss (``example``, ...) stands in its class.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import re
from functools import partial
from typing import Any, Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from .examples import COUNTS, Examples, make_rows, plain_rows
from .kernels import ENGINES
from .losses import LongTailLoss
from .statistics import commit_statistics

SIZES: tuple[tuple[int, ...], ...] = ((), (7,), (5, 5))


def _claim(holds: Any, sentence: str) -> None:
    if not holds:
        raise AssertionError(sentence)


def _same(ours: Any, expected: Any, what: str, **tolerance: Any) -> None:
    torch.testing.assert_close(
        ours, expected, msg=lambda found: f'{what}: {found}', **tolerance
    )


def _refused(pattern: str, call: Callable[[], Any]) -> None:
    try:
        call()
    except (ValueError, TypeError) as error:
        _claim(re.search(pattern, str(error)), f'no {pattern} in {error!r}')
    else:
        raise AssertionError(f'what concerns {pattern} is not refused')


def _pending(loss: LongTailLoss) -> Tensor:
    none = torch.zeros(0)
    return none if loss.statistics is None else loss.statistics.pending


def _gradient(value: Tensor, logits: Tensor, **options: Any) -> Tensor:
    return torch.autograd.grad(value.sum(), logits, **options)[0]


def arguments(make: Examples) -> None:
    """All arguments stand in the signature and are described."""
    _claim(issubclass(make.cls, LongTailLoss), 'it is no LongTailLoss')
    doc = inspect.getdoc(make.cls) or ''
    for name, parameter in inspect.signature(make.cls).parameters.items():
        named = parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        _claim(named, f'{name} hides arguments')
        described = re.search(rf'^\s+{name}(?: \(.+)?:', doc, re.M)
        _claim(described, f'the docstring says nothing about {name}')


def shapes(make: Examples) -> None:
    """A map is its pixels, in any layout and with integers of any width."""
    sizes = *SIZES, (1,), (1, 1), (5, 1), (2, 3, 2)
    for n, size in itertools.product((1, 5), sizes):
        loss, flat = make(), make()
        logits, labels = make_rows(n, size=size)
        weight = torch.rand(labels.shape)
        rows = loss(logits, labels, weight, reduction_override='none')
        _claim(rows.shape == labels.shape, f'rows of shape {rows.shape}')
        last = logits.movedim(1, -1)
        pixels = last.reshape(-1, 5), labels.flatten(), weight.flatten()
        alone = flat(*pixels, reduction_override='none').view(rows.shape)
        _same(alone, rows, f'{tuple(logits.shape)}, flattened')
        _same(_pending(flat), _pending(loss), 'statistics', rtol=1e-5, atol=0)
        view = last.contiguous().movedim(-1, 1)
        value = make()(view, labels.to(torch.uint8), weight)
        _same(value, rows.mean(), 'a view')


def reductions(make: Examples) -> None:
    """Rows are averaged or summed, times loss_weight; avg_factor divides."""
    call = make_rows()
    rows = make()(*call, reduction_override='none')
    for how, expected in dict(
        none=2 * rows, mean=2 * rows.mean(), sum=2 * rows.sum()
    ).items():
        configured = make(loss_weight=2.0, reduction=how)(*call)
        _same(configured, expected, f'reduction={how!r}')
        passed = make(loss_weight=2.0)(*call, reduction_override=how)
        _same(passed, expected, f'reduction_override={how!r}')
    for seven in (7, 7.0, torch.tensor([7])):
        value = make()(*call, avg_factor=seven)
        _same(value, rows.sum() / 7, f'avg_factor={seven!r}')
    _claim(make()(*call, avg_factor=0).isfinite(), 'avg_factor=0')
    _refused('reduction=', lambda: make(reduction='sum')(*call, avg_factor=3))


def weights(make: Examples) -> None:
    """A weight is a factor on its row or, in a sigmoid loss, its element."""
    for size in SIZES:
        logits, labels = make_rows(size=size)
        logits.requires_grad_()
        weight = torch.rand(labels.shape) + 0.1
        weight[::2] = 0
        rows = make()(logits, labels, reduction_override='none')
        # The mean counts rows, whatever their weight, as in mmdet and mmseg.
        mean = make()(logits, labels, weight)
        _same(mean, (rows * weight).mean(), 'the mean of weighed rows')
        weighed = make()(logits, labels, weight, reduction_override='none')
        _same(weighed, rows * weight, 'weighed rows')
        felt = _gradient(mean, logits).abs().sum(1)
        _claim(((felt > 0) == (weight > 0)).all(), 'gradient without weight')
    logits, labels = make_rows()
    logits.requires_grad_()
    element = torch.ones(logits.shape)
    _refused(r'shape \(3,\)', lambda: make()(logits, labels, element[0, :3]))
    if not make.cls.use_sigmoid:
        _refused('weight of', lambda: make()(logits, labels, element))
        return
    _same(make()(logits, labels, element), make()(logits, labels), 'ones')
    element[:, 2] = 0
    value = make()(logits, labels, element)
    _claim((_gradient(value, logits)[:, 2] == 0).all(), 'elements of weight 0')


def ignored_rows(make: Examples) -> None:
    """Rows of ignore_index count, without a loss and without a gradient."""
    for size, index in itertools.product(SIZES, (-100, -1, 255, 3)):
        logits, labels = make_rows(size=size)
        labels[labels == index] = 0
        kept = make()(logits, labels, reduction_override='none')
        labels[::3] = index
        logits.requires_grad_()
        rows = make(ignore_index=index)(
            logits, labels, reduction_override='none'
        )
        _claim((rows[::3] == 0).all(), 'an ignored row has a loss')
        _same(rows[1::3], kept[1::3], 'the other rows')
        mean = make()(logits, labels, ignore_index=index)
        _same(mean, rows.mean(), 'the mean')
        _claim((_gradient(mean, logits)[::3] == 0).all(), 'a gradient')
        valid = make(avg_non_ignore=True)(logits, labels, ignore_index=index)
        count = (labels != index).sum()
        _same(valid, rows.sum() / count, 'avg_non_ignore=True')


def nothing_to_learn_from(make: Examples) -> None:
    """No rows, or none that counts, are a 0 with a graph, and unobserved."""
    calls = (('mean', None), ('mean', 0.0), ('mean', 1.0), ('sum', None))
    kinds = ('empty', 'ignored', 'weightless')
    for kind, size, (how, factor) in itertools.product(kinds, SIZES, calls):
        logits, labels = make_rows(0 if kind == 'empty' else 4, size=size)
        weight = torch.zeros(labels.shape) if kind == 'weightless' else None
        if kind == 'ignored':
            labels.fill_(255)
        loss = make()
        logits.requires_grad_()
        value = loss(logits, labels, weight, factor, how, 255)
        _claim(value.shape == () and value == 0, f'{kind}: {value}')
        _claim((_gradient(value, logits) == 0).all(), f'{kind}: a gradient')
        _claim(not _pending(loss).any(), f'{kind} rows are observed')


def background(make: Examples) -> None:
    """Whatever the policy, all is finite, background and far logits too."""
    dtypes = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    for loss, columns in make.served(class_counts=[1e9, 1, 1, 0, 2]):
        labels = torch.arange(columns).clamp(max=min(columns - 1, 5))
        for far, dtype in itertools.product((1e2, -1e2, 1e4, -1e4), dtypes):
            logits = torch.full((columns, columns), -far, dtype=dtype)
            logits.fill_diagonal_(far).requires_grad_()
            value = loss(logits, labels)
            first = _gradient(value, logits, create_graph=True)
            for x in (value, first, _gradient(first**2, logits)):
                _claim(x.isfinite().all(), f'{dtype}, {columns} columns')


def labels(make: Examples) -> None:
    """A soft one-hot label is the index label; or soft labels are refused."""
    logits, index = make_rows(size=(2, 3))
    hot = F.one_hot(index, 5).movedim(-1, 1).float()
    if make.cls.takes_soft_labels:
        _same(make()(logits, hot), make()(logits, index), 'one-hot')
    else:
        _refused('soft labels', lambda: make()(logits, hot))
    _refused('label', lambda: make()(logits, index[:, 0]))
    _refused('label -', lambda: make()(logits, index - 9))


def precision(make: Examples) -> None:
    """Half precision is computed in fp32, and rounded once in the gradient."""
    dtypes = torch.float16, torch.bfloat16
    for dtype, scale in itertools.product(dtypes, (0.3, 10.0)):
        logits, index = make_rows(200)
        half = (scale * logits).to(dtype)
        exact = half.double()
        value = make()(half.requires_grad_(), index)
        truth = make()(exact.requires_grad_(), index)
        _claim(value.dtype == torch.float32, f'a loss of {value.dtype}')
        _same(value.double(), truth, f'{dtype}', rtol=1e-6, atol=1e-6)
        found = _gradient(value, half).double(), _gradient(truth, exact)
        eps = torch.finfo(dtype).eps
        # Gradients of fp16 below 2^-24 vanish whatever a loss does.
        _same(*found, f'gradient of {dtype}', rtol=eps, atol=2**-24)


def derivatives(make: Examples) -> None:
    """Gradient and double backward are the derivatives of the value."""
    weight = torch.tensor([0.5, 1.0, 2.0, 0.0], dtype=torch.float64)
    for loss, columns in make.served(**make.cls.smooth):
        logits, index = make_rows(4, columns, min(columns, 6), torch.float64)
        index[-2] = min(columns - 1, 5)
        for given in make.kinds(logits, index)[: 1 + (columns == 5)]:
            call = partial(loss, label=given, weight=weight, avg_factor=3.0)
            gradcheck(call, logits.requires_grad_())
            gradgradcheck(call, logits)


def engines(make: Examples) -> None:
    """Each engine has the value, gradient and sums of the definition."""
    for size in SIZES:
        logits, index = make_rows(size=size)
        for given in make.kinds(logits, index):
            found = []
            for engine in ('reference', *ENGINES):
                loss = make(engine=engine)
                value = loss(logits.requires_grad_(), given)
                found.append((value, _gradient(value, logits), _pending(loss)))
                close = dict(rtol=1e-5, atol=1e-6)
                _same(found[-1], found[0], f'engine={engine!r}', **close)


def plain_form(make: Examples) -> None:
    """With the arguments that ``neutral`` states it is its plain form."""
    if make.cls.neutral is None:
        return
    for size in SIZES:
        logits, index = make_rows(size=size, dtype=torch.float64)
        for given in make.kinds(logits, index):
            ours = make.new(**make.cls.neutral)(logits, given)
            plain = plain_rows(make.cls, logits, given).mean()
            _same(ours, plain, make.cls.plain_form)


def inputs(make: Examples) -> None:
    """A call changes neither its inputs nor the counts."""
    loss, call = make(), (*make_rows(), torch.rand(12))
    kept = [x.clone() for x in (*call, loss.class_counts)]
    call[0].requires_grad_()
    loss(*call).backward()
    for now, before in zip((*call, loss.class_counts), kept):
        _same(now.detach(), before, 'what was passed', rtol=0, atol=0)
    _claim(not list(loss.parameters()), 'a loss with parameters')


def learning(make: Examples) -> None:
    """It learns in training alone, and reads what is committed alone."""
    loss, call = make(), make_rows()
    before = copy.deepcopy(loss.state_dict())
    first = loss.eval()(*call)
    with torch.no_grad():
        loss.train()(*call)
    _claim(not _pending(loss).any(), 'it learns in eval or under no_grad')
    for _ in range(2):
        _same(loss(*call), first, 'a call before the commit', rtol=0, atol=0)
    _same(loss.state_dict(), before, 'what is read', rtol=0, atol=0)
    if loss.statistics is not None:
        read = loss.statistics.sums.clone() + _pending(loss)
        commit_statistics(loss)
        _same(loss.statistics.sums, read, 'what a commit adds')
        _claim(not _pending(loss).any(), 'a commit leaves sums pending')
        _claim(not loss(*call).equal(first), 'a commit changes nothing')


def state(make: Examples) -> None:
    """Copies, checkpoints and casts keep counts and statistics."""
    loss, call = make(), make_rows()
    expected = loss(*call)
    other = make.new()
    other.load_state_dict(loss.state_dict())
    halves = copy.deepcopy(loss).half()
    _same(halves.state_dict(), loss.state_dict(), 'half()', rtol=0, atol=0)
    for name, clone in (('copy', copy.deepcopy(loss)), ('loaded', other)):
        _same(clone(*call), expected, name)
    _same(_pending(copy.deepcopy(loss)), _pending(loss), 'what is pending')


def mistakes(make: Examples) -> None:
    """Wrong input is refused by a message that names the key."""
    logits, index = make_rows()
    for key, value in (
        ('loss_weight', None),
        ('reduction', 'average'),
        ('num_classes', 0),
        ('background', 'none'),
        ('use_sigmoid', not make.cls.use_sigmoid),
        ('class_counts', [5, 3, -1]),
    ):
        pattern = rf'{key}=.*{re.escape(str(value))}.*expected '
        _refused(pattern, partial(make, **{key: value}))
    _refused('num_classes=5', lambda: make()(logits[:, :3], index))


def rare_classes(make: Examples) -> None:
    """With equal logits the rarest class costs no less than the commonest."""
    logits, index = torch.full((5, 5), -4.0), torch.arange(5)
    rows = make()(logits, index, reduction_override='none')
    _claim(rows[3] >= rows[0], f'{rows.tolist()} for {COUNTS}')


# All public functions above, in their order.
CHECKS: tuple[Callable[[Examples], None], ...] = tuple(
    found
    for name, found in list(globals().items())
    if getattr(found, '__module__', '') == __name__ and name[0] != '_'
)


def check_loss(cls: type[LongTailLoss], **own: Any) -> None:
    """Hold a loss to all ``CHECKS``.

    Args:
        cls (type): The loss.
        own: Arguments of its constructor, above ``cls.example``.

    Raises:
        AssertionError: It fails one, which the message names.
    """
    for check in CHECKS:
        try:
            check(Examples(cls, **own))
        except Exception as error:
            raise AssertionError(
                f'{cls.__name__} fails the check {check.__name__!r} '
                f'({check.__doc__}): {error}'
            ) from error
