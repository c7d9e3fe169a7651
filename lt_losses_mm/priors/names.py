# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Which name belongs to which label: said, compared, and joined by name."""

from __future__ import annotations

import numpy as np

from ..messages import listed
from .counts import ClassCounts

_CAUSES = dict(
    pixel='masks whose values are no labels (0 and 255, colours), an '
    'ignore_index that is a class, or reduce_zero_label',
    box='a name in metainfo.classes that the annotations spell otherwise, '
    'or a filter that takes all its images',
)


def empty_classes(counts: ClassCounts) -> str | None:
    """What to warn of where classes have no sample; None if all have one.

    It names the classes, the unit, the share that was ignored
    (``counts.ignored``) and what causes it most often.

    Args:
        counts: As they were counted.
    """
    empty = np.flatnonzero(counts.counts == 0).tolist()
    if not empty:
        return None
    which = [counts.names[i] if counts.names else i for i in empty]
    ignored = (
        f' ({100 * counts.ignored:.3g} % of all {counts.unit}s are ignored)'
        if counts.ignored
        else ''
    )
    cause = _CAUSES['pixel' if counts.unit == 'pixel' else 'box']
    return (
        f'{len(empty)} of {counts.num_classes} classes have no training '
        f'sample, counted by {counts.unit}{ignored}: {listed(which)}; they '
        'are treated as being as rare as the rarest class that has one. If '
        f'that is not so in your data, look for {cause}.'
    )
