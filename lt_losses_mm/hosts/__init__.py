# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""One record for each host: all that the package knows of its heads."""

from __future__ import annotations

from typing import Iterator

from torch import nn

from .mmdet import MMDET
from .mmpretrain import MMPRETRAIN
from .mmseg import MMSEG
from .record import Host, is_any

HOSTS = (MMDET, MMPRETRAIN, MMSEG)


def host_of(head: nn.Module) -> Host:
    """The host of a module that a loss belongs to.

    A head that holds it under no host's name is taken for one of mmdet,
    whose heads have rows of background.
    """
    return next((h for h in HOSTS if hasattr(head, h.loss)), MMDET)


def heads(model: nn.Module) -> Iterator[tuple[str, nn.Module, Host]]:
    """Modules that own a classification loss, but for proposal networks."""
    for name, module in model.named_modules():
        if 'rpn' in name:
            continue
        for host in HOSTS:
            if isinstance(getattr(module, host.loss, None), nn.Module):
                yield name, module, host
                break


def classifiers(model: nn.Module) -> Iterator[tuple[str, nn.Module, Host]]:
    """Modules that logits of classes leave, but for proposal networks."""
    for name, module in model.named_modules():
        if 'rpn' in name:
            continue
        for host in HOSTS:
            if host.classifies(module):
                yield name or type(module).__name__, module, host
                break


__all__ = [
    'HOSTS',
    'MMDET',
    'MMPRETRAIN',
    'MMSEG',
    'Host',
    'classifiers',
    'heads',
    'host_of',
    'is_any',
]
