"""What the rounds of the gate benchmark add up to, and the table in Markdown."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.common import markdown_table, stamp
from fastast.energy.reading import MIN_INTERVAL_S, Reading

SHARE_GOAL = 0.85  # of the machine's ceiling
SPEED_GOALS = {("random", 0.1): 7.0, ("memory", 0.1): 7.0}  # times dense, in offered samples a second


def contender_row(
    name: str, target: float | None, rounds: list[dict[str, float]], counts: dict[str, int], arithmetic: float
) -> dict[str, Any]:
    """The figures of one contender.

    Args:
        name, target: of the contender.
        rounds: offered_per_s, speedup, ceiling and data_wait of each round.
        counts: samples over all rounds.
        arithmetic: the cost model's ceiling at the share that was trained.
    """
    shares = [figures["speedup"] / figures["ceiling"] for figures in rounds]
    speedups = [figures["speedup"] for figures in rounds]
    share, speedup = statistics.median(shares), statistics.median(speedups)
    goals = {}
    if name != "dense":
        goals["share_of_machine_ceiling"] = {"goal": SHARE_GOAL, "met": share >= SHARE_GOAL}
    wanted = SPEED_GOALS.get((name, target or 0.0))
    if wanted is not None:
        goals["speedup"] = {"goal": wanted, "met": speedup >= wanted}
    return {
        "name": name,
        "target": target,
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
    """Joules of one contender over all rounds, and what it saves compared with dense training.

    Args:
        used: its readings, training intervals only.
        offered: samples over all rounds.
        num_rounds: epochs; the counter is too coarse for epochs shorter than 2 s.
        arithmetic: the cost model's ceiling.
        dense_j: joules per offered sample in dense training, or None.
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


def rows_table(rows: list[dict[str, Any]]) -> str:
    """The contenders' rows as a table, with joules where they were measured."""
    columns = ["gate", "target", "trained", "offered/s", "times dense", "arithmetic ceiling", "machine's ceiling"]
    columns += ["share of it", "goals"]
    energy = {"j_per_offered": ".4f", "savings_measured": ".0%", "savings_arithmetic": ".0%"}
    measured = any("energy" in row for row in rows)
    if measured:
        columns += ["J an offered sample", "measured savings", "arithmetic savings"]
    goal_names = {"share_of_machine_ceiling": "{:.0%} of it", "speedup": "{:g} x"}
    cells = []
    for row in rows:
        low, high = row["speedup_range"]
        goals = [
            f"{goal_names[name].format(goal['goal'])}: {'met' if goal['met'] else 'missed'}"
            for name, goal in row["goals"].items()
        ]
        found = {key: row.get("energy", {}).get(key) for key in energy if measured}
        cells.append(
            (
                row["name"],
                "" if row["target"] is None else format(row["target"], ".0%"),
                f"{row['activation']:.1%}",
                f"{row['offered_per_s']:.0f}",
                f"{row['speedup']:.2f} ({low:.2f}-{high:.2f})",
                f"{row['arithmetic_ceiling']:.2f}",
                f"{row['machine_ceiling']:.2f}",
                f"{row['share_of_machine_ceiling']:.0%}",
                ", ".join(goals),
                *(None if value is None else format(value, energy[key]) for key, value in found.items()),
            )
        )
    return markdown_table(columns, cells)


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    times = {key: statistics.median(found[key] for found in result["times_ms"]) for key in "tfd"}
    hardware = result["hardware"]
    return f"""\
**Speed**: {result["arch"]} at {result["image_size"]} px, batch {result["batch_size"]}, {result["count"]:,} JPEGs an \
epoch; contenders took turns, n = {result["n"]} epochs each; medians, and the range over the rounds.

{rows_table(result["rows"])}

Measured alone in the same rounds, ms a sample: forward, backward and step {times["t"]:.2f}, scoring forward \
{times["f"]:.2f}, decode {times["d"]:.2f}. Rows forward and backward in training and rows scored were counted by hooks \
as well, and agree with the run's own counts and with the cost model to the sample; decodes are the loader's count, \
and agree with the cost model. Evaluation and planning are not included; `infobatch` is shown without its dense last \
12.5 %.

{hardware["name"]}, {hardware["threads"]} threads, seed {result["seed"]}; {stamp(result)}. `{result["command"]}`
"""
