"""What a run did, by phase and size of the pictures: the figures that summary and ledger are computed from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastast.phases import ANNEAL, DENSE, GATED, WARMUP


@dataclass(slots=True)
class PhaseCounts:
    """Executed work of one phase, or of one size in it.

    Attributes:
        offered: samples delivered for a decision.
        decoded: pictures decoded.
        scored: samples that went through the scoring forward.
        selected: samples chosen for backward (dense: all).
        backward: samples that went through backward.
        steps: optimizer steps, skipped non-finite ones included.
        seconds: wall-clock time of the loop, without evaluation, checkpoints and start-up.
        data_wait: seconds of it spent waiting for pictures.
    """

    offered: int = 0
    decoded: int = 0
    scored: int = 0
    selected: int = 0
    backward: int = 0
    steps: int = 0
    seconds: float = 0.0
    data_wait: float = 0.0

    def __add__(self, other: PhaseCounts) -> PhaseCounts:
        return PhaseCounts(*(getattr(self, f.name) + getattr(other, f.name) for f in dataclasses.fields(self)))


NO_COUNTS = (0, 0, 0, 0.0)  # `BatchRecord.host_counts` of a batch that counts nothing


@dataclass(slots=True)
class BatchRecord:
    """What one batch added, known to the host before the device reports on it.

    Attributes:
        first, last: positions in the epoch segment's order that the batch covers.
        train_size: side of its pictures, pixels.
        counts: its work, except for what the device decides.
        ids: int64[n], the samples that this rank was offered.
        backward: samples that the run had trained before the batch.
        rows: samples that it holds over all ranks, unreadable ones included.
        units: forward units that scoring them takes.
    """

    first: int
    last: int
    train_size: int
    counts: PhaseCounts
    ids: np.ndarray
    backward: int = 0
    rows: int = 0
    units: float = 0.0

    def host_counts(self) -> list[float]:
        """What this rank's host counted: offered, decoded, scored, seconds of waiting."""
        return [self.counts.offered, self.counts.decoded, self.counts.scored, self.counts.data_wait]

    def set_host_counts(self, rows: np.ndarray) -> None:
        """Takes the `host_counts` of all ranks, float64[ranks, 4]: their sums, and the mean of the waiting time."""
        self.counts.offered, self.counts.decoded, self.counts.scored = map(int, rows[:, :3].sum(0))
        self.counts.data_wait = float(rows[:, 3].mean())

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint, without the ids, which were counted when the batch was logged."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "ids"}
        return values | {"counts": dataclasses.asdict(self.counts)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> BatchRecord:
        """The record that `state_dict` described."""
        return cls(**{**state, "counts": PhaseCounts(**state["counts"])}, ids=np.zeros(0, np.int64))


@dataclass(slots=True)
class Counters:
    """Counts by phase and size, and the run's clock.

    Attributes:
        phases: counts of "warmup", "gated", "anneal" and "dense", each by the side of the pictures in pixels. A sample
            counts as offered, scored and selected at the size that it came in, as trained at that of its step.
        eval_s: seconds of evaluation.
        total_s: seconds of the run so far, all parts of a resumed run added up.
        quarantined: pictures set aside, at the scan and since.
        resumes: where the run was resumed: {"epoch", "offered"} each, and "changed" where --force changed something.
    """

    phases: dict[str, dict[int, PhaseCounts]] = field(
        default_factory=lambda: {phase: {} for phase in (WARMUP, GATED, ANNEAL, DENSE)}
    )
    eval_s: float = 0.0
    total_s: float = 0.0
    quarantined: int = 0
    resumes: list[dict[str, Any]] = field(default_factory=list)

    def of(self, phase: str, train_size: int) -> PhaseCounts:
        """Counts of one size in a phase, to be added to."""
        return self.phases[phase].setdefault(train_size, PhaseCounts())

    def add(self, phase: str, train_size: int, counts: PhaseCounts) -> None:
        """Adds what a batch counted."""
        self.phases[phase][train_size] = self.of(phase, train_size) + counts

    @property
    def whole(self) -> PhaseCounts:
        """Counts of the whole run."""
        return total(self.phases.values())

    @property
    def dense(self) -> dict[int, PhaseCounts]:
        """Counts of the dense part of a gated run, by size."""
        return by_size(self.phases[WARMUP], self.phases[ANNEAL])

    @property
    def gated(self) -> dict[int, PhaseCounts]:
        """Counts of the gated part, by size; for a dense run, of all of it."""
        return self.phases[DENSE] or self.phases[GATED]

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return dataclasses.asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes where `state_dict` was called."""
        for name, value in state.items():
            setattr(self, name, value)
        self.phases = {
            name: {size: PhaseCounts(**counts) for size, counts in sizes.items()}
            for name, sizes in state["phases"].items()
        }


def by_size(*phases: dict[int, PhaseCounts]) -> dict[int, PhaseCounts]:
    """Counts of several phases together, by size in ascending order."""
    sizes = sorted({size for phase in phases for size in phase})
    return {size: total([{size: phase[size]} for phase in phases if size in phase]) for size in sizes}


def total(phases: Iterable[dict[int, PhaseCounts]]) -> PhaseCounts:
    """Counts of several phases and all sizes together."""
    return sum((counts for sizes in phases for counts in sizes.values()), PhaseCounts())
