# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Metrics that report the tail of the class distribution apart."""

from .frequency_group_ap import FrequencyGroupAP
from .frequency_group_iou import FrequencyGroupIoU
from .long_tail_accuracy import LongTailAccuracy

__all__ = ['FrequencyGroupAP', 'FrequencyGroupIoU', 'LongTailAccuracy']
