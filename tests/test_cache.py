# Copyright (c) the lt_losses_mm authors. Licensed under Apache-2.0.
"""The one folder that outlives a run, and writing in one step."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lt_losses_mm import cache

needs_users = pytest.mark.skipif(
    not hasattr(os, 'getuid'), reason='no users, no modes'
)


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
    # As no shell has expanded it, in a file of variables.
    monkeypatch.setenv('LT_LOSSES_MM_CACHE', '~/mine')
    assert cache.folder() == tmp_path / 'home/mine'
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


def spare(tmp_path):
    """The folder in the temporary one, where the first is of no use."""
    (tmp_path / 'home').touch()
    return tmp_path / f'temporary/lt_losses_mm-{os.getuid()}'


@needs_users
def test_the_spare_folder_is_closed_to_others(tmp_path):
    folder = spare(tmp_path)
    assert cache.folder() == folder
    assert folder.stat().st_mode & 0o777 == 0o700
    (folder / 'code').touch()
    assert list(cache.find('code')) == [folder / 'code']


def of_another_user(folder, monkeypatch):
    user = os.getuid() + 1
    folder.rename(folder.with_name(f'lt_losses_mm-{user}'))
    monkeypatch.setattr(cache.os, 'getuid', lambda: user)
    return f'belongs to user {user - 1}, not to {user}'


def open_to_all(folder, monkeypatch):
    folder.chmod(0o777)
    return 'mode 0777: chmod go-rwx'


def open_to_a_group(folder, monkeypatch):
    folder.chmod(0o750)
    return 'mode 0750: chmod go-rwx'


def a_link(folder, monkeypatch):
    folder.rename(folder.with_name('elsewhere'))
    folder.symlink_to('elsewhere')
    return 'is a link'


@needs_users
@pytest.mark.parametrize(
    'make', [of_another_user, open_to_all, open_to_a_group, a_link]
)
def test_a_spare_folder_that_others_could_have_made(
    tmp_path, monkeypatch, caplog, make
):
    """Its name is known to everybody, and code is loaded from it."""
    planted = spare(tmp_path)
    planted.mkdir(mode=0o700)
    (planted / 'code').touch()
    reason = make(planted, monkeypatch)
    folder = cache.folder()
    assert folder.parent == planted.parent
    assert folder != planted
    assert not list(folder.iterdir())
    assert list(cache.find('code')) == []
    assert 'code is not used, because others could have' in caplog.text
    assert reason in caplog.text
    assert cache.folder() == folder


@needs_users
def test_a_planted_spare_folder_leaves_nothing_behind(tmp_path):
    planted = spare(tmp_path)
    planted.mkdir()
    planted.chmod(0o777)
    text = (
        'import os, sys\n'
        'from lt_losses_mm import cache\n'
        'folder = cache.folder()\n'
        'if not os.fork(): sys.exit()\n'
        'os.wait()\n'
        'assert cache.folder() == folder and folder.is_dir()\n'
        'print(folder)'
    )
    home = dict(HOME=str(tmp_path / 'home'), TMPDIR=str(planted.parent))
    done = subprocess.run(
        [sys.executable, '-c', text],
        env={**os.environ, **home},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split()[-1].startswith(f'{planted.parent}{os.sep}')
    assert list(planted.parent.iterdir()) == [planted]


@needs_users
def test_a_folder_that_others_can_write(tmp_path, monkeypatch, caplog):
    mine = tmp_path / 'mine'
    mine.mkdir()
    mine.chmod(0o775)
    (mine / 'code').touch()
    monkeypatch.setenv('LT_LOSSES_MM_CACHE', str(mine))
    assert cache.folder() == spare(tmp_path)
    assert f'{mine} has the mode 0775: chmod go-w {mine}' in caplog.text
    assert list(cache.find('code')) == []
    # What others can read is as good, and so is a link to it.
    mine.chmod(0o755)
    (tmp_path / 'link').symlink_to(mine)
    monkeypatch.setenv('LT_LOSSES_MM_CACHE', str(tmp_path / 'link'))
    caplog.clear()
    assert cache.folder() == tmp_path / 'link'
    assert list(cache.find('code')) == [tmp_path / 'link/code']
    assert not caplog.records
    # A file from the time when it was open to all.
    (mine / 'code').chmod(0o666)
    assert list(cache.find('code')) == []
    assert f'{tmp_path}/link/code has the mode 0666' in caplog.text


@needs_users
@pytest.mark.parametrize('owner', ['root', 'another'])
def test_files_of_a_folder_that_cannot_be_written(
    tmp_path, monkeypatch, owner
):
    """An image is made by root, and run by somebody who may only read."""
    place = tmp_path / 'home/.cache/lt_losses_mm'
    place.mkdir(parents=True)
    (place / 'code').touch()
    stat, user = Path.stat, os.getuid() + 1

    def of_owner(self, **kwargs):
        found = list(stat(self, **kwargs))
        if place in (self, self.parent):
            found[4] = 0 if owner == 'root' else user + 1
        return os.stat_result(found)

    monkeypatch.setattr(Path, 'stat', of_owner)
    monkeypatch.setattr(cache.os, 'getuid', lambda: user)
    monkeypatch.setattr(cache.os, 'access', lambda *args: False)
    found = [place / 'code'] if owner == 'root' else []
    assert list(cache.find('code')) == found
    assert cache.folder() != place


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
