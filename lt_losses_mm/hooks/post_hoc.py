# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Logit adjustment at test time, for a model trained with any loss."""

from __future__ import annotations

import functools
import math
from typing import Any, Callable

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from ..hosts import HOSTS, Host, classifiers, is_any
from ..losses import LongTailLoss
from ..messages import describe, fault
from ..priors import ClassCounts, joined, load_class_counts, same_labels
from ..priors.shift import Background, sigmoid_shift, softmax_shift
from ..registry import HOOKS
from .segmentation import evaluated_label
from .training_data import (
    EVALUATED,
    TRAINING,
    counts_of_training_data,
    names_of,
)


@HOOKS.register_module()
class PostHocLogitAdjustmentHook(Hook):
    r"""Subtracts :math:`\tau s` from the logits of each classifier at test.

    The post-hoc form of logit adjustment (Menon et al., ICLR 2021, Eq. 9):
    a model trained with plain cross-entropy predicts from
    :math:`z - \tau\log\pi`. The shift s is that of the training losses, with
    their background policy. It works on the output of the heads' ``forward``
    (of mmseg: of the segmentor's ``encode_decode``) during validation and
    test and leaves training alone, so it serves mmpretrain's heads, mmdet's
    RoI, dense and DETR-type heads and mmseg's segmentors alike.

    Use it on models trained *without* a prior: with Balanced Softmax the
    correction is in the weights already.

    Args:
        tau (float): Strength, >= 0.
        class_counts (str | sequence): As in the losses; ``'auto'`` counts the
            config's training data set.
        count_unit (str, optional): As in the losses.
        background (str | float): ``'keep_odds'`` or the prior of background.
    """

    _owner = 'PostHocLogitAdjustmentHook'

    def __init__(
        self,
        tau: float = 1.0,
        class_counts: Any = 'auto',
        count_unit: str | None = None,
        background: Background = 'keep_odds',
    ) -> None:
        if (
            isinstance(tau, bool)
            or not isinstance(tau, (int, float))
            or not 0 <= tau < math.inf
        ):
            raise fault('tau', tau, 'a finite number >= 0', owner=self._owner)
        self.tau = float(tau)
        if background != 'keep_odds' and not (
            isinstance(background, float) and 0 < background < 1
        ):
            raise fault(
                'background',
                background,
                "'keep_odds' or a float in (0, 1)",
                owner=self._owner,
            )
        self.background = background
        self.count_unit = count_unit
        self._counts: ClassCounts | None = None
        self._auto = isinstance(class_counts, str) and class_counts == 'auto'
        if not self._auto:
            self._counts = load_class_counts(class_counts, unit=count_unit)
        self._undo: list[Callable[[], None]] = []

    def before_train(self, runner: Runner) -> None:
        """Compare at the start what the first validation would."""
        if names_of(runner._val_loop):
            self._take_counts(runner, 'val')

    def before_val(self, runner: Runner) -> None:
        self._adjust(runner, 'val')

    def before_test(self, runner: Runner) -> None:
        self._adjust(runner, 'test')

    def after_val(self, runner: Runner) -> None:
        self._restore()

    def after_test(self, runner: Runner) -> None:
        self._restore()

    def _take_counts(self, runner: Runner, mode: str) -> None:
        # The model's labels are those of the data that it is tested on.
        names = names_of(getattr(runner, f'_{mode}_loop', None))
        if self._counts is None:
            self._counts = counts_of_training_data(
                runner,
                self.count_unit,
                ignore_index=evaluated_label(runner.model),
            )
        if self._auto:
            same_labels(self._counts.names, TRAINING, names, EVALUATED)
        elif self._counts.names:
            self._counts = joined(self._counts, names, EVALUATED)

    def _adjust(self, runner: Runner, mode: str) -> None:
        self._restore()
        self._take_counts(runner, mode)
        found = list(classifiers(runner.model))
        if not found:
            known = ' or '.join(f'{h.loss} ({h.name})' for h in HOSTS)
            raise RuntimeError(
                describe(
                    'model',
                    type(runner.model).__name__,
                    f'a classification head, one with {known}',
                    owner=self._owner,
                )
            )
        corrected = [
            name
            for name, loss in runner.model.named_modules()
            if isinstance(loss, LongTailLoss) and loss.tau != 0
        ]
        if corrected:
            runner.logger.warning(
                'Double correction: the model was built with '
                f'{", ".join(corrected)}, whose training already corrects '
                'for the prior. Post-hoc adjustment is for models trained '
                'without it.'
            )
        for name, module, host in found:
            if is_any(module, host.no_logits):
                raise fault(
                    name,
                    type(module).__name__,
                    'a RoI, dense or DETR-type head that gives the logits of '
                    'its classes first',
                    owner=self._owner,
                )
            setattr(module, host.method, self._adjusted(module, host))
            self._undo.append(functools.partial(delattr, module, host.method))
            runner.logger.info(
                f'post-hoc logit adjustment of {name}: tau={self.tau}'
            )

    def _restore(self) -> None:
        while self._undo:
            self._undo.pop()()

    def _adjusted(self, head: nn.Module, host: Host) -> Callable:
        forward = getattr(head, host.method)

        @functools.wraps(forward)
        def wrapper(*args, **kwargs):
            out = forward(*args, **kwargs)
            if isinstance(out, tuple) and not host.several_logits:
                return (self._subtract(head, host, out[0]), *out[1:])
            return self._subtract(head, host, out)

        return wrapper

    def _subtract(self, head: nn.Module, host: Host, logits: Any) -> Any:
        if isinstance(logits, (list, tuple)):
            return type(logits)(self._subtract(head, host, x) for x in logits)
        assert self._counts is not None
        counts = torch.tensor(self._counts.counts, device=logits.device)
        num_classes = counts.numel()
        dim, columns = host.class_dim(head, logits)
        # BBoxHead has C + 1 columns and a softmax over them whatever
        # loss.use_sigmoid says, so this is asked of C columns only.
        loss = getattr(head, host.loss, None)
        shift = (
            sigmoid_shift(counts, self.background)
            if columns == num_classes and getattr(loss, 'use_sigmoid', False)
            else softmax_shift(counts, columns, self.background)
        )
        if shift.numel() != columns:
            raise fault(
                'class_counts',
                self._counts.counts.tolist(),
                f'as many as the {columns} logit columns of '
                f'{type(head).__name__}, or one less where it has background, '
                f'got {num_classes}',
                owner=self._owner,
            )
        shift = self.tau * shift.to(logits.dtype)
        if dim == logits.dim() - 1:
            return logits - shift
        # Anchor-based maps are (N, A * K, H, W), anchors outermost.
        shift = shift.repeat(logits.size(dim) // columns)
        return logits - shift.view(-1, *([1] * (logits.dim() - dim - 1)))
