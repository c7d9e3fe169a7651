# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Accuracy of single-label classification, by class frequency."""

from __future__ import annotations

from typing import Any, Sequence

import numpy as np

from ..messages import fault
from ..priors import frequency_groups
from ..registry import METRICS
from .base import FrequencyMetric


def expected_calibration_error(
    confidence: np.ndarray, correct: np.ndarray, bins: int = 15
) -> float:
    r"""Expected calibration error (ECE).

    .. math::

        \mathrm{ECE} = \sum_m \frac{|B_m|}{N}\,
            \left|\mathrm{acc}(B_m) - \mathrm{conf}(B_m)\right|

    with :math:`B_m` the predictions whose confidence lies in
    :math:`((m-1)/M,\ m/M]`: equation 3 of Guo et al., "On Calibration of
    Modern Neural Networks", ICML 2017, https://arxiv.org/abs/1706.04599.

    Args:
        confidence: Probability of the predicted class, shape (N,), N > 0.
        correct: Whether the prediction is right, shape (N,), bool.
        bins: Number M of bins of equal width.

    Returns:
        float: ECE in [0, 1].

    Examples:
        >>> import numpy as np
        >>> expected_calibration_error(
        ...     np.array([0.75, 0.75]), np.array([True, False]), bins=5)
        0.25
    """
    index = np.ceil(confidence * bins).astype(int) - 1
    gap = np.bincount(
        index.clip(0, bins - 1), weights=correct - confidence, minlength=bins
    )
    return float(np.abs(gap).sum() / len(confidence))


@METRICS.register_module()
class LongTailAccuracy(FrequencyMetric):
    """Overall, class-averaged and many/medium/few-shot accuracy, and ECE.

    Works on the data samples of MMPretrain. All values are percentages,
    under these names:

    - ``accuracy/all``: share of samples that are classified correctly
      (top-1; the same as MMPretrain's ``accuracy/top1``);
    - ``accuracy/class_mean``: mean of the per-class accuracies;
    - ``accuracy/many``, ``accuracy/medium``, ``accuracy/few``: mean of the
      per-class accuracies over the classes with many (> 100), medium (20 to
      100) and few (< 20) *training* images, the groups of Liu et al.,
      "Large-Scale Long-Tailed Recognition in an Open World", CVPR 2019,
      https://arxiv.org/abs/1904.05160, section 5;
    - ``accuracy/ece``: expected calibration error, lower is better;
    - ``accuracy/per_class``: a list of C accuracies, ``nan`` for a class
      without test samples (only with ``per_class=True``).

    Classes without test samples count in no mean, and a group without any
    class to average has no key.

    Args:
        class_counts: Number of training images of each class: a list, a
            file, the name of a benchmark, or ``'auto'`` for the counts of
            the training data set. ``None``: no many/medium/few.
        thresholds: ``(low, high)``: a class with more than ``high`` training
            images is many-shot, with fewer than ``low`` few-shot.
        ece_bins: Number of bins of the calibration error. ``None`` leaves it
            out, for scores that are not probabilities.
        per_class: Whether to report the accuracy of each class, and to log
            a table with its name and frequency.
        collect_device: Where results of several ranks meet, ``'cpu'`` or
            ``'gpu'``.
        prefix: Prefix of the metric names instead of ``'accuracy'``.

    Examples:
        >>> import torch
        >>> metric = LongTailAccuracy(class_counts=[500, 50, 5])
        >>> for label, score in [(0, [.8, .1, .1]), (1, [.2, .6, .2]),
        ...                      (2, [.5, .1, .4])]:
        ...     metric.process({}, [dict(
        ...         gt_label=torch.tensor([label]),
        ...         pred_score=torch.tensor(score))])
        >>> for name, value in metric.evaluate(size=3).items():
        ...     print(f'{name} {value:.1f}')
        accuracy/all 66.7
        accuracy/class_mean 66.7
        accuracy/many 100.0
        accuracy/medium 100.0
        accuracy/few 0.0
        accuracy/ece 36.7
    """

    default_prefix = 'accuracy'
    group_names = ('many', 'medium', 'few')
    of_the_data = False

    def __init__(
        self,
        class_counts: Any = 'auto',
        thresholds: tuple[float, float] = (20, 100),
        ece_bins: int | None = 15,
        per_class: bool = False,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        if ece_bins is not None and not (
            isinstance(ece_bins, int) and ece_bins > 0
        ):
            raise fault(
                'ece_bins',
                ece_bins,
                'a positive int, or None to leave the calibration error out',
                'use 15',
                'LongTailAccuracy',
            )
        self.thresholds = thresholds
        self.ece_bins = ece_bins
        self.overall = ('all', 'class_mean', *(('ece',) if ece_bins else ()))
        super().__init__(
            class_counts=class_counts,
            count_unit='image',
            per_class=per_class,
            collect_device=collect_device,
            prefix=prefix,
        )

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keep label, prediction and confidence of each sample.

        Args:
            data_batch: Not used.
            data_samples: Each with ``gt_label``, shape (1,), and
                ``pred_score``, shape (C,).

        Raises:
            RuntimeError: If ``class_counts='auto'`` was never filled.
            ValueError: If a sample has not exactly one label, a label is
                out of range, the scores are no probabilities, or there are
                not C class counts.
        """
        for sample in data_samples:
            score = sample['pred_score'].detach().cpu().double()
            label = sample['gt_label']
            if label.numel() != 1:
                raise fault(
                    'gt_label',
                    label.tolist(),
                    'one label a sample (single-label classification), got '
                    f'{label.numel()} labels',
                    "use mmpretrain's MultiLabelMetric or AveragePrecision "
                    'for multi-label data',
                    'LongTailAccuracy',
                )
            label, num_classes = int(label), score.numel()
            self.check_class_counts(num_classes)
            if not 0 <= label < num_classes:
                raise fault(
                    'gt_label',
                    label,
                    f'0..{num_classes - 1}, the classes that the model scores',
                    'check num_classes of the head and the annotations',
                    'LongTailAccuracy',
                )
            low, high = float(score.min()), float(score.max())
            if self.ece_bins and not (low >= 0 and high <= 1 + 1e-4):
                raise fault(
                    'pred_score',
                    (low, high),
                    'probabilities (lowest, highest), which the calibration '
                    'error needs',
                    'let the head return probabilities, or set ece_bins=None',
                    'LongTailAccuracy',
                )
            self.results.append(
                (label, int(score.argmax()), high, num_classes)
            )

    def groups(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        """See :meth:`FrequencyMetric.groups`."""
        return frequency_groups(
            counts, kind='shot', thresholds=self.thresholds
        )

    def compute_metrics(self, results: list) -> dict[str, Any]:
        """Compute the metrics over all samples.

        Args:
            results: ``(label, prediction, confidence, C)`` of each sample.

        Returns:
            dict: Metric name without prefix -> percentage.
        """
        label, pred, confidence, num_classes = map(np.array, zip(*results))
        correct = label == pred
        num_classes = num_classes[0]
        hits = np.bincount(label[correct], minlength=num_classes)
        total = np.bincount(label, minlength=num_classes)
        with np.errstate(invalid='ignore'):
            accuracy = hits / total * 100

        metrics: dict[str, Any] = {
            'all': float(correct.mean() * 100),
            'class_mean': float(np.nanmean(accuracy)),
            **self.group_means(accuracy),
        }
        if self.ece_bins:
            metrics['ece'] = 100 * expected_calibration_error(
                confidence, correct, self.ece_bins
            )
        return {
            **metrics,
            **self.class_values(accuracy=accuracy, samples=total),
        }
