"""Signals, a second process, hung reads, out of memory, clock jumps: through the command line."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import os
import signal
import threading
import time

import pytest

from fastast.cli import main
from fastast.run_folder import RunFolder
from fastast.session import watchdog
from fastast.train import validation
from tests.processes import FORKS, command, hang_reads_after
from tests.session.test_disk import assert_resumes
from tests.session.test_out_of_memory import allow
from tests.train.test_run import gated, lines_of, losses, options, summary_of

__all__ = ["gated"]

# <linux/fanotify.h>
FAN_CLASS_CONTENT, FAN_MARK_ADD, FAN_OPEN_PERM = 4, 1, 0x10000
AT_FDCWD = -100


@contextlib.contextmanager
def training(arguments, log, prepare=None):
    """A process that trains, killed at the end."""
    process = FORKS.Process(target=command, args=(["train", *arguments], log, prepare))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def until(happened, process):
    """Waits until `happened()`, while the process lives."""
    ends = time.monotonic() + 120
    while not happened():
        assert process.exitcode is None
        assert time.monotonic() < ends
        time.sleep(0.005)


def num_lines(out):
    metrics = out / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def test_a_second_process_is_refused_and_signals_set_the_exit_code(pictures, tmp_path, capsys):
    out, log = tmp_path / "run", tmp_path / "log"
    arguments, stops = [*options(pictures, out, epochs=400), "--resume"], []
    for name in ("SIGUSR1", "SIGTERM"):
        before = num_lines(out)
        with training(arguments, log) as process:
            until(lambda before=before: num_lines(out) > before + 2, process)
            if name == "SIGUSR1":
                assert main(["train", *arguments]) == 2
                assert f"another fastast process (pid {process.pid}) is writing there" in capsys.readouterr().err
            os.kill(process.pid, getattr(signal, name))
            process.join(60)
        assert process.exitcode == 128 + getattr(signal, name)
        assert f"stopped by {name}; continue from there with" in log.read_text()
        summary = summary_of(out)
        samples = summary["samples"]
        assert summary["stopped"] == "signal"
        assert samples["offered"] == max(line["offered"] for line in lines_of(out) if line["kind"] == "step")
        assert samples["backward"] + samples["leftover"] == samples["selected"]
        stops.append(samples["offered"])
    assert [resumed["offered"] for resumed in summary["resumes"]] == stops[:1]


def test_a_signal_in_evaluation_resumes_with_the_evaluation(gated, pictures, tmp_path, monkeypatch):
    out, evaluate = tmp_path / "run", validation.evaluate

    def evaluate_and_signal(*arguments, **options):
        signal.raise_signal(signal.SIGTERM)
        return evaluate(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(validation, "evaluate", evaluate_and_signal)
        assert main(["train", *options(pictures, out)]) == 143
    assert {line["kind"] for line in lines_of(out)} == {"step"}
    summary = summary_of(out)
    assert (summary["samples"]["offered"], summary["accuracy"]["val_top1"]) == (240, None)
    assert_resumes(out, gated)


def test_a_hung_read_ends_the_run_with_a_dump(gated, pictures, tmp_path):
    out, log = tmp_path / "run", tmp_path / "log"
    hang = functools.partial(hang_reads_after, out / "metrics.jsonl", 20, tmp_path / "hanging")
    with training([*options(pictures, out), "--stall-timeout", "2"], log, hang) as process:
        process.join(120)
    assert process.exitcode == 1
    assert "no batch came for 2 s" in log.read_text().splitlines()[-1]
    assert all("in read_one" in path.read_text() for path in (log, out / "stall.txt"))
    assert_resumes(out, gated)


def test_a_second_interrupt_ends_a_hung_run_at_once(pictures, tmp_path):
    out, log, hanging = tmp_path / "run", tmp_path / "log", tmp_path / "hanging"
    hang = functools.partial(hang_reads_after, out / "metrics.jsonl", 20, hanging)
    with training(options(pictures, out), log, hang) as process:
        until(hanging.exists, process)
        process.join(1)  # the batches that were read before are trained
        os.kill(process.pid, signal.SIGINT)
        process.join(0.5)
        assert process.exitcode is None
        os.kill(process.pid, signal.SIGINT)
        process.join(5)
    assert process.exitcode == 130
    assert log.read_text().splitlines()[-1] == "interrupted"


def hang_and_signal(metrics, hanging):
    def signal_once_hanging():
        while not hanging.exists():
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)

    watchdog.CLOSE_TIMEOUT_S = 1.0
    hang_reads_after(metrics, 20, hanging)
    threading.Thread(target=signal_once_hanging, daemon=True).start()


def test_a_signal_while_a_read_hangs_saves_and_ends_the_run(gated, pictures, tmp_path):
    out, log = tmp_path / "run", tmp_path / "log"
    hang = functools.partial(hang_and_signal, out / "metrics.jsonl", tmp_path / "hanging")
    with training(options(pictures, out), log, hang) as process:
        process.join(60)
        assert process.exitcode == 143
    assert "a read of the data hangs; ended without it" in log.read_text()
    summary = summary_of(out)
    assert summary["stopped"] == "signal"
    assert summary["samples"]["offered"] >= 20 * 16  # nothing that was trained is lost
    assert_resumes(out, gated)


@contextlib.contextmanager
def unanswered(path):
    """Makes opening a file wait in the kernel, as on a server that does not answer."""
    libc = ctypes.CDLL(None, use_errno=True)
    group = libc.fanotify_init(FAN_CLASS_CONTENT, os.O_RDONLY)
    if group < 0:
        pytest.skip("needs root and a kernel with fanotify's permission events")
    try:
        if libc.fanotify_mark(group, FAN_MARK_ADD, ctypes.c_uint64(FAN_OPEN_PERM), AT_FDCWD, os.fsencode(path)) < 0:
            pytest.skip("needs a kernel with fanotify's permission events")
        yield
    finally:
        os.close(group)


@pytest.mark.system
def test_a_read_blocked_in_the_kernel_ends_the_run_with_a_dump(pictures, tmp_path):
    out, log = tmp_path / "run", tmp_path / "log"
    arguments = [*options(pictures, out, epochs=400), "--stall-timeout", "2"]
    with training(arguments, log) as process:
        until(lambda: num_lines(out) > 20, process)
        with unanswered(pictures / "train" / "class_1" / "0007.jpg"):
            process.join(120)
            assert process.exitcode == 1
    assert "in read_one" in (out / "stall.txt").read_text()
    assert main(["train", "--out", str(out), "--resume", "--max-time", "0.1s"]) == 3


def test_out_of_memory_names_the_batch_size_that_fits(pictures, tmp_path):
    out, log = tmp_path / "run", tmp_path / "log"
    arguments = options(pictures, out, image_size=384, batch_size=240, gate="dense", threads=1)
    with training(arguments, log, functools.partial(allow, 1650)) as process:  # the queue alone takes 1,700 MB
        process.join(200)
    error = log.read_text().splitlines()[-1]
    assert process.exitcode == 2, error
    assert "out of memory at --batch-size 240: a training step fits at --batch-size" in error


def test_clock_jumps_change_nothing(gated, pictures, tmp_path, monkeypatch):
    """Each look at the time of day shows five hours more, or five less."""
    hours = itertools.cycle((0, 5, 10, 5))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3600 * next(hours))
    monkeypatch.setattr(time, "time_ns", lambda: int(time.time() * 1e9))
    out = tmp_path / "run"
    limits = ["--max-time", "1h", "--checkpoint-every", "30", "--stall-timeout", "60"]
    saves = []
    monkeypatch.setattr(RunFolder, "log_sizes", lambda self, sizes=RunFolder.log_sizes: saves.append(1) or sizes(self))
    assert main(["train", *options(pictures, out), *limits]) == 0
    assert losses(out) == losses(gated)
    assert len(saves) == 3  # at the ends of the epochs
    for name, seconds in summary_of(out)["time_s"].items():
        assert 0 <= seconds < 600, name
    assert all(0 < line["seconds"] < 600 for line in lines_of(out) if line["kind"] == "epoch")
