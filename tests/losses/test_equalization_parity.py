"""The equalization family against the papers' formulas, scalar by scalar.

The reference of this file shares no code with the package. It is written in
Python loops over rows and classes, in float64, with probabilities where the
package has logarithms of them; its statistics are what autograd says the
gradient of each element is. Over 50 optimizer steps of several forward passes
each, every loss has to give its values, its gradients and its statistics.
"""

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lt_losses_mm.losses import (
    EqualizationLoss,
    EqualizationSoftmaxLoss,
    EqualizedFocalLoss,
    EqualizedQualityFocalLoss,
    SigmoidEqualizationLoss,
    SoftmaxEqualizationLoss,
)
from lt_losses_mm.statistics import commit_statistics

C = 4
STEPS = 50
ROWS = 4
# mmdet's guard of the divisor, part of its avg_factor convention.
AVG_EPS = torch.finfo(torch.float32).eps
SIDES = ('pos_grad', 'neg_grad', 'pos_count')


def rounds(x, between=0):
    """prospector32 of hash-prospector, but for its last xorshift."""
    x ^= x >> 15
    x = (x * 0x2C1B3C6D + between) % 2**32
    x ^= x >> 12
    return x * 0x297A2D39 % 2**32


def mixed(x):
    x = rounds(x)
    return x ^ x >> 15


def uniform(low, high, row, column):
    """In [0, 1), of the seed's two words and the place."""
    low = mixed(low)
    first = mixed((low + row) % 2**32)
    second = mixed(first ^ mixed(low ^ high))
    return (rounds(first ^ mixed(column), second) >> 8) / 2**24


def close(ours, expected, **kwargs):
    kwargs = {'rtol': 1e-10, 'atol': 1e-14, **kwargs}
    torch.testing.assert_close(ours, expected, **kwargs)


def float64(values):
    return torch.tensor(values, dtype=torch.float64)


# ---------------------------------------------------------------- reference
@dataclass
class Part:
    """A term of a row's loss, and what its gradients are counted as."""

    value: Tensor
    # Share of the sample in the mixture that a soft label stands for.
    share: float
    # Column -> 'pos' or 'neg'; columns that are not named do not count.
    sides: dict
    # Column whose element weight applies; None for a term of the whole row.
    column: Any = None


class Statistics:
    """Accumulated gradients, as lists of floats."""

    def __init__(self):
        self.pos_grad = [0.0] * C
        self.neg_grad = [0.0] * C
        self.pos_count = [0.0] * C
        self.pending = []

    def ratio(self, j, initial):
        if self.pos_grad[j] == self.neg_grad[j] == 0:
            return initial
        return self.pos_grad[j] / (self.neg_grad[j] + 1e-10)

    def add(self, part, row, weight):
        counted = {j: side for j, side in part.sides.items() if j < C}
        if not counted:
            return
        gradients = torch.autograd.grad(
            part.value, [row[j] for j in counted], retain_graph=True
        )
        for (j, side), gradient in zip(counted.items(), gradients):
            amount = weight * part.share * abs(gradient.item())
            self.pending.append((side + '_grad', j, amount))
            if side == 'pos' and weight > 0:
                self.pending.append(('pos_count', j, part.share))

    def commit(self):
        for name, j, amount in self.pending:
            getattr(self, name)[j] += amount
        self.pending = []


def probability(z):
    return 1 / (1 + torch.exp(-z))


def binary_parts(row, targets, positive, negative):
    """A class with target t is positive with share t, negative with 1 - t."""
    for j, (z, t) in enumerate(zip(row, targets)):
        if t > 0:
            yield Part(positive(j, probability(z)), t, {j: 'pos'}, j)
        if t < 1:
            yield Part(negative(j, probability(z)), 1 - t, {j: 'neg'}, j)


class SigmoidEql:
    """EQLv2: q = 1 + alpha (1 - f(g)), r = f(g); background is plain."""

    def __init__(self, steepness=12.0, mu=0.8, boost=4.0):
        self.gamma, self.mu, self.alpha = steepness, mu, boost

    def parts(self, row, targets, statistics, mask):
        def f(j):
            if j == C:
                return 1.0
            ratio = statistics.ratio(j, initial=100.0)
            exponent = min(self.gamma * (self.mu - ratio), 700)
            return 1 / (1 + math.exp(exponent))

        return binary_parts(
            row,
            targets,
            lambda j, p: -(1 + self.alpha * (1 - f(j))) * torch.log(p),
            lambda j, p: -f(j) * torch.log(1 - p),
        )


class Efl:
    """EFL: gamma_j = gamma_b + s (1 - g), w_j = gamma_j / gamma_b."""

    def __init__(self, gamma=2.0, scale=8.0, alpha=0.25):
        self.gamma, self.scale, self.alpha = gamma, scale, alpha

    def factors(self, j, statistics):
        ratio = min(max(statistics.ratio(j, initial=1.0), 0.0), 1.0)
        gamma = self.gamma + self.scale * (1 - ratio)
        return gamma, gamma / self.gamma

    def parts(self, row, targets, statistics, mask):
        of_positives, of_negatives = self.alpha, 1 - self.alpha
        if self.alpha < 0:
            of_positives = of_negatives = 1

        def term(j, p_t, alpha):
            gamma, w = self.factors(j, statistics)
            return -alpha * w * (1 - p_t) ** gamma * torch.log(p_t)

        return binary_parts(
            row,
            targets,
            lambda j, p: term(j, p, of_positives),
            lambda j, p: term(j, 1 - p, of_negatives),
        )


class Eqfl(Efl):
    """QFL with EFL's factors; a target is a quality, positive if above 0."""

    def parts(self, row, targets, statistics, mask):
        for j, (z, q) in enumerate(zip(row, targets)):
            p = probability(z)
            gamma, w = self.factors(j, statistics)
            bce = -(q * torch.log(p) + (1 - q) * torch.log(1 - p))
            side = 'pos' if q > 0 else 'neg'
            value = w * torch.abs(q - p) ** gamma * bce
            yield Part(value, 1.0, {j: side}, j)


class SoftmaxEql:
    """CE(z + tau log s), s = max(G, eps), under each background policy."""

    def __init__(self, indicator='pos', tau=1.0, floor=1e-4, background=None):
        self.indicator, self.tau, self.eps = indicator, tau, floor
        self.background = background

    def priors(self, columns, statistics):
        both = zip(statistics.pos_grad, statistics.neg_grad)
        chosen = {
            'pos': lambda pos, neg: pos,
            'neg': lambda pos, neg: neg,
            'both': lambda pos, neg: pos + neg,
        }[self.indicator]
        s = [max(chosen(*pair), self.eps) for pair in both]
        share = [v / sum(s) for v in s]
        if columns == C + 1 and isinstance(self.background, float):
            of_object = 1 - self.background
            return [of_object * v for v in share] + [self.background]
        # keep_odds: a uniform prior over C classes leaves all as it is.
        return [C * v for v in share] + [1.0] * (columns - C)

    def parts(self, row, targets, statistics, mask):
        prior = self.priors(len(row), statistics)
        objectness = len(row) == C + 2
        columns = C if objectness else len(row)
        mass = [
            prior[k] ** self.tau * torch.exp(row[k]) for k in range(columns)
        ]
        for y, share in enumerate(targets):
            if not share or (objectness and y == C):
                continue
            sides = {k: 'pos' if k == y else 'neg' for k in range(columns)}
            yield Part(-torch.log(mass[y] / sum(mass)), share, sides)
        if objectness:
            is_object, is_background = torch.exp(row[C]), torch.exp(row[C + 1])
            hit = is_background if targets[C] else is_object
            yield Part(-torch.log(hit / (is_object + is_background)), 1.0, {})


class Eql:
    """EQL (v1): w = 1 - E T (1 - t), E = 0 in rows of background."""

    def __init__(self, tail):
        self.tail = tail

    def parts(self, row, targets, statistics, mask):
        has_object = any(targets)
        parts = binary_parts(
            row,
            targets,
            lambda j, p: -torch.log(p),
            lambda j, p: -(1 - has_object * self.tail[j]) * torch.log(1 - p),
        )
        # It keeps no statistics.
        return (replace(part, sides={}) for part in parts)


class Seql(Eql):
    """SEQL: w_k = 1 - beta T_k (1 - t_k) on the terms of the denominator."""

    def parts(self, row, targets, statistics, mask):
        tail = [*self.tail, 0]
        has_object = any(targets[:C])
        total = 0
        for k, z in enumerate(row):
            left_out = mask[k] * tail[k] * has_object
            total = total + (1 - left_out * (1 - targets[k])) * torch.exp(z)
        for y, share in enumerate(targets):
            if share:
                yield Part(-torch.log(torch.exp(row[y]) / total), share, {})


def by_loops(method, statistics, batch):
    """Loss, gradient and pending statistics of one forward pass."""
    logits = batch['logits'].clone().requires_grad_()
    rows = logits.movedim(1, -1).reshape(-1, logits.size(1))
    targets = batch['targets']
    losses = []
    for i in range(len(rows)):
        row = list(rows[i].unbind())
        loss = rows[i].sum() * 0
        if targets[i] is not None:
            parts = method.parts(row, targets[i], statistics, batch['mask'][i])
            for part in parts:
                weight = batch['weights'][i]
                if isinstance(weight, list):
                    weight = weight[part.column]
                loss = loss + weight * part.share * part.value
                statistics.add(part, row, weight)
        losses.append(loss)
    if batch['reduction'] == 'mean':
        divisor = batch['divisor']
        if batch['avg_factor'] is not None:
            divisor = batch['avg_factor'] + AVG_EPS
        value = sum(losses) / divisor
    else:
        value = sum(losses)
    value = batch['loss_weight'] * value
    gradient = torch.autograd.grad(value, logits)[0]
    return value.detach(), gradient, torch.stack(losses).detach()


# ------------------------------------------------------------------ batches
def one_hot(y, columns):
    return [float(k == y) for k in range(columns)]


class Batches:
    """Random calls of a loss; all combinations of the options in turn.

    The last class is rare, so that statistics begin with a class that has
    negatives only.
    """

    LABELS = (0.36, 0.18, 0.1, 0.04)

    def __init__(
        self,
        columns=C,
        background=True,
        labels=('index', 'soft'),
        weights=(None, 'row', 'element'),
        shapes=('rows', 'map'),
        loss_weight=1.0,
        class_weight=None,
    ):
        self.columns = columns
        self.background = background
        self.loss_weight = loss_weight
        self.class_weight = class_weight
        if columns > C:
            shapes = ('rows',)
        reductions = ('mean', 'avg_factor', 'sum', 'none')
        self.cases = list(
            itertools.product(shapes, labels, weights, reductions)
        )
        assert len(self.cases) <= 2 * STEPS
        self.generator = torch.Generator().manual_seed(7)
        # Neighbouring cases differ in all options, not only in the last.
        order = torch.randperm(len(self.cases), generator=self.generator)
        self.cases = [self.cases[i] for i in order]

    def rand(self, *size):
        return torch.rand(*size, generator=self.generator, dtype=torch.float64)

    def choose(self, values, probabilities, n):
        chosen = torch.multinomial(
            float64(probabilities), n, True, generator=self.generator
        )
        return [values[i] for i in chosen]

    def draw(self, number):
        case = self.cases[number % len(self.cases)]
        shape, labels, weights, reduction = case
        size = (2, self.columns, 1, 2)
        if shape == 'rows':
            size = (ROWS, self.columns)
        ignore = 255 if shape == 'map' else -100
        logits = 12 * self.rand(*size) - 6
        call, targets = self._labels(labels, shape, ignore)
        grid = torch.Size([2, 1, 2] if shape == 'map' else [ROWS])
        call['label'] = self._arrange(call['label'], grid)
        per_row, call['weight'] = self._weights(weights, grid, shape)
        divisor = float(ROWS)
        if self.class_weight is not None:
            of_label = [
                0.0 if t is None else self.class_weight[t.index(1.0)]
                for t in targets
            ]
            divisor = sum(of_label)
            per_row = [w * c for w, c in zip(per_row, of_label)]
        avg_factor = 3.7 if reduction == 'avg_factor' else None
        reduction = 'mean' if reduction == 'avg_factor' else reduction
        call.update(reduction_override=reduction, avg_factor=avg_factor)
        reference = dict(
            logits=logits,
            targets=targets,
            weights=per_row,
            mask=[[0.0] * self.columns] * ROWS,
            reduction=reduction,
            divisor=divisor,
            avg_factor=avg_factor,
            loss_weight=self.loss_weight,
        )
        return logits, call, reference

    def _labels(self, kind, shape, ignore):
        columns = self.columns
        if kind in ('soft', 'map'):
            # Some rows are one-hot, the others sum to anything, or to 0.
            soft = self.rand(ROWS, columns) * (self.rand(ROWS, columns) < 0.5)
            hard = torch.randint(columns, (ROWS,), generator=self.generator)
            hard = F.one_hot(hard, columns).double()
            soft = torch.where(self.rand(ROWS, 1) < 0.3, hard, soft)
            return dict(label=soft), soft.tolist()
        values = [*range(C), ignore]
        probabilities = [*self.LABELS, 0.12]
        if self.background and shape == 'rows':
            values, probabilities = [*values, C], [*probabilities, 0.2]
        drawn = self.choose(values, probabilities, ROWS)
        targets = [None if y == ignore else one_hot(y, columns) for y in drawn]
        if kind != 'quality':
            return dict(label=torch.tensor(drawn)), targets
        quality = self.rand(ROWS)
        quality[self.rand(ROWS) < 0.25] = 0
        targets = [
            t if t is None else [v * q for v in t]
            for t, q in zip(targets, quality.tolist())
        ]
        return dict(label=(torch.tensor(drawn), quality)), targets

    def _arrange(self, labels, grid):
        if isinstance(labels, tuple):
            return tuple(part.view(grid) for part in labels)
        if labels.is_floating_point():
            return labels.view(*grid, -1).movedim(-1, 1)
        return labels.view(grid)

    def _weights(self, kind, grid, shape):
        if kind is None:
            return [1.0] * ROWS, None
        size = (ROWS, self.columns) if kind == 'element' else (ROWS,)
        chosen = float64([0.0, 0.25, 1.0, 2.5])
        index = torch.randint(4, size, generator=self.generator)
        weight = chosen[index]
        if kind == 'element':
            return weight.tolist(), weight.view(*grid, -1).movedim(-1, 1)
        return weight.tolist(), weight.view(grid)


def run(loss, method, batches, mask_seed=None):
    """Train blindly for 50 steps; compare everything after each call."""
    statistics = Statistics()
    loss.train()
    driven = loss.statistics is not None
    numbers = itertools.count()
    for step in range(STEPS):
        # Several passes before a step, as levels of a feature pyramid are.
        for number in itertools.islice(numbers, 2 + step % 2):
            logits, kwargs, reference = batches.draw(number)
            if mask_seed is not None:
                torch.manual_seed(mask_seed + number)
                seed = torch.randint(2**32, (2,)).tolist()
                reference['mask'] = [
                    [
                        uniform(*seed, i, j) < loss.drop_probability
                        for j in range(C + 1)
                    ]
                    for i in range(ROWS)
                ]
                torch.manual_seed(mask_seed + number)
            expected, gradient, rows = by_loops(method, statistics, reference)
            leaf = logits.clone().requires_grad_()
            value = loss(leaf, **kwargs)
            if value.dim():
                close(value.flatten(), batches.loss_weight * rows)
                value = value.sum()
            close(value, expected)
            close(torch.autograd.grad(value, leaf)[0], gradient)
        statistics.commit()
        commit_statistics(loss)
        if driven:
            for name in SIDES:
                close(
                    getattr(loss.statistics, name),
                    float64(getattr(statistics, name)),
                )
    if driven:
        # The run went through what it is about: no class is as at the start.
        assert (loss.statistics.pos_count > 0).all()
        assert not loss.saturated().all()
    return statistics


# ------------------------------------------------------------------- parity
@pytest.mark.parametrize('background', ['negatives', 'objectness'])
@pytest.mark.parametrize(
    'hyper',
    [dict(), dict(steepness=5.0, mu=0.3, boost=1.5)],
    ids=['published', 'others'],
)
def test_sigmoid_eql(background, hyper):
    loss = SigmoidEqualizationLoss(
        num_classes=C, background=background, loss_weight=1.7, **hyper
    )
    columns = loss.get_cls_channels(C)
    assert columns == C + (background == 'objectness')
    run(loss, SigmoidEql(**hyper), Batches(columns, loss_weight=1.7))


@pytest.mark.parametrize(
    'hyper',
    [
        dict(),
        dict(scale=4.0),
        dict(scale=8.0, gamma=1.5, alpha=-1.0),
    ],
    ids=['s8', 's4', 'others'],
)
def test_equalized_focal(hyper):
    ours = dict(hyper)
    ours['scale_factor'] = ours.pop('scale', 8.0)
    loss = EqualizedFocalLoss(num_classes=C, loss_weight=0.6, **ours)
    run(loss, Efl(**hyper), Batches(loss_weight=0.6))


@pytest.mark.parametrize('scale', [8.0, 4.0])
def test_equalized_quality_focal(scale):
    loss = EqualizedQualityFocalLoss(num_classes=C, scale_factor=scale)
    batches = Batches(labels=('index', 'quality', 'map'))
    run(loss, Eqfl(scale=scale), batches)


def softmax_run(columns, background, labels, **hyper):
    loss = SoftmaxEqualizationLoss(
        num_classes=C, background=background, loss_weight=2.0, **hyper
    )
    batches = Batches(
        columns,
        background=columns > C,
        labels=labels,
        weights=(None, 'row'),
        loss_weight=2.0,
    )
    method = SoftmaxEql(background=background, **hyper)
    run(loss, method, batches)


@pytest.mark.parametrize(
    ('indicator', 'tau'), [('pos', 1.0), ('neg', 0.5), ('both', 2.0)]
)
def test_softmax_eql(indicator, tau):
    softmax_run(C, None, ('index', 'soft'), indicator=indicator, tau=tau)


@pytest.mark.parametrize('indicator', ['pos', 'neg', 'both'])
@pytest.mark.parametrize('background', ['keep_odds', 0.7])
def test_softmax_eql_with_background(indicator, background):
    softmax_run(C + 1, background, ('index', 'soft'), indicator=indicator)


@pytest.mark.parametrize('indicator', ['pos', 'neg', 'both'])
def test_softmax_eql_with_objectness(indicator):
    softmax_run(C + 2, 'objectness', ('index',), indicator=indicator, tau=0.7)


def test_softmax_eql_with_class_weight():
    class_weight = [1.0, 0.5, 2.0, 4.0]
    loss = SoftmaxEqualizationLoss(num_classes=C, class_weight=class_weight)
    batches = Batches(
        background=False,
        labels=('index',),
        weights=(None, 'row'),
        class_weight=class_weight,
    )
    run(loss, SoftmaxEql(), batches)


COUNTS = [900.0, 90.0, 20.0, 3.0]
TAIL = [0, 0, 1, 1]


def test_eql():
    loss = EqualizationLoss(class_counts=COUNTS, threshold=50)
    run(loss, Eql(TAIL), Batches())


@pytest.mark.parametrize('drop', [0.0, 0.6, 1.0])
@pytest.mark.parametrize('columns', [C, C + 1])
def test_eql_of_softmax(drop, columns):
    loss = EqualizationSoftmaxLoss(
        class_counts=COUNTS, threshold=50, drop_probability=drop
    )
    batches = Batches(
        columns,
        background=columns > C,
        weights=(None, 'row'),
    )
    run(loss, Seql(TAIL), batches, mask_seed=100)
