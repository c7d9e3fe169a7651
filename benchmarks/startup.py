# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
r"""What the package adds to the time before the first iteration.

Four parts, each measured in fresh processes, with the package's bytecode
compiled beforehand as an installation does:

- ``imports``: importing the package after a host, and building a loss;
- ``compile``: compiling the kernels, and loading what is compiled;
- ``lvis``: class counts of annotations of the size and format of LVIS v1
  train, from the file and from mmdet's data set, where the host's own
  loading is a row of its own;
- ``masks``: class counts of masks of the size of ADE20K's, then from the
  cache.

The data are generated once, in the work dir, with the classes' published
counts; counts that differ from them end the benchmark. Files are in the
operating system's cache when they are read.

    python benchmarks/startup.py --ledger benchmarks/speed.csv

A part that is in the ledger for this commit is not measured again.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Callable, Iterator

import numpy as np
from ledger import ROOT, append, read_ledger
from tqdm import tqdm

from lt_losses_mm.sweeps.origin import commit, versions
from lt_losses_mm.sweeps.worker import cpu

HOSTS = ('mmdet', 'mmpretrain', 'mmseg')
LVIS_IMAGES = 100_170
LVIS_POINTS = 50
ADE_MASKS = 20_210
ADE_SIZE = (512, 683)
ADE_DIFFERENT = 1000  # the others are copies, which take as long to read


def seconds(function: Callable) -> tuple[float, object]:
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def require(condition: bool, what: str) -> None:
    if not condition:
        raise SystemExit(f'{what}: the counts are not those of the data')


# ------------------------------------------- measured in a process of its own
def imports(host: str) -> dict:
    """Seconds of the host's import, of ours after it, and of one loss."""

    def build() -> object:
        from mmengine.registry import MODELS

        return MODELS.build(
            dict(
                type='lt_losses_mm.BalancedSoftmaxLoss',
                num_classes=1203,
                class_counts='lvis_v1',
            )
        )

    return {
        'host': seconds(lambda: import_module(f'{host}.models'))[0],
        'import': seconds(lambda: import_module('lt_losses_mm'))[0],
        'build': seconds(build)[0],
    }


def compiled(_: str) -> dict:
    import torch  # noqa: F401 (its time is not that of the kernels)

    from lt_losses_mm.kernels.engines import native

    took, library = seconds(native.load)
    if library is None:
        raise SystemExit('there is no C++ compiler')
    return dict(load=took)


def lvis_file(path: str) -> dict:
    """Seconds from the path of an annotation file to its class counts."""
    from lt_losses_mm.priors import load_class_counts

    took, found = seconds(lambda: load_class_counts(path))
    right = load_class_counts('lvis_v1').counts
    require(np.array_equal(found.counts, right), path)
    return {'count': took}


def lvis_dataset(path: str) -> dict:
    """Seconds of mmdet's loading, and of the counts of its data set."""
    from mmdet.datasets import LVISV1Dataset

    from lt_losses_mm.priors import count_dataset, load_class_counts

    build = partial(
        LVISV1Dataset,
        ann_file=path,
        data_prefix=dict(img=''),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
    )
    loading, dataset = seconds(build)
    took, found = seconds(lambda: count_dataset(dataset))
    right = load_class_counts('lvis_v1').counts
    require(np.array_equal(found.counts, right), 'LVISV1Dataset')
    return {'load': loading, 'count': took}


def masks(folder: str) -> dict:
    """Seconds to count the masks of a data set of mmseg."""
    from mmseg.datasets import ADE20KDataset

    from lt_losses_mm.priors import count_dataset

    dataset = ADE20KDataset(
        data_root=folder,
        data_prefix=dict(img_path='img', seg_map_path='ann'),
        reduce_zero_label=True,
    )
    took, found = seconds(lambda: count_dataset(dataset))
    # All pixels but those of value 0, which become the ignored label.
    total = np.prod(ADE_SIZE) * len(dataset)
    require(0.9 * total < found.counts.sum() < total, folder)
    return {'count': took, 'sum': found.counts.sum()}


PROBES = (imports, compiled, lvis_file, lvis_dataset, masks)


def probe(function: Callable, argument: str, **variables: str) -> dict:
    """Run one of these in a fresh process; adds its peak memory in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / 'answer.json'
        subprocess.run(
            [
                sys.executable,
                __file__,
                '--probe',
                function.__name__,
                argument,
                str(answer),
            ],
            check=True,
            env=dict(os.environ, **variables),
        )
        return json.loads(answer.read_text())


def answer_probe(name: str, argument: str, path: str) -> None:
    result = {f.__name__: f for f in PROBES}[name](argument)
    # KiB on Linux, bytes on macOS
    scale = 2**20 if sys.platform == 'darwin' else 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
    Path(path).write_text(json.dumps(dict(result, peak=peak)))


# ------------------------------------------------------------------- the data
def write_lvis(path: Path, points: int, counted: bool) -> None:
    """Annotations with the image and instance counts of LVIS v1 train.

    Args:
        path: The JSON file.
        points: Of each polygon; with 50 the file has the size of the
            published one, 1.1 GB.
        counted: Whether the categories hold their counts, as in LVIS, or
            the annotations have to be counted, as in COCO.
    """
    from lt_losses_mm.priors import load_class_counts

    rng = np.random.default_rng(0)
    images = load_class_counts('lvis_v1')
    instances = load_class_counts('lvis_v1', unit='instance').counts
    holds, labels = [], []
    for label, (n, m) in enumerate(zip(images.counts, instances), 1):
        chosen = rng.choice(LVIS_IMAGES, int(n), replace=False) + 1
        holds += [chosen, rng.choice(chosen, int(m - n))]
        labels.append(np.full(int(m), label))
    image_ids, category_ids = np.concatenate(holds), np.concatenate(labels)
    order = rng.permutation(len(image_ids))
    # Drawing as many polygons as instances would take minutes.
    polygons = [
        json.dumps([rng.uniform(0, 480, 2 * points).round(2).tolist()])
        for _ in range(1000)
    ]
    categories = []
    for label, name in enumerate(images.names, 1):
        category = dict(
            frequency='f',
            synset=f'{name}.n.01',
            synonyms=[name],
            id=label,
            name=name,
        )
        category['def'] = 'a definition of about the usual length of one'
        if counted:
            category['image_count'] = int(images.counts[label - 1])
            category['instance_count'] = int(instances[label - 1])
        categories.append(category)
    partial_path = path.with_suffix('.part')
    with open(partial_path, 'w') as file:
        file.write('{"info": {"version": "1.0"}, "annotations": [')
        for index, row in enumerate(tqdm(order, f'write {path.name}')):
            file.write(
                f'{", " if index else ""}{{"area": {row % 9999 + 1.25}, '
                f'"id": {index + 1}, '
                f'"segmentation": {polygons[row % 1000]}, '
                f'"image_id": {image_ids[row]}, '
                f'"bbox": [20.57, {row % 300}.25, 101.04, 74.62], '
                f'"category_id": {category_ids[row]}}}'
            )
        file.write('], "images": ')
        json.dump(list(map(image_entry, range(1, LVIS_IMAGES + 1))), file)
        file.write(f', "licenses": [], "categories": {json.dumps(categories)}')
        file.write('}')
    os.replace(partial_path, path)


def image_entry(index: int) -> dict:
    name = f'{index:012}'
    return dict(
        date_captured='2013-11-14 16:28:13',
        neg_category_ids=[300, 114, 52],
        id=index,
        license=4,
        height=480,
        width=640,
        flickr_url=f'http://farm7.staticflickr.com/6116/{name}_z.jpg',
        coco_url=f'http://images.cocodataset.org/train2017/{name}.jpg',
        not_exhaustive_category_ids=[],
    )


def write_mask(folder: Path, index: int) -> None:
    """A PNG of ragged regions with values 0 to 150, and an empty image."""
    from PIL import Image

    path = folder / 'ann' / f'{index:05}.png'
    if path.exists():
        return
    (folder / 'img' / f'{index:05}.jpg').touch()
    if index >= ADE_DIFFERENT:
        first = path.with_name(f'{index % ADE_DIFFERENT:05}.png')
        shutil.copy(first, path.with_suffix('.part'))
        os.replace(path.with_suffix('.part'), path)
        return
    rng = np.random.default_rng(index)
    height, width = ADE_SIZE
    cells = rng.integers(0, 151, (16, 16), dtype=np.uint8)
    down = rng.integers(-1, 2, width).cumsum() + np.arange(height)[:, None]
    right = rng.integers(-1, 2, height).cumsum()[:, None] + np.arange(width)
    mask = cells[down // 48 % 16, right // 48 % 16]
    Image.fromarray(mask).save(path.with_suffix('.part'), 'PNG')
    os.replace(path.with_suffix('.part'), path)


def write_masks(folder: Path, number: int) -> None:
    for name in ('ann', 'img'):
        (folder / name).mkdir(parents=True, exist_ok=True)
    parts = range(min(number, ADE_DIFFERENT)), range(ADE_DIFFERENT, number)
    with ProcessPoolExecutor() as pool:
        for part in parts:
            done = pool.map(partial(write_mask, folder), part, chunksize=64)
            for _ in tqdm(done, 'write masks', len(part)):
                pass


# ------------------------------------------------------------------ the parts
def row(what: str, values: list[float], shape: str, **cells: object) -> dict:
    p20, p50, p80 = np.percentile(values, (20, 50, 80))
    return dict(
        what=what,
        shape=shape,
        p20=f'{p20:.4g}',
        p50=f'{p50:.4g}',
        p80=f'{p80:.4g}',
        unit='s',
        runs=len(values),
        threads=cells.pop('threads', 1),
        **cells,
    )


def memory(results: list[dict]) -> dict:
    peak = np.median([result['peak'] for result in results])
    return dict(peak_memory=round(peak), memory_unit='MiB')


def part_imports(args: argparse.Namespace) -> Iterator[dict]:
    for host in HOSTS:
        runs = [
            probe(imports, host)
            # The first one finds the files of the host on the disk.
            for _ in tqdm(range(args.runs + 1), f'import {host}')
        ][1:]
        for what, key, peer in (
            (f'import {host}.models', 'host', host),
            ('import lt_losses_mm', 'import', ''),
            ('build a loss', 'build', ''),
        ):
            values = [run[key] for run in runs]
            yield row(what, values, f'after {host}.models', peer=peer)


def part_compile(args: argparse.Namespace) -> Iterator[dict]:
    first, later = [], []
    for _ in tqdm(range(args.runs), 'compile the kernels'):
        with tempfile.TemporaryDirectory() as cache:
            for times in (first, later):
                found = probe(compiled, '', XDG_CACHE_HOME=cache)
                times.append(found['load'])
    yield row('compile the kernels', first, 'native.cpp')
    yield row('load the compiled kernels', later, 'native.cpp')


def part_lvis(args: argparse.Namespace) -> Iterator[dict]:
    shape = '1270141 instances'
    for name, counted in (('lvis', True), ('uncounted', False)):
        path = args.work_dir / f'{name}-{args.points}.json'
        if not path.exists():
            write_lvis(path, args.points, counted)
        runs = [
            probe(lvis_file, str(path))
            for _ in tqdm(range(args.runs), f'count {path.name}')
        ]
        yield row(
            'class counts, LVIS file',
            [run['count'] for run in runs],
            shape if counted else f'{shape}, no counts in its categories',
            **memory(runs),
        )
    print('load and count LVISV1Dataset (minutes, mostly of the host) ...')
    path = args.work_dir / f'lvis-{args.points}.json'
    run = probe(lvis_dataset, str(path))
    yield row('load LVISV1Dataset', [run['load']], shape, peer='mmdet')
    yield row('class counts, mmdet dataset', [run['count']], shape)


def part_masks(args: argparse.Namespace) -> Iterator[dict]:
    folder = args.work_dir / f'masks-{args.masks}'
    write_masks(folder, args.masks)
    shape = f'{args.masks} masks {ADE_SIZE[1]} x {ADE_SIZE[0]}'
    with tempfile.TemporaryDirectory() as cache:
        first, *later = (
            probe(masks, str(folder), LT_LOSSES_MM_CACHE=cache)
            for _ in range(1 + args.runs)
        )
    require(all(run['sum'] == first['sum'] for run in later), 'the cache')
    yield row(
        'class counts, masks',
        [first['count']],
        shape,
        threads=os.cpu_count(),
        **memory([first]),
    )
    yield row(
        'class counts, masks, cached',
        [run['count'] for run in later],
        shape,
        **memory(later),
    )


PARTS = dict(
    imports=part_imports,
    compile=part_compile,
    lvis=part_lvis,
    masks=part_masks,
)


def compiled_package(folder: Path) -> None:
    """A copy of the package with bytecode, which all processes import."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / 'lt_losses_mm', folder / 'lt_losses_mm')
    compileall.compile_dir(folder, quiet=1)
    known = os.environ.get('PYTHONPATH')
    os.environ['PYTHONPATH'] = os.pathsep.join(
        [str(folder), *([known] if known else [])]
    )
    sys.path.insert(0, str(folder))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('--parts', nargs='+', choices=PARTS, default=list(PARTS))
    add('--runs', type=int, default=5)
    add('--masks', type=int, default=ADE_MASKS)
    add(
        '--points',
        type=int,
        default=LVIS_POINTS,
        help='of a polygon of LVIS',
    )
    add('--work-dir', type=Path, default=ROOT / 'work_dirs' / 'startup')
    add('--ledger', type=Path, default=ROOT / 'work_dirs' / 'speed.csv')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    args.work_dir = args.work_dir.resolve()
    compiled_package(args.work_dir / 'package')
    recorded = {
        (row['command'], row['commit']) for row in read_ledger(args.ledger)
    }
    for part in args.parts:
        command = f'python benchmarks/startup.py --parts {part}'
        if part == 'masks' and args.masks != ADE_MASKS:
            command += f' --masks {args.masks}'
        if part == 'lvis' and args.points != LVIS_POINTS:
            command += f' --points {args.points}'
        origin = dict(command=command, commit=commit())
        if tuple(origin.values()) in recorded:
            print(f'{part}: in the ledger')
            continue
        rows = [
            dict(found, versions=versions(), cpu=cpu(), **origin)
            for found in PARTS[part](args)
        ]
        append(rows, args.ledger)
        for found in rows:
            print(
                f'{found["what"]}, {found["shape"]}: {found["p50"]} s '
                f'(median of {found["runs"]})'
            )


if __name__ == '__main__':
    if sys.argv[1:2] == ['--probe']:
        answer_probe(*sys.argv[2:])
    else:
        main()
