"""What the device tells the host after each offered batch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Status(NamedTuple):
    """What is known after an offered batch, of one rank or of all; all counts are since the start of the run."""

    pushed: float = 0.0  # rows that the gate selected
    overflow: float = 0.0
    steps: float = 0.0
    nonfinite: float = 0.0
    nonfinite_run: float = 0.0
    scaler_skips: float = 0.0
    loss_sum: float = 0.0
    loss_rows: float = 0.0
    threshold: float = 0.0
    nan_scores: float = 0.0


NUM_FIELDS = len(Status._fields)
# Counted by each rank for itself; of the others all ranks have the same figure, or the largest is meant.
_SUMMED = frozenset(("pushed", "overflow", "loss_sum", "loss_rows", "nan_scores"))


def combined(rows: np.ndarray) -> Status:
    """The status of a run from that of its ranks, float64[ranks, fields]."""
    values = (
        column.sum() if name in _SUMMED else column.max() for name, column in zip(Status._fields, rows.T, strict=True)
    )
    return Status(*map(float, values))
