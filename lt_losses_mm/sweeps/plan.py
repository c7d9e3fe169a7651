# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""A plan: tasks x methods x seeds, from one YAML file."""

from __future__ import annotations

import difflib
import itertools
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Iterator, Mapping, NoReturn

import yaml
from jsonschema import Draft202012Validator, validators

from ..messages import describe

_NAME = {
    'type': 'string',
    'pattern': r'^[A-Za-z0-9][\w.-]*$',
    'description': 'a word of letters, digits, ".", "_" and "-"',
}
_REFERENCE = {
    'type': 'string',
    'pattern': r'^[A-Za-z0-9][\w.-]*(\[.+\])?$',
    'description': 'the name of a method; of one with a grid NAME[KEY=VALUE]',
}
_NAMES = {
    'type': 'array',
    'items': _REFERENCE,
    'minItems': 1,
    'uniqueItems': True,
    'description': 'a list of different names, [a, b]',
}
_METHODS = {
    'anyOf': [_NAMES, {'const': 'all'}],
    'description': 'a list of losses and of methods that "define" has, or all',
}
_SEEDS = {
    'type': 'array',
    'items': {
        'type': 'integer',
        'minimum': 0,
        'description': 'a whole number, 0 or more',
    },
    'minItems': 1,
    'uniqueItems': True,
    'description': 'a list of different whole numbers, [0, 1, 2]',
}
_OPTIONS = {
    'type': 'object',
    'description': 'keys of the config with their values, as in '
    '"optim_wrapper.optimizer.lr: 0.01"; "loss.tau" is a key of the loss '
    'wherever it hangs',
}
_CONFIG = {
    'type': 'string',
    'description': 'path of a config, from the folder of the plan or the '
    'present one, or lt_losses_mm::PATH for one of this package',
}
_OVERRIDE = {
    'type': 'object',
    'additionalProperties': False,
    'properties': {'config': _CONFIG, 'options': _OPTIONS},
    'description': 'what differs for one method: config, options',
}
_TASK = {
    'type': 'object',
    'additionalProperties': False,
    'required': ['config', 'metrics'],
    'properties': {
        'config': _CONFIG,
        'dataset': {'type': 'string', 'description': 'a name for the ledger'},
        'metrics': {
            'type': 'object',
            'additionalProperties': False,
            'required': ['overall'],
            'properties': {
                role: {
                    'type': 'string',
                    'description': 'a key of the log, e.g. accuracy/all',
                }
                for role in ('overall', 'head', 'middle', 'tail')
            },
            'description': 'names of metrics for overall, head, middle and '
            'tail',
        },
        'scale': {
            'type': 'number',
            'exclusiveMinimum': 0,
            'description': 'a factor to percent: 1 or 100',
        },
        'baseline': _REFERENCE,
        'methods': _METHODS,
        'seeds': _SEEDS,
        'options': _OPTIONS,
        'overrides': {
            'type': 'object',
            'additionalProperties': _OVERRIDE,
            'description': 'method -> config, options',
        },
        'gpus': {
            'type': 'integer',
            'minimum': 0,
            'description': 'a number of GPUs of one training',
        },
    },
    'description': 'a task: config, metrics, ...',
}
_METHOD = {
    'type': 'object',
    'additionalProperties': False,
    'properties': {
        'loss': _NAME,
        'options': _OPTIONS,
        'hooks': {
            'type': 'array',
            'items': {
                'type': 'object',
                'required': ['type'],
                'properties': {
                    'type': {
                        'type': 'string',
                        'description': 'the name of a hook',
                    }
                },
                'description': 'a dict with "type"',
            },
            'description': 'a list of dicts with "type", added to '
            'custom_hooks',
        },
        'needs': {
            'type': 'object',
            'minProperties': 1,
            'additionalProperties': {'anyOf': [_REFERENCE, _NAMES]},
            'description': 'config key -> method whose checkpoint goes there, '
            'e.g. load_from: cross_entropy',
        },
        'test': {
            'type': 'boolean',
            'description': 'true, if the checkpoint that it needs as '
            'load_from is tested and nothing trained',
        },
        'grid': {
            'type': 'object',
            'minProperties': 1,
            'additionalProperties': {
                'type': 'array',
                'minItems': 1,
                'description': 'a list of values',
            },
            'description': 'config key -> list of values; one method for '
            'each combination',
        },
    },
    'description': 'a method: loss, options, hooks, needs, test, grid',
}
_SEARCH = {
    'type': 'object',
    'additionalProperties': False,
    'required': ['method', 'parameters', 'trials'],
    'properties': {
        'method': _NAME,
        'parameters': {
            'type': 'object',
            'minProperties': 1,
            'additionalProperties': {
                'anyOf': [
                    {
                        'type': 'array',
                        'items': {'type': ['number', 'string', 'boolean']},
                        'minItems': 2,
                        'uniqueItems': True,
                    },
                    {
                        'type': 'object',
                        'required': ['low', 'high'],
                        'additionalProperties': False,
                        'properties': {
                            'low': {'type': 'number'},
                            'high': {'type': 'number'},
                            'log': {'type': 'boolean'},
                        },
                    },
                ],
                'description': 'a list of values, or {low: 0.1, high: 10}, '
                'with log: true if a factor counts',
            },
            'description': 'config key -> list of values, or low and high',
        },
        'trials': {
            'type': 'integer',
            'minimum': 1,
            'description': 'a number of values that are tried in each task',
        },
        'metric': {
            'enum': ['overall', 'head', 'middle', 'tail'],
            'description': 'the metric that shall be high: tail, overall, '
            'head or middle',
        },
    },
    'description': 'what `sweep search` does: method, parameters, trials, '
    'metric',
}
SCHEMA = {
    'type': 'object',
    'additionalProperties': False,
    'required': ['name', 'seeds', 'methods', 'tasks'],
    'properties': {
        'name': _NAME,
        'seeds': _SEEDS,
        'methods': _METHODS,
        'tasks': {
            'type': 'object',
            'minProperties': 1,
            'propertyNames': _NAME,
            'additionalProperties': _TASK,
            'description': 'name -> task',
        },
        'define': {
            'type': 'object',
            'propertyNames': _NAME,
            'additionalProperties': _METHOD,
            'description': 'name -> method that is more than a loss',
        },
        'exclude': {
            'type': 'array',
            'items': {
                'type': 'object',
                'minProperties': 1,
                'additionalProperties': False,
                'properties': {
                    'task': _NAME,
                    'method': _REFERENCE,
                    'seed': {
                        'type': 'integer',
                        'description': 'a whole number',
                    },
                },
                'description': 'a dict of task, method, seed',
            },
            'description': 'a list of dicts of task, method, seed',
        },
        'budget': {
            'type': 'object',
            'additionalProperties': False,
            'properties': {
                'hours': {
                    'type': 'number',
                    'exclusiveMinimum': 0,
                    'description': 'hours after which no trial is started',
                },
                'trials': {
                    'type': 'integer',
                    'minimum': 1,
                    'description': 'the most trials of the plan',
                },
            },
            'description': 'hours, trials',
        },
        'search': _SEARCH,
    },
    'description': 'a plan: name, seeds, methods, tasks, ...',
}


# For JSON 1.0 is a whole number; a seed in the name of a folder is none then.
_Validator = validators.extend(
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine(
        'integer', lambda _, value: type(value) is int
    ),
)


class PlanError(ValueError):
    """A plan says something that cannot be done; told before any training."""


@dataclass(frozen=True)
class Method:
    """How the trainings of one row differ from those of the others.

    Args:
        name: In the ledger.
        loss: A file of ``configs/_base_/losses``; ``None``: the config's.
        options: Config key -> value.
        hooks: Added to ``custom_hooks``.
        needs: Config key -> method whose checkpoint goes there, or methods.
        test: Whether the checkpoint that it needs is only tested.
        searched: Config key -> value that a search tries.
    """

    name: str
    loss: str | None
    options: Mapping[str, Any]
    hooks: tuple[Mapping[str, Any], ...] = ()
    needs: Mapping[str, Any] = field(default_factory=dict)
    test: bool = False
    searched: Mapping[str, Any] = field(default_factory=dict)


class Plan:
    """A plan that has the right keys; whether it can be done is not known.

    Args:
        path: YAML file.
        losses: The losses that can be named.

    Raises:
        PlanError: With file, line, key, value, expectation and fix.
    """

    def __init__(self, path: str | Path, losses: list[str]) -> None:
        self.path = Path(path)
        self.losses = losses
        try:
            text = self.path.read_text('utf-8-sig')
        except (OSError, UnicodeDecodeError) as error:
            raise PlanError(
                describe(
                    'plan', str(path), f'a YAML file in UTF-8, but: {error}'
                )
            ) from None
        try:
            self._node = yaml.compose(text, Loader=_Loader)
            content = yaml.load(text, Loader=_Loader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            number = mark.line if mark else 0
            raise PlanError(
                describe(
                    'plan',
                    # A bracket that is open at the end has no line.
                    ''.join(text.splitlines()[number : number + 1]).strip(),
                    f'YAML, but: {error.problem or error.context}',
                    error.note or '',
                    f'{self.path}:{number + 1}',
                )
            ) from None
        except yaml.YAMLError as error:  # E.g. a control character.
            raise PlanError(
                describe('plan', str(path), f'YAML, but: {error}')
            ) from None
        problem = next(
            iter(
                sorted(
                    _Validator(SCHEMA).iter_errors(content),
                    key=lambda error: (len(error.path), str(error.path)),
                )
            ),
            None,
        )
        if problem is not None:
            self._refuse(problem)
        self.name: str = content['name']
        self.tasks: dict[str, dict[str, Any]] = content['tasks']
        self.budget: dict[str, float] = content.get('budget', {})
        self.excluded: list[dict[str, Any]] = content.get('exclude', [])
        self.search: dict[str, Any] = content.get('search', {})
        self._content = content
        self.methods = self._methods()
        self._check()

    def where(self, *keys: str | int) -> str:
        """``FILE:LINE`` of a key, of the last one that is there."""
        node, line = self._node, 1
        for key in keys:
            found = None
            if isinstance(node, yaml.MappingNode):
                for name, value in node.value:
                    if name.value == str(key):
                        line, found = name.start_mark.line + 1, value
            elif isinstance(node, yaml.SequenceNode):
                if isinstance(key, int) and key < len(node.value):
                    found = node.value[key]
                    line = found.start_mark.line + 1
            if found is None:
                break
            node = found
        return f'{self.path}:{line}'

    def has(self, *keys: str) -> bool:
        """Whether there is such a key."""
        node = self._content
        for key in keys:
            if key not in node:
                return False
            node = node[key]
        return True

    def refuse(
        self, keys: tuple[str | int, ...], value: Any, expected: str, fix=''
    ) -> NoReturn:
        """Raise a ``PlanError`` about a key."""
        raise PlanError(
            describe(
                '.'.join(map(str, keys)),
                value,
                expected,
                fix,
                self.where(*keys),
            )
        )

    def _refuse(self, problem: Any) -> NoReturn:
        keys = tuple(problem.path)
        schema = problem.schema
        if problem.validator == 'additionalProperties':
            known = list(schema['properties'])
            unknown = next(k for k in problem.instance if k not in known)
            close = difflib.get_close_matches(str(unknown), known, 1)
            self.refuse(
                (*keys, unknown),
                problem.instance[unknown],
                f'one of the keys {", ".join(known)}',
                f'write {close[0]}' if close else 'take it out',
            )
        if problem.validator == 'required':
            missing = next(
                k for k in schema['required'] if k not in problem.instance
            )
            self.refuse(
                (*keys, missing),
                None,
                schema['properties'][missing]['description'],
                f'add the key {missing}',
            )
        if 'propertyNames' in problem.schema_path:
            keys = (*keys, problem.instance)
        if problem.validator == 'minProperties':
            expected = 'at least one entry'
        else:
            expected = schema.get('description') or problem.message
        found = problem.instance
        for index, value in enumerate(found if type(found) is list else ()):
            if value in found[:index]:
                expected += f'; {value!r} is there twice'
                break
        self.refuse(keys or ('plan',), problem.instance, expected)

    def _methods(self) -> dict[str, Method]:
        """Every method that the plan can name, grids expanded."""
        found = {name: Method(name, name, {}, (), {}) for name in self.losses}
        self._grids: dict[str, list[str]] = {}
        for name, entry in self._content.get('define', {}).items():
            loss = entry.get('loss')
            if loss is None and name in self.losses:
                loss = name
            if loss is not None and loss not in self.losses:
                self._unknown(('define', name, 'loss'), loss, self.losses)
            grid = entry.get('grid', {})
            names = []
            for values in itertools.product(*grid.values()):
                point = dict(zip(grid, values))
                names.append(_labelled(name, point) if point else name)
                found[names[-1]] = Method(
                    names[-1],
                    loss,
                    {**entry.get('options', {}), **point},
                    tuple(entry.get('hooks', ())),
                    entry.get('needs', {}),
                    entry.get('test', False),
                )
            self._grids[name] = names
        return found

    def point(self, values: Mapping[str, Any]) -> str:
        """Add the method that a search tries, and return its name.

        Args:
            values: Config key -> value, for all parameters of the search.
        """
        how = self.methods[self.search['method']]
        name = _labelled(how.name, values)
        self.methods[name] = replace(how, name=name, searched=values)
        return name

    def kind_of(self, name: str, key: str) -> str:
        """Whether a method has a config key in its grid or its options."""
        return 'grid' if key in self._grid(name) else 'options'

    def _grid(self, method: str) -> Mapping[str, Any]:
        entry = self._content.get('define', {}).get(base_of(method), {})
        return entry.get('grid', {})

    def _unknown(
        self, keys: tuple[str | int, ...], value: Any, known: list[Any]
    ) -> NoReturn:
        names = list(map(str, known))
        close = difflib.get_close_matches(str(value), names, 1)
        fix = f'write {close[0]}' if close else ''
        for name in names:
            if base_of(name) == value:  # Quoted, as a list of YAML needs it.
                fix = f"write one of its points, e.g. '{name}'"
                break
        self.refuse(keys, value, f'one of {", ".join(names)}', fix)

    def _named(self, names: list[str], *keys: str) -> list[str]:
        """Names of methods, those with a grid expanded."""
        found = []
        for index, name in enumerate(names):
            if name not in self.methods and name not in self._grids:
                known = sorted({*self.methods, *self._grids})
                self._unknown((*keys, index), name, known)
            found += self._grids.get(name, [name])
        return list(dict.fromkeys(found))

    def methods_of(self, task: str) -> tuple[list[str], bool]:
        """Methods of a task, and whether each was asked for by its name.

        What the plan lists for all tasks goes where it fits.
        """
        own = self.tasks[task].get('methods')
        keys = ('tasks', task, 'methods') if own else ('methods',)
        names = own or self._content['methods']
        if names == 'all':
            defined = itertools.chain(*self._grids.values())
            return list(dict.fromkeys([*self.losses, *defined])), False
        return self._named(names, *keys), own is not None

    def seeds_of(self, task: str) -> list[int]:
        return self.tasks[task].get('seeds', self._content['seeds'])

    def baseline_of(self, task: str) -> str:
        """The method that others are compared with: the first, if unsaid."""
        found = self.tasks[task].get('baseline')
        return found or self.methods_of(task)[0][0]

    def options_of(self, task: str, method: str) -> dict[str, Any]:
        """Config key -> value, of the task, then of the method, then both."""
        return {
            **self.tasks[task].get('options', {}),
            **self.methods[method].options,
            **self.override(task, method)['options'],
            **self.methods[method].searched,
        }

    def override(self, task: str, method: str) -> dict[str, Any]:
        """What a point of a grid has wins over what all its points have."""
        overrides = self.tasks[task].get('overrides', {})
        every = overrides.get(base_of(method), {})
        own = overrides.get(method, {})
        options = {**every.get('options', {}), **own.get('options', {})}
        return {**every, **own, 'options': options}

    def overridden_in(
        self, task: str, method: str, *keys: str
    ) -> tuple[str, ...]:
        """The keys above one of :meth:`override`."""
        place = ('tasks', task, 'overrides')
        own = (*place, method, *keys)
        return own if self.has(*own) else (*place, base_of(method), *keys)

    def excludes(self, task: str, method: str, seed: int) -> bool:
        return any(
            rule.get('task', task) == task
            and rule.get('method', method) in (method, base_of(method))
            and rule.get('seed', seed) == seed
            for rule in self.excluded
        )

    def _check(self) -> None:
        for task, entry in self.tasks.items():
            methods, _ = self.methods_of(task)
            if self.baseline_of(task) not in methods:
                self._unknown(
                    ('tasks', task, 'baseline'), entry['baseline'], methods
                )
            for name, override in entry.get('overrides', {}).items():
                keys: tuple[str, ...] = ('tasks', task, 'overrides', name)
                if name not in {*methods, *map(base_of, methods)}:
                    self._unknown(keys, name, methods)
                for key, value in override.get('options', {}).items():
                    if key in self._grid(name):
                        self.refuse(
                            (*keys, 'options', key),
                            value,
                            f'a key that the grid of {base_of(name)} has not',
                            'take it out here or there',
                        )
        for name, entry in self._content.get('define', {}).items():
            keys = ('define', name)
            for key, needed in entry.get('needs', {}).items():
                several = needed if isinstance(needed, list) else [needed]
                for one in several:
                    if one not in self.methods or one == name:
                        known = [m for m in self.methods if m != name]
                        self._unknown((*keys, 'needs', key), one, known)
            if entry.get('test') and 'load_from' not in entry.get('needs', {}):
                self.refuse(
                    (*keys, 'test'),
                    True,
                    'a checkpoint to test',
                    'add needs: {load_from: METHOD}',
                )
        for name in self.methods:
            self._order(name, ())
        there: dict[str, list[Any]] = dict(
            task=list(self.tasks),
            method=sorted({*self.methods, *self._grids}),
            seed=sorted({s for t in self.tasks for s in self.seeds_of(t)}),
        )
        for index, rule in enumerate(self.excluded):
            for key, value in rule.items():
                if value not in there[key]:
                    self._unknown(('exclude', index, key), value, there[key])
        if self.search:
            self._check_search()

    def _check_search(self) -> None:
        name = self.search['method']
        known = [one for one in sorted(self.methods) if one == base_of(one)]
        if name not in known:
            self._unknown(('search', 'method'), name, known)
        for key, values in self.search['parameters'].items():
            if isinstance(values, list):
                continue
            keys = ('search', 'parameters', key)
            low, high = values['low'], values['high']
            if low >= high:
                self.refuse((*keys, 'low'), low, f'less than high, {high}')
            if values.get('log') and low <= 0:
                self.refuse(
                    (*keys, 'low'),
                    low,
                    'more than 0, because log is true',
                    'raise it, or take log out',
                )
        role = self.search.setdefault('metric', 'tail')
        for task, entry in self.tasks.items():
            if role not in entry['metrics']:
                self.refuse(
                    ('tasks', task, 'metrics', role),
                    None,
                    'the metric that the search compares',
                    f'add the key {role}, or another metric to search',
                )

    def _order(self, name: str, above: tuple[str, ...]) -> None:
        if name in above:
            self.refuse(
                ('define', base_of(above[-1]), 'needs'),
                name,
                f'no circle, got {" -> ".join((*above, name))}',
            )
        for one in needed(self.methods[name]):
            self._order(one, (*above, name))


def needed(method: Method) -> Iterator[str]:
    """Names of the methods whose checkpoints a method needs."""
    for names in method.needs.values():
        yield from names if isinstance(names, list) else [names]


def base_of(method: str) -> str:
    """What is before the values of a name of a grid or a search."""
    return method.partition('[')[0]


def _labelled(name: str, point: Mapping[str, Any]) -> str:
    """Name of a method with values, ``"vs[tau=0.5,gamma=0.1]"``."""
    label = ','.join(
        f'{key.rpartition(".")[2]}={value}' for key, value in point.items()
    )
    return f'{name}[{label}]'


def value_of(text: str) -> Any:
    """What a name of :func:`_labelled` has after ``=``, as YAML has it."""
    return yaml.load(text, Loader=_Loader)


class _Loader(yaml.SafeLoader):
    """Numbers such as ``1e-3`` are numbers, and a doubled key is refused."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f'the key {key.value!r} is there twice',
                    key.start_mark,
                    'take one of them out',
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    'tag:yaml.org,2002:float',
    re.compile(r'^[-+]?\d+(\.\d*)?[eE][-+]?\d+$'),
    list('-+0123456789'),
)
