# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""What the metrics with frequency groups share."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Mapping, Sequence

import numpy as np
from mmengine.evaluator import BaseMetric

from ..losses.arguments import refuse_unknown
from ..messages import describe, logger
from ..priors import ClassCounts, joined, load_class_counts


class FrequencyMetric(BaseMetric):
    """Base of metrics that average per-class values by training frequency.

    Args:
        class_counts: Class counts of the **training** data, from any source
            of :func:`lt_losses_mm.priors.load_class_counts`; ``'auto'``:
            handed in through :meth:`set_class_counts` before the evaluation;
            ``None``: no groups.
        count_unit: What is counted: ``'image'``, ``'instance'`` or
            ``'pixel'``. ``None`` takes the counts as they come.
        per_class: Whether to log a table of the classes and to report the
            list of their values as ``per_class``, with that of their counts
            as ``class_counts``.
        collect_device: Where results of several ranks meet, ``'cpu'`` or
            ``'gpu'``.
        prefix: Prefix of the metric names.
    """

    # Names of the numbers over all classes, and of the groups.
    overall: tuple[str, ...] = ()
    group_names: tuple[str, ...] = ()
    # Whether C is the number of names of the data; else the model says it.
    of_the_data = True
    # Of the labels: metainfo may have another order. MetricSetupHook tells.
    label_names: tuple[str, ...] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        refuse_unknown(cls, 'metric')

    def __init__(
        self,
        class_counts: Any = 'auto',
        count_unit: str | None = None,
        per_class: bool = False,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.count_unit = count_unit
        # Whoever knows the evaluated data has done it, and better.
        self.names_are_compared = False
        self.per_class = per_class
        self.members: dict[str, np.ndarray] = {}
        self.class_counts: ClassCounts | str | None = None
        if isinstance(class_counts, str) and class_counts == 'auto':
            self.class_counts = 'auto'
        elif class_counts is not None:
            self.set_class_counts(class_counts)

    def set_class_counts(self, class_counts: Any) -> None:
        """Take the class counts of the training data and form the groups.

        Args:
            class_counts: Any source of
                :func:`lt_losses_mm.priors.load_class_counts`.

        Raises:
            ValueError: If they are no counts, count something else than
                ``count_unit``, or do not suit the options of the groups.
        """
        class_counts = load_class_counts(class_counts, unit=self.count_unit)
        self.members = self.groups(class_counts.counts)
        if isinstance(self.class_counts, str):
            logger.info(
                f'{type(self).__name__}: {self.sizes()} classes '
                f'({class_counts.unit} counts, {class_counts.source})'
            )
        self.class_counts = class_counts

    def sizes(self) -> str:
        """How many classes each group has, for messages."""
        return ', '.join(f'{n} {len(g)}' for n, g in self.members.items())

    def keys(self) -> list[str]:
        """The keys of the numbers that can be reported, with prefix.

        A group without a class is left out. Which classes the evaluated data
        hold is not known here.
        """
        filled = [name for name, group in self.members.items() if len(group)]
        return [f'{self.prefix}/{name}' for name in (*self.overall, *filled)]

    def check_class_counts(self, num_classes: int) -> None:
        """Raise unless the counts asked for are here and fit.

        Called from :meth:`process`, on every rank, so that a mistake ends
        the run at the first batch rather than after the last.

        Args:
            num_classes: Number of classes C of the task.

        Raises:
            RuntimeError: If ``class_counts='auto'`` was never filled.
            ValueError: If there are not C counts, or they have names that
                are not those of the evaluated data.
        """
        if self.class_counts is None:
            return
        if isinstance(self.class_counts, str):
            raise RuntimeError(
                describe(
                    'class_counts',
                    'auto',
                    'counts before the evaluation, but it was not filled',
                    'import lt_losses_mm before the Runner is built (`mim '
                    'train mm-lt-losses` does, and custom_imports = dict('
                    "imports=['lt_losses_mm']) in the config), give "
                    'class_counts= a list, a file or a benchmark name, or '
                    'class_counts=None for no groups',
                    type(self).__name__,
                )
            )
        if not self.names_are_compared:
            counts = joined(
                self.class_counts, self.names(), 'the evaluated data'
            )
            if counts is not self.class_counts:
                self.set_class_counts(counts)
            self.names_are_compared = True
        load_class_counts(self.class_counts, num_classes=num_classes)

    def names(self) -> Sequence[str] | None:
        """The names of the classes, in the order of the labels, if known."""
        meta = self.dataset_meta
        said = meta.get('classes') if isinstance(meta, Mapping) else None
        return self.label_names or said

    def check_names(self) -> None:
        """Compare what the metric was given with the names of the data.

        Called before a run, once ``dataset_meta`` has ``classes``.

        Raises:
            ValueError: If they do not fit.
        """

    def check_run(self, model: Any, dataset: Any) -> None:
        """Compare what the metric was given with what is evaluated.

        Called before a run.

        Args:
            model: The model.
            dataset: The evaluated data set.

        Raises:
            ValueError: If they do not fit.
        """

    @abstractmethod
    def groups(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        """Class indices of each frequency group.

        Args:
            counts: Training counts, shape (C,).

        Returns:
            dict: Name of the group -> class indices, the most frequent group
            first.
        """

    def group_means(self, values: np.ndarray) -> dict[str, float]:
        """Average per-class values over the classes of each group.

        Args:
            values: One value per class, shape (C,), ``nan`` for a class that
                the evaluated data do not contain.

        Returns:
            dict: Name of the group -> mean. A group without any class to
            average is left out: a ``nan`` never compares as better, so that
            ``save_best`` would save nothing, without a word.
        """
        return {
            name: float(np.nanmean(values[group]))
            for name, group in self.members.items()
            if not np.isnan(values[group]).all()
        }

    def class_values(self, **columns: np.ndarray) -> dict[str, list[float]]:
        """With ``per_class``, log a row for each class, and report a list.

        Args:
            columns: Name -> one value a class, shape (C,), ``nan`` for none;
                the first is what is reported.

        Returns:
            dict: ``per_class`` -> the first column, ``class_counts`` ->
            the counts if they are known; empty without ``per_class``.
        """
        if not self.per_class:
            return {}
        first = next(iter(columns.values()))
        reported = dict(per_class=first.tolist())
        head = ['label', 'class']
        names = self.names() or ()
        cells = [list(map(str, range(len(first))))]
        counts = self.class_counts
        if isinstance(counts, ClassCounts):
            if len(names) < len(first):  # the data lack the last classes
                names = counts.names or ()
            reported['class_counts'] = counts.counts.tolist()
            head += [f'training ({counts.unit})', 'share in %', 'group']
            share = 100 * counts.counts / counts.counts.sum()
            group = np.full(len(first), '-', dtype=object)
            for name, members in self.members.items():
                group[members] = name
            cells += [_numbers(counts.counts), _numbers(share, 3), list(group)]
        cells.insert(1, [str(name) for name in names or cells[0]])
        cells += [_numbers(column) for column in columns.values()]
        rows = [(*head, *columns), *zip(*cells)]
        widths = [max(map(len, column)) for column in zip(*rows)]
        table = '\n'.join(
            '  '.join(map(str.rjust, row, widths)) for row in rows
        )
        logger.info(f'{type(self).__name__}, each class:\n{table}')
        return reported


def _numbers(values: np.ndarray, digits: int = 4) -> list[str]:
    """``-`` for ``nan``; large numbers with all their digits."""
    return [
        '-'
        if np.isnan(value)
        else f'{value:.{digits}g}'
        if value < 1000
        else f'{value:.0f}'
        for value in values.tolist()
    ]
