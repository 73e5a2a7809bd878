from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from fastast.cli import main
from fastast.config import TrainConfig
from fastast.errors import InputError
from fastast.gates.base import EpochContext, Gate
from fastast.gates.registry import GATES, GateEntry, make_gate
from tests.train.test_run import options, summary_of


def context(num=1000, epoch=0, **options):
    return EpochContext(num_samples=num, epoch=epoch, **{"seed": 0, "target": 0.2, **options})


@pytest.mark.parametrize(
    ("name", "cost", "ceiling"),
    [("dense", 3.0, 1.0), ("random", 0.3, 10.0), ("forward", 1.3, 3 / 1.3), ("memory", 0.3, 10.0)],
)
def test_costs_at_10_percent(name, cost, ceiling):
    gate = make_gate(name)
    assert gate.cost(0.1) == pytest.approx(cost)
    assert gate.ceiling(0.1) == pytest.approx(ceiling)
    assert gate.planned_share(0.1) == (1.0 if name == "dense" else 0.1)


def test_infobatch_costs_what_it_keeps():
    gate = make_gate("infobatch")
    assert gate.cost(1 - 0.5 * 0.6) == pytest.approx(3 * (1 - 0.5 * 0.6))
    assert gate.planned_share(0.1) == 0.75  # the target has no part in it


@pytest.mark.parametrize("name", GATES)
def test_every_gate_plans_or_scores_or_trains_all(name):
    gate = make_gate(name, {"prune": 0.5, "significance": None, "image_size": 32})  # some that it does not take
    plan = gate.plan(context(100, losses=np.random.default_rng(0).random(100).astype(np.float32)))
    assert (plan is not None) == gate.plans
    assert gate.plans + gate.scores + (name == "dense") == 1
    assert gate.has_target == ("target" in GATES[name].options)
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    assert set(GATES[name].arguments) <= set(GATES[name].options) <= fields


def test_bad_use_is_refused():
    with pytest.raises(InputError, match="dense, random, forward, memory, infobatch"):
        make_gate("sieve")
    for prune in (-0.1, 1.0):
        with pytest.raises(InputError, match="prune"):
            make_gate("infobatch", {"prune": prune})
    with pytest.raises(TypeError, match="cost"):
        type("Free", (Gate,), {})()


def test_registry_needs_no_torch():
    program = "import sys, fastast.gates.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@pytest.mark.parametrize("target", [0.03, 0.1, 0.5, 1.0])
def test_random_keeps_exactly_its_share(target):
    offered = np.random.default_rng(0).random(1003) < 0.6
    for part, num in ((None, 1003), (offered, offered.sum())):
        plan = make_gate("random").plan(context(1003, epoch=4, target=target, offered=part))
        assert plan.keep.dtype == bool
        assert plan.keep.shape == (1003,)
        assert plan.keep.sum() == round(target * num)
        assert plan.weights is None
        assert part is None or not plan.keep[~part].any()


@pytest.mark.parametrize("name", ["random", "memory"])
def test_no_plan_is_empty(name):
    """Unless nothing is offered."""
    one = np.array([False, True, False, False])
    plan = make_gate(name).plan
    assert plan(context(4, target=0.1)).keep.sum() == 1
    assert plan(context(4, target=0.1, offered=one)).keep.tolist() == one.tolist()
    assert plan(context(4, offered=np.zeros(4, dtype=bool), unbiased=True)).keep.sum() == 0


def test_random_is_keyed_by_seed_and_epoch():
    def keep(epoch, seed):
        return make_gate("random").plan(context(epoch=epoch, seed=seed)).keep

    assert np.array_equal(keep(3, 1), keep(3, 1))
    for other in (keep(4, 1), keep(3, 2)):
        assert 20 < (keep(3, 1) & other).sum() < 60  # 40 expected by chance, standard deviation 5


@pytest.mark.parametrize("name", ["random", "memory"])
def test_every_sample_is_reached_alike_without_scores(name):
    plan = make_gate(name).plan
    counts = sum(plan(context(400, epoch, target=0.1)).keep.astype(int) for epoch in range(200))
    assert abs(counts - 20).max() < 5 * np.sqrt(18)


ODD_GATE = """
import numpy as np
from fastast.gates.base import Choice, Gate


class Odd(Gate):
    plans, has_target = True, False

    def __init__(self, prune):
        self.prune = prune

    def plan(self, context):
        keep = np.arange(context.num_samples) % 2 == 1
        return Choice(keep, keep * np.float32(self.prune))

    def cost(self, activation):
        return 3 * activation

    def planned_share(self, target):
        return 0.5
"""


def test_new_gate_is_one_file_and_one_line(pictures, tmp_path, monkeypatch):
    (tmp_path / "odd_gate.py").write_text(ODD_GATE)
    monkeypatch.syspath_prepend(tmp_path)
    entry = GateEntry(path="odd_gate:Odd", help="trains odd ids", options=("prune",), arguments=("prune",))
    monkeypatch.setitem(GATES, "odd", entry)
    out = tmp_path / "run"
    assert main(["train", *options(pictures, out, gate="odd", epochs=2, prune=0.25)]) == 0
    summary = summary_of(out)
    assert summary["gate"]["name"] == "odd"
    assert summary["samples"]["offered"] == 2 * 240
    assert summary["samples"]["selected"] == 240 + 120
    with np.load(out / "samples.npz") as table:
        assert (table["selected"][::2] <= 1).all()  # in the dense warm-up only
        assert table["selected"][1::2].sum() >= 2 * 120 - 16  # but for the leftover
