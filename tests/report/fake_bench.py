"""The folder of a bench as its command writes it, without the hours it takes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

NUM_TRAIN = 3000
NO_DRIVER = "GPU not read: no NVIDIA driver here (libnvidia-ml.so.1 not found)"
# Accuracy that more work ends at, how fast it gets there, seconds and joules of a unit.
ARMS = {
    "dense": (0.84, 0.52, 0.0030, 0.011),
    "random:target=0.3": (0.83, 0.50, 0.0031, 0.011),
    "memory:target=0.3": (0.85, 0.62, 0.0032, 0.012),
    "memory:target=auto,train-size=auto": (0.85, 0.66, 0.0021, 0.008),
    "forward:target=0.3": (0.83, 0.48, 0.0040, 0.014),
    "infobatch": (0.84, 0.55, 0.0031, 0.011),
    "torchvision": (0.82, 0.49, 0.0062, 0.013),
    "timm/train.py": (0.81, 0.45, 0.0058, 0.012),
}
PEERS = ("torchvision", "timm/train.py")
BUDGETS = (0.5, 1.0, 2.0, 4.0)


def mean_or_none(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _summary(rng: np.random.Generator, arm: str, amount: float, seed: int, has_joules: bool) -> dict[str, Any]:
    best, pace, unit_s, unit_j = ARMS[arm]
    units = round(3 * NUM_TRAIN * amount * rng.uniform(0.998, 1.002))
    return {
        **{"schema": 1, "version": "0.1.0", "commit": "a24ce546d693", "seed": seed},
        "hardware": {"device": "cpu", "names": ["AMD EPYC"], "torch": "2.15.0", "dali": "2.4.0"},
        "data": {"train": NUM_TRAIN, "val": 500, "classes": 10},
        "model": {"arch": "resnet18", "params": 11_181_642, "image_size": 64, "precision": "float32"},
        "gate": {"name": arm.partition(":")[0], "activation_rate": 0.3},
        "accuracy": {"val_top1": best - 0.5 * np.exp(-2 * pace * amount**0.7) + rng.normal(0, 0.006)},
        "time_s": {"total": units * unit_s + 2.5, "train": units * unit_s},
        "compute": {"forward_units": units},
        "energy": {
            "gpu_j": units * unit_j if has_joules and arm not in PEERS else None,
            "notes": [] if has_joules else ["CPU not read: no RAPL counters here", NO_DRIVER],
        },
    }


def _point(arm: str, budget: str, summaries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    top1 = np.array([summary["accuracy"]["val_top1"] for summary in summaries])
    n = len(top1)
    return {
        **{"arm": arm, "budget": budget, "n": n},
        "top1": {"mean": top1.mean(), "se": top1.std(ddof=1) / np.sqrt(n) if n > 1 else None},
        "units": mean_or_none([summary["compute"]["forward_units"] for summary in summaries]),
        "seconds": mean_or_none([summary["time_s"]["total"] for summary in summaries]),
        "joules": mean_or_none([summary["energy"]["gpu_j"] for summary in summaries]),
        "train_seconds": mean_or_none([summary["time_s"]["train"] for summary in summaries]),
        "share": None if arm in PEERS else 1.0 if arm == "dense" else 0.3,
    }


def _paired(arm: str, budget: str, mine: np.ndarray, dense: np.ndarray) -> dict[str, Any]:
    differences, n = mine - dense, len(mine)
    mean, reach = differences.mean(), 4.3 * differences.std(ddof=1) / np.sqrt(n) if n > 2 else None
    outcome = "unknown" if reach is None else "no difference shown"
    if reach is not None and abs(mean) > reach:
        outcome = "better" if mean > 0 else "worse"
    return {
        **{"arm": arm, "against": "dense", "budget": budget, "n": n, "difference": mean, "outcome": outcome},
        "interval": None if reach is None else [mean - reach, mean + reach],
        "p": None if reach is None else 0.0004 if outcome != "no difference shown" else 0.21,
    }


def _costs(points: Sequence[dict[str, Any]], arm: str, dense: dict[str, Any], num_seeds: int) -> list[dict[str, Any]]:
    """Ratios by interpolation, with made-up intervals; no rows of a unit that is not measured."""
    mine = sorted((point for point in points if point["arm"] == arm), key=lambda point: point["units"])
    top1, entries = dense["top1"]["mean"], []
    accuracies = [point["top1"]["mean"] for point in mine]
    reached = accuracies[-1] >= top1
    for unit in ("units", "seconds", "joules"):
        costs = [point[unit] for point in mine]
        if None in costs or dense[unit] is None:
            continue
        ratio = None
        interval: list[float | None] = [0, 0.9] if reached else [1.4, None]
        if reached and accuracies[0] <= top1:
            ratio = float(np.exp(np.interp(top1, accuracies, np.log(costs)))) / dense[unit]
            interval = [0.85 * ratio, 1.15 * ratio]
        entries.append(
            {
                **{"arm": arm, "against": "dense", "budget": dense["budget"], "top1": top1, "unit": unit},
                **{"ratio": ratio, "interval": interval if num_seeds > 2 else None, "reached": reached},
            }
        )
    return entries


def write_bench(
    path: Path, *, num_arms: int = 4, num_budgets: int = 3, num_seeds: int = 3, has_joules: bool = False
) -> Path:
    """A finished bench of the first arms of `ARMS` and budgets of `BUDGETS`, peers among them from seven arms on."""
    rng = np.random.default_rng(3)
    arms, seeds = list(ARMS)[:num_arms], list(range(num_seeds))
    budgets = {f"{amount:g}ep": amount for amount in BUDGETS[:num_budgets]}
    runs: list[dict[str, Any]] = []
    for seed, (budget, amount), arm in itertools.product(seeds, budgets.items(), arms):
        folder = f"runs/{arms.index(arm)}-{budget}-{seed}"
        if arm not in PEERS:
            (path / folder).mkdir(parents=True)
            (path / folder / "report.html").write_text("<!DOCTYPE html><title>a run</title>")
        summary = _summary(rng, arm, amount, seed, has_joules)
        runs.append({"arm": arm, "budget": budget, "seed": seed, "folder": folder, "summary": summary})
    cells = {
        (arm, budget): [run["summary"] for run in runs if (run["arm"], run["budget"]) == (arm, budget)]
        for arm, budget in itertools.product(arms, budgets)
    }
    top1 = {cell: np.array([s["accuracy"]["val_top1"] for s in summaries]) for cell, summaries in cells.items()}
    points = [_point(arm, budget, summaries) for (arm, budget), summaries in cells.items()]
    others = [arm for arm in arms if arm != "dense"]
    bench = {
        **{"schema": 2, "finished": True, "version": "0.1.0", "commit": "a24ce546d693"},
        "argv": ["bench", "--data", "/pictures", "--arms", ";".join(arms), "--out", str(path)],
        "options": {"data": "/pictures", "arch": "resnet18", "image_size": 64, "batch_size": 32},
        "hardware": runs[0]["summary"]["hardware"],
        "arms": [
            {"name": arm, "options": {"gate": arm.partition(":")[0]}, **({"peer": True} if arm in PEERS else {})}
            for arm in arms
        ],
        "budgets": [{"name": name, "kind": "ep", "amount": amount} for name, amount in budgets.items()],
        "seeds": seeds,
        "runs": runs,
        "failures": [
            {"arm": others[0], "budget": "1ep", "seed": 9, "folder": "runs/x", "reason": "stopped by signal 9"}
        ],
        "points": points,
        "paired": [
            _paired(arm, budget, top1[arm, budget], top1["dense", budget])
            for arm, budget in itertools.product(others, budgets)
        ],
        "cost_at_equal_accuracy": [
            entry
            for arm, dense in itertools.product(others, [point for point in points if point["arm"] == "dense"])
            for entry in _costs(points, arm, dense, num_seeds)
        ],
        "verdict": {
            "sentences": [
                "memory:target=0.3 is as accurate as dense training for 0.71 times its work (0.62 to 0.82).",
                "random:target=0.3 shows no difference from dense training at any budget.",
            ],
            "winners": ["memory:target=0.3"],
        },
        "notes": ["these runs are of several machines: A; B", f"joules were not measured: {NO_DRIVER}"],
    }
    (path / "bench.json").write_text(json.dumps(bench, default=float), encoding="utf-8")
    return path
