# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
r"""Per-class sums that a loss keeps over the whole training.

A forward pass only adds to *pending* sums. Once per step of the optimizer
that owns the model's parameters, on every rank, :func:`commit_statistics`
sums the pending ones over all ranks, in one collective for all losses of a
model, and adds them to what the losses read. Hence all calls between two
steps (FPN levels, cascade stages, micro-batches of gradient accumulation) see
the same statistics, and a rank that has nothing to say cannot block the
others. Why a commit and no backward hooks:
``docs/decisions/0004-statistics.md``.

Under a ``Runner`` :class:`~lt_losses_mm.hooks.StatisticsHook` commits, and is
attached without being named. A loop of one's own calls
:func:`commit_statistics` after ``optimizer.step()``::

    loss = criterion(model(images), labels)
    loss.backward()
    optimizer.step()
    commit_statistics(criterion)
"""

from __future__ import annotations

import math
import weakref
from typing import Any, Iterator, Sequence

import torch
from torch import Tensor, distributed, nn

from ..compat import is_compiling
from ..kernels import Batch
from ..messages import describe, logger

# Steps of the optimizer without a commit before a loss raises: a few, because
# loops with several optimizers commit once for all of them.
_PATIENCE = 10
# Fused optimizers change a parameter and leave its version alone. So a few of
# its values are looked at, too, but once in so many passes: it stops the host
# of an accelerator. Loops that commit rarely get there.
_PASSES = 100
_VALUES = 16
# Nodes of autograd's graph to look at for the parameters under the logits.
_REACH = 64
# Losses of which the log has said that they are compiled.
_told: set[str] = set()


class RunningStatistics(nn.Module):
    """Sums (C,) that grow by what each optimizer step has seen.

    They are the rows of one buffer ``sums``, (len(names), C), float64 (float32
    on devices that have none), which stays so under ``model.half()`` and is
    saved with the model.

    Args:
        names (sequence of str): Of the rows.
        num_classes (int): C; 0 where it follows in :meth:`resize`.
        decay (float): Factor on the sums at every commit, in (0, 1]; 1 never
            forgets. d weighs about the last 1 / (1 - d) steps.
        owner (str): The loss, for messages.

    Raises:
        ValueError: ``decay`` is out of range.
    """

    sums: Tensor
    wants_sums = True  # whether they are those of the kernels

    def __init__(
        self,
        names: Sequence[str],
        num_classes: int = 0,
        decay: float = 1.0,
        owner: str = 'RunningStatistics',
    ) -> None:
        super().__init__()
        number = isinstance(decay, (int, float)) and not isinstance(
            decay, bool
        )
        if not number or not 0 < decay <= 1:
            raise ValueError(
                describe(
                    'decay',
                    decay,
                    'a number in (0, 1]; 1 is no decay',
                    owner=owner,
                )
            )
        self.names, self.decay, self.owner = tuple(names), float(decay), owner
        sums = torch.zeros(len(names), num_classes, dtype=torch.float64)
        self.register_buffer('sums', sums)
        # No buffer: DDP with broadcast_buffers would overwrite it.
        self.pending = sums.clone()
        # Of the last load: on resuming, a mismatch must not pass as a warning.
        self.mismatch: str | None = None
        self.has_runner = False  # which commits them
        # Under the logits, and what its version was at the last look.
        self._parameter: Any = None
        self._values: Tensor | None = None
        self._forget_steps()

    @property
    def num_classes(self) -> int:
        """C; no attribute while it is not known: hosts' hooks look for it."""
        if not self.sums.size(1):
            raise AttributeError('num_classes is not known yet')
        return self.sums.size(1)

    def resize(self, num_classes: int) -> None:
        """Set C; sums of another C are dropped."""
        if self.sums.size(1) != num_classes:
            self.sums = self.sums.new_zeros(len(self.names), num_classes)
            self.pending = self.sums.clone()
            self._forget_steps()

    def reset(self) -> None:
        """Forget everything, pending sums too."""
        self.sums.zero_()
        self.discard_pending()

    def discard_pending(self) -> None:
        """Forget what has been observed since the last commit."""
        self.pending.zero_()
        self._forget_steps()

    def observe(self, batch: Batch, sums: Tensor | None) -> None:
        """Add what a batch amounts to, a row for each name, to the pending.

        Forward passes that do not train are the caller's to leave out.

        Args:
            batch (Batch): The parameters under its logits tell whether steps
                are taken without a commit.
            sums (Tensor, optional): (len(names), C), or with more columns
                behind them; what the kernels found, if it ``wants_sums``.

        Raises:
            RuntimeError: Ten steps were taken without a commit. Code that
                ``torch.compile`` has made of it cannot tell; a line of the
                log says so.
        """
        assert sums is not None
        pending, logits = self.pending, batch.logits
        pending += sums[:, : pending.size(1)].to(pending.dtype)
        if is_compiling():
            if not self.has_runner:
                _cannot_tell(self.owner)
            return
        # The version of a parameter under the logits tells that a step has
        # been taken, whichever optimizer it was: no hook is needed, and steps
        # of other models do not count.
        parameter = self._parameter and self._parameter()
        if parameter is None:
            parameter = _parameter_under(logits)
            if parameter is not None:
                self._parameter = weakref.ref(parameter)
                self._version = parameter._version
            return
        self._passes += 1
        stepped = parameter._version != self._version
        if self._passes % _PASSES == 0:
            values = parameter.detach().flatten()[:_VALUES].clone()
            known, self._values = self._values, values
            stepped |= known is not None and not torch.equal(known, values)
        if stepped:
            self._version = parameter._version
            self._steps += 1
            if self._steps >= _PATIENCE:
                raise RuntimeError(
                    f'{self.owner}: {_PATIENCE} optimizer steps without a '
                    'commit, so that its statistics stay as they were and it '
                    'does not do what it is for. A Runner of MMEngine '
                    'commits by itself (StatisticsHook; a FlexibleRunner '
                    'needs it in custom_hooks); a loop of your own calls '
                    'lt_losses_mm.commit_statistics(model) after '
                    'optimizer.step(), on every rank'
                )

    def commit(self, sums: Tensor | None = None) -> None:
        """Add pending sums to those that are read.

        Args:
            sums (Tensor, optional): (len(names), C), the pending sums of all
                ranks; by default those of this one.
        """
        if sums is None:
            sums = self.pending
        # One batch of NaN or inf must not poison the sums for ever. Asking
        # first would stop the host of an accelerator.
        total = sums.sum()
        if total.device.type != 'cpu':
            sums = torch.where(total.isfinite(), sums, 0.0)
        elif not math.isfinite(total.item()):
            sums = torch.zeros_like(sums)
        if self.decay != 1:
            self.sums.mul_(self.decay)
        self.sums.add_(sums)
        self.discard_pending()

    def _forget_steps(self) -> None:
        self._steps = self._passes = self._version = 0
        self._parameter = self._values = None

    def __getstate__(self) -> dict[str, Any]:
        # A weak reference cannot be pickled or copied.
        return dict(self.__dict__, _parameter=None)

    # ------------------------------------------------------- device and state
    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        # Sums lose their increments in fp16, and float64 cannot be moved to
        # MPS: so only the device of what `fn` makes of a stand-in is taken.
        kept, self.sums = self.sums, torch.zeros(0, device=self.sums.device)
        super()._apply(fn, *args, **kwargs)
        device = self.sums.device
        self.sums = _move(kept, device)
        self.pending = _move(self.pending, device)
        return self

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        self.mismatch = None
        loaded = state_dict.get(prefix + 'sums')
        if loaded is not None and loaded.size(-1) != self.sums.size(1):
            if not self.sums.size(1):
                self.resize(loaded.size(-1))
            else:
                # Unfilled statistics of a model that was never trained are no
                # mismatch.
                state_dict[prefix + 'sums'] = self.sums
                if loaded.numel():
                    self.mismatch = describe(
                        'num_classes',
                        self.num_classes,
                        f'{loaded.size(-1)}, as {prefix}sums of the '
                        'checkpoint says',
                        'resume with the classes of training (load_from, for '
                        'other classes, starts statistics anew)',
                        self.owner,
                    )
                    args[-1].append(self.mismatch)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class LabelCounts(RunningStatistics):
    """Number of rows of each class that were trained on.

    Rows of background, ignored rows and rows without weight do not count.

    Args:
        num_classes (int): C; 0 where it follows.
        decay (float): See
            :class:`~lt_losses_mm.statistics.RunningStatistics`.
        owner (str): The loss, for messages.
    """

    wants_sums = False

    def __init__(
        self,
        num_classes: int = 0,
        decay: float = 1.0,
        owner: str = 'LabelCounts',
    ) -> None:
        super().__init__(('pos_count',), num_classes, decay, owner)

    @property
    def pos_count(self) -> Tensor:
        """Rows of each class, (C,)."""
        return self.sums[0]

    def observe(self, batch: Batch, sums: Tensor | None = None) -> None:
        labels, counts = batch.labels, torch.zeros_like(self.pending[0])
        counted = (labels < counts.numel()) & (labels != batch.ignore_index)
        if batch.row_weight is not None:
            counted = counted & (batch.row_weight > 0)
        counts.index_add_(
            0,
            torch.where(counted, labels, 0).flatten(),
            counted.flatten().to(counts.dtype),
        )
        super().observe(batch, counts.unsqueeze(0))


def _parameter_under(logits: Tensor) -> Tensor | None:
    """The nearest parameter that the logits come from, or else a leaf."""
    nodes: list[Any] = [logits.grad_fn]
    first = None
    for node in nodes:
        leaf = getattr(node, 'variable', None)
        if isinstance(leaf, nn.Parameter):
            return leaf
        first = leaf if first is None else first
        if node is not None and len(nodes) < _REACH:
            nodes += [parent for parent, _ in node.next_functions]
    return first


# Called while it is traced, instead of being traced.
@torch.compiler.assume_constant_result
def _cannot_tell(owner: str) -> None:
    if owner in _told:
        return
    _told.add(owner)
    logger.warning(
        f'{owner}: it is compiled, and compiled code cannot notice a loop '
        'that forgets to commit statistics, so that they stay as they were '
        'and the loss does not do what it is for. Make sure that your loop '
        'calls lt_losses_mm.commit_statistics(model) after '
        'optimizer.step(), on every rank'
    )


def _move(statistic: Tensor, device: torch.device) -> Tensor:
    if device.type == 'mps':
        return statistic.float().to(device)
    return statistic.to(device).double()


def statistics_modules(
    model: nn.Module,
) -> Iterator[tuple[str, RunningStatistics]]:
    """Name and module of all statistics in a model."""
    for name, module in model.named_modules():
        if isinstance(module, RunningStatistics):
            yield name, module


def commit_statistics(model: nn.Module) -> None:
    """Commit what all losses of a model have observed since the last call.

    To be called on every rank, once after each ``optimizer.step()``. One
    all-reduce for the whole model, none if it has no such loss or no process
    group exists.

    Args:
        model (nn.Module): A model that owns losses, or a loss itself.
    """
    commit([module for _, module in statistics_modules(model)])


def commit(modules: Sequence[RunningStatistics]) -> None:
    """The same for modules that are known, in the same order on each rank."""
    if not modules:
        return
    if not (distributed.is_available() and distributed.is_initialized()):
        for module in modules:
            module.commit()
        return
    pending = [m.pending for m in modules]
    device = pending[0].device
    if distributed.get_backend() == 'nccl' and device.type == 'cpu':
        # Of a loss that was left on the CPU.
        device = torch.device('cuda', torch.cuda.current_device())
    total = torch.cat([p.flatten().to(device) for p in pending])
    distributed.all_reduce(total)
    sizes = [p.numel() for p in pending]
    for module, p, sums in zip(modules, pending, total.split(sizes)):
        module.commit(sums.view(p.shape).to(p.device))


def discard_pending(model: nn.Module) -> None:
    """Forget what was observed for a step that was not taken."""
    for _, module in statistics_modules(model):
        module.discard_pending()


def reset_statistics(model: nn.Module) -> None:
    """Start the statistics of all losses of a model anew."""
    for _, module in statistics_modules(model):
        module.reset()
