# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Backbones of the long-tail papers that the hosts lack."""

from __future__ import annotations

from .basic_block_resnet import BasicBlockResNet

__all__ = ['BasicBlockResNet']
