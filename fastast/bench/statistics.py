"""Means and standard errors over the seeds, for each place in the comparison."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from fastast.bench.matrix import DENSE, JOULES, SHARE, TIME, UNITS

# What a baseline is matched to its gate by.
MATCHED = {
    UNITS: ("compute", "forward_units"),
    TIME: ("time_s", "train"),
    JOULES: ("energy", "train_gpu_j"),
    SHARE: ("gate", "activation_rate"),
}
# Figures taken from the summary, by their name in a row.
FROM_SUMMARY = {
    "val_top1": ("accuracy", "val_top1"),
    "val_top5": ("accuracy", "val_top5"),
    "best_val_top1": ("accuracy", "best_val_top1"),
    "offered_per_s": ("throughput", "offered_per_s"),
    "speedup_ceiling": ("compute", "speedup_ceiling"),
    **{
        name: ("energy", name)
        for name in (
            *("savings_estimated", "savings_arithmetic", "savings_measured"),
            *("run_savings_estimated", "run_savings_arithmetic", "run_savings_measured"),
            *("gpu_j", "train_gpu_j", "cpu_j"),
        )
    },
    "activation": ("gate", "activation_rate"),
    "forward_units": ("compute", "forward_units"),
    "train_s": ("time_s", "train"),
    "total_s": ("time_s", "total"),
    "data_wait_s": ("time_s", "data_wait"),
    "nonfinite_steps": ("samples", "nonfinite_steps"),
}


def metrics(
    summary: Mapping[str, Any],
    dense: Mapping[str, Any] | None = None,
    parts: Mapping[str, Mapping[str, float]] | None = None,
) -> dict[str, float | None]:
    """The figures of one run; None where one was not measured.

    Beside those of the summary:

    speedup                    offered images per second over dense's with the same seed, both of the gated part;
    run_speedup                dense's seconds of training over this run's, warm-up and anneal included;
    share_of_ceiling           speedup / speedup_ceiling;
    machine_ceiling            largest speed-up by the parts of training, timed on this machine;
    share_of_machine_ceiling   speedup / machine_ceiling;
    run_activation             selected / offered, of the whole run;
    data_wait                  share of the training time in which the loop waited for pictures.

    Args:
        summary: of the run.
        dense: of the dense run with the same seed; None if it failed.
        parts: by gate, as `fastast.bench.probe` times them; None if they were not.
    """
    found = {name: summary[group][key] for name, (group, key) in FROM_SUMMARY.items()}
    samples = summary["samples"]
    found["run_activation"] = _ratio(samples["selected"], samples["offered"])
    found["data_wait"] = _ratio(found["data_wait_s"], found["train_s"])
    found["speedup"] = found["run_speedup"] = None
    if dense is not None:
        found["speedup"] = _ratio(found["offered_per_s"], dense["throughput"]["offered_per_s"])
        found["run_speedup"] = _ratio(dense["time_s"]["train"], found["train_s"])
    found["share_of_ceiling"] = _ratio(found["speedup"], found["speedup_ceiling"])
    mine, activation = (parts or {}).get(summary["gate"]["name"]), found["activation"]
    found["machine_ceiling"] = None if mine is None or activation is None else machine_ceiling(mine, activation)
    found["share_of_machine_ceiling"] = _ratio(found["speedup"], found["machine_ceiling"])
    return found


def mean_and_error(values: Sequence[float | None]) -> dict[str, float | None]:
    """Mean and standard error (standard deviation of the sample / root of n); the error of one value is None.

    Both are None where any value is, so that every figure of a row is of the same runs.
    """
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return {"mean": None, "se": None}
    error = statistics.stdev(known) / math.sqrt(len(known)) if len(known) > 1 else None
    return {"mean": statistics.fmean(known), "se": error}


def machine_ceiling(parts: Mapping[str, float], activation: float) -> float:
    """The largest speed-up of a gate over dense on this machine: (d + t) / (d_all + f + a (d_sel + t)).

    Args:
        parts: of the gate, seconds a sample, as `fastast.bench.probe` times them.
        activation: share of the offered samples that is trained, a.
    """
    dense_s = parts["decode_s"] + parts["train_s"]
    selected_s = parts["decode_selected_s"] + parts["train_s"]
    return dense_s / (parts["decode_all_s"] + parts["score_s"] + activation * selected_s)


def make_rows(
    runs: Sequence[Mapping[str, Any]], parts: Mapping[str, Mapping[str, float]] | None = None
) -> list[dict[str, Any]]:
    """One row for each role and gate, in the order of the runs.

    Args:
        runs: entries of `bench.json`: role, for, seed, summary, and the folder, by which shared runs are known.
        parts: as of `metrics`.

    Returns:
        Rows of role, for, gate, n and the figures of `metrics`. A baseline also has `match`: its value of what it is
        matched by, over its gate's; 1 for a perfect match.
    """
    dense = {run["seed"]: run["summary"] for run in runs if run["role"] == DENSE}
    places: dict[tuple[str, str | None, str], list[Mapping[str, Any]]] = {}
    for run in runs:
        places.setdefault(_place(run), []).append(run)
    rows = []
    for (role, of, gate), members in places.items():
        figures = [metrics(run["summary"], dense.get(run["seed"]), parts) for run in members]
        row: dict[str, Any] = {"role": role, "for": of, "gate": gate, "n": len(members)}
        row.update({name: mean_and_error([one[name] for one in figures]) for name in figures[0]})
        if role in MATCHED:
            group, key = MATCHED[role]
            gates = {run["seed"]: run["summary"] for run in runs if _place(run) == ("gate", None, of)}
            row["match"] = mean_and_error(
                [_ratio(run["summary"][group][key], gates[run["seed"]][group][key]) for run in members]
            )
        rows.append(row)
    return rows


def caveats(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What makes these runs hard to compare: different code, machines or pictures."""
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


def _place(run: Mapping[str, Any]) -> tuple[str, str | None, str]:
    return run["role"], run["for"], run["summary"]["gate"]["name"]


def _ratio(value: float | None, over: float | None) -> float | None:
    return None if value is None or not over else value / over
