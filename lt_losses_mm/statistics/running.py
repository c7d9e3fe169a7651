# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
r"""Per-class sums that a loss keeps over the whole training.

A forward pass only adds to *pending* sums. Once per optimizer step, on every
rank, :func:`commit_statistics` sums the pending ones over all ranks, in one
collective for all losses of a model, and adds them to the buffers that the
losses read. Hence all calls between two steps (FPN levels, cascade stages,
micro-batches of gradient accumulation) see the same statistics, and a rank
that has nothing to say cannot block the others. Why a commit and no backward
hooks: ``docs/decisions/0004-statistics.md``.

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
from mmengine import dist
from torch import Tensor, nn
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
)

# Optimizer steps that a loss took part in without a commit before it raises:
# a few, because loops with several optimizers commit once for all of them.
_PATIENCE = 10

_alive: weakref.WeakSet[RunningStatistics] = weakref.WeakSet()
_optimizer_steps = 0


def optimizer_steps() -> int:
    """Optimizer steps that this process has taken, of all optimizers.

    A step that a gradient scaler skips does not count.
    """
    return _optimizer_steps


def _on_optimizer_step(optimizer: Optimizer, *_: Any) -> None:
    global _optimizer_steps
    # A fused optimizer is called all the same, and skips inside its kernel.
    found_inf = getattr(optimizer, 'found_inf', None)
    if found_inf is not None and found_inf.item():
        return
    _optimizer_steps += 1
    for module in list(_alive):
        if not module._observed:
            continue
        module._observed = False
        module._steps_without_commit += 1
        if module._steps_without_commit >= _PATIENCE:
            raise RuntimeError(
                f'{type(module).__name__}: {_PATIENCE} optimizer steps '
                'without a commit, so that its statistics stay as they were '
                'and it does not do what it is for. A Runner of MMEngine '
                'commits by itself (StatisticsHook; a FlexibleRunner needs it '
                'and ClassPriorHook in custom_hooks); in a loop of your own '
                'call lt_losses_mm.commit_statistics(model) after '
                'optimizer.step()'
            )


# Global, because a loss does not know the optimizer that will train it.
register_optimizer_step_post_hook(_on_optimizer_step)


class RunningStatistics(nn.Module):
    """Mix-in: buffers (C,) that grow by what each optimizer step has seen.

    A subclass names them in ``statistic_names`` and calls :meth:`observe`
    from its forward pass. The buffers are float64 (float32 on devices that
    have no float64), stay so under ``model.half()``, and are saved with the
    model.
    """

    statistic_names: tuple[str, ...] = ()
    _pending: Tensor

    def init_statistics(self, decay: float = 1.0) -> None:
        """Declare the buffers; C follows in :meth:`resize_statistics`.

        Args:
            decay (float): Factor on the sums at every commit, in (0, 1];
                1 never forgets. d weighs about the last 1 / (1 - d) steps.
        """
        self.decay = decay
        for name in self.statistic_names:
            self.register_buffer(name, _empty(0))
        # No buffer: DDP with broadcast_buffers would overwrite it.
        self._pending = _empty(len(self.statistic_names), 0)
        # Of the last load: on resuming, a mismatch must not pass as a warning.
        self.statistics_mismatch: str | None = None
        self._start_watch()

    def _start_watch(self) -> None:
        self._observed = False
        self._steps_without_commit = 0
        _alive.add(self)

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._start_watch()

    @property
    def statistics(self) -> dict[str, Tensor]:
        """The committed sums by name, each (C,)."""
        return {name: getattr(self, name) for name in self.statistic_names}

    def resize_statistics(self, num_classes: int) -> None:
        """Set C; sums of another C are dropped."""
        if self._pending.size(1) == num_classes:
            return
        for name in self.statistic_names:
            old = getattr(self, name)
            setattr(self, name, old.new_zeros(num_classes))
        self._pending = self._pending.new_zeros(
            len(self.statistic_names), num_classes
        )
        self._observed = False

    def reset_statistics(self) -> None:
        """Forget everything, pending sums too."""
        for statistic in self.statistics.values():
            statistic.zero_()
        self.discard_pending()

    def discard_pending(self) -> None:
        """Forget what has been observed since the last commit."""
        self._pending.zero_()
        self._observed = False
        self._steps_without_commit = 0

    def observe(self, sums: Tensor) -> None:
        """Add sums, a row for each of ``statistic_names``, to the pending.

        Forward passes that do not train are the caller's to leave out.

        Args:
            sums (Tensor): (len(statistic_names), C).
        """
        self._pending += sums.to(self._pending.dtype)
        self._observed = True

    def commit(self, sums: Tensor | None = None) -> None:
        """Add pending sums to the buffers.

        Args:
            sums (Tensor, optional): (len(statistic_names), C), the pending
                sums of all ranks; by default those of this one.
        """
        if sums is None:
            sums = self._pending
        # One batch of NaN or inf must not poison the sums for ever. Asking
        # first would stop the host of an accelerator.
        total = sums.sum()
        if total.device.type != 'cpu':
            sums = torch.where(total.isfinite(), sums, 0.0)
        elif not math.isfinite(total.item()):
            sums = torch.zeros_like(sums)
        for row, statistic in zip(sums.unbind(), self.statistics.values()):
            if self.decay != 1:
                statistic.mul_(self.decay)
            statistic.add_(row.to(statistic))
        self.discard_pending()

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        # Sums lose their increments in fp16, and float64 cannot be moved to
        # MPS: so only the device of what `fn` makes of a stand-in is taken.
        kept = self.statistics
        for name, statistic in kept.items():
            setattr(self, name, statistic.new_zeros(0, dtype=torch.float32))
        super()._apply(fn, *args, **kwargs)
        for name, statistic in kept.items():
            setattr(self, name, _move(statistic, getattr(self, name).device))
            self._pending = _move(self._pending, getattr(self, name).device)
        return self

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, *args, **kwargs
    ) -> None:
        self.statistics_mismatch = None
        present = {
            name: state_dict[prefix + name]
            for name in self.statistic_names
            if prefix + name in state_dict
        }
        for name, loaded in present.items():
            current = getattr(self, name)
            if loaded.numel() == current.numel():
                continue
            if not current.numel():
                self.resize_statistics(loaded.numel())
                continue
            # Unfilled statistics of a model that was never trained are no
            # mismatch.
            state_dict[prefix + name] = current
            if loaded.numel():
                self.statistics_mismatch = (
                    f'{type(self).__name__}: num_classes={current.numel()}, '
                    f'expected {loaded.numel()}, as {prefix}{name} of the '
                    'checkpoint says; resume with the classes of training '
                    '(load_from, for other classes, starts statistics anew)'
                )
        if self.statistics_mismatch:
            args[-1].append(self.statistics_mismatch)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _move(statistic: Tensor, device: torch.device) -> Tensor:
    if device.type == 'mps':
        return statistic.float().to(device)
    return statistic.to(device).double()


def _empty(*size: int) -> Tensor:
    return torch.zeros(*size, dtype=torch.float64)


def statistics_modules(
    model: nn.Module,
) -> Iterator[tuple[str, RunningStatistics]]:
    """Name and module of everything in a model that keeps statistics."""
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
    pending = [m._pending for m in modules]
    if not dist.is_distributed():
        for module in modules:
            module.commit()
        return
    device = pending[0].device
    total = torch.cat([p.flatten().to(device) for p in pending])
    dist.all_reduce(total, op='sum')
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
        module.reset_statistics()
