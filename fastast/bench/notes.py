"""What a reader of a bench should know beside its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastast.bench.student import MIN_SEEDS


def notes_of(
    arms: Sequence[Mapping[str, Any]], result: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Lines about what is not known, and what makes the runs hard to compare.

    Args:
        arms: entries of `bench.json`.
        result: as of `fastast.bench.statistics.summarise`.
        runs: entries of `bench.json`.
    """
    lines = []
    if not any(arm["options"].get("gate") == "random" for arm in arms):
        lines.append(NO_RANDOM)
    if result["points"] and max(point["n"] for point in result["points"]) < MIN_SEEDS:
        lines.append(f"fewer than {MIN_SEEDS} seeds: no intervals and no outcomes")
    return [*lines, *_without_joules(runs), *_differences(runs)]


NO_RANDOM = (
    "no random arm: that a gate selects well shows only beside a random choice of as many samples; add, for example, "
    "random:target=0.3"
)


def _without_joules(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line if a run has no joules, with the reason that it gives."""
    without = [run["summary"]["energy"] for run in runs if run["summary"]["energy"]["gpu_j"] is None]
    if not without:
        return []
    reasons = sorted(without[0].get("notes", ()), key=lambda note: not note.startswith("GPU"))
    count = "" if len(without) == len(runs) else f" in {len(without)} of {len(runs)} runs"
    return [f"joules were not measured{count}" + (f": {reasons[0]}" if reasons else "")]


def _differences(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines about runs of different code, machines or pictures."""
    seen: dict[str, list[str]] = {"versions of the code": [], "machines": [], "data sets": []}
    for run in runs:
        summary = run["summary"]
        keys = (
            f"{summary['version']} {summary['commit'] or ''}".strip(),
            ", ".join(summary["hardware"]["names"]),
            str(summary["data"]["fingerprint"])[:12],
        )
        for found, key in zip(seen.values(), keys, strict=True):
            if key not in found:
                found.append(key)
    return [f"these runs are of several {what}: {'; '.join(found)}" for what, found in seen.items() if len(found) > 1]
