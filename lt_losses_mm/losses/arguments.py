# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Constructor arguments: checks, and one description for each."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import re
import reprlib
from typing import Any, Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from ..messages import fault, listed

REDUCTIONS = ('none', 'mean', 'sum')

# Keys that no loss has, and what it means that they are here.
_MISPLACED = {
    '_delete_': (
        'MMEngine obeys _delete_ where a dict meets an inherited one, and '
        'here it meets none, as in a list of heads: remove it'
    ),
    'use_mask': (
        "use_mask is a key of a head's loss_mask, which tells no classes "
        "apart: leave loss_mask as the host's own"
    ),
}

# What papers, their published code and losses of hosts call our parameters:
# see docs/decisions/0008-names-of-parameters.md. By class, for its subclasses.
SYNONYMS = {
    'LongTailLoss': dict.fromkeys(
        (
            'cls_num_list',
            'freq_path',
            'img_num_per_cls',
            'sample_per_class',
            'samples_per_class',
            'samples_per_cls',
        ),
        'class_counts',
    ),
    'EqualizationLoss': dict(lambda_='threshold'),
    'EqualizationSoftmaxLoss': dict(
        gamma='drop_probability', lambda_='threshold'
    ),
    'EqualizedFocalLoss': dict(
        focal_alpha='alpha', focal_gamma='gamma', gamma_b='gamma'
    ),
    'EqualizedQualityFocalLoss': dict(gamma='beta', gamma_b='beta'),
    'SeesawSoftmaxLoss': dict(eps='score_floor'),
    'SigmoidEqualizationLoss': dict(alpha='boost', gamma='steepness'),
    'SoftmaxEqualizationLoss': dict(eps='floor'),
    'VSLoss': dict(gamma='scale_power'),
}

# What the arguments mean that all losses share.
SHARED = """
    num_classes (int, optional): Number C of foreground classes. It may be
        left out: the class counts say it.
    class_counts (str | sequence): Training samples per class: a list, a
        file, the name of a benchmark (``'lvis_v1'``, ``'imagenet_lt'``,
        ...), or ``'auto'``, which counts the training data set before
        training starts. Stored in the checkpoint. By default ``'auto'``
        for losses with a prior; others need no counts, and use them, if
        given, in plots only.
    count_unit (str, optional): ``'image'``, ``'instance'`` or
        ``'pixel'``; by default what the literature uses for the task, see
        ``docs/class_counts.md``.
    background (str | float, optional): What becomes of background rows of
        a detection head: one of the loss's ``background_policies``, the
        first by default. For those of priors see
        :mod:`lt_losses_mm.priors.shift`.
    loss_weight (float): Factor on the reduced loss.
    reduction (str): ``'mean'``, ``'sum'`` or ``'none'``. The mean is
        over rows (samples, RoIs, anchors, pixels), or the sum divided by
        ``avg_factor`` where the head passes one.
    ignore_index (int, optional): Label of rows without a loss. By default
        255 for maps (N, C, d1, ...) and -100 for (N, C) logits; a head that
        passes its own value is obeyed.
    avg_non_ignore (bool): Whether the mean leaves out ignored rows, as in
        PyTorch. The default counts them, as mmseg's own cross-entropy
        does, so that exchanging the loss changes nothing else.
    class_weight (sequence, optional): Softmax losses only: factor on the
        rows of each class, one a logit column (with background last where
        the head has it). Mask2Former and DETR heads write this key.
    loss_name (str, optional): Name of the term in mmseg's logs, beginning
        with ``loss_``. By default from the class name.
    use_sigmoid (bool, optional): Dense and DETR-type heads of mmdet read
        this key of the loss config to choose their number of channels.
        If given, it has to agree with the loss.
    overwrite_logits (bool): Whether the gradient is written over the
        logits in the backward pass, which saves its memory. The logits
        must not be needed by any other backward computation (of another
        loss, or of an activation that saved them): that is an error of
        autograd then. Leaf tensors are never written over.
    engine (str, optional): ``'native'``, ``'eager'`` or ``'reference'``,
        in place of the process's own; see
        :func:`lt_losses_mm.kernels.engine`.
"""


def passed_on(base: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a constructor's arguments that its base class takes.

    Args:
        base (type): The base class.
        values (Mapping): ``locals()`` of the constructor.
    """
    names = inspect.signature(base).parameters
    return {name: values[name] for name in names if name in values}


def explain_arguments(cls: type) -> None:
    """Say what a loss's arguments are: in its help, and of unknown ones."""
    describe_arguments(cls)
    refuse_unknown(cls)


def refuse_unknown(cls: type, kind: str = 'loss') -> None:
    """Make a constructor name all keys that it does not know, and why.

    Its signature stays as it is.

    Args:
        cls (type): Whose constructor it is.
        kind (str): What it makes: ``'loss'`` or ``'metric'``.
    """
    if '__init__' not in cls.__dict__:
        return
    init: Callable[..., None] = cls.__dict__['__init__']
    known = inspect.signature(init).parameters
    if any(p.kind is p.VAR_KEYWORD for p in known.values()):
        return

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        unknown = [key for key in kwargs if key not in known]
        if unknown:
            left = {key: kwargs[key] for key in unknown}
            raise TypeError(_unknown(type(self), kind, left, known))
        init(self, *args, **kwargs)

    setattr(cls, '__init__', checked)  # noqa: B010


def _unknown(
    cls: type,
    kind: str,
    unknown: dict[str, Any],
    known: Mapping[str, inspect.Parameter],
) -> str:
    """What to say of keys that a loss or metric does not know."""
    owner, synonyms = cls.__name__, {}
    for base in reversed(cls.__mro__):
        synonyms.update(SYNONYMS.get(base.__name__, {}))
    shared = _entries('Args:' + SHARED) if kind == 'loss' else {}
    rest = f' or those of all losses (see help({owner}))' if shared else ''
    own = [
        name if p.default is p.empty else f'{name}={p.default!r}'
        for name, p in known.items()
        if name not in shared and name != 'self'
    ]
    fixes = [text for key, text in _MISPLACED.items() if key in unknown]
    meant = [
        f'{synonyms[key]}={reprlib.repr(value)} for {key}'
        for key, value in unknown.items()
        if key in synonyms
    ]
    if meant:
        fixes.append(
            f'write {", ".join(meant)}, if that is meant as in the paper or '
            "in a host's loss of this method"
        )
    for key in list(unknown)[:10]:
        if key not in _MISPLACED and key not in synonyms:
            near = difflib.get_close_matches(key, known, 1)
            fixes += [f'{name}, if {key} is a misspelling' for name in near]
    if not set(unknown) <= set(_MISPLACED):
        fixes.append(
            f'add _delete_=True to the dict of the {kind}, which drops what '
            f'the replaced {kind} has left'
            + (' (repeat there what shall stay)' if meant else '')
        )
    return (
        f'{owner}: unknown keys {listed(unknown)}, expected its own '
        f'({", ".join(own)}){rest}. '
        f'Fix: {"; ".join(fixes)}.'
    )


def describe_arguments(cls: type) -> None:
    """Add what the base classes say of arguments to a class's docstring.

    ``help(cls)`` then has every argument with its meaning, and each meaning
    is written once.
    """
    doc = inspect.cleandoc(cls.__doc__ or '')
    told = _entries(doc)
    further = _entries('Args:' + SHARED)
    for base in cls.__mro__[1:]:
        further.update(_entries(inspect.cleandoc(base.__doc__ or '')))
    wanted = list(inspect.signature(cls).parameters)
    missing = ''.join(
        further[name]
        for name in wanted
        if name in further and name not in told
    )
    if not missing:
        return
    head, args, tail = doc.partition('Args:\n')
    if not args:
        head, args = head.rstrip() + '\n\n', 'Args:\n'
    own = ''.join(told.values())
    cls.__doc__ = head + args + own + missing + tail[len(own) :]


def _entries(doc: str) -> dict[str, str]:
    """The entries of a docstring's section of arguments, by name."""
    section = re.search(r'^Args:\n((?:    .*\n?|\n(?=    ))*)', doc, re.M)
    if section is None:
        return {}
    parts = re.split(r'^(?=    \w)', section[1], flags=re.M)[1:]
    return {
        re.findall(r'\w+', part)[0]: part.rstrip() + '\n' for part in parts
    }


def shared(
    loss: Any,
    num_classes: Any,
    reduction: Any,
    class_weight: Any,
    use_sigmoid: Any,
) -> None:
    """Arguments that every loss has to check against what it is."""
    owner = type(loss).__name__
    if num_classes is not None and (
        not isinstance(num_classes, int) or num_classes < 1
    ):
        raise fault(
            'num_classes', num_classes, 'an int >= 1 or None', owner=owner
        )
    if reduction not in REDUCTIONS:
        raise fault(
            'reduction', reduction, f'one of {REDUCTIONS}', owner=owner
        )
    if use_sigmoid not in (None, loss.use_sigmoid):
        other = 'Sigmoid' if use_sigmoid else 'Softmax'
        fix = (
            f'write use_sigmoid={loss.use_sigmoid}, or add _delete_=True, '
            'which drops what the replaced loss has left; or take a loss of '
            f'the other kind, such as Balanced{other}Loss'
        )
        raise fault(
            'use_sigmoid', use_sigmoid, f'{loss.use_sigmoid}', fix, owner
        )
    if class_weight is not None and loss.use_sigmoid:
        fix = 'sigmoid losses take no class_weight: remove it'
        raise fault('class_weight', class_weight, 'None', fix, owner)


def same_classes(loss: Any, known: int, said: int, said_by: str) -> None:
    """A loss and whoever tells it its number of classes agree.

    Args:
        loss (LongTailLoss): Asked.
        known (int): What it has.
        said (int): What it is told.
        said_by (str): Who says so.

    Raises:
        ValueError: They do not.
    """
    owner = type(loss).__name__
    if known != said and loss.class_counts.numel():
        raise fault(
            'class_counts',
            f'{known} counts',
            f'{said}, as many classes as {said_by} says',
            "give one count a class, or class_counts='auto'",
            owner,
        )
    if known != said:
        raise fault(
            'num_classes',
            known,
            f'{said}, as {said_by} says',
            'make both agree, or leave num_classes out',
            owner,
        )


def number(
    owner: str,
    key: str,
    value: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    above: float = -math.inf,
) -> float:
    """A finite number in the range, as a float.

    Args:
        owner (str): Name of the class.
        key (str): Of the config.
        value: What the config says.
        low (float): Least value.
        high (float): Largest value.
        above (float): What it has to be larger than.

    Raises:
        ValueError: It is none.
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or not (low <= value <= high and value > above)
    ):
        if above > -math.inf and high < math.inf:
            expected = f'a number in ({above:g}, {high:g}]'
        elif high < math.inf:
            expected = f'a number in [{low:g}, {high:g}]'
        elif above > -math.inf:
            expected = f'a number > {above:g}'
        else:
            expected = 'a finite number' + (
                f' >= {low:g}' if low > -1e9 else ''
            )
        raise fault(key, value, expected, owner=owner)
    return float(value)


def class_weight(owner: str, values: Any) -> Tensor | None:
    """Weights of the logit columns, fp32, or None."""
    if values is None:
        return None
    if isinstance(values, (list, tuple, np.ndarray, Tensor)):
        weight = torch.as_tensor(values, dtype=torch.float32)
        if weight.dim() == 1 and (weight >= 0).all():
            return weight
    raise fault(
        'class_weight',
        values,
        'a list of numbers >= 0, one a logit column',
        'read a file of weights in the config',
        owner,
    )


def loss_name(owner: str, name: str | None) -> str:
    """The name of the term in mmseg's logs; from the class by default."""
    if name is None:
        words = re.findall('[A-Z][a-z0-9]*', owner)
        return '_'.join(['loss'] + [word.lower() for word in words[:-1]])
    if not isinstance(name, str) or not name.startswith('loss_'):
        raise fault(
            'loss_name',
            name,
            "a name beginning with 'loss_'",
            'mmseg leaves any other term out of the training: rename it',
            owner,
        )
    return name
