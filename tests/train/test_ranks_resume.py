"""Ranks that are stopped, or of which one is killed: all end together, and the run continues to the same bits."""

import json
import os
import signal
import time

import numpy as np
import pytest
import torch

from fastast.cli import main
from fastast.run_folder import RunFolder
from fastast.signals import StopRequest
from tests.train.ranks import command, gang, train
from tests.train.test_engine import assert_same
from tests.train.test_run import lines_of, losses, options

SIZE, EPOCHS = 240, 3


@pytest.fixture(scope="module")
def pack(pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("packs") / "pack"
    assert main(["pack", str(pictures), str(out), "--thumbnails", "20"]) == 0
    return out


def arguments(data, out, **changes):
    return options(data, out, **{"batch_size": 8, "epochs": EPOCHS, "target": 0.4, **changes})


def ask_one_rank(which, number):
    """A signal to one rank alone, seen before the given check."""
    own, num_checks = StopRequest._own, 0

    def signalled(self):
        nonlocal num_checks
        num_checks += 1
        if num_checks == number and int(os.environ["RANK"]) == which:
            self.signum = signal.SIGUSR1
        return own(self)

    StopRequest._own = signalled


def assert_undisturbed(out, whole):
    """The run was what the other was, bit by bit."""
    assert losses(out) == losses(whole)
    states = [torch.load(run / "checkpoints" / "last.pt")["trainer"] for run in (out, whole)]
    assert_same(states[0]["engine"], states[1]["engine"])
    for own, other in zip(states[0]["ranks"], states[1]["ranks"], strict=True):
        for part in ("engine", "buffers", "train_step"):
            assert_same(own[part], other[part])
    with np.load(out / "samples.npz") as ours, np.load(whole / "samples.npz") as theirs:
        for name in theirs:
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    summary, other = (json.loads((run / "summary.json").read_text()) for run in (out, whole))
    for part in ("samples", "gate", "accuracy", "compute", "data"):
        assert summary[part] == other[part]


VARIANTS = {
    "forward": {},
    "memory": {"gate": "memory"},
    "thumbnails": {"gate": "proxy", "proxy_size": 16, "proxy_bn_every": 5},
    "proxy-tiny": {"gate": "proxy", "proxy_arch": "tiny", "proxy_bn_every": 5},
    "infobatch": {"gate": "infobatch"},
}


@pytest.mark.parametrize(
    "name", [*list(VARIANTS)[:3], *(pytest.param(name, marks=pytest.mark.slow) for name in list(VARIANTS)[3:])]
)
def test_a_stop_that_one_rank_hears_of_stops_all_and_the_run_continues_to_the_same_bits(pictures, pack, tmp_path, name):
    data, more = pack if name == "thumbnails" else pictures, ["--unbiased"] if name != "memory" else []
    whole, parts = ([*arguments(data, tmp_path / run, **VARIANTS[name]), *more] for run in ("whole", "parts"))
    assert train(tmp_path, 2, whole) == [0, 0]
    out = tmp_path / "parts"
    # In the warm-up, within the gated part, in an evaluation.
    for rank, number in ((0, 3), (1, 24), (1, 1 if name == "thumbnails" else 2)):
        before = lines_of(out) if out.exists() else []
        with gang(tmp_path, 2, command, [*parts, "--resume"], ask_one_rank, rank, number) as ranks:
            assert ranks.codes() == [138, 138]
            assert ranks.said(0).count("stopped by SIGUSR1") == 1
            assert "stopped" not in ranks.said(1)
        assert json.loads((out / "summary.json").read_text())["stopped"] == "signal"
        assert lines_of(out)[: len(before)] == before
    assert train(tmp_path, 2, [*parts, "--resume"]) == [0, 0]
    assert_undisturbed(out, tmp_path / "whole")
    assert len(json.loads((out / "summary.json").read_text())["resumes"]) == 3


def test_a_signal_to_one_process_and_the_end_of_time_stop_all(pictures, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert train(tmp_path, 2, arguments(pictures, whole)) == [0, 0]
    assert train(tmp_path, 2, [*arguments(pictures, out), "--max-time", "0.001s"]) == [3, 3]
    assert json.loads((out / "summary.json").read_text())["stopped"] == "max_time"
    with gang(tmp_path, 2, command, [*arguments(pictures, out), "--resume", "--max-time", "1h"], slowly) as ranks:
        wait_for_lines(out, 10, ranks)
        os.kill(ranks.processes[1].pid, signal.SIGTERM)
        assert ranks.codes() == [143, 143]
    assert json.loads((out / "summary.json").read_text())["stopped"] == "signal"
    assert sorted(path.name for path in (out / "checkpoints").iterdir() if path.name != "best.pt") == [
        "last.pt",
        "previous.pt",
    ]
    assert train(tmp_path, 2, [*arguments(pictures, out), "--resume", "--max-time", "1h"]) == [0, 0]
    assert_undisturbed(out, whole)


def slowly():
    """Lets others act between two batches."""
    check = StopRequest.check

    def check_later(self):
        time.sleep(0.02)
        check(self)

    StopRequest.check = check_later


def wait_for_lines(out, count, ranks):
    folder = RunFolder(out)
    while not (folder.metrics.exists() and folder.metrics.read_bytes().count(b"\n") >= count and folder.last.exists()):
        assert all(process.exitcode is None for process in ranks.processes), ranks.said(0)
        time.sleep(0.01)


@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_killed_rank_ends_the_others_and_the_restarted_run_counts_nothing_twice(pictures, tmp_path, victim):
    whole, out = tmp_path / "whole", tmp_path / "run"
    often = {"checkpoint_every": 0.002, "stall_timeout": 20, "epochs": 4}
    assert train(tmp_path, 2, arguments(pictures, whole, **often)) == [0, 0]
    with gang(tmp_path, 2, command, arguments(pictures, out, **often), slowly) as ranks:
        wait_for_lines(out, 20, ranks)
        os.kill(ranks.processes[victim].pid, signal.SIGKILL)
        began = time.monotonic()
        codes = ranks.codes()
        assert codes[victim] == -signal.SIGKILL
        assert codes[1 - victim] == 1
        assert time.monotonic() - began < 20
        (line,) = (line for line in ranks.said(1 - victim).splitlines() if "error" in line)
    assert f"rank {1 - victim} of 2 (" in line
    assert "lost the others" in line
    assert "--resume" in line
    assert not (out / "summary.json").exists()
    again = {"TORCHELASTIC_RUN_ID": "job", "TORCHELASTIC_RESTART_COUNT": 1, "TORCHELASTIC_MAX_RESTARTS": 2}
    assert train(tmp_path, 2, arguments(pictures, out, **often), **again) == [0, 0]
    assert_undisturbed(out, whole)
    (resumed,) = json.loads((out / "summary.json").read_text())["resumes"]
    assert 0 < resumed["offered"] < 4 * SIZE
    assert "changed" not in resumed


def test_a_planned_stop_is_no_failure_to_torchrun(pictures, tmp_path):
    variables = {"TORCHELASTIC_RUN_ID": "job", "TORCHELASTIC_RESTART_COUNT": 0, "TORCHELASTIC_MAX_RESTARTS": 2}
    out = tmp_path / "run"
    assert train(tmp_path, 2, [*arguments(pictures, out), "--max-time", "0.001s"], **variables) == [0, 0]
    assert json.loads((out / "summary.json").read_text())["stopped"] == "max_time"
    assert train(tmp_path, 2, [*arguments(pictures, out), "--epochs", "5"], **variables) == [2, 2]
