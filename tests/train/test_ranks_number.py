"""A run that continues with another number of ranks: refused, or on request with every count exact."""

import collections
import json
import shutil

import numpy as np
import pytest
import torch
from fastast.checkpoint.rank_state import part_of

from fastast.checkpoint.reshard import reshard
from fastast.cli import main
from fastast.gates.queue import SampleQueue
from fastast.loggers.device_status import combined
from fastast.signals import StopRequest
from fastast.train.start import PICTURES_CHANGED
from fastast.train.trainer import Trainer
from fastast.train.watchdog import Watchdog
from tests.train.ranks import command, gang, train
from tests.train.test_run import lines_of, options

SIZE, EPOCHS, BATCH = 240, 4, 8
QUEUE = "queue._extra_state"
THUMBNAILS = {"gate": "proxy", "proxy_size": 16, "proxy_bn_every": 5}


@pytest.fixture(scope="module")
def pack(pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("packs") / "pack"
    assert main(["pack", str(pictures), str(out), "--thumbnails", "20"]) == 0
    return out


def stop_at(number):
    """All ranks stop when they have come so often to a place between two batches."""
    own, beat, num_beats = StopRequest._own, Watchdog.beat, 0

    def counted(self):
        nonlocal num_beats
        num_beats += 1
        beat(self)

    Watchdog.beat = counted
    StopRequest._own = lambda self: 10 if num_beats >= number else own(self)


def arguments(data, out, **changes):
    chosen = {"batch_size": BATCH, "epochs": EPOCHS, "target": 0.4, "log_every": 3, **changes}
    return [*options(data, out, **chosen), "--unbiased"]


@pytest.fixture(scope="module")
def stopped(pictures, pack, tmp_path_factory):
    """Makes runs that were stopped within an epoch, each once: by number of ranks, and whether from thumbnails."""
    made = {}

    def make(size, thumbs):
        if (size, thumbs) not in made:
            folder = tmp_path_factory.mktemp("stopped")
            data, changes = (pack, THUMBNAILS) if thumbs else (pictures, {})
            with gang(
                folder,
                size,
                command,
                arguments(data, folder / "run", **changes),
                stop_at,
                (70 if thumbs else 60) // size,
            ) as ranks:
                assert ranks.codes() == [138] * size
            made[size, thumbs] = folder / "run"
        return made[size, thumbs]

    return make


def parts_of(state):
    return [state["trainer"], *state["trainer"]["ranks"]]


def waiting_ids(state):
    return [i for part in parts_of(state) for i in part["engine"]["score_step"][QUEUE]["ids"].tolist()]


def chosen_thumbs(state):
    """Ids that were selected by their thumbnails and wait to be decoded."""
    first, *_ = states = [part["thumbs"] for part in parts_of(state)]
    ids = first["selected"].tolist()
    for part in states:
        ids += [i for name in ("pulled", "ready") for piece in part[name] if not piece["thumbs"] for i in piece["ids"]]
    decided, weights = first["decision"].reshape(len(states), 2, -1).unbind(1)
    return sorted(map(int, ids)) + sorted(decided[weights > 0].long().tolist())


def count_rows(path):
    """Notes which ids are queued by this rank and which it trains, on top of those that it begins with."""
    push, pop, load, close = SampleQueue.push, SampleQueue.pop, Trainer.load_state_dict, Trainer.close
    seen, taking = collections.defaultdict(list), []
    take = SampleQueue.take

    def spy_push(queue, images, labels, ids, mask, weights=None):
        if not taking:
            seen["pushed"] += ids[mask].tolist()
        push(queue, images, labels, ids, mask, weights)

    def spy_take(queue, rows, num_rows):
        taking.append(True)
        take(queue, rows, num_rows)
        taking.clear()

    def spy_pop(queue):
        rows = pop(queue)
        seen["popped"] += rows.ids.tolist()
        return rows

    def spy_load(trainer, state, **options):
        load(trainer, state, **options)
        seen["began"] = trainer.engine.queue.get_extra_state()["ids"].tolist()

    def spy_close(trainer):
        seen["ended"] = trainer.engine.queue.get_extra_state()["ids"].tolist()
        path.with_name(f"{path.name}{trainer.ranks.rank}").write_text(json.dumps(seen))
        close(trainer)

    SampleQueue.push, SampleQueue.pop, SampleQueue.take = spy_push, spy_pop, spy_take
    Trainer.load_state_dict, Trainer.close = spy_load, spy_close


REFUSED = [(2, 1), (1, 2), (2, 3)]


@pytest.mark.parametrize(("before", "now"), REFUSED)
def test_another_number_is_refused_unless_it_is_asked_for(stopped, tmp_path, before, now):
    out = tmp_path / "run"
    shutil.copytree(stopped(before, False), out)
    with gang(tmp_path, now, command, ["--out", str(out), "--resume"]) as ranks:
        assert ranks.codes() == [2] * now
        (line,) = (line for rank in range(now) for line in ranks.said(rank).splitlines() if "error" in line)
    assert f"the number of processes has changed since ({before} -> {now}); add --force" in line
    summary = (out / "summary.json").read_text()
    assert json.loads(summary)["stopped"] == "signal"


@pytest.mark.parametrize("thumbs", [False, True], ids=["forward", "thumbnails"])
@pytest.mark.parametrize(("before", "now"), [*REFUSED, pytest.param(3, 2, marks=pytest.mark.slow)])
def test_a_run_goes_on_with_another_number_and_every_count_is_exact(stopped, tmp_path, before, now, thumbs):
    out = tmp_path / "run"
    shutil.copytree(stopped(before, thumbs), out)
    state = torch.load(out / "checkpoints" / "last.pt")
    old_lines = lines_of(out)
    asked, variables = ["--resume", "--force"], {}
    if now > before:  # as torchrun does it when a machine comes back
        asked = []
        variables = {"TORCHELASTIC_RUN_ID": "a", "TORCHELASTIC_RESTART_COUNT": 1, "TORCHELASTIC_MAX_RESTARTS": 3}
    rows = tmp_path / "rows"
    with gang(tmp_path, now, command, ["--out", str(out), *asked], count_rows, rows, **variables) as ranks:
        assert ranks.codes() == [0] * now, ranks.said(0)

    seen = [json.loads(rows.with_name(f"rows{rank}").read_text()) for rank in range(now)]
    counts = {name: collections.Counter(i for one in seen for i in one.get(name, [])) for name in seen[0]}
    assert counts["began"] == collections.Counter(waiting_ids(state))
    assert max(len(one["began"]) for one in seen) - min(len(one["began"]) for one in seen) <= 1
    assert counts["began"] + counts["pushed"] == counts["popped"] + counts["ended"]
    if thumbs:
        assert not collections.Counter(chosen_thumbs(state)) - counts["pushed"]

    summary = json.loads((out / "summary.json").read_text())
    samples = summary["samples"]
    earlier = sum(counts["backward"] for counts in state["trainer"]["journal"]["account"]["phases"].values())
    assert samples["offered"] == EPOCHS * SIZE
    assert samples["backward"] == earlier + sum(counts["popped"].values())
    assert samples["leftover"] == sum(counts["ended"].values())
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


def test_a_state_for_more_ranks_holds_what_one_rank_had_once(stopped):
    state = torch.load(stopped(1, False) / "checkpoints" / "last.pt")["trainer"]
    assert reshard(state, 1) is state
    shared = reshard(state, 3)
    parts = [part_of(shared, rank)["engine"] for rank in range(3)]
    queue, queues = state["engine"]["score_step"][QUEUE], [part["score_step"][QUEUE] for part in parts]
    for name in ("images", "labels", "ids", "weights"):
        assert torch.equal(torch.cat([one[name] for one in queues]), queue[name])
    assert sum(one["status"][0] - one["moved"] for one in queues) == queue["status"][0]
    for step, name in (("train_step", "loss_sum"), ("train_step", "loss_rows"), ("score_step", "decision.hist")):
        assert torch.equal(sum(part[step][name] for part in parts), state["engine"][step][name])
    report = combined(shared["journal"]["report"].numpy().reshape(3, -1))
    assert report == pytest.approx(state["journal"]["report"].tolist())


@pytest.mark.parametrize("now", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_other_pictures_and_another_number_at_once(pictures, stopped, tmp_path, now):
    data, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(pictures, data)
    (data / "train" / "class_1" / "0007.jpg").unlink()
    shutil.copytree(stopped(2, False), out)
    assert train(tmp_path, now, ["--data", str(data), "--out", str(out), "--resume", "--force"]) == [0] * now
    summary = json.loads((out / "summary.json").read_text())
    samples = summary["samples"]
    assert samples["backward"] + samples["leftover"] == samples["selected"]
    assert PICTURES_CHANGED in summary["resumes"][0]["changed"]
    with np.load(out / "samples.npz") as figures:
        assert figures["offered"].shape == (SIZE - 1,)
        assert len(set(figures["offered"].tolist())) == 1
