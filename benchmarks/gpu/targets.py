"""The targets of the dense path and of the gates on a GPU, and whether a results file shows that they are met."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu.dense import PLAIN_LAST
from benchmarks.gpu.training import MODES

H200_RATE = 4500.0  # synthetic pictures a second, ResNet-50 at 224 px
OF_CEILING = {"forward": 0.90, "memory": 0.85}


def targets(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Every target with its figure: {"what", "goal", "found" (None if unknown), "verdict", "reason"}."""
    judged: list[dict[str, Any]] = []

    def figures(item: str) -> dict[str, Any]:
        return results["items"].get(item, {}).get("figures", {})

    def judge(item: str, what: str, found: float | None, sign: str, goal: float, reason: str | None = None) -> None:
        if results.get("tiny"):
            found, reason = None, "a dry run: its figures mean nothing"
        elif found is None and reason is None:
            entry = results["items"].get(item)
            reason = "not tried" if entry is None else entry["reason"] or "the item did not report it"
        verdict = "not measured"
        if found is not None:
            met = found >= goal if sign == ">=" else found < goal if sign == "<" else abs(found) <= goal
            verdict, reason = ("met" if met else "missed"), None
        judged.append({"what": what, "goal": f"{sign} {goal:,g}", "found": found, "verdict": verdict, "reason": reason})

    rate = times = None
    for item in ("dense", "dense_large"):
        rates = {name: found["images_per_s"] for name, found in figures(item).get("rates", {}).items()}
        best = max((rates[name] for name in MODES if name in rates), default=None)
        if best is not None and (rate is None or best > rate):
            rate, times = best, best / rates[PLAIN_LAST] if PLAIN_LAST in rates else None
    judge("dense", f"dense, synthetic: times the {PLAIN_LAST}", times, ">=", 1.3)
    name = results.get("hardware", {}).get("name", "")
    rate, other = (rate, None) if "H200" in name else (None, f"this is {name or 'unknown hardware'}")
    judge("dense", "dense, synthetic, one H200: images/s", rate, ">=", H200_RATE, other)
    sets = figures("fed").get("sets", {}).values()
    share = min((entry["share_of_synthetic"] for entry in sets if "share_of_synthetic" in entry), default=None)
    judge("fed", "dense, from JPEGs: share of synthetic", share, ">=", 0.9)
    for item, percent in (("gates_10", "10 %"), ("gates_30", "30 %")):
        rows = {row["name"]: row for row in figures(item).get("rows", [])}
        for gate, goal in OF_CEILING.items():
            row = rows.get(gate, {})
            share, energy = row.get("share_of_machine_ceiling"), row.get("energy", {})
            judge(item, f"{gate} at {percent}: share of its ceiling", share, ">=", goal)
            measured = energy.get("savings_measured")
            gap = None if measured is None else measured - energy["savings_arithmetic"]
            what = f"{gate} at {percent}: measured less arithmetic savings"
            judge(item, what, gap, "within", 0.1, energy.get("reason"))
    memory, what = figures("precisions"), "fp16 at batch 128: GB of GPU memory, for a T4"
    judge("precisions", what, memory.get("fp16_reserved_gb"), "<", 15.0, memory.get("fp16_note"))
    return judged
