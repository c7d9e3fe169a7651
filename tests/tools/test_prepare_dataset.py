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

from lt_losses_mm.datasets import make_double
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
    touch(ilsvrc, ['train/n00000000/train_0_0.JPEG'])
    message = fail('imagenet-lt', ilsvrc, 'lists', '--mini', 10)
    assert '29 of 30 images missing, such as ' in message
    assert not (tmp_path / 'data_mini').exists()
    for samples in lists.values():
        touch(ilsvrc, [path for path, _ in samples[:1] + samples[-1:]])
        touch(
            ilsvrc,
            [
                samples[int(i)][0]
                for i in np.linspace(0, len(samples) - 1, 10).round()
            ],
        )
    run('imagenet-lt', ilsvrc, 'lists', '--mini', 10)
    root = tmp_path / 'data_mini/imagenet_lt'
    for split in lists:
        dataset = build(root, f'ImageNet_LT_{split}.txt')
        labels = dataset.get_gt_labels()
        assert (len(labels), labels[0], labels[-1]) == (10, 0, 999)
        for i in range(10):
            path = Path(dataset.get_data_info(i)['img_path'])
            name = str(path.relative_to(root))
            assert path.read_text() == name
            assert not path.is_symlink()
    before = snapshot(root)
    assert 'copied: 0 images' in run(
        'imagenet-lt', ilsvrc, 'lists', '--mini', 10
    )
    assert snapshot(root) == before


def test_says_all_that_is_missing_at_once(fail, tmp_path):
    (tmp_path / 'downloads').mkdir()
    message = fail('imagenet-lt', 'downloads')
    for name in ('train', 'val', *(f'ImageNet_LT_{s}.txt' for s in ('val',))):
        assert f'- {name}: not in downloads. Fix: ' in message
    assert message.count('Fix: ') == 5
    assert '- nowhere: no such folder' in fail('lvis', 'nowhere')
    assert not (tmp_path / 'data').exists()


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
    run, tmp_path, everything_there, letters, nested
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
            categories=[],
        )
        (tmp_path / f'{split}2018.json').write_text(json.dumps(content))
        kept = [content['images'][0], content['images'][-1]]
        touch(tmp_path, [image['file_name'] for image in kept])
    output = run('inaturalist2018', '.', '--mini', 2)
    assert 'iNaturalist18_train.txt: 437,513 in 8142 classes' in output
    for split in ('train', 'val'):
        dataset = build(
            tmp_path / 'data_mini/inaturalist2018',
            f'iNaturalist18_{split}.txt',
        )
        assert dataset.get_gt_labels().tolist() == [0, 8141]


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
    source = make_double(f'lvis_{version}', tmp_path / 'double')
    arguments = (
        'lvis',
        source,
        source / 'annotations',
        '--version',
        version,
    )
    message = fail(*arguments)
    assert f'lvis_{version}_train.json, unit instance: ' in message
    assert ('9 images, expected 100170' in message) == (version == 'v1')
    figures(lvis_figures(tmp_path / 'double', version))
    monkeypatch.setattr(tool, 'LVIS_IMAGES', {'v1': {'train': 9, 'val': 8}})
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
    source = make_double('cifar100', tmp_path / 'downloads')
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
    (target / 'meta.part').write_bytes(b'cut off')
    run('cifar', 'archives')
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
    source = make_double('ade20k', tmp_path / 'downloads')
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
    info = source / 'objectInfo150.txt'
    info.write_text(info.read_text().replace('0.1576', '0.2'))
    assert 'the first is class 0 with 0.2 instead of 0.1576' in fail(
        'ade20k', source
    )
    next((source / 'annotations/training').iterdir()).unlink()
    assert '1 images or masks without the other' in fail('ade20k', source)


def test_ade20k_from_the_zip(run, monkeypatch, tmp_path):
    source = make_double('ade20k', tmp_path / 'double')
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
