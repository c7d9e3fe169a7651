# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Commits the statistics of losses, and shows them."""

from __future__ import annotations

import functools
import types
from typing import Any, Callable, Iterator

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn
from torch.optim.optimizer import Optimizer

from ..losses import LongTailLoss
from ..priors import frequency_thirds
from ..registry import HOOKS
from ..statistics import (
    GradientStatistics,
    RunningStatistics,
    commit,
    describe_health,
    statistics_modules,
)


@HOOKS.register_module()
class StatisticsHook(Hook):
    """Commits what losses have observed, once per optimizer step.

    Importing the package adds it to every ``Runner``; a config names it only
    to change an argument::

        custom_hooks = [dict(type='lt_losses_mm.StatisticsHook', interval=100)]

    Micro-batches of gradient accumulation are committed together; what was
    observed for a step that a gradient scaler skipped is dropped. Resuming
    goes on with the statistics of the checkpoint. Fine-tuning (``load_from``)
    starts them anew: they are those of other data or of another schedule.

    Every ``interval`` iterations and after each epoch it logs, for each loss,
    the gradient ratio of the classes seen so far, the share of classes at the
    clamp and the share never seen positive, and sends the median ratio of
    frequent, middling and rare classes to the visualizer; once, it warns if
    the method does nothing (all classes are treated as its plain form would).
    After each epoch, or every ``val_interval`` iterations in a loop without
    epochs, it draws the ratio of each class against its frequency.

    Args:
        interval (int): Iterations between two logs; 0 for none.
        draw (bool): Whether to draw.
        keep_on_load (bool): Whether ``load_from`` keeps the statistics of the
            checkpoint.
    """

    # After EMAHook (NORMAL, 50) has exchanged the weights of a checkpoint,
    # before LoggerHook (BELOW_NORMAL, 60).
    priority = 55

    def __init__(
        self,
        interval: int = 500,
        draw: bool = True,
        keep_on_load: bool = False,
    ) -> None:
        if not isinstance(interval, int) or interval < 0:
            raise ValueError(
                f'StatisticsHook: interval={interval!r}, expected an int >= '
                '0; 0 logs nothing'
            )
        self.interval = interval
        self.draw = draw
        self.keep_on_load = keep_on_load
        self._losses: list[tuple[str, Any, GradientStatistics]] = []
        self._known: list[tuple[str, RunningStatistics]] = []
        self._owners: list[_Owner] = []
        self._warned: set[str] = set()
        self._reported = -1

    def before_train(self, runner: Runner) -> None:
        model = _bare(runner.model)
        self._known = list(statistics_modules(model))
        self._losses = [
            (name, module, module.statistics)
            for name, module in model.named_modules()
            if isinstance(module, LongTailLoss)
            and isinstance(module.statistics, GradientStatistics)
        ]
        resumed = runner._resume or runner.iter > 0
        for name, statistics in self._known:
            statistics.has_runner = True
            # A look at the loss before training is no part of it.
            statistics.discard_pending()
            if resumed and statistics.mismatch:
                raise ValueError(f'{name}: {statistics.mismatch}')
            if resumed or self.keep_on_load:
                continue
            if statistics.sums.any():
                statistics.reset()
                runner.logger.info(
                    f'{name}: the statistics that came with the weights are '
                    'dropped, training starts them anew (keep_on_load=True '
                    'of StatisticsHook keeps them)'
                )
        for owner in self._owners:
            owner.release()
        self._owners = _owners(model, runner.optim_wrapper, self._known)

    def after_train(self, runner: Runner) -> None:
        for owner in self._owners:
            owner.release()
        self._owners = []

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict | None = None,
    ) -> None:
        for owner in self._owners:
            owner.commit()
        if self.interval and self.every_n_train_iters(runner, self.interval):
            self._report(runner, runner.iter + 1)
        loop = runner.train_loop
        if isinstance(loop, IterBasedTrainLoop) and self.every_n_train_iters(
            runner, loop.val_interval
        ):
            self._draw(runner, runner.iter + 1)

    def after_train_epoch(self, runner: Runner) -> None:
        if isinstance(runner.train_loop, IterBasedTrainLoop):
            return
        # MMEngine has counted the epoch's last iteration by now.
        if self.interval:
            self._report(runner, runner.iter)
        self._draw(runner, runner.iter)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep statistics out of the averages of EMAHook."""
        state = checkpoint['state_dict']
        for name, statistics in self._known:
            if f'{name}.sums' in state:
                state[f'{name}.sums'] = statistics.sums.cpu()

    def _report(self, runner: Runner, iteration: int) -> None:
        if not is_main_process() or iteration == self._reported:
            return
        self._reported = iteration
        for name, loss, statistics in self._losses:
            if not statistics.pos_count.any():
                if name not in self._warned:
                    self._warned.add(name)
                    runner.logger.warning(
                        f'{name}: {type(loss).__name__} has seen no positive '
                        f'sample in {iteration} iterations. If the head never '
                        'calls it, or if all labels are ignored, it does '
                        'nothing: check ignore_index and the annotations, or '
                        'take another head'
                    )
                continue
            health = statistics.health(loss.saturated())
            runner.logger.info(f'{name}: {describe_health(health)}')
            idle = loss.saturated()[statistics.pos_count > 0].all()
            if idle and name not in self._warned:
                self._warned.add(name)
                runner.logger.warning(
                    f'{name}: {type(loss).__name__} treats all classes as '
                    f'{loss.plain_form} does, after {iteration} '
                    'iterations: its statistics change nothing. Early in '
                    'training that may pass; where it stays, no class has '
                    'enough negatives, and a loss that does not need them '
                    '(BalancedSoftmaxLoss) may serve the head better'
                )
            scalars = {
                f'statistics/{name}/{key}': value
                for key, value in {
                    **health,
                    **{
                        f'ratio_{group}': value
                        for group, value in group_ratios(loss).items()
                    },
                }.items()
            }
            scalars[f'statistics/{name}/iter'] = iteration
            for key, value in scalars.items():
                # The hub is part of the checkpoint: curves survive a resume.
                runner.message_hub.update_scalar(key, value)
            runner.visualizer.add_scalars(scalars, step=iteration)

    def _draw(self, runner: Runner, iteration: int) -> None:
        losses = [x for x in self._losses if x[2].pos_count.any()]
        if not (self.draw and losses and is_main_process()):
            return
        from ..statistics.plot import draw_ratio, to_image

        for name, loss, _ in losses:
            figure = draw_ratio(
                name,
                dict(zip(loss.statistics.names, _numpy(loss.statistics.sums))),
                class_counts=_numpy(loss.class_counts),
                saturated=_numpy(loss.saturated()),
                log_scalars=runner.message_hub.log_scalars,
            )
            runner.visualizer.add_image(
                f'gradient_ratio.{name}', to_image(figure), iteration
            )


def _numpy(values: torch.Tensor) -> np.ndarray:
    return values.cpu().numpy()


def _bare(model: nn.Module) -> Any:
    return model.module if is_model_wrapper(model) else model


class _Owner:
    """What trains the model of some losses, and their statistics.

    Its own steps alone commit them: steps of a discriminator, of a meta
    learner or of another model are none of their business.

    Args:
        wrappers (list): What the runner has of the optimizers: one, or all
            that share the parameters.
        statistics (list): In the same order on each rank.
    """

    def __init__(
        self, wrappers: list[Any], statistics: list[RunningStatistics]
    ) -> None:
        self.wrappers, self.statistics = wrappers, statistics
        self.stepped = False
        # Without an optimizer that can be found, as in some other engines,
        # each iteration is a step.
        optimizers = [o for o in map(_optimizer, wrappers) if o is not None]
        self.counts = bool(optimizers)
        self.undo = [
            _after_each_step(optimizer, self._on_step)
            for optimizer in optimizers
        ]

    def _on_step(self, optimizer: Optimizer) -> None:
        # A fused optimizer is called all the same where a gradient scaler
        # skips a step, and skips inside its kernel.
        found_inf = getattr(optimizer, 'found_inf', None)
        if found_inf is None or not found_inf.item():
            self.stepped = True

    def commit(self) -> None:
        """Once an iteration: what was observed for a step that was taken."""
        due: bool | None = None
        if all(isinstance(wrapper, OptimWrapper) for wrapper in self.wrappers):
            due = all(wrapper.should_update() for wrapper in self.wrappers)
        if due is False:
            return  # gradients are accumulated
        if self.stepped or not self.counts:
            commit(self.statistics)
        elif due:
            for module in self.statistics:
                module.discard_pending()
        self.stepped = False

    def release(self) -> None:
        """Leave the optimizers as they were."""
        for undo in self.undo:
            undo()


def _owners(
    model: nn.Module,
    optim_wrapper: Any,
    known: list[tuple[str, RunningStatistics]],
) -> list[_Owner]:
    """The optimizers that train what the losses are computed from.

    Of each loss, the parameters of the nearest module around it that has any.
    """
    modules = dict(model.named_modules())
    wrappers = [optim_wrapper]
    if isinstance(optim_wrapper, OptimWrapperDict):
        wrappers = list(optim_wrapper.values())
    trained = [set(map(id, _parameters(wrapper))) for wrapper in wrappers]
    everyone = tuple(range(len(wrappers)))
    found: dict[tuple[int, ...], list[RunningStatistics]] = {}
    for name, statistics in known:
        while name and next(modules[name].parameters(), None) is None:
            name = name.rpartition('.')[0]
        around = set(map(id, modules[name].parameters()))
        # Engines that flatten parameters have others than the model.
        owners = tuple(i for i in everyone if trained[i] & around) or everyone
        found.setdefault(owners, []).append(statistics)
    return [
        _Owner([wrappers[i] for i in owners], statistics)
        for owners, statistics in sorted(found.items())
    ]


def _optimizer(wrapper: Any) -> Optimizer | None:
    """PyTorch's optimizer, inside all that engines put around it."""
    while wrapper is not None and not isinstance(wrapper, Optimizer):
        wrapper = getattr(wrapper, 'optimizer', None)
    return wrapper


def _parameters(wrapper: Any) -> Iterator[nn.Parameter]:
    optimizer = _optimizer(wrapper)
    for group in [] if optimizer is None else optimizer.param_groups:
        yield from group['params']


def _after_each_step(
    optimizer: Any, call: Callable[[Optimizer], None]
) -> Callable[[], None]:
    """Call something after each step; returns what ends it.

    PyTorch has hooks for it, but its ``torch.compile`` (2.1) takes them off
    all optimizers of the process, for good.
    """
    step = optimizer.step

    # A method, because schedulers of PyTorch put theirs around a method.
    @functools.wraps(getattr(step, '__func__', step))
    def and_call(self: Any, *args: Any, **kwargs: Any) -> Any:
        done = step(*args, **kwargs)
        call(self)
        return done

    def undo() -> None:
        if getattr(optimizer.step, '__func__', None) is and_call:
            optimizer.step = step

    optimizer.step = types.MethodType(and_call, optimizer)
    return undo


def group_ratios(loss: Any) -> dict[str, float]:
    """Median gradient ratio of the thirds of classes by frequency.

    The frequency is that of the training data, where the loss knows it, else
    how often the loss has seen the class as a positive. Groups without a
    class seen positive are left out.
    """
    statistics: GradientStatistics = loss.statistics
    counts: torch.Tensor = loss.class_counts
    if not counts.numel():
        counts = statistics.pos_count
    ratio = _numpy(statistics.ratio)
    seen = _numpy(statistics.pos_count) > 0
    return {
        name: float(np.median(ratio[index][seen[index]]))
        for name, index in frequency_thirds(_numpy(counts)).items()
        if seen[index].any()
    }
