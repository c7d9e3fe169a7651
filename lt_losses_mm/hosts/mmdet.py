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
        'YOLOXHead': 'passes positive anchors alone',
        'FreeAnchorRetinaHead': 'never calls loss_cls',
        'AutoAssignHead': 'never calls loss_cls',
    },
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
