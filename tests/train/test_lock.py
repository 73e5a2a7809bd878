"""Two processes on one run folder: the second is told, and no lock outlives its holder."""

from __future__ import annotations

import errno
import fcntl
import os
import socket

import pytest

from fastast.errors import InputError
from fastast.run_folder import RunFolder
from tests.train.processes import FORKS, count_up, hold, running


def test_a_second_process_is_told_who_writes_there(tmp_path):
    folder = RunFolder(tmp_path / "new" / "run")
    with running(hold, folder.path, None) as process:
        with pytest.raises(InputError, match=rf"pid {process.pid}\) is writing there; wait") as caught, folder.lock():
            pass
        assert "\n" not in str(caught.value)
    with folder.lock():  # the other was killed: no lock outlives its holder
        assert (folder.path / ".lock").read_text() == f"{os.getpid()} {socket.gethostname()}\n"
    assert not (folder.path / ".lock").exists()


@pytest.mark.parametrize(
    ("text", "named"),
    [("7 elsewhere\n", "process (pid 7 on elsewhere) is"), ("\x1b[2J\n", "process is"), ("", "process is")],
)
def test_what_the_lock_file_says_is_not_trusted(tmp_path, text, named):
    with running(hold, tmp_path, text), pytest.raises(InputError) as caught, RunFolder(tmp_path).lock():
        pass
    assert named in str(caught.value)


def test_one_process_can_lock_again_and_again(tmp_path):
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), RunFolder(tmp_path).lock():
            raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


def test_no_two_processes_ever_hold_it_at_one_time(tmp_path):
    (tmp_path / "counter").write_text("0")
    processes = [FORKS.Process(target=count_up, args=(tmp_path, 40)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert (tmp_path / "counter").read_text() == "160"


def leftovers(tmp_path):
    folder = RunFolder(tmp_path)
    folder.checkpoints.mkdir()
    stale = [tmp_path / ".summary.json.17.tmp", folder.checkpoints / ".last.pt.17.tmp"]
    for path in (*stale, *(kept := [tmp_path / "notes.17.tmp", tmp_path / ".hidden", folder.last])):
        path.write_text("x")
    return folder, stale, kept


def test_the_holder_clears_what_killed_writers_left(tmp_path):
    folder, stale, kept = leftovers(tmp_path)
    with folder.lock():
        assert not any(path.exists() for path in stale)
        assert all(path.exists() for path in kept)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_a_run_goes_on_and_touches_nothing_of_others(tmp_path, monkeypatch, number):
    def no_locks(*_):
        raise OSError(number, "none here")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    folder, stale, kept = leftovers(tmp_path)
    with folder.lock(), folder.lock():
        assert all(path.exists() for path in (*stale, *kept))
    assert not (tmp_path / ".lock").exists()


def test_a_place_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="name a folder that can be written to"), RunFolder(tmp_path / "file").lock():
        pass
