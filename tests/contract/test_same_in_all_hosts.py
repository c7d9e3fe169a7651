"""One class, one number: the same rows through a head of each host."""

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.structures import PixelData
from torch.testing import assert_close

pytest.importorskip('mmdet')
pytest.importorskip('mmpretrain')
pytest.importorskip('mmseg')
import mmdet.registry
import mmpretrain.registry
import mmseg.registry
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample

C = 5


def test_same_loss(strength, cfg, midway, observed, rows):
    name, arguments = strength
    logits, labels = rows(n=12)
    config = cfg(name, **arguments)

    classifier = midway(
        mmpretrain.registry.MODELS.build(dict(type='ClsHead', loss=config))
    )
    of_images = classifier.loss(
        (logits,), [DataSample().set_gt_label(int(y)) for y in labels]
    )

    segmentor = midway(
        mmseg.registry.MODELS.build(
            ConfigDict(
                type='FCNHead',
                in_channels=2,
                channels=2,
                num_classes=C,
                loss_decode=config,
            )
        )
    )
    sample = SegDataSample(gt_sem_seg=PixelData(data=labels.view(1, 3, 4)))
    of_pixels = segmentor.loss_by_feat(logits.T.reshape(1, C, 3, 4), [sample])

    detector = midway(
        mmdet.registry.MODELS.build(
            dict(
                type='BBoxHead',
                in_channels=2,
                roi_feat_size=1,
                num_classes=C,
                loss_cls=config,
            )
        )
    )
    scores = logits
    if detector.fc_cls.out_features == C + 1:
        # A background column that cannot win leaves the classes alone.
        scores = torch.cat([logits, torch.full((12, 1), -60.0)], dim=1)
    of_rois = detector.loss(
        scores, None, None, labels, torch.ones(12), None, None
    )

    assert_close(of_images['loss'], of_rois['loss_cls'])
    assert_close(of_images['loss'], of_pixels[segmentor.loss_decode.loss_name])
    for head in (detector, segmentor):
        assert_close(
            observed(classifier), observed(head), rtol=1e-5, atol=1e-5
        )
