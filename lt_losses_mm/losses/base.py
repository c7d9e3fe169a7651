# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The base of every loss: all that is not the loss's own formula."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from typing import Any, Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..compat import is_compiling, traced
from ..kernels import Batch
from ..kernels.engines.choice import checked
from ..priors import ClassCounts, load_class_counts
from ..priors.shift import BACKGROUND_POLICIES
from ..statistics import RunningStatistics
from . import arguments as check
from . import host_protocol
from .background import Background, read_background
from .calls import read_call, reduced


class LongTailLoss(nn.Module, metaclass=ABCMeta):
    """What all losses share; a ValueError names a key that is wrong."""

    # What a subclass states, besides `formula`.
    use_sigmoid: bool
    rows: Callable[..., tuple[Tensor, Tensor | None]]  # of the kernels
    background_family: type[Background]
    # The first is the default; `float` is a background prior as a number.
    background_policies: tuple[str | type, ...] = (*BACKGROUND_POLICIES, float)
    uses_counts = True  # whether the formula reads class_counts
    tau: float | None = None  # strength, where it is one number
    takes_soft_labels = True
    takes_quality = False  # labels as (labels, quality), of GFL-type heads
    activated = False  # whether the head passes probabilities
    focal = False  # whether easy rows weigh next to nothing
    needs_background = False  # or some class would have no negative
    # For lt_losses_mm.testing: arguments of an example, of its plain form (if
    # it has one), and with which its gradient is the derivative.
    example: Mapping[str, Any] = {}
    neutral: Mapping[str, Any] | None = None
    smooth: Mapping[str, Any] = {}
    plain_form: str
    class_counts: Tensor
    known_counts: ClassCounts | None = None  # with names, unit and source
    class_weight: Tensor | None

    # All or none: mmdet asks the loss for columns, activation and accuracy.
    custom_cls_channels = custom_activation = custom_accuracy = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check.explain_arguments(cls)

    def __init__(
        self,
        num_classes: int | None = None,
        class_counts: str | Sequence[float] | Tensor | None = None,
        count_unit: str | None = None,
        background: str | float | None = None,
        loss_weight: float = 1.0,
        reduction: str = 'mean',
        ignore_index: int | None = None,
        avg_non_ignore: bool = False,
        class_weight: Sequence[float] | None = None,
        loss_name: str | None = None,
        use_sigmoid: bool | None = None,
        overwrite_logits: bool = False,
        engine: str | None = None,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        self.loss_weight = check.number(owner, 'loss_weight', loss_weight)
        self.background = read_background(
            owner, self.background_family, self.background_policies, background
        )
        check.shared(self, num_classes, reduction, class_weight, use_sigmoid)
        self.reduction, self.ignore_index = reduction, ignore_index
        self.avg_non_ignore, self.count_unit = avg_non_ignore, count_unit
        self.overwrite_logits = overwrite_logits
        self.engine = None if engine is None else checked(engine)
        self.loss_name = check.loss_name(owner, loss_name)
        self.statistics: RunningStatistics | None = None
        self._expected_classes = num_classes
        self.checked_devices: set[str] = set()  # whose labels were seen
        # Largest label, and formula, by the columns served so far.
        self.served: dict[tuple[int, bool], int] = {}
        self._formulas: dict[Any, tuple[Any, ...]] = {}
        self.register_buffer('class_counts', torch.zeros(0))
        weight = check.class_weight(owner, class_weight)
        self.register_buffer('class_weight', weight, persistent=False)
        if class_counts is None and self.uses_counts:
            class_counts = 'auto'
        is_name = isinstance(class_counts, str)
        self.auto_counts = is_name and class_counts == 'auto'
        if not self.auto_counts and class_counts is not None:
            self.set_class_counts(class_counts)

    # ---------------------------------------------------------------- classes
    @property
    def num_classes(self) -> int:
        """Number C of foreground classes; no attribute until it is known."""
        known = self.class_counts.numel() or self._expected_classes
        if not known and self.statistics is not None:
            # A checkpoint may be the first to tell it.
            known = self.statistics.sums.size(1)
        if not known:
            raise AttributeError('num_classes is unknown until counts are')
        return known

    def set_num_classes(self, num_classes: int, said_by: str = 'call') -> None:
        """Tell the loss C; a ValueError if it knows another number."""
        known = getattr(self, 'num_classes', num_classes)
        check.same_classes(self, known, num_classes, said_by)
        self._expected_classes = num_classes
        self.served.clear()
        if self.statistics is not None:
            self.statistics.resize(num_classes)

    def set_class_counts(self, class_counts: ClassCounts | Any) -> None:
        """Give the loss counts, in any form but ``'auto'``, in its place."""
        counts, device = class_counts, self.class_counts.device
        if not isinstance(counts, ClassCounts):
            known = self._expected_classes
            counts = load_class_counts(
                counts, num_classes=known, unit=self.count_unit
            )
        self.set_num_classes(counts.num_classes, 'class_counts')
        self.known_counts = counts
        self.class_counts = torch.tensor(counts.counts).float().to(device)

    def _load_from_state_dict(self, state_dict: Any, *args: Any) -> None:
        host_protocol.counts_of_checkpoint(self, state_dict, *args)
        super()._load_from_state_dict(state_dict, *args)

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        # They overflow in fp16 (65504), so `model.half()` only moves them.
        counts, weight = self.class_counts, self.class_weight
        super()._apply(fn, *args, **kwargs)
        device = self.class_counts.device
        self.class_counts = counts.to(device)
        self.class_weight = None if weight is None else weight.to(device)
        return self

    # ---------------------------------------------------------------- forward
    @abstractmethod
    def formula(self, columns: int, dtype: torch.dtype) -> Any:
        """The formula for so many logit columns, from counts or statistics.

        It is kept until ``class_counts``, statistics or an attribute change.

        Args:
            columns (int): K, one of :meth:`columns`.
            dtype (dtype): That of the computation, fp32 or wider.

        Returns:
            SoftmaxFormula | TwoSided: What ``rows`` takes.
        """

    def columns(self, num_classes: int) -> tuple[int, ...]:
        """Numbers of logit columns served, widest first, as RoI heads are."""
        return self.background.columns(num_classes)

    def row_loss(self, batch: Batch) -> Tensor:
        """Loss per row, (N, d1, ...), 0 for ignored rows, not yet weighted.

        Or the scalar that the reduction by ``batch.factor`` makes of them.
        """
        statistics, formula = self.statistics, self.known_formula(batch.logits)
        if statistics is None or not batch.learns:
            return self.rows(formula, batch)[0]
        rows, sums = self.rows(formula, batch, sums=statistics.wants_sums)
        statistics.observe(batch, sums)
        return rows

    def known_formula(self, logits: Tensor) -> Any:
        """:meth:`formula`, made anew only where what it reads has changed."""
        dtype = torch.promote_types(logits.dtype, torch.float32)
        key, sources = (logits.size(1), dtype), [self.class_counts]
        if self.statistics is not None:
            sources.append(self.statistics.sums)
        if is_compiling() or torch.is_inference_mode_enabled():
            return self.formula(*key)
        for source in sources:
            if source.is_inference() or source.requires_grad:
                return self.formula(*key)
        # A tensor that is written to has another version.
        state = [(id(source), source._version) for source in sources]
        if key not in self._formulas or self._formulas[key][0] != state:
            self._formulas[key] = state, self.formula(*key), sources
        return self._formulas[key][1]

    def __getstate__(self) -> dict[str, Any]:
        # Versions of tensors begin anew in a copy.
        return dict(self.__dict__, _formulas={})

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        # Whatever it is, formulas may follow from it.
        self.__dict__.get('_formulas', {}).clear()

    @traced
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
            label (Tensor): (N, d1, ...) integers in [0, C), with C for
                background where the head has it; or soft labels of the
                logits' shape.
            weight (Tensor, optional): Factor per row (N, d1, ...), or, for
                sigmoid losses, as many elements as the logits.
            avg_factor (float | Tensor, optional): Divisor of the sum in place
                of the number of rows. Needs ``reduction='mean'``; ignored for
                ``'none'``.
            reduction_override (str, optional): In place of ``reduction``.
            ignore_index (int, optional): In place of the constructor's.

        Returns:
            Tensor: Scalar, or (N, d1, ...) for ``'none'``.
        """
        passed = label, weight, avg_factor, reduction_override, ignore_index
        batch = read_call(self, cls_score, *passed)
        rows = self.row_loss(batch)
        return reduced(rows, batch, self.loss_weight) if rows.dim() else rows

    get_cls_channels = host_protocol.get_cls_channels
    get_activation = host_protocol.get_activation
    get_accuracy = host_protocol.get_accuracy

    def extra_repr(self) -> str:
        known = getattr(self, 'num_classes', None)
        return (
            f'num_classes={known}, background={self.background.key!r}, '
            f'loss_weight={self.loss_weight}, reduction={self.reduction!r}'
        )


check.explain_arguments(LongTailLoss)
