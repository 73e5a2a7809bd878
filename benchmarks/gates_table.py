"""What the rounds of the gates' benchmark add up to, and the table in Markdown."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.common import stamp
from fastast.energy.reading import MIN_INTERVAL_S, Reading

SHARE_GOAL = 0.85  # of the machine's ceiling
COLUMNS = (
    *("gate", "target", "trained", "offered/s", "times dense"),
    *("arithmetic ceiling", "machine's ceiling", "share of it", "goals"),
)
SPEED_GOALS = {("random", 0.1): 7.0, ("memory", 0.1): 7.0}  # times dense, in offered samples a second


def contender_row(
    entry: dict[str, Any], rounds: list[dict[str, float]], counts: dict[str, int], arithmetic: float
) -> dict[str, Any]:
    """One contender's figures.

    Args:
        entry: its name and options.
        rounds: of each round offered_per_s, speedup, ceiling and data_wait.
        counts: samples over all rounds.
        arithmetic: the cost model's ceiling at the share really trained.
    """
    shares = [figures["speedup"] / figures["ceiling"] for figures in rounds]
    speedups = [figures["speedup"] for figures in rounds]
    share, speedup = statistics.median(shares), statistics.median(speedups)
    goals = {}
    if entry["gate"] != "dense":
        goals["share_of_machine_ceiling"] = {"goal": SHARE_GOAL, "met": share >= SHARE_GOAL}
    wanted = SPEED_GOALS.get((entry["gate"], entry["target"]))
    if wanted is not None:
        goals["speedup"] = {"goal": wanted, "met": speedup >= wanted}
    return {
        **entry,
        "n": len(rounds),
        "activation": counts["backward"] / counts["offered"],
        "offered_per_s": statistics.median(figures["offered_per_s"] for figures in rounds),
        "speedup": speedup,
        "speedup_range": [min(speedups), max(speedups)],
        "arithmetic_ceiling": arithmetic,
        "machine_ceiling": statistics.median(figures["ceiling"] for figures in rounds),
        "share_of_machine_ceiling": share,
        "share_range": [min(shares), max(shares)],
        "data_wait_share": statistics.median(figures["data_wait"] for figures in rounds),
        "goals": goals,
        "counts": counts,
    }


def energy_figures(
    used: Reading, offered: int, num_rounds: int, arithmetic: float, dense_j: float | None
) -> dict[str, Any]:
    """Joules of one contender over all rounds, and what it saves of dense training's.

    Args:
        used: its readings, training intervals only.
        offered: samples over all rounds.
        num_rounds: epochs; the counter is too coarse for one shorter than 2 s.
        arithmetic: the cost model's ceiling, 3 / forward units a sample.
        dense_j: joules of an offered sample in dense training, or None.
    """
    short = used.seconds < MIN_INTERVAL_S * num_rounds
    joules = None if short or used.joules is None else used.joules / offered
    measured = None if joules is None or dense_j is None else 1 - joules / dense_j
    reason = "epochs under 2 s" if short else None if joules is not None else used.gpu_reason or "; ".join(used.notes)
    return {
        "j_per_offered": joules,
        "watts": None if short else used.watts,
        "source": None if short else used.source,
        "savings_measured": measured,
        "savings_arithmetic": 1 - 1 / arithmetic,
        "reason": reason,
        "conditions": used.conditions,
    }


def table(result: dict[str, Any]) -> str:
    """The rows as Markdown."""
    lines = [
        f"**Speed**: {result['arch']} at {result['image_size']} px, batch {result['batch_size']}, "
        f"{result['count']:,} JPEGs an epoch; contenders took turns, n = {result['n']} epochs each; medians, and the "
        "range over the rounds.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|---|" + "---:|" * (len(COLUMNS) - 2) + "---|",
    ]
    for row in result["rows"]:
        low, high = row["speedup_range"]
        goals = [f"{name}: {'met' if goal['met'] else 'missed'}" for name, goal in _goals(row)]
        lines.append(
            f"| {row['name']} | {'' if row['target'] is None else format(row['target'], '.0%')} | "
            f"{row['activation']:.1%} | {row['offered_per_s']:.0f} | {row['speedup']:.2f} ({low:.2f}-{high:.2f}) | "
            f"{row['arithmetic_ceiling']:.2f} | {row['machine_ceiling']:.2f} | "
            f"{row['share_of_machine_ceiling']:.0%} | {', '.join(goals)} |"
        )
    times = {key: statistics.median(found[key] for found in result["times_ms"]) for key in result["times_ms"][0]}
    own = ", ".join(f"{_LONG[key]} {times[key]:.2f}" for key in "tfd")
    hardware = result["hardware"]
    lines += [
        "",
        f"Measured alone in the same rounds, ms a sample: {own}"
        + "".join(f"; {key[2:]}: {_SHORT[key[0]]} {value:.2f}" for key, value in times.items() if len(key) > 1)
        + ". Rows forward and backward in training and rows scored were counted by hooks as well, and agree with the "
        "run's account and the cost model to the sample; decodes are the loader's count, and agree with it. Refreshes, "
        "checks of the ranking and a proxy network's training are the run's own account. Evaluation and planning are "
        "left out; `infobatch` is shown without its dense last 12.5 %.",
        "",
        f"{hardware['name']}, {hardware['threads']} threads, seed {result['seed']}; {stamp(result)}. "
        f"`{result['command']}`",
        "",
    ]
    return "\n".join(lines)


_LONG = {"t": "forward, backward and step", "f": "scoring forward", "d": "decode"}
_SHORT = {"f": "scoring and own training", "d": "thumbnail decode"}


def _goals(row: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    shown = {"share_of_machine_ceiling": "{:.0%} of it", "speedup": "{:g} x"}
    return [(shown[name].format(goal["goal"]), goal) for name, goal in row["goals"].items()]
