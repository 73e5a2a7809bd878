"""What the device tells the host after each offered batch, one batch late."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastast.gates.lagged_reader import LaggedReader


class DeviceStatus(NamedTuple):
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
    target: float = 0.0
    nan_scores: float = 0.0


NUM_FIELDS = len(DeviceStatus._fields)
# Counted by each rank on its own. Of the other fields all ranks have the same value, or the largest is wanted.
_SUMMED = frozenset(("pushed", "overflow", "loss_sum", "loss_rows", "nan_scores"))


def merge_status(rows: np.ndarray) -> DeviceStatus:
    """The status of a run from those of its ranks, float64[ranks, fields]."""
    values = (
        column.sum() if name in _SUMMED else column.max()
        for name, column in zip(DeviceStatus._fields, rows.T, strict=True)
    )
    return DeviceStatus(*map(float, values))


class StatusReader:
    """Hands the host the statuses of all ranks one batch late.

    Args:
        num_ranks: rows of a report.
        device: where the reports come from.
    """

    def __init__(self, num_ranks: int, device: torch.device) -> None:
        self._num_ranks = num_ranks
        self._reader = LaggedReader(NUM_FIELDS * num_ranks, device, torch.float64)

    def push(self, report: Tensor) -> np.ndarray | None:
        """Takes a batch's report, float64[ranks, fields]; returns that of the batch before, or None."""
        return self._rows(self._reader.push(report.flatten()))

    def flush(self) -> np.ndarray | None:
        """Waits for the last report and returns it, or None if it was returned already."""
        return self._rows(self._reader.flush())

    def _rows(self, report: np.ndarray | None) -> np.ndarray | None:
        return None if report is None else report.reshape(self._num_ranks, NUM_FIELDS)

    def state_dict(self) -> Tensor | None:
        """The report that was not returned yet."""
        waiting = self._reader.state()
        return None if waiting is None else waiting.view(self._num_ranks, NUM_FIELDS)

    def load_state_dict(self, waiting: Tensor | None) -> None:
        """Loads a state. If it is of another number of ranks, the first rank gets the counts of all."""
        if waiting is not None and len(waiting) != self._num_ranks:
            merged = torch.tensor(merge_status(waiting.numpy()), dtype=torch.float64)
            waiting = torch.zeros(self._num_ranks, NUM_FIELDS, dtype=torch.float64)
            waiting[0] = merged
        self._reader.restore(None if waiting is None else waiting.flatten())
