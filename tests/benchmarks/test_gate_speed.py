"""The gate benchmark from end to end at its smallest, and its formulas."""

from __future__ import annotations

import json

import pytest

from benchmarks.gate_speed import __main__ as gate_speed
from benchmarks.gate_speed.ceiling import machine_ceiling
from benchmarks.gate_speed.runner import EpochRunner
from benchmarks.gate_speed.table import contender_row, table

OPTIONS = "--arch tests.nets:tiny --image-size 32 --batch-size 8"


@pytest.fixture(scope="module")
def speed(pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("gates") / "gates.json"
    gate_speed.main(
        ["--data", str(pictures), "--out", str(out), *f"{OPTIONS} --count 160 --rounds 2 --targets 0.25".split()]
    )
    return json.loads(out.read_text())


def test_every_gate_runs_against_dense(speed):
    rows = {row["name"]: row for row in speed["rows"]}
    assert list(rows) == ["dense", "infobatch", "random", "memory", "forward"]
    assert rows["dense"]["speedup"] == 1.0
    none = {"offered": 320, "scored": 0}
    assert rows["dense"]["counts"] == {**none, "decoded": 320, "selected": 320, "backward": 320}
    for name in ("random", "memory"):
        assert rows[name]["counts"] == {**none, "decoded": 80, "selected": 80, "backward": 80}
        assert rows[name]["arithmetic_ceiling"] == pytest.approx(4.0)
    counts = rows["forward"]["counts"]
    assert counts["offered"] == counts["scored"] == counts["decoded"] == 320
    assert 0 < counts["backward"] < 160
    assert rows["forward"]["arithmetic_ceiling"] < 4.0
    for row in rows.values():
        assert row["n"] == 2
        assert row["machine_ceiling"] > 0
        assert row["offered_per_s"] > 0
        assert f"\n| {row['name']} | " in table(speed)
    assert speed["versions"]["torch"] in table(speed)


@pytest.mark.parametrize(
    ("activation", "scores", "plans", "wanted"),
    [(1.0, False, False, 11 / (1 + 10)), (0.1, False, True, 11 / (0.1 * 11)), (0.1, True, False, 11 / (1 + 2 + 1))],
    ids=["dense", "random", "forward"],
)
def test_machine_ceiling(activation, scores, plans, wanted):
    times = {"t": 10.0, "d": 1.0, "f": 2.0}
    assert machine_ceiling(times, activation, scores=scores, plans=plans) == pytest.approx(wanted)


def test_goals_are_judged_by_the_median():
    counts = {"offered": 100, "backward": 10}
    rounds = [
        {"offered_per_s": 1.0, "speedup": speedup, "ceiling": 10.0, "data_wait": 0.0} for speedup in (6.0, 8.0, 8.6)
    ]
    row = contender_row("random", 0.1, rounds, counts, 10.0)
    assert row["speedup"] == 8.0
    assert row["goals"]["speedup"] == {"goal": 7.0, "met": True}
    assert row["goals"]["share_of_machine_ceiling"] == {"goal": 0.85, "met": False}


def test_a_count_off_by_one_sample_fails(pictures, monkeypatch):
    seen = EpochRunner._trained

    def one_too_many(self, module, inputs, logits):
        seen(self, module, inputs, logits)
        self.rows["forward"] += 1

    monkeypatch.setattr(EpochRunner, "_trained", one_too_many)
    with pytest.raises(RuntimeError, match="dense at None: forward: 72, expected 64"):
        gate_speed.main(["--data", str(pictures), *f"{OPTIONS} --count 64 --rounds 1 --only dense".split()])
