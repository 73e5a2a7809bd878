"""Two processes on one run folder: the second is refused, and no lock outlives its process."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from unittest.mock import Mock

import pytest

from fastast.errors import InputError
from fastast.run_folder import RunFolder
from tests.processes import FORKS, count_up, hold, running


def test_a_second_process_is_refused_by_pid(tmp_path):
    folder = RunFolder(tmp_path / "new" / "run")
    with running(hold, folder.path, None) as process:
        with pytest.raises(InputError, match=rf"pid {process.pid}\) is writing there; wait") as caught, folder.lock():
            pass
        assert "\n" not in str(caught.value)
    with pytest.raises(ZeroDivisionError), folder.lock():  # the other was killed: no lock outlives its process
        raise ZeroDivisionError
    with folder.lock():
        assert (folder.path / ".lock").read_text() == f"{os.getpid()} {socket.gethostname()}\n"
    assert [path.name for path in folder.path.iterdir()] == ["checkpoints"]


@pytest.mark.parametrize(
    ("text", "named"),
    [("7 elsewhere\n", "process (pid 7 on elsewhere) is"), ("\x1b[2J\n", "process is"), ("", "process is")],
)
def test_the_text_of_the_lock_file_is_untrusted(tmp_path, text, named):
    with running(hold, tmp_path, text), pytest.raises(InputError) as caught, RunFolder(tmp_path).lock():
        pass
    assert named in str(caught.value)


def test_one_process_at_a_time_holds_the_lock(tmp_path):
    (tmp_path / "counter").write_text("0")
    with FORKS.Pool(4) as pool:
        pool.starmap(count_up, [(tmp_path, 40)] * 4, chunksize=1)
    assert (tmp_path / "counter").read_text() == "160"


@pytest.fixture
def leftovers(tmp_path):
    """A run folder with two files of killed writers, and three that were not."""
    folder = RunFolder(tmp_path)
    folder.checkpoints.mkdir()
    stale = [tmp_path / ".summary.json.17.tmp", folder.checkpoints / ".last.pt.17.tmp"]
    kept = [tmp_path / "notes.17.tmp", tmp_path / ".theirs.17.tmp", tmp_path / ".hidden", folder.last]
    for path in stale + kept:
        path.write_text("x")
    return folder, stale, kept


def test_locking_removes_leftovers_of_killed_writers(leftovers):
    folder, stale, kept = leftovers
    with folder.lock():
        assert not any(path.exists() for path in stale)
        assert all(path.exists() for path in kept)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_a_run_leaves_others_alone(leftovers, monkeypatch, number):
    monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError(number, "none here")))
    folder, stale, kept = leftovers
    with folder.lock(), folder.lock():
        assert all(path.exists() for path in stale + kept)
    assert not (folder.path / ".lock").exists()


def test_an_unusable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="name a folder that can be written to"), RunFolder(tmp_path / "file").lock():
        pass
