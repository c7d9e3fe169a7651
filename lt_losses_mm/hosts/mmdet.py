# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""MMDetection."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .record import Host, is_any, last_dim

_QUALITY_HEADS = {
    'DDQAuxLoss',
    'GFLHead',
    'RTMDetHead',
    'TOODHead',
    'VFNetHead',
}


_PROPOSALS = 'tells objects from background, and no classes apart'


def _learns_quality(head: nn.Module) -> bool:
    # VFNetHead passes labels if use_vfl=False.
    return is_any(head, _QUALITY_HEADS) and getattr(head, 'use_vfl', True)


def _class_dim(head: Any, logits: Tensor) -> tuple[int, int]:
    if hasattr(head, 'prior_generator'):
        # Dense heads: maps (N, A * K, H, W)
        return 1, head.cls_out_channels
    return last_dim(head, logits)


MMDET = Host(
    name='mmdet',
    loss='loss_cls',
    last_layer='fc_cls',
    has_background=True,
    refused={
        'ATSSVLFusionHead': 'compares boxes with words, not classes',
        'AutoAssignHead': 'never calls loss_cls',
        'CenterNetUpdateHead': 'learns heat maps',
        'FSAFHead': 'adds up unreduced terms of each class',
        'FreeAnchorRetinaHead': 'never calls loss_cls',
        'GARPNHead': _PROPOSALS,
        'GroundingDINOHead': 'compares boxes with words, not classes',
        'MultiInstanceBBoxHead': 'pairs its boxes by unreduced terms',
        'PAAHead': 'adds up unreduced terms of each class',
        'RPNHead': _PROPOSALS,
        'YOLOV3Head': 'passes positive anchors alone',
        'YOLOXHead': 'passes positive anchors alone',
    },
    other_losses={
        'loss_bbox_cls': 'chooses between the two sides of a bucket',
        'loss_center_heatmap': 'learns heat maps of points',
        'loss_centerness': 'learns one number a box',
        'loss_conf': 'tells objects from background',
        'loss_grid': 'learns heat maps of points',
        'loss_heatmap': 'learns heat maps of points',
        'loss_iou': 'learns one number a box',
        'loss_loc': 'tells where anchors are',
        'loss_mask': 'tells an object from the rest of its box',
        'loss_obj': 'tells objects from background',
        'loss_point': 'tells an object from the rest of its box',
        'loss_segm': 'tells each class from the rest, pixel by pixel',
    },
    focal={
        'ATSSHead',
        'ConditionalDETRHead',
        'DDODHead',
        'DIIHead',
        'DeformableDETRHead',
        'FCOSHead',
        'FoveaHead',
        'GARetinaHead',
        'RepPointsHead',
        'RetinaHead',
        'RetinaSepBNHead',
        'SABLRetinaHead',
        'SOLOHead',
        'YOLOFHead',
    },
    sigmoid_only={
        'CondInstBboxHead',
        'ConditionalDETRHead',
        'DeformableDETRHead',
        'FoveaHead',
        'PISARetinaHead',
        'SOLOHead',
        'YOLOFHead',
    },
    softmax_only={'MaskFormerHead', 'Mask2FormerHead', 'SABLHead'},
    learns_quality=_learns_quality,
    passes_probabilities={'DDQAuxLoss', 'TOODHead'},
    keeps_quality={'DETRHead'},
    own_bias={'DIIHead'},
    no_logits={
        'TOODHead',
        'SOLOHead',
        'SOLOV2Head',
        'YOLOV3Head',
        'YOLACTHead',
    },
    classifies=lambda head: isinstance(
        getattr(head, 'loss_cls', None), nn.Module
    ),
    class_dim=_class_dim,
    class_samplers={'ClassAwareSampler'},
    mixing_wrappers={'MultiImageMixDataset'},
)
