"""The content of a run's page: figures, tables and formatted numbers."""

from __future__ import annotations

import json
from typing import Any

from fastast.gates.registry import AUTO
from fastast.loggers.console import duration, probe_verdict
from fastast.report import run_plots as plots
from fastast.report.comparison_plots import accuracy_curves, accuracy_for_energy
from fastast.report.gallery import IMPROBABLE, gallery, suspects
from fastast.report.power_plot import power
from fastast.report.run_record import RunRecord, clean

NOT_MEASURED = "not measured"
SAVINGS = (
    ("estimated", "As AST counts: an active sample costs 1, a skipped one 0.01."),
    ("arithmetic", "Counted work in forwards of the full-size network: forward 1, backward 2."),
    ("measured", "GPU joules per sample against dense training in the same run."),
)
SAMPLES = (
    *(("offered", "offered"), ("scored", "scored"), ("trained (backward)", "backward")),
    *(("optimizer steps", "steps"), ("non-finite steps, undone", "nonfinite_steps")),
)
TIMES_S = (("total", "total"), ("training", "train"), ("evaluation", "eval"), ("waiting for data", "data_wait"))
JOULES = (
    ("GPU, whole run", "gpu_j", "J"),
    ("GPU, training only", "train_gpu_j", "J"),
    ("GPU, above idle", "gpu_j_above_idle", "J"),
    ("CPU and DRAM", "cpu_j", "J"),
    ("idle power", "idle_w", "W"),
    ("per sample, dense", "dense_j_per_sample", "J"),
    ("per sample, gated", "gated_j_per_sample", "J"),
)
PERCENT, COUNT, TIMES = "{:.2%}", "{:,.0f}", "{:.2f}x"
# Rows of the comparison of runs: name, group and name in the summary, form, and text without a number.
COMPARED = (
    ("val top-1", "accuracy", "val_top1", PERCENT, "-"),
    ("best top-1", "accuracy", "best_val_top1", PERCENT, "-"),
    ("activation, gated part", "gate", "activation_rate", PERCENT, "-"),
    ("forward units", "compute", "forward_units", COUNT, "-"),
    ("ceiling, gated part", "compute", "speedup_ceiling", TIMES, "-"),
    *(
        (f"savings, whole run, {kind}", "energy", f"run_savings_{kind}", PERCENT, NOT_MEASURED)
        for kind in ("estimated", "arithmetic", "measured")
    ),
    ("GPU energy, J", "energy", "gpu_j", COUNT, NOT_MEASURED),
    ("time", "time_s", "total", "duration", "-"),
    ("offered/s, gated part", "throughput", "offered_per_s", COUNT, "-"),
)


def describe_run(record: RunRecord, *, prefix: str, name: str | None = None) -> dict[str, Any]:
    """The values of the template for one run: texts, formatted numbers and figures.

    Args:
        record: the run.
        prefix: of the section's anchors, to be unique in a page of several runs.
        name: of the run; its folder's name by default.
    """
    gate = record.text("gate", "name") or _config(record, "gate")
    compared = [(title, _shown(record, *column)) for title, *column in COMPARED]
    return {
        "name": name or clean(record.path.resolve().name),
        "prefix": prefix,
        "path": clean(str(record.path.resolve())),
        "arch": record.text("model", "arch") or _config(record, "arch"),
        "gate": gate,
        "tiles": _tiles(record),
        "verdict": _verdict(record),
        "unfinished": not record.summary,
        "stopped": record.summary.get("stopped") and clean(str(record.summary["stopped"])),
        "savings": [_saving(record, kind, meaning) for kind, meaning in SAVINGS],
        "scope": _scope(record),
        "notes": record.texts("energy", "notes"),
        "power": power(record),
        "figures": [
            *(plots.accuracy(record), accuracy_for_energy(record), accuracy_curves([("", record)], "seconds")),
            *(plots.loss(record), *([plots.share(record)] if record.config.get("target") == AUTO else ())),
            *(plots.activation(record), plots.threshold(record)),
            *(plots.throughput(record), plots.data_wait(record)),
        ],
        "histogram": plots.loss_histogram(record),
        "gallery": gallery(record),
        "suspects": suspects(record),
        "improbable": f"{IMPROBABLE:.0%}",
        "has_samples": record.samples is not None,
        "quarantine": record.quarantine,
        "num_quarantined": record.num_quarantined,
        "num_damaged": record.num_damaged,
        "options": table(record.config),
        "environment": _run_environment(record),
        "compared": [("gate", gate), *compared],
    }


def _shown(record: RunRecord, group: str, name: str, form: str, missing: str = "-") -> str:
    """A number of the summary as text."""
    value = record.number(group, name)
    if value is None:
        return missing
    return duration(value) if form == "duration" else form.format(value).replace("%", " %")


def _config(record: RunRecord, key: str) -> str:
    return clean(str(record.config.get(key, "?")))


def _tiles(record: RunRecord) -> list[tuple[str, str, str]]:
    """The four main figures: value, name, and a value to compare it with."""
    top1 = _shown(record, "accuracy", "val_top1", PERCENT)
    if not record.summary:
        last = record.epochs[-1]["val_top1"] if record.epochs else None
        return [("-" if last is None else f"{100 * last:.2f} %", "validation top-1", "best -")]
    target = _shown(record, "gate", "target", "target {:.2%}", "")
    energy = _shown(record, "energy", "gpu_j", "{:,.0f} J", NOT_MEASURED)
    tiles = [
        (top1, "validation top-1", f"best {_shown(record, 'accuracy', 'best_val_top1', PERCENT)}"),
        (_shown(record, "gate", "activation_rate", PERCENT), "active in the gated part", target),
        (_shown(record, "time_s", "total", "duration"), "training and evaluation", ""),
        (energy, "GPU energy", "reason below" if energy == NOT_MEASURED else ""),
    ]
    return tiles if record.number("gate", "activation_rate") is not None else [tiles[0], *tiles[2:]]


def _verdict(record: RunRecord) -> list[tuple[str, list[tuple[str, str]]]]:
    """The main table in three groups, each a title and rows."""
    if not record.summary:
        return []
    work = [
        ("top-1", _shown(record, "accuracy", "val_top1", PERCENT)),
        ("top-5", _shown(record, "accuracy", "val_top5", PERCENT)),
        (
            "best top-1",
            _shown(record, "accuracy", "best_val_top1", PERCENT)
            + _shown(record, "accuracy", "best_epoch", ", epoch {:.0f}", "").replace("epoch 0", "the probe"),
        ),
        *_probe(record),
        *((name, _shown(record, "samples", key, COUNT)) for name, key in SAMPLES),
    ]
    pace = [
        *((name, _shown(record, "time_s", key, "duration")) for name, key in TIMES_S),
        ("throughput, gated part", _shown(record, "throughput", "offered_per_s", "{:,.0f} offered/s")),
        ("forward units", _shown(record, "compute", "forward_units", COUNT)),
        ("forward units if dense", _shown(record, "compute", "dense_forward_units", COUNT)),
        ("ceiling, gated part", _shown(record, "compute", "speedup_ceiling", TIMES)),
    ]
    energy = []
    for name, key, unit in JOULES:
        form = COUNT if abs(record.number("energy", key) or 0.0) >= 100 else "{:.4g}"
        energy.append((name, _shown(record, "energy", key, f"{form} {unit}", NOT_MEASURED)))
    energy.append(("source", record.text("energy", "source") or NOT_MEASURED))
    return [("Accuracy and work", work), ("Time and compute", pace), ("Energy", energy)]


def _probe(record: RunRecord) -> list[tuple[str, str]]:
    """The row of a probe, if there was one."""
    accuracy = {name: record.number("accuracy", name) for name in ("probe_top1", "val_top1")}
    return [] if accuracy["probe_top1"] is None else [("probe top-1", probe_verdict(accuracy))]


def _saving(record: RunRecord, kind: str, meaning: str) -> dict[str, Any]:
    """One definition of savings: a bar for the gated part and one for the whole run."""
    bars = []
    for scope, key in (("gated part", f"savings_{kind}"), ("whole run", f"run_savings_{kind}")):
        value = record.number("energy", key)
        text = _shown(record, "energy", key, PERCENT, NOT_MEASURED)
        bars.append(
            {"scope": scope, "text": text, "length": f"{min(abs(value or 0.0), 1.0) * 100:.2f}", "value": value}
        )
    note, notes = None, record.texts("energy", "notes")
    if all(bar["value"] is None for bar in bars):
        default = "The run recorded no reason." if record.summary else "The run has not ended."
        note = next((note for note in notes if "savings not measured" in note), default)
    elif kind == "measured":  # with what differs between the two parts
        note = next((note for note in notes if note.startswith("measured savings")), None)
    return {"name": kind, "meaning": meaning, "bars": bars, "note": note}


def _scope(record: RunRecord) -> str:
    if record.text("gate", "name") == "dense":
        return "A dense run has no gated part: both bars are of all of it."
    text = "The gated part leaves warm-up and anneal out; the whole run counts them."
    if warmup := record.number("gate", "warmup_epochs"):
        text += f" {warmup:.3g} epochs were dense warm-up."
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
