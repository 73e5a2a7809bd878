"""The tables of a run's page: all figures, options, the machine, and runs side by side."""

from __future__ import annotations

import dataclasses
import json
import shlex
from typing import Any

from fastast.config import TrainConfig
from fastast.number_text import duration, percent
from fastast.phases import DENSE
from fastast.record.run_record import RunRecord, clean

PERCENT, SHARE, COUNT = "accuracy", "share", "{:,.0f}"
Row = tuple[str, str, str, str]  # name, group and key in the summary, form
# All figures, in groups.
FIGURES: dict[str, tuple[Row, ...]] = {
    "Accuracy and work": (
        ("top-1", "accuracy", "val_top1", PERCENT),
        ("top-5", "accuracy", "val_top5", PERCENT),
        ("best top-1", "accuracy", "best_val_top1", PERCENT),
        ("best epoch (0: the probe)", "accuracy", "best_epoch", COUNT),
        ("top-1 of the probe", "accuracy", "probe_top1", PERCENT),
        ("top-1, mean over classes", "accuracy", "balanced_top1", PERCENT),
        ("offered", "samples", "offered", COUNT),
        ("scored", "samples", "scored", COUNT),
        ("trained (backward)", "samples", "backward", COUNT),
        ("optimizer steps", "samples", "steps", COUNT),
        ("non-finite steps, undone", "samples", "nonfinite_steps", COUNT),
        ("epochs of dense warm-up", "gate", "warmup_epochs", "{:.3g}"),
    ),
    "Time and compute": (
        ("total", "time_s", "total", "duration"),
        ("training", "time_s", "train", "duration"),
        ("evaluation", "time_s", "eval", "duration"),
        ("waiting for data", "time_s", "data_wait", "duration"),
        ("trained pictures, gated part", "throughput", "backward_per_s", "{:,.0f}/s"),
        ("forward units", "compute", "forward_units", COUNT),
        ("forward units if dense", "compute", "dense_forward_units", COUNT),
        ("ceiling of the gated part", "compute", "speedup_ceiling", "{:.2f}x"),
    ),
    "Energy": (
        ("GPU, whole run", "energy", "gpu_j", "{:,.0f} J"),
        ("GPU, training only", "energy", "train_gpu_j", "{:,.0f} J"),
        ("GPU, above idle", "energy", "gpu_j_above_idle", "{:,.0f} J"),
        ("CPU and DRAM", "energy", "cpu_j", "{:,.0f} J"),
        ("idle power", "energy", "idle_w", "{:.1f} W"),
        ("per picture, dense", "energy", "dense_j_per_sample", "{:.3g} J"),
        ("per picture, gated", "energy", "gated_j_per_sample", "{:.3g} J"),
    ),
}
OF_A_GATE = ("scored", "epochs of dense warm-up", "forward units if dense")  # say nothing of a dense run
# The comparison of runs.
COMPARED: tuple[Row, ...] = (
    ("top-1", "accuracy", "val_top1", PERCENT),
    ("best top-1", "accuracy", "best_val_top1", PERCENT),
    ("share, gated part", "gate", "activation_rate", SHARE),
    ("GPU energy", "energy", "gpu_j", "{:,.0f} J"),
    ("time", "time_s", "total", "duration"),
    ("forward units", "compute", "forward_units", COUNT),
    ("pictures/s, gated part, its start included", "throughput", "offered_per_s", COUNT),
    ("savings, whole run, measured", "energy", "run_savings_measured", SHARE),
    ("savings, whole run, counted", "energy", "run_savings_arithmetic", SHARE),
    ("savings, whole run, estimated", "energy", "run_savings_estimated", SHARE),
)


def text_of(value: float | None, form: str) -> str | None:
    """A number as text, in one of the forms above; None for None."""
    if value is None:
        return None
    if form in (PERCENT, SHARE):
        return percent(value, 2 if form == PERCENT else 1)
    return duration(value) if form == "duration" else form.format(value)


def all_figures(record: RunRecord) -> list[tuple[str, list[tuple[str, str]]]]:
    """Groups of figures, each a title and rows; what is not known is left out."""
    groups: list[tuple[str, list[tuple[str, str]]]] = []
    is_dense = record.text("gate", "name") == DENSE
    for title, rows in FIGURES.items():
        texts = [
            (name, text_of(record.number(group, key), form))
            for name, group, key, form in rows
            if not (is_dense and ("gated" in name or name in OF_A_GATE))
        ]
        if title == "Energy" and (source := record.text("energy", "source")):
            texts.append(("read from", source))
        groups.append((title, [(name, text) for name, text in texts if text is not None]))
    return [(title, rows) for title, rows in groups if rows]


def compared(records: list[RunRecord]) -> list[tuple[str, list[str]]]:
    """Figures of several runs side by side, a row for each that is known of one of them."""
    rows = []
    for name, group, key, form in COMPARED:
        texts = [text_of(record.number(group, key), form) for record in records]
        if any(text is not None for text in texts):
            rows.append((name, [text or "-" for text in texts]))
    return rows


def chosen_options(config: dict[str, Any]) -> list[tuple[str, str]]:
    """The options that are not as they are by default."""
    defaults = {
        field.name: field.default
        for field in dataclasses.fields(TrainConfig)
        if field.default is not dataclasses.MISSING
    }
    return table({name: value for name, value in config.items() if name not in defaults or value != defaults[name]})


def table(values: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and values of a JSON object as text."""
    return [
        (clean(key), clean(value if isinstance(value, str) else "-" if value is None else json.dumps(value)))
        for key, value in values.items()
    ]


def command_of(record: RunRecord) -> str:
    """The command line of the run, or nothing where it is not known."""
    argv = record.summary.get("argv")
    return clean(shlex.join(["fastast", *map(str, argv)])) if isinstance(argv, list) and argv else ""


def environment(record: RunRecord) -> list[tuple[str, str]]:
    """Version, machine, data and network."""
    summary = record.summary
    rows = [(name, str(summary[name])) for name in ("version", "commit", "seed") if summary.get(name) is not None]
    rows += hardware_data_model(summary)
    resumes = summary.get("resumes")
    if isinstance(resumes, list) and resumes:
        rows.append(("resumes", json.dumps(resumes)))
    return [("folder", clean(str(record.path.resolve()))), *((clean(name), clean(value)) for name, value in rows)]


def hardware_data_model(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Hardware, data and network of a summary."""
    groups = {group: summary.get(group) for group in ("hardware", "data", "model")}
    return [
        (f"{group}: {name}", value)
        for group, entry in groups.items()
        if isinstance(entry, dict)
        for name, value in table(entry)
    ]
