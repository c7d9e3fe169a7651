# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Commits the statistics of losses, and shows them."""

from __future__ import annotations

from typing import Any, Sequence

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn

from ..priors import frequency_thirds
from ..registry import HOOKS
from ..statistics import (
    GradientStatistics,
    RunningStatistics,
    commit,
    describe_health,
    discard_pending,
    optimizer_steps,
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
        self._losses: list[tuple[str, RunningStatistics]] = []
        self._warned: set[str] = set()
        self._reported = -1

    def before_train(self, runner: Runner) -> None:
        self._losses = list(statistics_modules(_bare(runner.model)))
        resumed = runner._resume or runner.iter > 0
        for name, loss in self._losses:
            # A look at the loss before training is no part of it.
            loss.discard_pending()
            if resumed and loss.statistics_mismatch:
                raise ValueError(f'{name}: {loss.statistics_mismatch}')
            if resumed or self.keep_on_load:
                continue
            if any(s.any() for s in loss.statistics.values()):
                loss.reset_statistics()
                runner.logger.info(
                    f'{name}: the statistics that came with the weights are '
                    'dropped, training starts them anew (keep_on_load=True '
                    'of StatisticsHook keeps them)'
                )
        self._steps = optimizer_steps()

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict | None = None,
    ) -> None:
        if not self._losses:
            return
        due = _was_due(runner.optim_wrapper)
        if due is not False:
            steps, before = optimizer_steps(), self._steps
            if steps > before or (due and not _steps_are_counted()):
                commit([loss for _, loss in self._losses])
            elif due:
                discard_pending(runner.model)
            self._steps = optimizer_steps()
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
        for name, loss in self._losses:
            for key, statistic in loss.statistics.items():
                if f'{name}.{key}' in state:
                    state[f'{name}.{key}'] = statistic.cpu()

    def _gradient_losses(self) -> list[tuple[str, GradientStatistics]]:
        return [
            (name, loss)
            for name, loss in self._losses
            if isinstance(loss, GradientStatistics) and loss.pos_count.any()
        ]

    def _report(self, runner: Runner, iteration: int) -> None:
        if not is_main_process() or iteration == self._reported:
            return
        self._reported = iteration
        for name, loss in self._losses:
            if not isinstance(loss, GradientStatistics):
                continue
            if not loss.pos_count.any():
                if name not in self._warned:
                    self._warned.add(name)
                    runner.logger.warning(
                        f'{name}: {type(loss).__name__} has seen no positive '
                        f'sample in {iteration} iterations. If the head never '
                        'calls it, or if all labels are ignored, it does '
                        'nothing (see docs/head_compatibility.md)'
                    )
                continue
            health = loss.health()
            runner.logger.info(f'{name}: {describe_health(health)}')
            idle = loss.saturated()[loss.pos_count > 0].all()
            if idle and name not in self._warned:
                self._warned.add(name)
                runner.logger.warning(
                    f'{name}: {type(loss).__name__} treats all classes as '
                    f'{loss.plain_form} does, after {iteration} '
                    'iterations: its statistics change nothing (see '
                    'docs/statistics.md)'
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
        losses = self._gradient_losses()
        if not (self.draw and losses and is_main_process()):
            return
        from ..statistics.plot import draw_ratio, to_image

        for name, loss in losses:
            figure = draw_ratio(
                name,
                {k: v.cpu().numpy() for k, v in loss.statistics.items()},
                class_counts=_numpy(
                    getattr(loss, 'class_counts', torch.empty(0))
                ),
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


def _was_due(optim_wrapper: Any) -> bool | None:
    """Whether all gradients were to be applied in this iteration.

    None if it cannot be told, as with the wrappers of other engines.
    """
    wrappers: Sequence[Any] = (
        list(optim_wrapper.values())
        if isinstance(optim_wrapper, OptimWrapperDict)
        else [optim_wrapper]
    )
    if not all(isinstance(wrapper, OptimWrapper) for wrapper in wrappers):
        return None
    return all(wrapper.should_update() for wrapper in wrappers)


def _steps_are_counted() -> bool:
    """Whether a step of an optimizer is noticed.

    torch.compile of torch 2.1 takes the hooks off all optimizers; there, a
    step that was due counts as taken.
    """
    before = optimizer_steps()
    weight = torch.zeros(1, requires_grad=True)
    weight.grad = torch.zeros(1)
    torch.optim.SGD([weight], lr=0.0).step()
    return optimizer_steps() > before


def group_ratios(loss: GradientStatistics) -> dict[str, float]:
    """Median gradient ratio of the thirds of classes by frequency.

    The frequency is that of the training data, where the loss knows it, else
    how often the loss has seen the class as a positive. Groups without a
    class seen positive are left out.
    """
    counts = getattr(loss, 'class_counts', loss.pos_count)
    if not counts.numel():
        counts = loss.pos_count
    ratio = _numpy(loss.ratio)
    seen = _numpy(loss.pos_count) > 0
    return {
        name: float(np.median(ratio[index][seen[index]]))
        for name, index in frequency_thirds(_numpy(counts)).items()
        if seen[index].any()
    }
