"""Fake summaries and a fake runner: the summary of a real tiny run, with other counts."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from typing import Any

from fastast.bench.estimate import Outcome
from fastast.bench.matrix import Job
from fastast.bench.runner import BadInput

NUM_TRAIN, BATCH, S_PER_UNIT, START_S, EVAL_S = 960, 16, 0.001, 2.0, 0.2
REAL: dict[str, Any] = {
    **{"schema": 1, "version": "0.1.0", "commit": "a24ce546d693", "seed": 0, "stopped": None},
    "hardware": {"device": "cpu", "names": ["AMD EPYC"], "world_size": 1, "torch": "2.15.0", "dali": "2.4.0"},
    "data": {"train": NUM_TRAIN, "val": 1000, "classes": 4, "quarantined": 0, "fingerprint": "fb4824e362c1846e"},
    "model": {"arch": "resnet18", "params": 11_181_642, "image_size": 64, "precision": "float32"},
    "gate": {"name": "memory", "activation_rate": 0.3},
    "samples": {"offered": 480, "selected": 312, "backward": 304, "steps": 19},
    "accuracy": {"val_top1": 0.5, "val_top5": 1.0, "best_val_top1": 0.5, "best_epoch": 1, "balanced_top1": 0.5},
    "time_s": {"total": 0.56, "train": 0.41, "eval": 0.08, "data_wait": 0.19},
    "compute": {"forward_units": 912.0, "speedup_ceiling": 3.33},
    "energy": {"gpu_j": None, "train_gpu_j": None, "notes": ["CPU not read: no RAPL counters here", "GPU not read: x"]},
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
    """The summary of a run that did the work of so many dense epochs, in whole batches, with `j` joules a unit."""
    summary = copy.deepcopy(REAL)
    steps = round(epochs * num_train) // BATCH
    units = 3.0 * steps * BATCH
    train_s = units * S_PER_UNIT * overhead
    summary["seed"] = seed
    summary["data"]["train"] = num_train
    summary["gate"].update(name=gate, activation_rate=1.0 if gate == "dense" else share)
    summary["samples"].update(backward=steps * BATCH, steps=steps)
    summary["accuracy"].update(val_top1=top1, best_val_top1=top1, balanced_top1=top1)
    summary["time_s"].update(total=train_s + 3 * EVAL_S, train=train_s, eval=EVAL_S)
    summary["compute"].update(forward_units=units)
    if j is not None:
        summary["energy"].update(gpu_j=1.1 * j * units, train_gpu_j=j * units, notes=[])
    return summary


class FakeRunner:
    """In place of `Runner`: makes up the outcomes of runs, and keeps them in memory.

    Attributes:
        kept: outcomes by folder and name of the run.
        ran: names of the runs that were started, in order.
        failing: reasons, by name.
        refuse: the reason with which every run refuses its options, or None.
        num_train: pictures that the short dense run finds.
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

    def finished(self, job: Job):
        outcome = self.kept.get((str(self.root), job.name))
        return outcome and dataclasses.replace(outcome, before=True)

    def run(self, job: Job) -> Outcome:
        self.ran.append(job.name)
        if self.refuse is not None:
            raise BadInput(self.refuse)
        if job.name in self.failing:
            return Outcome(None, self.failing[job.name], 1.0)
        speed = {"dense": 1.0, "random": 0.9, "memory": 2.0}[job.arm.gate]  # of learning
        noise = 0.001 * ((7 * job.seed + len(job.arm.name)) % 3)
        top1 = 0.7 - 0.25 * (speed * job.budget.amount) ** -0.5 + noise
        summary = fake_summary(job.arm.gate, job.budget.amount, seed=job.seed, top1=top1, overhead=1.1)
        outcome = Outcome(summary, seconds=summary["time_s"]["total"] + START_S)
        self.kept[str(self.root), job.name] = outcome
        return outcome

    def train(self, folder, options) -> Outcome:
        self.ran.append("pace")
        if self.refuse is not None:
            raise BadInput(self.refuse)
        summary = fake_summary("dense", options["epochs"], num_train=self.num_train)
        return Outcome(summary, seconds=summary["time_s"]["total"] + START_S)
