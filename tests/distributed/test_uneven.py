"""Numbers that do not divide, a slow rank, pictures that one rank alone finds damaged."""

import dataclasses
import json
import os
import shutil
import time

import numpy as np
import pytest

from benchmarks.robustness.crash_test import differences
from fastast.cli import main
from fastast.feed.prefetch import PrefetchLoader
from fastast.run_folder import RunFolder
from fastast.session import session
from fastast.train.trainer import Trainer
from tests.conftest import damaged_png, write_pictures
from tests.distributed.rank_processes import RankProcesses, command, results, train
from tests.train.test_run import lines_of, options, summary_of


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """25 training pictures, one more than two batches of three ranks with 4 each, and 7 to validate with."""
    root = tmp_path_factory.mktemp("few")
    for split, per_class in (("train", 8), ("val", 2)):
        write_pictures(root / split, num_classes=3, per_class=per_class, seed=per_class)
        source = root / split / "class_0" / "0000.jpg"
        shutil.copy(source, source.with_name("more.jpg"))
    return root


def run_slowly(arguments, slow_rank):
    """Trains; one rank waits at every batch."""
    finish = PrefetchLoader._finish

    def finish_late(self, pixels, ids):
        if os.environ["RANK"] == str(slow_rank):
            time.sleep(0.01)
        return finish(self, pixels, ids)

    PrefetchLoader._finish = finish_late
    return main(["train", *arguments])


@pytest.mark.parametrize(
    "gate", ["memory", *(pytest.param(gate, marks=pytest.mark.slow) for gate in ("forward", "dense"))]
)
def test_a_last_batch_of_one_sample_and_a_slow_rank(few, tmp_path, gate):
    runs, epochs = [tmp_path / "even", tmp_path / "slow"], 4
    changes = {"batch_size": 4, "epochs": epochs, "gate": gate, "target": 0.5}
    assert train(tmp_path, 3, options(few, runs[0], **changes)) == [0, 0, 0]
    assert results(tmp_path, 3, run_slowly, options(few, runs[1], **changes), 1) == [0, 0, 0]
    assert differences(*map(RunFolder, runs)) == []
    samples = summary_of(runs[0])["samples"]
    assert samples["offered"] == epochs * 25
    assert samples["backward"] == 12 * samples["steps"] > 0
    assert samples["backward"] + samples["leftover"] == samples["selected"]
    if gate != "dense":
        assert abs(samples["selected"] - 25 - 0.5 * 75) <= 12
    with np.load(runs[0] / "samples.npz") as figures:
        assert (figures["offered"] == epochs).all()
        assert figures["selected"].sum() == samples["backward"]
    hits = [line["val_top1"] * 7 for line in lines_of(runs[0]) if line["kind"] == "epoch"]
    assert hits == pytest.approx(np.round(hits))  # of 7 pictures, each counted once


def test_ranks_and_one_process_evaluate_alike(few, tmp_path, capsys):
    """The exported weights and the mean of the ranks' batch statistics, evaluated by one process."""
    out = tmp_path / "run"
    assert train(tmp_path, 3, options(few, out, batch_size=4, epochs=2, gate="dense")) == [0, 0, 0]
    best = summary_of(out)["accuracy"]
    assert main(["evaluate", str(out), "--data", str(few), "--out", str(tmp_path / "predictions.csv")]) == 0
    assert f"top-1 {100 * best['best_val_top1']:.2f} %, " in capsys.readouterr().out
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 1 + 7


def run_and_list_bad(arguments):
    """Trains; returns the pictures that this rank knows to be bad at the end."""
    found, close = [], Trainer.close

    def spy(trainer):
        found.extend(np.flatnonzero(loader.bad_ids).tolist() for loader in (trainer.loaders.train, trainer.loaders.val))
        close(trainer)

    Trainer.close = spy
    assert main(["train", *arguments]) == 0
    return found


@pytest.fixture(scope="module")
def damaged(pictures, tmp_path_factory):
    """The shared pictures; 6 for training and 3 for validation do not decode, and one more is no picture at all."""
    root = tmp_path_factory.mktemp("damaged") / "data"
    shutil.copytree(pictures, root)
    for split, numbers in (("train", range(0, 48, 8)), ("val", (1, 5, 9))):
        for number in numbers:
            picture = root / split / f"class_{number % 4}" / f"{number:04d}.jpg"
            picture.with_suffix(".png").write_bytes(damaged_png())
            picture.unlink()
    (root / "train" / "class_2" / "text.jpg").write_text("no picture")
    return root


@pytest.mark.parametrize("gate", ["forward", pytest.param("memory", marks=pytest.mark.slow)])
def test_a_picture_that_one_rank_finds_damaged_is_known_to_all(damaged, tmp_path, gate):
    out, epochs = tmp_path / "run", 2
    found = results(tmp_path, 2, run_and_list_bad, options(damaged, out, batch_size=8, epochs=epochs, gate=gate))
    assert all(theirs == found[0] for theirs in found)
    bad, bad_val = found[0]
    assert (len(bad), len(bad_val)) == (6, 3)
    listed = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert len(listed) == len({entry["path"] for entry in listed}) == 6 + 3 + 1
    summary = summary_of(out)
    samples = summary["samples"]
    assert summary["data"]["quarantined"] == 10
    assert samples["offered"] == epochs * (240 - 6)
    assert samples["backward"] + samples["leftover"] == samples["selected"]
    with np.load(out / "samples.npz") as figures:
        assert (figures["offered"] == epochs * ~np.isin(np.arange(240), bad)).all()
        assert not figures["selected"][bad].any()
        assert figures["selected"].sum() == samples["backward"]


def find_others(root):
    """Gives the second rank, as on another machine, other pictures under the same path."""
    if os.environ["RANK"] == "1":
        open_data = session.open_data
        session.open_data = lambda config, *rest: open_data(dataclasses.replace(config, data=str(root)), *rest)


def refused(folder, *call):
    """The one line in which two ranks together refuse a run."""
    with RankProcesses(folder, 2, *call) as ranks:
        assert ranks.codes() == [2, 2]
        (line,) = ranks.error_lines()
    return line


def test_machines_with_different_pictures_are_refused_in_one_line(pictures, damaged, tmp_path):
    arguments = options(pictures, tmp_path / "run", batch_size=8)
    assert "see different pictures under the same path" in refused(tmp_path, command, arguments, find_others, damaged)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"dense_calibration": 999}, "--dense-calibration 999: these steps"), ({"arch": "resnet999"}, "resnet999")],
)
def test_an_error_of_all_ranks_is_printed_once(pictures, tmp_path, changes, message):
    assert message in refused(tmp_path, command, options(pictures, tmp_path / "run", **changes))
