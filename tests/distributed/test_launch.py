"""`--nproc` and `torchrun` as child processes: exit codes, signals, restarts."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fastast.distributed.launch import _without_nproc, count_processes
from fastast.errors import InputError
from tests.conftest import ROOT
from tests.train.test_faults import num_lines
from tests.train.test_run import losses, options, summary_of

ALONE = [sys.executable, "-m", "fastast", "train", "--nproc", "2"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "localhost"]
TORCHRUN += ["--nproc-per-node", "2"]


@contextlib.contextmanager
def started(log, *command):
    """A command whose processes are all killed at the end."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with open(log, "wb") as file:
        words = [str(word) for word in command]
        process = subprocess.Popen(words, stdout=file, stderr=file, env=environment, start_new_session=True)
    try:
        yield process
    finally:
        for child in descendants(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        process.wait()


def descendants(pid):
    """A process and all that descend from it."""
    found = [pid]
    for one in found:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            children = Path(f"/proc/{one}/task/{one}/children").read_text()
            found += map(int, children.split())
    return found


def workers(pid):
    """Process numbers by rank."""
    found = {}
    for one in descendants(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            variables = Path(f"/proc/{one}/environ").read_bytes().split(b"\0")
            found |= {int(v[5:]): one for v in variables if v.startswith(b"RANK=")}
    return found


def wait_for_lines(out, count, process):
    until = time.monotonic() + 120
    while num_lines(out) < count:
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)


def arguments(data, out, **changes):
    return options(data, out, **{"batch_size": 8, "device": "cpu", "epochs": 400, **changes})


@pytest.mark.parametrize(
    "name", ["SIGTERM", *(pytest.param(name, marks=pytest.mark.slow) for name in ("SIGINT", "SIGUSR1", "SIGHUP"))]
)
def test_a_signal_to_the_launcher_ends_all_ranks_with_a_checkpoint(pictures, tmp_path, name):
    out, log = tmp_path / "run", tmp_path / "log"
    with started(log, *ALONE, *arguments(pictures, out)) as process:
        wait_for_lines(out, 5, process)
        process.send_signal(getattr(signal, name))
        assert process.wait(60) == 128 + getattr(signal, name), log.read_text()
    summary = summary_of(out)
    assert summary["stopped"] == "signal"
    assert summary["hardware"]["world_size"] == 2
    assert (out / "checkpoints" / "last.pt").exists()
    assert f"fastast train --out {out} --resume --nproc 2" in log.read_text().replace("\n", "")
    assert str(ROOT / "fastast") not in log.read_text()  # no traceback but torchrun's own


@pytest.mark.slow
def test_ranks_end_when_their_launcher_is_killed(pictures, tmp_path):
    out, log = tmp_path / "run", tmp_path / "log"
    with started(log, *ALONE, *arguments(pictures, out)) as process:
        wait_for_lines(out, 5, process)
        ranks = workers(process.pid)
        process.kill()
        until = time.monotonic() + 60
        while any(Path(f"/proc/{pid}").exists() for pid in ranks.values()):
            assert time.monotonic() < until
            time.sleep(0.1)
    assert summary_of(out)["stopped"] == "signal"
    assert (out / "checkpoints" / "last.pt").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "code"),
    [(["--epochs", "2"], 0), (["--max-time", "0.01s"], 3), (["--arch", "nothing"], 2), (["--resume", "no.pt"], 2)],
)
def test_the_exit_code_is_that_of_one_process(pictures, tmp_path, more, code):
    out, log = tmp_path / "run", tmp_path / "log"
    with started(log, *ALONE, *arguments(pictures, out), *more) as process:
        assert process.wait(120) == code, log.read_text()
    assert log.read_text().count("error:") == (code == 2)
    assert "Traceback" not in log.read_text()


def test_nproc_counts_processes_and_does_not_reach_the_ranks():
    assert count_processes(None, "auto") == 1
    assert count_processes("3", "cpu") == 3
    assert count_processes("auto", "cpu") == 1
    for wrong in ("0", "-1", "two", "1.5"):
        with pytest.raises(InputError, match="--nproc"):
            count_processes(wrong, "cpu")
    assert _without_nproc(["train", "--nproc", "2", "--out", "x"]) == ["train", "--out", "x"]
    assert _without_nproc(["train", "--out", "x", "--nproc=auto"]) == ["train", "--out", "x"]
    assert _without_nproc(["train"]) == ["train"]


@pytest.mark.slow
def test_torchrun_restarts_a_job_after_a_killed_rank(pictures, tmp_path):
    whole, out, log = tmp_path / "whole", tmp_path / "run", tmp_path / "log"
    chosen = {"epochs": 40, "checkpoint_every": 0.005, "stall_timeout": 30}
    with started(log, *ALONE, *arguments(pictures, whole, **chosen)) as process:
        assert process.wait(200) == 0, log.read_text()
    command = [*TORCHRUN, "--max-restarts", "1", "-m", "fastast", "train", *arguments(pictures, out, **chosen)]
    with started(log, *command) as process:
        wait_for_lines(out, 60, process)
        os.kill(workers(process.pid)[1], signal.SIGKILL)
        assert process.wait(200) == 0, log.read_text()
    assert losses(out) == losses(whole)
    summary = summary_of(out)
    assert len(summary["resumes"]) == 1
    assert summary["samples"] == summary_of(whole)["samples"]
    with np.load(out / "samples.npz") as figures:
        assert (figures["offered"] == 40).all()
        assert figures["selected"].sum() == summary["samples"]["backward"]
