"""Runs scored from a pack's thumbnails: what is decoded, counted, selected, and continued."""

import json

import numpy as np
import pytest
import torch

from fastast.cli import main
from fastast.data.feed import Feed
from fastast.gate import LaggedReader
from fastast.train.planner import Planner
from fastast.train.stopping import StopRequest
from fastast.train.thumbnails import ThumbnailPass
from fastast.train.trainer import Trainer
from tests.sync_guard import no_sync
from tests.train.test_engine import assert_same
from tests.train.test_run import lines_of, losses, options

BATCH, SIZE, EVERY = 16, 240, 7


@pytest.fixture(scope="module")
def pack(pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("packs") / "pack"
    assert main(["pack", str(pictures), str(out), "--thumbnails", "20"]) == 0
    return out


def arguments(pack, out, **changes):
    chosen = {"gate": "proxy", "proxy_size": 16, "proxy_bn_every": EVERY, "epochs": 4, "log_every": 2, **changes}
    return options(pack, out, **chosen)


@pytest.fixture(scope="module")
def scored(pack, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "scored"
    assert main(["train", *arguments(pack, out), "--unbiased"]) == 0
    return out


def test_only_selected_and_checked_pictures_are_decoded_in_full(scored):
    summary = json.loads((scored / "summary.json").read_text())
    samples = summary["samples"]
    gated = 3 * SIZE
    assert samples["offered"] == SIZE + gated
    assert samples["scored"] == gated
    checked = sum(line["num_batches"] for line in lines_of(scored)[-1:] if line["kind"] == "proxy") * BATCH
    assert checked > 0
    assert samples["decoded"] == samples["selected"] + checked
    assert samples["backward"] + samples["leftover"] == samples["selected"]
    assert summary["gate"]["activation_rate"] == pytest.approx(0.3, rel=0.1)
    with np.load(scored / "samples.npz") as figures:
        assert (figures["offered"] == 4).all()
        assert figures["selected"].sum() == samples["backward"]
    # Twin: 45 score steps and 4 + 45 // 7 refreshes at a quarter of a forward, and the checks at that and a whole one.
    units = gated / 4 + (4 + 44 // EVERY) * BATCH / 4 + checked * 1.25 + 3 * samples["backward"]
    assert summary["compute"]["forward_units"] == pytest.approx(units)


def test_every_batch_is_trained_as_the_gate_decided(pack, tmp_path, monkeypatch):
    """The pictures that reach the queue are those whose thumbnails were selected, each once, with their weights."""
    decided, queued = [], []
    decide, take = ThumbnailPass._decide, ThumbnailPass.take

    def spy_decide(self, decision):
        if decision is not None:
            decided.extend((i, w) for i, w in decision.reshape(2, -1).T.tolist() if w > 0)
        decide(self, decision)

    def spy_take(self, batch):
        if self._pulled[0].thumbs is None:
            rows = batch.ids[: batch.num_valid]
            queued.extend(zip(rows.tolist(), self._engine.selected_weights[rows].tolist(), strict=True))
        take(self, batch)

    monkeypatch.setattr(ThumbnailPass, "_decide", spy_decide)
    monkeypatch.setattr(ThumbnailPass, "take", spy_take)
    assert main(["train", *arguments(pack, tmp_path / "run", epochs=2), "--unbiased"]) == 0
    assert len(queued) > 3 * BATCH
    assert queued == [(i, pytest.approx(w)) for i, w in decided]
    assert len({w for _, w in queued}) > BATCH


@pytest.mark.parametrize("more", [[], ["--proxy-arch", "tiny"]])
def test_a_stopped_run_continues_to_the_same_bits(pack, tmp_path, monkeypatch, more):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(["train", *arguments(pack, whole), "--unbiased", *more]) == 0
    check, stops = StopRequest.check, [18, 3, 9, 2]

    def check_and_stop(self):
        check(self)
        self.num_checks = getattr(self, "num_checks", 0) + 1
        if stops and self.num_checks == stops[0]:
            del stops[0]
            self.signum = 10
            check(self)

    monkeypatch.setattr(StopRequest, "check", check_and_stop)
    again = [*arguments(pack, parts), "--unbiased", *more, "--resume"]
    assert [main(["train", *again]) for _ in range(5)] == [138] * 4 + [0]
    assert losses(parts) == losses(whole)
    last, other = (torch.load(run / "checkpoints" / "last.pt")["trainer"]["engine"] for run in (parts, whole))
    assert_same(last, other)
    summary, undisturbed = (json.loads((run / "summary.json").read_text()) for run in (parts, whole))
    assert summary["samples"] == undisturbed["samples"]
    assert summary["compute"] == undisturbed["compute"]


def test_nothing_in_the_loop_waits_for_the_device(pack, tmp_path, monkeypatch):
    run_stretch = Trainer._run_stretch

    def guarded(self, stretch, saves):
        with no_sync(LaggedReader._read, Feed._collect, Planner.plan):
            run_stretch(self, stretch, saves)

    monkeypatch.setattr(Trainer, "_run_stretch", guarded)
    assert main(["train", *arguments(pack, tmp_path / "run", epochs=2), "--unbiased", "--proxy-arch", "tiny"]) == 0
