# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""tools/prepare_dataset.py, on doubles and on lists of the true size."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import pickle
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from _doubles import MARKER, make_double

from lt_losses_mm.priors import ClassCounts, load_class_counts
from lt_losses_mm.registry import DATASETS

ROOT = Path(__file__).resolve().parents[2]
_spec = importlib.util.spec_from_file_location(
    'prepare_dataset', ROOT / 'tools/prepare_dataset.py'
)
tool = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tool)


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Call the tool in ``tmp_path``; its output in one line."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(
            sys, 'argv', ['prepare_dataset.py', *map(str, arguments)]
        )
        capsys.readouterr()
        tool.main()
        return ' '.join(capsys.readouterr().out.split())

    return call


@pytest.fixture
def fail(run):
    """As ``run``, for a call that ends with a message."""

    def call(*arguments):
        with pytest.raises(SystemExit) as stop:
            run(*arguments)
        return str(stop.value)

    return call


@pytest.fixture
def figures(monkeypatch):
    """Replace the shipped figures, by benchmark and unit."""

    def replace(**counts):
        monkeypatch.setattr(
            tool,
            'load_class_counts',
            lambda name, unit='image': (
                counts.get(f'{name}:{unit}')
                or load_class_counts(name, unit=unit)
            ),
        )

    return lambda counts: replace(**counts)


def real(name, root):
    """A double that claims to be the data themselves."""
    folder = make_double(name, root)
    (folder / MARKER).unlink()
    return folder


def counted(labels, classes):
    return ClassCounts(np.bincount(labels, minlength=classes), source='test')


def snapshot(folder):
    return {
        path: path.lstat().st_mtime_ns for path in sorted(folder.rglob('*'))
    }


def write_list(folder, name, samples):
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f'{path} {label}\n' for path, label in samples]
    (folder / name).write_text(''.join(lines))


def touch(folder, paths):
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(path.encode())


def build(root, ann_file):
    return DATASETS.build(
        dict(
            type='lt_losses_mm.ImageListDataset',
            data_root=str(root),
            ann_file=ann_file,
        )
    )


def imagenet(folder, nested=True):
    """Lists of the true counts, and the paths of each."""
    counts = load_class_counts('imagenet_lt').counts.astype(int)
    lists = {}
    for split, per_class in (
        ('train', counts),
        ('val', np.full(1000, 20)),
        ('test', np.full(1000, 50)),
    ):
        lists[split] = []
        for label in range(1000):
            wnid = f'n{label:08d}'
            for k in range(per_class[label]):
                image = f'{split}_{label}_{k}.JPEG'
                path = f'train/{wnid}/{image}'
                if split == 'test':
                    path = f'val/{wnid}/{image}' if nested else f'val/{image}'
                lists[split].append((path, label))
        write_list(folder, f'ImageNet_LT_{split}.txt', lists[split])
    return lists


@pytest.fixture
def everything_there(monkeypatch):
    """Pretend that all images are on disk, but see which are asked for."""
    asked = []
    monkeypatch.setattr(
        tool.Job,
        'check_files',
        lambda self, base, names: asked.extend(
            str(tool.located(base, name)) for name in names
        ),
    )
    return asked


@pytest.mark.parametrize(
    ('nested', 'flat_on_disk'), [(True, True), (False, False)]
)
def test_imagenet_lt(run, tmp_path, everything_there, nested, flat_on_disk):
    lists = imagenet(tmp_path / 'lists', nested)
    ilsvrc = tmp_path / 'ILSVRC'
    # The data set looks for the first image of a list.
    touch(ilsvrc, [lists[split][0][0] for split in ('train', 'val')])
    first = (
        'val/test_0_0.JPEG'
        if flat_on_disk
        else ('val/n00000000/test_0_0.JPEG')
    )
    touch(ilsvrc, [first])
    output = run('imagenet-lt', ilsvrc, 'lists')
    root = tmp_path / 'data/imagenet_lt'
    assert 'ImageNet_LT_train.txt: 115,846 in 1000 classes' in output
    assert str(ilsvrc / first) in everything_there
    for split, samples in lists.items():
        dataset = build(root, f'ImageNet_LT_{split}.txt')
        assert dataset.get_gt_labels().tolist() == [y for _, y in samples]
    assert dataset.get_data_info(0)['img_path'] == str(root / first)
    before = snapshot(root)
    assert run('imagenet-lt', ilsvrc, 'lists').count('kept:') == 5
    assert snapshot(root) == before


def test_imagenet_lt_mini_needs_only_its_images(run, fail, tmp_path):
    lists = imagenet(tmp_path / 'lists')
    ilsvrc = tmp_path / 'ILSVRC'
    (ilsvrc / 'val/n00000000').mkdir(parents=True)
    (ilsvrc / 'train').mkdir()
    message = fail('imagenet-lt', ilsvrc, 'lists', '--mini', 10)
    assert '30 of 30 images missing, such as ' in message
    assert not (tmp_path / 'data_mini').exists()
    # Evenly spread from the most to the least frequent class.
    counts = load_class_counts('imagenet_lt').counts
    order = np.argsort(-counts, kind='stable')
    classes = order[np.linspace(0, 999, 10).round().astype(int)]
    for samples in lists.values():
        labels = [label for _, label in samples]
        touch(ilsvrc, [samples[labels.index(c)][0] for c in classes])
    run('imagenet-lt', ilsvrc, 'lists', '--mini', 10)
    root = tmp_path / 'data_mini/imagenet_lt'
    for split in lists:
        dataset = build(root, f'ImageNet_LT_{split}.txt')
        assert dataset.get_gt_labels().tolist() == sorted(classes)
        for i in range(10):
            path = Path(dataset.get_data_info(i)['img_path'])
            name = str(path.relative_to(root))
            assert path.read_text() == name
            assert not path.is_symlink()
    before = snapshot(root)
    # Another copy there is refused before anything is copied.
    message = fail('imagenet-lt', ilsvrc, 'lists', '--mini', 2)
    assert message.count('has other contents; it was left alone') == 3
    assert snapshot(root) == before
    assert 'copied: 0 files' in run(
        'imagenet-lt', ilsvrc, 'lists', '--mini', 10
    )
    assert snapshot(root) == before


@pytest.mark.parametrize('number', [100, 1000, 3000])
def test_mini_of_shuffled_lists_keeps_the_tail(
    run, tmp_path, monkeypatch, everything_there, number
):
    lists = imagenet(tmp_path / 'lists')
    rng = np.random.RandomState(0)
    for split, samples in lists.items():
        rng.shuffle(samples)
        write_list(tmp_path / 'lists', f'ImageNet_LT_{split}.txt', samples)
    (tmp_path / 'ILSVRC/train').mkdir(parents=True)
    (tmp_path / 'ILSVRC/val/n00000000').mkdir(parents=True)
    monkeypatch.setattr(
        tool.shutil, 'copyfile', lambda source, part: part.touch()
    )
    run('imagenet-lt', 'ILSVRC', 'lists', '--mini', number)
    found = {}
    for split, samples in lists.items():
        path = tmp_path / f'data_mini/imagenet_lt/ImageNet_LT_{split}.txt'
        kept = [line.split() for line in path.read_text().splitlines()]
        assert len(kept) == number
        assert {(image, int(label)) for image, label in kept} <= {*samples}
        found[split] = np.bincount([int(y) for _, y in kept], minlength=1000)
        # The same classes in every split.
        assert ((found[split] > 0) == (found['train'] > 0)).all()
    counts = load_class_counts('imagenet_lt').counts
    tail = (found['train'][counts < 20] > 0).sum()
    if number < 1000:
        assert 13 <= tail <= 14 and found['train'].max() == 1
    else:
        # One image each, the rest in proportion.
        share = (number - 1000) * (counts - 1) / (counts - 1).sum()
        assert (abs(found['train'] - 1 - share) <= 1).all()
        assert tail == 136


def test_mini_of_images_with_several_classes():
    # 0 and 1 are frequent; 3 is rare, and no image of 'val' has it.
    lists = dict(
        train=[[0, 1], [0], [0, 1], [1], [0, 1, 2], [2], [3]],
        val=[[0], [0, 1], [1], [2], [0, 4]],
    )
    assert tool.cut(lists, 2) == dict(train=[0, 6], val=[0, 1])
    # Image 0 stands for two classes, so that another one has its place.
    assert tool.cut(lists, 4)['train'] == [0, 1, 4, 6]
    assert tool.cut(lists, 9) == dict(train=[*range(7)], val=[*range(5)])


def test_says_all_that_is_missing_at_once(fail, tmp_path):
    (tmp_path / 'downloads').mkdir()
    message = fail('imagenet-lt', 'downloads')
    for name in ('train', 'val', *(f'ImageNet_LT_{s}.txt' for s in ('val',))):
        assert f'- {name}: not in downloads. Fix: ' in message
    assert message.count('Fix: ') == 5
    assert '- nowhere: no such folder' in fail('lvis', 'nowhere')
    assert not (tmp_path / 'data').exists()


def test_says_what_is_missing_beside_an_archive(fail, tmp_path):
    touch(tmp_path, ['downloads/lvis_v1_train.json.zip', 'new/x'])
    message = fail('lvis', 'downloads', 'new')
    names = ('train2017', 'val2017', 'lvis_v1_val.json')
    for name in names:
        assert f'- {name}' in message
    assert message.count('Fix: ') == len(names)
    touch(tmp_path, ['train2017/x', 'val2017/x', 'lvis_v1_val.json.zip'])
    message = fail('lvis', '.', 'downloads')
    assert message.count('expected a whole archive. Fix: ') == 2
    assert not (tmp_path / 'data').exists()


@pytest.mark.parametrize(
    ('line', 'text'),
    [
        (1, '<!DOCTYPE html>'),
        (3, 'ILSVRC2012/train/n00000000/x.JPEG 0'),
        (2, 'train/n00000000/x.JPEG -1'),
        (2, ''),
    ],
)
def test_refuses_lists_that_are_none(fail, tmp_path, line, text):
    imagenet(tmp_path)
    touch(tmp_path, ['train/x', 'val/x'])
    path = tmp_path / 'ImageNet_LT_val.txt'
    lines = path.read_text().splitlines()
    lines.insert(line - 1, text)
    path.write_text('\n'.join(lines))
    message = fail('imagenet-lt', '.')
    assert f'{path}, line {line}: got {text!r}, expected ' in message
    assert 'below train or val. Fix: take it from https://' in message


def test_refuses_labels_of_other_classes(fail, tmp_path):
    lists = imagenet(tmp_path)
    touch(tmp_path, ['train/x', 'val/x'])
    turned = [(path, 999 - label) for path, label in lists['test']]
    write_list(tmp_path, 'ImageNet_LT_test.txt', turned)
    message = fail('imagenet-lt', '.')
    assert (
        "ImageNet_LT_test.txt, line 1: got 'val/n00000000/test_0_0.JPEG' with "
        "label 999, expected folder 'n00000999' for label 999 and label 0 "
    ) in message
    # The same exchange in all lists, of two classes of equal size.
    counts = load_class_counts('imagenet_lt').counts
    one, two = np.flatnonzero(counts == np.median(counts).round())[:2].tolist()
    other = {one: two, two: one}
    for split, samples in lists.items():
        name = f'ImageNet_LT_{split}.txt'
        write_list(
            tmp_path, name, [(path, other.get(y, y)) for path, y in samples]
        )
    message = fail('imagenet-lt', '.')
    assert (
        f"ImageNet_LT_train.txt: got folder 'n{two:08d}' for label {one}, "
        f"expected 'n{one:08d}'"
    ) in message


@pytest.mark.parametrize(
    ('content', 'problem'),
    [
        ('<html>', 'Expecting value: line 1 column 1'),
        ('{"images": [', 'Expecting value: line 1 column 13'),
        ('{}', "no list 'images', expected the lists images, annotations"),
        ('[]', "no list 'images'"),
        ('{"images": [{"id": 3}]}', "images[0] is {'id': 3}, expected the"),
        (
            '{"images": [], "categories": [{"id": 0}],'
            ' "annotations": [{"image_id": 7, "category_id": 0}]}',
            'annotations of 1 images that are not there, such as image_id 7',
        ),
    ],
)
@pytest.mark.parametrize('benchmark', ['lvis', 'inaturalist2018'])
def test_refuses_annotations_that_are_none(
    fail, tmp_path, benchmark, content, problem
):
    names = dict(lvis='lvis_v1_{}.json', inaturalist2018='{}2018.json')
    for split in ('train', 'val'):
        (tmp_path / names[benchmark].format(split)).write_text(content)
    touch(tmp_path, ['train2017/x', 'val2017/x', 'train_val2018/x'])
    message = fail(benchmark, '.')
    for split in ('train', 'val'):
        path = tmp_path / names[benchmark].format(split)
        assert f'- {path}: ' in message
    assert message.count(problem) == 2
    assert message.count('Fix: download it again') == 2


def test_refuses_images_outside_of_the_folders(
    fail, figures, monkeypatch, tmp_path
):
    source = real('lvis_v1', tmp_path / 'double')
    figures(lvis_figures(tmp_path / 'double', 'v1'))
    sizes = dict(train=(9, 1), val=(8, 1))
    monkeypatch.setattr(tool, 'LVIS_IMAGES', dict(v1=sizes))
    path = source / 'annotations/lvis_v1_val.json'
    path.write_text(path.read_text().replace('/val2017/', '/test2017/'))
    message = fail('lvis', source, path.parent)
    assert '4 paths of images such as ' in message
    assert 'expected below train2017 or val2017. Fix: ' in message


@pytest.mark.parametrize('benchmark', tool.PREPARE)
def test_refuses_data_below_a_file_or_a_double(fail, tmp_path, benchmark):
    touch(tmp_path, ['file', 'new/x'])
    message = fail(benchmark, 'new', '--data', 'file/data')
    assert '- file exists, but is a file or a dead link' in message
    folders = {
        'lvis': ('lvis_v1', 'lvis_v1'),
        'imagenet-lt': ('imagenet_lt', 'imagenet_lt'),
        'places-lt': ('places_lt', 'places_lt'),
        'inaturalist2018': ('inaturalist2018', 'inaturalist2018'),
        'cifar': ('cifar-100-python', 'cifar-100-python'),
        'ade20k': ('ade', 'ade/ADEChallengeData2016'),
    }
    for i, folder in enumerate(folders[benchmark]):
        touch(tmp_path, [f'{i}/{folder}/{MARKER}'])
        message = fail(benchmark, 'new', '--data', i)
        assert f'- {i}/{folder} exists, but is a format double' in message


def test_refuses_what_is_not_as_in_the_archives(fail, tmp_path):
    touch(tmp_path, ['new/train2017/x', 'new/val2017/x'])
    for split in ('train', 'val'):
        name = f'lvis_v1_{split}.json'
        archive = tmp_path / f'new/{name}.zip'
        with zipfile.ZipFile(archive, 'w') as content:
            content.writestr(name, 'as published')
    # What comes last is in the way: nothing of what comes first is written.
    mine = tmp_path / 'data/lvis_v1/annotations/lvis_v1_val.json'
    for write in (lambda: touch(mine.parent, [mine.name]), mine.mkdir):
        write()
        before = snapshot(tmp_path)
        assert f'{mine.name} exists, but is not as in ' in fail('lvis', 'new')
        assert snapshot(tmp_path) == before
        mine.unlink() if mine.is_file() else mine.rmdir()
    mine.symlink_to('nowhere')
    assert f'{mine.name} exists, but is not as in ' in fail('lvis', 'new')
    assert mine.is_symlink()
    with zipfile.ZipFile(archive, 'w') as content:
        content.writestr('README', 'as published')
    assert f'{archive}: holds no lvis_v1_val.json. Fix' in fail('lvis', 'new')


def test_leaves_no_part_of_a_broken_archive(fail, tmp_path):
    touch(tmp_path, ['new/train2017/x', 'new/val2017/x', 'new/val.json'])
    for split in ('train', 'val'):
        name = f'lvis_v1_{split}.json'
        archive = tmp_path / f'new/{name}.zip'
        with zipfile.ZipFile(archive, 'w') as content:
            content.writestr(name, 'as published')
    archive.write_bytes(archive.read_bytes().replace(b'as pub', b'no pub'))
    message = fail('lvis', 'new')
    assert 'got Bad CRC-32' in message
    files = [p.name for p in (tmp_path / 'data').rglob('*') if p.is_file()]
    assert files == ['lvis_v1_train.json']


def test_says_what_the_system_refuses(fail, cifar, monkeypatch, tmp_path):
    def full(self, target):
        raise OSError(28, 'No space left on device', str(self))

    monkeypatch.setattr(Path, 'symlink_to', full)
    message = fail('cifar', 'downloads')
    assert 'No space left on device' in message and 'Fix: ' in message


def test_takes_the_better_name_of_a_later_source(run, tmp_path):
    touch(tmp_path, ['ILSVRC/train/x', 'pl/data_256/x', 'pl/val_256/x'])
    job = tool.Job.__new__(tool.Job)
    job.sources = [tmp_path / 'ILSVRC', tmp_path / 'pl']
    job.problems = []
    found = job.find(['data_256', 'train'], 'x')
    assert found == (tmp_path / 'pl/data_256').resolve()
    assert job.find(['nothing', 'train'], 'x').parent.name == 'ILSVRC'


def test_replaces_no_dead_link(fail, tmp_path, everything_there):
    imagenet(tmp_path)
    touch(tmp_path, ['train/n00000000/x', 'val/n00000000/x'])
    root = tmp_path / 'data/imagenet_lt'
    root.mkdir(parents=True)
    names = ('train', 'ImageNet_LT_val.txt')
    for name in names:
        (root / name).symlink_to('nowhere')
    message = fail('imagenet-lt', '.')
    for name in names:
        assert f'imagenet_lt/{name} exists, but ' in message
    assert sorted(p.name for p in root.iterdir()) == sorted(names)
    small = tmp_path / 'data_mini/imagenet_lt/val'
    small.mkdir(parents=True)
    (small / 'n00000000').symlink_to('nowhere')
    assert 'Fix: ' in fail('imagenet-lt', '.', '--mini', 1)
    assert [p.name for p in small.iterdir()] == ['n00000000']


def test_refuses_other_counts_and_other_classes(fail, tmp_path):
    lists = imagenet(tmp_path / 'lists')
    touch(tmp_path, ['train/n00000000/x', 'val/n00000000/x'])
    expected = len([y for _, y in lists['train'] if y == 7])
    lists['train'] = [s for s in lists['train'] if s[1] != 7]
    write_list(tmp_path / 'lists', 'ImageNet_LT_train.txt', lists['train'])
    write_list(tmp_path / 'lists', 'ImageNet_LT_val.txt', lists['val'][:-20])
    message = fail('imagenet-lt', '.', 'lists')
    assert (
        'ImageNet_LT_train.txt: 1 classes differ, the first is class 7 with '
        f'0 instead of {expected}. Fix: ' in message
    )
    assert 'ImageNet_LT_val.txt: 999 classes, expected 1000. Fix' in message
    assert not (tmp_path / 'data').exists()


@pytest.mark.parametrize(('letters', 'nested'), [(True, False), (False, True)])
def test_places_lt_finds_both_releases(
    run, fail, tmp_path, everything_there, letters, nested
):
    names = [f'scene_{label:03d}' for label in range(365)]
    names[1] = 'apartment_building-outdoor'
    counts = load_class_counts('places_lt').counts.astype(int)
    for split, per_class in (
        ('train', counts),
        ('val', np.full(365, 20)),
        ('test', np.full(365, 100)),
    ):
        samples = []
        for label, name in enumerate(names):
            for k in range(per_class[label]):
                path = f'train/{name}/{split}_{k:08d}.jpg'
                if split == 'test':
                    number = label * 100 + k
                    path = f'val/{name}/Places365_val_{number:08d}.jpg'
                samples.append((path, label))
        write_list(tmp_path / 'lists', f'Places_LT_{split}.txt', samples)
    train = 'data_256/a/x' if letters else 'train/x'
    val = f'val/{names[0]}/x' if nested else 'val_256/x'
    touch(tmp_path / 'places', [train, val])
    # The first sample of each list has to be there.
    scene = f's/{names[0]}' if letters else names[0]
    sub = names[0] if nested else ''
    touch(
        tmp_path / 'places',
        [
            str(Path(train).parts[0]) + f'/{scene}/{s}_00000000.jpg'
            for s in ('train', 'val')
        ]
        + [str(Path(val).parts[0] / Path(sub) / 'Places365_val_00000000.jpg')],
    )
    run('places-lt', 'places', 'lists')
    turned = [(path, 364 - label) for path, label in samples]
    write_list(tmp_path / 'turned', 'Places_LT_test.txt', turned)
    message = fail('places-lt', 'places', 'turned', 'lists')
    assert 'Places_LT_test.txt, line 1: got ' in message
    root = tmp_path / 'data/places_lt'
    asked = {str(Path(p).relative_to(tmp_path)) for p in everything_there}
    outdoor = 'a/apartment_building/outdoor' if letters else names[1]
    folder = Path(train).parts[0]
    assert f'places/{folder}/{outdoor}/train_00000000.jpg' in asked
    for split in ('train', 'val', 'test'):
        dataset = build(root, f'Places_LT_{split}.txt')
        assert Path(dataset.get_data_info(0)['img_path']).is_file()


def test_inaturalist2018_writes_lists_of_the_annotations(run, tmp_path):
    counts = load_class_counts('inaturalist18').counts.astype(int)
    # The most frequent class, and the last one of the rarest.
    ends = counts.argmax(), 8141 - counts[::-1].argmin()
    for split, per_class in (('train', counts), ('val', np.full(8142, 3))):
        labels = np.repeat(np.arange(8142), per_class)
        content = dict(
            images=[
                dict(id=i + 5, file_name=f'train_val2018/X/{y}/{split}{i}.jpg')
                for i, y in enumerate(labels.tolist())
            ],
            annotations=[
                dict(id=i, image_id=i + 5, category_id=y)
                for i, y in enumerate(labels.tolist())
            ],
            categories=[dict(id=i) for i in range(8142)],
        )
        (tmp_path / f'{split}2018.json').write_text(json.dumps(content))
        kept = [labels.tolist().index(y) for y in ends]
        touch(tmp_path, [content['images'][i]['file_name'] for i in kept])
    output = run('inaturalist2018', '.', '--mini', 2)
    assert 'iNaturalist18_train.txt: 437,513 in 8142 classes' in output
    for split in ('train', 'val'):
        dataset = build(
            tmp_path / 'data_mini/inaturalist2018',
            f'iNaturalist18_{split}.txt',
        )
        assert dataset.get_gt_labels().tolist() == sorted(ends)


def lvis_figures(folder, version):
    path = folder / f'lvis_{version}/annotations/lvis_{version}_train.json'
    content = json.loads(path.read_text())
    pairs = [
        (a['category_id'] - 1, a['image_id']) for a in content['annotations']
    ]
    classes = len(content['categories'])
    return {
        f'lvis_{version}:instance': counted([c for c, _ in pairs], classes),
        f'lvis_{version}:image': counted([c for c, _ in set(pairs)], classes),
    }


@pytest.mark.parametrize('version', ['v1', 'v0.5'])
def test_lvis(run, fail, figures, monkeypatch, tmp_path, version):
    source = real(f'lvis_{version}', tmp_path / 'double')
    arguments = (
        'lvis',
        source,
        source / 'annotations',
        '--version',
        version,
    )
    message = fail(*arguments)
    assert f'lvis_{version}_train.json, unit instance: ' in message
    number = '100170' if version == 'v1' else 'about 57000'
    assert f'{version}_train.json: 9 images, expected {number}. ' in message
    number = '19809' if version == 'v1' else 'about 5000'
    assert f'{version}_val.json: 8 images, expected {number}. ' in message
    figures(lvis_figures(tmp_path / 'double', version))
    sizes = dict(train=(9, 1), val=(8, 1))
    monkeypatch.setattr(tool, 'LVIS_IMAGES', {version: sizes})
    run(*arguments)
    root = tmp_path / f'data/lvis_{version}'
    name = f'annotations/lvis_{version}_val.json'
    assert (root / name).resolve() == source.resolve() / name
    assert (root / 'val2017').is_symlink()
    assert run(*arguments).count('kept:') == 4
    # A small copy is consistent: images, annotations, all categories.
    run(*arguments, '--mini', 3)
    root = tmp_path / f'data_mini/lvis_{version}'
    for split in ('train', 'val'):
        path = f'annotations/lvis_{version}_{split}.json'
        whole = json.loads((source / path).read_text())
        small = json.loads((root / path).read_text())
        # Their counts are those of the annotations that are left.
        for key, unit in (('image_id', 'image'), ('id', 'instance')):
            for category in whole['categories']:
                if f'{unit}_count' in category:
                    category[f'{unit}_count'] = len(
                        {
                            a[key]
                            for a in small['annotations']
                            if a['category_id'] == category['id']
                        }
                    )
        assert small['categories'] == whole['categories']
        ids = {image['id'] for image in small['images']}
        assert len(ids) == 3
        assert small['annotations'] == [
            a for a in whole['annotations'] if a['image_id'] in ids
        ]
        for image in small['images']:
            assert (root / tool.lvis_path(image, version, split)).is_file()
    missing = next((source / 'val2017').iterdir())
    missing.unlink()
    message = fail(*arguments)
    assert f'1 of 17 images missing, such as {missing.resolve()}' in message


def tar(folder, archive):
    with tarfile.open(archive, 'w:gz') as content:
        content.add(folder, arcname=folder.name)


@pytest.fixture
def cifar(monkeypatch, tmp_path):
    """The double of CIFAR-100 with the checksums of its own files."""
    source = real('cifar100', tmp_path / 'downloads')
    archive = tmp_path / 'downloads/cifar-100-python.tar.gz'
    tar(source, archive)
    sums = {
        name: hashlib.md5((source / name).read_bytes()).hexdigest()
        for name in ('train', 'test', 'meta')
    }
    monkeypatch.setattr(tool, 'CIFAR_FILES', {'cifar-100-python': sums})
    digest = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setitem(tool.CHECKSUMS, archive.name, digest)
    return source


def test_cifar_links_and_verifies(run, fail, cifar, tmp_path):
    run('cifar', 'downloads')
    target = tmp_path / 'data/cifar-100-python'
    assert target.resolve() == cifar.resolve()
    assert 'kept:' in run('cifar', 'downloads')
    (cifar / 'train').write_bytes(b'damaged')
    message = fail('cifar', 'downloads')
    assert f'{cifar / "train"}: md5 ' in message
    assert 'Fix: download it again' in message


def test_cifar_unpacks_and_resumes(run, fail, cifar, tmp_path, monkeypatch):
    archives = tmp_path / 'archives'
    archives.mkdir()
    (tmp_path / 'downloads/cifar-100-python.tar.gz').rename(
        archives / 'cifar-100-python.tar.gz'
    )
    run('cifar', 'archives')
    target = tmp_path / 'data/cifar-100-python'
    assert (target / 'test').read_bytes() == (cifar / 'test').read_bytes()
    before = snapshot(target)
    (target / 'meta').unlink()
    cut_off = target / '.meta-0'  # what a killed call leaves behind
    cut_off.write_bytes(b'cut off')
    run('cifar', 'archives')
    cut_off.unlink()
    after = snapshot(target)
    assert before.keys() == after.keys()
    assert {p for p in after if after[p] != before[p]} == {target / 'meta'}
    # Another file in its place is not touched.
    (target / 'train').write_bytes(b'mine')
    assert 'it was left alone' in fail('cifar', 'archives')
    assert (target / 'train').read_bytes() == b'mine'
    assert 'Fix: unpack it' in fail('cifar', 'archives', '--mini', 1)
    monkeypatch.setitem(tool.CHECKSUMS, 'cifar-100-python.tar.gz', '0' * 32)
    assert f'expected {"0" * 32}' in fail(
        'cifar', 'archives', '--data', 'other'
    )
    assert not (tmp_path / 'other').exists()


def test_cifar_mini_keeps_each_class(run, cifar, tmp_path):
    run('cifar', 'downloads', '--mini', 2)
    for split, per_class in (('train', 2), ('test', 1)):
        dataset = DATASETS.build(
            dict(
                type='lt_losses_mm.CIFAR100LT',
                data_root=str(tmp_path / 'data_mini'),
                imbalance_factor=1,
                split=split,
            )
        )
        counts = np.bincount(dataset.get_gt_labels(), minlength=100)
        assert set(counts) == {per_class}
    whole = pickle.loads((cifar / 'train').read_bytes())
    first = whole['fine_labels'].index(0)
    small = pickle.loads(
        (tmp_path / 'data_mini/cifar-100-python/train').read_bytes()
    )
    position = small['fine_labels'].index(0)
    assert (small['data'][position] == whole['data'][first]).all()


def test_ade20k(run, fail, monkeypatch, tmp_path):
    source = real('ade20k', tmp_path / 'downloads')
    assert '8 training images with a mask, expected 20210' in fail(
        'ade20k', source
    )
    sizes = dict(training=8, validation=8)
    monkeypatch.setattr(tool, 'ADE_IMAGES', sizes)
    run('ade20k', source)
    target = tmp_path / 'data/ade/ADEChallengeData2016'
    assert target.resolve() == source.resolve()
    run('ade20k', source, '--mini', 2)
    small = tmp_path / 'data_mini/ade/ADEChallengeData2016'
    for kind in ('images', 'annotations'):
        for split in sizes:
            names = sorted(p.stem for p in (small / kind / split).iterdir())
            short = 'train' if split == 'training' else 'val'
            assert names == [
                f'ADE_{short}_00000001',
                f'ADE_{short}_00000008',
            ]
    before = snapshot(small)
    assert 'copied: 0 files' in run('ade20k', source, '--mini', 2)
    message = fail('ade20k', source, '--mini', 1)
    assert '00000008.png exists, but is not of this copy' in message
    assert snapshot(small) == before
    info = source / 'objectInfo150.txt'
    info.write_text(info.read_text().replace('0.1576', '0.2'))
    assert 'the first is class 0 with 0.2 instead of 0.1576' in fail(
        'ade20k', source
    )
    info.write_text('<html>\n<body>\n')
    assert f"{info}, line 2: got '<body>', expected " in fail('ade20k', source)
    next((source / 'annotations/training').iterdir()).unlink()
    assert '1 images or masks without the other' in fail('ade20k', source)


def test_ade20k_from_the_zip(run, monkeypatch, tmp_path):
    source = real('ade20k', tmp_path / 'double')
    (tmp_path / 'zip').mkdir()
    archive = tmp_path / 'zip/ADEChallengeData2016.zip'
    with zipfile.ZipFile(archive, 'w') as content:
        for path in source.rglob('*'):
            content.write(path, path.relative_to(source.parent))
    digest = hashlib.sha1(archive.read_bytes()).hexdigest()
    monkeypatch.setitem(tool.CHECKSUMS, archive.name, digest)
    monkeypatch.setattr(tool, 'ADE_IMAGES', dict(training=8, validation=8))
    output = run('ade20k', 'zip')
    assert 'checksum verified' in output
    target = tmp_path / 'data/ade/ADEChallengeData2016'
    assert (target / 'objectInfo150.txt').is_file()


def test_leaves_what_is_in_the_way(fail, cifar, tmp_path):
    mine = tmp_path / 'data/cifar-100-python/mine'
    touch(mine.parent, ['mine'])
    message = fail('cifar', 'downloads')
    assert 'exists, but is not a link to' in message
    assert 'Fix: move it away, or give another --data' in message
    assert mine.read_text() == 'mine'


def test_checksums_of_large_archives_on_request(run, fail, cifar, tmp_path):
    (tmp_path / 'downloads/val_256.tar').write_bytes(b'not Places')
    run('cifar', 'downloads')
    message = fail('cifar', 'downloads', '--checksums')
    assert 'val_256.tar: md5 ' in message
    assert tool.CHECKSUMS['val_256.tar'] in message
