"""A full or read-only disk: what was saved remains, and the run goes on or can be resumed."""

import os
import subprocess
import threading

import pytest

from benchmarks.robustness.crash_test import differences
from fastast.checkpoint.file_format import load_checkpoint
from fastast.cli import main
from fastast.report.run_page import write_report
from fastast.run_folder import RunFolder
from fastast.session import session
from tests.train.test_run import gated, lines_of, losses, options, summary_of

__all__ = ["gated"]

pytestmark = pytest.mark.system


@pytest.fixture
def small_disk(tmp_path):
    mount = tmp_path / "disk"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(mount)], capture_output=True).returncode:
        pytest.skip("needs root to mount a small tmpfs")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


class Filler:
    """A file that takes what is left of a disk."""

    def __init__(self, disk):
        self.path = disk / "filler"

    def leave(self, room):
        """Leaves so many bytes, give or take a page, once no checkpoint is being written."""
        for thread in threading.enumerate():
            if thread.name == "checkpoint":
                thread.join()
        self.path.write_bytes(b"")
        disk = os.statvfs(self.path)
        self.path.write_bytes(bytes(max(0, disk.f_bavail * disk.f_bsize - room)))

    def free(self):
        self.path.unlink()


@pytest.fixture
def filler(small_disk):
    return Filler(small_disk)


@pytest.fixture
def out(small_disk):
    return small_disk / "run"


def when_lines_are_written(monkeypatch, actions):
    """Calls each action before the line of `metrics.jsonl` whose number is its key."""
    append, count = RunFolder.append_metrics, 0

    def counted(self, line):
        nonlocal count
        count += 1
        if count in actions:
            actions[count]()
        append(self, line)

    monkeypatch.setattr(RunFolder, "append_metrics", counted)


def position(out):
    """Where the last checkpoint stands: samples offered before its segment. An epoch has 240."""
    return load_checkpoint(RunFolder(out).last)["trainer"]["shared"]["position"]


def assert_resumes(out, whole, *options):
    """The run continues to what an undisturbed one was, bit by bit."""
    assert main(["train", "--out", str(out), "--resume", *options]) == 0
    assert differences(RunFolder(out), RunFolder(whole)) == []


def test_a_disk_full_for_a_while_costs_a_note(gated, pictures, out, filler, monkeypatch, capsys):
    saved = []
    when_lines_are_written(
        monkeypatch,
        {
            3: lambda: filler.leave(30_000),  # lines fit, a checkpoint does not
            21: lambda: saved.append(position(out)),
            22: filler.free,  # in the second epoch, after the first one's best weights could not be written
        },
    )
    assert main(["train", *options(pictures, out), "--checkpoint-every", "1e-9"]) == 0
    said = capsys.readouterr().out
    assert "last.pt: not written (No space left on device); what was saved before stands" in said
    assert saved == [0]
    assert differences(RunFolder(out), RunFolder(gated)) == []
    assert (out / "classes.json").read_bytes() == (gated / "classes.json").read_bytes()
    best = [load_checkpoint(run / "checkpoints" / "best.pt")["epoch"] for run in (out, gated)]
    assert best[0] == best[1]
    assert position(out) == 3 * 240


@pytest.mark.parametrize(
    ("room", "message"),
    [
        (
            30_000,
            "last.pt: not written (No space left on device); what was saved before stands; free some space or make",
        ),
        (0, "no space left on the device"),  # for a line of metrics.jsonl
    ],
)
def test_a_full_disk_ends_the_run_in_one_line(gated, pictures, out, filler, monkeypatch, capsys, room, message):
    with monkeypatch.context() as patch:
        when_lines_are_written(patch, {20: lambda: filler.leave(room)})
        assert main(["train", *options(pictures, out)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert "--resume" in error
    assert len(lines_of(out)) >= 16  # whole lines
    assert not (out / "summary.json").exists()
    assert position(out) == 240
    assert not list((out / "checkpoints").glob(".*"))
    filler.free()
    assert_resumes(out, gated)


def test_a_line_waits_for_an_abandoned_checkpoint_to_be_removed(gated, pictures, out, filler, monkeypatch):
    def fill_briefly():
        filler.leave(0)
        threading.Timer(0.3, filler.free).start()

    when_lines_are_written(monkeypatch, {20: fill_briefly})
    assert main(["train", *options(pictures, out)]) == 0
    assert losses(out) == losses(gated)


def test_a_report_that_cannot_be_written_costs_a_note(pictures, out, filler, monkeypatch, capsys):
    def fill_and_write(path):
        filler.leave(0)
        write_report(path)

    monkeypatch.setattr(session, "write_report", fill_and_write)
    assert main(["train", *options(pictures, out, epochs=1)]) == 0
    assert "report.html was not written: " in capsys.readouterr().out
    assert not (out / "report.html").exists()
    assert summary_of(out)["stopped"] is None
    filler.free()
    assert main(["report", str(out)]) == 0
    assert (out / "report.html").exists()


def test_an_unwritten_summary_leaves_the_run_unfinished(gated, pictures, out, filler, monkeypatch, capsys):
    build = session.build_summary

    def fill_and_build(*arguments, **options):
        filler.leave(0)
        return build(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(session, "build_summary", fill_and_build)
        assert main(["train", *options(pictures, out)]) == 2
    assert "no space left" in capsys.readouterr().err
    filler.free()
    assert_resumes(out, gated)


def test_a_read_only_folder_is_refused_in_one_line(pictures, small_disk, out, capsys):
    assert main(["train", *options(pictures, out, epochs=1)]) == 0
    assert main(["train", *options(pictures, small_disk / "begun"), "--max-time", "0.001s"]) == 3
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    capsys.readouterr()
    for arguments in (options(pictures, small_disk / "new"), ["--out", str(small_disk / "begun"), "--resume"]):
        assert main(["train", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "Read-only file system; name a folder that can be written to" in error
    assert main(["train", "--out", str(out), "--resume"]) == 0
    assert "finished already" in capsys.readouterr().out
