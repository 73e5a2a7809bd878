"""The verdict of a bench by fixed rules: which gate beats its baselines.

A gate is better than a baseline if its mean final top-1 is higher by more than 2 standard errors of the difference
(the root of the sum of the two squared standard errors), worse if it is lower by as much; anything less shows nothing.
It wins if it is better than `random` at its share and than every dense run of its budget: the same forward units, the
same time, and the same joules where joules were measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastast.bench.matrix import EQUAL_BUDGET, GATE, JOULES, SHARE, TIME, TOLERANCE, UNITS

BETTER, WORSE, SAME, UNKNOWN = "better", "worse", "no difference shown", "not compared"
ERRORS = 2.0
MEANING = {
    SHARE: "random at equal share",
    UNITS: "dense at equal forward units",
    TIME: "dense at equal time",
    JOULES: "dense at equal joules",
}
NOT_MEASURED = "not measured"


def compare(mine: Mapping[str, Any], other: Mapping[str, Any] | None) -> str:
    """Whether a row's top-1 is better or worse than another's; "not compared" with fewer than two seeds each."""
    if other is None:
        return UNKNOWN
    one, two = mine["val_top1"], other["val_top1"]
    if None in (one["mean"], one["se"], two["mean"], two["se"]):
        return UNKNOWN
    difference = one["mean"] - two["mean"]
    if abs(difference) <= ERRORS * math.hypot(one["se"], two["se"]):
        return SAME
    return BETTER if difference > 0 else WORSE


def judge(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The verdict over all gates.

    Returns:
        text: the verdict in words, a line each; winners: gates that win; gates: for each gate `against` (the outcome
        by role), `beats_dense`, `beats_random` (null where it has no such baseline, or one seed) and `gpu_j`.
    """
    found = {(row["role"], row["for"] or row["gate"]): row for row in rows}
    gates, lines = [], []
    for row in (row for row in rows if row["role"] == GATE):
        gate = row["gate"]
        others = {role: found.get((role, gate)) for role in MEANING}
        against = {role: compare(row, other) for role, other in others.items() if other is not None}
        budget = [outcome for role, outcome in against.items() if role in EQUAL_BUDGET]
        share = [against[SHARE]] if SHARE in against else []
        beats = {"beats_dense": _all_better(budget), "beats_random": _all_better(share)}
        gates.append({"gate": gate, "against": against, **beats, "gpu_j": row["gpu_j"]})
        outcomes = [f"{MEANING[role]} ({_shown(others[role])}): {outcome}" for role, outcome in against.items()]
        lines.append(f"{gate}: top-1 {top1(row)}, {joules(row)}. Against " + "; ".join(outcomes or ["nothing"]) + ".")
    winners = [gate["gate"] for gate in gates if gate["beats_dense"] and gate["beats_random"]]
    return {"text": "\n".join([*_conclusions(gates, winners), *lines]), "winners": winners, "gates": gates}


def _all_better(outcomes: Sequence[str]) -> bool | None:
    if not outcomes or UNKNOWN in outcomes:
        return None
    return all(outcome == BETTER for outcome in outcomes)


def _shown(row: Mapping[str, Any] | None) -> str:
    """A baseline's top-1, with the ratio to its gate's cost where the two do not match."""
    match = None if row is None else row["match"]["mean"]
    if match is None or abs(match - 1) <= TOLERANCE:
        return top1(row)
    return f"{top1(row)}, matched at {match:.2f}"


def _conclusions(gates: Sequence[Mapping[str, Any]], winners: Sequence[str]) -> list[str]:
    """The first lines of the verdict."""
    known = [gate for gate in gates if gate["beats_dense"] is not None or gate["beats_random"] is not None]
    if not known:
        return ["No verdict: a comparison needs two seeds at least on both sides."]
    lines = []
    for gate in sorted(known, key=lambda gate: gate["gate"] not in winners):
        outcomes = {"dense at equal budget": gate["beats_dense"], "random at equal share": gate["beats_random"]}
        if any(outcomes.values()):
            beaten = " and ".join(name for name, is_better in outcomes.items() if is_better)
            lines.append(f"{gate['gate']} beats {beaten} ({joules(gate)}).")
    if not any(gate["beats_dense"] for gate in known):
        lines.append("No gate beats dense at equal budget here.")
    if any(gate["beats_random"] is not None for gate in known) and not any(gate["beats_random"] for gate in known):
        lines.append("No gate beats random here.")
    return lines


def top1(row: Mapping[str, Any] | None) -> str:
    """Final top-1 in percent with its standard error."""
    mean, error = (row["val_top1"][key] for key in ("mean", "se")) if row is not None else (None, None)
    if mean is None:
        return NOT_MEASURED
    return f"{100 * mean:.2f} %" if error is None else f"{100 * mean:.2f} +- {100 * error:.2f} %"


def joules(row: Mapping[str, Any]) -> str:
    """GPU joules of the whole run, of a row or of a gate's verdict."""
    mean = row["gpu_j"]["mean"]
    return "joules not measured" if mean is None else f"{mean:,.0f} J"
