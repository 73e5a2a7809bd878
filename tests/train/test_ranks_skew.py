"""Skewed data: one rank has all the hard samples. Nobody waits, nothing overflows, every sample counts once."""

import collections
import json
import os

import numpy as np
import pytest

from fastast.cli import main
from fastast.gates.controller import HALF_BAND
from fastast.gates.queue import SampleQueue
from fastast.gates.significance import Significance
from fastast.train.trainer import Trainer
from tests.train.ranks import answers
from tests.train.test_run import options

SIZE, GLOBAL = 240, 16


def spied(arguments, factor):
    """Trains with the scores of the first rank's samples `factor` times as high; returns what went through its queue.

    Returns:
        A dict: "pushed", "popped", "given" and "taken", the ids with their labels and weights in order, and "waiting"
        at the end.
    """
    seen = collections.defaultdict(list)
    push, pop, give, take = SampleQueue.push, SampleQueue.pop, SampleQueue.give, SampleQueue.take
    score, close = Significance.forward, Trainer.close

    def keep(name, rows, mask=slice(None)):
        seen[name] += zip(*(part[mask].tolist() for part in rows), strict=True)

    def spy_push(queue, images, labels, ids, mask, weights=None):
        keep("pushed", (ids, labels), mask)
        push(queue, images, labels, ids, mask, weights)

    def spy_pop(queue):
        rows = pop(queue)
        keep("popped", (rows.ids, rows.labels))
        seen["steps"].append(sorted(rows.ids.tolist()))
        return rows

    def spy_give(queue, num_rows):
        rows = give(queue, num_rows)
        keep("given", (rows.ids, rows.labels), slice(num_rows))
        return rows

    def spy_take(queue, rows, num_rows):
        keep("taken", (rows.ids, rows.labels), slice(num_rows))
        take(queue, rows, num_rows)
        del seen["pushed"][-num_rows:]

    def hard(self, *parts):
        scores, loss, sums = score(self, *parts)
        return scores * (factor if os.environ["RANK"] == "0" else 1.0), loss, sums

    def spy_close(trainer):
        state = trainer.engine.queue.get_extra_state()
        keep("waiting", (state["ids"], state["labels"]))
        seen["overflow"] = state["status"][2]
        close(trainer)

    SampleQueue.push, SampleQueue.pop, SampleQueue.give, SampleQueue.take = spy_push, spy_pop, spy_give, spy_take
    Significance.forward, Trainer.close = hard, spy_close
    assert main(["train", *arguments]) == 0
    return dict(seen)


def skewed(data, out, folder, num_ranks, **changes):
    """A run with skewed scores, its counts checked; returns its summary and what went through each rank's queue."""
    chosen = {"batch_size": GLOBAL // num_ranks, "epochs": 4, "log_every": 5, **changes}
    ranks = answers(folder, num_ranks, spied, options(data, out, **chosen), 100.0)
    summary = json.loads((out / "summary.json").read_text())
    samples, epochs = summary["samples"], chosen["epochs"]
    assert samples["offered"] == epochs * SIZE
    assert samples["backward"] == GLOBAL * samples["steps"]
    assert samples["backward"] + samples["leftover"] == samples["selected"]
    assert summary["hardware"]["world_size"] == num_ranks

    every = {name: [row for rank in ranks for row in rank.get(name, [])] for name in ("pushed", "popped", "waiting")}
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
    given, taken = ([row for rank in ranks for row in rank.get(name, [])] for name in ("given", "taken"))
    assert collections.Counter(given) == collections.Counter(taken)
    return summary, ranks


def check_share(summary, target):
    """The controller's promise on the whole gated part, one step late."""
    gated = summary["samples"]["offered"] - SIZE
    selected = summary["samples"]["selected"] - SIZE
    assert abs(selected - target * gated) <= HALF_BAND * max(1.0, target * GLOBAL) + target * GLOBAL


@pytest.mark.parametrize(
    ("num_ranks", "target"),
    [(2, 0.4), (4, 0.25), pytest.param(2, 0.1, marks=pytest.mark.slow), pytest.param(4, 0.5, marks=pytest.mark.slow)],
)
def test_a_rank_with_all_hard_samples_shares_them_out(pictures, tmp_path, num_ranks, target):
    summary, ranks = skewed(pictures, tmp_path / "run", tmp_path, num_ranks, target=target)
    check_share(summary, target)
    shares = [len(rank["pushed"]) - SIZE / num_ranks for rank in ranks]
    assert shares[0] > 3 * max(shares[1:])
    assert len(ranks[0]["given"]) > 0.25 * (summary["samples"]["selected"] - SIZE)
    assert "taken" not in ranks[0]
    assert all(len(rank["taken"]) for rank in ranks[1:])


OTHERS = {
    "proxy": {"gate": "proxy", "proxy_bn_every": 4},
    "proxy-tiny": {"gate": "proxy", "proxy_arch": "tiny", "proxy_bn_every": 4},
    "memory": {"gate": "memory"},
    "random": {"gate": "random"},
    "infobatch": {"gate": "infobatch"},
}


@pytest.mark.parametrize("name", OTHERS)
def test_every_gate_counts_each_sample_once(pictures, tmp_path, name):
    summary, ranks = skewed(pictures, tmp_path / "run", tmp_path, 2, target=0.4, **OTHERS[name])
    if name.startswith("proxy"):
        check_share(summary, 0.4)
        assert len(ranks[0]["given"]) > SIZE / 4
    elif name != "infobatch":
        assert summary["samples"]["selected"] == SIZE + 3 * round(0.4 * SIZE)


@pytest.mark.parametrize("arch", [pytest.param(None, id="twin"), pytest.param("tiny", marks=pytest.mark.slow)])
def test_thumbnails_are_scored_on_every_rank_and_decoded_in_equal_parts(pictures, tmp_path, arch):
    pack = tmp_path / "pack"
    assert main(["pack", str(pictures), str(pack), "--thumbnails", "20"]) == 0
    changes = {"gate": "proxy", "proxy_size": 16, "proxy_bn_every": 7, **({"proxy_arch": arch} if arch else {})}
    summary, ranks = skewed(pack, tmp_path / "run", tmp_path, 2, target=0.4, **changes)
    check_share(summary, 0.4)
    assert summary["samples"]["scored"] == 3 * SIZE
    assert not any("given" in rank for rank in ranks)  # shared out before they are decoded
