"""The folder for what can be made again."""

import pwd
import tempfile
from pathlib import Path

import pytest

from fastast.atomic_files import cache_root
from fastast.errors import InputError


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A user without a name or a home, as `docker run --user 12345` makes one."""

    def unknown(uid):
        raise KeyError(uid)

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_cache_folder_is_the_first_that_can_be_written_to(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "fastast"
    for unusable in ("", "relative", str(tmp_path / "file"), str(tmp_path / "file" / "below")):
        monkeypatch.setenv("XDG_CACHE_HOME", unusable)
        assert cache_root() == tmp_path / "home" / ".cache" / "fastast"


@pytest.mark.parametrize("home", [None, "", "file"])
def test_user_without_a_home_caches_in_the_temporary_folder(nowhere, monkeypatch, home):
    """A folder named `~` appeared in the current one."""
    if home is not None:
        (nowhere / "file").touch()
        monkeypatch.setenv("HOME", home and str(nowhere / home))
    if home == "":
        monkeypatch.setattr("fastast.atomic_files.os.access", lambda *_: False)  # of the root folder
    folder = cache_root()
    assert folder.parent == nowhere
    assert folder.name.startswith("fastast-")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert cache_root() == folder
    assert not Path("~").exists()


def test_cache_folder_of_somebody_else_is_refused(nowhere):
    """Anybody may make a folder in /tmp, and put pictures or scans there."""
    folder = cache_root()
    folder.rename(nowhere / "theirs")
    folder.symlink_to(nowhere / "theirs")
    with pytest.raises(InputError, match="set XDG_CACHE_HOME"):
        cache_root()
