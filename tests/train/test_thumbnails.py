"""Runs scored from a pack's thumbnails: what is decoded, counted, selected, and continued."""

import json
import shutil
import time

import numpy as np
import pytest
import torch

from fastast.cli import main
from fastast.data import open_dataset
from fastast.data.feed import Feed
from fastast.data.pack_catalog import PackCatalog
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
    more = [*more, "--log-every", "1"]
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


def test_a_scored_sample_counts_as_offered_whenever_its_picture_turns_out_damaged(pictures, tmp_path, monkeypatch):
    data, pack = tmp_path / "data", tmp_path / "pack"
    shutil.copytree(pictures, data)
    assert main(["pack", str(data), str(pack), "--thumbnails", "20"]) == 0
    index = open_dataset(str(pack)).train
    damaged = set(range(0, SIZE, 6))
    with open(next(pack.glob("train*.tar")), "r+b") as shard:
        for sample in damaged:  # the middle of the picture's data, where no header scan looks
            shard.seek(int(index._offsets[sample] + index._lengths[sample] // 2))
            shard.write(bytes(64))
    runs, read = [], PackCatalog.read_one
    for pause in (0.0, 0.005):

        def slow(self, sample, seconds=pause):
            time.sleep(seconds)
            return read(self, sample)

        with monkeypatch.context() as patch:
            patch.setattr(PackCatalog, "read_one", slow)
            out = tmp_path / f"run{pause}"
            assert main(["train", *arguments(pack, out, epochs=2, warmup_epochs=0)]) == 0
        summary = json.loads((out / "summary.json").read_text())
        assert summary["samples"]["offered"] == summary["samples"]["scored"]
        runs.append((summary["samples"], losses(out)))
    assert runs[0] == runs[1]
