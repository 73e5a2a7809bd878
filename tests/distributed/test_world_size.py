"""A run that resumes on another number of ranks: refused, or on request with every count exact."""

import collections
import itertools
import shutil

import numpy as np
import pytest
import torch

from fastast.config import TrainConfig
from fastast.device import open_runtime
from fastast.distributed.environment import WorldInfo
from fastast.distributed.ranks import Ranks
from fastast.engine.engine import Engine
from fastast.loggers.device_status import StatusReader, merge_status
from fastast.session.watchdog import Watchdog
from fastast.signals import StopRequest
from tests.distributed.rank_processes import RESTARTED, RankProcesses, command, results
from tests.distributed.test_skew import QUEUE_EVENTS, record_rows
from tests.train.test_run import lines_of, options, summary_of

SIZE, EPOCHS, BATCH = 240, 4, 8


def stop_at(number):
    """All ranks stop when they have come so often to a place between two batches."""
    own, beat, num_beats = StopRequest.requested, Watchdog.beat, 0

    def counted(self):
        nonlocal num_beats
        num_beats += 1
        beat(self)

    Watchdog.beat = counted
    StopRequest.requested = lambda self: 10 if num_beats >= number else own(self)


@pytest.fixture(scope="module")
def stopped(pictures, tmp_path_factory):
    """Makes runs that were stopped within an epoch, each once, by number of ranks."""
    made = {}

    def make(size):
        if size not in made:
            folder = tmp_path_factory.mktemp("stopped")
            chosen = {"batch_size": BATCH, "epochs": EPOCHS, "target": 0.4, "log_every": 3}
            arguments = [*options(pictures, folder / "run", **chosen), "--unbiased"]
            with RankProcesses(folder, size, command, arguments, stop_at, 60 // size) as ranks:
                assert ranks.codes() == [138] * size
            made[size] = folder / "run"
        return made[size]

    return make


@pytest.mark.parametrize(("before", "now"), [(2, 1), (1, 2), (2, 3), pytest.param(3, 2, marks=pytest.mark.slow)])
def test_another_number_of_ranks_needs_force_and_counts_exactly(stopped, tmp_path, before, now):
    out = tmp_path / "run"
    shutil.copytree(stopped(before), out)
    change = f"the number of processes has changed since ({before} -> {now})"
    with RankProcesses(tmp_path, now, command, ["--out", str(out), "--resume"]) as ranks:
        assert ranks.codes() == [2] * now
        (line,) = ranks.error_lines()
    assert f"{change}; add --force" in line
    assert summary_of(out)["stopped"] == "signal"

    state, old_lines = torch.load(out / "checkpoints" / "last.pt")["trainer"], lines_of(out)
    asked, variables = ["--resume", "--force"], {}
    if now > before:  # as torchrun does it when a machine comes back
        asked, variables = [], RESTARTED
    seen = results(tmp_path, now, record_rows, ["--out", str(out), *asked], **variables)

    counts = {name: collections.Counter(row for one in seen for row in one.get(name, [])) for name in QUEUE_EVENTS}
    queues = Engine.queue_states([own["engine"] for own in state["ranks"]])
    rows = (zip(queue["ids"].tolist(), queue["labels"].tolist(), strict=True) for queue in queues)
    assert counts["loaded"] == collections.Counter(itertools.chain(*rows))
    loaded = [len(one.get("loaded", [])) for one in seen]
    assert max(loaded) - min(loaded) <= 1
    assert counts["loaded"] + counts["pushed"] == counts["popped"] + counts["waiting"]

    summary = summary_of(out)
    samples = summary["samples"]
    phases = state["shared"]["log"]["counters"]["phases"].values()
    earlier = sum(counts["backward"] for sizes in phases for counts in sizes.values())
    assert samples["offered"] == EPOCHS * SIZE
    assert samples["backward"] == earlier + sum(counts["popped"].values())
    assert samples["leftover"] == sum(counts["waiting"].values())
    assert samples["backward"] + samples["leftover"] == samples["selected"]
    assert summary["gate"]["activation_rate"] == pytest.approx(0.4, abs=0.04)
    assert summary["hardware"]["world_size"] == now
    (resumed,) = summary["resumes"]
    assert resumed["changed"] == [change]
    with np.load(out / "samples.npz") as figures:
        assert (figures["offered"] == EPOCHS).all()
        assert figures["selected"].sum() == samples["backward"]
    lines = lines_of(out)
    assert lines[: len(old_lines)] == old_lines
    epochs = [line for line in lines if line["kind"] == "epoch"]
    assert sum(line["backward"] for line in epochs) == samples["backward"]
    assert sum(line["offered"] for line in epochs) == samples["offered"]
    trained = [line["backward"] for line in lines if line["kind"] == "step"]
    assert trained == sorted(trained)
    assert trained[-1] <= samples["backward"] <= trained[-1] + 3 * 3 * BATCH


def test_resharded_state_holds_everything_once(stopped):
    checkpoint = torch.load(stopped(1) / "checkpoints" / "last.pt")
    states = [own["engine"] for own in checkpoint["trainer"]["ranks"]]
    config = TrainConfig(**checkpoint["config"])
    engine = Engine(config, open_runtime("cpu"), weights="none", num_classes=4, num_train=SIZE)
    assert engine.reshard(states) == states
    engine.ranks = Ranks(WorldInfo(rank=0, size=3))
    shards = engine.reshard(states)
    (queue,), queues = Engine.queue_states(states), Engine.queue_states(shards)
    assert len(queue["ids"]) > 3
    for name in ("images", "labels", "ids", "weights"):
        assert torch.equal(torch.cat([one[name] for one in queues]), queue[name])
    assert sum(one["status"][0] - one["moved"] for one in queues) == queue["status"][0]
    for step, name in (("train_step", "loss_sum"), ("train_step", "loss_rows"), ("score_step", "hist")):
        assert torch.equal(sum(shard[step][name] for shard in shards), states[0][step][name])
    waiting = checkpoint["trainer"]["shared"]["report"]
    reader = StatusReader(3, torch.device("cpu"))
    reader.load_state_dict(waiting)
    assert merge_status(reader.flush()) == pytest.approx(merge_status(waiting.numpy()))
