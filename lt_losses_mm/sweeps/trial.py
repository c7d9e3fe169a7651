# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""A trial: one complete config, and the folder that it is trained in."""

from __future__ import annotations

import copy
import difflib
import importlib
import inspect
import itertools
import json
import os
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterator, Mapping

import mmengine.registry
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, Registry
from mmengine.runner import Runner

from ..cache import in_one_step
from ..integration import configs_folder
from ..recipes import VARIABLE, fits, loss_configs, loss_place, read_config
from . import origin, worker
from .plan import Method, Plan, PlanError, base_of

# `train.py` and `test.py` of a clone or of a wheel.
TOOLS = configs_folder().parent / 'tools'
# Keys of a config that MMEngine or the tools read; a file may have variables
# beside them.
READ = {
    *inspect.signature(Runner.__init__).parameters,
    *('custom_imports', 'default_scope', 'tta_model', 'tta_pipeline'),
}
# Where a run is; no number depends on it.
NOT_IN_KEY = ('work_dir', 'resume', 'launcher')


@dataclass
class Trial:
    """One training of a plan, or one test of a trained model.

    Args:
        task: Of the plan.
        method: Of the plan.
        seed: ``randomness.seed``.
        cfg: The complete config, but for the checkpoints that it needs.
        key: Digest of all that the numbers depend on.
        config_key: Digest of the config without its seed.
        data_key: Digest of the files of its data.
        code: Parts of the package that run, see :func:`origin.code`.
        folder: Where it is trained.
        needs: Config key -> the trial or trials whose checkpoints go there.
        test: Whether only a checkpoint is tested.
        gpus: How many it is trained on; 0: the CPU.
    """

    task: str
    method: str
    seed: int
    cfg: Config = field(repr=False)
    key: str
    config_key: str
    data_key: str
    code: str
    folder: Path
    needs: Mapping[str, Any]
    test: bool
    gpus: int

    def __str__(self) -> str:
        return f'{self.task}/{self.method}/{self.seed}'

    @property
    def needed(self) -> Iterator[Trial]:
        """The trials that come before it."""
        for trials in self.needs.values():
            yield from trials if isinstance(trials, list) else [trials]

    def config(self) -> Config:
        """The config with the checkpoints of what is done.

        Of what is not, a path that says whose checkpoint it will be.
        """
        cfg = copy.deepcopy(self.cfg)
        cfg.merge_from_dict(
            {
                key: [checkpoint_of(one) for one in trials]
                if isinstance(trials, list)
                else checkpoint_of(trials)
                for key, trials in self.needs.items()
            }
        )
        cfg.work_dir = str(self.folder)
        return cfg

    def write_config(self) -> tuple[Config, Path]:
        """Write the config into the folder, for ``mim train`` as well."""
        cfg, file = self.config(), self.folder / 'config.py'
        with in_one_step(file) as part:
            part.write_text(cfg.pretty_text, 'utf-8')
        return cfg, file

    def prepare(self, metrics: list[str]) -> None:
        """Write the folder that a worker needs.

        Args:
            metrics: Names in the log, the overall one first.
        """
        cfg, file = self.write_config()
        # MMEngine writes what it trains with into the work directory, under
        # the name of its config; one that resumes is none to run alone.
        trained = self.folder / '.config' / 'as_trained.py'
        with in_one_step(trained) as part:
            part.write_text(cfg.pretty_text, 'utf-8')
        start = [sys.executable]
        end: list[str] = []
        if self.gpus > 1:
            start += ['-m', 'torch.distributed.run', '--standalone']
            start += [f'--nproc-per-node={self.gpus}']
            end += ['--launcher', 'pytorch']
        # When the loops of MMEngine evaluate.
        loop = cfg.get('train_cfg') or {}
        epochs = loop.get('by_epoch', 'Iter' not in str(loop.get('type')))
        interval = loop.get('val_interval', 1 if epochs else 1000)
        worker.write_json(
            self.folder / worker.TRIAL,
            dict(
                train=[
                    *(*start, str(TOOLS / 'train.py'), str(trained)),
                    *('--work-dir', str(self.folder), *end),
                ],
                # The checkpoint goes last.
                test=[*start, str(TOOLS / 'test.py'), *end, str(file)],
                val=[loop.get('val_begin', 1), interval],
                checkpoint=cfg.load_from if self.test else '',
                metrics=metrics,
                code=self.code,
                cwd=os.getcwd(),
            ),
        )


def checkpoint_of(trial: Trial) -> str:
    """Path of the last checkpoint of a trial, or whose it will be."""
    done = trial.folder / worker.DONE
    if not done.exists():
        return f'<the last checkpoint of {trial}>'
    return str(trial.folder / json.loads(done.read_text())['checkpoint'])


def trials_of(plan: Plan, folder: Path) -> tuple[list[Trial], list[str]]:
    """All trials of a plan, those that others need before them.

    Args:
        plan: A plan.
        folder: Of the sweep; each trial has one below it.

    Returns:
        tuple: The trials, and a sentence on each task that does not take
        some of the methods, and on each option that may do nothing.

    Raises:
        PlanError: If a config cannot be read, or a method that a task asks
            for by its name does not fit.
    """
    builder = Builder(plan, folder)
    seeds = {seed: None for task in plan.tasks for seed in plan.seeds_of(task)}
    # Every method has a first run before one has a second.
    for seed, task in itertools.product(seeds, plan.tasks):
        methods, by_name = plan.methods_of(task)
        for method in methods if seed in plan.seeds_of(task) else ():
            if not plan.excludes(task, method, seed):
                builder.trial(task, method, seed, by_name)
    trials = list(builder.trials.values())
    if not trials:
        plan.refuse(
            ('methods',),
            sorted(
                {m for task in plan.tasks for m in plan.methods_of(task)[0]}
            ),
            'a method that a task takes and no rule excludes',
            'see docs/which_loss.md: which head takes which loss',
        )
    most = plan.budget.get('trials')
    if most is not None and len(trials) > most:
        plan.refuse(
            ('budget', 'trials'),
            most,
            f'at least {len(trials)}, the trials of this plan',
            'raise it, or exclude some',
        )
    return trials, [
        *(
            f'{task}: left out, because the head does not take the loss: '
            f'{", ".join(methods)}'
            for task, methods in builder.left_out.items()
        ),
        *builder.notes,
    ]


class Builder:
    """Makes trials, each once.

    Args:
        plan: A plan.
        folder: Of the sweep.
    """

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan = plan
        self.folder = folder
        self.trials: dict[tuple[str, str, int], Trial] = {}
        self.left_out: dict[str, list[str]] = {}
        self.notes: dict[str, None] = {}
        self._configs: dict[tuple[str, str], Config | None] = {}

    def trial(
        self, task: str, method: str, seed: int, by_name: bool
    ) -> Trial | None:
        """Build a trial and those that it needs; ``None``: it fits not."""
        place = task, method, seed
        if place in self.trials:
            return self.trials[place]
        how = self.plan.methods[method]
        needs: dict[str, Any] = {}
        for key, names in how.needs.items():
            several = names if isinstance(names, list) else [names]
            found = [self.trial(task, one, seed, by_name) for one in several]
            if None in found:
                self._leave_out(task, method)
                return None
            needs[key] = found if isinstance(names, list) else found[0]
        cfg = self._config(task, method, by_name)
        if cfg is None:
            return None
        cfg = copy.deepcopy(cfg)
        cfg.setdefault('randomness', {})
        plain = cfg.to_dict()
        for name in NOT_IN_KEY:
            plain.pop(name, None)
        plain['randomness'].pop('seed', None)
        gpus = self.plan.tasks[task].get('gpus', 0)
        before = [
            (key, one)
            for key, some in sorted(needs.items())
            for one in (some if isinstance(some, list) else [some])
        ]
        config = origin.digest(
            json.dumps(plain, sort_keys=True, default=str),
            f'test={how.test} batches={max(gpus or 1, 1)}',
            *(f'{key} {one.config_key}' for key, one in before),
        )
        data = origin.data(plain)
        code = origin.code(set(_loss_modules(plain)), _custom_modules(plain))
        # With its names: rows of two names have to stay two.
        key = origin.digest(
            f'{task} {method} {seed} {config} {data} {code}',
            *(one.key for _, one in before),
        )
        cfg.randomness['seed'] = seed
        name = f'{task}-{method}-seed{seed}-{key}'
        trial = Trial(
            task,
            method,
            seed,
            cfg,
            key,
            config,
            data,
            code,
            (self.folder / 'trials' / _safe(name)).resolve(),
            needs,
            how.test,
            gpus,
        )
        self.trials[place] = trial
        return trial

    def _leave_out(self, task: str, method: str) -> None:
        methods = self.left_out.setdefault(task, [])
        if method not in methods:
            methods.append(method)

    def _config(self, task: str, method: str, by_name: bool) -> Config | None:
        if (task, method) not in self._configs:
            self._configs[task, method] = self._read(task, method, by_name)
        return self._configs[task, method]

    def _read(self, task: str, method: str, by_name: bool) -> Config | None:
        plan, how = self.plan, self.plan.methods[method]
        override = plan.override(task, method)
        keys: tuple[str, ...] = ('tasks', task, 'config')
        name = plan.tasks[task]['config']
        if 'config' in override:
            keys = plan.overridden_in(task, method, 'config')
            name = override['config']
        path = self._path(name, keys)
        try:
            plain = read_config(path)
            recipe = VARIABLE in plain.env_variables and 'lt_loss' not in plain
            if (
                how.loss is None
                or 'config' in override
                or (not recipe and _is_its_own(plain, how.loss))
            ):
                cfg = plain
            elif not fits(plain, how.loss):
                if by_name:
                    base = base_of(method)
                    asked = plan.tasks[task].get('methods', [])
                    plan.refuse(
                        ('tasks', task, 'methods', asked.index(base))
                        if base in asked
                        else ('tasks', task, 'methods'),
                        method,
                        f'methods whose loss the head of {name} takes',
                        'see docs/which_loss.md: which head takes which loss',
                    )
                self._leave_out(task, method)
                return None
            elif recipe:
                cfg = read_config(path, how.loss)
            else:
                cfg = plain
                loss = _fragment(how.loss)
                for head, key in loss_configs(cfg):
                    place, index = loss_place(head, key)
                    place[index] = copy.deepcopy(loss)
        except PlanError:
            raise
        except Exception as error:
            plan.refuse(keys, name, f'a config that can be read, but: {error}')
        cfg.merge_from_dict(self._options(cfg, task, how))
        if how.hooks:
            hooks = [*(cfg.get('custom_hooks') or []), *how.hooks]
            cfg.custom_hooks = [dict(hook) for hook in hooks]
        cfg.launcher = 'none'
        self._check_losses(cfg, task, method, keys)
        return cfg

    def _path(self, name: str, keys: tuple[str, ...]) -> Path:
        if name.startswith('lt_losses_mm::'):
            places = [configs_folder() / name.partition('::')[2]]
        else:
            places = [self.plan.path.parent / name, Path(name)]
        for place in places:
            if place.is_file():
                return place
        self.plan.refuse(
            keys,
            name,
            f'a file, and there is no {" nor ".join(map(str, places))}',
        )

    def _options(self, cfg: Config, task: str, how: Method) -> dict[str, Any]:
        """Options with ``loss.`` in the place that it has in the model."""
        plan = self.plan
        found: dict[str, Any] = {}
        for key, value in plan.options_of(task, how.name).items():
            if key.startswith('loss.'):
                self._set_of_loss(cfg, task, how.name, key, value)
                continue
            place = self._place_of(task, how.name, key)
            node: Any = cfg
            *above, last = key.split('.')
            try:
                for part in above:
                    node = node[int(part) if isinstance(node, list) else part]
                part = last
                if isinstance(node, list):
                    node[int(part)]
                else:
                    taken = {*node.keys(), *_parameters_of(node), 'type'}
                    self._note(place, value, sorted(taken))
            except (
                AttributeError,
                KeyError,
                IndexError,
                ValueError,
                TypeError,
            ):
                plan.refuse(
                    place,
                    value,
                    f'a key of the config, which has no {part!r} in {key}',
                    'name a key that is there',
                )
            found[key] = value
        return found

    def _note(
        self, place: tuple[str, ...], value: Any, known: list[str]
    ) -> None:
        """Note an option that may do nothing.

        Args:
            place: Of the option in the plan.
            value: Of it.
            known: Keys that the config has there, or can have.
        """
        above, _, key = place[-1].rpartition('.')
        why = ''
        if key not in known:
            close = difflib.get_close_matches(key, known, 1)
            why = 'a new key of the config' + (
                f'; there is {close[0]}' if close else ''
            )
        elif not above and key not in READ:
            why = (
                'a variable of the config that MMEngine does not read; what '
                'the file makes of it stays as it is'
            )
        if why:
            name = '.'.join(place)
            where = self.plan.where(*place)
            self.notes[f'{where}: {name}={value!r} is {why}'] = None

    def _set_of_loss(
        self, cfg: Config, task: str, method: str, key: str, value: Any
    ) -> None:
        """Set ``loss.NAME`` in each head."""
        name = key.partition('.')[2]
        place = self._place_of(task, method, key)
        try:
            losses = [
                container[index]
                for container, index in (
                    loss_place(*found) for found in loss_configs(cfg)
                )
            ]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            self.plan.refuse(
                place,
                value,
                'a config whose model has a head with a loss, but: '
                f'{type(error).__name__}: {error}',
            )
        for loss in losses:
            kind = str(loss.get('type'))
            if not kind.startswith('lt_losses_mm.'):
                scope = cfg.get('default_scope', 'mmengine')
                known = _parameters(kind, scope)
                if known and name not in known:
                    self.plan.refuse(
                        place,
                        value,
                        f'a parameter of {kind}, the loss of {method}, which '
                        f'are {", ".join(known)}',
                        self._elsewhere(place, task),
                    )
            loss[name] = copy.deepcopy(value)

    def _elsewhere(self, place: tuple[str, ...], task: str) -> str:
        """What to do with an option that a loss does not take."""
        if place[2:3] != ('options',) or place[0] != 'tasks':
            return 'name one of them'
        return (
            f'name one of them, or put it into tasks.{task}.overrides or '
            'define, for the methods that take it'
        )

    def _place_of(self, task: str, method: str, key: str) -> tuple[str, ...]:
        """Where the plan has an option, see ``Plan.options_of``."""
        how, name = self.plan.methods[method], base_of(method)
        if key in how.searched:
            return ('search', 'parameters', key)
        if key in self.plan.override(task, method)['options']:
            return self.plan.overridden_in(task, method, 'options', key)
        if key in how.options:
            return ('define', name, self.plan.kind_of(name, key), key)
        return ('tasks', task, 'options', key)

    def _check_losses(
        self, cfg: Config, task: str, method: str, keys: tuple[str, ...]
    ) -> None:
        """Build our losses as the heads do, for their own errors."""
        try:
            places = loss_configs(cfg)
        except (ValueError, AttributeError):
            return  # A model of its own; its training says what it lacks.
        for head, key in places:
            losses = head.get(key)
            for loss in losses if isinstance(losses, list) else [losses]:
                kind = (loss or {}).get('type')
                if not str(kind).startswith('lt_losses_mm.'):
                    continue
                try:
                    built = MODELS.build(copy.deepcopy(loss))
                    if 'num_classes' in head:
                        built.set_num_classes(
                            head['num_classes'], f'the {head["type"]}'
                        )
                except (ValueError, TypeError) as error:
                    self._blame_option(error, loss, task, method)
                    name = base_of(method)
                    place = self.plan.where('define', name)
                    if not self.plan.has('define', name):
                        place = self.plan.where(*keys)
                    raise PlanError(
                        f'{place}: {task}/{method}: {error}'
                    ) from error

    def _blame_option(
        self,
        error: Exception,
        loss: dict[str, Any],
        task: str,
        method: str,
    ) -> None:
        """Refuse the option of the loss that an error is about, if any."""
        kind = MODELS.get(loss['type'])
        known = inspect.signature(kind).parameters
        for key, value in self.plan.options_of(task, method).items():
            scope, _, name = key.partition('.')
            if scope != 'loss':
                continue
            place = self._place_of(task, method, key)
            if name not in known:
                self.plan.refuse(
                    place,
                    value,
                    f'a parameter of {kind.__name__}, which are '
                    f'{", ".join(known)}',
                    self._elsewhere(place, task),
                )
            if str(error).startswith(f'{kind.__name__}: {name}='):
                self.plan.refuse(
                    place, value, f'what the loss takes, but: {error}'
                )


def _fragment(loss: str) -> dict[str, Any]:
    path = configs_folder() / f'_base_/losses/{loss}.py'
    found = dict(Config.fromfile(path).lt_loss)
    del found['_delete_']
    return found


def _is_its_own(cfg: Config, loss: str) -> bool:
    """Whether a loss of the hosts is what a config has, in its own way."""
    kind = _fragment(loss)['type']
    return '.' not in kind and all(
        place[index].get('type') == kind
        for place, index in (loss_place(*x) for x in loss_configs(cfg))
    )


def _parameters_of(node: Config | ConfigDict) -> list[str]:
    """What a class of MMEngine or of this package takes, if it is one."""
    scope, _, kind = str(node.get('type')).rpartition('.')
    if scope not in ('', 'mmengine', 'lt_losses_mm'):
        return []
    for registry in vars(mmengine.registry).values():
        # Nothing is imported for it.
        if isinstance(registry, Registry) and kind in registry.module_dict:
            return list(inspect.signature(registry.get(kind)).parameters)
    return []


def _parameters(kind: str, scope: str) -> list[str]:
    """What a loss of a host takes; empty if that cannot be told."""
    scope, name = ([scope, *kind.split('.')])[-2:]
    try:
        importlib.import_module(f'{scope}.registry')
        known = inspect.signature(MODELS.get(f'{scope}.{name}')).parameters
    except Exception:  # Its training says what is wrong with the host.
        return []
    if any(one.kind is one.VAR_KEYWORD for one in known.values()):
        return []
    return list(known)


def _loss_modules(node: Any) -> Iterator[str]:
    """Modules of the losses of the package that a config names."""
    modules = origin.loss_modules()
    if isinstance(node, dict):
        kind = str(node.get('type', ''))
        scope, _, name = kind.rpartition('.')
        if scope == 'lt_losses_mm' and name in modules:
            yield modules[name]
        for child in node.values():
            yield from _loss_modules(child)
    elif isinstance(node, (list, tuple)):
        for child in node:
            yield from _loss_modules(child)


def _custom_modules(cfg: dict[str, Any]) -> set[str]:
    """Modules of others that a config imports."""
    names = (cfg.get('custom_imports') or {}).get('imports') or ()
    names = [names] if isinstance(names, str) else names
    return {name for name in names if name.split('.')[0] != 'lt_losses_mm'}


def _safe(name: str) -> str:
    """A name for a folder."""
    return ''.join(c if c.isalnum() or c in '._-' else '_' for c in name)


def command_of(plan: Plan, trial: Trial) -> str:
    """What runs this one trial again."""
    tool = ['python', 'tools/sweep.py']
    if TOOLS.parent.name == '.mim':
        tool = ['mim', 'run', 'mm-lt-losses', 'sweep']
    path = os.path.relpath(plan.path)
    return shlex.join([*tool, 'run', path, '--only', str(trial)])
