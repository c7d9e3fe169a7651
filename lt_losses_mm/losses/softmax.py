# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""What all losses over one softmax share."""

from __future__ import annotations

from ..kernels import softmax_rows
from .background import SoftmaxBackground
from .base import LongTailLoss


class SoftmaxLoss(LongTailLoss):
    """A softmax over classes, with background in it or beside it.

    With ``background='objectness'`` RoI heads get C + 2 logits: the classes
    compete among themselves on rows with an object, and two further logits
    tell objects from background on all rows; the test score is the product,
    as in Seesaw Loss (Wang et al., CVPR 2021, Sec. 3.3). Index labels only.
    """

    use_sigmoid = False
    rows = staticmethod(softmax_rows)
    background_family = SoftmaxBackground
    background_policies: tuple[str | type, ...] = (
        'keep_odds',
        'objectness',
        float,
    )
    plain_form = 'plain cross-entropy'
