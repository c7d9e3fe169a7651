# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Logit adjustment at test time, for a model trained with any loss."""

from __future__ import annotations

import functools
from typing import Any, Callable, Iterator

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from ..losses import LongTailLoss
from ..losses.arguments import number
from ..priors import ClassCounts, load_class_counts
from ..priors.shift import Background, sigmoid_shift, softmax_shift
from ..registry import HOOKS
from .class_prior import counts_of_training_data

# Heads whose forward gives probabilities, masks or boxes in place of logits.
_UNFIT = {'TOODHead', 'SOLOHead', 'SOLOV2Head', 'YOLOV3Head', 'YOLACTHead'}


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

    def __init__(
        self,
        tau: float = 1.0,
        class_counts: Any = 'auto',
        count_unit: str | None = None,
        background: Background = 'keep_odds',
    ) -> None:
        self.tau = number('PostHocLogitAdjustmentHook', 'tau', tau, low=0)
        if background != 'keep_odds' and not (
            isinstance(background, float) and 0 < background < 1
        ):
            raise ValueError(
                f'PostHocLogitAdjustmentHook: background={background!r}, '
                "expected 'keep_odds' or a float in (0, 1)"
            )
        self.background = background
        self.count_unit = count_unit
        self._counts: ClassCounts | None = None
        if not (isinstance(class_counts, str) and class_counts == 'auto'):
            self._counts = load_class_counts(class_counts, unit=count_unit)
        self._undo: list[Callable[[], None]] = []

    def before_val(self, runner: Runner) -> None:
        self._adjust(runner)

    def before_test(self, runner: Runner) -> None:
        self._adjust(runner)

    def after_val(self, runner: Runner) -> None:
        self._restore()

    def after_test(self, runner: Runner) -> None:
        self._restore()

    def _adjust(self, runner: Runner) -> None:
        self._restore()
        if self._counts is None:
            self._counts = counts_of_training_data(runner, self.count_unit)
        classifiers = list(_classifiers(runner.model))
        if not classifiers:
            raise RuntimeError(
                'PostHocLogitAdjustmentHook: no classification head found in '
                f'{type(runner.model).__name__}; it knows heads with '
                'loss_cls (mmdet), loss_module (mmpretrain) or loss_decode '
                '(mmseg)'
            )
        corrected = [
            name
            for name, loss in runner.model.named_modules()
            if isinstance(loss, LongTailLoss)
            and (1 if loss.tau is None else loss.tau) > 0
        ]
        if corrected:
            runner.logger.warning(
                'Double correction: the model was built with '
                f'{", ".join(corrected)}, whose training already corrects '
                'for the prior. Post-hoc adjustment is for models trained '
                'without it.'
            )
        for name, module, method in classifiers:
            unfit = _UNFIT & {cls.__name__ for cls in type(module).__mro__}
            if unfit:
                raise ValueError(
                    f'PostHocLogitAdjustmentHook: {type(module).__name__} '
                    f'({name}) does not give the logits of its classes first '
                    'and is not supported; expected a RoI, dense or '
                    'DETR-type head that does'
                )
            setattr(
                module, method, self._adjusted(module, getattr(module, method))
            )
            self._undo.append(functools.partial(delattr, module, method))
            runner.logger.info(
                f'post-hoc logit adjustment of {name}: tau={self.tau}'
            )

    def _restore(self) -> None:
        while self._undo:
            self._undo.pop()()

    def _adjusted(self, head: nn.Module, forward: Callable) -> Callable:

        @functools.wraps(forward)
        def wrapper(*args, **kwargs):
            out = forward(*args, **kwargs)
            # A head of mmpretrain gives logits alone, and may give several.
            if isinstance(out, tuple) and not hasattr(head, 'loss_module'):
                return (self._subtract(head, out[0]), *out[1:])
            return self._subtract(head, out)

        return wrapper

    def _subtract(self, head: nn.Module, logits: Any) -> Any:
        if isinstance(logits, (list, tuple)):
            return type(logits)(self._subtract(head, x) for x in logits)
        assert self._counts is not None
        counts = torch.tensor(self._counts.counts, device=logits.device)
        num_classes = counts.numel()
        dim, columns = _class_dim(head, logits)
        shift = (
            sigmoid_shift(counts, self.background)
            if columns == num_classes and _uses_sigmoid(head)
            else softmax_shift(counts, columns, self.background)
        )
        if shift.numel() != columns:
            raise ValueError(
                f'PostHocLogitAdjustmentHook: {type(head).__name__} gives '
                f'{columns} logit columns, class_counts are {num_classes}; '
                'expected as many, or one more for background'
            )
        shift = self.tau * shift.to(logits.dtype)
        if dim == logits.dim() - 1:
            return logits - shift
        # Anchor-based maps are (N, A * K, H, W), anchors outermost.
        shift = shift.repeat(logits.size(dim) // columns)
        return logits - shift.view(-1, *([1] * (logits.dim() - dim - 1)))


def _classifiers(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Modules that classify, without proposal networks, and their method."""
    for name, module in model.named_modules():
        if hasattr(module, 'encode_decode'):
            # The heads of a segmentor may feed each other (OCRNet,
            # PointRend), so that only what it returns may be adjusted.
            head = module.decode_head
            head = head[-1] if isinstance(head, nn.ModuleList) else head
            if hasattr(head, 'loss_decode'):
                yield name or type(module).__name__, module, 'encode_decode'
        elif 'rpn' not in name and any(
            isinstance(getattr(module, attr, None), nn.Module)
            for attr in ('loss_cls', 'loss_module')
        ):
            yield name, module, 'forward'


def _uses_sigmoid(head: nn.Module) -> bool:
    # BBoxHead has C + 1 columns and a softmax over them whatever
    # loss.use_sigmoid says, so this is asked of C columns only.
    loss = getattr(head, 'loss_cls', getattr(head, 'loss_module', None))
    return bool(getattr(loss, 'use_sigmoid', False))


def _class_dim(head: Any, logits: Tensor) -> tuple[int, int]:
    """Dimension of the classes, and number of columns of one set of them."""
    if hasattr(head, 'prior_generator'):
        # Dense heads: maps (N, A * K, H, W)
        return 1, head.cls_out_channels
    if hasattr(head, 'encode_decode'):
        return 1, logits.size(1)
    return logits.dim() - 1, logits.size(-1)
