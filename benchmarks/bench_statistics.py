"""How often the statistics of `fastast bench` are wrong, on simulated benches whose truth is known.

    python -m benchmarks.bench_statistics [--benches 2000] [--out FILE]

False alarms: benches of equal arms in which any arm is called better or worse. Coverage: how often the 95 % interval of
the cost at equal accuracy holds the true ratio, over several curves, budgets and kinds of noise.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common import command_line, make_parser, markdown_table, provenance, publish, stamp
from fastast.bench.cost_ratio import cost_ratio
from fastast.bench.student import LEVEL, holm, paired_test

Array = NDArray[np.float64]
NUM_SEEDS = (3, 5, 10)
RATIOS = (0.5, 0.7, 1.0, 1.5, 2.0)
BUDGETS = ((0.5, 1.0, 2.0), (1.0, 2.0, 4.0, 8.0))


class Curve(NamedTuple):
    """Mean accuracy over cost, end - gap * cost ** -power, and its noise."""

    end: float
    gap: float
    power: float
    shared_sd: float = 0.004  # of what a seed does to all arms
    run_sd: float = 0.006  # of a single run at cost 1; at cost c it is this / c ** 0.25

    def mean(self, cost: Array) -> Array:
        """Accuracy without noise."""
        return self.end - self.gap * cost**-self.power


# From 45 to 58 % (a hard set), 75 to 83 % (an easy one), and 40 to 65 % with little noise (a large validation set).
CURVES = (Curve(0.70, 0.25, 0.5), Curve(0.85, 0.10, 0.9), Curve(0.90, 0.50, 0.35, 0.002, 0.003))


class Simulated(NamedTuple):
    """Accuracies and seconds of `N` benches, [N, arms, seeds, budgets]; the first arm is dense."""

    accuracies: Array
    seconds: Array


def simulate(
    rng: np.random.Generator,
    curve: Curve,
    budgets: Sequence[float],
    ratios: Sequence[float],
    *,
    num_seeds: int,
    num_benches: int,
    heavy_tails: bool = False,
) -> Simulated:
    """Benches whose arms follow the same curve at `ratios` times its cost, each budget costing its amount.

    Args:
        rng: source of the noise.
        curve: of dense.
        budgets: amounts.
        ratios: of each arm beside dense.
        num_seeds: in each bench.
        num_benches: N.
        heavy_tails: noise by Laplace's distribution instead of the normal one.
    """
    draw = (lambda size: rng.laplace(0, 0.5**0.5, size)) if heavy_tails else (lambda size: rng.normal(0, 1, size))
    costs = np.array(budgets)
    means = np.array([curve.mean(costs / ratio) for ratio in (1.0, *ratios)])
    shape = (num_benches, len(means), num_seeds, len(costs))
    shared = curve.shared_sd * draw((num_benches, 1, num_seeds, 1))
    accuracies = means[:, None] + shared + curve.run_sd * costs**-0.25 * draw(shape)
    drift = 1 + 0.1 * rng.uniform(-1, 1, (num_benches, 1, num_seeds, 1))  # of the machine, from seed to seed
    seconds = costs * drift * np.exp(0.02 * draw(shape))
    return Simulated(accuracies, seconds)


def false_alarms(benches: Simulated, num_random: int = 1) -> float:
    """Share of the benches in which an arm is called better or worse than dense, or than one of the random arms.

    Args:
        benches: of equal arms.
        num_random: arms after dense that are random.
    """
    accuracies = benches.accuracies
    arms, p = accuracies.shape[1], []
    for against in range(1 + num_random):
        for arm in range(against + 1, arms):
            differences = np.moveaxis(accuracies[:, arm] - accuracies[:, against], 1, -1)  # [N, budgets, seeds]
            p.append(paired_test(differences).p)
    return float((holm(np.concatenate(p, -1)) <= 1 - LEVEL).any(-1).mean())


def coverage(benches: Simulated, budgets: Sequence[float], ratio: float, unit: str) -> dict[str, float]:
    """How the intervals of the second arm's cost do, over dense's budgets.

    Args:
        benches: of two arms.
        budgets: amounts.
        ratio: the true one.
        unit: "units", of which each budget takes its amount exactly, or "seconds".

    Returns:
        covered: share of the intervals that hold the ratio; closed: share that have both limits; width: median of
        upper / lower limit of these.
    """
    amounts = np.broadcast_to(np.array(budgets), benches.accuracies.shape)
    costs = amounts if unit == "units" else benches.seconds
    covered, closed, widths = [], [], []
    for place in range(len(budgets)):
        found = cost_ratio(
            costs[:, 1], benches.accuracies[:, 1], costs[:, 0, :, place], benches.accuracies[:, 0, :, place]
        )
        covered.append((found.low <= ratio) & (ratio <= found.high))
        has_both = (found.low > 0) & np.isfinite(found.high)
        closed.append(has_both)
        widths.append(found.high[has_both] / found.low[has_both])
    width = np.concatenate(widths)
    return {
        "covered": float(np.mean(covered)),
        "closed": float(np.mean(closed)),
        "width": float(np.median(width)) if len(width) else float("nan"),
    }


def measure(num_benches: int, seed: int) -> dict[str, Any]:
    """False alarms and coverage for each number of seeds."""
    rng = np.random.default_rng(seed)
    alarms, covers = [], []
    for num_seeds, heavy_tails, num_arms in itertools.product(NUM_SEEDS, (False, True), (2, 4, 6)):
        benches = simulate(
            *(rng, CURVES[0], BUDGETS[0], [1.0] * (num_arms - 1)),
            num_seeds=num_seeds,
            num_benches=num_benches,
            heavy_tails=heavy_tails,
        )
        rate = false_alarms(benches)
        alarms.append({"seeds": num_seeds, "arms": num_arms, "heavy_tails": heavy_tails, "false_alarms": rate})
    for ratio, num_seeds in itertools.product(RATIOS, NUM_SEEDS):
        row: dict[str, Any] = {"ratio": ratio, "seeds": num_seeds}
        for unit in ("units", "seconds"):
            found = []
            for curve, budgets in itertools.product(CURVES, BUDGETS):
                benches = simulate(rng, curve, budgets, [ratio], num_seeds=num_seeds, num_benches=num_benches)
                found.append(coverage(benches, budgets, ratio, unit))
            row[unit] = {
                "covered": float(np.mean([one["covered"] for one in found])),
                "least_covered": min(one["covered"] for one in found),
                "closed": float(np.mean([one["closed"] for one in found])),
                "width": float(np.nanmedian([one["width"] for one in found])),
            }
        covers.append(row)
    return {"false_alarms": alarms, "coverage": covers}


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    alarms = [
        (row["arms"], row["seeds"], "heavy tails" if row["heavy_tails"] else "normal", f"{row['false_alarms']:.1%}")
        for row in result["false_alarms"]
    ]
    covers = [
        (
            f"{row['ratio']:g}",
            row["seeds"],
            *(f"{row[unit][key]:.1%}" for unit in ("units", "seconds") for key in ("covered", "least_covered")),
            *(f"{row['units']['closed']:.0%}", f"{row['units']['width']:.2f}"),
        )
        for row in result["coverage"]
    ]
    first = markdown_table(("arms", "seeds", "noise", "benches with a false alarm"), alarms)
    columns = ("true ratio", "seeds", "units", "least", "seconds", "least", "both limits", "upper / lower")
    return f"""\
**How often the statistics of `fastast bench` are wrong**: {result["benches"]:,} simulated benches for each row, \
of which the truth is known. Noise of a seed is shared by its arms, and each run has its own.

Equal arms, three budgets, dense and one random arm as baselines: benches in which anything at all is called better or
worse (5 % are meant).

{first}

The 95 % interval of the cost at equal accuracy: how often it holds the true ratio, on average over three curves and two
sets of budgets, and in the least favourable of them; in units, which each budget takes exactly, and in seconds, which
vary by 2 % and with the machine. An interval whose limits the budgets tried do not bound is open; it counts here too.

{markdown_table(columns, covers)}

{stamp(result)}. `{result["command"]}`
"""


def main(argv: list[str] | None = None) -> None:
    parser = make_parser("benchmarks.bench_statistics", __doc__)
    parser.add_argument("--benches", type=int, default=2000, help="simulated for each row")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    result = {
        "title": "False alarms and coverage of the statistics of `fastast bench`, simulated",
        **{"command": command_line(parser, args), "benches": args.benches},
        **measure(args.benches, args.seed),
        **provenance(torch.device("cpu")),
    }
    publish(result, args.out, table)


if __name__ == "__main__":
    main()
