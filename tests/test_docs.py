# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The documentation: examples run, names and links exist, API is described."""

from __future__ import annotations

import ast
import doctest
import importlib.util
import inspect
import re
import shlex
import textwrap
from pathlib import Path
from typing import Iterator

import pytest
from mmengine import registry as root
from mmengine.config import Config

import lt_losses_mm
from lt_losses_mm import (
    datasets,
    functional,
    hooks,
    kernels,
    losses,
    metrics,
    priors,
    registry,
)
from lt_losses_mm.priors import shift

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    page
    for page in [*ROOT.glob('*.md'), *ROOT.glob('docs/**/*.md')]
    if '_build' not in page.parts
)
# What add_a_loss.md invents, so that it exists on no other page.
TUTORIAL = 'add_a_loss.md'
MODULES = [
    datasets,
    functional,
    hooks,
    kernels,
    losses,
    metrics,
    priors,
    shift,
]
FENCE = re.compile(
    r'^(?P<pad> *)```(?P<lang>\w*)[^\n]*\n(?P<body>.*?)^(?P=pad)```$',
    re.M | re.S,
)

pages = pytest.mark.parametrize(
    'page', PAGES, ids=lambda page: str(page.relative_to(ROOT))
)


def fences(page: Path, *languages: str) -> Iterator[tuple[str, str]]:
    """Language and text of the code blocks of a page."""
    for match in FENCE.finditer(page.read_text(encoding='utf-8')):
        if match['lang'] in languages:
            yield match['lang'], textwrap.dedent(match['body'])


def prose(page: Path) -> str:
    return FENCE.sub('', page.read_text(encoding='utf-8'))


@pytest.fixture
def _registries():
    """Forget what a page registers."""
    ours = [v for v in vars(registry).values() if isinstance(v, root.Registry)]
    touched = ours + [r.parent for r in ours]
    before = [dict(r._module_dict) for r in touched]
    yield
    for known, names in zip(touched, before):
        known._module_dict.clear()
        known._module_dict.update(names)


@pages
def test_examples_run(page: Path, _registries: None) -> None:
    """Blocks of `pycon` in one session; on the tutorial `python` as well."""
    names: dict = {'__name__': 'page'}
    runner = doctest.DocTestRunner(
        optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    )
    for language, code in fences(page, 'pycon', 'python'):
        if language == 'pycon':
            example = doctest.DocTestParser().get_doctest(
                code, names, str(page.relative_to(ROOT)), str(page), 0
            )
            runner.run(example, clear_globs=False)
            names = example.globs
        elif page.name == TUTORIAL:
            exec(compile(code, str(page), 'exec', dont_inherit=True), names)
    assert runner.summarize(verbose=False).failed == 0


@pages
def test_python_blocks_are_python(page: Path) -> None:
    for _, code in fences(page, 'python'):
        ast.parse(code)


def config_blocks() -> list:
    return [
        pytest.param(code, id=f'{page.stem}-{number}')
        for page in PAGES
        for number, (_, code) in enumerate(fences(page, 'python'))
        if '_base_ = ' in code
    ]


def dicts(value: object) -> Iterator[dict]:
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from dicts(item)


@pytest.mark.parametrize('code', config_blocks())
def test_configs_inherit(code: str, tmp_path: Path) -> None:
    """A block with a base is a whole config, with one of our losses in it."""
    host = re.search(r'\b(mmdet|mmpretrain|mmseg)::', code)
    if host is None or importlib.util.find_spec(host[1]) is None:
        pytest.skip('the host of this config is not installed')
    path = tmp_path / 'config.py'
    path.write_text(code)
    ours = [
        found
        for found in dicts(Config.fromfile(path).model)
        if str(found.get('type')).startswith(f'{registry.SCOPE}.')
    ]
    assert ours
    for found in ours:
        assert isinstance(
            registry.MODELS.build(dict(found, class_counts=[3, 1])),
            losses.LongTailLoss,
        )


@pages
def test_types_exist(page: Path) -> None:
    """Every `lt_losses_mm.Name` is registered, or is the tutorial's own."""
    names = set(
        re.findall(r'\blt_losses_mm\.([A-Z]\w+)', page.read_text('utf-8'))
    )
    if page.name == TUTORIAL:
        names.discard('RarityMarginLoss')
    for name in names:
        assert any(
            name in known.module_dict
            for known in vars(registry).values()
            if isinstance(known, root.Registry)
        ), f'{page.name} names lt_losses_mm.{name}, which is not registered'


def commands() -> Iterator[tuple[Path, list[str]]]:
    for page in PAGES:
        for _, code in fences(page, 'bash'):
            for line in code.replace('\\\n', ' ').splitlines():
                yield page, shlex.split(line, comments=True)


def test_commands_exist() -> None:
    """Scripts and configs that the commands of the pages name are there."""
    named = {path.name for path in ROOT.glob('configs/**/*.py')}
    seen = 0
    for page, words in commands():
        for word in words:
            if re.match(r'(tools|benchmarks|configs|\.ci)/', word):
                assert (ROOT / word).exists(), f'{page.name}: {word}'
                seen += 1
        if 'mm-lt-losses' in words:
            what = words[words.index('mm-lt-losses') + 1]
            tool = 'run' in words and (ROOT / f'tools/{what}.py').exists()
            assert tool or what == 'CONFIG.py' or what in named, (
                f'{page.name}: no config or tool called {what}'
            )
            seen += 1
    assert seen


def test_options_exist() -> None:
    """Options that the pages give to our tools are options of these."""
    for page, words in commands():
        scripts = [w for w in words if re.match(r'tools/\w+\.py$', w)]
        if not scripts:
            continue
        source = (ROOT / scripts[0]).read_text('utf-8')
        source += (ROOT / 'tools/_launch.py').read_text('utf-8')
        for word in words:
            if word.startswith('--'):
                assert f"'{word}'" in source, (
                    f'{page.name}: {scripts[0]} has no {word}'
                )


def test_paths_in_prose_exist() -> None:
    """Files of the checkout that the text names in backticks are there."""
    for page in PAGES:
        if page.name in (TUTORIAL, 'CHANGELOG.md'):
            continue
        for path in re.findall(
            r'`((?:configs|tools|benchmarks|requirements|tests|docs)/[\w./-]+)`',
            prose(page),
        ):
            assert (ROOT / path).exists(), f'{page.name}: {path}'


@pages
def test_links_resolve(page: Path) -> None:
    """Relative links lead to a file, and to a heading in it."""
    text = prose(page)
    targets = re.findall(r'\]\(([^)\s]+)\)', text)
    targets += re.findall(r'^\[[^\]]+\]: (\S+)$', text, re.M)
    for target in targets:
        if re.match(r'[a-z]+:', target):
            continue
        file, _, anchor = target.partition('#')
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), f'{page.name} links to {target}'
        if anchor:
            heads = re.findall(r'^#+ (.+)$', prose(path), re.M)
            assert anchor in map(slug, heads), f'{page.name}: {target}'


def test_guides_to_own_data_are_pages() -> None:
    """They lie beside their configs, and are included in the HTML pages."""
    index = (ROOT / 'docs/index.md').read_text('utf-8')
    for guide in ROOT.glob('configs/*/own-data/README.md'):
        name = f'guides/{guide.parent.relative_to(ROOT / "configs")}'
        page = ROOT / f'docs/{name}.md'
        included = re.findall(r'{include} (\S+)', page.read_text('utf-8'))
        assert [(page.parent / path).resolve() for path in included] == [guide]
        assert f'\n{name}\n' in index
        assert f'(../{guide.relative_to(ROOT)})' in index


def slug(heading: str) -> str:
    """The anchor that GitHub and MyST give a heading."""
    return re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')


def api() -> list:
    """Public names of the package, each once."""
    found = {
        f'{getattr(module, name).__module__}.{name}': getattr(module, name)
        for module in MODULES
        for name in getattr(module, '__all__', dir(module))
        if not name.startswith('_')
        and callable(getattr(module, name))
        and str(getattr(getattr(module, name), '__module__', '')).startswith(
            lt_losses_mm.__name__
        )
    }
    return [pytest.param(found[name], id=name) for name in sorted(found)]


@pytest.mark.parametrize('member', api())
def test_docstrings(member: object) -> None:
    """Every public name has a docstring that describes its arguments.

    Arguments of a subclass may be described by a class it inherits from.
    """
    assert inspect.getdoc(member)
    classes = inspect.getmro(member) if inspect.isclass(member) else [member]
    text = '\n'.join(
        inspect.getdoc(c) or ''
        for c in classes
        if c.__module__.startswith(lt_losses_mm.__name__)
    )
    arguments = [
        name
        for name, parameter in inspect.signature(member).parameters.items()
        if name != 'self'
        and parameter.kind
        not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if arguments:
        assert 'Args:' in text
    for name in arguments:
        assert re.search(rf'^\s*{name}(?: \(.+\))?:', text, re.M), (
            f'argument {name} is not described'
        )


@pytest.mark.parametrize('loss', losses.LOSSES)
def test_losses_name_their_arguments(loss: type) -> None:
    """So that the reference, `help` and editors show them."""
    kinds = {p.kind for p in inspect.signature(loss).parameters.values()}
    assert kinds == {inspect.Parameter.POSITIONAL_OR_KEYWORD}
