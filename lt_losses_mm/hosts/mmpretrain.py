# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""MMPretrain."""

from __future__ import annotations

from torch import nn

from .record import Host

MMPRETRAIN = Host(
    name='mmpretrain',
    loss='loss_module',
    last_layer='fc',
    has_background=False,
    refused={
        'BEiTV1Head': 'predicts tokens of an image',
        'BEiTV2Head': 'predicts tokens of an image',
        'ContrastiveHead': 'compares two views of an image',
        'MoCoV3Head': 'compares two views of an image',
    },
    classifies=lambda head: isinstance(
        getattr(head, 'loss_module', None), nn.Module
    ),
    several_logits=True,
    even_samplers={'SequentialSampler', 'RepeatAugSampler'},
    fold_wrappers={'KFoldDataset'},
)
