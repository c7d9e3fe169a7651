# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Segmentation: which pixels are not trained, said in one place for all."""

from __future__ import annotations

import inspect
from typing import Any, Iterator, NamedTuple

from mmengine.model import is_model_wrapper
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from torch import nn

from ..hosts import MMSEG, heads
from ..losses import LongTailLoss
from ..messages import describe, fault, logger
from ..priors.masks import transforms_within
from ..priors.sampling import datasets_within

_USUAL = 255  # what mmseg ignores where nothing is said


class Place(NamedTuple):
    """A key of the config that says, or takes, the label to ignore."""

    key: str
    value: Any
    # Whether the default, 255, means nothing there.
    optional: bool = False


def _unwrapped(model: Any) -> Any:
    return model.module if is_model_wrapper(model) else model


def _heads_with_ours(
    model: nn.Module,
) -> Iterator[tuple[str, nn.Module, list[LongTailLoss]]]:
    """Heads of :func:`~lt_losses_mm.hosts.heads`, and their losses of ours."""
    for name, head, host in heads(_unwrapped(model)):
        found = getattr(head, host.loss).modules()
        yield name, head, [x for x in found if isinstance(x, LongTailLoss)]


def ignored_label(head: Any, loss: Any = None) -> int:
    """The label of the pixels that a head leaves out.

    The head's own value, which it passes to its losses; else the loss's; else
    255.
    """
    for known in (head, loss):
        value = getattr(known, 'ignore_index', None)
        if value is not None:
            return value
    return _USUAL


def label_of_config(cfg: Any) -> int:
    """:func:`evaluated_label` of a config whose model is not built."""
    head = cfg.get('model', {}).get('decode_head', {})
    head = head[-1] if isinstance(head, (list, tuple)) else head
    head = head.get('kernel_generate_head', head)
    losses = head.get(MMSEG.loss, {})
    loss = losses[0] if isinstance(losses, (list, tuple)) else losses
    return ignored_label(head, loss)


def counted_as(model: nn.Module, loss: LongTailLoss) -> dict[str, Any]:
    """The unit and the ignored label to count the loss's labels with."""
    for _, head, ours in _heads_with_ours(model):
        if any(loss is one for one in ours):
            usual = None if _of_pixels(head) else 'image'
            unit = loss.count_unit or usual
            return dict(unit=unit, ignore_index=ignored_label(head, loss))
    return dict(unit=loss.count_unit, ignore_index=ignored_label(None, loss))


def evaluated_label(model: nn.Module) -> int:
    """The label of the pixels that the model's result leaves out."""
    main = [
        ignored_label(head, *ours[:1])
        for name, head, ours in _heads_with_ours(model)
        if name.startswith('decode_head')
    ]
    return main[-1] if main else _USUAL


def check_segmentation(runner: Runner) -> None:
    """Compare, before training, all that has to agree on masks.

    Losses take the head's label to ignore as their own, for heads that call
    them without it (DDRHead).

    Raises:
        ValueError: A head has one logit for two classes, or classifies
            segments by counts of pixels, or padding has a label that is no
            class and is not ignored.
    """
    found = list(_segmenting(runner))
    if not any(ours for _, _, ours in found):
        return
    for name, head, ours in found:
        for loss in ours:
            _check_rows(f'model.{name}', head, loss)
    places, padding = list(_places(runner)), list(_padding(runner))
    meant = next((p.value for p in places if p.value != _USUAL), _USUAL)
    for _, head, ours in found:
        for loss in ours:
            ignored = ignored_label(head, loss)
            if _of_pixels(head):
                loss.ignore_index = ignored
            for key, value, _ in padding:
                if value != ignored and not 0 <= value < head.num_classes:
                    raise ValueError(
                        describe(
                            key,
                            value,
                            f'ignore_index={ignored} of {type(head).__name__},'
                            f' or one of its {head.num_classes} classes, '
                            'because padded pixels get it as their label',
                        )
                        + lines_to_paste(runner, meant)
                    )
    wrong = [
        f'{key}={value}'
        for key, value, optional in places + padding
        if value != meant and not (optional and value == _USUAL)
    ]
    if wrong:
        more = f' and {len(wrong) - 10} more' if len(wrong) > 10 else ''
        logger.warning(
            f'ignore_index={meant} is not said everywhere: '
            f'{", ".join(wrong[:10])}{more}. '
            'Losses and class counts go by their own heads'
            + lines_to_paste(runner, meant)
        )


def check_reduced(cfg: Any) -> None:
    """Warn where labels are reduced by one in training alone, or not there.

    It may be right: masks of two data sets may be numbered in two ways.

    Args:
        cfg: Of the run; data sets that are not built count as well.
    """
    scope = cfg.get('default_scope')
    with DATASETS.switch_scope_and_registry(scope) as registry:
        train, val, test = (
            dict(_reduced(cfg.get(key), key, registry))
            for key in (
                'train_dataloader',
                'val_dataloader',
                'test_dataloader',
            )
        )
    odd = {k: v for k, v in {**val, **test}.items() if v not in train.values()}
    if train and odd:
        said = ', '.join(f'{k}={v}' for k, v in {**train, **odd}.items())
        fix = ', '.join(f'{k}={not v}' for k, v in odd.items())
        logger.warning(
            f'reduce_zero_label is not the same everywhere: {said}. If their '
            'masks are numbered alike, labels differ by one, and what is '
            f'evaluated are other classes. Fix: {fix}.'
        )


def _reduced(
    dataset: Any, key: str, registry: Any
) -> Iterator[tuple[str, bool]]:
    """What a data set's config says of it, or its class by default."""
    if not isinstance(dataset, dict):
        return
    kind = dataset.get('type')
    kind = registry.get(kind) if isinstance(kind, str) else kind
    # A type may also be a function that builds the data set.
    for cls in inspect.getmro(kind) if inspect.isclass(kind) else ():
        init = vars(cls).get('__init__')
        known = inspect.signature(init).parameters if init else {}
        if 'reduce_zero_label' in known:
            usual = known['reduce_zero_label'].default
            name = 'reduce_zero_label'
            yield f'{key}.{name}', bool(dataset.get(name, usual))
            return
    yield from _reduced(dataset.get('dataset'), f'{key}.dataset', registry)
    parts = dataset.get('datasets')
    for i, part in enumerate(parts if isinstance(parts, list) else ()):
        yield from _reduced(part, f'{key}.datasets.{i}', registry)


def lines_to_paste(runner: Runner, label: int) -> str:
    """What the config has to say so that everything ignores a label."""
    lines = ' \\\n  '.join(
        f'{place.key}={label}'
        for place in [*_places(runner), *_padding(runner)]
        if place.value != label
    )
    return (
        f'. If pixels of label {label} have no class, set these keys in the '
        f'config, or paste:\n  --cfg-options \\\n  {lines}'
    )


def _of_pixels(head: Any) -> bool:
    """Whether a row of the head's labels is a pixel.

    Other heads that learn from masks (Mask2Former) classify segments, and
    each class of an image is one.
    """
    return hasattr(head, MMSEG.loss)


def _segmenting(runner: Runner) -> list[Any]:
    """Heads that learn from masks, the main one first."""
    found = [
        one
        for one in _heads_with_ours(runner.model)
        if hasattr(one[1], 'ignore_index') and hasattr(one[1], 'num_classes')
    ]
    return sorted(found, key=lambda one: 'auxiliary' in one[0])


def _check_rows(key: str, head: Any, loss: LongTailLoss) -> None:
    kind, classes = type(head).__name__, head.num_classes
    if getattr(head, 'out_channels', classes) == 1 < classes:
        reason = (
            'weighs one class against the other'
            if loss.use_sigmoid
            else 'is a softmax, which is 1 for a single logit'
        )
        raise fault(
            f'{key}.out_channels',
            1,
            f'{classes}, a logit for each class, because '
            f'{type(loss).__name__} {reason}',
            f'out_channels={classes}, and no threshold',
        )
    counts = loss.known_counts
    unit = loss.count_unit if counts is None else counts.unit
    if unit == 'pixel' and not _of_pixels(head):
        raise fault(
            'count_unit',
            'pixel',
            f"'image', because {kind} classifies segments, of which an image "
            'has one for each of its classes, and no pixels',
            "class_counts='auto' counts them so; leave count_unit out",
            key,
        )


def _places(runner: Runner) -> Iterator[Place]:
    """Where it is said which label is ignored, the main head first."""
    for name, head, ours in _segmenting(runner):
        key, ignored = f'model.{name}', ignored_label(head, *ours[:1])
        yield Place(f'{key}.ignore_index', ignored)
        for part, loss in head.named_modules():
            said = loss.ignore_index if loss in ours else None
            if said not in (None, ignored):
                yield Place(f'{key}.{part}.ignore_index', said)
    for split in ('val', 'test'):
        metrics = runner.cfg.get(f'{split}_evaluator')
        several = isinstance(metrics, (list, tuple))
        for i, metric in enumerate(metrics if several else [metrics]):
            if isinstance(metric, dict):
                kind: Any = metric.get('type')
                kind = getattr(kind, '__name__', str(kind))
                usual = _USUAL if kind.endswith('IoUMetric') else None
                value = metric.get('ignore_index', usual)
                if value is not None:
                    part = f'.{i}' if several else ''
                    key = f'{split}_evaluator{part}.ignore_index'
                    yield Place(key, value)
    for key, part in _train_parts(runner):
        if getattr(part, 'ignore_index', None) is not None:
            yield Place(f'{key}.ignore_index', part.ignore_index, True)


def _padding(runner: Runner) -> Iterator[Place]:
    """Labels that pixels get which no mask has."""
    model = _unwrapped(runner.model)
    preprocessor = getattr(model, 'data_preprocessor', None)
    parts = [('model.data_preprocessor', preprocessor)]
    for key, part in [*parts, *_train_parts(runner)]:
        for name in ('seg_pad_val', 'seg_fill_in'):
            if getattr(part, name, None) is not None:
                yield Place(f'{key}.{name}', getattr(part, name))
        pad = getattr(part, 'pad_val', None)  # of mmcv's Pad
        if isinstance(pad, dict) and 'seg' in pad:
            yield Place(f'{key}.pad_val.seg', pad['seg'])


def _train_parts(runner: Runner) -> Iterator[tuple[str, Any]]:
    """The training data sets, their wrappers and transforms, with keys."""
    dataset = runner._train_loop.dataloader.dataset
    for key, part in datasets_within(dataset, 'train_dataloader.dataset'):
        yield key, part
        pipeline = vars(part).get('pipeline') or ()
        yield from transforms_within(pipeline, f'{key}.pipeline')
