"""One rank has all the hard samples: no rank waits, nothing overflows, every sample counts once."""

import collections
import os

import numpy as np
import pytest

from fastast.cli import main
from fastast.gates.controller import HALF_BAND
from fastast.gates.queue import SampleQueue
from fastast.gates.significance import Significance
from fastast.train.trainer import Trainer
from tests.distributed.rank_processes import results
from tests.train.test_run import options, summary_of

SIZE, GLOBAL = 240, 16
QUEUE_EVENTS = ("loaded", "pushed", "popped", "sent", "received", "waiting")


def record_rows(arguments, factor=1.0):
    """Trains with the scores of the first rank's samples `factor` times as high.

    Returns:
        What went through this rank's queue, ids with their labels in order: "loaded" from a checkpoint, "pushed" by the
        gate, "popped", "sent" and "received", and "waiting" at the end.
    """
    seen = collections.defaultdict(list)
    push, pop, remove, append = SampleQueue.push, SampleQueue.pop, SampleQueue.remove_newest, SampleQueue.append
    score, load, close = Significance.forward, Trainer._load, Trainer.close

    def keep(name, rows, mask=slice(None)):
        seen[name] += zip(*(part[mask].tolist() for part in rows), strict=True)

    def spy_push(queue, images, labels, ids, mask, weights=None):
        keep("pushed", (ids, labels), mask)
        push(queue, images, labels, ids, mask, weights)

    def spy_pop(queue):
        rows = pop(queue)
        keep("popped", (rows.ids, rows.labels))
        return rows

    def spy_remove(queue, num_rows):
        rows = remove(queue, num_rows)
        keep("sent", (rows.ids, rows.labels), slice(num_rows))
        return rows

    def spy_append(queue, rows, num_rows):
        keep("received", (rows.ids, rows.labels), slice(num_rows))
        append(queue, rows, num_rows)
        del seen["pushed"][-num_rows:]

    def hard(self, *parts):
        scores, loss, sums = score(self, *parts)
        return scores * (factor if os.environ["RANK"] == "0" else 1.0), loss, sums

    def spy_state(name, trainer):
        state = trainer.engine.queue.get_extra_state()
        keep(name, (state["ids"], state["labels"]))
        seen["overflow"] = state["status"][2]

    def spy_load(trainer, state):
        load(trainer, state)
        spy_state("loaded", trainer)

    def spy_close(trainer):
        spy_state("waiting", trainer)
        close(trainer)

    SampleQueue.push, SampleQueue.pop = spy_push, spy_pop
    SampleQueue.remove_newest, SampleQueue.append = spy_remove, spy_append
    Significance.forward, Trainer._load, Trainer.close = hard, spy_load, spy_close
    assert main(["train", *arguments]) == 0
    return dict(seen)


def skewed(data, out, folder, num_ranks, **changes):
    """A run with skewed scores, its counts checked; returns its summary and what went through each rank's queue."""
    chosen = {"batch_size": GLOBAL // num_ranks, "epochs": 4, "log_every": 5, **changes}
    ranks = results(folder, num_ranks, record_rows, options(data, out, **chosen), 100.0)
    summary = summary_of(out)
    samples, epochs = summary["samples"], chosen["epochs"]
    assert samples["offered"] == epochs * SIZE
    assert samples["backward"] == GLOBAL * samples["steps"]
    assert samples["backward"] + samples["leftover"] == samples["selected"]
    assert summary["hardware"]["world_size"] == num_ranks

    every = {name: [row for rank in ranks for row in rank.get(name, [])] for name in QUEUE_EVENTS}
    counts = {name: collections.Counter(rows) for name, rows in every.items()}
    assert counts["popped"] + counts["waiting"] == counts["pushed"]
    assert len(every["popped"]) == samples["backward"]
    assert len(every["waiting"]) == samples["leftover"]
    with np.load(out / "samples.npz") as figures:
        assert (figures["offered"] == epochs).all()
        trained = collections.Counter(sample for sample, _ in every["popped"])
        assert figures["selected"].tolist() == [trained[i] for i in range(SIZE)]
        assert all(figures["label"][sample] == label for sample, label in every["popped"])
    for rank in ranks:
        assert rank["overflow"] == 0
        assert len(rank["popped"]) == samples["backward"] / num_ranks
    assert counts["sent"] == counts["received"]
    return summary, ranks


@pytest.mark.parametrize(
    ("num_ranks", "target"),
    [(2, 0.4), (4, 0.25), pytest.param(2, 0.1, marks=pytest.mark.slow), pytest.param(4, 0.5, marks=pytest.mark.slow)],
)
def test_a_rank_with_all_hard_samples_sends_them_on(pictures, tmp_path, num_ranks, target):
    summary, ranks = skewed(pictures, tmp_path / "run", tmp_path, num_ranks, target=target)
    gated, selected = (summary["samples"][name] - SIZE for name in ("offered", "selected"))
    # The controller's promise on the whole gated part, one step late.
    assert abs(selected - target * gated) <= HALF_BAND * max(1.0, target * GLOBAL) + target * GLOBAL
    shares = [len(rank["pushed"]) - SIZE / num_ranks for rank in ranks]
    assert shares[0] > 3 * max(shares[1:])
    assert len(ranks[0]["sent"]) > 0.25 * selected
    assert "received" not in ranks[0]
    assert all(len(rank["received"]) for rank in ranks[1:])


@pytest.mark.parametrize("gate", ["memory", "random", "infobatch"])
def test_every_gate_counts_each_sample_once(pictures, tmp_path, gate):
    summary, _ = skewed(pictures, tmp_path / "run", tmp_path, 2, target=0.4, gate=gate)
    if gate != "infobatch":
        assert summary["samples"]["selected"] == SIZE + 3 * round(0.4 * SIZE)
