"""What the runs of a bench say: accuracy and cost of each arm, differences, cost at equal accuracy, the verdict.

The figures are made from summaries alone, so that arms that another program ran can stand beside those of the bench.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastast.bench.cost_ratio import CostRatio, cost_ratio
from fastast.bench.student import LEVEL, MIN_SEEDS, PairedTest, holm, paired_test
from fastast.bench.verdict import BETTER, SAME, UNKNOWN, WORSE, judge

# Costs by which arms are compared, by their place in a summary: each of the whole run, evaluation included.
COSTS = {"units": ("compute", "forward_units"), "seconds": ("time_s", "total"), "joules": ("energy", "gpu_j")}
# Further figures of a point. `share`: of the offered samples of the gated part that was trained.
MORE = {"train_seconds": ("time_s", "train"), "share": ("gate", "activation_rate")}

BALANCED = "balanced_top1"  # the key of the second accuracy, which equals the first where classes are of one size

Run = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Cells:
    """The runs of a bench by their place in the matrix.

    Attributes:
        arms: `{"name", "options"}`, of which `options["gate"]` names the gate.
        budgets: `{"name", "kind", "amount"}`, the smallest first.
        summaries: of runs that came out, by arm, budget and seed.
        metric: the key of the accuracy in a summary's `accuracy`.
    """

    arms: Sequence[Mapping[str, Any]]
    budgets: Sequence[Mapping[str, Any]]
    summaries: Mapping[tuple[str, str, int], Run]
    metric: str

    def seeds(self, arm: str, budget: str) -> list[int]:
        """Seeds of the runs that have an accuracy."""
        return sorted(
            seed
            for (name, level, seed), summary in self.summaries.items()
            if (name, level) == (arm, budget) and figure(summary, "accuracy", self.metric) is not None
        )

    def values(self, arm: str, budget: str, seeds: Sequence[int], place: tuple[str, str] | None = None) -> list[Any]:
        """A figure of these runs by its place in the summary, by default the accuracy; None where not measured."""
        group, key = place or ("accuracy", self.metric)
        return [figure(self.summaries[arm, budget, seed], group, key) for seed in seeds]

    @property
    def dense(self) -> str | None:
        """The arm that costs are compared with: `dense`, or else the first arm of this gate."""
        names = [arm["name"] for arm in self.arms if gate_of(arm) == "dense" and not arm.get("peer")]
        return "dense" if "dense" in names else next(iter(names), None)

    @property
    def picture(self) -> float:
        """How much accuracy one validation picture is; 0 if no run says."""
        counts = [figure(summary, "data", "val") for summary in self.summaries.values()]
        return 1 / min((count for count in counts if count), default=math.inf)


def summarise(
    arms: Sequence[Mapping[str, Any]],
    budgets: Sequence[Mapping[str, Any]],
    runs: Sequence[Run],
    *,
    metric: str = "val_top1",
) -> dict[str, Any]:
    """The results of a bench; fewer than three seeds give no intervals and no outcomes.

    Args:
        arms: `{"name", "options"}`; `options["gate"]`, or the name up to a colon, is `dense` and `random` for the
            baselines. `"peer": True`: another trainer, no baseline.
        budgets: `{"name", "kind", "amount"}`.
        runs: `{"arm", "budget", "seed", "summary"}`; of the summary only accuracy, counts, times and joules are read.
        metric: the key in `summary["accuracy"]` that accuracies are taken from.

    Returns:
        points: for each arm and budget with a run, mean and standard error of the accuracy and of the balanced one,
            and mean costs, null where a run has none. `seconds` and `joules` are of the whole run, `train_seconds` of
            training alone.
        probe: of the probe alone with which runs start, over the seeds: n, top1, units and seconds; null without one.
        paired: differences over the seeds in common, against dense and against the random arms, at the same budget.
            `interval` is of 95 %. `p` is Student's, corrected by Holm over all comparisons here, so that one in 20
            benches of equal arms calls any of them "better" or "worse" (p <= 0.05). `balanced`: the difference of
            the balanced accuracies and its interval, uncorrected; null where a run has none.
        cost_at_equal_accuracy: see `equal_accuracy`.
        verdict: its sentences, and the arms that win.
    """
    by_amount = sorted(budgets, key=lambda budget: budget["amount"])
    cells = Cells(arms, by_amount, {(run["arm"], run["budget"], run["seed"]): run["summary"] for run in runs}, metric)
    found = {"paired": _paired(cells), "cost_at_equal_accuracy": equal_accuracy(cells)}
    return {
        "points": _points(cells),
        "probe": _probe(cells),
        **found,
        "verdict": judge(arms, by_amount, cells.dense, **found),
    }


def equal_accuracy(cells: Cells) -> list[dict[str, Any]]:
    """Cost of each arm at the accuracies of dense, over dense's cost: 0.5 is half, in units, seconds and joules.

    Returns:
        Rows of arm, against, budget (dense's), top1 (dense's mean there), unit, and
        reached: whether the arm gets there with the budgets tried;
        ratio: null also where the arm is above that accuracy with its smallest budget already;
        interval: of 95 %. Its lower limit is 0 and its upper one null where the budgets tried do not bound the ratio
            ("at least 1.7": [1.7, null]); it is null as a whole with fewer than three seeds.
        Costs that not all runs measured have no row, nor has dense at a budget with which it is no better than with a
        smaller one: its cost of that accuracy is not known.
    """
    rows = []
    if cells.dense is None:
        return []
    best = -math.inf
    for budget in (budget["name"] for budget in cells.budgets):
        accuracies = cells.values(cells.dense, budget, cells.seeds(cells.dense, budget))
        if not accuracies or statistics.fmean(accuracies) <= best:
            continue
        best = statistics.fmean(accuracies)
        for arm in (arm["name"] for arm in cells.arms if arm["name"] != cells.dense):
            rows += [row for unit in COSTS if (row := _equal_accuracy(cells, arm, budget, unit)) is not None]
    return rows


def _equal_accuracy(cells: Cells, arm: str, budget: str, unit: str) -> dict[str, Any] | None:
    assert cells.dense is not None
    curve = [level["name"] for level in cells.budgets if cells.seeds(arm, level["name"])]
    complete = [set(cells.seeds(arm, level)) for level in curve]  # a seed counts with all of its curve
    seeds = sorted(set(cells.seeds(cells.dense, budget)).intersection(*complete))
    if not curve or not seeds:
        return None
    costs = [cells.values(arm, level, seeds, COSTS[unit]) for level in curve]
    dense_costs = cells.values(cells.dense, budget, seeds, COSTS[unit])
    if not all(cost is not None and cost > 0 for row in (*costs, dense_costs) for cost in row):
        return None
    accuracies = [cells.values(arm, level, seeds) for level in curve]
    dense_accuracies = cells.values(cells.dense, budget, seeds)
    order = sorted(range(len(curve)), key=lambda k: statistics.fmean(costs[k]))
    found = cost_ratio(
        np.array([costs[k] for k in order], np.float64).T,
        np.array([accuracies[k] for k in order], np.float64).T,
        np.array(dense_costs, np.float64),
        np.array(dense_accuracies, np.float64),
        cells.picture,
    )
    return {
        **{"arm": arm, "against": cells.dense, "budget": budget, "top1": statistics.fmean(dense_accuracies)},
        **{"unit": unit, "ratio": _known(found.ratio), "interval": _interval(found), "reached": bool(found.reached)},
    }


def _interval(found: CostRatio) -> list[float | None] | None:
    low, high = _known(found.low), _known(found.high)
    return None if low is None else [low, high]


def _known(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


def _points(cells: Cells) -> list[dict[str, Any]]:
    rows = []
    for arm in (arm["name"] for arm in cells.arms):
        for budget in (budget["name"] for budget in cells.budgets):
            seeds = cells.seeds(arm, budget)
            if not seeds:
                continue
            figures = {
                name: mean_and_error(cells.values(arm, budget, seeds, place))["mean"]
                for name, place in {**COSTS, **MORE}.items()
            }
            top1 = mean_and_error(cells.values(arm, budget, seeds))
            balanced = mean_and_error(cells.values(arm, budget, seeds, ("accuracy", BALANCED)))
            point = {"arm": arm, "budget": budget, "n": len(seeds), "top1": top1, "balanced_top1": balanced}
            rows.append({**point, **figures})
    return rows


def _probe(cells: Cells) -> dict[str, Any] | None:
    """What the probe alone has and costs, which is the same in every arm that starts from one."""
    probed = {
        seed: summary
        for (_, _, seed), summary in cells.summaries.items()
        if figure(summary, "accuracy", "probe_top1") is not None
    }
    if not probed:
        return None
    places = {"top1": ("accuracy", "probe_top1"), "units": ("probe", "forward_units"), "seconds": ("probe", "seconds")}
    found = {
        name: mean_and_error([figure(summary, *place) for summary in probed.values()]) for name, place in places.items()
    }
    return {
        "n": len(probed),
        "top1": found["top1"],
        "units": found["units"]["mean"],
        "seconds": found["seconds"]["mean"],
    }


def _paired(cells: Cells) -> list[dict[str, Any]]:
    """Every arm against dense, and every arm but dense against the random ones."""
    baselines = [cells.dense] if cells.dense is not None else []
    baselines += [arm["name"] for arm in cells.arms if gate_of(arm) == "random" and not arm.get("peer")]
    rows = []
    for place, against in enumerate(baselines):
        for arm in (arm["name"] for arm in cells.arms if arm["name"] not in baselines[: place + 1]):
            rows += [row for b in cells.budgets if (row := _difference(cells, arm, against, b["name"])) is not None]
    tested = [row for row in rows if row["p"] is not None]
    if tested:
        for row, p in zip(tested, holm([row["p"] for row in tested]).tolist(), strict=True):
            row["p"] = p
            row["outcome"] = SAME if p > 1 - LEVEL else BETTER if row["difference"] > 0 else WORSE
    return rows


def _difference(cells: Cells, arm: str, against: str, budget: str) -> dict[str, Any] | None:
    seeds = sorted(set(cells.seeds(arm, budget)) & set(cells.seeds(against, budget)))
    if not seeds:
        return None
    differences = np.subtract(cells.values(arm, budget, seeds), cells.values(against, budget, seeds))
    row = {"arm": arm, "against": against, "budget": budget, "n": len(seeds), "difference": float(differences.mean())}
    balanced = _balanced_difference(cells, arm, against, budget, seeds)
    if len(seeds) < MIN_SEEDS:
        return {**row, "interval": None, "p": None, "outcome": UNKNOWN, "balanced": balanced}
    test = paired_test(differences, cells.picture)
    return {**row, "interval": _limits(test), "p": float(test.p), "outcome": SAME, "balanced": balanced}


def _balanced_difference(
    cells: Cells, arm: str, against: str, budget: str, seeds: Sequence[int]
) -> dict[str, Any] | None:
    one, other = (cells.values(name, budget, seeds, ("accuracy", BALANCED)) for name in (arm, against))
    if None in (*one, *other):
        return None
    differences = np.subtract(one, other)
    interval = _limits(paired_test(differences, cells.picture)) if len(seeds) >= MIN_SEEDS else None
    return {"difference": float(differences.mean()), "interval": interval}


def _limits(test: PairedTest) -> list[float]:
    return [float(test.mean - test.half_width), float(test.mean + test.half_width)]


def gate_of(arm: Mapping[str, Any]) -> str:
    """The gate that an arm trains with."""
    return str(arm["options"].get("gate") or arm["name"].partition(":")[0])


def figure(summary: Run, group: str, key: str) -> Any:
    """A figure of a summary; None where it is missing."""
    return (summary.get(group) or {}).get(key)


def mean_and_error(values: Sequence[float | None]) -> dict[str, float | None]:
    """Mean and standard error (standard deviation of the sample / root of n); the error of one value is None.

    Both are None where any value is, so that every figure of a point is of the same runs.
    """
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return {"mean": None, "se": None}
    error = statistics.stdev(known) / math.sqrt(len(known)) if len(known) > 1 else None
    return {"mean": statistics.fmean(known), "se": error}
