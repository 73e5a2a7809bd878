"""The page of one run, alone or beside a baseline, and of several runs side by side."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastast.gates.registry import AUTO
from fastast.number_text import counted, percent
from fastast.phases import DENSE
from fastast.plots import run_plots as plots
from fastast.plots.comparison_plots import accuracy_curves
from fastast.plots.power_plot import power
from fastast.record.run_record import RunRecord, clean, read_record
from fastast.report import answers
from fastast.report.baseline import Beside, put_beside
from fastast.report.gallery import IMPROBABLE, gallery, suspects
from fastast.report.mistakes import mistakes
from fastast.report.render import write_page
from fastast.report.run_tables import all_figures, chosen_options, command_of, compared, environment, table


def write_report(
    run_dir: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    baseline: str | os.PathLike[str] | None = None,
    tell: Callable[[str], object] | None = None,
) -> Path:
    """Writes the page of one run.

    Args:
        run_dir: the run folder.
        out: the file; `report.html` in the run folder by default.
        baseline: the folder of another run, on the same pictures, that this one is measured by.
        tell: called with what the page says first.

    Returns:
        Path of the page.

    Raises:
        InputError: a folder holds no run, one of its files is damaged, the two runs are of other pictures, or the page
            cannot be written.
    """
    path = Path(run_dir) / "report.html" if out is None else Path(out)
    record = read_record(run_dir)
    beside = None if baseline is None else put_beside(record, read_record(baseline))
    run = describe_run(record, prefix="", beside=beside)
    if tell is not None:
        tell(f"{run['answer'].text} {run['answer'].command}".rstrip())
    return write_page(path, "run_page.html", title=f"{run['title']} · fastast", runs=[run], comparison=None)


def write_comparison(run_dirs: Sequence[str], out: str) -> Path:
    """Writes one page about several runs; arguments and errors are as of `write_report`."""
    names = [clean(Path(path).resolve().name) for path in run_dirs]
    if len(set(names)) < len(names):
        names = [clean(str(path)) for path in run_dirs]
    records = list(map(read_record, run_dirs))
    runs = [
        {**describe_run(record, prefix=f"run-{i}-"), "name": name}
        for i, (name, record) in enumerate(zip(names, records, strict=True), 1)
    ]
    named = list(zip(names, records, strict=True))
    curves = [accuracy_curves(named, key) for key in ("seconds", "forward_units", "gpu_j")]
    return write_page(
        Path(out),
        "run_page.html",
        title=f"{len(runs)} runs · fastast",
        runs=runs,
        comparison={"rows": compared(records), "figures": [curve for curve in curves if curve is not None]},
    )


def describe_run(record: RunRecord, *, prefix: str, beside: Beside | None = None) -> dict[str, Any]:
    """The values of the template for one run: texts, formatted numbers and figures.

    Args:
        record: the run.
        prefix: of the section's anchors, to be unique in a page of several runs.
        beside: what it is measured by, if anything.
    """
    is_auto = record.config.get("target") == AUTO
    learning = [plots.accuracy(record), plots.loss(record)]
    choosing = [plots.share(record) if is_auto else plots.activation(record), plots.loss_histogram(record)]
    speed = [plots.throughput(record), plots.data_wait(record)]
    return {
        "title": answers.title(record),
        "prefix": prefix,
        "about": _about(record),
        "answer": answers.answer(record) if beside is None else beside.answer,
        "tiles": answers.tiles(record),
        "beside": beside,
        "stopped": record.summary.get("stopped") and clean(str(record.summary["stopped"])),
        "num_damaged": record.num_damaged,
        "savings": answers.savings(record),
        "passes": answers.passes(record),
        "unmeasured": answers.unmeasured(record),
        "notes": record.texts("energy", "notes"),
        "learning": _drawn(learning),
        "mistakes": mistakes(record),
        "is_dense": answers.gate_of(record) == DENSE,
        "choosing": [] if answers.gate_of(record) == DENSE else _drawn(choosing),
        "gallery": gallery(record),
        "suspects": suspects(record),
        "probed": bool(record.summary.get("probe")),
        "improbable": percent(IMPROBABLE, 0),
        "speed": _drawn(speed),
        "power": power(record),
        "controller": _drawn([plots.threshold(record)]),
        "quarantine": record.quarantine,
        "num_quarantined": record.num_quarantined,
        "figures": all_figures(record),
        "command": command_of(record),
        "chosen": chosen_options(record.config),
        "options": table(record.config),
        "environment": environment(record),
    }


def _drawn(figures: Sequence[Any]) -> list[Any]:
    return [figure for figure in figures if figure is not None]


def _about(record: RunRecord) -> str:
    train, val = (record.number("data", key) for key in ("train", "val"))
    size = record.config.get("image_size")
    parts = [
        f"{train:,.0f} training and {val:,.0f} validation pictures" if train and val else "",
        counted(len(record.classes), "class", "classes") if record.classes else "",
        f"{size} px" if isinstance(size, int) else "",
        clean(str(record.path.resolve())),
    ]
    return " · ".join(filter(None, parts))
