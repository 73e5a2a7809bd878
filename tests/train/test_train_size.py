"""Runs whose pictures grow: no row is lost or doubled at a change, work counts by size, and stops leave no trace."""

import collections
import signal

import numpy as np
import pytest
import torch

from benchmarks.robustness.crash_test import differences
from fastast.cli import main
from fastast.engine import steps
from fastast.gates.queue import SampleQueue
from fastast.gates.registry import GATES
from fastast.models.flops import forward_flops
from fastast.run_folder import RunFolder
from fastast.signals import StopRequest
from tests.nets import tiny
from tests.stops import stopping_at
from tests.train.test_run import lines_of, options, summary_of

SIZES = (16, 24, 32)
GROWING = {"image_size": 32, "train_size": "16:32", "epochs": 4, "warmup_epochs": 0.7, "target": 0.4}


def unit(size):
    return forward_flops(tiny(4).eval(), size) / forward_flops(tiny(4).eval(), 32)


@pytest.mark.parametrize("gate", GATES)
def test_every_gate_trains_growing_pictures_and_counts_their_work(pictures, tmp_path, monkeypatch, gate):
    """Twin: what goes through the steps, row by row, and FLOPs counted at each size."""
    pushed, popped, scored = collections.Counter(), collections.Counter(), collections.Counter()
    trained_units = scored_units = 0.0
    push, pop, score = SampleQueue.push, SampleQueue.pop, steps.ScoreStep.forward

    def see_push(queue, images, labels, ids, mask, weights=None):
        pushed.update(ids[mask].tolist())
        push(queue, images, labels, ids, mask, weights)

    def see_pop(queue):
        nonlocal trained_units
        rows = pop(queue)
        popped.update(rows.ids.tolist())
        trained_units += 3 * len(rows.ids) * unit(rows.images.shape[-1])
        assert len(rows.ids) == 16
        return rows

    def see_score(step, images, labels, ids, valid, epoch):
        nonlocal scored_units
        scored_units += int(valid.sum()) * unit(images.shape[-1])
        scored.update(ids[valid].tolist())
        score(step, images, labels, ids, valid, epoch)

    monkeypatch.setattr(SampleQueue, "push", see_push)
    monkeypatch.setattr(SampleQueue, "pop", see_pop)
    monkeypatch.setattr(steps.ScoreStep, "forward", see_score)
    out = tmp_path / "run"
    assert main(["train", *options(pictures, out, gate=gate, **GROWING)]) == 0
    summary = summary_of(out)
    samples = summary["samples"]
    assert summary["model"]["train_sizes"] == list(SIZES)
    assert samples["backward"] == sum(popped.values())
    assert samples["leftover"] == sum(pushed.values()) - sum(popped.values()) < 16
    assert not popped - pushed
    if gate == "dense":
        assert set(pushed.values()) == {4}
        assert len(pushed) == 240
    assert samples["scored"] == sum(scored.values())
    assert summary["compute"]["forward_units"] == pytest.approx(trained_units + scored_units, rel=1e-9)
    lines = [line for line in lines_of(out) if line["kind"] == "step"]
    sizes = [line["train_size"] for line in lines]
    assert sizes == sorted(sizes)
    assert set(sizes) == set(SIZES)
    if gate == "dense":  # progress counts samples: three eighths each for the first two
        assert [sizes.count(size) for size in SIZES] == [23, 22, 15]
        assert summary["compute"]["dense_forward_units"] == summary["compute"]["forward_units"]
        assert summary["energy"]["savings_arithmetic"] == 0
    with np.load(out / "samples.npz") as figures:
        assert figures["selected"].tolist() == [popped[sample] for sample in range(240)]


@pytest.mark.parametrize("gate", ["forward", "memory"])
def test_run_stopped_at_each_size_equals_an_undisturbed_one(pictures, tmp_path, monkeypatch, gate):
    """With stops right at a change too, where rows of the old size wait; 15 batches an epoch are checked, and more."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(["train", *options(pictures, whole, gate=gate, **GROWING)]) == 0
    at = []
    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "requested", stopping_at([9, 15, 8, 4]))
        for _ in range(5):
            at.append(main(["train", *options(pictures, parts, gate=gate, **GROWING), "--resume"]))
            last = torch.load(parts / "checkpoints" / "last.pt")["trainer"]["ranks"][0]["engine"]["score_step"]
            at[-1] = at[-1], last["queue._extra_state"]["images"].shape[1]
    assert [code for code, _ in at] == [128 + signal.SIGUSR1] * 4 + [0]
    assert {size for _, size in at} == set(SIZES)
    assert differences(RunFolder(parts), RunFolder(whole)) == []


def test_budget_pays_for_more_small_pictures(pictures, tmp_path):
    """Of 2 dense epochs' worth; 80 steps of 3 forwards are a dense epoch."""
    out = tmp_path / "run"
    words = options(pictures, out, gate="dense", image_size=32, train_size="16:24", batch_size=4, eval_every=100)
    place = words.index("--epochs")
    words[place : place + 2] = ["--budget", "2ep"]
    assert main(["train", *words]) == 0
    summary, lines = summary_of(out), [line for line in lines_of(out) if line["kind"] == "step"]
    assert abs(summary["compute"]["forward_units"] - 2 * 3 * 240) <= 3 * 4 * unit(24)
    assert summary["budget"]["spent"] == summary["compute"]["forward_units"] / 3 / 240
    # Progress is what is spent, which is read six batches late at most: five are read ahead, one is in the queue.
    wrong = [line["progress"] for line in lines if line["train_size"] != (16 if line["progress"] < 0.75 else 24)]
    assert len(wrong) <= 7
    assert all(0.75 <= progress < 0.79 for progress in wrong)
    expected = 2 * 240 * (0.75 / unit(16) + 0.25 / unit(24))
    assert summary["samples"]["offered"] == pytest.approx(expected, rel=0.02)


def test_network_of_one_size_is_refused_in_one_line(pictures, tmp_path, capsys):
    arguments = options(pictures, tmp_path / "run", arch="tests.nets:fixed", train_size="16:32")
    assert main(["train", *arguments]) == 2
    error = capsys.readouterr().err
    assert "--arch tests.nets:fixed takes no pictures of 16 px" in error
    assert "--train-size 32:32" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_sizes_of_a_run_are_fixed(pictures, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", *options(pictures, out, train_size="24:24"), "--max-time", "0.001s"]) == 3
    assert main(["train", "--out", str(out), "--resume", "--force", "--train-size", "16:32"]) == 2
    assert "--train-size 16:32: the run was started with 24:24" in capsys.readouterr().err
    assert main(["train", "--out", str(out), "--resume", "--max-time", "1h"]) == 0
    assert {line["train_size"] for line in lines_of(out) if line["kind"] == "step"} == {24}
    assert summary_of(out)["model"]["image_size"] == 32
