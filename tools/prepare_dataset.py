# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Lay out a benchmark as the configs expect it, from its official downloads.

Give the folders that hold what you downloaded. Everything is looked for in
each of them, compared with the published figures, and only then linked (not
copied) to below --data; list files are rewritten where your folders are laid
out in another way. Nothing that exists is overwritten, and a second call
goes on where the first one stopped. docs/datasets.md says what to download.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
import shutil
import sys
import tarfile
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import (
    Any,
    BinaryIO,
    Callable,
    Iterable,
    Iterator,
    Sequence,
    Tuple,
)

import numpy as np

from lt_losses_mm.datasets import CIFAR10LT, CIFAR100LT
from lt_losses_mm.priors import load_class_counts
from lt_losses_mm.priors.counts import parse_annotations

# As published: by the sites of CIFAR, iNaturalist 2018 and Places365; of
# ILSVRC 2012 and ADE20K the ones that torchvision and GluonCV verify.
CHECKSUMS = {
    'cifar-10-python.tar.gz': 'c58f30108f718f92721af3b95e74349a',
    'cifar-100-python.tar.gz': 'eb9058c3a382ffc7106e4002c42a8d85',
    'train_val2018.tar.gz': 'b1c6952ce38f31868cc50ea72d066cc3',
    'train2018.json.tar.gz': 'bfa29d89d629cbf04d826a720c0a68b0',
    'val2018.json.tar.gz': 'f2ed8bfe3e9901cdefceb4e53cd3775d',
    'train_256_places365standard.tar': '53ca1c756c3d1e7809517cc47c5561c5',
    'val_256.tar': 'e27b17d8d44f4af9a78502beb927f808',
    'ILSVRC2012_img_train.tar': '1d675b47d978889d74fa0da5fadfb00e',
    'ILSVRC2012_img_val.tar': '29b22e2961454d5413ddabcf34fc5622',
    'ADEChallengeData2016.zip': '219e1696abb36c8ba3a3afe7fb2f4b4606a897c7',
}
# MD5 of the unpacked files, as mmpretrain and torchvision verify them.
CIFAR_FILES = {
    'cifar-10-batches-py': {
        'data_batch_1': 'c99cafc152244af753f735de768cd75f',
        'data_batch_2': 'd4bba439e000b95fd0a9bffe97cbabec',
        'data_batch_3': '54ebc095f3ab1f0389bbae665268c751',
        'data_batch_4': '634d18415352ddfa80567beed471001a',
        'data_batch_5': '482c414d41f54cd18b22e5b47cb7c3cb',
        'test_batch': '40351d587109b95175f43aff81a1287e',
        'batches.meta': '5ff9c542aee3614f3951f8cda6e48888',
    },
    'cifar-100-python': {
        'train': '16019d7e3df5f24257cddd939b257f8d',
        'test': 'f0ef6b0ae62326f3e7ffdfab6717acfc',
        'meta': '7973b15100ade9c7d40fb424638fde48',
    },
}
LISTS = 'https://github.com/facebookresearch/classifier-balancing'
# Images by split: https://www.lvisdataset.org/dataset (LVIS v1) and
# http://sceneparsing.csail.mit.edu (ADE20K).
LVIS_IMAGES = {'v1': {'train': 100170, 'val': 19809}}
ADE_IMAGES = {'training': 20210, 'validation': 2000}

Sample = Tuple[str, int]


class Job:
    """One call: where to look, where to write, and what is wrong so far."""

    def __init__(self, args: argparse.Namespace, folder: str) -> None:
        self.sources = [Path(source).expanduser() for source in args.sources]
        self.root = Path(args.data) / folder
        self.mini = args.mini
        self.problems: list[str] = []
        for source in self.sources:
            if not source.is_dir():
                self.problems.append(
                    f'{source}: no such folder, expected one with downloads'
                )
        self.stop_on_problems()
        if args.checksums:
            for source in self.sources:
                for name in CHECKSUMS:
                    if (source / name).is_file():
                        self.check_archive(source / name)
            self.stop_on_problems()

    def stop_on_problems(self) -> None:
        """End with the list of all problems, if there are any."""
        if self.problems:
            sys.exit(
                'Not prepared:\n'
                + '\n'.join(f'- {problem}' for problem in self.problems)
            )

    def expect(self, fine: Any, problem: str) -> None:
        if not fine:
            self.problems.append(problem)

    def find(self, names: Sequence[str], fix: str) -> Path:
        """The first of ``names`` in a source, or a problem."""
        for source in self.sources:
            for name in names:
                if (source / name).exists():
                    return (source / name).resolve()
                if source.resolve().name == name:
                    return source.resolve()
        self.problems.append(
            f'{" or ".join(names)}: not in '
            f'{", ".join(map(str, self.sources))}. Fix: {fix}'
        )
        return Path(names[0])

    def find_or_unpack(
        self, name: str, archive: str, into: Path, fix: str
    ) -> Path:
        """``name`` from a source, else what an archive there unpacks to."""
        for source in self.sources:
            unpacked = (source / name).exists() or source.name == name
            if (source / archive).is_file() and not unpacked:
                if self.mini:
                    self.problems.append(
                        f'{source / archive}: --mini copies from unpacked '
                        'data only. Fix: unpack it'
                    )
                    return Path(name)
                self.check_archive(source / archive)
                self.stop_on_problems()
                unpack(source / archive, into, name)
                return into / name
        return self.find([name, archive], fix)

    def check_archive(self, path: Path) -> None:
        if path.name in CHECKSUMS:
            self.check_file(path, CHECKSUMS[path.name])

    def check_file(self, path: Path, expected: str) -> None:
        """Compare a file with its MD5 or SHA-1, by the length of it."""
        if not path.is_file():
            self.problems.append(f'{path}: missing. Fix: unpack it again')
            return
        found = hashlib.new('md5' if len(expected) == 32 else 'sha1')
        with path.open('rb') as file:
            for block in iter(lambda: file.read(1 << 20), b''):
                found.update(block)
        if found.hexdigest() == expected:
            print(f'checksum verified: {path}')
        else:
            self.problems.append(
                f'{path}: {found.name} {found.hexdigest()}, expected '
                f'{expected}. Fix: download it again'
            )

    def check_files(self, base: dict[str, Path], names: Iterable[str]) -> None:
        """Report which of ``names`` are not on disk.

        Args:
            base: Folder of each first part of a name.
            names: Paths relative to the benchmark's folder.
        """
        wanted = defaultdict(set)
        for name in names:
            path = located(base, name)
            wanted[path.parent].add(path.name)
        missing = []
        for folder, files in wanted.items():
            present = set(os.listdir(folder)) if folder.is_dir() else set()
            missing += [str(folder / name) for name in files - present]
        total = sum(map(len, wanted.values()))
        self.expect(
            not missing,
            f'{len(missing)} of {total} images missing, such as '
            f'{", ".join(sorted(missing)[:3])}. Fix: unpack the images again',
        )

    def check_counts(
        self, what: str, found: np.ndarray, expected: np.ndarray
    ) -> None:
        if found.shape != expected.shape:
            self.problems.append(
                f'{what}: {len(found)} classes, expected {len(expected)}. '
                'Fix: download the official file again'
            )
            return
        wrong = np.flatnonzero(found != expected)
        if len(wrong):
            c = wrong[0]
            self.problems.append(
                f'{what}: {len(wrong)} classes differ, the first is class {c} '
                f'with {found[c]:g} instead of {expected[c]:g}. Fix: '
                'download the official file again'
            )
        else:
            print(
                f'counts verified: {what}: {expected.sum():,.0f} in '
                f'{len(expected)} classes'
            )

    def refuse(self, path: Path, what: str) -> None:
        self.problems.append(
            f'{path} exists, but {what}; it was left alone. Fix: move it '
            'away, or give another --data'
        )

    def link(self, source: Path, name: str) -> None:
        """Link ``name`` of the benchmark's folder to ``source``."""
        target = self.root / name
        if target.exists() and target.resolve() == source.resolve():
            print(f'kept: {target}')
        elif os.path.lexists(target):
            self.refuse(target, f'is not a link to {source}')
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source.resolve())
            print(f'linked: {target} -> {source.resolve()}')

    def write(self, name: str, content: bytes) -> None:
        """Write a file of the benchmark's folder in one step."""
        target = self.root / name
        if target.exists():
            if target.read_bytes() == content:
                print(f'kept: {target}')
            else:
                self.refuse(target, 'has other contents')
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f'{target.name}.part')
        part.write_bytes(content)
        part.rename(target)
        print(f'written: {target}')

    def place(self, base: dict[str, Path], names: Iterable[str]) -> None:
        """Link whole folders, or copy the chosen files of a mini copy."""
        if not self.mini:
            for name, source in base.items():
                self.link(source, name)
            return
        copied = 0
        for name in names:
            source, target = located(base, name), self.root / name
            if target.exists():
                if target.stat().st_size != source.stat().st_size:
                    self.refuse(target, f'is not a copy of {source}')
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f'{target.name}.part')
            shutil.copyfile(source, part)
            part.rename(target)
            copied += 1
        print(f'copied: {copied} images to {self.root}')

    def cut(self, samples: Sequence[Any]) -> Sequence[Any]:
        """All samples, or ``--mini N`` of them, evenly spread."""
        if not self.mini or self.mini >= len(samples):
            return samples
        index = np.linspace(0, len(samples) - 1, self.mini).round()
        return [samples[int(i)] for i in index]


def located(base: dict[str, Path], name: str) -> Path:
    """Where the file ``name`` of the benchmark's folder comes from."""
    first, _, rest = name.partition('/')
    return base[first] / rest


def unpack(archive: Path, into: Path, name: str) -> None:
    """Unpack what is called ``name`` or lies in it; resumes by file size."""
    for path, size, open_member in members(archive):
        parts = Path(path).parts
        if name not in parts or '..' in parts:
            continue
        target = into.joinpath(*parts[parts.index(name) :])
        if target.is_file() and target.stat().st_size == size:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f'{target.name}.part')
        with open_member() as source, part.open('wb') as sink:
            shutil.copyfileobj(source, sink)
        # A file of another size is no whole member of this archive.
        if target.exists():
            sys.exit(
                f'{target} exists with another size than in {archive}; it '
                'was left alone. Fix: move it away, or give another --data'
            )
        part.rename(target)
    print(f'unpacked: {archive} to {into / name}')


def members(
    archive: Path,
) -> Iterator[tuple[str, int, Callable[[], BinaryIO]]]:
    """Name, size and opener of each file in a zip or tar archive."""
    if archive.suffix == '.zip':
        with zipfile.ZipFile(archive) as content:
            for entry in content.infolist():
                if not entry.is_dir():
                    yield (
                        entry.filename,
                        entry.file_size,
                        lambda entry=entry: content.open(entry),
                    )
        return
    with tarfile.open(archive) as content:
        for entry in content:
            if entry.isfile():
                yield (
                    entry.name,
                    entry.size,
                    lambda entry=entry: content.extractfile(entry),
                )


def read_list(path: Path) -> list[Sample]:
    if not path.is_file():
        return []
    lines = [line.rsplit(' ', 1) for line in path.read_text().splitlines()]
    return [(name, int(label)) for name, label in lines]


def label_counts(samples: Sequence[Sample]) -> np.ndarray:
    return np.bincount([label for _, label in samples])


def check_lists(
    job: Job,
    lists: dict[str, list[Sample]],
    expected: dict[str, np.ndarray],
) -> None:
    """Stop unless everything was found and each list has its counts."""
    job.stop_on_problems()
    for name, samples in lists.items():
        job.check_counts(name, label_counts(samples), expected[name])
    job.stop_on_problems()


def place_lists(
    job: Job, base: dict[str, Path], lists: dict[str, list[Sample]]
) -> None:
    """Write the lists, and link or copy what they name."""
    if job.mini:
        # Evenly spread over the classes, so that the tail stays.
        lists = {
            name: job.cut(sorted(samples, key=lambda sample: sample[1]))
            for name, samples in lists.items()
        }
    paths = [path for samples in lists.values() for path, _ in samples]
    job.check_files(base, paths)
    job.stop_on_problems()
    job.place(base, paths)
    for name, samples in lists.items():
        lines = ''.join(f'{path} {label}\n' for path, label in samples)
        job.write(name, lines.encode())


def imagenet_lt(args: argparse.Namespace) -> Job:
    job = Job(args, 'imagenet_lt')
    ilsvrc = 'unpack ILSVRC 2012 (https://image-net.org), one folder per wnid'
    base = {name: job.find([name], ilsvrc) for name in ('train', 'val')}
    lists = {}
    for split in ('train', 'val', 'test'):
        name = f'ImageNet_LT_{split}.txt'
        fix = f'take it from {LISTS}, data/ImageNet_LT'
        lists[name] = read_list(job.find([name], fix))
    expected = {
        'ImageNet_LT_train.txt': load_class_counts('imagenet_lt').counts,
        'ImageNet_LT_val.txt': np.full(1000, 20),
        'ImageNet_LT_test.txt': np.full(1000, 50),
    }
    check_lists(job, lists, expected)
    wnids = {
        label: path.split('/')[1]
        for path, label in lists['ImageNet_LT_train.txt']
    }
    nested = any((base['val'] / wnid).is_dir() for wnid in wnids.values())

    def adapted(path: str, label: int) -> str:
        if not path.startswith('val/'):
            return path
        image = path.rsplit('/', 1)[1]
        return f'val/{wnids[label]}/{image}' if nested else f'val/{image}'

    lists = {
        name: [(adapted(path, label), label) for path, label in samples]
        for name, samples in lists.items()
    }
    place_lists(job, base, lists)
    return job


def places_lt(args: argparse.Namespace) -> Job:
    job = Job(args, 'places_lt')
    places = 'unpack {} of http://places2.csail.mit.edu/download.html'
    train = job.find(
        ['data_256', 'train'],
        places.format('train_256_places365standard.tar'),
    )
    val = job.find(['val_256', 'val'], places.format('val_256.tar'))
    lists = {}
    for split in ('train', 'val', 'test'):
        name = f'Places_LT_{split}.txt'
        fix = f'take it from {LISTS}, data/Places_LT'
        lists[name] = read_list(job.find([name], fix))
    expected = {
        'Places_LT_train.txt': load_class_counts('places_lt').counts,
        'Places_LT_val.txt': np.full(365, 20),
        'Places_LT_test.txt': np.full(365, 100),
    }
    check_lists(job, lists, expected)
    classes = {
        label: '-'.join(p for p in path.split('/')[1:-1] if len(p) > 1)
        for path, label in lists['Places_LT_train.txt']
    }
    by_letter = (train / 'a').is_dir()
    nested = any((val / name).is_dir() for name in classes.values())

    def adapted(path: str, label: int) -> str:
        image = path.rsplit('/', 1)[1]
        if image.startswith('Places365_val'):
            folder = f'{classes[label]}/' if nested else ''
            return f'val_256/{folder}{image}'
        folder = classes[label]
        if by_letter:
            folder = f'{folder[0]}/{folder.replace("-", "/")}'
        return f'data_256/{folder}/{image}'

    lists = {
        name: [(adapted(path, label), label) for path, label in samples]
        for name, samples in lists.items()
    }
    place_lists(job, {'data_256': train, 'val_256': val}, lists)
    return job


def inaturalist2018(args: argparse.Namespace) -> Job:
    job = Job(args, 'inaturalist2018')
    site = 'https://github.com/visipedia/inat_comp/tree/master/2018'
    images = job.find(
        ['train_val2018'], f'unpack train_val2018.tar.gz, {site}'
    )
    lists = {}
    for split in ('train', 'val'):
        name = f'{split}2018.json'
        path = job.find_or_unpack(
            name, f'{name}.tar.gz', job.root, f'download it, {site}'
        )
        if path.is_file():
            content = json.loads(path.read_text())
            files = {
                image['id']: image['file_name'] for image in content['images']
            }
            lists[f'iNaturalist18_{split}.txt'] = [
                (files[a['image_id']], a['category_id'])
                for a in content['annotations']
            ]
    expected = {
        'iNaturalist18_train.txt': load_class_counts('inaturalist18').counts,
        'iNaturalist18_val.txt': np.full(8142, 3),
    }
    check_lists(job, lists, expected)
    place_lists(job, {'train_val2018': images}, lists)
    return job


def lvis(args: argparse.Namespace) -> Job:
    version = args.version
    job = Job(args, f'lvis_{version}')
    base = {
        name: job.find(
            [name], f'unpack http://images.cocodataset.org/zips/{name}.zip'
        )
        for name in ('train2017', 'val2017')
    }
    files = {}
    for split in ('train', 'val'):
        name = f'lvis_{version}_{split}.json'
        files[name] = job.find_or_unpack(
            name,
            f'{name}.zip',
            job.root / 'annotations',
            'download it, https://www.lvisdataset.org/dataset',
        )
    job.stop_on_problems()
    chosen: dict[str, list[str]] = {}
    contents = {}
    for name, path in files.items():
        content = parse_annotations(path.read_bytes(), path)
        split = 'train' if 'train' in name else 'val'
        check_lvis(job, version, split, content)
        # Those without annotations are not worth a place in a small copy.
        annotated = {a['image_id'] for a in content['annotations']}
        images = content['images']
        if job.mini:
            images = [image for image in images if image['id'] in annotated]
        images = job.cut(images)
        chosen[name] = [lvis_path(image, version, split) for image in images]
        contents[name] = {image['id'] for image in images}
    job.check_files(base, [p for paths in chosen.values() for p in paths])
    job.stop_on_problems()
    job.place(base, [p for paths in chosen.values() for p in paths])
    for name, path in files.items():
        target = f'annotations/{name}'
        if job.mini:
            whole = json.loads(path.read_text())
            for key, field in (('images', 'id'), ('annotations', 'image_id')):
                whole[key] = [
                    item
                    for item in whole[key]
                    if item[field] in contents[name]
                ]
            job.write(target, json.dumps(whole).encode())
        else:
            job.link(path, target)
    return job


def lvis_path(image: dict[str, Any], version: str, split: str) -> str:
    if version == 'v1':
        return '/'.join(image['coco_url'].rsplit('/', 2)[1:])
    return f'{split}2017/{image["file_name"][-16:]}'


def check_lvis(
    job: Job, version: str, split: str, content: dict[str, Any]
) -> None:
    """Compare the annotations themselves with the shipped figures."""
    benchmark = f'lvis_{version}'
    classes = load_class_counts(benchmark).num_classes
    what = f'{benchmark}_{split}.json'
    ids = [category['id'] for category in content['categories']]
    job.expect(
        sorted(ids) == list(range(1, classes + 1)),
        f'{what}: {len(ids)} categories, expected the ids 1 to {classes}. '
        'Fix: download it again',
    )
    images = LVIS_IMAGES.get(version, {}).get(split, len(content['images']))
    job.expect(
        len(content['images']) == images,
        f'{what}: {len(content["images"])} images, expected {images}. Fix: '
        'download it again',
    )
    if split == 'val':
        return
    pairs = [(a['category_id'], a['image_id']) for a in content['annotations']]
    for unit, found in (('instance', pairs), ('image', set(pairs))):
        counts = np.bincount([c - 1 for c, _ in found], minlength=classes)
        expected = load_class_counts(benchmark, unit=unit).counts
        job.check_counts(f'{what}, unit {unit}', counts, expected)


def cifar(args: argparse.Namespace) -> Job:
    kind = CIFAR10LT if args.classes == 10 else CIFAR100LT
    job = Job(args, '')
    source = job.find_or_unpack(
        kind.folder,
        kind.archive,
        job.root,
        f'download https://www.cs.toronto.edu/~kriz/{kind.archive}',
    )
    job.stop_on_problems()
    for name, checksum in CIFAR_FILES[kind.folder].items():
        job.check_file(source / name, checksum)
    job.stop_on_problems()
    if not job.mini:
        job.link(source, kind.folder)
        return job
    for split in ('train', 'test'):
        for name in kind.files[split]:
            content = pickle.loads(
                (source / name).read_bytes(), encoding='latin1'
            )
            labels = np.array(content[kind.label_key])
            keep = np.sort(
                np.concatenate(
                    [
                        np.flatnonzero(labels == c)[: job.mini]
                        for c in range(kind.num_classes)
                    ]
                )
            )
            small = {
                key: value[keep]
                if isinstance(value, np.ndarray)
                else [value[i] for i in keep]
                for key, value in content.items()
                if len(value) == len(labels)
            }
            job.write(f'{kind.folder}/{name}', pickle.dumps(small, 2))
    meta = (source / kind.meta_file).read_bytes()
    job.write(f'{kind.folder}/{kind.meta_file}', meta)
    return job


def ade20k(args: argparse.Namespace) -> Job:
    job = Job(args, 'ade')
    name = 'ADEChallengeData2016'
    source = job.find_or_unpack(
        name,
        f'{name}.zip',
        job.root,
        f'download http://data.csail.mit.edu/places/ADEchallenge/{name}.zip',
    )
    job.stop_on_problems()
    chosen = []
    for split, expected in ADE_IMAGES.items():
        stems = [
            {path.stem for path in (source / kind / split).glob(f'*{suffix}')}
            for kind, suffix in (('images', '.jpg'), ('annotations', '.png'))
        ]
        both = sorted(stems[0] & stems[1])
        odd = sorted(stems[0] ^ stems[1])
        job.expect(
            len(both) == expected and not odd,
            f'{source}: {len(both)} {split} images with a mask, expected '
            f'{expected}; {len(odd)} images or masks without the other'
            f'{", such as " + odd[0] if odd else ""}. Fix: unpack it again',
        )
        for stem in job.cut(both):
            chosen += [
                f'{name}/images/{split}/{stem}.jpg',
                f'{name}/annotations/{split}/{stem}.png',
            ]
    info = source / 'objectInfo150.txt'
    job.expect(info.is_file(), f'{info}: missing. Fix: unpack it again')
    job.stop_on_problems()
    rows = info.read_text().splitlines()[1:]
    ratios = np.array([float(row.split('\t')[1]) for row in rows if row])
    job.check_counts(
        'objectInfo150.txt, shares of pixels',
        ratios,
        load_class_counts('ade20k').counts,
    )
    job.stop_on_problems()
    job.place({name: source}, [*chosen, f'{name}/objectInfo150.txt'])
    return job


PREPARE = {
    'lvis': (lvis, 'LVIS v1 or v0.5 on COCO 2017 images'),
    'imagenet-lt': (imagenet_lt, 'ImageNet-LT on ILSVRC 2012'),
    'places-lt': (places_lt, 'Places-LT on Places365, 256 px'),
    'inaturalist2018': (inaturalist2018, 'iNaturalist 2018'),
    'cifar': (cifar, 'CIFAR-10 or CIFAR-100, for CIFAR-LT'),
    'ade20k': (ade20k, 'ADE20K (MIT Scene Parsing, 150 classes)'),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest='benchmark', required=True)
    for name, (_, text) in PREPARE.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument(
            'sources', nargs='+', help='folders with what was downloaded'
        )
        command.add_argument(
            '--data', help="what the configs call 'data' (default: data)"
        )
        command.add_argument(
            '--mini',
            type=int,
            metavar='N',
            help='copy N images of each split (CIFAR: of each class and '
            'file) instead, for trying things (default of --data: data_mini)',
        )
        command.add_argument(
            '--checksums',
            action='store_true',
            help='verify the archives in the folders as well, large or not',
        )
        if name == 'lvis':
            command.add_argument(
                '--version', choices=['v1', 'v0.5'], default='v1'
            )
        if name == 'cifar':
            command.add_argument(
                '--classes', type=int, choices=[10, 100], default=100
            )
    args = parser.parse_args()
    if args.mini is not None and args.mini < 1:
        parser.error(f'--mini: expected a number from 1 on, got {args.mini}')
    args.data = args.data or ('data_mini' if args.mini else 'data')
    job = PREPARE[args.benchmark][0](args)
    job.stop_on_problems()
    print(f'ready: {job.root}')


if __name__ == '__main__':
    main()
