"""Points, paired differences, cost at equal accuracy and the verdict of small benches."""

import pytest

from fastast.bench.statistics import mean_and_error, summarise
from fastast.bench.student import quantile
from fastast.bench.tables import grids
from fastast.report.bench_tables import accuracy_table, paired_tables
from tests.bench.fake_runs import NUM_TRAIN, fake_summary

BUDGETS = [{"name": f"{amount}ep", "kind": "ep", "amount": float(amount)} for amount in (1, 2, 4)]
NOISE = (0.0, 0.002, -0.002, 0.001, -0.001)


def arms_of(*names):
    return [{"name": name, "options": {"gate": name.partition(":")[0]}} for name in names]


def bench(curves, *, num_seeds=3, budgets=BUDGETS, j=None, noise=0.3):
    """Runs with these accuracies by arm and budget; seeds differ by the same, and by a share of it of their own."""
    runs = []
    for number, (arm, top1s) in enumerate(curves.items()):
        for place, (budget, top1) in enumerate(zip(budgets, top1s, strict=True)):
            for seed in range(num_seeds):
                own = noise * NOISE[(seed + number + place) % 5]
                summary = fake_summary(
                    arm.partition(":")[0], budget["amount"], seed=seed, top1=top1 + NOISE[seed] + own, j=j
                )
                runs.append({"arm": arm, "budget": budget["name"], "seed": seed, "summary": summary})
    return summarise(arms_of(*curves), budgets, runs)


def row_of(rows, **keys):
    (row,) = [row for row in rows if all(row[key] == value for key, value in keys.items())]
    return row


DENSE = (0.50, 0.58, 0.64)
TWICE_AS_FAST = (0.58, 0.64, 0.68)
HALF_AS_FAST = (0.40, 0.50, 0.58)


def test_means_and_standard_errors():
    assert mean_and_error([1.0, 2.0, 3.0]) == {"mean": 2.0, "se": pytest.approx(3**-0.5)}
    assert mean_and_error([5.0]) == {"mean": 5.0, "se": None}
    assert mean_and_error([5.0, None]) == {"mean": None, "se": None}


def test_point_has_mean_accuracy_and_costs():
    found = bench({"dense": DENSE, "memory:target=0.3": DENSE}, noise=0.0)
    point = row_of(found["points"], arm="memory:target=0.3", budget="2ep")
    assert point["n"] == 3
    assert point["top1"] == {"mean": pytest.approx(0.58), "se": pytest.approx(0.002 / 3**0.5)}
    units = 3 * 2 * NUM_TRAIN
    assert point["units"] == units
    assert point["seconds"] > point["train_seconds"] == pytest.approx(units / 1000)
    assert point["joules"] is None
    assert point["share"] == 0.3
    assert row_of(bench({"dense": DENSE}, j=2.0)["points"], budget="2ep")["joules"] == pytest.approx(2.2 * units)


def test_balanced_accuracy_is_told_where_it_is_another():
    runs = [
        {"arm": arm, "budget": "1ep", "seed": seed, "summary": fake_summary(arm, 1.0, top1=0.5 + 0.01 * seed)}
        for arm in ("dense", "memory")
        for seed in range(3)
    ]
    found = {**summarise(arms_of("dense", "memory"), BUDGETS, runs), "arms": arms_of("dense", "memory")}
    assert found["paired"][0]["balanced"] == {"difference": 0.0, "interval": pytest.approx([-0.0025, 0.0025], abs=1e-4)}
    assert not any("alanced" in grid.title for grid in grids({**found, "budgets": BUDGETS}))
    for run in runs[3:]:
        run["summary"]["accuracy"]["balanced_top1"] += 0.1 + 0.001 * run["seed"]
    found |= summarise(arms_of("dense", "memory"), BUDGETS, runs)
    assert found["points"][1]["balanced_top1"]["mean"] == pytest.approx(0.611)
    assert found["paired"][0]["difference"] == 0
    assert found["paired"][0]["balanced"]["difference"] == pytest.approx(0.101)
    tables = {grid.title: grid.lines for grid in grids({**found, "budgets": BUDGETS})}
    assert tables["Balanced top-1 (mean of the classes)"][2][1] == "61.10 +- 0.64 %"
    (told,) = (lines[1][1] for title, lines in tables.items() if "points of balanced" in title)
    assert told.startswith("+10.10 (+9.85 to ")
    shown = paired_tables({**found, "budgets": BUDGETS, "seeds": [0, 1, 2]})[0].rows[0][1][0].beside
    assert "balanced\N{NO-BREAK SPACE}+10.10" in shown
    run["summary"]["accuracy"].pop("balanced_top1")
    found |= summarise(arms_of("dense", "memory"), BUDGETS, runs)
    assert found["paired"][0]["balanced"] is None
    assert found["points"][1]["balanced_top1"]["mean"] is None


def test_probe_alone_stands_beside_the_arms():
    runs = []
    for arm, has_probe in (("dense", True), ("dense:start=random", False)):
        for seed in (0, 1):
            summary = fake_summary("dense", 2.0, seed=seed, top1=0.6)
            summary["accuracy"]["probe_top1"] = 0.5 + 0.1 * seed if has_probe else None
            summary["probe"] = {"forward_units": 700.0, "seconds": 3.0} if has_probe else None
            runs.append({"arm": arm, "budget": "2ep", "seed": seed, "summary": summary})
    arms, budgets = arms_of("dense", "dense:start=random"), BUDGETS[1:2]
    result = {"arms": arms, "budgets": budgets, "seeds": [0, 1], **summarise(arms, budgets, runs)}
    assert result["probe"] == {
        "n": 2,
        "top1": {"mean": pytest.approx(0.55), "se": pytest.approx(0.05)},
        "units": 700,
        "seconds": 3,
    }
    assert grids(result)[0].lines[-1] == ["probe alone", "55.00 +- 5.00 % (700 units)"]
    assert accuracy_table(result).rows[-1][0] == "probe alone"
    assert bench({"dense": DENSE})["probe"] is None


def test_differences_are_paired_by_seed():
    found = bench({"dense": DENSE, "random:target=0.3": DENSE, "memory": TWICE_AS_FAST}, num_seeds=5)
    assert [(row["arm"], row["against"]) for row in found["paired"][::3]] == [
        ("random:target=0.3", "dense"),
        ("memory", "dense"),
        ("memory", "random:target=0.3"),
    ]
    row = row_of(found["paired"], arm="memory", against="dense", budget="2ep")
    assert (row["n"], row["outcome"]) == (5, "better")
    assert row["difference"] == pytest.approx(0.06, abs=0.002)
    # What a seed does to both arms is not in the interval.
    assert row["interval"][1] - row["interval"][0] < 2 * quantile(4) * 0.002 / 5**0.5
    assert row["p"] < 0.05
    same = row_of(found["paired"], arm="random:target=0.3", against="dense", budget="2ep")
    assert same["outcome"] == "no difference shown"
    assert same["interval"][0] < 0 < same["interval"][1]
    worse = bench({"dense": DENSE, "memory": HALF_AS_FAST})
    assert {row["outcome"] for row in worse["paired"]} == {"worse"}


def test_fewer_than_three_seeds_show_nothing():
    found = bench({"dense": DENSE, "memory": TWICE_AS_FAST}, num_seeds=2)
    assert {(row["outcome"], row["interval"], row["p"]) for row in found["paired"]} == {("unknown", None, None)}
    assert {row["interval"] for row in found["cost_at_equal_accuracy"]} == {None}
    told = "No verdict: a comparison needs at least three seeds with both arms."
    assert found["verdict"] == {"sentences": [told], "winners": []}


def test_p_is_raised_by_the_number_of_comparisons():
    one = bench({"dense": DENSE, "memory": [a + 0.004 for a in DENSE]}, noise=1.0)
    many = bench(
        {"dense": DENSE, "memory": [a + 0.004 for a in DENSE], "forward": DENSE, "infobatch": DENSE}, noise=1.0
    )
    lone, among = (row_of(found["paired"], arm="memory", budget="4ep") for found in (one, many))
    assert lone["interval"] == among["interval"]
    assert lone["p"] < among["p"]


def test_cost_at_equal_accuracy():
    found = bench({"dense": DENSE, "slow": HALF_AS_FAST, "fast": TWICE_AS_FAST}, num_seeds=5)
    rows = found["cost_at_equal_accuracy"]
    assert {row["unit"] for row in rows} == {"units", "seconds"}  # no joules without a measurement
    slow = row_of(rows, arm="slow", budget="2ep", unit="units")
    assert slow["top1"] == pytest.approx(0.58, abs=0.001)
    assert slow["ratio"] == pytest.approx(2.0, rel=0.02)
    assert slow["interval"][0] < 2
    assert slow["interval"][1] is None  # its largest budget gets just there
    never = row_of(rows, arm="slow", budget="4ep", unit="units")
    assert (never["reached"], never["ratio"], never["interval"]) == (False, None, [1.0, None])
    fast = row_of(rows, arm="fast", budget="4ep", unit="units")
    assert fast["ratio"] == pytest.approx(0.5, rel=0.02)
    assert 0.45 < fast["interval"][0] < 0.5 < fast["interval"][1] < 0.55
    below = row_of(rows, arm="fast", budget="1ep", unit="units")
    assert (below["reached"], below["ratio"], below["interval"]) == (True, None, [0.0, pytest.approx(1.0)])
    seconds = row_of(rows, arm="fast", budget="4ep", unit="seconds")
    assert 0.5 < seconds["ratio"] < 0.55  # evaluations take as long in a short run
    assert {row["unit"] for row in bench({"dense": DENSE, "a": DENSE}, j=1.0)["cost_at_equal_accuracy"]} >= {"joules"}


def test_accuracy_that_dense_had_for_less_has_no_cost():
    found = bench({"dense": (0.5, 0.6, 0.55), "memory": DENSE})
    assert {row["budget"] for row in found["cost_at_equal_accuracy"]} == {"1ep", "2ep"}


def test_one_budget_bounds_the_cost():
    one = [BUDGETS[0]]
    found = bench({"dense": DENSE[:1], "slow": HALF_AS_FAST[:1], "fast": TWICE_AS_FAST[:1]}, budgets=one)
    rows = found["cost_at_equal_accuracy"]
    assert row_of(rows, arm="slow", unit="units")["interval"] == [1.0, None]
    assert row_of(rows, arm="fast", unit="units")["interval"] == [0.0, 1.0]


def test_flat_curves_bound_nothing():
    found = bench({"dense": (0.50, 0.5001, 0.5002), "memory": (0.50, 0.5001, 0.5002)})
    rows = [row for row in found["cost_at_equal_accuracy"] if row["unit"] == "units"]
    assert {tuple(row["interval"]) for row in rows} == {(0.0, None)}
    assert found["verdict"]["sentences"][1].endswith(
        "(95 % interval: not bounded by the budgets tried): it may cost as much as dense."
    )


def test_seed_without_all_budgets_is_left_out_of_the_curve():
    curves = {"dense": DENSE, "memory": TWICE_AS_FAST}
    arms, runs = arms_of(*curves), []
    for arm, top1s in curves.items():
        for budget, top1 in zip(BUDGETS, top1s, strict=True):
            for seed in range(4):
                if (arm, budget["name"], seed) != ("memory", "1ep", 3):  # failed
                    summary = fake_summary(arm, budget["amount"], top1=top1 if seed < 3 else 0.0)
                    runs.append({"arm": arm, "budget": budget["name"], "seed": seed, "summary": summary})
    found = summarise(arms, BUDGETS, runs)
    assert row_of(found["points"], arm="memory", budget="1ep")["n"] == 3
    row = row_of(found["cost_at_equal_accuracy"], arm="memory", budget="4ep", unit="units")
    assert (row["top1"], row["ratio"]) == (pytest.approx(0.64), pytest.approx(0.5))


def test_winner_beats_dense_and_random():
    found = bench({"dense": DENSE, "random:target=0.3": DENSE, "memory": TWICE_AS_FAST}, num_seeds=5)
    assert found["verdict"]["winners"] == ["memory"]
    who, what = found["verdict"]["sentences"]
    assert who.startswith("memory wins: it is more accurate than dense and random:target=0.3 for the same budget (+8")
    assert what.startswith("The accuracy of dense with 4ep (64.0 %) costs memory 0.50 times the work (95 % interval: ")
    found = bench({"dense": DENSE, "random": TWICE_AS_FAST, "memory": TWICE_AS_FAST}, num_seeds=5)
    assert found["verdict"]["winners"] == ["random"]  # memory is no better than it
    assert found["verdict"]["sentences"][0].startswith(
        "random wins: it is more accurate than dense for the same budget ("
    )


def test_no_winner_is_a_verdict():
    found = bench({"dense": DENSE, "random": HALF_AS_FAST, "memory": DENSE})
    assert found["verdict"]["winners"] == []
    who, what = found["verdict"]["sentences"]
    assert who == (
        "No arm is shown to be more accurate than dense and random for the same budget; random is less accurate than "
        "dense."
    )
    assert what.endswith(": it may cost as much as dense.")


def test_verdict_without_a_ratio():
    what = bench({"dense": DENSE, "memory": (0.1, 0.2, 0.3)})["verdict"]["sentences"][1]
    assert what.startswith("memory does not reach the accuracy of dense with 4ep (64.0 %) with the budgets tried (95 %")
    what = bench({"dense": DENSE, "memory": (0.7, 0.8, 0.9)})["verdict"]["sentences"][1]
    assert what.startswith("memory reaches the accuracy of dense with 4ep (64.0 %) for less than its smallest budget (")


def test_dense_with_options_is_the_baseline_where_plain_dense_is_not_named():
    found = bench({"dense:lr=0.02": DENSE, "memory": DENSE})
    assert {row["against"] for row in found["paired"]} == {"dense:lr=0.02"}
    found = bench({"dense:lr=0.02": DENSE, "dense": DENSE})
    assert {(row["arm"], row["against"]) for row in found["paired"]} == {("dense:lr=0.02", "dense")}


def test_peer_is_no_baseline():
    runs = [
        {"arm": arm, "budget": "1ep", "seed": seed, "summary": {"accuracy": {"val_top1": 0.5 + 0.01 * seed}}}
        for arm in ("dense", "random")
        for seed in range(3)
    ]
    arms = [*arms_of("dense"), {"name": "random", "options": {}, "peer": True}]
    found = summarise(arms, BUDGETS[:1], runs)
    assert [(row["arm"], row["against"]) for row in found["paired"]] == [("random", "dense")]
    assert found["points"][1]["units"] is None  # it counted nothing
    assert found["cost_at_equal_accuracy"] == []


def test_no_runs_are_no_results():
    found = summarise(arms_of("dense", "memory"), BUDGETS, [])
    assert (found["points"], found["paired"], found["cost_at_equal_accuracy"]) == ([], [], [])
    assert len(found["verdict"]["sentences"]) == 1
