"""Pictures that vanish while a run reads them: one of them, or all with their disk."""

import json
import os
import shutil
import signal
import subprocess
import threading

import numpy as np
import pytest

from fastast.cli import main
from fastast.data import epoch_ids
from tests.session.test_disk import when_lines_are_written
from tests.train.test_faults import num_lines, training, until
from tests.train.test_run import gated, lines_of, losses, options, summary_of

__all__ = ["gated"]

AWAY_S = 2.5


@pytest.fixture
def data(pictures, tmp_path):
    shutil.copytree(pictures, tmp_path / "data")
    return tmp_path / "data"


def remove_briefly(monkeypatch, remove, restore):
    """Removes the data early in the second epoch, and restores it after a while."""

    def act():
        remove()
        threading.Timer(AWAY_S, restore).start()

    when_lines_are_written(monkeypatch, {18: act})


def assert_undisturbed(out, whole):
    assert losses(out) == losses(whole)
    assert not (out / "quarantine.jsonl").exists()


def test_a_deleted_picture_costs_no_other(data, tmp_path, monkeypatch, capsys):
    out, last = tmp_path / "run", int(epoch_ids(240, 0, 1)[-1])
    deleted = sorted((data / "train").glob("*/*"))[last]
    when_lines_are_written(monkeypatch, {18: deleted.unlink})  # early in the second epoch, which ends with it
    assert main(["train", *options(data, out)]) == 0
    (entry,) = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert (entry["id"], entry["path"]) == (last, str(deleted))
    assert f"quarantined {deleted}: " in capsys.readouterr().out
    assert [line["offered"] for line in lines_of(out) if line["kind"] == "epoch"] == [240, 239, 239]
    with np.load(out / "samples.npz") as table:
        assert table["offered"].tolist() == [1 if sample == last else 3 for sample in range(240)]
    samples = summary_of(out)["samples"]
    assert samples["backward"] + samples["leftover"] == samples["selected"]


def test_a_data_folder_that_comes_back_costs_nothing(gated, data, tmp_path, monkeypatch, capsys):
    out, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    remove_briefly(monkeypatch, lambda: data.rename(elsewhere), lambda: elsewhere.rename(data))
    assert main(["train", *options(data, out)]) == 0
    assert_undisturbed(out, gated)
    said = capsys.readouterr().out
    assert said.index("is gone") < said.index("is back")


@pytest.mark.system
def test_a_remounted_disk_costs_nothing(gated, data, tmp_path, monkeypatch):
    out, place = tmp_path / "run", tmp_path / "mounted"
    place.mkdir()
    mount, unmount = ["mount", "--bind", data, place], ["umount", "-l", place]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs root to mount a folder")
    try:
        remove_briefly(monkeypatch, lambda: subprocess.run(unmount), lambda: subprocess.run(mount))
        assert main(["train", *options(place, out)]) == 0
    finally:
        subprocess.run(unmount, capture_output=True)
    assert_undisturbed(out, gated)


def test_a_run_that_waits_for_its_data_can_be_stopped(gated, data, tmp_path):
    out, log, elsewhere = tmp_path / "run", tmp_path / "log", tmp_path / "elsewhere"
    with training(options(data, out), log) as process:
        until(lambda: num_lines(out) > 16, process)
        data.rename(elsewhere)
        process.join(1)
        os.kill(process.pid, signal.SIGTERM)
        process.join(30)
        assert process.exitcode == 143
    assert summary_of(out)["stopped"] == "signal"
    elsewhere.rename(data)
    assert main(["train", "--out", str(out), "--resume"]) == 0
    assert_undisturbed(out, gated)
