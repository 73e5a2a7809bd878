"""Checkpoints: whole or refused when read, never both gone however the process dies, written behind the training."""

from __future__ import annotations

import os
import random
import resource
import shutil
import subprocess
import sys
import threading
import time
import zipfile

import numpy as np
import pytest
import torch

from fastast.atomic_files import remove_temporaries
from fastast.checkpoint.file_format import CheckpointWriter, load_checkpoint, load_last, save_checkpoint
from fastast.errors import InputError
from fastast.run_folder import RunFolder
from fastast.train import checkpoint
from tests.conftest import ROOT
from tests.train.processes import FORKS, refuse, running, state_of, write_and_die, write_numbers
from tests.train.test_disk import small_disk

__all__ = ["small_disk"]


def run_folder(path):
    folder = RunFolder(path)
    folder.checkpoints.mkdir(parents=True)
    return folder


def number_in(path):
    """The number of a checkpoint that must be whole; None if there is no file."""
    if not path.exists():
        return None
    state = load_checkpoint(path)
    assert (state["values"] == state["number"]).all()
    return state["number"]


# One file


def test_anyone_can_read_a_checkpoint_with_plain_torch(tmp_path):
    save_checkpoint(tmp_path / "a.pt", state_of(7))
    state = torch.load(tmp_path / "a.pt", weights_only=True)
    assert state["schema"] == 1
    assert state["values"].tolist() == [7.0] * 3000
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"sha256:")


def test_every_flipped_bit_and_every_cut_is_noticed(tmp_path):
    path = tmp_path / "a.pt"
    save_checkpoint(path, state_of(7, size=100))
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [whole[:at] + bytes([whole[at] ^ 1 << rng.integers(8)]) + whole[at + 1 :] for at in range(len(whole))]
    damaged += [whole[: rng.integers(len(whole))] for _ in range(200)]
    damaged += [whole[:-71], whole[:-73] + b"\0\0", whole + b"\0", b"PK" + whole, b""]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"a\.pt: damaged") as caught:
            load_checkpoint(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(whole)
    assert number_in(path) == 7


def test_a_whole_file_that_is_no_checkpoint_of_ours_is_refused(tmp_path):
    torch.save({"model": {}}, tmp_path / "plain.pt")
    with pytest.raises(InputError, match="not a fastast checkpoint"):
        load_checkpoint(tmp_path / "plain.pt")
    save_checkpoint(tmp_path / "newer.pt", {"schema": 2})
    with pytest.raises(InputError, match="not a fastast checkpoint of schema 1"):
        load_checkpoint(tmp_path / "newer.pt")
    with pytest.raises(InputError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "none.pt")


# The last two


@pytest.mark.parametrize("links", [True, False])
def test_a_whole_checkpoint_stands_whenever_the_process_is_killed(tmp_path, links):
    folder = run_folder(tmp_path)
    rng = random.Random(0)
    known, progress = 0, 0
    for _ in range(20):
        with running(write_numbers, tmp_path, known + 1, links):
            time.sleep(rng.uniform(0, 0.06))
        last, previous = number_in(folder.last), number_in(folder.previous)
        if last is None and previous is None:
            assert known == 0
            continue
        state, path, note = load_last(folder)
        assert state["number"] >= known
        if last is not None:
            assert last >= known
            assert previous is None or previous in (last, last - 1)
            assert (path, note) == (folder.last, None)
        else:
            assert not links
        progress += state["number"] > known
        known = state["number"]
        remove_temporaries(folder.checkpoints)
        assert {path.name for path in folder.checkpoints.iterdir()} <= {"last.pt", "previous.pt"}
    assert progress > 2  # the machine may be busy


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("damaged", [True, False])
def test_death_between_any_two_calls_leaves_a_whole_checkpoint(tmp_path, links, damaged):
    template = run_folder(tmp_path / "template")
    save_checkpoint(template.previous, state_of(1))
    save_checkpoint(template.last, state_of(2))
    if damaged:
        template.last.write_bytes(template.last.read_bytes()[:500])
    outcomes = []
    for calls in range(30):
        folder = RunFolder(tmp_path / str(calls))
        shutil.copytree(template.path, folder.path)
        process = FORKS.Process(target=write_and_die, args=(folder.path, calls, links))
        process.start()
        process.join()
        outcomes.append(load_last(folder)[0]["number"])
        if process.exitcode == 0:
            break
        assert process.exitcode == 9
    assert process.exitcode == 0
    assert calls >= 4
    assert outcomes == sorted(outcomes)
    assert outcomes[0] == (1 if damaged else 2)
    assert outcomes[-1] == number_in(folder.last) == 3
    assert number_in(folder.previous) == (1 if damaged else 2)
    assert {path.name for path in folder.checkpoints.iterdir()} == {"last.pt", "previous.pt"}


def test_a_damaged_last_checkpoint_gives_way_to_the_one_before(tmp_path):
    folder = run_folder(tmp_path)
    with pytest.raises(InputError, match=r"last\.pt: no such checkpoint; there is no previous\.pt"):
        load_last(folder)
    writer = CheckpointWriter(folder, refuse)
    for number in (1, 2):
        writer.submit(state_of(number))
    assert writer.wait() is None
    assert load_last(folder)[1:] == (folder.last, None)
    whole = folder.last.read_bytes()
    folder.last.write_bytes(whole[:3000] + b"?" + whole[3001:])
    state, path, note = load_last(folder)
    assert (state["number"], path) == (1, folder.previous)
    assert "last.pt: damaged" in note
    assert "previous.pt" in note
    folder.last.unlink()
    assert load_last(folder)[0]["number"] == 1
    folder.previous.write_text("text")
    with pytest.raises(InputError, match=r"last\.pt: no such .*previous\.pt: damaged") as caught:
        load_last(folder)
    assert "\n" not in str(caught.value)


def test_a_number_used_again_does_not_bring_back_an_older_file(tmp_path):
    """A container gives the same process number to each start: what a killed writer left has our own name."""
    folder = run_folder(tmp_path)
    save_checkpoint(folder.last, state_of(2))
    stale = [folder.checkpoints / f".{name}.{os.getpid()}.tmp" for name in ("previous.pt", "last.pt")]
    save_checkpoint(stale[0], state_of(1))
    shutil.copy(stale[0], stale[1])
    writer = CheckpointWriter(folder, refuse)
    writer.submit(state_of(3))
    assert writer.wait() is None
    assert (number_in(folder.last), number_in(folder.previous)) == (3, 2)
    assert not any(path.exists() for path in stale)


def test_two_names_of_one_file_leave_no_third_behind(tmp_path):
    """As after a death between naming the old file `previous.pt` and putting the new one in its place."""
    folder = run_folder(tmp_path)
    save_checkpoint(folder.last, state_of(1))
    os.link(folder.last, folder.previous)
    save_checkpoint(folder.last, state_of(2), keep=folder.previous)
    assert (number_in(folder.last), number_in(folder.previous)) == (2, 1)
    assert {path.name for path in folder.checkpoints.iterdir()} == {"last.pt", "previous.pt"}


# The background writer


class Gate:
    """Holds each write until it is opened, and counts them."""

    def __init__(self, monkeypatch):
        self.open, self.began = threading.Event(), threading.Event()
        self.writing = self.most = 0
        write_whole = files.write_whole

        def gated(*arguments, **options):
            self.writing += 1
            self.most = max(self.most, self.writing)
            self.began.set()
            assert self.open.wait(60)
            write_whole(*arguments, **options)
            self.writing -= 1

        monkeypatch.setattr(checkpoint, "write_whole", gated)


def test_training_goes_on_while_the_writer_writes(tmp_path, monkeypatch):
    folder, gate = run_folder(tmp_path), Gate(monkeypatch)
    writer, state = CheckpointWriter(folder, refuse), state_of(1)
    writer.submit(state)  # returns, though nothing can be written
    assert gate.began.wait(60)
    assert not folder.last.exists()
    state["values"] += 1  # the next step
    second = threading.Thread(target=writer.submit, args=(state_of(2),))
    second.start()
    second.join(0.2)
    assert second.is_alive()  # one copy is in memory; another waits for it
    gate.open.set()
    second.join()
    assert writer.wait() is None
    assert gate.most == 1
    assert (number_in(folder.last), number_in(folder.previous)) == (2, 1)


def test_a_checkpoint_that_cannot_be_written_is_a_note_and_the_next_is_tried_anew(tmp_path):
    folder, notes = run_folder(tmp_path), []
    writer = CheckpointWriter(folder, notes.append)
    writer.submit(state_of(1))
    assert writer.wait() is None
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    whole = folder.last.stat().st_size
    sizes = (0, 3000, whole - 2000, whole - 300, whole - 30)  # torch reports each in a way of its own
    try:
        for size in sizes:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
            writer.submit(state_of(2))
            assert "File too large" in writer.wait(), size
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(notes) == len(sizes)
    assert number_in(folder.last) == 1
    assert [path.name for path in folder.checkpoints.iterdir()] == ["last.pt"]
    shutil.move(folder.checkpoints, tmp_path / "gone")
    writer.submit(state_of(3))
    assert "No such file" in writer.wait()
    shutil.move(tmp_path / "gone", folder.checkpoints)
    writer.submit(state_of(4))
    assert writer.wait() is None
    assert (number_in(folder.last), number_in(folder.previous)) == (4, 1)
    assert all(note.startswith(str(folder.last)) and "\n" not in note for note in notes)


@pytest.mark.system
def test_a_full_disk_keeps_the_last_checkpoint_and_room_later_makes_the_next(small_disk):
    folder, notes = run_folder(small_disk / "run"), []
    writer = CheckpointWriter(folder, notes.append)
    for number in (1, 2):
        writer.submit(state_of(number))
    writer.submit(state_of(3, size=200_000))  # 800 kB
    assert "No space left" in writer.wait()
    assert len(notes) == 1
    assert (number_in(folder.last), number_in(folder.previous)) == (2, 1)
    writer.submit(state_of(4))
    assert writer.wait() is None
    assert {path.name for path in folder.checkpoints.iterdir()} == {"last.pt", "previous.pt"}


def test_a_fault_of_our_own_is_raised_where_it_can_be_seen(tmp_path, monkeypatch):
    folder = run_folder(tmp_path)
    writer = CheckpointWriter(folder, refuse)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", lambda *_: 1 / 0)
        writer.submit(state_of(1))
        with pytest.raises(ZeroDivisionError):
            writer.wait()
    writer.submit(state_of(2))
    assert writer.wait() is None
    assert number_in(folder.last) == 2


def test_what_was_submitted_is_written_before_the_process_ends(tmp_path):
    folder = run_folder(tmp_path)
    program = (
        "import sys, torch\nfrom fastast.run_folder import RunFolder\nfrom fastast.checkpoint.file_format import CheckpointWriter\n"
        "writer = CheckpointWriter(RunFolder(sys.argv[1]), print)\n"
        "writer.submit({'number': 5, 'values': torch.full((3_000_000,), 5.0)})\nsys.exit(3)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=environment, timeout=120)
    assert done.returncode == 3
    assert number_in(folder.last) == 5
