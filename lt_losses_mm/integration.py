# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""What importing the package changes in MMEngine, all of it, in one place.

Four things, each because MMEngine offers no entry point for it:

1. ``mmengine.config.utils.MODULE2PACKAGE`` learns two names, so that a config
   may inherit from ``lt_losses_mm::...`` (refused otherwise) and from
   ``mmseg::...`` (whose distribution has another name in the maintained
   fork).
2. ``Config._get_cfg_path`` finds ``lt_losses_mm::...`` in a clone as well as
   in a wheel, and gives it no scope. MMEngine would look up every type of
   such a base, the hosts' among them, in this package; our own types have
   its name in front of them.
3. ``Runner.register_hooks`` adds each hook of ``lt_losses_mm.hooks.ATTACHED``
   to a runner that has none, so that no loss needs a further line in a
   config. See
   ``docs/decisions/0002-hook-attaches-itself``.
4. ``BaseDataset`` says why no sample is left, before any hook runs: the hosts
   end there with an error of numpy's.
"""

from __future__ import annotations

import difflib
import functools
import logging
from pathlib import Path

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from mmengine.runner import Runner

from .messages import fault, logger
from .priors.unready import why_unready


def configs_folder() -> Path:
    """Where the configs are: in a wheel, or beside the package in a clone."""
    here = Path(__file__).parent
    wheel, clone = here / '.mim/configs', here.parent / 'configs'
    return wheel if wheel.is_dir() else clone


class _ToMMEngine(logging.Handler):
    """Hands what the core logs to the logger of the run."""

    def emit(self, record: logging.LogRecord) -> None:
        print_log(record.getMessage(), 'current', record.levelno)


def install() -> None:
    """Connect the package to MMEngine; calling it again changes nothing."""
    if not any(isinstance(one, _ToMMEngine) for one in logger.handlers):
        logger.addHandler(_ToMMEngine())
        logger.setLevel(logging.INFO)
        # The package lvis gives the root a handler, when mmdet imports it:
        # each line would come twice.
        logger.propagate = False
    MODULE2PACKAGE['mmseg'] = 'mmseg'
    MODULE2PACKAGE['lt_losses_mm'] = 'lt_losses_mm'
    if not hasattr(Config._get_cfg_path, '_knows_own_configs'):
        Config._get_cfg_path = staticmethod(
            _with_own_configs(Config._get_cfg_path)
        )
    if not hasattr(Runner.register_hooks, '_adds_hooks'):
        Runner.register_hooks = _with_hooks(Runner.register_hooks)
    for name in ('full_init', '_serialize_data'):  # mmdet has its own first.
        method = getattr(BaseDataset, name)
        if not hasattr(method, '_says_why'):
            setattr(BaseDataset, name, _with_reason(method))


def _with_own_configs(get_cfg_path):

    @functools.wraps(get_cfg_path)
    def wrapper(cfg_path, filename):
        package, _, name = cfg_path.partition('::')
        if package != 'lt_losses_mm':
            return get_cfg_path(cfg_path, filename)
        configs = configs_folder()
        if not (configs / name).is_file():
            known = [
                path.relative_to(configs).as_posix()
                for path in configs.rglob('*.py')
            ]
            close = difflib.get_close_matches(name, known, 1)
            raise fault(
                '_base_',
                cfg_path,
                f'a config below {configs}',
                f"write 'lt_losses_mm::{close[0]}' if that is the one you mean"
                if close
                else 'name it with its folders, as in lt_losses_mm::'
                '_base_/losses/balanced_softmax.py',
                str(filename),
            )
        return str(configs / name), None

    wrapper._knows_own_configs = True
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


def _with_reason(method):

    @functools.wraps(method)
    def wrapper(self, *args, **kwargs):
        try:
            return method(self, *args, **kwargs)
        except (AssertionError, ValueError) as error:
            reason = why_unready(self, error)
            if reason is None:
                raise
            raise reason from error

    wrapper._says_why = True
    return wrapper
