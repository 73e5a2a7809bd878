"""The content of a run's page: figures, tables and formatted numbers."""

from __future__ import annotations

import json
from typing import Any

from fastast.loggers.console import duration
from fastast.report import run_plots as plots
from fastast.report.comparison_plots import accuracy_for_energy, accuracy_for_time
from fastast.report.gallery import gallery
from fastast.report.power_plot import power
from fastast.report.run_record import RunRecord, clean

NOT_MEASURED = "not measured"
SAVINGS = (
    ("estimated", "As AST counts: an active sample costs 1, a skipped one 0.01."),
    ("arithmetic", "Counted work in forwards of the full-size network: forward 1, backward 2."),
    ("measured", "GPU joules per offered sample against dense training in the same run."),
)
SAMPLES = (
    *(("offered", "offered"), ("scored", "scored"), ("trained (backward)", "backward")),
    *(("optimizer steps", "steps"), ("non-finite steps, undone", "nonfinite_steps")),
)
TIMES = (("total", "total"), ("training", "train"), ("evaluation", "eval"), ("waiting for data", "data_wait"))
JOULES = (
    ("GPU, whole run", "gpu_j", "J"),
    ("GPU, training only", "train_gpu_j", "J"),
    ("GPU, above idle", "gpu_j_above_idle", "J"),
    ("CPU and DRAM", "cpu_j", "J"),
    ("idle power", "idle_w", "W"),
    ("per sample, dense", "dense_j_per_sample", "J"),
    ("per sample, gated", "gated_j_per_sample", "J"),
)
COMPARED = (
    *("gate", "val top-1", "best top-1", "activation, gated part", "forward units", "ceiling, gated part"),
    *(f"savings, whole run, {kind}" for kind, _ in SAVINGS),
    *("GPU energy, J", "time", "offered/s, gated part"),
)


def describe_run(record: RunRecord, *, prefix: str, name: str | None = None) -> dict[str, Any]:
    """The values of the template for one run: texts, formatted numbers and figures.

    Args:
        record: the run.
        prefix: of the section's anchors, to be unique in a page of several runs.
        name: of the run; its folder's name by default.
    """
    arch, gate = (record.text("model", "arch") or _config(record, "arch")), record.text("gate", "name")
    return {
        "name": name or clean(record.path.resolve().name),
        "prefix": prefix,
        "path": clean(str(record.path.resolve())),
        "arch": arch,
        "gate": gate or _config(record, "gate"),
        "tiles": _tiles(record),
        "verdict": _verdict(record),
        "unfinished": not record.summary,
        "stopped": record.summary.get("stopped") and clean(str(record.summary["stopped"])),
        "savings": [_saving(record, kind, meaning) for kind, meaning in SAVINGS],
        "scope": _scope(record),
        "notes": record.texts("energy", "notes"),
        "power": power(record),
        "figures": [
            make(record)
            for make in (
                *(plots.accuracy, accuracy_for_energy, accuracy_for_time, plots.loss),
                *(plots.activation, plots.threshold, plots.throughput, plots.data_wait),
            )
        ],
        "histogram": plots.loss_histogram(record),
        "gallery": gallery(record),
        "has_samples": record.samples is not None,
        "quarantine": record.quarantine,
        "num_quarantined": record.num_quarantined,
        "num_damaged": record.num_damaged,
        "options": table(record.config),
        "environment": _run_environment(record),
        "row": _row(record),
    }


def _percent(value: float | None, missing: str = "-") -> str:
    return missing if value is None else f"{value * 100:.2f} %"


def _count(value: float | None, unit: str = "") -> str:
    return "-" if value is None else f"{value:,.0f}{unit}"


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"


def _seconds(value: float | None) -> str:
    return "-" if value is None else duration(value)


def _config(record: RunRecord, key: str) -> str:
    return clean(str(record.config.get(key, "?")))


def _tiles(record: RunRecord) -> list[tuple[str, str, str]]:
    """The four main figures: value, name, and a value to compare it with."""
    top1, best = record.number("accuracy", "val_top1"), record.number("accuracy", "best_val_top1")
    if not record.summary and record.epochs:
        top1 = record.epochs[-1]["val_top1"]
    active, target = record.number("gate", "activation_rate"), record.number("gate", "target")
    energy = record.number("energy", "gpu_j")
    tiles = [
        (_percent(top1), "validation top-1", f"best {_percent(best)}"),
        (_percent(active), "active in the gated part", "" if target is None else f"target {_percent(target)}"),
        (_seconds(record.number("time_s", "total")), "training and evaluation", ""),
        (NOT_MEASURED, "GPU energy", "reason below") if energy is None else (_count(energy, " J"), "GPU energy", ""),
    ]
    if not record.summary:
        return tiles[:1]
    return tiles if active is not None else [tiles[0], *tiles[2:]]


def _verdict(record: RunRecord) -> list[tuple[str, list[tuple[str, str]]]]:
    """The main table in three groups, each a title and rows."""
    if not record.summary:
        return []
    number = record.number
    best, best_epoch = _percent(number("accuracy", "best_val_top1")), number("accuracy", "best_epoch")
    work = [
        ("top-1", _percent(number("accuracy", "val_top1"))),
        ("top-5", _percent(number("accuracy", "val_top5"))),
        ("best top-1", best if best_epoch is None else f"{best}, epoch {best_epoch:.0f}"),
        *((name, _count(number("samples", key))) for name, key in SAMPLES),
    ]
    pace = [
        *((name, _seconds(number("time_s", key))) for name, key in TIMES),
        ("throughput, gated part", _count(number("throughput", "offered_per_s"), " offered/s")),
        ("forward units", _count(number("compute", "forward_units"))),
        ("forward units if dense", _count(number("compute", "dense_forward_units"))),
        ("ceiling, gated part", _times(number("compute", "speedup_ceiling"))),
    ]
    energy = []
    for name, key, unit in JOULES:
        value = number("energy", key)
        text = NOT_MEASURED if value is None else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4g}"
        energy.append((name, text if value is None else f"{text} {unit}"))
    energy.append(("source", record.text("energy", "source") or NOT_MEASURED))
    return [("Accuracy and work", work), ("Time and compute", pace), ("Energy", energy)]


def _saving(record: RunRecord, kind: str, meaning: str) -> dict[str, Any]:
    """One definition of savings: a bar for the gated part and one for the whole run."""
    notes = record.texts("energy", "notes")
    reason = next((note for note in notes if "savings not measured" in note), None)
    bars = []
    for scope, key in (("gated part", f"savings_{kind}"), ("whole run", f"run_savings_{kind}")):
        value = record.number("energy", key)
        length = 0.0 if value is None else min(abs(value), 1.0) * 100
        flags = {"missing": value is None, "loss": value is not None and value < 0}
        bars.append({"scope": scope, "text": _percent(value, NOT_MEASURED), "length": f"{length:.2f}", **flags})
    missing = all(bar["missing"] for bar in bars)
    default = "The run recorded no reason." if record.summary else "The run has not ended."
    why = (reason or default) if missing else None
    return {"name": kind, "meaning": meaning, "bars": bars, "reason": why}


def _scope(record: RunRecord) -> str:
    warmup = record.number("gate", "warmup_epochs")
    if record.text("gate", "name") == "dense":
        return "A dense run has no gated part: both bars are of all of it."
    text = "The gated part leaves warm-up and anneal out; the whole run counts them."
    if warmup:
        text += f" {warmup:g} of {_config(record, 'epochs').removesuffix('.0')} epochs were dense warm-up."
    return text


def table(values: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and values of a JSON object as text."""
    return [
        (clean(key), clean(value if isinstance(value, str) else "-" if value is None else json.dumps(value)))
        for key, value in values.items()
    ]


def _run_environment(record: RunRecord) -> list[tuple[str, str]]:
    summary = record.summary
    argv = summary.get("argv")
    rows = [("command", "fastast " + " ".join(map(str, argv)))] if isinstance(argv, list) else []
    rows += [(name, str(summary[name])) for name in ("version", "commit", "seed") if summary.get(name) is not None]
    rows += hardware_data_model(summary)
    resumes = summary.get("resumes")
    if isinstance(resumes, list) and resumes:
        rows.append(("resumes", json.dumps(resumes)))
    return [(clean(name), clean(value)) for name, value in rows]


def hardware_data_model(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Hardware, data and network of a summary."""
    groups = {group: summary.get(group) for group in ("hardware", "data", "model")}
    return [
        (f"{group}: {name}", value)
        for group, entry in groups.items()
        if isinstance(entry, dict)
        for name, value in table(entry)
    ]


def _row(record: RunRecord) -> list[str]:
    """A column of the comparison table, in the order of `COMPARED`."""
    number = record.number
    savings = [_percent(number("energy", f"run_savings_{kind}"), NOT_MEASURED) for kind, _ in SAVINGS]
    return [
        record.text("gate", "name") or _config(record, "gate"),
        _percent(number("accuracy", "val_top1")),
        _percent(number("accuracy", "best_val_top1")),
        _percent(number("gate", "activation_rate")),
        _count(number("compute", "forward_units")),
        _times(number("compute", "speedup_ceiling")),
        *savings,
        _count(number("energy", "gpu_j")) if number("energy", "gpu_j") is not None else NOT_MEASURED,
        _seconds(number("time_s", "total")),
        _count(number("throughput", "offered_per_s")),
    ]
