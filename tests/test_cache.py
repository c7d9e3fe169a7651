# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The one folder that outlives a run, and writing in one step."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from lt_losses_mm import cache


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    monkeypatch.delenv('LT_LOSSES_MM_CACHE', raising=False)
    monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    (tmp_path / 'temporary').mkdir()
    monkeypatch.setattr(cache.tempfile, 'tempdir', str(tmp_path / 'temporary'))


def test_order_of_the_places(tmp_path, monkeypatch, caplog):
    assert cache.folder() == tmp_path / 'home/.cache/lt_losses_mm'
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
    assert cache.folder() == tmp_path / 'xdg/lt_losses_mm'
    monkeypatch.setenv('LT_LOSSES_MM_CACHE', str(tmp_path / 'mine'))
    assert cache.folder() == tmp_path / 'mine'
    assert cache.folder().is_dir()
    assert not caplog.records


def test_where_nothing_can_be_written(tmp_path, monkeypatch, caplog):
    (tmp_path / 'file').touch()
    place = str(tmp_path / 'file/cache')
    monkeypatch.setenv('LT_LOSSES_MM_CACHE', place)
    folder = cache.folder()
    assert folder.parent == tmp_path / 'temporary'
    assert folder.is_dir()
    assert re.search(
        f"LT_LOSSES_MM_CACHE='{place}', expected .*{folder}.*Fix: ",
        caplog.text,
    )
    assert cache.folder() == folder


@pytest.mark.skipif(not hasattr(os, 'getuid'), reason='no users')
def test_a_spare_folder_of_somebody_else_is_not_used(tmp_path, monkeypatch):
    (tmp_path / 'file').touch()
    monkeypatch.setenv('LT_LOSSES_MM_CACHE', str(tmp_path / 'file/cache'))
    user = os.getuid() + 1
    monkeypatch.setattr(cache.os, 'getuid', lambda: user)
    folder = cache.folder()
    assert folder.is_dir()
    assert folder.name != f'lt_losses_mm-{user}'


def test_a_file_appears_when_it_is_whole(tmp_path):
    target = tmp_path / 'new/file'
    for text in ('first', 'second'):
        with cache.in_one_step(target) as part:
            part.write_text(text)
            assert not target.exists() or target.read_text() == 'first'
        assert target.read_text() == text
    with pytest.raises(KeyError), cache.in_one_step(target) as part:
        part.write_text('third')
        raise KeyError
    assert target.read_text() == 'second'
    assert list(target.parent.iterdir()) == [target]


def test_the_first_folder_counts(tmp_path):
    target = tmp_path / 'folder'

    def write(part: Path, text: str) -> None:
        part.mkdir()
        (part / 'file').write_text(text)

    with cache.in_one_step(target) as part:
        write(part, 'first')
    with cache.in_one_step(target) as part:
        write(part, 'second')
    assert (target / 'file').read_text() == 'first'
    assert list(tmp_path.glob('.*')) == []
    # A file in its place is no such folder.
    (tmp_path / 'file').touch()
    with pytest.raises(OSError), cache.in_one_step(tmp_path / 'file') as part:
        write(part, 'third')
    assert list(tmp_path.glob('.*')) == []
