# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The training data of a runner, and their class counts."""

from __future__ import annotations

from typing import Any, Mapping

from mmengine.runner import Runner
from torch.utils.data import DataLoader

from ..hosts import heads
from ..messages import describe, fault, listed
from ..metrics.base import FrequencyMetric
from ..priors import (
    ClassCounts,
    class_names,
    count_dataset,
    natural_counts,
    rebalanced_by,
    same_labels,
)
from ..priors.names import _say_once, empty_folders
from ..priors.sampling import leaves

TRAINING, EVALUATED = 'the training data', 'the evaluated data'


class NoTrainingDataError(RuntimeError):
    """The run has no training data that could be counted."""


def counts_of_training_data(
    runner: Runner,
    unit: str | None = None,
    as_drawn: bool = True,
    ignore_index: int = 255,
) -> ClassCounts:
    """Class counts of the runner's training data.

    Args:
        runner (Runner): Its ``train_dataloader`` may be built or a config.
        unit (str, optional): ``'image'``, ``'instance'`` or ``'pixel'``.
        as_drawn (bool): Whether to count what the model sees in an epoch
            (priors), or each sample that it sees once (groups by training
            frequency).
        ignore_index (int): Label of the pixels that are left out.

    Raises:
        NoTrainingDataError: There is no training data to count.
    """
    loader = _train_dataloader(runner)
    options: Any = dict(
        unit=unit,
        num_classes=_num_classes(runner, loader.dataset),
        ignore_index=ignore_index,
    )
    if as_drawn:
        return count_dataset(
            loader.dataset, sampler=_sampler(loader), **options
        )
    return natural_counts(loader.dataset, **options)


def balanced_by(runner: Runner) -> str | None:
    """What balances the runner's training data, if anything does."""
    loader = _train_dataloader(runner)
    return rebalanced_by(loader.dataset, _sampler(loader))


def names_of_training_data(runner: Runner) -> tuple[str, ...] | None:
    """Class names of the runner's training data, in label order."""
    return class_names(_train_dataloader(runner).dataset)


def empty_folders_of_training_data(runner: Runner) -> list[str]:
    """Folders of the runner's training data that hold no image."""
    return empty_folders(_train_dataloader(runner).dataset)


def number_of_things(runner: Runner) -> int | None:
    """How many classes of the runner's panoptic training data are things."""
    metainfo = getattr(_train_dataloader(runner).dataset, 'metainfo', None)
    if not isinstance(metainfo, Mapping) or 'thing_classes' not in metainfo:
        return None
    return len(metainfo['thing_classes'])


def names_of(loop: Any) -> tuple[str, ...] | None:
    """Class names of what a loop runs through, if it is built."""
    loader = getattr(loop, 'dataloader', None)
    return None if loader is None else class_names(loader.dataset)


def metrics(loop: Any) -> list[FrequencyMetric]:
    """All metrics of ours that a loop evaluates, if it is built."""
    found = getattr(getattr(loop, 'evaluator', None), 'metrics', ())
    return [metric for metric in found if isinstance(metric, FrequencyMetric)]


def compare_labels(names: tuple[str, ...] | None, loop: Any) -> None:
    """Compare what a loop evaluates with the labels of training.

    What our metrics cannot evaluate is an error; with metrics of others,
    which may not compare labels (retrieval), it is a warning.

    Args:
        names: Those of the C labels of training, if known.
        loop: Of validation or test; nothing happens if it is not built.

    Raises:
        ValueError: A class has another label, or the numbers of classes do
            not fit.
    """
    found = names_of(loop) if names else None
    if not names or not found:
        return
    ours = metrics(loop)
    same_labels(names, TRAINING, found, EVALUATED, fatal=bool(ours))
    parts = list(leaves(loop.dataloader.dataset))
    # COCO files may lack classes that metainfo has.
    numbered = [len(getattr(x, 'cat_ids', None) or found) for x in parts]
    lacks, further = names[min(numbered) :], found[len(names) :]
    if not lacks and not further:
        return
    part = parts[numbered.index(min(numbered))]
    if further:
        said = f'{listed(further)} besides, which the model cannot predict'
        fix = (
            'take them out of the evaluated data (the category, folder or '
            'name), or train them'
        )
    else:
        said = f'no {listed(lacks)}, which the model predicts'
        fix = (
            'write metainfo=dict(classes=(...)) in the evaluated data, with '
            f'the names of training ({listed(names)})'
        )
        if getattr(part, 'cat_ids', None):
            said += ' (an IndexError in CocoMetric)'
            fix = (
                f'add them to the categories of {part.ann_file!r}, at the '
                'end and without boxes, and to metainfo.classes'
            )
        elif getattr(part, 'folder_to_idx', None):
            fix = 'make an empty folder for each'
    problem = fault(
        'metainfo.classes',
        found,
        f'the {len(names)} classes of {TRAINING}; {EVALUATED} have {said}',
        fix,
    )
    if any(further or metric.of_the_data for metric in ours):
        raise problem
    _say_once(str(problem))


def _num_classes(runner: Runner, dataset: Any) -> int | None:
    if class_names(dataset):
        return None
    # Lists of files (ImageNet-LT, ...) carry no class names; the heads know.
    sizes = {
        getattr(head, 'num_classes', None)
        for _, head, _ in heads(runner.model)
    }
    return sizes.pop() if len(sizes) == 1 else None


def _train_dataloader(runner: Runner) -> DataLoader:
    # Runner.train_dataloader builds the whole train loop.
    loop = runner._train_loop
    if loop is not None and not isinstance(loop, dict):
        return loop.dataloader
    loader = runner._train_dataloader
    if loader is None:
        raise _no_data('this config has no train_dataloader')
    try:
        return runner.build_dataloader(loader)
    except OSError as error:
        raise _no_data(f'they cannot be read ({error})') from error


def _no_data(reason: str) -> NoTrainingDataError:
    return NoTrainingDataError(
        describe(
            'class_counts',
            'auto',
            f'training data to count, but {reason}',
            'give class_counts as a list, a file or the name of a benchmark',
        )
    )


def _sampler(loader: DataLoader) -> Any:
    # A batch sampler (by aspect ratio, say) wraps the sampler that draws.
    return getattr(loader.batch_sampler, 'sampler', loader.sampler)
