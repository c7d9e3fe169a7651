# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""How often one epoch draws each sample, through wrappers and samplers.

A wrapper or sampler is known by the class that defines how it draws
(``__getitem__``, ``__iter__``) and by that class's package. A subclass that
overrides it is therefore unknown, and what is unknown is an error: a prior
that does not fit what the model sees would be wrong without a sign.
"""

from __future__ import annotations

from typing import Any, Iterator, Tuple

import numpy as np

from ..hosts import HOSTS
from ..messages import fault

Kind = Tuple[str, str]  # package and name of a class

BASE_DATASET = ('mmengine', 'BaseDataset')
_UNIFORM_SAMPLERS = {
    ('mmengine', 'DefaultSampler'),
    ('mmengine', 'InfiniteSampler'),
    ('torch', 'DistributedSampler'),
    ('torch', 'RandomSampler'),
    ('torch', 'SequentialSampler'),
    *((host.name, name) for host in HOSTS for name in host.even_samplers),
}
_CLASS_AWARE = {
    (host.name, name) for host in HOSTS for name in host.class_samplers
}
_CONCAT = {('mmengine', 'ConcatDataset'), ('torch', 'ConcatDataset')}
_REPEAT = ('mmengine', 'RepeatDataset')
_BALANCED = ('mmengine', 'ClassBalancedDataset')
_SUBSET = ('torch', 'Subset')
_MIX = {(host.name, name) for host in HOSTS for name in host.mixing_wrappers}
_K_FOLD = {(host.name, name) for host in HOSTS for name in host.fold_wrappers}
# What Runner builds of ``num_batch_per_epoch``: the first samples alone.
_SLICED = ('mmengine', '_SlicedDataset')
_WRAPPERS = {*_CONCAT, *_MIX, _REPEAT, _BALANCED, _SUBSET, *_K_FOLD, _SLICED}


def expected_draws(
    dataset: Any, sampler: Any = None
) -> list[tuple[Any, np.ndarray]]:
    """Expected number of draws of every sample in one epoch.

    Args:
        dataset: A built data set of any host, in any nesting of mmengine's
            ``ConcatDataset``, ``RepeatDataset`` and ``ClassBalancedDataset``,
            the hosts' ``MultiImageMixDataset`` and ``KFoldDataset``,
            torch's ``ConcatDataset`` and ``Subset``, and what the ``Runner``
            makes of them for ``num_batch_per_epoch``.
        sampler: The built sampler that draws from ``dataset``; None draws
            every sample once. Of mmdet's ``ClassAwareSampler`` this is the
            exact expectation: sample i holding the classes K_i is drawn
            ``T / C * sum over c in K_i of 1 / n_c`` times, where T is the
            length of the epoch, n_c the number of samples of class c, and C
            the number of classes with samples.

    Returns:
        The data sets inside all wrappers, each with a float64 array of shape
        (len(data set),). A data set that is wrapped twice is listed twice.

    Raises:
        ValueError: If a wrapper or the sampler is unknown.
    """
    _init(dataset)
    return list(_unwrap(dataset, _sampler_draws(dataset, sampler)))


def rebalanced_by(dataset: Any, sampler: Any = None) -> str | None:
    """Name what changes the natural class distribution, if anything does.

    Args:
        dataset: As in :func:`expected_draws`.
        sampler: As in :func:`expected_draws`.

    Returns:
        For example ``'ClassBalancedDataset(oversample_thr=0.001)'`` or
        ``'ClassAwareSampler'``; None if the data are seen in their natural
        distribution. A threshold so low that no image is repeated changes
        nothing. A wrapper or sampler that we do not know is named, too, as
        it may re-balance.
    """
    if sampler is not None:
        kind = kind_of(sampler, '__iter__')
        if kind in _CLASS_AWARE:
            return type(sampler).__name__
        if kind not in _UNIFORM_SAMPLERS:
            return f'{type(sampler).__name__} (unknown, it may re-balance)'
    _init(dataset)
    return _rebalancing_wrapper(dataset)


def _rebalancing_wrapper(dataset: Any) -> str | None:
    kind = kind_of(dataset, '__getitem__')
    if kind == _BALANCED:
        if len(set(np.bincount(dataset.repeat_indices))) > 1:
            return _describe(dataset)
    elif kind not in _WRAPPERS and _inside(dataset):
        return f'{type(dataset).__name__} (unknown, it may re-balance)'
    return next(
        filter(None, map(_rebalancing_wrapper, _inside(dataset))), None
    )


def describe_wrappers(dataset: Any) -> list[str]:
    """Names of the wrappers around the first innermost data set."""
    names = []
    while _inside(dataset):
        names.append(_describe(dataset))
        dataset = _inside(dataset)[0]
    return names


def leaves(dataset: Any) -> Iterator[Any]:
    """The data sets inside all wrappers, known or not, ready to be read."""
    _init(dataset)
    inside = _inside(dataset)
    if not inside:
        yield dataset
    for part in inside:
        yield from leaves(part)


def _describe(wrapper: Any) -> str:
    if kind_of(wrapper, '__getitem__') == _SLICED:
        return f'num_batch_per_epoch(samples={len(wrapper)})'
    name = type(wrapper).__name__
    for option in ('oversample_thr', 'times'):
        if hasattr(wrapper, option):
            return f'{name}({option}={getattr(wrapper, option):g})'
    return name


def datasets_within(dataset: Any, key: str) -> Iterator[tuple[str, Any]]:
    """A data set and those that it wraps, each with its key in a config."""
    yield key, dataset
    for i, inner in enumerate(_inside(dataset)):
        if inner is getattr(dataset, 'dataset', None):
            part = f'{key}.dataset'
        elif kind_of(dataset, '__getitem__') == _SLICED:
            part = key
        else:
            part = f'{key}.datasets.{i}'
        yield from datasets_within(inner, part)


def _init(dataset: Any) -> None:
    if hasattr(dataset, 'full_init'):
        dataset.full_init()


def _inside(dataset: Any) -> list[Any]:
    """The data sets that a wrapper holds; none if it is no wrapper."""
    if kind_of(dataset, '__getitem__') == _SLICED:
        # It passes all other attributes on.
        return [dataset._dataset]
    # A data set of a host may have an attribute of that name of its own.
    if BASE_DATASET in _kinds(dataset):
        return []
    if isinstance(getattr(dataset, 'datasets', None), (list, tuple)):
        return list(dataset.datasets)
    return [dataset.dataset] if hasattr(dataset, 'dataset') else []


def _kinds(instance: Any) -> Iterator[Kind]:
    """The classes of an object, the most derived one first."""
    for cls in type(instance).__mro__:
        yield cls.__module__.split('.')[0], cls.__name__


def kind_of(instance: Any, method: str) -> Kind | None:
    """The class that defines ``method``, if any does."""
    for kind, cls in zip(_kinds(instance), type(instance).__mro__):
        if method in vars(cls):
            return kind
    return None


def _unwrap(
    dataset: Any, draws: np.ndarray
) -> Iterator[tuple[Any, np.ndarray]]:
    kind = kind_of(dataset, '__getitem__')
    if not _inside(dataset):
        yield dataset, draws
    elif kind == _SLICED:
        (inner,) = _inside(dataset)
        size = len(inner)
        if kind_of(inner, '__getitem__') == _REPEAT:
            # The one data set that has samples past its end.
            size = max(size, draws.size)
        first = draws[:size]
        yield from _unwrap(inner, np.pad(first, (0, size - first.size)))
    elif kind in _CONCAT:
        parts = np.split(draws, dataset.cumulative_sizes[:-1])
        for part, part_draws in zip(dataset.datasets, parts):
            _init(part)
            yield from _unwrap(part, part_draws)
    elif kind in _MIX and draws.size and (draws != draws[0]).any():
        # Mosaic and the like add partners drawn evenly from the whole data
        # set: that keeps an even distribution and distorts any other.
        raise _unknown(
            'data set wrapper',
            dataset,
            'with a sampler or outer wrapper that draws unevenly',
        )
    elif kind in _MIX or kind in _K_FOLD:
        yield from _unwrap(dataset.dataset, draws)
    elif kind in (_REPEAT, _BALANCED, _SUBSET):
        size = len(dataset.dataset)
        index: Any
        if kind == _REPEAT:
            index = np.arange(draws.size) % size
        elif kind == _BALANCED:
            index = np.asarray(dataset.repeat_indices, dtype=np.int64)
        else:
            index = np.asarray(dataset.indices, dtype=np.int64) % size
            _init(dataset.dataset)
        yield from _unwrap(
            dataset.dataset, np.bincount(index, draws, minlength=size)
        )
    else:
        raise _unknown('data set wrapper', dataset)


def _sampler_draws(dataset: Any, sampler: Any) -> np.ndarray:
    even = np.ones(len(dataset))
    if sampler is None:
        return even
    kind = kind_of(sampler, '__iter__')
    if kind == ('mmpretrain', 'RepeatAugSampler') and not sampler.shuffle:
        raise _unknown(
            'sampler',
            sampler,
            'with shuffle=False, which never draws a part of them',
        )
    if kind in _UNIFORM_SAMPLERS:
        return even
    if kind not in _CLASS_AWARE:
        raise _unknown('sampler', sampler)
    draws = np.zeros(len(dataset))
    for label in sampler.valid_cat_inds:
        samples = sampler.cat_dict[label]
        np.add.at(draws, samples, 1 / len(samples))
    return draws * sampler.total_size / sampler.num_classes


def _unknown(what: str, instance: Any, how: str = '') -> ValueError:
    cls = type(instance)
    name = ' '.join(filter(None, (cls.__name__, how)))
    return fault(
        'class_counts',
        'auto',
        f'a {what} whose expected draws are known, got {name} '
        f'({cls.__module__})',
        'give class_counts as the list or file of the counts that the model '
        'sees with it',
    )
