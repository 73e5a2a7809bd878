"""The matrix of a bench: which runs, in which order, and how long the matched ones are.

Seed by seed: dense, then each gate followed by its baselines, so that a drifting machine affects all of them alike. A
baseline's length follows from the counted and measured cost of its gate's run, never from the plan of that gate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fastast.cost_model import DENSE_COST

GATE, DENSE, SHARE = "gate", "dense", "random_equal_share"
UNITS, TIME, JOULES = "dense_equal_units", "dense_equal_time", "dense_equal_joules"
EQUAL_BUDGET = (UNITS, TIME, JOULES)

# Relative difference up to which another run serves as a baseline, instead of a run of its own.
TOLERANCE = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Cost of a run."""

    offered: float  # samples
    backward: float  # samples that were trained
    steps: float  # that trained them
    forward_units: float  # work in forwards of the full-size network
    share: float | None  # of the offered samples of the gated part that were selected; None if there were none
    train_s: float  # seconds of training, evaluation left out
    train_j: float | None = None  # GPU joules of training, or None where they were not measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run."""

    role: str  # what it was started as
    of: str | None = None  # the gate that it is matched to, or None
    gate: str  # that it trains with
    seed: int
    epochs: float
    changes: dict[str, Any] = field(default_factory=dict)  # options that differ from the bench's, by field name

    @property
    def place(self) -> str:
        """Its name within every seed's block."""
        return self.gate if self.of is None else f"{self.of}-{self.role}"

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"seed{self.seed}-{self.place}"


class Entry(NamedTuple):
    """A place in the comparison, and its run; several places may share one."""

    role: str
    of: str | None
    job: Job


def order_gates(gates: Sequence[str]) -> tuple[str, ...]:
    """The gates of a block in the order they run: dense is no gate; random comes first, as a baseline of the others."""
    rest = [gate for gate in dict.fromkeys(gates) if gate not in ("dense", "random")]
    return (*(["random"] if "random" in gates else []), *rest)


def walk(gates: Sequence[str], seeds: Sequence[int], epochs: float, run: Callable[[Job], Work | None]) -> list[Entry]:
    """Visits every place of the matrix: for each seed, a dense run and those of the gates, of `epochs` each.

    `run` is called with each run when it is due; it returns None if the run failed, which then gets no baselines.
    """
    return [entry for seed in seeds for entry in _walk_block(gates, seed, epochs, run)]


def _walk_block(gates: Sequence[str], seed: int, epochs: float, run: Callable[[Job], Work | None]) -> list[Entry]:
    entries: list[Entry] = []
    done: list[tuple[Job, Work]] = []

    def take(job: Job) -> Work | None:
        entries.append(Entry(job.role, job.of, job))
        work = run(job)
        if work is not None:
            done.append((job, work))
        return work

    dense = take(Job(role=DENSE, gate="dense", seed=seed, epochs=epochs))
    for gate in gates:
        job = Job(role=GATE, gate=gate, seed=seed, epochs=epochs)
        work = take(job)
        if work is None:
            continue
        for baseline in baselines(job, work, dense):
            shared = next((other for other, took in done if _serves(other, took, baseline, work)), None)
            if shared is None:
                take(baseline)
            else:
                entries.append(Entry(baseline.role, baseline.of, shared))
    return entries


def baselines(job: Job, work: Work, dense: Work | None) -> list[Job]:
    """The matched baselines of a gate's run that cost `work`; without `dense` there is no time and energy to match."""
    found = []
    if job.gate != "random" and work.share:
        share = min(1.0, round(work.share, 6))
        changes = {"target": share, "explore": 0.0}
        found.append(Job(role=SHARE, of=job.gate, gate="random", seed=job.seed, epochs=job.epochs, changes=changes))
    lengths = {UNITS: work.forward_units / DENSE_COST / work.offered * job.epochs}
    if dense is not None and dense.train_s > 0:
        lengths[TIME] = work.train_s / dense.train_s * job.epochs
    if dense is not None and dense.train_j and work.train_j is not None:
        lengths[JOULES] = work.train_j / dense.train_j * job.epochs
    for role, epochs in lengths.items():
        length = _whole_batches(epochs, job, work)
        found.append(Job(role=role, of=job.gate, gate="dense", seed=job.seed, epochs=length))
    return found


def _whole_batches(epochs: float, job: Job, work: Work) -> float:
    """The nearest length that is a multiple of a batch: samples left over would be offered and not trained."""
    batch = work.backward / work.steps if work.steps else 1.0
    batches_per_epoch = work.offered / job.epochs / batch
    return round(max(1, round(epochs * batches_per_epoch)) / batches_per_epoch, 9)


def _serves(other: Job, took: Work, baseline: Job, work: Work) -> bool:
    """Whether a finished run of the block can serve as a baseline of the gate whose run took `work`."""
    if other.gate != baseline.gate:
        return False
    if baseline.role == SHARE:
        return took.share is not None and work.share is not None and _near(took.share, work.share)
    if baseline.role == UNITS:
        return _near(took.forward_units, work.forward_units)
    return _near(other.epochs, baseline.epochs)


def _near(value: float, wanted: float) -> bool:
    return abs(value - wanted) <= TOLERANCE * wanted
