"""Checkpoints written beside training: a whole one remains however the process dies, and a full disk costs a note."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import threading

import pytest
import torch

from fastast import atomic_files
from fastast.checkpoint import file_format
from fastast.checkpoint.file_format import load_checkpoint, load_last, save_checkpoint
from fastast.checkpoint.writer import CheckpointWriter
from fastast.run_folder import RunFolder
from tests.conftest import ROOT
from tests.processes import FORKS, refuse, state_of, write_and_die


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path)
    folder.checkpoints.mkdir()
    return folder


@pytest.fixture
def writer(folder):
    return CheckpointWriter(folder, refuse)


def number_in(path):
    """The number of a checkpoint that must be whole; None if there is no file."""
    if not path.exists():
        return None
    state = load_checkpoint(path)
    assert (state["values"] == state["number"]).all()
    return state["number"]


def assert_last_two(folder, last, previous):
    assert (number_in(folder.last), number_in(folder.previous)) == (last, previous)
    assert {path.name for path in folder.checkpoints.iterdir()} == {"last.pt", "previous.pt"}


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("damaged", [True, False])
def test_death_between_any_two_calls_leaves_a_whole_checkpoint(tmp_path, links, damaged):
    template = RunFolder(tmp_path / "template")
    template.checkpoints.mkdir(parents=True)
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
    assert_last_two(folder, 3, 1 if damaged else 2)


def test_temporaries_of_a_killed_writer_with_our_pid_are_replaced(folder, writer):
    """A container gives the same process number to each start."""
    save_checkpoint(folder.last, state_of(2))
    stale = [folder.checkpoints / f".{name}.{os.getpid()}.tmp" for name in ("previous.pt", "last.pt")]
    save_checkpoint(stale[0], state_of(1))
    shutil.copy(stale[0], stale[1])
    writer.submit(state_of(3))
    assert writer.wait() is None
    assert_last_two(folder, 3, 2)


def test_two_names_of_one_file_leave_no_third(folder):
    """As after a death between naming the old file `previous.pt` and putting the new one in its place."""
    save_checkpoint(folder.last, state_of(1))
    os.link(folder.last, folder.previous)
    save_checkpoint(folder.last, state_of(2), keep=folder.previous)
    assert_last_two(folder, 2, 1)


def test_one_checkpoint_is_written_at_a_time_in_the_background(folder, writer, monkeypatch):
    writes = []
    allowed, began = threading.Event(), threading.Event()

    def write_when_allowed(*arguments, **options):
        writes.append("begins")
        began.set()
        assert allowed.wait(60)
        atomic_files.write_whole(*arguments, **options)
        writes.append("ends")

    monkeypatch.setattr(file_format, "write_whole", write_when_allowed)
    writer.submit(state_of(1))  # returns, though nothing can be written
    assert began.wait(60)
    assert not folder.last.exists()
    second = threading.Thread(target=writer.submit, args=(state_of(2),))
    second.start()
    second.join(0.2)
    assert second.is_alive()  # one copy is in memory; another waits for it
    allowed.set()
    second.join()
    assert writer.wait() is None
    assert writes == ["begins", "ends"] * 2
    assert_last_two(folder, 2, 1)


def test_a_failed_write_costs_a_note_and_the_next_is_tried(folder, tmp_path):
    notes = []
    writer = CheckpointWriter(folder, notes.append)
    writer.submit(state_of(1))
    assert writer.wait() is None
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    whole = folder.last.stat().st_size
    sizes = (0, 3000, whole - 2000, whole - 300, whole - 30)  # torch reports each in another way
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
    assert_last_two(folder, 4, 1)
    assert all(note.startswith(str(folder.last)) and "\n" not in note for note in notes)


def test_a_bug_is_raised_in_the_calling_thread(folder, writer, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", lambda *_: 1 / 0)
        writer.submit(state_of(1))
        with pytest.raises(ZeroDivisionError):
            writer.wait()
    writer.submit(state_of(2))
    assert writer.wait() is None
    assert number_in(folder.last) == 2


def test_what_was_submitted_is_written_before_the_process_exits(folder):
    program = (
        "import sys, torch\nfrom fastast.checkpoint.writer import CheckpointWriter, RunFolder\n"
        "writer = CheckpointWriter(RunFolder(sys.argv[1]), print)\n"
        "writer.submit({'number': 5, 'values': torch.full((3_000_000,), 5.0)})\nsys.exit(3)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program, str(folder.path)], env=environment, timeout=120)
    assert done.returncode == 3
    assert number_in(folder.last) == 5
