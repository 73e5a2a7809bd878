"""Simulated benches whose truth is known: the rate of false alarms, and how often intervals hold the true ratio.

`python -m benchmarks.bench_statistics` measures more of it.
"""

import numpy as np
import pytest

from benchmarks.bench_statistics import BUDGETS, CURVES, coverage, false_alarms, simulate
from fastast.bench.cost_ratio import cost_ratio
from fastast.bench.statistics import summarise

NUM_BENCHES = 2000
ERROR = 3 * (0.05 * 0.95 / NUM_BENCHES) ** 0.5  # three standard errors of a rate of 5 %


@pytest.mark.parametrize("num_seeds", [3, 5, 10])
@pytest.mark.parametrize("num_arms", [2, 4])
def test_equal_arms_are_called_different_in_at_most_5_percent_of_benches(num_seeds, num_arms):
    rng = np.random.default_rng(num_seeds)
    ratios = [1.0] * (num_arms - 1)
    benches = simulate(rng, CURVES[0], BUDGETS[0], ratios, num_seeds=num_seeds, num_benches=NUM_BENCHES)
    rate = false_alarms(benches)
    assert 0.01 < rate < 0.05 + ERROR


@pytest.mark.parametrize("num_seeds", [3, 5, 10])
@pytest.mark.parametrize(("ratio", "curve"), [(2.0, 0), (0.5, 1), (1.5, 2)])
def test_interval_holds_the_true_ratio_95_percent_of_the_time(num_seeds, ratio, curve):
    rng = np.random.default_rng(num_seeds)
    budgets = BUDGETS[1]
    benches = simulate(rng, CURVES[curve], budgets, [ratio], num_seeds=num_seeds, num_benches=NUM_BENCHES)
    for unit in ("units", "seconds"):
        found = coverage(benches, budgets, ratio, unit)
        assert found["covered"] > 0.95 - ERROR
        assert found["closed"] > 0.2  # it does not hold the ratio by saying nothing


def test_more_seeds_narrow_the_interval():
    rng, budgets = np.random.default_rng(0), BUDGETS[1]
    widths = []
    for num_seeds in (3, 5, 10):
        benches = simulate(rng, CURVES[0], budgets, [2.0], num_seeds=num_seeds, num_benches=200)
        widths.append(coverage(benches, budgets, 2.0, "units")["width"])
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize("ratio", [0.5, 0.7, 1.0, 1.5, 2.0])
def test_ratio_without_noise_is_exact(ratio):
    budgets = np.array(BUDGETS[1])
    for curve in CURVES:
        accuracies = np.broadcast_to(curve.mean(budgets / ratio), (3, 4))
        costs = np.broadcast_to(budgets, (3, 4))
        for budget in budgets:
            found = cost_ratio(costs, accuracies, np.full(3, budget), np.full(3, curve.mean(budget)))
            reached = ratio * budget <= budgets[-1]
            assert bool(found.reached) == reached
            assert np.isfinite(found.ratio) == (reached and ratio * budget >= budgets[0])
            if np.isfinite(found.ratio):
                # The exponent is one of a few: curves bend a little differently between the budgets.
                assert found.ratio == pytest.approx(ratio, rel=0.01)


def test_summary_of_a_bench_is_that_of_many_at_once():
    budgets = BUDGETS[0]
    benches = simulate(np.random.default_rng(5), CURVES[0], budgets, [1.0, 1.7], num_seeds=4, num_benches=20)
    alarms = []
    for accuracies, seconds in zip(*benches, strict=True):
        runs = [
            {
                **{"arm": arm, "budget": f"{budget}ep", "seed": seed},
                "summary": {
                    "accuracy": {"val_top1": accuracies[i, seed, k]},
                    "compute": {"forward_units": budget},
                    "time_s": {"total": seconds[i, seed, k], "train": 1.0},
                },
            }
            for i, arm in enumerate(("dense", "random", "memory"))
            for k, budget in enumerate(budgets)
            for seed in range(4)
        ]
        arms = [{"name": name, "options": {"gate": name}} for name in ("dense", "random", "memory")]
        found = summarise(arms, [{"name": f"{b}ep", "kind": "ep", "amount": b} for b in budgets], runs)
        alarms.append(any(row["outcome"] in ("better", "worse") for row in found["paired"]))
        ratios = {(row["arm"], row["budget"], row["unit"]): row for row in found["cost_at_equal_accuracy"]}
        for i, arm in ((1, "random"), (2, "memory")):
            for k, budget in enumerate(budgets):
                for unit, costs in (("units", np.broadcast_to(budgets, accuracies.shape)), ("seconds", seconds)):
                    if (row := ratios.get((arm, f"{budget}ep", unit))) is not None:
                        one = cost_ratio(costs[i], accuracies[i], costs[0, :, k], accuracies[0, :, k])
                        assert row["reached"] == one.reached
                        assert row["ratio"] == (pytest.approx(one.ratio) if np.isfinite(one.ratio) else None)
    assert np.mean(alarms) == false_alarms(benches)
