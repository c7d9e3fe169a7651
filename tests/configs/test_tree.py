# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The tree of configs: recipes, losses, named leaves, and their tables."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec

import config_tables
import pytest
from mmengine.config import Config
from mmengine.fileio import load

from lt_losses_mm import recipes
from lt_losses_mm.recipes import CONFIGS, fits, leaves, losses, read_leaf

LEAVES = [read_leaf(path) for path in leaves()]
RECIPES = [leaf for leaf in LEAVES if leaf.is_recipe]
NAMED = [leaf for leaf in LEAVES if not leaf.is_recipe]
HOST_OF_TASK = dict(
    classification='mmpretrain', detection='mmdet', segmentation='mmseg'
)
# Published with Seesaw Loss, and for comparison with the host's own loss.
CLASSIFIER = dict(type='NormedLinear')
PREDICTOR = dict(type='NormedConv2d')


def name(leaf):
    return leaf.path.stem


@pytest.fixture
def host(request):
    """Skip a leaf whose host is not installed."""
    leaf = request.node.callspec.params['leaf']
    task = leaf.path.relative_to(CONFIGS).parts[0]
    if find_spec(HOST_OF_TASK[task]) is None:
        pytest.skip(f'{HOST_OF_TASK[task]} is not installed')


def take_losses(content):
    """Take the losses of a recipe out of its content; return them."""
    for key in ('lt_loss', 'loss', 'aux_loss', 'head'):
        content.pop(key, None)
    model = content['model']
    task = dict(model, **model.get('roi_head', {}))
    (name,) = {'head', 'bbox_head', 'decode_head'} & set(task)
    heads = task[name] if isinstance(task[name], list) else [task[name]]
    key = dict(head='loss', bbox_head='loss_cls', decode_head='loss_decode')
    own = [head.pop(key[name]) for head in heads]
    if 'auxiliary_head' in model:
        # Its weight is that of the host.
        loss = model['auxiliary_head'].pop('loss_decode')
        content['auxiliary weight'] = loss['loss_weight']
        own.append(dict(loss, loss_weight=own[0]['loss_weight']))
    return own


def fragment(loss, parse):
    content = parse(CONFIGS / f'_base_/losses/{loss}.py')
    assert list(content) == ['lt_loss']
    assert content['lt_loss'].pop('_delete_') is True
    return content['lt_loss']


def test_a_person_finds_his_way():
    folders = {CONFIGS, *(path.parent for path in CONFIGS.rglob('*.*'))}
    for folder in folders:
        files = [path for path in folder.iterdir() if path.is_file()]
        assert len(files) <= 40, folder
    # `mim train` finds a file by its name, at any depth.
    names = [leaf.path.name for leaf in LEAVES]
    assert sorted(set(names)) == sorted(names)


def test_recipes_take_the_losses_of_the_hosts():
    assert {leaf.loss for leaf in RECIPES} == {
        'cross_entropy',
        'focal',
        'quality_focal',
    }
    assert NAMED


@pytest.mark.parametrize('leaf', LEAVES, ids=name)
def test_the_name_says_the_loss(leaf):
    loss = re.sub('_lvis_v.*', '', leaf.loss).replace('_', '-')
    pattern = rf'.+[-_]{loss}(-normed|-normed-mask)?_[^_].*'
    assert re.fullmatch(pattern, leaf.path.stem)


@pytest.mark.parametrize('leaf', RECIPES, ids=name)
def test_a_recipe_takes_every_loss_that_fits(leaf, parse, host):
    """It differs in the loss alone, which is in all of its heads."""
    recipe = Config(parse(leaf.path))
    assert fits(recipe, leaf.loss)
    rest = parse(leaf.path)
    assert 'lt_loss' not in rest
    take_losses(rest)
    for loss in losses():
        if fits(recipe, loss):
            content = parse(leaf.path, loss)
            expected = fragment(loss, parse)
            assert take_losses(content) == [expected] * len(
                take_losses(parse(leaf.path))
            )
            assert content == rest, loss


@pytest.mark.parametrize('leaf', NAMED, ids=name)
def test_a_named_leaf_is_its_recipe_with_its_loss(leaf, parse, host):
    assert fits(Config(parse(leaf.recipe)), leaf.loss)
    content, recipe = parse(leaf.path), parse(leaf.recipe)
    own = take_losses(content)
    assert own == [fragment(leaf.loss, parse)] * len(take_losses(recipe))
    assert own[0]['type'].startswith('lt_losses_mm.')
    # A cascade has one model for each stage.
    for part in (content, recipe):
        heads = part['model'].get('roi_head', {}).get('bbox_head', [])
        for head in heads if isinstance(heads, list) else [heads]:
            classifier = head.pop('cls_predictor_cfg', None)
            if 'seesaw' in leaf.path.stem and part is content:
                assert classifier in (
                    CLASSIFIER if 'lvis' in leaf.path.stem else None,
                )
    if 'normed-mask' in leaf.path.stem:
        mask = content['model']['roi_head']['mask_head']
        assert mask.pop('predictor_cfg') == PREDICTOR
    assert content == recipe


@pytest.mark.parametrize('leaf', NAMED, ids=name)
def test_a_named_leaf_does_not_follow_the_environment(leaf, parse, host):
    other = 'seesaw' if leaf.loss != 'seesaw' else 'balanced_softmax'
    assert parse(leaf.path, other) == parse(leaf.path)
    # By this the tools know it, and refuse the variable.
    assert 'lt_loss' in parse(leaf.path)


def test_every_loss_fits_a_recipe(parse):
    for host in HOST_OF_TASK.values():
        if find_spec(host) is None:
            pytest.skip(f'{host} is not installed')
    recipes = [Config(parse(leaf.path)) for leaf in RECIPES]
    for loss in losses():
        assert any(fits(recipe, loss) for recipe in recipes), loss


@pytest.mark.parametrize(
    ('recipe', 'not_these'),
    [
        # No rows of background.
        (
            'classification/digits/resnet18-c16_1xb64-20e-cross-entropy_'
            'digits-lt',
            ['equalization', 'balanced_softmax_objectness', 'focal'],
        ),
        # Soft labels.
        (
            'classification/cifar-lt/resnet32_1xb128-200e-mixup-'
            'cross-entropy_cifar10-lt-if10',
            ['seesaw'],
        ),
        # One sigmoid a class.
        (
            'detection/digits/atss_r18-c32_fpn_focal_random-8e_digits-lt',
            ['cross_entropy', 'balanced_softmax', 'quality_focal', 'seesaw'],
        ),
        # A label with a quality.
        (
            'detection/digits/gfl_r18-c32_fpn_quality-focal_random-8e_'
            'digits-lt',
            ['focal', 'equalized_focal', 'balanced_sigmoid'],
        ),
        # Counts of other data.
        (
            'detection/digits/faster-rcnn_r18-c32_fpn_cross-entropy_'
            'random-8e_digits-lt',
            ['equalization_lvis_v1', 'equalized_quality_focal'],
        ),
    ],
)
def test_what_does_not_fit(recipe, not_these, parse):
    config = Config(parse(CONFIGS / f'{recipe}.py'))
    assert not any(fits(config, loss) for loss in not_these)


def test_a_new_loss_is_known_by_its_file(tmp_path):
    """To the dry run, too, which asks these functions."""
    root = tmp_path / 'configs'
    folder = root / '_base_/losses'
    folder.mkdir(parents=True)
    for path in CONFIGS.glob('_base_/losses/*.py'):
        (folder / path.name).symlink_to(path)
    (folder / 'new.py').write_text(
        "lt_loss = dict(_delete_=True, type='lt_losses_mm.BalancedSoftmax"
        "Loss', tau=0.5)\n"
    )
    assert losses(root) == sorted([*losses(), 'new'])
    recipe = Config(
        dict(
            model=dict(
                head=dict(num_classes=3, loss=dict(type='CrossEntropyLoss'))
            )
        )
    )
    assert fits(recipe, 'new', root)


def test_the_environment_is_left_as_it_was(monkeypatch):
    monkeypatch.setenv('LT_LOSS', 'focal')
    with pytest.raises(KeyError), recipes.loss_of_recipes('seesaw'):
        assert os.environ['LT_LOSS'] == 'seesaw'
        raise KeyError
    assert os.environ['LT_LOSS'] == 'focal'
    with recipes.loss_of_recipes(None):
        assert 'LT_LOSS' not in os.environ
    assert os.environ['LT_LOSS'] == 'focal'


# ---------------------------------------------------------------- tables
def test_metafiles_and_readmes_are_up_to_date(parse):
    """Else: python tools/config_tables.py --write."""
    for host in HOST_OF_TASK.values():
        if find_spec(host) is None:
            pytest.skip(f'{host} is not installed')
    for path, text in config_tables.texts(CONFIGS).items():
        assert path.read_text('utf-8') == text, path


def test_every_leaf_is_in_the_model_index():
    index = load(CONFIGS.parent / 'model-index.yml')['Import']
    metafiles = [CONFIGS.parent / path for path in index]
    assert metafiles == sorted(CONFIGS.rglob('metafile.yml'))
    listed = []
    for path in metafiles:
        content = load(path)
        (collection,) = content['Collections']
        readme = path.with_name('README.md')
        assert CONFIGS.parent / collection['README'] == readme
        for model in content['Models']:
            leaf = CONFIGS.parent / model['Config']
            assert model['In Collection'] == collection['Name']
            assert model['Name'] == leaf.stem and path.parent in leaf.parents
            listed.append(leaf)
            # No figure without its source, and none was measured here.
            results = model.get('Results', [])
            source = model['Metadata'].get('Published By', '')
            assert source.startswith('https://') == bool(results)
            for result in results:
                for metric in result['Metrics']:
                    assert metric.endswith(config_tables.PUBLISHED)
    assert sorted(listed) == leaves()


TINY = """_base_ = ['../_base_/losses/{{$LT_LOSS:plain}}.py']
model = dict(head=dict(loss=_base_.pop('lt_loss')))
train_cfg = dict(max_epochs=%d)
auto_scale_lr = dict(base_batch_size=8)
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A tree with one collection of one recipe."""
    root = tmp_path / 'configs'
    (root / '_base_/losses').mkdir(parents=True)
    (root / '_base_/losses/plain.py').write_text("lt_loss = dict(type='P')\n")
    (root / 'a').mkdir()
    (root / 'a/one_plain_data.py').write_text(TINY % 3)
    (root / 'a/metafile.yml').write_text(
        'Collections:\n  - Name: A\n    README: configs/a/README.md\n\n'
        'Models:\n  - Name: one_plain_data\n    Metadata:\n'
        '      Published By: https://x\n    Results:\n'
        '      - Task: T\n        Dataset: D\n        Metrics:\n'
        '          AP (published, not run here): 1.0\n'
    )
    (root / 'a/README.md').write_text(
        '# A\n<!-- configs -->\nold\n<!-- /configs -->\nend\n'
    )
    monkeypatch.setattr(config_tables, 'CONFIGS', root)
    return root


def call_tables(monkeypatch, option):
    monkeypatch.setattr('sys.argv', ['config_tables.py', option])
    config_tables.main()


def test_tables_are_written_and_checked(tiny, monkeypatch, capsys):
    with pytest.raises(SystemExit, match='config_tables.py --write'):
        call_tables(monkeypatch, '--check')
    call_tables(monkeypatch, '--write')
    capsys.readouterr()
    call_tables(monkeypatch, '--check')
    assert 'outdated' not in capsys.readouterr().out
    text = (tiny / 'a/README.md').read_text()
    assert text.startswith('# A\n<!-- configs -->\n| config |')
    assert text.endswith('|\n<!-- /configs -->\nend\n')
    row = '| [one_plain_data](one_plain_data.py) | `plain` or `LT_LOSS` | 3 '
    assert row + '| 8 | AP 1.0 ([source](https://x)) |' in text
    (model,) = load(tiny / 'a/metafile.yml')['Models']
    assert model == {
        'Name': 'one_plain_data',
        'In Collection': 'A',
        'Config': 'configs/a/one_plain_data.py',
        'Metadata': {
            'Epochs': 3,
            'Batch Size': 8,
            'Loss': 'plain',
            'Published By': 'https://x',
        },
        'Results': [
            {
                'Task': 'T',
                'Dataset': 'D',
                'Metrics': {'AP (published, not run here)': 1.0},
            }
        ],
    }
    (tiny / 'a/one_plain_data.py').write_text(TINY % 4)
    with pytest.raises(SystemExit):
        call_tables(monkeypatch, '--check')
