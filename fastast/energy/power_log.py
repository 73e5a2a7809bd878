"""Power over time, in bounded memory however long the run."""

from __future__ import annotations

import csv
import io
import itertools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from fastast.atomic_files import write_whole

COLUMNS = ("t_s", "uuid", "w", "energy_mj", "phase")


class PowerRow(NamedTuple):
    """One row of `power.csv`."""

    t_s: float  # seconds since the start, at the end of the row's interval
    uuid: str  # of the GPU
    w: float | None  # mean power over the interval, or None
    energy_mj: float | None  # the energy counter at its end, or None
    phase: str  # of the run


class _Series:
    """Rows of one GPU. When full, neighbours of one phase are averaged, and later rows cover twice the time."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.rows: list[PowerRow] = []
        self.stride = 1
        self.pending: list[PowerRow] = []

    def add(self, row: PowerRow) -> None:
        if self.stride == 1 and len(self.rows) < self.capacity:
            self.rows.append(row)
            return
        if self.pending and self.pending[-1].phase != row.phase:
            self.flush()
        self.pending.append(row)
        if len(self.pending) >= self.stride:
            self.flush()

    def flush(self) -> None:
        if self.pending:
            self.rows.append(_mean_row(self.pending))
            self.pending = []
        if len(self.rows) >= self.capacity:
            phases = [list(rows) for _, rows in itertools.groupby(self.rows, key=lambda row: row.phase)]
            self.rows = [_mean_row(rows[i : i + 2]) for rows in phases for i in range(0, len(rows), 2)]
            self.stride *= 2


def _mean_row(rows: list[PowerRow]) -> PowerRow:
    watts = [row.w for row in rows if row.w is not None]
    return rows[-1]._replace(w=sum(watts) / len(watts) if watts else None)


class PowerLog:
    """Rows of `power.csv`: every sample at first, means over ever longer intervals in a long run.

    Args:
        capacity: rows kept for each GPU, at most.
    """

    def __init__(self, capacity: int = 10_000) -> None:
        self._capacity = capacity
        self._series: dict[str, _Series] = {}

    def add(self, row: PowerRow) -> None:
        """Adds one sample."""
        if row.uuid not in self._series:
            self._series[row.uuid] = _Series(self._capacity)
        self._series[row.uuid].add(row)

    def rows(self) -> list[PowerRow]:
        """Every row, in order of time."""
        for series in self._series.values():
            series.flush()
        rows = [row for series in self._series.values() for row in series.rows]
        return sorted(rows, key=lambda row: (row.t_s, row.uuid))

    def read_csv(self, path: str | os.PathLike[str]) -> float:
        """Adds the rows of the run before a resume; returns the time of the last one, seconds."""
        end_s = 0.0
        with Path(path).open(newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file):
                w, energy_mj = (float(line[name]) if line[name] else None for name in ("w", "energy_mj"))
                row = PowerRow(float(line["t_s"]), line["uuid"], w, energy_mj, line["phase"])
                self.add(row)
                end_s = max(end_s, row.t_s)
        return end_s


def write_power_csv(path: str | os.PathLike[str], rows: Iterable[PowerRow]) -> None:
    """Writes rows to a CSV file, atomically.

    Raises:
        OSError: the disk is full or the folder not writable.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        watts = "" if row.w is None else f"{row.w:.2f}"
        energy = "" if row.energy_mj is None else f"{row.energy_mj:.0f}"
        writer.writerow([f"{row.t_s:.3f}", row.uuid, watts, energy, row.phase])
    write_whole(path, text.getvalue())
