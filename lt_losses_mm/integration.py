# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""What importing the package changes in MMEngine, all of it, in one place.

Three things, each because MMEngine offers no entry point for it:

1. ``mmengine.config.utils.MODULE2PACKAGE`` learns two names, so that a config
   may inherit from ``lt_losses_mm::...`` (refused otherwise) and from
   ``mmseg::...`` (whose distribution has another name in the maintained
   fork).
2. ``Config._get_cfg_path`` gives ``lt_losses_mm::...`` no scope. MMEngine
   would look up every type of such a base, the hosts' among them, in this
   package; our own types have its name in front of them.
3. ``Runner.register_hooks`` adds each hook of ``lt_losses_mm.hooks.ATTACHED``
   to a runner that has none, so that no loss needs a further line in a
   config. See
   ``docs/decisions/0002-hook-attaches-itself``.
"""

from __future__ import annotations

import functools
import logging

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.logging import print_log
from mmengine.runner import Runner

from .messages import logger


class _ToMMEngine(logging.Handler):
    """Hands what the core logs to the logger of the run."""

    def emit(self, record: logging.LogRecord) -> None:
        print_log(record.getMessage(), 'current', record.levelno)


def install() -> None:
    """Connect the package to MMEngine; calling it again changes nothing."""
    if not any(isinstance(one, _ToMMEngine) for one in logger.handlers):
        logger.addHandler(_ToMMEngine())
        logger.setLevel(logging.INFO)
    MODULE2PACKAGE['mmseg'] = 'mmseg'
    MODULE2PACKAGE['lt_losses_mm'] = 'lt_losses_mm'
    if not hasattr(Config._get_cfg_path, '_knows_host_types'):
        Config._get_cfg_path = staticmethod(
            _with_host_types(Config._get_cfg_path)
        )
    if not hasattr(Runner.register_hooks, '_adds_hooks'):
        Runner.register_hooks = _with_hooks(Runner.register_hooks)


def _with_host_types(get_cfg_path):

    @functools.wraps(get_cfg_path)
    def wrapper(cfg_path, filename):
        path, scope = get_cfg_path(cfg_path, filename)
        return path, None if scope == 'lt_losses_mm' else scope

    wrapper._knows_host_types = True
    return wrapper


def _with_hooks(register_hooks):

    @functools.wraps(register_hooks)
    def wrapper(self, *args, **kwargs):
        from .hooks import ATTACHED

        register_hooks(self, *args, **kwargs)
        for hook in ATTACHED:
            if not any(isinstance(known, hook) for known in self.hooks):
                self.register_hook(hook())

    wrapper._adds_hooks = True
    return wrapper
