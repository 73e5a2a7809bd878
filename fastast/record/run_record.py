"""Reads a run folder as untrusted input: damaged lines are skipped and counted, a wrong file is one clear error."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastast.energy.power_log import COLUMNS, PowerRow
from fastast.errors import InputError
from fastast.record.picture_tables import Predictions, Samples, read_predictions, read_samples
from fastast.run_folder import RunFolder, finite, read_json

STEP_COLUMNS = ("epoch", "offered", "activation", "threshold", "offered_per_s", "data_wait_s")
EPOCH_NUMBERS = (
    *("epoch", "train_loss", "val_loss", "val_top1", "val_top5", "offered", "backward"),
    *("forward_units", "activation", "threshold", "target", "seconds", "gpu_j"),
)
# Longer lists are cut on the page.
MAX_QUARANTINED = 200
MAX_NUMBER = 1e15


@dataclass(frozen=True, slots=True)
class RunRecord:
    """The data of a run that the report shows. Its methods raise InputError for a value of another type."""

    path: Path
    config: dict[str, Any]
    summary: dict[str, Any]  # `summary.json`, or {} for a run that has not ended
    classes: list[str]  # names by label
    steps: dict[str, np.ndarray]  # step lines by `offered`: float64[S], NaN where a line says null; and str[S] `phase`
    epochs: list[dict[str, Any]]  # epoch lines; every name of `EPOCH_NUMBERS` is a float or None
    num_damaged: int  # lines of `metrics.jsonl` and rows of `power.csv` that could not be read
    samples: Samples | None  # counts of each training picture, or None before the end of the run
    predictions: Predictions | None  # of each validation picture, or None before the first evaluation
    quarantine: list[tuple[str, str]]  # (path, reason) of the first pictures that were set aside
    num_quarantined: int  # in all
    power: list[PowerRow]  # in order of time

    def column(self, name: str) -> np.ndarray:
        """float64[E]: a number of each epoch line; NaN where it is null."""
        return np.array([line[name] for line in self.epochs], dtype=np.float64)

    def number(self, group: str, name: str) -> float | None:
        """A number of the summary, or None where it is null or absent."""
        return self._typed(group, name, (int, float), "a number")

    def text(self, group: str, name: str) -> str | None:
        """A string of the summary, or None where it is null or absent."""
        return self._typed(group, name, (str,), "a string")

    def texts(self, group: str, name: str) -> list[str]:
        """A list of strings of the summary, empty where it is absent."""
        return self._typed(group, name, (list,), "a list of strings") or []

    def _typed(self, group: str, name: str, types: tuple[type, ...], what: str) -> Any:
        path = self.path / "summary.json"
        entry = self.summary.get(group)
        if entry is not None and not isinstance(entry, dict):
            raise InputError(f"{path}: {group} should be an object")
        value = (entry or {}).get(name)
        if value is None:
            return None
        is_right = isinstance(value, types) and not isinstance(value, bool)
        if isinstance(value, list):
            is_right = is_right and all(isinstance(item, str) for item in value)
        if not is_right:
            raise InputError(f"{path}: {group}.{name} should be {what}, not {clean(json.dumps(value))[:60]}")
        if isinstance(value, list):
            return [clean(item) for item in value]
        return clean(value) if isinstance(value, str) else as_number(value)


def read_record(run_dir: str | os.PathLike[str]) -> RunRecord:
    """Reads a run folder; an unfinished or failed run has less data.

    Args:
        run_dir: the folder.

    Raises:
        InputError: it holds no run, or one of its files is not what a run writes.
    """
    folder = RunFolder(run_dir)
    if not folder.config.exists():
        raise InputError(f"{folder.path}: not a run folder (no config.json); name the --out of a `fastast train`")
    steps, epochs, num_damaged = _read_metrics(folder.metrics)
    power, num_bad_rows = _read_power(folder.power) if folder.power.exists() else ([], 0)
    quarantine = [
        (clean(str(line["path"])), clean(str(line.get("reason"))))
        for line in _json_lines(folder.quarantine)
        if line is not None and "path" in line
    ]
    return RunRecord(
        path=folder.path,
        config=read_object(folder.config),
        summary=read_object(folder.summary) if folder.summary.exists() else {},
        classes=_read_classes(folder.classes) if folder.classes.exists() else [],
        steps=steps,
        epochs=epochs,
        num_damaged=num_damaged + num_bad_rows,
        samples=read_samples(folder.samples) if folder.samples.exists() else None,
        predictions=read_predictions(folder.predictions) if folder.predictions.exists() else None,
        quarantine=quarantine[:MAX_QUARANTINED],
        num_quarantined=len(quarantine),
        power=power,
    )


def clean(text: str) -> str:
    """The text without control characters and lone surrogates, which neither UTF-8 nor a font can show."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def as_number(value: Any) -> float | None:
    """A JSON number as a float; None for null, for what is not finite and for what no run can reach.

    Raises:
        ValueError: it is no number.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is not a number")
    # No figure of a run is that large, and sums of larger ones could overflow.
    return float(value) if -MAX_NUMBER < value < MAX_NUMBER else None


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object without NaN and infinity.

    Raises:
        InputError: the file is missing or holds something else.
    """
    try:
        return finite(read_json(path))
    except RecursionError:
        raise InputError(f"{path}: nested too deeply to be a file of a run") from None


def _read_classes(path: Path) -> list[str]:
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {os.strerror(error.errno or 0)}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({type(error).__name__})") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{path}: expected a JSON list of class names")
    return [clean(name) for name in names]


def _json_lines(path: Path) -> Iterator[dict[str, Any] | None]:
    """The objects of a JSON-lines file; None for each line that holds none. A missing file has no lines."""
    if not path.exists():
        return
    try:
        with path.open("rb") as file:
            for line in file:
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError):
                    value = None
                yield value if isinstance(value, dict) else None
    except OSError as error:
        raise InputError(f"{path}: {os.strerror(error.errno or 0)}") from error


def _read_metrics(path: Path) -> tuple[dict[str, np.ndarray], list[dict[str, Any]], int]:
    rows: list[list[float | None]] = []
    phases: list[str] = []
    epochs: list[dict[str, Any]] = []
    num_damaged = 0
    for line in _json_lines(path):
        try:
            if line is None or not isinstance(line.get("phase"), str):
                raise ValueError("not a line of a run")
            if line.get("kind") == "epoch":
                epochs.append(_epoch(line))
            elif line.get("kind") == "step":
                row = [as_number(line.get(name)) for name in STEP_COLUMNS]
                if not all(place is not None and place >= 0 for place in row[:2]):
                    raise ValueError("no place in the run")
                rows.append(row)
                phases.append(clean(line["phase"]))
        except ValueError:
            num_damaged += 1
    table = np.array(rows, dtype=np.float64).reshape(-1, len(STEP_COLUMNS))  # None becomes NaN
    order = np.argsort(table[:, 1], kind="stable")
    steps = dict(zip(STEP_COLUMNS, table[order].T, strict=True)) | {"phase": np.array(phases, dtype=np.str_)[order]}
    return steps, epochs, num_damaged


def _epoch(line: dict[str, Any]) -> dict[str, Any]:
    epoch: dict[str, Any] = {name: as_number(line.get(name)) for name in EPOCH_NUMBERS}
    if epoch["epoch"] is None:
        raise ValueError("an epoch without a number")
    hist = line.get("hist")
    if hist is not None:
        if not isinstance(hist, dict):
            raise ValueError("hist should be an object")
        columns = [hist.get(name) for name in ("edges", "selected", "skipped")]
        if not all(isinstance(column, list) and column for column in columns):
            raise ValueError("hist should hold three lists")
        numbers = np.array([[as_number(value) for value in column] for column in columns if column], dtype=np.float64)
        if not np.isfinite(numbers).all() or (np.diff(numbers[0]) <= 0).any() or (numbers[1:] < 0).any():
            raise ValueError("hist holds no histogram")
        hist = numbers
    return epoch | {"phase": clean(line["phase"]), "hist": hist}


def _read_power(path: Path) -> tuple[list[PowerRow], int]:
    rows: list[PowerRow] = []
    num_damaged = 0
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            reader = csv.reader(file)
            if tuple(next(reader, ())) != COLUMNS:
                raise InputError(f"{path}: the first line should be {','.join(COLUMNS)}")
            for cells in reader:
                try:
                    t_s, uuid, watts, _, phase = cells
                    power = float(watts) if watts else None
                    row = PowerRow(float(t_s), clean(uuid), power, None, clean(phase))
                    if not 0 <= row.t_s < MAX_NUMBER or (power is not None and not 0 <= power < 1e6):
                        raise ValueError("not a power reading")
                    rows.append(row)
                except ValueError:
                    num_damaged += 1
    except OSError as error:
        raise InputError(f"{path}: {os.strerror(error.errno or 0)}") from error
    except csv.Error as error:
        raise InputError(f"{path}: not a CSV file ({error})") from error
    return sorted(rows, key=lambda row: row.t_s), num_damaged
