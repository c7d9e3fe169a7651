# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""What importing the package changes in MMEngine, all of it, in one place.

Two things, each because MMEngine offers no entry point for it:

1. ``mmengine.config.utils.MODULE2PACKAGE`` learns two names, so that a config
   may inherit from ``lt_losses_mm::...`` (refused otherwise) and from
   ``mmseg::...`` (whose distribution has another name in the maintained
   fork).
2. ``Runner.register_hooks`` adds :class:`~lt_losses_mm.hooks.ClassPriorHook`
   to each runner that has none, so that ``class_counts='auto'`` needs no
   further line in a config. See ``docs/decisions/0002-hook-attaches-itself``.
"""

from __future__ import annotations

import functools

from mmengine.config.utils import MODULE2PACKAGE
from mmengine.runner import Runner


def install() -> None:
    """Connect the package to MMEngine; calling it again changes nothing."""
    MODULE2PACKAGE['mmseg'] = 'mmseg'
    MODULE2PACKAGE['lt_losses_mm'] = 'lt_losses_mm'
    if not hasattr(Runner.register_hooks, '_adds_prior_hook'):
        Runner.register_hooks = _with_prior_hook(Runner.register_hooks)


def _with_prior_hook(register_hooks):

    @functools.wraps(register_hooks)
    def wrapper(self, *args, **kwargs):
        from .hooks import ClassPriorHook

        register_hooks(self, *args, **kwargs)
        if not any(isinstance(hook, ClassPriorHook) for hook in self.hooks):
            self.register_hook(ClassPriorHook())

    wrapper._adds_prior_hook = True
    return wrapper
