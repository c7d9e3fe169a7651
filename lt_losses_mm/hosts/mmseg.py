# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""MMSegmentation."""

from __future__ import annotations

from typing import Any

from torch import nn

from .record import Host


def _classifies(module: Any) -> bool:
    """A segmentor, not its heads.

    They may feed each other (OCRNet, PointRend), so that only what the
    segmentor returns may be adjusted.
    """
    if not hasattr(module, 'encode_decode'):
        return False
    head = module.decode_head
    head = head[-1] if isinstance(head, nn.ModuleList) else head
    return hasattr(head, 'loss_decode')


MMSEG = Host(
    name='mmseg',
    loss='loss_decode',
    last_layer='conv_seg',
    has_background=False,
    count_unit='pixel',
    refused={
        'STDCHead': 'tells boundaries from the rest, and no classes apart',
        'SideAdapterCLIPHead': 'accepts losses of fixed names alone',
    },
    other_losses={'loss_se_decode': 'tells which classes an image has'},
    listed_losses={
        'DDRHead': ('', ''),
        'PIDHead': ('', '', 'tells boundaries from the rest', ''),
    },
    classifies=_classifies,
    method='encode_decode',
    class_dim=lambda segmentor, logits: (1, logits.size(1)),
    mixing_wrappers={'MultiImageMixDataset'},
    mask_loader=('mmseg.datasets.transforms', 'LoadAnnotations'),
)
