# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Which loss a ledger speaks for, given somebody's own data."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Iterable, Protocol

import numpy as np

from ..hosts import HOSTS
from ..losses import (
    LOSSES,
    EqualizedFocalLoss,
    EqualizedQualityFocalLoss,
    LongTailLoss,
    SigmoidLoss,
)
from ..priors import ClassCounts
from .comparison import (
    BETTER,
    RUNS,
    UNDECIDED,
    WORSE,
    Claim,
    Estimate,
    interval,
    within,
)
from .report import (
    UNRECORDED,
    joined,
    number,
    plural,
    ratio_on_one_machine,
    span,
    test_only,
)
from .results import Source, Task, read

# How far a data set may be from that of a task, as a factor of the number of
# classes and of the imbalance factor, and as a difference of Gini's
# coefficient. This is a choice: how far a gain carries was not measured.
CLASSES, IMBALANCE, GINI = 4.0, 4.0, 0.2
# Below, a correction for frequency is next to none.
BALANCED = 2.0
# What a metric's prefix says of the host, and a baseline of the head.
HOST_OF = dict(
    accuracy='mmpretrain', lvis='mmdet', coco='mmdet', ap='mmdet', iou='mmseg'
)
KIND_OF = dict(
    cross_entropy='softmax',
    focal='focal',
    quality_focal='quality',
    binary_cross_entropy='sigmoid',
)
# The method that leaves a config's own loss of that type and kind as it is.
METHOD_OF = {
    ('CrossEntropyLoss', 'softmax'): 'cross_entropy',
    ('FocalLoss', 'focal'): 'focal',
    ('QualityFocalLoss', 'quality'): 'quality_focal',
}
KEY_OF = dict(mmpretrain='loss', mmdet='loss_cls', mmseg='loss_decode')
# Metrics of this package for own data: overall, head, middle, tail.
METRICS = dict(
    mmpretrain='accuracy/all accuracy/many accuracy/medium accuracy/few',
    mmdet='ap/all ap/frequent ap/common ap/rare',
    mmseg='iou/mIoU iou/head iou/body iou/tail',
)
# What docs/which_loss.md would try first, where no row speaks for another.
FIRST = dict(
    softmax='balanced_softmax',
    sigmoid='balanced_sigmoid',
    focal='equalized_focal',
    quality='equalized_quality_focal',
)
HOOK = (
    "custom_hooks = [dict(type='lt_losses_mm.PostHocLogitAdjustmentHook')]"
    '  # with the checkpoint of the baseline'
)


class HeadFacts(Protocol):
    """What is known of a head: its class, its loss and the kind of that."""

    @property
    def type(self) -> str:
        """Its class."""

    @property
    def loss(self) -> str:
        """Class of its loss."""

    @property
    def kind(self) -> str:
        """Softmax, sigmoid, focal, quality; or ours, which the config has."""


@dataclass(frozen=True)
class Suggestion:
    """A method and what the rows show of it.

    Args:
        method: In the ledger.
        verdict: ``'better'``, ``'worse'`` or ``'undecided'``, overall.
        gain: Points over the baseline, overall.
        tail: The same in the tail.
        spread: What the intervals are over.
        rows: Which rows of the ledger it is from.
        cost: Training time as a multiple of the baseline's, NaN if unknown.
        line: For the config; empty where the method is no loss of its own.
        tested: Whether its trials trained nothing.
    """

    method: str
    verdict: str
    gain: Estimate
    tail: Estimate
    spread: str
    rows: tuple[str, ...]
    cost: float
    line: str
    tested: bool = False

    def __str__(self) -> str:
        """One line of an undecided or worse method, all of a better one."""
        first = (
            f'{self.method}: {self.verdict}, overall {_points(self.gain)}, '
            f'tail {_points(self.tail)} over the baseline'
        )
        if self.verdict != BETTER:
            return first
        cost = (
            f'{number(self.cost, 2)} times that of the baseline'
            if self.cost == self.cost
            else 'none of its own, test only'
            if self.tested
            else 'not known'
        )
        return '\n   '.join(
            [
                first,
                f'intervals: over {self.spread}',
                *(f'from {row}' for row in self.rows),
                f'time of training: {cost}',
                f'config: {self.line or "that of its trial"}',
            ]
        )


@dataclass(frozen=True)
class Advice:
    """A ranked suggestion.

    Args:
        enough: Whether any method is shown to be better on comparable data.
        suggestions: The best first; those that are worse come last.
        reasons: Sentences: what was compared, what was left out and why.
        plan: YAML text of the smallest plan that would decide, if needed.
    """

    enough: bool
    suggestions: tuple[Suggestion, ...]
    reasons: tuple[str, ...]
    plan: str = ''

    def __str__(self) -> str:
        parts = [*self.reasons]
        for place, suggestion in enumerate(self.suggestions, 1):
            parts.append(f'{place}. {suggestion}')
        if self.plan:
            parts += [
                'The smallest plan that can decide (five runs a side):',
                self.plan,
            ]
        return '\n'.join(parts)


def recommend(
    counts: ClassCounts,
    host: str,
    head: HeadFacts,
    rows: Source,
    config: str = 'CONFIG.py',
) -> Advice:
    """Rank the methods of a ledger for a head and its data.

    A task of the ledger is comparable if it has the same host and kind of
    head, and a similar number of classes, imbalance factor and Gini
    coefficient. A method is recommended only if it is better than the
    baseline by the rule of the report (five runs a side, Holm within the
    task) in at least one of them and worse in none.

    Args:
        counts: Of the training data, as the model sees them.
        host: ``'mmpretrain'``, ``'mmdet'`` or ``'mmseg'``.
        head: The head that classifies.
        rows: Path of a ledger, or its rows.
        config: Path of the config, for the plan.

    Raises:
        ImportError: If a package of the ``sweeps`` extra is missing.
        ValueError: If there is no ledger, or a line of it is no row.
    """
    refused = {k: why for h in HOSTS for k, why in h.refused.items()}
    if head.type in refused:
        return _nothing(f'{head.type} {refused[head.type]}: no loss fits.')
    if counts.imbalance_factor < BALANCED:
        return _nothing(
            'The largest class has only '
            f'{counts.imbalance_factor:.3g} times what the smallest has, as '
            'training sees them: there is next to nothing to correct.'
        )
    if head.kind == 'ours' or host not in METRICS or head.kind not in FIRST:
        return _nothing(
            f'Not enough evidence: {head.type} of {host} has a loss of kind '
            f'{head.kind!r}, which has no baseline to compare with. Give the '
            "config with the host's own loss."
        )
    reasons = [
        f'Your data: {_shape(counts)}; {head.type} ({host}, {head.kind}).'
    ]
    comparable = []
    for task in read(rows).tasks:
        why = _apart(task, counts, host, head)
        reasons.append(
            f'Task {task.name} ({task.dataset}): '
            + (f'not comparable, {why}.' if why else 'comparable.')
        )
        if not why:
            comparable.append(task)
            parts = dict.fromkeys(' '.join(task.trials['changed']).split())
            if UNRECORDED in parts:
                parts.pop(UNRECORDED)
                reasons.append(
                    f'The code of rows of {task.name} was not recorded.'
                )
            if parts:
                reasons.append(
                    f'The code of {joined(parts)} has changed since rows of '
                    f'{task.name} were recorded.'
                )
    suggestions = _ranked(comparable, host)
    enough = any(s.verdict == BETTER for s in suggestions)
    if len(suggestions) > 1:
        reasons.append(
            'Methods are compared with the baseline, not with each other: '
            'within a verdict their order is that of the least gain in the '
            'interval, and no test of it.'
        )
    plan = ''
    if not enough:
        reasons.append(
            'Not enough evidence: no method is shown to be better than the '
            'baseline on comparable data.'
        )
        plan = _plan(counts, host, head, suggestions, config)
    return Advice(enough, tuple(suggestions), tuple(reasons), plan)


def _nothing(reason: str) -> Advice:
    return Advice(False, (), (reason,))


def _shape(counts: ClassCounts) -> str:
    return (
        f'{plural(counts.num_classes, "class", "classes")}, imbalance factor '
        f'{counts.imbalance_factor:,.4g}, Gini {counts.gini:.2f}'
    )


def _points(found: Estimate) -> str:
    if math.isnan(found.mean):
        return 'not known'
    text = number(found.mean, sign=True)
    if math.isnan(found.low):
        return f'{text} (no interval)'
    return f'{text} ({span(found.low, found.high)})'


def _apart(task: Task, counts: ClassCounts, host: str, head: HeadFacts) -> str:
    """Why a task says nothing of this head and data; empty if it does."""
    if task.baseline not in task.methods:
        return 'its baseline has not finished'
    prefix = task.metric().partition('/')[0]
    # The plain metric of mmseg has no prefix.
    there = HOST_OF.get(prefix, 'mmseg' if prefix == 'mIoU' else '')
    kind = KIND_OF.get(task.baseline) or _kind_of(task.methods)
    if (there, kind) != (host, head.kind):
        return (
            f'it is of {there or "an unknown host"} and '
            f'{kind or "an unknown kind of head"}'
        )
    if re.search('DETR|DINO|Former', head.type):
        return f'nothing says that its head has queries as {head.type} has'
    values = task.counts().to_numpy(dtype=np.float64)
    if not (values > 0).any():
        return 'its rows have no counts of classes'
    other = ClassCounts(values)
    far = [
        name
        for name, mine, theirs, most in (
            ('number of classes', counts.num_classes, len(values), CLASSES),
            (
                'imbalance',
                counts.imbalance_factor,
                other.imbalance_factor,
                IMBALANCE,
            ),
        )
        if not 1 / most <= mine / theirs <= most
    ]
    if abs(counts.gini - other.gini) > GINI:
        far.append('Gini coefficient')
    return f'{_shape(other)}: another {joined(far)}' if far else ''


def _kind_of(methods: Iterable[str]) -> str:
    """The kind of head that takes these losses; empty if several do.

    A softmax head takes those for sigmoids too, but no other head takes
    those for a softmax.
    """
    kinds = {
        'quality'
        if loss is EqualizedQualityFocalLoss
        else 'focal'
        if loss is EqualizedFocalLoss
        else 'sigmoid'
        if issubclass(loss, SigmoidLoss)
        else 'softmax'
        for method in methods
        # Without the values that a grid gives it.
        if (loss := _loss_of(method.partition('[')[0])) is not None
    }
    for kind in ('softmax', 'quality'):
        if kind in kinds:
            return kind
    return kinds.pop() if len(kinds) == 1 else ''


def _ranked(tasks: list[Task], host: str) -> list[Suggestion]:
    claims: dict[str, list[tuple[Task, Claim, Claim | None]]] = {}
    for task in tasks:
        values = {
            m: {r: task.values(m, r) for r in ('overall', 'tail')}
            for m in task.methods
        }
        found = within(values, task.baseline)
        for method in task.methods:
            overall = found.get((method, 'overall'))
            if overall is not None and overall.difference.runs:
                claims.setdefault(method, []).append(
                    (task, overall, found.get((method, 'tail')))
                )
    suggestions = [_suggestion(m, c, host) for m, c in claims.items()]
    order = {BETTER: 0, UNDECIDED: 1, WORSE: 2}

    def key(one: Suggestion) -> tuple[float, ...]:
        # The lower end: what the method gains at the least.
        low = one.gain.low if one.gain.low == one.gain.low else -math.inf
        return order[one.verdict], -low, -one.gain.mean

    return sorted(suggestions, key=key)


def _suggestion(
    method: str, claims: list[tuple[Task, Claim, Claim | None]], host: str
) -> Suggestion:
    verdicts = {claim.verdict for _, claim, _ in claims}
    ratios = [
        ratio
        for task, _, _ in claims
        if (ratio := ratio_on_one_machine(task, method, 'seconds')) == ratio
    ]
    return Suggestion(
        method=method,
        verdict=WORSE
        if WORSE in verdicts
        else BETTER
        if BETTER in verdicts
        else UNDECIDED,
        gain=_over([claim for _, claim, _ in claims]),
        tail=_over([tail for _, _, tail in claims if tail is not None]),
        spread='the runs of one data set: another one may differ by more'
        if len(claims) == 1
        else f'{len(claims)} tasks',
        rows=tuple(
            f'{task.name}: {method} ({_seeds(task, method)}) and '
            f'{task.baseline} ({_seeds(task, task.baseline)}), '
            + (claim.why or claim.verdict)
            for task, claim, _ in claims
        ),
        cost=sum(ratios) / len(ratios) if ratios else math.nan,
        line=config_line(method, host),
        tested=all(test_only(task, method) for task, _, _ in claims),
    )


def _over(claims: list[Claim]) -> Estimate:
    """Over the runs of one task, or over several tasks."""
    known = [c.difference for c in claims if c.difference.runs]
    if len(known) == 1:
        one = known[0]
        return Estimate(one.mean, one.low, one.high, one.runs)
    return interval([d.mean for d in known])


def _seeds(task: Task, method: str) -> str:
    seeds = task.finals.loc[[method], 'overall'].dropna().index
    numbers = sorted(int(seed) for _, seed in seeds)
    word = 'seed' if len(numbers) == 1 else 'seeds'
    return f'{word} {joined(map(str, numbers))}'


def config_line(method: str, host: str) -> str:
    """The line that gives a head the loss of a method.

    Args:
        method: Name of a loss, ``'post_hoc'``, or another name.
        host: Of the head.

    Returns:
        The line, empty if the name is not that of a loss as it is.

    Example:
        >>> config_line('balanced_softmax', 'mmdet')
        "loss_cls=dict(type='lt_losses_mm.BalancedSoftmaxLoss'),"
    """
    if method == 'post_hoc':
        return HOOK
    loss = _loss_of(method)
    if loss is None:
        return ''
    sigmoid = ', use_sigmoid=True' if issubclass(loss, SigmoidLoss) else ''
    return (
        f"{KEY_OF[host]}=dict(type='lt_losses_mm.{loss.__name__}'{sigmoid}),"
    )


def _loss_of(method: str) -> type[LongTailLoss] | None:
    """The loss that has the name of a method."""
    plain = method.replace('_', '')
    found = [
        loss
        for loss in LOSSES
        # Seesaw's class says what kind of loss it is; its method does not.
        if loss.__name__.lower() in (f'{plain}loss', f'{plain}softmaxloss')
    ]
    return min(found, key=lambda loss: len(loss.__name__), default=None)


def _plan(
    counts: ClassCounts,
    host: str,
    head: HeadFacts,
    suggestions: list[Suggestion],
    config: str,
) -> str:
    """Five seeds of the config's own loss and of the likeliest other."""
    base = METHOD_OF.get((head.loss, head.kind), 'own_loss')
    possible = [
        s
        for s in suggestions
        if s.verdict != WORSE
        and s.line
        # The rows of this plan have to tell what kind of head it is.
        and (base in KIND_OF or _kind_of([s.method]) == head.kind)
    ]
    best = max(possible, key=lambda s: s.gain.mean, default=None)
    method = best.method if best and best.gain.mean > 0 else FIRST[head.kind]
    metrics = zip(('overall', 'head', 'middle', 'tail'), METRICS[host].split())
    lines = [
        'name: own_data',
        f'seeds: {list(range(RUNS))}',
        f'methods: [{base}, {method}]',
    ]
    if base == 'own_loss':
        lines += ['define:', '  own_loss: {}  # the loss that the config has']
    elif method == 'post_hoc':
        lines += [
            'define:',
            '  post_hoc:',
            f'    needs: {{load_from: {base}}}',
            '    test: true',
            '    hooks: [{type: lt_losses_mm.PostHocLogitAdjustmentHook}]',
        ]
    lines += [
        'tasks:',
        '  own_data:',
        f'    config: {json.dumps(config, ensure_ascii=False)}',
        '    # those of this package, in percent, with per_class=True for the',
        '    # counts of classes; the config has to name them',
        '    metrics: {'
        + ', '.join(f'{role}: {name}' for role, name in metrics)
        + '}',
    ]
    return '\n'.join(lines) + '\n'
