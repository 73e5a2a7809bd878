"""SIGKILL at any time: the run resumes to the same bits, by a comparison that sees every difference."""

import json
import shutil
import time

import pytest

from benchmarks.robustness import crash_test
from fastast.checkpoint.file_format import load_checkpoint, save_checkpoint
from fastast.run_folder import RunFolder
from tests.processes import FORKS
from tests.train.test_run import gated

__all__ = ["FORKS", "gated"]  # whose server has imported what a run needs


def crash(out, *arguments):
    assert crash_test.main([*arguments, "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["survived"] == result["kills"] == int(arguments[1])
    assert result["identical"] == result["runs"] >= 1
    assert result["faults"] == []
    return result


def test_a_run_killed_twice_equals_an_undisturbed_one(pictures, tmp_path, capsys):
    result = crash(tmp_path / "result.json", "--kills", "2", "--gate", "forward", "--data", str(pictures))
    assert result["gates"]["forward"]["kills"] == 2
    assert "survived 2 of 2 kills; identical" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_killed_at_each_size_equals_an_undisturbed_one(pictures, tmp_path):
    whole, _ = crash_test.undisturbed("memory", pictures, tmp_path)
    folder = RunFolder(tmp_path / "run")
    for size in (16, 24, 32):
        process = crash_test.start("memory", pictures, folder)
        while process.exitcode is None and not (folder.last.exists() and size in sizes_of(folder)):
            time.sleep(crash_test.POLL_S)
        process.kill()
        process.join()
        assert process.exitcode < 0, crash_test.log_of(folder)
        assert sizes_of(folder)[-1] == size
    process = crash_test.start("memory", pictures, folder)
    process.join(crash_test.HANG_S)
    assert process.exitcode == 0, crash_test.log_of(folder)
    assert len(json.loads(folder.summary.read_text())["resumes"]) == 3
    assert crash_test.differences(folder, whole) == []


def sizes_of(folder):
    """The sizes of the pictures in the lines so far; a last half line is left out."""
    lines = folder.metrics.read_text().split("\n")[:-1]
    return [line["train_size"] for line in map(json.loads, lines) if line["kind"] == "step"]


@pytest.mark.slow
def test_killed_runs_of_every_gate_equal_undisturbed_ones(tmp_path):
    result = crash(tmp_path / "result.json", "--kills", "18", "--seed", "1")
    assert result["half_written"] >= 4
    assert sum(tally["runs"] > 0 for tally in result["gates"].values()) >= 4  # a run may end before it is killed


def change_metrics(folder):
    lines = folder.metrics.read_text().splitlines(keepends=True)
    folder.metrics.write_text("".join([*lines[:5], *lines[6:]]))


def change_state(folder):
    state = load_checkpoint(folder.last)
    weight = next(iter(state["trainer"]["shared"]["engine"]["model"].values()))
    weight *= 1 + 2**-22
    save_checkpoint(folder.last, state)


CHANGES = {
    "metrics": change_metrics,
    "counts": lambda folder: folder.summary.write_text(
        folder.summary.read_text().replace('"selected": ', '"selected": 1')
    ),
    "quarantine": lambda folder: folder.append_quarantine({"id": 1}),
    "exported weights": lambda folder: folder.weights.write_bytes(folder.weights.read_bytes()[:-1] + b"?"),
    "state": change_state,
}


@pytest.mark.parametrize("name", [None, *CHANGES])
def test_each_difference_is_named(gated, tmp_path, name):
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(gated, folder.path)
    if name is not None:
        CHANGES[name](folder)
    assert crash_test.differences(folder, RunFolder(gated)) == ([] if name is None else [name])
