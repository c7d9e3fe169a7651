# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Mean IoU of semantic segmentation, by class frequency."""

from __future__ import annotations

from typing import Any, Sequence

import numpy as np
import torch

from ..messages import fault
from ..priors import frequency_groups, frequency_thirds
from ..registry import METRICS
from .base import FrequencyMetric


@METRICS.register_module()
class FrequencyGroupIoU(FrequencyMetric):
    """Mean IoU, overall and over frequent, middling and rare classes.

    Works on the data samples of MMSegmentation and takes the same sums as
    its ``IoUMetric``: intersections and unions are summed over the data set
    before they are divided. All values are percentages, not rounded, under
    these names:

    - ``iou/mIoU``, ``iou/mAcc``, ``iou/aAcc``: as in ``IoUMetric``;
    - ``iou/head``, ``iou/body``, ``iou/tail``: mean IoU over the classes of
      a frequency group;
    - ``iou/per_class``: a list of C IoUs, ``nan`` for a class that appears
      nowhere (only with ``per_class=True``).

    Without ``thresholds``, the classes are ordered by training frequency
    (equal counts: by label) and cut into three groups of equal size, the
    larger ones first when C is not a multiple of 3. Counts of pixels,
    instances and images all work: only the order matters.

    Classes that appear neither in the predictions nor in the ground truth
    count in no mean, and a group without any class to average has no key.

    Args:
        class_counts: Training counts of the C classes: a list, a file, the
            name of a benchmark, or ``'auto'`` for the counts of the training
            data set. ``None``: no groups.
        count_unit: ``'pixel'``, ``'image'`` or ``'instance'`` where the
            source offers several, or to insist on one.
        thresholds: ``(low, high)`` in the unit of the counts, instead of
            thirds: head has more than ``high``, tail fewer than ``low``.
        background: Index of a background class that belongs to no group. It
            stays in mIoU, mAcc and aAcc.
        ignore_index: Label of the pixels that are not evaluated. ``None``: a
            ``Runner`` takes it from the decode head; elsewhere it is 255.
        per_class: Whether to report the IoU of each class, and to log a
            table with its name and frequency.
        collect_device: Where results of several ranks meet, ``'cpu'`` or
            ``'gpu'``.
        prefix: Prefix of the metric names instead of ``'iou'``.

    Examples:
        >>> import torch
        >>> metric = FrequencyGroupIoU(class_counts=[900, 90, 9])
        >>> metric.dataset_meta = dict(classes=('sky', 'road', 'pole'))
        >>> metric.process({}, [dict(
        ...     gt_sem_seg=dict(data=torch.tensor([[[0, 0, 1, 2, 255]]])),
        ...     pred_sem_seg=dict(data=torch.tensor([[[0, 0, 1, 1, 2]]])))])
        >>> for name, value in metric.evaluate(size=1).items():
        ...     print(f'{name} {value:.1f}')
        iou/mIoU 50.0
        iou/mAcc 66.7
        iou/aAcc 75.0
        iou/head 100.0
        iou/body 50.0
        iou/tail 0.0
    """

    default_prefix = 'iou'
    overall = ('mIoU', 'mAcc', 'aAcc')
    group_names = ('head', 'body', 'tail')

    def __init__(
        self,
        class_counts: Any = 'auto',
        count_unit: str | None = None,
        thresholds: tuple[float, float] | None = None,
        background: int | None = None,
        ignore_index: int | None = None,
        per_class: bool = False,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        self.thresholds = thresholds
        self.background = background
        self.ignore_index = ignore_index
        super().__init__(
            class_counts=class_counts,
            count_unit=count_unit,
            per_class=per_class,
            collect_device=collect_device,
            prefix=prefix,
        )

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Count the pixels of each image by class.

        Args:
            data_batch: Not used.
            data_samples: Each with ``gt_sem_seg['data']`` and
                ``pred_sem_seg['data']``, integer masks of shape (1, H, W).

        Raises:
            RuntimeError: If ``class_counts='auto'`` was never filled.
            ValueError: If the masks differ in shape, hold a value that is
                no class, or there are not C class counts.
        """
        num_classes = len(self.dataset_meta['classes'])
        self.check_class_counts(num_classes)
        if self.ignore_index is None:
            self.ignore_index = 255
        for sample in data_samples:
            pred = sample['pred_sem_seg']['data'].squeeze()
            label = sample['gt_sem_seg']['data'].squeeze().to(pred.device)
            if pred.shape != label.shape:
                raise fault(
                    'pred_sem_seg',
                    tuple(pred.shape),
                    f'the shape {tuple(label.shape)} of gt_sem_seg',
                    'load the annotations after Resize in the test pipeline',
                    'FrequencyGroupIoU',
                )
            kept = label != self.ignore_index
            pred, label = pred[kept].long(), label[kept].long()
            self._check_values(label, num_classes, 'gt_sem_seg')
            self._check_values(pred, num_classes, 'pred_sem_seg')
            # One row of counts per image, never a sum over images: the rows
            # of padding images of a distributed sampler are dropped later.
            self.results.append(
                np.stack(
                    [
                        torch.bincount(x, minlength=num_classes).cpu().numpy()
                        for x in (label[label == pred], pred, label)
                    ]
                )
            )

    def _check_values(
        self, mask: torch.Tensor, num_classes: int, key: str
    ) -> None:
        if mask.numel() and not (0 <= mask.min() and mask.max() < num_classes):
            raise fault(
                key,
                (int(mask.min()), int(mask.max())),
                f'values 0..{num_classes - 1}, as the data set has '
                f'{num_classes} classes and ignore_index={self.ignore_index}',
                'check num_classes, reduce_zero_label and ignore_index',
                'FrequencyGroupIoU',
            )

    def groups(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        """See :meth:`FrequencyMetric.groups`."""
        if not (self.background is None or 0 <= self.background < len(counts)):
            raise fault(
                'background',
                self.background,
                f'an index of the {len(counts)} classes that class_counts '
                'holds',
                'give the label of the background class, or None',
                'FrequencyGroupIoU',
            )
        if self.thresholds is None:
            return frequency_thirds(counts, without=self.background)
        shot = frequency_groups(
            counts, kind='shot', thresholds=self.thresholds
        )
        parts = [
            shot[name][shot[name] != self.background]
            for name in ('many', 'medium', 'few')
        ]
        return dict(zip(self.group_names, parts))

    def compute_metrics(self, results: list) -> dict[str, Any]:
        """Compute the metrics over all images.

        Args:
            results: For each image, pixels of the intersection, the
                prediction and the ground truth of each class: int64, shape
                (3, C).

        Returns:
            dict: Metric name without prefix -> percentage.
        """
        intersection, predicted, labelled = np.sum(results, axis=0)
        with np.errstate(invalid='ignore'):
            iou = intersection / (predicted + labelled - intersection) * 100
            accuracy = intersection / labelled * 100
        return {
            'mIoU': float(np.nanmean(iou)),
            'mAcc': float(np.nanmean(accuracy)),
            'aAcc': float(intersection.sum() / labelled.sum() * 100),
            **self.group_means(iou),
            **self.class_values(IoU=iou, accuracy=accuracy, pixels=labelled),
        }
