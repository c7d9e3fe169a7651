# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The base of every loss: all that is not the loss's own formula.

It owns class counts, label and weight conventions, reduction, and what the
heads of the three hosts ask of a loss. A subclass states its formula.
"""

from __future__ import annotations

import math
import re
from abc import ABCMeta, abstractmethod
from typing import Any, Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..kernels import Batch
from ..kernels.switch import is_compiling
from ..priors import ClassCounts, load_class_counts
from ..priors.shift import BACKGROUND_POLICIES, Background

_REDUCTIONS = ('none', 'mean', 'sum')


class LongTailLoss(nn.Module, metaclass=ABCMeta):
    """Plumbing shared by all losses of the package.

    Args:
        num_classes (int, optional): Number C of foreground classes. It may be
            left out: the class counts say it.
        class_counts (str | sequence): Training samples per class: a list, a
            file, the name of a benchmark (``'lvis_v1'``, ``'imagenet_lt'``,
            ...), or ``'auto'``, which counts the training data set before
            training starts. Stored in the checkpoint. By default ``'auto'``
            for losses with a prior; others need no counts, and use them, if
            given, in plots only.
        count_unit (str, optional): ``'image'``, ``'instance'`` or
            ``'pixel'``; by default what the literature uses for the task, see
            ``docs/class_counts.md``.
        background (str | float, optional): What becomes of background rows of
            a detection head: one of the loss's ``background_policies``, the
            first by default. For those of priors see
            :mod:`lt_losses_mm.priors.shift`.
        loss_weight (float): Factor on the reduced loss.
        reduction (str): ``'mean'``, ``'sum'`` or ``'none'``. The mean is
            over rows (samples, RoIs, anchors, pixels), or the sum divided by
            ``avg_factor`` where the head passes one.
        ignore_index (int, optional): Label of rows without a loss. By default
            255 for maps (N, C, H, W) and -100 for (N, C) logits; a head that
            passes its own value is obeyed.
        avg_non_ignore (bool): Whether the mean leaves out ignored rows, as in
            PyTorch. The default counts them, as mmseg's own cross-entropy
            does, so that exchanging the loss changes nothing else.
        class_weight (sequence, optional): Softmax losses only: factor on the
            rows of each class, one a logit column (with background last where
            the head has it). Mask2Former and DETR heads write this key.
        loss_name (str, optional): Name of the term in mmseg's logs, beginning
            with ``loss_``. By default from the class name.
        use_sigmoid (bool, optional): Dense and DETR-type heads of mmdet read
            this key of the loss config to choose their number of channels.
            If given, it has to agree with the loss.
        overwrite_logits (bool): Whether the gradient is written over the
            logits in the backward pass, which saves its memory. The logits
            must not be needed by any other backward computation (of another
            loss, or of an activation that saved them): that is an error of
            autograd then. Leaf tensors are never written over.

    Raises:
        ValueError: A hyper-parameter is out of range; the message names the
            key, the value, what was expected and the fix.
    """

    use_sigmoid: bool
    # Whether the formula reads class_counts.
    uses_counts: bool = True
    # ``float`` stands for a background prior given as a number.
    background_policies: tuple[str | type, ...] = (*BACKGROUND_POLICIES, float)
    class_counts: Tensor
    _class_weight: Tensor | None

    # mmdet asks three separate flags for one thing: that the loss, not the
    # head, knows channels, activation and accuracy. Any subset of them makes
    # a head mix two conventions.
    custom_cls_channels = True
    custom_activation = True
    custom_accuracy = True

    def __init__(
        self,
        num_classes: int | None = None,
        class_counts: str | Sequence[float] | Tensor | None = None,
        count_unit: str | None = None,
        background: Background | None = None,
        loss_weight: float = 1.0,
        reduction: str = 'mean',
        ignore_index: int | None = None,
        avg_non_ignore: bool = False,
        class_weight: Sequence[float] | None = None,
        loss_name: str | None = None,
        use_sigmoid: bool | None = None,
        overwrite_logits: bool = False,
    ) -> None:
        super().__init__()
        self.loss_weight = self._check_number('loss_weight', loss_weight)
        self.background = self._check_background(background)
        if reduction not in _REDUCTIONS:
            raise ValueError(
                self._say('reduction', reduction, f'one of {_REDUCTIONS}')
            )
        if use_sigmoid not in (None, self.use_sigmoid):
            other = (
                'BalancedSigmoidLoss' if use_sigmoid else 'BalancedSoftmaxLoss'
            )
            raise ValueError(
                self._say(
                    'use_sigmoid',
                    use_sigmoid,
                    f'{self.use_sigmoid}',
                    f'this loss has its own activation: remove the key, or '
                    f'take a loss of the other kind (such as {other})',
                )
            )
        if num_classes is not None and (
            not isinstance(num_classes, int) or num_classes < 1
        ):
            raise ValueError(
                self._say('num_classes', num_classes, 'an int >= 1 or None')
            )
        if class_weight is not None and self.use_sigmoid:
            raise ValueError(
                self._say(
                    'class_weight',
                    class_weight,
                    'None',
                    'sigmoid losses take no class_weight; remove it',
                )
            )
        self.reduction = reduction
        self.ignore_index = ignore_index
        self.avg_non_ignore = avg_non_ignore
        self.overwrite_logits = overwrite_logits
        self._loss_name = self._check_loss_name(loss_name)
        self._expected_classes = num_classes
        self._in_roi_head = False
        self._labels_checked = False
        self._remembered: Any = (None, None, None)  # key, counts, result
        self.count_unit = count_unit
        self.register_buffer('class_counts', torch.zeros(0))
        self.register_buffer(
            '_class_weight',
            None
            if class_weight is None
            else self._check_class_weight(class_weight),
            persistent=False,
        )
        if class_counts is None and self.uses_counts:
            class_counts = 'auto'
        self.auto_counts = (
            isinstance(class_counts, str) and class_counts == 'auto'
        )
        if not self.auto_counts and class_counts is not None:
            self.set_class_counts(
                load_class_counts(
                    class_counts, num_classes=num_classes, unit=count_unit
                )
            )

    # ---------------------------------------------------------------- counts
    @property
    def num_classes(self) -> int:
        """Number C of foreground classes, once it is known.

        Raises:
            AttributeError: Not known yet. ``hasattr`` is then false, and the
                class-count hooks of the hosts pass the loss over.
        """
        if self.class_counts.numel():
            return self.class_counts.numel()
        if self._expected_classes is not None:
            return self._expected_classes
        raise AttributeError('num_classes is unknown until class_counts are')

    def set_num_classes(self, num_classes: int, said_by: str = 'call') -> None:
        """Tell the loss C, where neither its config nor its counts do.

        Raises:
            ValueError: The loss knows another number.
        """
        self._check_num_classes(num_classes, said_by)
        self._expected_classes = num_classes

    def set_class_counts(self, class_counts: ClassCounts | Any) -> None:
        """Give the loss its class counts, in place of ``'auto'``.

        Args:
            class_counts (ClassCounts | sequence | str): All that the
                constructor takes, but ``'auto'``.
        """
        if not isinstance(class_counts, ClassCounts):
            class_counts = load_class_counts(
                class_counts,
                num_classes=self._expected_classes,
                unit=self.count_unit,
            )
        self.set_num_classes(class_counts.num_classes, 'class_counts')
        self.class_counts = torch.tensor(
            class_counts.counts,
            dtype=torch.float32,
            device=self.class_counts.device,
        )

    def remember(
        self, key: Any, counts: Tensor, compute: Callable[[Tensor], Any]
    ) -> Any:
        """``compute(counts)``, which ten operators on (C,) may be.

        As much as a kernel takes for a RoI head, and one operator to see
        that the last result still holds. An accelerator would have to wait
        for the answer, and transforms of torch.func cannot ask.
        """
        if (
            is_compiling()
            or counts.device.type != 'cpu'
            or torch._C._functorch.peek_interpreter_stack() is not None
        ):
            return compute(counts)
        known_key, known, result = self._remembered
        if known_key != key or not torch.equal(known, counts):
            result = compute(counts)
            self._remembered = key, counts.clone(), result
        return result

    def _check_num_classes(self, num_classes: int, said_by: str) -> None:
        known = getattr(self, 'num_classes', None)
        if known is not None and known != num_classes:
            raise ValueError(
                self._say(
                    'num_classes',
                    known,
                    f'{num_classes}, as {said_by} says',
                    'make both agree, or leave num_classes out',
                )
            )

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, *args, **kwargs
    ) -> None:
        key = prefix + 'class_counts'
        loaded = state_dict.get(key)
        if loaded is not None:
            known = getattr(self, 'num_classes', loaded.numel())
            if not self.auto_counts or not loaded.numel():
                # What the config states wins over the checkpoint's data set.
                state_dict[key] = self.class_counts
            elif loaded.numel() == known:
                self.class_counts = self.class_counts.new_zeros(loaded.shape)
            else:
                # An error of strict loading; a warning where a model is
                # fine-tuned for other classes, as for the classifier itself.
                state_dict[key] = self.class_counts
                error_msgs = args[-1]
                error_msgs.append(
                    self._say(
                        'num_classes',
                        known,
                        f'{loaded.numel()}, as {key} of the checkpoint says',
                        'test with the classes of training',
                    )
                )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        # Counts overflow in fp16 (65504), so `model.half()` only moves them.
        counts = self.class_counts
        super()._apply(fn, *args, **kwargs)
        self.class_counts = counts.to(self.class_counts.device)
        return self

    # --------------------------------------------------------------- forward
    @abstractmethod
    def row_loss(self, batch: Batch) -> Tensor:
        """The formula.

        Args:
            batch (Batch): Logits of (N, K) or (N, K, d1, ...), with K columns
                as :meth:`columns` says; index labels (N, d1, ...), of which C
                is background, or soft labels of the logits' shape.
                ``element_weight`` is this method's to apply, ``row_weight``
                is not; ``learns`` says whether statistics take notice.

        Returns:
            Tensor: Loss per row, (N, d1, ...); 0 for ignored rows.
        """

    # Whether labels may come as a tuple (labels, quality), as GFL heads pass.
    takes_quality = False

    # Whether labels may be soft.
    takes_soft_labels = True

    @property
    def needs_background(self) -> bool:
        """Whether some class gets no negative where there is no background."""
        return False

    @abstractmethod
    def columns(self, num_classes: int) -> tuple[int, ...]:
        """Numbers of logit columns that the loss can serve.

        Returns:
            tuple[int, ...]: Widest first. That of a RoI head is the first.
        """

    def forward(
        self,
        cls_score: Tensor,
        label: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
        ignore_index: int | None = None,
    ) -> Tensor:
        """Loss of a head's logits; the call of all three hosts.

        Args:
            cls_score (Tensor): Logits (N, K) or (N, K, d1, ...), any
                floating dtype; computed in fp32 or wider.
            label (Tensor): (N, d1, ...) integer labels in [0, C), with C for
                background where the head has it, or soft labels of the
                logits' shape.
            weight (Tensor, optional): Factor per row (N, d1, ...), or, for
                sigmoid losses, per row and class (any shape with as many
                elements as the logits).
            avg_factor (float | Tensor, optional): Divisor of the sum in place
                of the number of rows. Needs ``reduction='mean'``; ignored for
                ``'none'``.
            reduction_override (str, optional): In place of ``reduction``.
            ignore_index (int, optional): In place of the constructor's.

        Returns:
            Tensor: Scalar, or (N, d1, ...) for ``'none'``.

        Raises:
            ValueError: Labels, weights or columns do not fit the loss.
            RuntimeError: ``class_counts='auto'`` was never filled.
        """
        if reduction_override not in (None, *_REDUCTIONS):
            raise ValueError(
                self._say(
                    'reduction_override',
                    reduction_override,
                    f'None or one of {_REDUCTIONS}',
                )
            )
        reduction = reduction_override or self.reduction
        if reduction == 'sum' and avg_factor is not None:
            raise ValueError(
                self._say(
                    'reduction',
                    'sum',
                    "'mean' or 'none' where avg_factor is passed",
                )
            )
        if ignore_index is None:
            ignore_index = self.ignore_index
        if ignore_index is None:
            ignore_index = -100 if cls_score.dim() == 2 else 255
        quality = None
        if isinstance(label, (tuple, list)) and self.takes_quality:
            label, quality = label
        if not isinstance(label, Tensor):
            raise TypeError(
                f'{type(self).__name__}: labels of type '
                f'{type(label).__name__}, expected a tensor. Heads that '
                'learn a quality with the class (GFL, RTMDet, TOOD, VFNet) '
                'pass more than labels; they need a quality focal loss, such '
                'as EqualizedQualityFocalLoss.'
            )
        label = self._check_input(cls_score, label, ignore_index)
        if label.is_floating_point() and not self.takes_soft_labels:
            raise ValueError(
                f'{type(self).__name__}: soft labels, expected index labels: '
                'the method is defined for one label a row; remove Mixup, '
                'CutMix, label smoothing and to_onehot, or take another loss'
            )
        if quality is not None and quality.shape != label.shape:
            raise ValueError(
                f'{type(self).__name__}: quality of shape '
                f'{tuple(quality.shape)}, expected that of index labels, '
                f'{tuple(cls_score.shape[:1] + cls_score.shape[2:])}'
            )

        row_weight, element_weight = self._split_weight(
            weight, cls_score, label
        )
        soft = label.is_floating_point()
        class_weight = self._class_weight
        if class_weight is not None and soft:
            shape = (1, -1) + (1,) * (cls_score.dim() - 2)
            label = label * class_weight.to(label).view(shape)
        counted = None  # all rows
        if not soft and (self.avg_non_ignore or class_weight is not None):
            ignored = label == ignore_index
            counted = torch.ones_like(
                label, dtype=torch.promote_types(cls_score.dtype, torch.float)
            )
            if class_weight is not None:
                # What mmseg divides by: the sum of the labels' weights.
                counted = class_weight.to(counted)[
                    label.masked_fill(ignored, 0)
                ]
                row_weight = (
                    counted if row_weight is None else counted * row_weight
                )
            counted = counted.masked_fill(ignored, 0)
        rows = self.row_loss(
            Batch(
                cls_score,
                label,
                ignore_index,
                element_weight,
                row_weight,
                quality,
                learns=self.training
                and torch.is_grad_enabled()
                and cls_score.numel() > 0,
                overwrite=self.overwrite_logits,
            )
        )
        if row_weight is not None:
            rows = rows * row_weight.to(rows.dtype)

        if reduction == 'none':
            return self.loss_weight * rows
        total = rows.sum()
        if reduction == 'sum':
            return self.loss_weight * total
        eps = torch.finfo(torch.float32).eps
        divisor: float | Tensor
        if isinstance(avg_factor, Tensor):
            # DETR-type heads give it in the logits' type, where eps is 0.
            wide = torch.promote_types(avg_factor.dtype, torch.float32)
            avg_factor = avg_factor.to(wide)
        if avg_factor is not None:
            # The hosts' own guard: heads without positives may pass 0.
            divisor = avg_factor + eps
        elif counted is None:
            # An empty batch has a loss of 0.
            divisor = max(rows.numel(), 1)
        else:
            divisor = counted.sum().clamp(min=eps)
        return total * (self.loss_weight / divisor)

    def _check_input(
        self, logits: Tensor, labels: Tensor, ignore_index: int
    ) -> Tensor:
        if self.uses_counts and not self.class_counts.numel():
            raise RuntimeError(
                f"{type(self).__name__}: class_counts='auto' was not filled "
                'before the first forward. A Runner does that by itself '
                'before training (ClassPriorHook); in a loop of your own '
                'call set_class_counts(...), or give class_counts as a list, '
                'a file or the name of a benchmark.'
            )
        if not hasattr(self, 'num_classes'):
            raise RuntimeError(
                f'{type(self).__name__}: num_classes=None, expected the '
                'number of classes before the first forward. A Runner takes '
                'it from heads that have a num_classes; elsewhere give it to '
                'the loss.'
            )
        num_classes, columns = self.num_classes, logits.size(1)
        # Maps have no background column: one too many is a wrong count.
        if columns not in self.columns(num_classes) or (
            logits.dim() > 2 and columns != num_classes
        ):
            raise ValueError(
                self._say(
                    'num_classes',
                    num_classes,
                    self._expected_columns(num_classes, columns),
                )
            )
        if (
            self._class_weight is not None
            and self._class_weight.numel() != columns
        ):
            raise ValueError(
                self._say(
                    'class_weight',
                    self._class_weight.tolist(),
                    f'{columns} values, one a logit column',
                )
            )
        if labels.shape == logits.shape:
            # mmpretrain's preprocessor makes one-hot labels of integers.
            return labels if labels.is_floating_point() else labels.float()
        if labels.is_floating_point():
            raise ValueError(
                f'{type(self).__name__}: soft labels of shape '
                f'{tuple(labels.shape)} do not match the logits '
                f'{tuple(logits.shape)}; index labels must be integers'
            )
        if labels.shape != logits.shape[:1] + logits.shape[2:]:
            raise ValueError(
                f'{type(self).__name__}: labels of shape '
                f'{tuple(labels.shape)} do not match logits of shape '
                f'{tuple(logits.shape)}; expected '
                f'{tuple(logits.shape[:1] + logits.shape[2:])}'
            )
        labels = labels.long()
        self._check_range(
            labels, num_classes, columns, logits.dim() == 2, ignore_index
        )
        return labels

    def _check_range(
        self,
        labels: Tensor,
        num_classes: int,
        columns: int,
        may_have_background: bool,
        ignore_index: int,
    ) -> None:
        if is_compiling() or not labels.numel():
            return
        # On an accelerator the look at the values stops the host, so only
        # the first batch is looked at there.
        if labels.device.type != 'cpu' and self._labels_checked:
            return
        self._labels_checked = True
        with_background = may_have_background and (
            self.use_sigmoid or columns > num_classes
        )
        largest = num_classes if with_background else num_classes - 1
        low, high = labels.aminmax()
        if low.item() >= 0 and high.item() <= largest:
            return
        wrong = (labels != ignore_index) & ((labels < 0) | (labels > largest))
        if wrong.any():
            raise ValueError(
                f'{type(self).__name__}: label {int(labels[wrong][0])} is '
                f'out of range: expected 0..{largest} '
                f'({num_classes} classes'
                f'{" and background" if with_background else ""}) or '
                f'ignore_index={ignore_index}. Check num_classes of the head, '
                'the classes of the data set, and (segmentation) '
                'reduce_zero_label and ignore_index.'
            )

    def _split_weight(
        self, weight: Tensor | None, logits: Tensor, labels: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """Tell a weight per row from one per row and class."""
        if weight is None:
            return None, None
        rows = logits.shape[:1] + logits.shape[2:]
        if weight.shape == rows:
            return weight, None
        if self.use_sigmoid and weight.numel() == logits.numel():
            return None, weight.reshape(logits.shape)
        raise ValueError(
            f'{type(self).__name__}: weight of shape {tuple(weight.shape)} '
            f'fits neither rows {tuple(rows)}'
            + (
                f' nor logits {tuple(logits.shape)}'
                if self.use_sigmoid
                else ''
            )
        )

    # ------------------------------------------------------ host conventions
    @property
    def loss_name(self) -> str:
        """Name of the term in the logs of mmseg."""
        return self._loss_name

    def get_cls_channels(self, num_classes: int) -> int:
        """Output channels of a RoI head (mmdet ``BBoxHead``).

        Only RoI heads ask, so the call also tells the loss that its
        activation has to carry the background column.
        """
        self.set_num_classes(num_classes, 'bbox_head.num_classes')
        self._in_roi_head = True
        return self.columns(num_classes)[0]

    @abstractmethod
    def scores(self, cls_score: Tensor) -> tuple[Tensor, Tensor]:
        """Test-time scores, without the prior.

        Returns:
            tuple[Tensor, Tensor]: (N, C) of the classes and (N, 1) of
            background.
        """

    def get_activation(self, cls_score: Tensor) -> Tensor:
        """Test-time scores as the head wants them.

        Args:
            cls_score (Tensor): (N, K) logits.

        Returns:
            Tensor: (N, C + 1) with background last for RoI heads, whose NMS
            drops the last column; (N, C) for dense heads.
        """
        foreground, background = self.scores(cls_score)
        if self._in_roi_head:
            return torch.cat([foreground, background], dim=-1)
        return foreground

    def get_accuracy(self, cls_score: Tensor, labels: Tensor) -> dict:
        """Accuracy in percent for mmdet's training log.

        Returns:
            dict: ``acc`` over all rows where background competes with the
            classes, otherwise over the rows with an object.
        """
        foreground, background = self.scores(cls_score)
        num_classes = foreground.size(-1)
        if self.use_sigmoid or self.background == 'objectness':
            rows = labels < num_classes
            hit = foreground.argmax(-1) == labels
        else:
            rows = torch.ones_like(labels, dtype=torch.bool)
            hit = torch.cat([foreground, background], -1).argmax(-1) == labels
        hits = (hit & rows).sum().float()
        return dict(acc=(hits * 100 / rows.sum().clamp(min=1)).reshape(1))

    # ---------------------------------------------------------------- checks
    @classmethod
    def _say(cls, key: str, value: Any, expected: str, fix: str = '') -> str:
        return f'{cls.__name__}: {key}={value!r}, expected {expected}' + (
            f'; {fix}' if fix else ''
        )

    @classmethod
    def _check_number(cls, key: str, value: Any, low: float = -math.inf):
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not math.isfinite(value)
            or value < low
        ):
            raise ValueError(
                cls._say(
                    key,
                    value,
                    'a finite number' + (f' >= {low}' if low > -1 else ''),
                )
            )
        return float(value)

    @classmethod
    def _check_background(cls, background: Background | None) -> Background:
        policies = cls.background_policies
        if background is None:
            default = policies[0]
            assert isinstance(default, str)
            return default
        if isinstance(background, str):
            if background in policies:
                return background
        elif isinstance(background, float) and 0 < background < 1:
            if float in policies:
                return background
        named = [policy for policy in policies if isinstance(policy, str)]
        number = ', or the prior of background as a float in (0, 1)'
        raise ValueError(
            cls._say(
                'background',
                background,
                f'one of {named}' + (number if float in policies else ''),
            )
        )

    @classmethod
    def _check_class_weight(cls, class_weight: Any) -> Tensor:
        if isinstance(class_weight, (list, tuple, np.ndarray, Tensor)):
            weight = torch.as_tensor(class_weight, dtype=torch.float32)
            if weight.dim() == 1 and (weight >= 0).all():
                return weight
        raise ValueError(
            cls._say(
                'class_weight',
                class_weight,
                'a list of numbers >= 0, one a logit column',
                'read a file of weights in the config',
            )
        )

    @classmethod
    def _check_loss_name(cls, name: str | None) -> str:
        if name is None:
            words = re.findall('[A-Z][a-z0-9]*', cls.__name__)
            return '_'.join(['loss'] + [w.lower() for w in words[:-1]])
        if not isinstance(name, str) or not name.startswith('loss_'):
            raise ValueError(
                cls._say(
                    'loss_name',
                    name,
                    "a name beginning with 'loss_'",
                    'mmseg leaves any other term out of the training',
                )
            )
        return name

    def _expected_columns(self, num_classes: int, columns: int) -> str:
        text = (
            f'logits of {" or ".join(map(str, self.columns(num_classes)))}'
            f' columns (background={self.background!r}), got {columns}'
        )
        if self.use_sigmoid and columns == num_classes + 1:
            return (
                text + '; a dense or DETR-type head of mmdet gives C '
                'columns when its loss config says use_sigmoid=True'
            )
        return text + (
            '; make num_classes of the head agree with the class '
            "counts, and use background='objectness' in RoI heads "
            "only (elsewhere state another, such as 'keep_odds')"
        )

    def extra_repr(self) -> str:
        return (
            f'num_classes={getattr(self, "num_classes", None)}, '
            f'background={self.background!r}, '
            f'loss_weight={self.loss_weight}, '
            f'reduction={self.reduction!r}'
        )
