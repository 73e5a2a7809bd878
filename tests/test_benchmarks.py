"""The benchmarks from end to end, at their smallest: what they publish is whole, and their rules are what they say."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

import pytest

from benchmarks import accuracy, accuracy_table, cards, gates, gates_table
from benchmarks.gpu import gated
from benchmarks.subset import link_subset
from fastast.errors import InputError
from tests.conftest import ROOT, write_pictures


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """train/ (4 classes x 96) and val/ (4 x 12)."""
    root = tmp_path_factory.mktemp("benched")
    write_pictures(root / "train", num_classes=4, per_class=96, seed=0)
    write_pictures(root / "val", num_classes=4, per_class=12, seed=1)
    return root


GATES = [entry.name for entry in gates.contenders([0.25])]


@pytest.fixture(scope="module")
def speed(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("gates") / "gates.json"
    options = (
        "--arch tests.nets:tiny --image-size 32 --batch-size 8 --count 160 --rounds 2 --targets 0.25 --thumbnails 16"
    )
    gates.main(["--data", str(data), "--out", str(out), *options.split()])
    return json.loads(out.read_text())


def test_every_gate_runs_against_dense(speed):
    rows = {row["name"]: row for row in speed["rows"]}
    assert list(rows) == GATES
    assert rows["dense"]["speedup"] == 1.0
    none = {"offered": 320, "scored": 0, "checked": 0}
    assert rows["dense"]["counts"] == {**none, "decoded": 320, "selected": 320, "backward": 320}
    for name in ("random", "memory"):
        assert rows[name]["counts"] == {**none, "decoded": 80, "selected": 80, "backward": 80}
        assert rows[name]["arithmetic_ceiling"] == pytest.approx(4.0)
    for name in GATES[4:]:
        counts = rows[name]["counts"]
        assert counts["offered"] == counts["scored"] == 320
        assert counts["checked"] == (8 if "proxy" in name else 0)  # one batch of 50
        assert counts["decoded"] == (counts["selected"] + 8 if "thumbnails" in name else 320)
        assert 0 < counts["backward"] < 160
        assert rows[name]["arithmetic_ceiling"] < 4.0
    for row in rows.values():
        assert row["n"] == 2
        assert row["machine_ceiling"] > 0
        assert row["offered_per_s"] > 0


def test_the_speed_table_shows_every_row(speed):
    text = gates_table.table(speed)
    for row in speed["rows"]:
        assert f"\n| {row['name']} | " in text
    assert speed["versions"]["torch"] in text


class Scored:
    """As much of a trainer as `gates_parts.ceiling` looks at."""

    def __init__(self, scores, plans):
        self.policy = self
        self.scores, self.plans = scores, plans


@pytest.mark.parametrize(
    ("name", "scores", "plans", "wanted"),
    [
        ("dense", False, False, 11 / (1 + 10)),
        ("random", False, True, 11 / (0.1 * 11)),
        ("forward", True, False, 11 / (1 + 2 + 0.1 * 10)),
        ("proxy", True, False, 11 / (1 + 0.5 + 0.1 * 10)),
        ("proxy, thumbnails", True, False, 11 / (0.2 + 0.5 + 0.1 * 11)),
    ],
)
def test_the_machines_ceiling_follows_the_formula(name, scores, plans, wanted):
    parts = {"t": 10.0, "d": 1.0, "f": 2.0, "f proxy": 0.5, "f proxy, thumbnails": 0.5, "d proxy, thumbnails": 0.2}
    activation = 1.0 if name == "dense" else 0.1
    found = gates.ceiling(name, Scored(scores, plans), parts, activation)
    assert found == pytest.approx(wanted)


def test_goals_are_judged_by_the_median():
    entry = {"name": "random", "gate": "random", "target": 0.1}
    counts = {"offered": 100, "backward": 10}
    rounds = [
        {"offered_per_s": 1.0, "speedup": speedup, "ceiling": 10.0, "data_wait": 0.0} for speedup in (6.0, 8.0, 8.6)
    ]
    row = gates_table.contender_row(entry, rounds, counts, 10.0)
    assert row["speedup"] == 8.0
    assert row["goals"]["speedup"] == {"goal": 7.0, "met": True}
    assert row["goals"]["share_of_machine_ceiling"] == {"goal": 0.85, "met": False}


def test_a_count_that_differs_by_one_sample_fails(data, tmp_path, monkeypatch):
    seen = gates.Lane._trained

    def one_too_many(self, module, inputs, logits):
        seen(self, module, inputs, logits)
        self.rows["forward"] += 1

    monkeypatch.setattr(gates.Lane, "_trained", one_too_many)
    options = "--arch tests.nets:tiny --image-size 32 --batch-size 8 --count 64 --rounds 1 --only dense"
    with pytest.raises(RuntimeError, match="dense at None: forward: 72, expected 64"):
        gates.main(["--data", str(data), *options.split()])


@pytest.fixture(scope="module")
def tried(data, tmp_path_factory):
    root = tmp_path_factory.mktemp("accuracy")
    options = f"--train 160 --val 24 --epochs 1.5 --tuning-epochs 1.5 --seeds 1 --work {root / 'work'}"
    command = ["--data", str(data), "--out", str(root / "accuracy.json"), *options.split(), "--only", "forward, hard"]
    accuracy.main(command)
    return root, command


@pytest.mark.slow
def test_both_blocks_run_and_the_second_from_the_weights_of_the_first(tried):
    root, _ = tried
    result = json.loads((root / "accuracy.json").read_text())
    assert [block["name"] for block in result["blocks"]] == ["scratch", "tuning"]
    for block in result["blocks"]:
        dense, hard = block["rows"]
        assert (dense["name"], hard["name"]) == ("dense", "forward, hard")
        assert hard["n"] == hard["dense_equal_units"]["n"] == 1
        assert hard["forward_units"]["mean"] < dense["forward_units"]["mean"]
    start = result["sizes"]["start_top1"]
    (config,) = (root / "work").glob("*/runs/tuning-forward-hard-0-*/config.json")
    weights = Path(json.loads(config.read_text())["weights"])
    assert weights.is_file()
    assert weights.parent.name.startswith("scratch-dense-0-")
    assert f"to {start:.2f} % first" in (root / "accuracy.md").read_text()


@pytest.mark.slow
def test_finished_runs_are_not_repeated(tried):
    root, command = tried
    summaries = {path: path.stat().st_mtime_ns for path in (root / "work").glob("*/runs/*/summary.json")}
    before = json.loads((root / "accuracy.json").read_text())
    accuracy.main(command)
    assert {path: path.stat().st_mtime_ns for path in (root / "work").glob("*/runs/*/summary.json")} == summaries
    assert json.loads((root / "accuracy.json").read_text())["blocks"] == before["blocks"]


def test_each_gate_stands_beside_its_baselines():
    def run(role, name, seed, top1, of=()):
        units = {"random": 100.0, "infobatch": 200.0}.get(of[0] if of else name, 300.0)
        common = {"activation": 0.3, "forward_units": units, "seconds": 1.0}
        return {"role": role, "for": list(of), "name": name, "seed": seed, "top1": top1, **common}

    runs = []
    for seed in range(3):
        runs += [
            run("dense", "dense", seed, 70.0),
            run("gate", "random", seed, 60.0 + 0.1 * seed),
            run("gate", "infobatch", seed, 65.0 + 0.1 * seed),
            run("dense_equal_units", "dense", seed, 50.0, ["random"]),
            run("dense_equal_units", "dense", seed, 65.1, ["infobatch"]),
            run("random_equal_share", "random", seed, 66.0 + seed, ["infobatch"]),
        ]
    dense, random, infobatch = accuracy_table.rows(runs)
    assert "against_dense" not in dense
    assert "against_random" not in random
    assert (random["against_dense"], random["units_off"]) == ("better", 0.0)
    assert infobatch["random_equal_share"]["top1"]["mean"] == pytest.approx(67.0)  # at its own share, not the target
    assert (infobatch["against_random"], infobatch["against_dense"]) == ("worse", "no difference shown")
    assert infobatch["dense_equal_units"]["top1"]["mean"] == pytest.approx(65.1)


@pytest.mark.slow
def test_a_failed_run_says_why(data, tmp_path):
    options = f"--train 16 --val 4 --epochs 1 --tuning-epochs 0 --seeds 1 --only random --work {tmp_path}"
    with pytest.raises(RuntimeError, match="--batch-size 64: larger than the training set of 16 pictures"):
        accuracy.main(["--data", str(data), *options.split()])


def test_matched_epochs_are_within_the_goal_and_shared_where_they_can_be():
    units = [100.0, 101.0, 101.9, 103.0, 200.0]
    epochs = accuracy.matched_epochs(units, dense_units=50.0)
    assert list(epochs) == units
    for value, length in epochs.items():
        assert abs(length * 50.0 / value - 1) <= accuracy.UNITS_GOAL / 2
    assert len(set(epochs.values())) == 3


def test_verdicts_need_more_than_two_standard_errors():
    def value(mean, se):
        return {"mean": mean, "se": se}

    assert accuracy_table.verdict(value(72.0, 0.3), value(71.1, 0.3)) == "better"
    assert accuracy_table.verdict(value(70.0, 0.3), value(70.8, 0.3)) == "no difference shown"
    assert accuracy_table.verdict(value(70.0, 0.3), value(70.9, 0.3)) == "worse"
    assert accuracy_table.verdict(value(70.0, None), value(99.0, None)) == "one seed"
    assert accuracy_table.mean_and_error([1.0, 2.0, 3.0]) == {"mean": 2.0, "se": pytest.approx(3**-0.5)}


@pytest.mark.slow
def test_the_cards_are_filled_again_and_again(tried, speed, tmp_path):
    readme = tmp_path / "README.md"
    original = (ROOT / "fastast" / "gate" / "README.md").read_text()
    readme.write_text(original)
    (tmp_path / "gates.json").write_text(json.dumps(speed))
    paths = ["--gates", str(tmp_path / "gates.json"), "--accuracy", str(tried[0] / "accuracy.json")]
    cards.main([*paths, "--readme", str(readme)])
    once = readme.read_text()
    cards.main([*paths, "--readme", str(readme)])
    assert readme.read_text() == once
    before, after = original.split("<!-- measured: begin -->")[0], original.split("<!-- measured: end -->")[1]
    assert once.startswith(before)
    assert once.endswith("<!-- measured: end -->" + after)
    assert "**Speed**" in once
    assert "**From scratch**" in once
    with pytest.raises(InputError, match="nothing was measured"):
        cards.fill(original, None, None)
    with pytest.raises(InputError, match="one region"):
        cards.fill("no marks", speed, None)


def test_subsets_are_even_seeded_and_disjoint(data, tmp_path):
    link_subset(data / "train", tmp_path / "a", 42)
    link_subset(data / "train", tmp_path / "b", 42)
    link_subset(data / "train", tmp_path / "c", 40, skip=42)
    names = {part: {path.relative_to(tmp_path / part) for path in (tmp_path / part).glob("*/*")} for part in "abc"}
    assert names["a"] == names["b"]
    assert not names["a"] & names["c"]
    assert [len(list(folder.iterdir())) for folder in sorted((tmp_path / "a").iterdir())] == [11, 11, 10, 10]
    assert next((tmp_path / "a" / "class_0").iterdir()).read_bytes()[:2] == b"\xff\xd8"
    with pytest.raises(InputError, match="has 96 pictures, 100 are needed"):
        link_subset(data / "train", tmp_path / "d", 400)


def test_a_bench_that_overruns_its_item_is_asked_to_stop():
    code = gated._run_until(time.monotonic() + 0.5, [sys.executable, "-c", "import time; time.sleep(60)"])
    assert code == -signal.SIGTERM
    assert gated._run_until(time.monotonic() + 60, [sys.executable, "-c", "raise SystemExit(7)"]) == 7
