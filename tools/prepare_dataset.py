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
import re
import shutil
import sys
import tarfile
import zipfile
import zlib
from collections import Counter, defaultdict
from pathlib import Path
from typing import (
    Any,
    BinaryIO,
    Callable,
    Iterator,
    Sequence,
    Tuple,
)

import numpy as np
from _doubles import MARKER

from lt_losses_mm.cache import in_one_step
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
# Images by split, and what the number is rounded to:
# https://www.lvisdataset.org/dataset (v1) and the README of
# https://github.com/lvis-dataset/lvis-api (v0.5, '57k train, 5k val').
LVIS_IMAGES = {
    'v1': {'train': (100170, 1), 'val': (19809, 1)},
    'v0.5': {'train': (57000, 1000), 'val': (5000, 1000)},
}
# http://sceneparsing.csail.mit.edu
ADE_IMAGES = {'training': 20210, 'validation': 2000}
# What reading an archive that is none, or not all of one, raises.
BROKEN = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error)

Sample = Tuple[str, int]


class Job:
    """One call: where to look, where to write, and what is wrong so far."""

    def __init__(self, args: argparse.Namespace, folder: str) -> None:
        self.sources = [Path(source).expanduser() for source in args.sources]
        self.root = Path(args.data) / folder
        self.mini = args.mini
        self.problems: list[str] = []
        self.archives: list[Path] = []  # to verify
        self.packed: list[tuple[Path, Path, str]] = []  # arguments of unpack
        self.outputs: dict[str, Path | bytes] = {}
        for source in self.sources:
            self.expect(
                source.is_dir(),
                f'{source}: no such folder, expected one with downloads. Fix: '
                'correct the path',
            )
        for folder in (self.root, *self.root.parents):
            if (folder / MARKER).is_file():
                self.refuse(folder, 'is a format double, not for real data')
            elif os.path.lexists(folder) and not folder.is_dir():
                self.refuse(folder, 'is a file or a dead link, not a folder')
        self.stop_on_problems()
        if args.checksums:
            paths = [s / name for s in self.sources for name in CHECKSUMS]
            self.archives += [path for path in paths if path.is_file()]

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

    def locate(self, name: str) -> Path | None:
        """What is called ``name`` in a source, or is that source."""
        for source in self.sources:
            if (source / name).exists():
                return (source / name).resolve()
            if source.resolve().name == name:
                return source.resolve()
        return None

    def find(self, names: Sequence[str], fix: str) -> Path:
        """The first of ``names`` that is in a source, or a problem."""
        for name in names:
            path = self.locate(name)
            if path is not None:
                return path
        self.problems.append(
            f'{" or ".join(names)}: not in '
            f'{", ".join(map(str, self.sources))}. Fix: {fix}'
        )
        return Path(names[0])

    def find_or_unpack(
        self, name: str, archive: str, into: Path, fix: str
    ) -> Path:
        """``name`` from a source, else what :meth:`start` makes of it."""
        path = self.find([name, archive], fix)
        if path.name != archive:
            return path
        self.expect(
            not self.mini,
            f'{path}: --mini copies from unpacked data only. Fix: unpack it',
        )
        self.archives.append(path)
        self.packed.append((path, into, name))
        return into / name

    def start(self) -> None:
        """Stop unless everything was found; verify and unpack archives."""
        self.stop_on_problems()
        for path in dict.fromkeys(self.archives):
            if path.name in CHECKSUMS:
                self.check_file(path, CHECKSUMS[path.name])
        self.stop_on_problems()
        # All that exists is looked at before anything is written.
        for write in (False, True):
            for archive, into, name in self.packed:
                self.unpack(archive, into, name, write)
            self.stop_on_problems()

    def unpack(
        self, archive: Path, into: Path, name: str, write: bool
    ) -> None:
        """Unpack what is called ``name`` or lies in it; resumes by size."""
        found = False
        try:
            for path, size, open_member in members(archive):
                parts = Path(path).parts
                if name not in parts or '..' in parts:
                    continue
                found = True
                target = into.joinpath(*parts[parts.index(name) :])
                if os.path.lexists(target):
                    # A file of another size is no whole member.
                    if not target.is_file() or target.stat().st_size != size:
                        self.refuse(target, f'is not as in {archive}')
                elif write:
                    with in_one_step(target) as part, part.open('wb') as sink:
                        with open_member() as source:
                            shutil.copyfileobj(source, sink)
        except BROKEN as error:
            self.problems.append(
                f'{archive}: got {error}, expected a whole archive. Fix: '
                'download it again'
            )
        else:
            self.expect(
                found, f'{archive}: holds no {name}. Fix: download it again'
            )
            if write:
                print(f'unpacked: {archive} to {into / name}')

    def read_list(
        self, name: str, roots: Sequence[str], fix: str
    ) -> list[Sample]:
        """Samples of the list ``name``, or a problem.

        Args:
            name: Of the list.
            roots: Folders that its paths may be in.
            fix: Where to get it.
        """
        path = self.find([name], fix)
        samples: list[Sample] = []
        if not path.is_file():
            return samples
        line_format = re.compile(rf'((?:{"|".join(roots)})/.+) ([0-9]{{1,4}})')
        text = path.read_text(encoding='utf-8', errors='replace')
        for number, line in enumerate(text.splitlines(), 1):
            match = line_format.fullmatch(line)
            if match is None:
                self.problems.append(
                    f'{path}, line {number}: got {line[:80]!r}, expected '
                    f"'<path> <label>' with a path below {' or '.join(roots)}"
                    f'. Fix: {fix}'
                )
                break
            samples.append((match[1], int(match[2])))
        return samples

    def read_json(
        self, path: Path, **fields: Sequence[str]
    ) -> dict[str, Any] | None:
        """Annotations that are complete, or a problem.

        Args:
            path: The file.
            **fields: What each entry of ``images``, ``annotations`` and
                ``categories`` has to have.
        """
        again = 'Fix: download it again'
        try:
            content = parse_annotations(path.read_bytes(), path)
        except ValueError as error:
            self.problems.append(
                f'{path}: got {error.__cause__}, expected JSON. {again}'
            )
            return None
        for key, names in fields.items():
            items = content.get(key) if isinstance(content, dict) else None
            if not isinstance(items, list):
                self.problems.append(
                    f'{path}: no list {key!r}, expected the lists '
                    f'{", ".join(fields)}. {again}'
                )
                return None
            for number, item in enumerate(items):
                if not isinstance(item, dict) or not item.keys() >= {*names}:
                    self.problems.append(
                        f'{path}: {key}[{number}] is {str(item)[:80]}, '
                        f'expected the fields {", ".join(names)}. {again}'
                    )
                    return None
        for field, key in (
            ('image_id', 'images'),
            ('category_id', 'categories'),
        ):
            unknown = {a[field] for a in content['annotations']} - {
                item['id'] for item in content[key]
            }
            if unknown:
                self.problems.append(
                    f'{path}: annotations of {len(unknown)} {key} that are '
                    f'not there, such as {field} {min(unknown)}, expected '
                    f'none. {again}'
                )
                return None
        return content

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

    def check_files(self, base: dict[str, Path], names: Sequence[str]) -> None:
        """Report which of ``names`` are not on disk.

        Args:
            base: Folder of each first part of a name.
            names: Paths relative to the benchmark's folder.
        """
        foreign = [n for n in names if n.partition('/')[0] not in base]
        if foreign:
            self.problems.append(
                f'{len(foreign)} paths of images such as {foreign[0]!r}, '
                f'expected below {" or ".join(base)}. Fix: download the '
                'annotations again'
            )
            return
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

    def place(self, base: dict[str, Path], names: Sequence[str]) -> None:
        """Put out whole folders, or the chosen files of a mini copy."""
        if self.mini:
            base = {name: located(base, name) for name in names}
        self.outputs.update(base)

    def finish(self) -> None:
        """Write, link or copy the outputs, after a look at their places."""
        for name, source in self.outputs.items():
            target = self.root / name
            if os.path.lexists(target) and not self.is_same(target, source):
                what = 'a copy of' if self.mini else 'a link to'
                self.refuse(
                    target,
                    'has other contents'
                    if isinstance(source, bytes)
                    else f'is not {what} {source}',
                )
        self.stop_on_problems()
        copied = 0
        for name, source in self.outputs.items():
            target = self.root / name
            if isinstance(source, Path) and self.mini:
                if not target.exists():
                    with in_one_step(target) as part:
                        shutil.copyfile(source, part)
                    copied += 1
            elif target.exists():
                print(f'kept: {target}')
            elif isinstance(source, bytes):
                with in_one_step(target) as part:
                    part.write_bytes(source)
                print(f'written: {target}')
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(source.resolve())
                print(f'linked: {target} -> {source.resolve()}')
        if self.mini:
            print(f'copied: {copied} files to {self.root}')

    def is_same(self, target: Path, source: Path | bytes) -> bool:
        """Whether what exists is what an earlier call has put there."""
        if isinstance(source, bytes):
            return target.is_file() and target.read_bytes() == source
        if self.mini:
            size = source.stat().st_size
            return target.is_file() and target.stat().st_size == size
        return target.exists() and target.resolve() == source.resolve()


def even(items: Sequence[Any], number: int) -> Sequence[Any]:
    """That many items, evenly spread, or all where there are not as many."""
    if number >= len(items):
        return items
    index = np.linspace(0, len(items) - 1, number).round()
    return [items[int(i)] for i in index]


def cut(
    lists: dict[str, list[Sequence[int]]], number: int
) -> dict[str, list[int]]:
    """Which samples of each list a small copy keeps.

    The first one of each class, for which the classes are the same in all
    lists: all, or where the copy is too small for that, evenly spread ones
    from the most to the least frequent. What is left of ``number`` is in
    proportion to the list.

    Args:
        lists: Labels of each sample, sorted; the training list comes first.
        number: Samples to keep of each list.

    Returns:
        Positions in the list, in order.
    """
    training = next(iter(lists.values()))
    frequency = Counter(label for labels in training for label in labels)
    classes = even([c for c, _ in frequency.most_common()], number)
    kept = {}
    for name, samples in lists.items():
        first: dict[int, int] = {}
        for position, labels in enumerate(samples):
            for label in labels:
                first.setdefault(label, position)
        chosen = {first[label] for label in classes if label in first}
        rest = [i for i in range(len(samples)) if i not in chosen]
        rest.sort(key=samples.__getitem__)
        chosen.update(even(rest, number - len(chosen)))
        kept[name] = sorted(chosen)
    return kept


def located(base: dict[str, Path], name: str) -> Path:
    """Where the file ``name`` of the benchmark's folder comes from."""
    first, _, rest = name.partition('/')
    return base[first] / rest


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


def label_counts(samples: Sequence[Sample]) -> np.ndarray:
    return np.bincount([label for _, label in samples])


def check_lists(
    job: Job,
    lists: dict[str, list[Sample]],
    expected: dict[str, np.ndarray],
) -> None:
    for name, samples in lists.items():
        job.check_counts(name, label_counts(samples), expected[name])


def check_classes(
    job: Job, lists: dict[str, list[Sample]], in_order: bool
) -> dict[int, str]:
    """The folder of each class, which has to be one in all lists.

    Stops if there are problems, those of earlier checks included.

    Args:
        job: Takes the problems.
        lists: The training list comes first.
        in_order: Whether the labels follow the sorted folders.
    """
    folders: dict[int, str] = {}
    labels: dict[str, int] = {}
    for name, samples in lists.items():
        for number, (path, label) in enumerate(samples, 1):
            folder = class_folder(path)
            # Images of the test split may lie in one folder.
            if not folder and 'test' in name:
                continue
            pair = (
                folders.setdefault(label, folder),
                labels.setdefault(folder, label),
            )
            if pair != (folder, label):
                job.problems.append(
                    f'{name}, line {number}: got {path!r} with label {label}, '
                    f'expected folder {pair[0]!r} for label {label} and label '
                    f'{pair[1]} for folder {folder!r}, as in earlier lines. '
                    'Fix: download the official lists again'
                )
                break
    if in_order:
        found = [folders[label] for label in sorted(folders)]
        for label, (one, other) in enumerate(zip(found, sorted(found))):
            if one != other:
                job.problems.append(
                    f'{next(iter(lists))}: got folder {one!r} for label '
                    f'{label}, expected {other!r}, as labels follow the '
                    'sorted folders. Fix: download the official lists again'
                )
                break
    job.stop_on_problems()
    return folders


def class_folder(path: str) -> str:
    """The class that a path names, as 'n01440764' or 'bazaar-outdoor'."""
    # Places365 has folders of one letter, and slashes for the dashes.
    return '-'.join(part for part in path.split('/')[1:-1] if len(part) > 1)


def place_lists(
    job: Job, base: dict[str, Path], lists: dict[str, list[Sample]]
) -> None:
    """Write the lists, and link or copy what they name."""
    if job.mini:
        kept = cut(
            {
                name: [(label,) for _, label in samples]
                for name, samples in lists.items()
            },
            job.mini,
        )
        lists = {name: [lists[name][i] for i in kept[name]] for name in lists}
    paths = [path for samples in lists.values() for path, _ in samples]
    job.check_files(base, paths)
    job.stop_on_problems()
    job.place(base, paths)
    for name, samples in lists.items():
        lines = ''.join(f'{path} {label}\n' for path, label in samples)
        job.outputs[name] = lines.encode()
    job.finish()


def imagenet_lt(args: argparse.Namespace) -> Job:
    job = Job(args, 'imagenet_lt')
    ilsvrc = 'unpack ILSVRC 2012 (https://image-net.org), one folder per wnid'
    base = {name: job.find([name], ilsvrc) for name in ('train', 'val')}
    lists = {}
    for split in ('train', 'val', 'test'):
        name = f'ImageNet_LT_{split}.txt'
        fix = f'take it from {LISTS}, data/ImageNet_LT'
        lists[name] = job.read_list(name, ['train', 'val'], fix)
    job.start()
    expected = {
        'ImageNet_LT_train.txt': load_class_counts('imagenet_lt').counts,
        'ImageNet_LT_val.txt': np.full(1000, 20),
        'ImageNet_LT_test.txt': np.full(1000, 50),
    }
    check_lists(job, lists, expected)
    wnids = check_classes(job, lists, in_order=True)
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
        roots = ['train', 'val', 'data_256', 'val_256']
        lists[name] = job.read_list(name, roots, fix)
    job.start()
    expected = {
        'Places_LT_train.txt': load_class_counts('places_lt').counts,
        'Places_LT_val.txt': np.full(365, 20),
        'Places_LT_test.txt': np.full(365, 100),
    }
    check_lists(job, lists, expected)
    classes = check_classes(job, lists, in_order=False)
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
    files = {}
    for split in ('train', 'val'):
        name = f'{split}2018.json'
        files[f'iNaturalist18_{split}.txt'] = job.find_or_unpack(
            name, f'{name}.tar.gz', job.root, f'download it, {site}'
        )
    job.start()
    lists = {}
    for name, path in files.items():
        content = job.read_json(
            path,
            images=['id', 'file_name'],
            annotations=['image_id', 'category_id'],
            categories=['id'],
        )
        if content is not None:
            paths = {i['id']: i['file_name'] for i in content['images']}
            lists[name] = [
                (paths[a['image_id']], a['category_id'])
                for a in content['annotations']
            ]
    job.stop_on_problems()
    expected = {
        'iNaturalist18_train.txt': load_class_counts('inaturalist18').counts,
        'iNaturalist18_val.txt': np.full(8142, 3),
    }
    check_lists(job, lists, expected)
    job.stop_on_problems()
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
    job.start()
    images: dict[str, list[dict[str, Any]]] = {}
    labels: dict[str, list[Sequence[int]]] = {}
    splits = dict(zip(files, ('train', 'val')))
    for name, path in files.items():
        content = job.read_json(
            path,
            images=['id', 'coco_url' if version == 'v1' else 'file_name'],
            annotations=['image_id', 'category_id'],
            categories=['id'],
        )
        if content is None:
            continue
        check_lvis(job, version, splits[name], content)
        images[name] = content['images']
        if job.mini:
            found = defaultdict(set)
            for annotation in content['annotations']:
                found[annotation['image_id']].add(annotation['category_id'])
            # Those without annotations are not worth a place in a small copy.
            images[name] = [i for i in images[name] if i['id'] in found]
            labels[name] = [sorted(found[i['id']]) for i in images[name]]
    job.stop_on_problems()
    if job.mini:
        kept = cut(labels, job.mini)
        images = {name: [images[name][i] for i in kept[name]] for name in kept}
    paths = [
        lvis_path(image, version, splits[name])
        for name in images
        for image in images[name]
    ]
    job.check_files(base, paths)
    job.stop_on_problems()
    job.place(base, paths)
    for name, path in files.items():
        job.outputs[f'annotations/{name}'] = path
        if job.mini:
            ids = {image['id'] for image in images[name]}
            whole = json.loads(path.read_bytes())
            for key, field in (('images', 'id'), ('annotations', 'image_id')):
                whole[key] = [i for i in whole[key] if i[field] in ids]
            count_categories(whole)
            job.outputs[f'annotations/{name}'] = json.dumps(whole).encode()
    job.finish()
    return job


def count_categories(content: dict[str, Any]) -> None:
    """Make the counts in the categories those of the annotations."""
    pairs = [(a['image_id'], a['category_id']) for a in content['annotations']]
    for key, counted in (('image', set(pairs)), ('instance', pairs)):
        found = Counter(category for _, category in counted)
        for category in content['categories']:
            if f'{key}_count' in category:
                category[f'{key}_count'] = found[category['id']]


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
    if sorted(ids) != list(range(1, classes + 1)):
        job.problems.append(
            f'{what}: {len(ids)} categories, expected the ids 1 to {classes}. '
            'Fix: download it again'
        )
        return
    images, step = LVIS_IMAGES[version][split]
    job.expect(
        abs(len(content['images']) - images) <= step // 2,
        f'{what}: {len(content["images"])} images, expected '
        f'{"about " if step > 1 else ""}{images}. Fix: download it again',
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
    job = Job(args, kind.folder)
    source = job.find_or_unpack(
        kind.folder,
        kind.archive,
        job.root.parent,
        f'download https://www.cs.toronto.edu/~kriz/{kind.archive}',
    )
    job.start()
    for name, checksum in CIFAR_FILES[kind.folder].items():
        job.check_file(source / name, checksum)
    job.stop_on_problems()
    if not job.mini:
        job.outputs[''] = source
        job.finish()
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
            job.outputs[name] = pickle.dumps(small, 2)
    job.outputs[kind.meta_file] = (source / kind.meta_file).read_bytes()
    job.finish()
    return job


def ade20k(args: argparse.Namespace) -> Job:
    name = 'ADEChallengeData2016'
    job = Job(args, f'ade/{name}')
    source = job.find_or_unpack(
        name,
        f'{name}.zip',
        job.root.parent,
        f'download http://data.csail.mit.edu/places/ADEchallenge/{name}.zip',
    )
    job.start()
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
        # Which classes an image has is only in its mask.
        for stem in even(both, job.mini or len(both)):
            chosen += [
                f'images/{split}/{stem}.jpg',
                f'annotations/{split}/{stem}.png',
            ]
    info = source / 'objectInfo150.txt'
    job.expect(info.is_file(), f'{info}: missing. Fix: unpack it again')
    job.stop_on_problems()
    ratios = []
    text = info.read_text(encoding='utf-8', errors='replace')
    for number, row in enumerate(text.splitlines()[1:], 2):
        try:
            ratios.append(float(row.split('\t')[1]))
        except (IndexError, ValueError):
            job.problems.append(
                f'{info}, line {number}: got {row[:80]!r}, expected index and '
                'share of pixels, separated by tabs. Fix: unpack it again'
            )
            break
    job.stop_on_problems()
    job.check_counts(
        'objectInfo150.txt, shares of pixels',
        np.array(ratios),
        load_class_counts('ade20k').counts,
    )
    if job.mini:
        chosen.append('objectInfo150.txt')
        job.outputs.update({path: source / path for path in chosen})
        # There is no list: whatever lies there is part of the data set.
        for path in sorted(job.root.glob('*/*/ADE_*')):
            if path.relative_to(job.root).as_posix() not in job.outputs:
                job.refuse(path, 'is not of this copy')
                break
    else:
        job.outputs[''] = source
    job.finish()
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
            'file) instead, for trying things, all classes first (default of '
            '--data: data_mini)',
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
    try:
        job = PREPARE[args.benchmark][0](args)
    except OSError as error:
        # A full disk, missing rights, a file where a folder should be.
        sys.exit(f'Not prepared:\n- {error}. Fix: see to it and call again')
    print(f'ready: {job.root}')


if __name__ == '__main__':
    main()
