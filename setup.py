# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""Puts what ``mim`` needs into the wheel; all else is in pyproject.toml."""

import shutil
import sys
import tempfile
from pathlib import Path

import setuptools
from setuptools import setup
from setuptools.command.build_py import build_py

# Older ones do not read the name, version and files that pyproject.toml has:
# they report success, and install an empty UNKNOWN-0.0.0.
if int(setuptools.__version__.split('.')[0]) < 64:
    sys.exit(
        f'lt_losses_mm: setuptools=={setuptools.__version__}, expected 64 or '
        "newer. Fix: pip install 'setuptools>=64,<81', or leave out "
        '--no-build-isolation.'
    )

ROOT = Path(__file__).resolve().parent

# A `build/` left in the checkout would give files of the past to the next
# wheel, and a second config of each name to `mim train` of an editable
# install, which searches the whole checkout.
BUILD = tempfile.TemporaryDirectory(prefix='lt_losses_mm-build-')


class BuildWithMim(build_py):
    """Adds ``.mim/`` to what is built, never to the source tree.

    An editable install needs none: onedl-mim finds ``configs/`` and
    ``tools/`` in the checkout itself, and would find them twice.
    """

    def run(self) -> None:
        """Copy configs, Python tools, sweeps and the model index."""
        super().run()
        if self.editable_mode:
            return
        mim = Path(self.build_lib, 'lt_losses_mm', '.mim')
        shutil.copytree(
            ROOT / 'configs',
            mim / 'configs',
            ignore=shutil.ignore_patterns('__pycache__', '.*'),
        )
        (mim / 'tools').mkdir()
        for tool in (ROOT / 'tools').glob('*.py'):
            shutil.copy2(tool, mim / 'tools')
        shutil.copytree(
            ROOT / 'benchmarks/sweeps',
            mim / 'benchmarks/sweeps',
            ignore=shutil.ignore_patterns('.*'),
        )
        shutil.copy2(ROOT / 'model-index.yml', mim)


setup(
    cmdclass={'build_py': BuildWithMim},
    options={'build': {'build_base': BUILD.name}},
)
