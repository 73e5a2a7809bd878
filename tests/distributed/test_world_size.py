"""A run that resumes on another number of ranks: refused, or on request with every count exact."""

import collections
import json
import shutil

import numpy as np
import pytest
import torch

from fastast.config import TrainConfig
from fastast.device import open_runtime
from fastast.distributed.environment import WorldInfo
from fastast.distributed.ranks import Ranks
from fastast.gates.queue import SampleQueue
from fastast.loggers.device_status import StatusReader, merge_status
from fastast.signals import StopRequest
from fastast.train.engine import Engine
from fastast.train.trainer import Trainer
from fastast.train.watchdog import Watchdog
from tests.distributed.rank_processes import RESTARTED, command, started
from tests.train.test_run import lines_of, options

SIZE, EPOCHS, BATCH = 240, 4, 8


def stop_at(number):
    """All ranks stop when they have come so often to a place between two batches."""
    own, beat, num_beats = StopRequest._own, Watchdog.beat, 0

    def counted(self):
        nonlocal num_beats
        num_beats += 1
        beat(self)

    Watchdog.beat = counted
    StopRequest._own = lambda self: 10 if num_beats >= number else own(self)


@pytest.fixture(scope="module")
def stopped(pictures, tmp_path_factory):
    """Makes runs that were stopped within an epoch, each once, by number of ranks."""
    made = {}

    def make(size):
        if size not in made:
            folder = tmp_path_factory.mktemp("stopped")
            chosen = {"batch_size": BATCH, "epochs": EPOCHS, "target": 0.4, "log_every": 3}
            arguments = [*options(pictures, folder / "run", **chosen), "--unbiased"]
            with started(folder, size, command, arguments, stop_at, 60 // size) as ranks:
                assert ranks.codes() == [138] * size
            made[size] = folder / "run"
        return made[size]

    return make


def count_rows(path):
    """Notes which ids this rank queues and trains, and which wait at the start and at the end."""
    push, pop, append, load, close = SampleQueue.push, SampleQueue.pop, SampleQueue.append, Trainer._load, Trainer.close
    seen, appending = collections.defaultdict(list), []

    def spy_push(queue, images, labels, ids, mask, weights=None):
        if not appending:
            seen["pushed"] += ids[mask].tolist()
        push(queue, images, labels, ids, mask, weights)

    def spy_append(queue, rows, num_rows):
        appending.append(True)
        append(queue, rows, num_rows)
        appending.clear()

    def spy_pop(queue):
        rows = pop(queue)
        seen["popped"] += rows.ids.tolist()
        return rows

    def spy_load(trainer, state):
        load(trainer, state)
        seen["before"] = trainer.engine.queue.get_extra_state()["ids"].tolist()

    def spy_close(trainer):
        seen["after"] = trainer.engine.queue.get_extra_state()["ids"].tolist()
        path.with_name(f"{path.name}{trainer.ranks.rank}").write_text(json.dumps(seen))
        close(trainer)

    SampleQueue.push, SampleQueue.pop, SampleQueue.append = spy_push, spy_pop, spy_append
    Trainer._load, Trainer.close = spy_load, spy_close


CHANGES = [(2, 1), (1, 2), (2, 3)]


@pytest.mark.parametrize(("before", "now"), CHANGES)
def test_another_number_of_ranks_is_refused_without_force(stopped, tmp_path, before, now):
    out = tmp_path / "run"
    shutil.copytree(stopped(before), out)
    with started(tmp_path, now, command, ["--out", str(out), "--resume"]) as ranks:
        assert ranks.codes() == [2] * now
        (line,) = ranks.error_lines()
    assert f"the number of processes has changed since ({before} -> {now}); add --force" in line
    assert json.loads((out / "summary.json").read_text())["stopped"] == "signal"


@pytest.mark.parametrize(("before", "now"), [*CHANGES, pytest.param(3, 2, marks=pytest.mark.slow)])
def test_every_count_is_exact_on_another_number_of_ranks(stopped, tmp_path, before, now):
    out = tmp_path / "run"
    shutil.copytree(stopped(before), out)
    state, old_lines = torch.load(out / "checkpoints" / "last.pt")["trainer"], lines_of(out)
    asked, variables = ["--resume", "--force"], {}
    if now > before:  # as torchrun does it when a machine comes back
        asked, variables = [], RESTARTED
    rows = tmp_path / "rows"
    with started(tmp_path, now, command, ["--out", str(out), *asked], count_rows, rows, **variables) as ranks:
        assert ranks.codes() == [0] * now, ranks.said(0)

    seen = [json.loads(rows.with_name(f"rows{rank}").read_text()) for rank in range(now)]
    counts = {name: collections.Counter(i for one in seen for i in one.get(name, [])) for name in seen[0]}
    queues = Engine.queue_states([own["engine"] for own in state["ranks"]])
    assert counts["before"] == collections.Counter(i for queue in queues for i in queue["ids"].tolist())
    assert max(len(one["before"]) for one in seen) - min(len(one["before"]) for one in seen) <= 1
    assert counts["before"] + counts["pushed"] == counts["popped"] + counts["after"]

    summary = json.loads((out / "summary.json").read_text())
    samples = summary["samples"]
    earlier = sum(phase["backward"] for phase in state["shared"]["log"]["counters"]["phases"].values())
    assert samples["offered"] == EPOCHS * SIZE
    assert samples["backward"] == earlier + sum(counts["popped"].values())
    assert samples["leftover"] == sum(counts["after"].values())
    assert samples["backward"] + samples["leftover"] == samples["selected"]
    assert summary["gate"]["activation_rate"] == pytest.approx(0.4, abs=0.04)
    assert summary["hardware"]["world_size"] == now
    (resumed,) = summary["resumes"]
    assert resumed["changed"] == [f"the number of processes has changed since ({before} -> {now})"]
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
