"""The page of one run, and of several runs side by side."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fastast.report.comparison_plots import accuracy_curves, final_accuracy
from fastast.report.render import write_page
from fastast.report.run_record import clean, read_record
from fastast.report.run_tables import describe_run


def write_report(run_dir: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Writes the page of one run.

    Args:
        run_dir: the run folder.
        out: the file; `report.html` in the run folder by default.

    Returns:
        Path of the page.

    Raises:
        InputError: the folder holds no run, one of its files is damaged, or the page cannot be written.
    """
    path = Path(run_dir) / "report.html" if out is None else Path(out)
    run = describe_run(read_record(run_dir), prefix="")
    return write_page(path, "run_page.html", title=f"{run['name']} · fastast", runs=[run], comparison=None)


def write_comparison(run_dirs: Sequence[str], out: str) -> Path:
    """Writes one page about several runs; arguments and errors are as of `write_report`."""
    names = [clean(Path(path).resolve().name) for path in run_dirs]
    if len(set(names)) < len(names):
        names = [clean(str(path)) for path in run_dirs]
    records = list(zip(names, map(read_record, run_dirs), strict=True))
    runs = [describe_run(record, prefix=f"run-{i}-", name=name) for i, (name, record) in enumerate(records, 1)]
    return write_page(
        Path(out),
        "run_page.html",
        title=f"{len(runs)} runs · fastast",
        runs=runs,
        comparison=[final_accuracy(records), accuracy_curves(records, "seconds"), accuracy_curves(records, "gpu_j")],
    )
