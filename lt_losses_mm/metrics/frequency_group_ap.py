# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Average precision of detection on any COCO file, by class frequency."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import reprlib
from collections import Counter
from typing import Any, Sequence

import numpy as np
from mmengine.fileio import get

from ..messages import describe, fault, listed, logger
from ..priors import frequency_groups, frequency_thirds
from ..priors.names import same_word
from ..priors.sampling import leaves
from ..registry import METRICS
from .base import FrequencyMetric


@METRICS.register_module()
class FrequencyGroupAP(FrequencyMetric):
    """COCO's AP, overall and over frequent, common and rare classes.

    Works on the data samples of MMDetection and evaluates with pycocotools,
    as its ``CocoMetric`` does: IoU of 0.5 to 0.95, all areas, at most 100
    detections an image. The annotation file needs none of LVIS's fields: the
    groups come from the training data. All values are percentages, not
    rounded, under these names:

    - ``ap/all``, ``ap/AP50``: ``bbox_mAP`` and ``bbox_mAP_50`` of
      ``CocoMetric`` (or those of ``segm``), as percentages;
    - ``ap/frequent``, ``ap/common``, ``ap/rare``: mean of the per-class APs
      over the classes with more than 100, 11 to 100, and at most 10
      *training* images, the groups of Gupta et al., "LVIS: A Dataset for
      Large Vocabulary Instance Segmentation", CVPR 2019, section 3;
    - ``ap/per_class``: a list of C APs, ``nan`` for a class without an
      object (only with ``per_class=True``).

    Classes without an object in the evaluated images count in no mean, and a
    group without any class to average has no key.

    Args:
        ann_file: COCO file of the evaluated data.
        metric: ``'bbox'`` or ``'segm'``.
        class_counts: Number of training images of each class: a list, a
            file, the name of a benchmark, or ``'auto'`` for the counts of
            the training data set. ``None``: no groups.
        thresholds: ``(low, high)``: a class in more than ``high`` training
            images is frequent, in fewer than ``low`` rare. ``None``: three
            groups of equal size, as in :class:`FrequencyGroupIoU`.
        per_class: Whether to report the AP of each class, and to log a table
            with its name and frequency.
        collect_device: Where results of several ranks meet, ``'cpu'`` or
            ``'gpu'``.
        prefix: Prefix of the metric names instead of ``'ap'``.
        backend_args: How to read ``ann_file`` where it is no local file.

    Raises:
        ValueError: If ``ann_file`` is no COCO file, or ``metric`` unknown.
    """

    default_prefix = 'ap'
    overall = ('all', 'AP50')
    group_names = ('frequent', 'common', 'rare')

    def __init__(
        self,
        ann_file: str,
        metric: str = 'bbox',
        class_counts: Any = 'auto',
        thresholds: tuple[float, float] | None = (11, 100),
        per_class: bool = False,
        collect_device: str = 'cpu',
        prefix: str | None = None,
        backend_args: dict | None = None,
    ) -> None:
        if metric not in ('bbox', 'segm'):
            raise fault(
                'metric',
                metric,
                "'bbox' or 'segm'",
                'list two metrics with prefixes of their own to have both',
                'FrequencyGroupAP',
            )
        self.ann_file, self.metric = ann_file, metric
        self.thresholds = thresholds
        self._content = _read(ann_file, metric, backend_args)
        self._images = {image['id'] for image in self._content['images']}
        super().__init__(
            class_counts=class_counts,
            count_unit='image',
            per_class=per_class,
            collect_device=collect_device,
            prefix=prefix,
        )

    def groups(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        """See :meth:`FrequencyMetric.groups`."""
        if self.thresholds is None:
            parts = frequency_thirds(counts).values()
            return dict(zip(self.group_names, parts))
        return frequency_groups(
            counts, kind='lvis', thresholds=self.thresholds
        )

    def check_names(self) -> None:
        """See :meth:`FrequencyMetric.check_names`."""
        self.category_ids()

    def check_run(self, model: Any, dataset: Any) -> None:
        """See :meth:`FrequencyMetric.check_run`."""
        kinds = [f'{n} {type(m).__name__}' for n, m in model.named_modules()]
        if self.metric == 'segm' and not any(
            'mask' in kind.lower() for kind in kinds
        ):
            raise _no_masks(type(model).__name__)
        # Of COCO's form: another one may have a COCO file for the metric.
        parts = [x for x in leaves(dataset) if hasattr(x, 'cat_ids')]
        files = [str(part.ann_file) for part in parts]
        own = os.path.realpath(self.ann_file)
        if not parts or own in map(os.path.realpath, files):
            return
        ids = {
            part.get_data_info(i).get('img_id')
            for part in parts
            for i in range(len(part))
        }
        problem = fault(
            'ann_file',
            self.ann_file,
            f'the file of the evaluated data set, {listed(files)}',
            'give the metric the same file',
            'FrequencyGroupAP',
        )
        if ids - self._images:
            raise problem
        logger.warning(str(problem))  # It may be another edition of it.

    def category_ids(self) -> list[int]:
        """The category of each label, by the names of the classes.

        Raises:
            ValueError: If the file has other names than the data set, or
                has them in another order and it is not known which of both
                the labels have.
        """
        names = [str(name) for name in self.names() or ()]
        known = self._content['categories']
        often = Counter(category['name'] for category in known)
        doubled = [name for name in often if often[name] > 1]
        if set(doubled) & set(names) and len(known) > len(names):
            raise fault(
                'ann_file',
                self.ann_file,
                'each category name once, got several ids for '
                f'{listed(doubled)}',
                'remove the second category of that name from the file, or '
                'rename it',
                'FrequencyGroupAP',
            )
        if len(known) == len(names) and all(
            same_word(c['name'], name) for c, name in zip(known, names)
        ):
            return [category['id'] for category in known]
        known = [c for c in known if c['name'] in names]
        found = [category['name'] for category in known]
        if self.label_names and sorted(found) == sorted(names):
            known.sort(key=lambda category: names.index(category['name']))
        elif found != names:
            missing = [name for name in names if name not in found]
            raise fault(
                'ann_file',
                self.ann_file,
                'the categories of metainfo.classes, each once and in the '
                'same order, as MMDetection numbers the labels in the order '
                'of the file; '
                + (
                    f'it has no {listed(missing)}'
                    if missing
                    else f'its order is {listed(found)}, that of classes is '
                    f'{listed(names)}'
                ),
                'write metainfo.classes as the file has them'
                + (
                    '; if the spelling is right, add the missing ones to its '
                    'categories, at the end and without boxes'
                    if missing
                    else ''
                ),
                'FrequencyGroupAP',
            )
        return [category['id'] for category in known]

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keep the detections of each image.

        Args:
            data_batch: Not used.
            data_samples: Each with ``img_id`` and ``pred_instances``, which
                holds ``bboxes`` (N, 4), ``scores`` (N,), ``labels`` (N,) and,
                for ``'segm'``, ``masks`` (N, H, W).

        Raises:
            RuntimeError: If ``class_counts='auto'`` was never filled.
            ValueError: If an image is not in the file, a label is out of
                range, or there are not C class counts.
        """
        num_classes = len(self.dataset_meta['classes'])
        self.check_class_counts(num_classes)
        for sample in data_samples:
            image, pred = sample['img_id'], sample['pred_instances']
            if image not in self._images:
                raise fault(
                    'ann_file',
                    self.ann_file,
                    f'the file of the evaluated data, but it has no image '
                    f'{image}',
                    'give the ann_file of the evaluated data set',
                    'FrequencyGroupAP',
                )
            labels = pred['labels'].cpu().numpy()
            if labels.size and not 0 <= labels.min() <= labels.max() < (
                num_classes
            ):
                raise fault(
                    'pred_instances.labels',
                    (int(labels.min()), int(labels.max())),
                    f'0..{num_classes - 1}, the classes of the data set',
                    'check num_classes of the head and metainfo.classes',
                    'FrequencyGroupAP',
                )
            boxes = pred['bboxes'].detach().cpu().numpy().astype(float)
            boxes[:, 2:] -= boxes[:, :2]
            scores = pred['scores']
            shapes: list = list(boxes)
            if self.metric == 'segm':
                from pycocotools.mask import encode

                # Some heads score masks apart from boxes.
                scores = pred.get('mask_scores', scores)
                if 'masks' not in pred:
                    raise _no_masks('this model')
                masks = pred['masks']
                if hasattr(masks, 'detach'):
                    masks = masks.detach().cpu().numpy().astype(np.uint8)
                    masks = [encode(np.asfortranarray(one)) for one in masks]
                shapes = list(masks)
            self.results.append(
                (image, labels, scores.detach().cpu().numpy(), shapes)
            )

    def compute_metrics(self, results: list) -> dict[str, Any]:
        """Compute the metrics over all images.

        Args:
            results: Of each image its id, labels, scores, and boxes or
                run-length encoded masks.

        Returns:
            dict: Metric name without prefix -> percentage.
        """
        from pycocotools.cocoeval import COCOeval

        categories = self.category_ids()
        detected = [
            _detection(image, categories[label], score, shape)
            for image, *rows in results
            for label, score, shape in zip(*rows)
        ]
        # It prints its progress.
        with contextlib.redirect_stdout(io.StringIO()):
            truth, found = (
                _index({**self._content, 'annotations': annotations})
                for annotations in (self._content['annotations'], detected)
            )
            evaluation = COCOeval(truth, found, self.metric)
            evaluation.params.imgIds = [image for image, *_ in results]
            evaluation.params.catIds = categories
            evaluation.params.maxDets = [100]
            evaluation.params.areaRng = [[0, 1e10]]
            evaluation.params.areaRngLbl = ['all']
            evaluation.evaluate()
            evaluation.accumulate()
        # (IoUs, recalls, categories, 1, 1); -1 where there is no object.
        precision = evaluation.eval['precision'][..., 0, 0]
        precision = np.where(precision < 0, np.nan, 100 * precision)
        # The evaluation has sorted the categories.
        order = np.searchsorted(evaluation.params.catIds, categories)
        precision = precision.mean(axis=1)[:, order]
        ap = precision.mean(axis=0)
        if np.isnan(ap).all():
            raise fault(
                'ann_file',
                self.ann_file,
                'an object of some class in the evaluated images',
                'check ann_file and metainfo.classes',
                'FrequencyGroupAP',
            )
        seen = {image for image, *_ in results}
        objects = Counter(
            one['category_id']
            for one in self._content['annotations']
            if one['image_id'] in seen and not one['iscrowd']
        )
        number = np.array([float(objects[one]) for one in categories])
        return {
            'all': float(np.nanmean(ap)),
            'AP50': float(np.nanmean(precision[0])),
            **self.group_means(ap),
            **self.class_values(AP=ap, AP50=precision[0], objects=number),
        }


def _no_masks(model: str) -> ValueError:
    return fault(
        'metric',
        'segm',
        f'a model that predicts masks, which {model} does not',
        "write metric='bbox'",
        'FrequencyGroupAP',
    )


def _read(
    ann_file: str, metric: str, backend_args: dict | None
) -> dict[str, list]:
    """What a COCO file holds, with what the evaluation reads of it."""
    try:
        text = get(ann_file, backend_args=backend_args)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise FileNotFoundError(
            describe(
                'ann_file',
                ann_file,
                'the COCO file of the evaluated data, found none at '
                f'{os.path.abspath(ann_file)}',
                'correct the path (it is relative to the working directory; '
                'data_root is of the data set alone)',
                'FrequencyGroupAP',
            )
        ) from error
    try:
        content = json.loads(text)
        images, categories, annotations = (
            content[part] for part in ('images', 'categories', 'annotations')
        )
        sizes = {one['id']: one for one in images}
        categories = [dict(one, name=str(one['name'])) for one in categories]
        ids = {one['id'] for one in categories}
        odd = (
            (f'{expected}, got {reprlib.repr(shown)} as annotation {number}')
            for number, one in enumerate(annotations, 1)
            for expected in [_expected(one, sizes, metric)]
            if expected
            for shown in [
                {
                    key: value
                    for key, value in one.items()
                    if key in ('id', 'image_id') or expected.startswith(key)
                }
            ]
        )
        problem = next(odd, '')
        if not problem and len(ids) < len(categories):
            problem = 'one id for each category, got one of them twice'
        if not problem and not (
            not annotations
            or any(
                one['image_id'] in sizes and one['category_id'] in ids
                for one in annotations
            )
        ):
            problem = (
                'image_id and category_id out of the ids of its images and '
                "categories ('1' is not 1), got none"
            )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise fault(
            'ann_file',
            ann_file,
            'a COCO file: JSON with images, categories and annotations, '
            'images and categories with an id, categories with a name',
            f'repair the file ({type(error).__name__}: {str(error)[:80]})',
            'FrequencyGroupAP',
        ) from error
    if problem:
        raise fault(
            'ann_file',
            ann_file,
            f'a COCO file with {problem}',
            'correct the file, or remove what is wrong from it',
            'FrequencyGroupAP',
        )
    annotations = [
        # Numbers of their own: zero and doubled ones are lost.
        dict(
            one,
            id=number,
            iscrowd=one.get('iscrowd') or 0,
            area=box[2] * box[3] if one.get('area') is None else one['area'],
            segmentation=_shape(one),
        )
        for number, one in enumerate(annotations, 1)
        for box in [one['bbox']]
    ]
    return dict(images=images, categories=categories, annotations=annotations)


def _expected(one: dict, sizes: dict[Any, dict], metric: str) -> str:
    """What an annotation should have and has not, its key first."""
    for key in ('image_id', 'category_id'):
        if not isinstance(one.get(key), (int, float, str)):
            return f'{key} in each annotation'
    box: Any = one.get('bbox')
    if not _are_numbers(box) or len(box) != 4:
        return 'bbox=[x, y, width, height] in each annotation, four numbers'
    if one.get('area') is not None and not _are_numbers([one['area']]):
        return 'area, a number, or none'
    if one.get('iscrowd') not in (None, 0, 1):
        return 'iscrowd=0 or 1, without quotes'
    if metric == 'bbox':
        return ''
    if not _shape(one):
        return (
            'segmentation=[[x, y, ...], ...] in each annotation, a polygon of '
            "three points or more, or a dict of 'counts' and 'size', because "
            "metric='segm'"
        )
    image = sizes.get(one['image_id'])
    if image is not None and not _are_numbers(
        [image.get('width'), image.get('height')]
    ):
        return (
            "width and height of each image, because metric='segm' draws the "
            f'polygons ({reprlib.repr(image)} lacks them)'
        )
    return ''


def _shape(one: dict) -> Any:
    """Run lengths, or the polygons that are some; None for anything else."""
    shape = one.get('segmentation')
    if isinstance(shape, dict):
        return shape if {'counts', 'size'} <= shape.keys() else None
    if not isinstance(shape, list):
        return None
    # pycocotools takes four numbers for a box.
    return [
        polygon
        for polygon in shape
        if _are_numbers(polygon) and len(polygon) > 5 and not len(polygon) % 2
    ]


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(
        type(value) in (int, float) and math.isfinite(value)
        for value in values
    )


def _detection(image: Any, category: int, score: float, shape: Any) -> dict:
    found = dict(
        image_id=image, category_id=category, score=float(score), iscrowd=0
    )
    if isinstance(shape, dict):
        from pycocotools.mask import area

        return dict(found, segmentation=shape, area=float(area(shape)))
    return dict(found, bbox=shape, area=float(shape[2] * shape[3]))


def _index(content: dict[str, list]) -> Any:
    """The file of pycocotools that holds this."""
    from pycocotools.coco import COCO

    api = COCO()
    api.dataset = dict(
        content,
        annotations=[
            dict(one, id=number)
            for number, one in enumerate(content['annotations'], 1)
        ],
    )
    api.createIndex()
    return api
