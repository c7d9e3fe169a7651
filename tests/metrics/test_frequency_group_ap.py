# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.registry import DefaultScope

from lt_losses_mm.metrics import FrequencyGroupAP

pytest.importorskip('pycocotools')

CLASSES = ('cat', 'dog', 'owl', 'yak')
COUNTS = [500, 60, 11, 3]


def content(images=8, ids=(9, 2, 4, 7), seed=0):
    """Of each image two objects; category ids in no order."""
    rng = np.random.default_rng(seed)
    annotations = []
    for image in range(images):
        for place in (0, 1):
            x, y = (32 * place + rng.integers(0, 8, 2)).tolist()
            width, height = rng.integers(10, 20, 2).tolist()
            polygon = [x, y, x + width, y, x + width, y + height]
            polygon += [x, y + height]
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image,
                    category_id=ids[(image + place) % len(ids)],
                    bbox=[x, y, width, height],
                    area=width * height,
                    iscrowd=0,
                    segmentation=[polygon],
                )
            )
    return dict(
        images=[
            dict(id=i, file_name=f'{i}.jpg', width=64, height=64)
            for i in range(images)
        ],
        categories=[dict(id=i, name=n) for i, n in zip(ids, CLASSES)],
        annotations=annotations,
    )


def detections(content, seed=1, masks=False):
    """The objects, moved a little, some with another label."""
    rng = np.random.default_rng(seed)
    labels = {c['id']: i for i, c in enumerate(content['categories'])}
    samples = []
    for image in content['images']:
        boxes, found = [], []
        for one in content['annotations']:
            if one['image_id'] == image['id']:
                x, y, w, h = one['bbox'] + rng.integers(-2, 3, 4)
                boxes.append([x, y, x + w, y + h])
                found.append(labels[one['category_id']])
                if rng.random() < 0.4:
                    found[-1] = int(rng.integers(len(labels)))
        pred = dict(
            bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            scores=torch.tensor(rng.random(len(found)), dtype=torch.float32),
            labels=torch.tensor(found, dtype=torch.long),
        )
        if masks:
            pred['masks'] = torch.zeros(len(found), 64, 64, dtype=torch.bool)
            for mask, (x0, y0, x1, y1) in zip(pred['masks'], boxes):
                mask[max(y0, 0) : y1, max(x0, 0) : x1] = True
        samples.append(
            dict(img_id=image['id'], ori_shape=(64, 64), pred_instances=pred)
        )
    return samples


@pytest.fixture
def write(tmp_path):
    def to_file(value):
        path = tmp_path / 'val.json'
        path.write_text(json.dumps(value))
        return str(path)

    return to_file


def build(path, classes=CLASSES, **options):
    metric = FrequencyGroupAP(
        path, **dict(dict(class_counts=COUNTS), **options)
    )
    metric.dataset_meta = dict(classes=classes)
    return metric


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_agrees_with_mmdet_beside_it_in_one_evaluator(write, kind):
    pytest.importorskip('mmdet.evaluation')
    data = content(images=30)
    path = write(data)
    with DefaultScope.overwrite_default_scope('mmdet'):
        evaluator = Evaluator(
            [
                dict(
                    type='CocoMetric',
                    ann_file=path,
                    metric=kind,
                    classwise=True,
                ),
                dict(
                    type='lt_losses_mm.FrequencyGroupAP',
                    ann_file=path,
                    metric=kind,
                    class_counts=COUNTS,
                    per_class=True,
                ),
            ]
        )
    evaluator.dataset_meta = dict(classes=CLASSES)
    for sample in detections(data, masks=kind == 'segm'):
        evaluator.process([sample])
    result = evaluator.evaluate(30)
    per_class = result['ap/per_class']
    assert 10 < result['ap/all'] < 80  # neither hit nor miss
    assert len({round(value, 2) for value in per_class}) == 4
    assert result['ap/all'] == pytest.approx(
        100 * result[f'coco/{kind}_mAP'], abs=0.051
    )
    assert result['ap/AP50'] == pytest.approx(
        100 * result[f'coco/{kind}_mAP_50'], abs=0.051
    )
    assert result['ap/all'] == pytest.approx(np.mean(per_class))
    assert result['ap/frequent'] == per_class[0]
    assert result['ap/common'] == pytest.approx(np.mean(per_class[1:3]))
    assert result['ap/rare'] == per_class[3]
    # The host lists sorted categories under unsorted names: compare the set.
    theirs = sorted(100 * result[f'coco/{name}_precision'] for name in CLASSES)
    assert sorted(per_class) == pytest.approx(theirs, abs=0.051)


def test_the_right_name_has_the_right_value(write):
    """Only the owls are found."""
    data = content()
    metric = build(write(data), per_class=True)
    samples = detections(data)
    for sample in samples:
        kept = [
            one
            for one in data['annotations']
            if one['image_id'] == sample['img_id'] and one['category_id'] == 4
        ]
        boxes = [
            [x, y, x + w, y + h] for x, y, w, h in (o['bbox'] for o in kept)
        ]
        sample['pred_instances'] = dict(
            bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            scores=torch.ones(len(kept)),
            labels=torch.full((len(kept),), 2),
        )
    metric.process({}, samples)
    result = metric.evaluate(len(samples))
    assert result['ap/per_class'] == [0, 0, pytest.approx(100), 0]
    assert result['ap/common'] == pytest.approx(50)  # dog and owl


def test_no_detection_at_all(write):
    data = content()
    samples = detections(data)
    for sample in samples:
        pred = sample['pred_instances']
        sample['pred_instances'] = {k: v[:0] for k, v in pred.items()}
    metric = build(write(data))
    metric.process({}, samples)
    assert metric.evaluate(len(samples)) == {
        f'ap/{key}': 0 for key in ('all', 'AP50', 'frequent', 'common', 'rare')
    }


def test_classes_without_an_object_count_in_no_mean(write):
    data = content()
    samples = detections(data)
    whole = [a for a in data['annotations'] if a['category_id'] != 7]
    crowd = dict(data['annotations'][0], category_id=7, iscrowd=1)
    path = write(dict(data, annotations=[*whole, crowd]))
    metric = build(path, per_class=True)
    metric.process({}, samples)
    result = metric.evaluate(len(samples))
    assert np.isnan(result['ap/per_class'][3])
    assert 'ap/rare' not in result
    assert result['ap/all'] == pytest.approx(
        np.mean(result['ap/per_class'][:3])
    )


def test_fields_that_detection_does_not_need(write):
    """Without area and iscrowd, ids from 0 or doubled, a BOM."""
    data = content()
    samples = detections(data)
    expected = build(write(data))
    expected.process({}, samples)
    expected = expected.evaluate(len(samples))
    for one in data['annotations']:
        del one['area'], one['iscrowd'], one['segmentation']
        one['id'] = 0
    path = write(data)
    text = open(path, encoding='utf-8').read()
    open(path, 'w', encoding='utf-8-sig').write(text)
    metric = build(path)
    metric.process({}, samples)
    assert metric.evaluate(len(samples)) == expected


def test_only_evaluated_images_count(write):
    """A part of the data set is not punished for the images left out."""
    data = content()
    metric = build(write(data))
    samples = detections(data)[:3]
    metric.process({}, samples)
    part = metric.evaluate(3)
    kept = [a for a in data['annotations'] if a['image_id'] < 3]
    metric = build(write(dict(data, annotations=kept)))
    metric.process({}, samples)
    assert metric.evaluate(3) == part


@pytest.mark.parametrize(
    'thresholds, expected',
    [
        ((11, 100), ([0], [1, 2], [3])),
        ((50, 50), ([0, 1], [], [2, 3])),
        (None, ([0, 1], [2], [3])),
    ],
)
def test_groups(write, thresholds, expected):
    groups = build(write(content()), thresholds=thresholds).members
    assert list(groups) == ['frequent', 'common', 'rare']
    assert tuple(g.tolist() for g in groups.values()) == expected


@pytest.mark.parametrize(
    'classes, message',
    [
        (('cat', 'dog', 'owl', 'yack'), "it has no 'yack'"),
        (('dog', 'cat', 'owl', 'yak'), "its order is 'cat', 'dog', 'owl'"),
    ],
)
def test_other_names_than_the_file_has(write, classes, message):
    data = content()
    metric = build(write(data), classes=classes)
    metric.process({}, detections(data))
    with pytest.raises(ValueError, match=f'val.json.*{message}'):
        metric.evaluate(8)


def test_another_order_where_the_labels_are_known(write):
    """MMDetection numbers them as its file does, whatever metainfo says."""
    data = content()
    ids = {c['name']: c['id'] for c in data['categories']}
    metric = build(write(data), classes=CLASSES[::-1])
    for names in (CLASSES, ('owl', 'cat', 'yak', 'dog')):
        metric.label_names = names
        assert metric.category_ids() == [ids[name] for name in names]


def test_a_slip_of_the_pen_in_a_long_name(write):
    """LVIS's own file has one; the categories go by position then."""
    data = content()
    names = [c['name'] for c in data['categories']]
    data['categories'][0]['name'] = 'speaker_(stero_equipment)'
    metric = build(
        write(data), classes=('speaker_(stereo_equipment)', *names[1:])
    )
    assert metric.category_ids() == [c['id'] for c in data['categories']]


def test_a_part_of_the_categories(write):
    data = content()
    metric = build(write(data), classes=CLASSES[1:3], class_counts=[60, 3])
    samples = detections(data)
    for sample in samples:
        sample['pred_instances']['labels'] %= 2
    metric.process({}, samples)
    assert 'ap/rare' in metric.evaluate(8)


def test_bad_samples(write):
    data = content()
    metric, samples = build(write(data)), detections(data)
    with pytest.raises(ValueError, match='val.json.*no image 77'):
        metric.process({}, [dict(samples[0], img_id=77)])
    samples[0]['pred_instances']['labels'][0] = 4
    with pytest.raises(ValueError, match=r'labels=.*expected 0\.\.3'):
        metric.process({}, samples)
    with pytest.raises(ValueError, match='num_classes=4'):
        build(write(data), class_counts=[5, 3]).process({}, samples)


@pytest.mark.parametrize(
    'text',
    [
        '',
        '[]',
        'plain',
        '{"images": []}',
        '{"images": [{}], "categories": [], "annotations": []}',
        '{"images": [], "categories": [{"id": 1}], "annotations": []}',
        '{"images": [], "categories": [], "annotations": [{"id": 1}]}',
    ],
)
def test_no_coco_file(tmp_path, text):
    path = tmp_path / 'val.json'
    path.write_text(text)
    with pytest.raises(ValueError, match='val.json.*a COCO file') as raised:
        FrequencyGroupAP(str(path))
    assert len(str(raised.value)) < 500 + len(str(path))


@pytest.mark.parametrize(
    'kind, part, change, words',
    [
        ('bbox', 'annotations', dict(category_id=None), 'category_id in each'),
        ('bbox', 'annotations', dict(image_id=None), 'image_id in each'),
        ('bbox', 'annotations', dict(image_id=[1]), 'image_id in each'),
        ('bbox', 'annotations', dict(bbox=[1, 2, 3]), 'bbox=.x, y, width'),
        ('bbox', 'annotations', dict(bbox=list('1234')), 'bbox=.x, y, width'),
        ('bbox', 'annotations', dict(area='600'), 'area, a number.*6'),
        ('bbox', 'annotations', dict(iscrowd='0'), 'iscrowd=0 or 1.*iscrowd'),
        ('bbox', 'categories', dict(id=2), 'one id for each category'),
        ('segm', 'annotations', dict(segmentation=None), 'segmentation='),
        ('segm', 'annotations', dict(segmentation=[]), 'segmentation='),
        ('segm', 'annotations', dict(segmentation=[[1, 2, 3, 4]]), 'segmenta'),
        ('segm', 'annotations', dict(segmentation={}), 'segmentation='),
        ('segm', 'images', dict(width=None), 'width and height of each image'),
    ],
)
def test_odd_files_are_told_at_the_start(write, kind, part, change, words):
    data = content()
    data[part][0].update(change)
    path = write(data)
    with pytest.raises(
        ValueError, match=f'val.json.*a COCO file with {words}.*Fix: '
    ) as raised:
        FrequencyGroupAP(path, metric=kind)
    assert len(str(raised.value)) < 600 + len(path)


def test_ids_in_quotes(write):
    data = content()
    for one in data['annotations']:
        one['category_id'] = str(one['category_id'])
    with pytest.raises(ValueError, match="'1' is not 1"):
        FrequencyGroupAP(write(data))


def test_names_that_are_numbers(write):
    data = content()
    for number, one in enumerate(data['categories']):
        one['name'] = number
    assert build(write(data), classes=tuple('0123')).category_ids() == [
        one['id'] for one in data['categories']
    ]


def test_a_doubled_category(write):
    data = content()
    data['categories'].append(dict(id=99, name='cat'))
    with pytest.raises(ValueError, match="several ids for 'cat'.*the second"):
        build(write(data)).check_names()


class Data(list):
    cat_ids = (9, 2, 4, 7)

    def __init__(self, ann_file, ids=range(8)):
        super().__init__(dict(img_id=i) for i in ids)
        self.ann_file = str(ann_file)

    get_data_info = list.__getitem__


def test_the_file_of_other_data(write, tmp_path, caplog):
    path = write(content())
    metric = build(path)
    metric.check_run(torch.nn.Linear(1, 1), Data(path))
    assert not caplog.records
    metric.check_run(torch.nn.Linear(1, 1), Data(tmp_path / 'other.json'))
    words = f"ann_file='{path}', expected the file of the evaluated data set"
    assert words in caplog.text and 'other.json' in caplog.text
    other = Data(tmp_path / 'other.json', ids=[7, 8])
    with pytest.raises(ValueError, match='other.json.*Fix: '):
        metric.check_run(torch.nn.Linear(1, 1), other)


def test_masks_of_a_model_that_predicts_boxes_alone(write):
    data = content()
    path = write(data)
    metric = build(path, metric='segm')
    with pytest.raises(ValueError, match="'segm'.*Linear.*metric='bbox'"):
        metric.check_run(torch.nn.Linear(1, 1), Data(path))
    head = torch.nn.ModuleDict(dict(mask_head=torch.nn.Linear(1, 1)))
    metric.check_run(head, Data(path))
    with pytest.raises(ValueError, match="'segm'.*Fix: write metric='bbox'"):
        metric.process({}, detections(data))


def test_no_file_at_all(tmp_path):
    for path in (tmp_path / 'val.json', tmp_path):
        with pytest.raises(
            FileNotFoundError, match=f"FrequencyGroupAP: ann_file='{path}'"
        ):
            FrequencyGroupAP(str(path))


@pytest.mark.parametrize('area', [{}, dict(area=None)])
def test_boxes_of_unknown_area(write, area):
    data = content()
    right = build(write(data))
    right.process({}, detections(data))
    expected = right.evaluate(8)
    for one in data['annotations']:
        del one['area']
        one.update(area)
    metric = build(write(data))
    metric.process({}, detections(data))
    assert metric.evaluate(8) == expected


def test_unknown_metric(write):
    with pytest.raises(ValueError, match="metric='proposal'"):
        FrequencyGroupAP(write(content()), metric='proposal')


def test_table(write, caplog):
    data = content()
    metric = build(write(data), per_class=True)
    metric.process({}, detections(data))
    with caplog.at_level('INFO'):
        metric.evaluate(8)
    table = caplog.records[-1].getMessage().splitlines()
    assert table[1].split() == (
        'label class training (image) share in % group AP AP50 objects'.split()
    )
    assert table[5].split()[:5] == ['3', 'yak', '3', '0.523', 'rare']
    assert [row.split()[-1] for row in table[2:]] == ['4'] * 4
