"""What the dense path and the gates should reach on a GPU, and whether a results file says that they do."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu.dense import PLAIN_LAST
from benchmarks.gpu.loops import MODES

MET, MISSED, NOT_MEASURED = "met", "missed", "not measured"
H200_RATE = 4500.0  # synthetic pictures a second, ResNet-50 at 224 px
OVER_PLAIN = 1.3
OF_SYNTHETIC = 0.9
OF_CEILING = {"forward": 0.90, "proxy": 0.85, "memory": 0.85, "random": 0.85}
SAVINGS_GAP = 0.10
T4_GB = 15.0


def targets(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Every target with what was found: {"what", "goal", "found" (None if unknown), "verdict", "reason"}."""
    return [*_dense(results), *_fed(results), *_gates(results), *_memory(results)]


def _judged(
    results: dict[str, Any], item: str, what: str, goal: str, found: float | None, met: bool, reason: str | None = None
) -> dict[str, Any]:
    if results.get("tiny"):
        found, reason = None, "a dry run: its figures mean nothing"
    elif found is None and reason is None:
        entry = results["items"].get(item)
        reason = "not tried" if entry is None else entry["reason"] or "the item left it out"
    verdict = NOT_MEASURED if found is None else MET if met else MISSED
    return {"what": what, "goal": goal, "found": found, "verdict": verdict, "reason": None if found else reason}


def _figures(results: dict[str, Any], item: str) -> dict[str, Any]:
    return results["items"].get(item, {}).get("figures", {})


def _dense(results: dict[str, Any]) -> list[dict[str, Any]]:
    rate = times = None
    for item in ("dense", "dense_large"):
        rates = _figures(results, item).get("rates", {})
        best = max((rates[name]["images_per_s"] for name in MODES if name in rates), default=None)
        if best is not None and (rate is None or best > rate):
            rate = best
            times = best / rates[PLAIN_LAST]["images_per_s"] if PLAIN_LAST in rates else None
    name = results.get("hardware", {}).get("name", "")
    is_h200 = "H200" in name
    return [
        _judged(
            results,
            "dense",
            f"dense, synthetic: times the {PLAIN_LAST}",
            f">= {OVER_PLAIN:g}",
            times,
            times is not None and times >= OVER_PLAIN,
        ),
        _judged(
            results,
            "dense",
            "dense, synthetic, one H200: images/s",
            f">= {H200_RATE:,.0f}",
            rate if is_h200 else None,
            rate is not None and rate >= H200_RATE,
            None if is_h200 else f"this is {name or 'unknown hardware'}",
        ),
    ]


def _fed(results: dict[str, Any]) -> list[dict[str, Any]]:
    sets = _figures(results, "fed").get("sets", {})
    shares = [entry["share_of_synthetic"] for entry in sets.values() if "share_of_synthetic" in entry]
    share = min(shares, default=None)
    met = share is not None and share >= OF_SYNTHETIC
    return [_judged(results, "fed", "dense, from JPEGs: share of synthetic", f">= {OF_SYNTHETIC:g}", share, met)]


def _gates(results: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    for percent in (10, 30):
        item = f"gates_{percent}"
        rows = {row["name"]: row for row in _figures(results, item).get("rows", [])}
        for gate, goal in OF_CEILING.items():
            row = rows.get(gate, {})
            share = row.get("share_of_machine_ceiling")
            met = share is not None and share >= goal
            what = f"{gate} at {percent} %: share of its ceiling"
            found.append(_judged(results, item, what, f">= {goal:g}", share, met))
            energy = row.get("energy", {})
            measured, arithmetic = energy.get("savings_measured"), energy.get("savings_arithmetic")
            gap = None if measured is None else measured - arithmetic
            met = gap is not None and abs(gap) <= SAVINGS_GAP
            what = f"{gate} at {percent} %: measured less arithmetic savings"
            goal_text = f"within {SAVINGS_GAP:g}"
            found.append(_judged(results, item, what, goal_text, gap, met, energy.get("reason")))
    return found


def _memory(results: dict[str, Any]) -> list[dict[str, Any]]:
    figures = _figures(results, "precisions")
    peak = figures.get("fp16_reserved_gb")
    met = peak is not None and peak < T4_GB
    what = "fp16 at batch 128: GB of GPU memory, for a T4"
    return [_judged(results, "precisions", what, f"< {T4_GB:g}", peak, met, figures.get("fp16_note"))]
