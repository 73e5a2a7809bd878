"""One rank is told to stop, or killed: all end together, and the run resumes to the same bits."""

import os
import signal
import time

import pytest

from benchmarks.robustness.crash_test import differences
from fastast.run_folder import RunFolder
from fastast.signals import StopRequest
from tests.distributed.rank_processes import RESTARTED, RankProcesses, command, train
from tests.train.test_faults import num_lines
from tests.train.test_run import lines_of, options, summary_of

SIZE = 240


def arguments(data, out, **changes):
    return options(data, out, **{"batch_size": 8, "target": 0.4, **changes})


def ask_one_rank(which, number):
    """A signal to one rank alone, seen before its check of that number."""
    own, num_checks = StopRequest.requested, 0

    def signalled(self):
        nonlocal num_checks
        num_checks += 1
        if num_checks == number and int(os.environ["RANK"]) == which:
            self.signum = signal.SIGUSR1
        return own(self)

    StopRequest.requested = signalled


@pytest.mark.parametrize(
    "gate", ["memory", *(pytest.param(gate, marks=pytest.mark.slow) for gate in ("forward", "infobatch"))]
)
def test_a_stop_of_one_rank_stops_all_and_the_run_resumes(pictures, tmp_path, gate):
    more = ["--unbiased"] if gate != "memory" else []
    whole, parts = ([*arguments(pictures, tmp_path / run, gate=gate), *more] for run in ("whole", "parts"))
    assert train(tmp_path, 2, whole) == [0, 0]
    out = tmp_path / "parts"
    assert train(tmp_path, 2, [*parts, "--max-time", "0.001s"]) == [3, 3]
    assert summary_of(out)["stopped"] == "max_time"
    parts, before = [*parts, "--resume", "--max-time", "1h"], []
    for rank, number in ((0, 3), (1, 24), (1, 6)):  # in the warm-up, within the gated part, in an evaluation
        with RankProcesses(tmp_path, 2, command, parts, ask_one_rank, rank, number) as ranks:
            assert ranks.codes() == [138, 138]
            assert ranks.said(0).count("stopped by SIGUSR1") == 1
            assert "stopped" not in ranks.said(1)
        assert summary_of(out)["stopped"] == "signal"
        lines = lines_of(out)
        assert lines[: len(before)] == before
        before = lines
    assert train(tmp_path, 2, parts) == [0, 0]
    assert differences(RunFolder(out), RunFolder(tmp_path / "whole")) == []
    assert len(summary_of(out)["resumes"]) == 4


def slowly():
    """Lets others act between two batches."""
    requested = StopRequest.requested

    def requested_later(self):
        time.sleep(0.02)
        return requested(self)

    StopRequest.requested = requested_later


def wait_for_lines(out, count, ranks):
    while num_lines(out) < count or not RunFolder(out).last.exists():
        assert all(process.exitcode is None for process in ranks.processes), ranks.said(0)
        time.sleep(0.01)


@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_killed_rank_ends_the_others_and_the_run_resumes(pictures, tmp_path, victim):
    whole, out = tmp_path / "whole", tmp_path / "run"
    often = {"checkpoint_every": 0.002, "stall_timeout": 20, "epochs": 4}
    assert train(tmp_path, 2, arguments(pictures, whole, **often)) == [0, 0]
    with RankProcesses(tmp_path, 2, command, arguments(pictures, out, **often), slowly) as ranks:
        wait_for_lines(out, 20, ranks)
        os.kill(ranks.processes[victim].pid, signal.SIGKILL)
        began = time.monotonic()
        codes = ranks.codes()
        assert codes[victim] == -signal.SIGKILL
        assert codes[1 - victim] == 1
        assert time.monotonic() - began < 20
        (line,) = ranks.error_lines()
    assert f"rank {1 - victim} of 2 (" in line
    assert "lost the others" in line
    assert "--resume" in line
    assert not (out / "summary.json").exists()
    assert train(tmp_path, 2, arguments(pictures, out, **often), **RESTARTED) == [0, 0]
    assert differences(RunFolder(out), RunFolder(whole)) == []
    (resumed,) = summary_of(out)["resumes"]
    assert 0 < resumed["offered"] < 4 * SIZE
    assert "changed" not in resumed


def test_a_planned_stop_is_no_failure_to_torchrun(pictures, tmp_path):
    variables = {**RESTARTED, "TORCHELASTIC_RESTART_COUNT": 0}
    out = tmp_path / "run"
    assert train(tmp_path, 2, [*arguments(pictures, out), "--max-time", "0.001s"], **variables) == [0, 0]
    assert summary_of(out)["stopped"] == "max_time"
    assert train(tmp_path, 2, [*arguments(pictures, out), "--epochs", "5"], **variables) == [2, 2]
