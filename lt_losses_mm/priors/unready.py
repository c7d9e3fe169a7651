# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Why a data set could not be made ready, where its host has no sentence."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

from ..messages import fault, listed
from .names import categories_of, describe_leaf, label_names, object_names


def why_unready(leaf: Any, error: Exception) -> ValueError | None:
    """What to raise instead of an error in ``full_init``, if it is known.

    Args:
        leaf: A data set that read its annotations, and then failed.
        error: What it raised. Known are numpy's, where no sample is left to
            be serialized, and MMPretrain's, where folders are not as many as
            ``metainfo.classes``.

    Returns:
        None for any other error.
    """
    nothing_left = (
        isinstance(error, ValueError)
        and 'need at least one array' in str(error)
        and not len(getattr(leaf, 'data_list', [leaf]))
    )
    if not nothing_left and not (
        isinstance(error, AssertionError)
        and getattr(leaf, 'folder_to_idx', None)
    ):
        return None
    try:
        names = label_names(leaf)
    except ValueError as known:
        return known
    return _nothing_left(leaf, names) if nothing_left else None


def _nothing_left(leaf: Any, names: Any) -> ValueError:
    """Where the names are those of the file, or nobody knows them."""
    expected = f'a sample, but none is left in {type(leaf).__name__}'
    folder = (getattr(leaf, 'data_prefix', None) or {}).get('img_path')
    if hasattr(leaf, 'img_suffix') and not os.path.isfile(leaf.ann_file):
        endings = Counter(
            os.path.splitext(name)[1]
            for _, _, files in os.walk(folder or '')
            for name in files
        )
        there = listed(ending for ending, _ in endings.most_common())
        return fault(
            'img_suffix',
            leaf.img_suffix,
            f'the end of file names in {folder!r}, which has '
            f'{there or "no file"}; no sample is left',
            f'write img_suffix={endings.most_common(1)[0][0]!r}'
            if endings
            else 'correct data_root or data_prefix',
            type(leaf).__name__,
        )
    fix = 'fill that file, or correct its path'
    filter_cfg = getattr(leaf, 'filter_cfg', None)
    if filter_cfg:
        expected += (
            f' by filter_cfg={dict(filter_cfg)}; its classes are '
            f'{listed(names or ())}'
        )
        there = listed(str(c.get('name')) for c in categories_of(leaf) or ())
        if there:
            expected += f', and the categories of the file are {there}'
        fix = (
            'look in that file for boxes of these classes, their size and '
            'iscrowd, or leave filter_cfg out'
        )
    if hasattr(leaf, '_parse_instance_info'):
        there = listed(sorted(object_names(leaf)))
        expected += f', and its XML files have {there or "no object"}'
        fix = (
            'write metainfo=dict(classes=(...)) with names of the XML files'
            if there
            else fix
        )
    return fault('ann_file', leaf.ann_file, expected, fix, describe_leaf(leaf))
