# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Write the metafiles and the tables of the READMEs from the configs.

A folder with a metafile.yml is a collection. Its models are the leaves below
it, with what the leaves say of their training; its header and the published
results of each model are written by hand in the metafile and kept. The README
beside it shows the models between <!-- configs --> and <!-- /configs -->.
"""

from __future__ import annotations

import argparse
import functools
import re
import sys
from pathlib import Path

from mmengine.config import utils as config_utils
from mmengine.fileio import load

from lt_losses_mm.recipes import CONFIGS, leaves, read_config, read_leaf

BEGIN, END = '<!-- configs -->\n', '<!-- /configs -->'
# Of metrics in metafiles: no figure there was measured here.
PUBLISHED = ' (published, not run here)'


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        '--check', action='store_true', help='fail if a file would change'
    )
    what.add_argument(
        '--write', action='store_true', help='write the files that change'
    )
    args = parser.parse_args()
    # MMEngine reads all metafiles of a host again for each of its bases.
    config_utils.load = functools.lru_cache(None)(config_utils.load)
    changed = [
        (path, text)
        for path, text in texts(CONFIGS).items()
        if path.read_text(encoding='utf-8') != text
    ]
    for path, text in changed:
        print(f'{"written" if args.write else "outdated"}: {path}')
        if args.write:
            path.write_text(text, encoding='utf-8')
    if changed and args.check:
        sys.exit('Fix: python tools/config_tables.py --write')


def texts(root: Path) -> dict[Path, str]:
    """What the metafiles and READMEs below a folder should hold."""
    found = {}
    for metafile in sorted(root.rglob('metafile.yml')):
        folder, readme = metafile.parent, metafile.with_name('README.md')
        old = load(metafile)
        results = {model['Name']: model for model in old.get('Models') or []}
        name = old['Collections'][0]['Name']
        models = [
            model_of(path, name, root, results.get(path.stem, {}))
            for path in leaves(root)
            if folder in path.parents
        ]
        header = metafile.read_text(encoding='utf-8').partition('\nModels:')[0]
        found[metafile] = header + '\nModels:\n' + ''.join(map(entry, models))
        text = readme.read_text(encoding='utf-8')
        begin, end = text.find(BEGIN), text.find(END)
        if not 0 <= begin < end:
            raise ValueError(f'{readme}: expected a line {BEGIN}and {END}')
        rows = table(models, folder.relative_to(root.parent).as_posix())
        text = text[: begin + len(BEGIN)] + rows + text[end:]
        found[readme] = text
    return found


def model_of(path: Path, collection: str, root: Path, old: dict) -> dict:
    """The entry of a leaf, with the published results that it had.

    Beside the keys of a metafile it has ``recipe``, for the table.
    """
    cfg = read_config(path)
    loop = cfg.train_cfg
    length = {
        name: loop[key]
        for name, key in (
            ('Epochs', 'max_epochs'),
            ('Iterations', 'max_iters'),
        )
        if key in loop
    }
    # The rate of data of one's own is scaled to the batch in the name.
    named = re.search(r'_(\d+)xb(\d+)-', path.stem)
    batch = cfg.auto_scale_lr.base_batch_size
    if named:
        batch = int(named[1]) * int(named[2])
    leaf = read_leaf(path)
    kept = old.get('Metadata', {}).get('Published By')
    return {
        'Name': path.stem,
        'In Collection': collection,
        'Config': path.relative_to(root.parent).as_posix(),
        'Metadata': {
            **length,
            'Batch Size': batch,
            'Loss': leaf.loss,
            'Published By': kept,
        },
        'Results': old.get('Results', []),
        'recipe': leaf.is_recipe,
    }


def entry(model: dict) -> str:
    """A model in YAML."""
    lines = [
        f'  - Name: {model["Name"]}',
        f'    In Collection: {model["In Collection"]}',
        f'    Config: {model["Config"]}',
        '    Metadata:',
    ]
    for key, value in model['Metadata'].items():
        if value is not None:
            lines.append(f'      {key}: {value}')
    if model['Results']:
        lines.append('    Results:')
    for result in model['Results']:
        lines += [
            f'      - Task: {result["Task"]}',
            f'        Dataset: {result["Dataset"]}',
            '        Metrics:',
        ]
        for key, value in result['Metrics'].items():
            lines.append(f'          {key}: {value}')
    return '\n'.join(lines) + '\n'


def table(models: list[dict], folder: str) -> str:
    """The models in Markdown."""
    published = any(model['Results'] for model in models)
    (length,) = {
        key
        for model in models
        for key in model['Metadata']
        if key in ('Epochs', 'Iterations')
    }
    header = ['config', 'loss', length.lower(), 'batch']
    rows = [header + ['published, not run here'] * published]
    rows.append(['---'] * len(rows[0]))
    for model in models:
        data = model['Metadata']
        path = Path(model['Config']).relative_to(folder).as_posix()
        loss = f'`{data["Loss"]}`'
        if model['recipe']:
            loss += ' or `LT_LOSS`'
        row = [f'[{model["Name"]}]({path})', loss]
        row += [str(data[length]), str(data['Batch Size'])]
        if published:
            row.append(figures(model))
        rows.append(row)
    return ''.join(f'| {" | ".join(row)} |\n' for row in rows)


def figures(model: dict) -> str:
    """Published results with their source."""
    found = [
        f'{key.replace(PUBLISHED, "")} {value}'
        for result in model['Results']
        for key, value in result['Metrics'].items()
    ]
    if not found:
        return ''
    return (
        f'{", ".join(found)} ([source]({model["Metadata"]["Published By"]}))'
    )


if __name__ == '__main__':
    main()
