"""Fake summaries and a fake runner: the summary of a real tiny run, with other counts."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from typing import Any

from fastast.bench.estimate import Outcome
from fastast.bench.matrix import Job
from fastast.bench.runner import BadInput
from fastast.gates.registry import make_gate

NUM_TRAIN, BATCH, S_PER_UNIT, WARMUP = 960, 16, 0.001, 1.0
PARTS = ("train_s", "decode_s", "score_s", "decode_all_s", "decode_selected_s")
REAL: dict[str, Any] = {
    **{"schema": 1, "version": "0.1.0", "commit": "a24ce546d693", "seed": 0, "stopped": None},
    "hardware": {"device": "cpu", "names": ["AMD EPYC"], "world_size": 1},
    "data": {"train": NUM_TRAIN, "val": 60, "classes": 4, "quarantined": 0, "fingerprint": "fb4824e362c1846e"},
    "gate": {"name": "memory", "selection": "soft", "target": 0.3, "activation_rate": 0.3, "warmup_epochs": WARMUP},
    "samples": {"offered": 480, "selected": 312, "backward": 304, "leftover": 8, "steps": 19, "nonfinite_steps": 0},
    "accuracy": {"val_top1": 0.5, "val_top5": 1.0, "best_val_top1": 0.5, "best_epoch": 1},
    "time_s": {"total": 0.56, "train": 0.41, "eval": 0.08, "data_wait": 0.19},
    "throughput": {"offered_per_s": 2513.8, "backward_per_s": 670.3},
    "compute": {"forward_units": 912.0, "dense_forward_units": 1440.0, "speedup_ceiling": 3.33},
    "energy": {
        **{"savings_estimated": 0.693, "savings_arithmetic": 0.733, "savings_measured": None},
        **{"run_savings_estimated": 0.347, "run_savings_arithmetic": 0.367, "run_savings_measured": None},
        **{"gpu_j": None, "train_gpu_j": None, "cpu_j": None},
    },
}


def fake_summary(
    gate: str,
    epochs: float,
    *,
    seed: int = 0,
    share: float = 0.3,
    top1: float = 0.5,
    overhead: float = 1.0,
    j: float | None = None,
    num_train: int = NUM_TRAIN,
) -> dict[str, Any]:
    """The summary of a run by the cost model: it trains whole batches, and a forward unit takes `j` joules."""
    summary = copy.deepcopy(REAL)
    offered = round(epochs * num_train)
    dense = offered if gate == "dense" else min(offered, round(WARMUP * NUM_TRAIN))
    selected = dense + round(share * (offered - dense))
    backward = selected // BATCH * BATCH
    scored = float(offered - dense) if gate == "forward" else 0.0
    units = 3.0 * backward + scored
    train_s = units * S_PER_UNIT * overhead
    summary["seed"] = seed
    summary["gate"].update(name=gate, activation_rate=1.0 if gate == "dense" else share)
    summary["samples"].update(offered=offered, selected=selected, backward=backward, steps=backward // BATCH)
    summary["accuracy"].update(val_top1=top1, best_val_top1=top1)
    summary["time_s"].update(total=train_s + 0.3, train=train_s, eval=0.2, data_wait=0.1 * train_s)
    summary["throughput"]["offered_per_s"] = offered / train_s if train_s else 0.0
    summary["compute"].update(forward_units=units, speedup_ceiling=make_gate(gate).ceiling(share))
    if j is not None:
        summary["energy"].update(gpu_j=1.1 * j * units, train_gpu_j=j * units)
    return summary


class FakeRunner:
    """In place of `Runner`: makes up the outcomes of runs, and keeps them in memory.

    Attributes:
        kept: outcomes by folder and name of the run.
        ran: names of the runs that were started, in order.
        failing: reasons, by name.
        refuse: the reason with which every run refuses its options, or None.
        num_train: pictures that a calibration finds.
    """

    kept: dict[tuple[str, str], Outcome]
    ran: list[str]
    failing: dict[str, str]
    refuse: str | None
    num_train = NUM_TRAIN

    @classmethod
    def fresh(cls) -> type[FakeRunner]:
        return type("Fresh", (cls,), {"kept": {}, "ran": [], "failing": {}, "refuse": None})

    def __init__(self, root, options):
        self.root, self.options = root, options

    def folder(self, job: Job):
        return self.root / "runs" / job.name

    def forwarding_signals(self):
        return contextlib.nullcontext()

    def probe(self, gates):
        self.ran.append("probe")
        if self.refuse is not None:
            return None, self.refuse
        return {gate: dict.fromkeys(PARTS, 0.002) | {"train_s": 0.004} for gate in ("dense", *gates)}, None

    def finished(self, job: Job):
        outcome = self.kept.get((str(self.root), job.name))
        return outcome and dataclasses.replace(outcome, before=True)

    def run(self, job: Job) -> Outcome:
        self.ran.append(job.name)
        if self.refuse is not None:
            raise BadInput(self.refuse)
        if job.name in self.failing:
            return Outcome(None, self.failing[job.name], 1.0)
        share = job.changes.get("target", self.options.get("target", 0.1))
        top1 = {"dense": 0.6, "random": 0.5}.get(job.gate, 0.7) + 0.001 * job.seed
        summary = fake_summary(job.gate, job.epochs, seed=job.seed, share=share, top1=top1, overhead=1.1)
        outcome = Outcome(summary, seconds=summary["time_s"]["total"] + 2)
        self.kept[str(self.root), job.name] = outcome
        return outcome

    def train(self, folder, options) -> Outcome:
        self.ran.append("calibration")
        if self.refuse is not None:
            raise BadInput(self.refuse)
        summary = fake_summary("dense", options["epochs"], num_train=self.num_train)
        return Outcome(summary, seconds=summary["time_s"]["total"] + 2)
