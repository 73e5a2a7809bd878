"""One self-contained HTML page from one run folder or several."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fastast.errors import InputError
from fastast.report.bench import BENCH_FILE, write_bench_report
from fastast.report.compare import accuracy_curves, final_accuracy
from fastast.report.content import COMPARED, describe
from fastast.report.html import write_page
from fastast.report.record import clean, read_record


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
    run = describe(read_record(run_dir), prefix="")
    return write_page(path, "report.html", title=f"{run['name']} · fastast", runs=[run], comparison=None, compared=())


def run_report(paths: Sequence[str], out: str | None = None) -> int:
    """The body of `fastast report RUN [RUN ...] [--out FILE]`: writes a page and prints its path.

    Args:
        paths: run folders; several are put side by side, with a section each. A bench's folder stands alone.
        out: the file; by default `report.html` in the run folder, `bench.html` in a bench's, `comparison.html` here
            for several.

    Returns:
        The exit code.

    Raises:
        InputError: as `write_report`.
    """
    benches = [path for path in paths if Path(path, BENCH_FILE).exists()]
    if benches and len(paths) > 1:
        raise InputError(f"{benches[0]}: is a bench, which has a page of its own; name it alone, or single runs")
    if benches:
        page = write_bench_report(benches[0], out)
    elif len(paths) == 1:
        page = write_report(paths[0], out)
    else:
        records = list(zip(_names(paths), map(read_record, paths), strict=True))
        runs = [describe(record, prefix=f"run-{i}-", name=name) for i, (name, record) in enumerate(records, 1)]
        page = write_page(
            Path(out or "comparison.html"),
            "report.html",
            title=f"{len(runs)} runs · fastast",
            runs=runs,
            compared=COMPARED,
            comparison=[
                final_accuracy(records),
                accuracy_curves(records, "seconds"),
                accuracy_curves(records, "gpu_j"),
            ],
        )
    print(page)
    return 0


def _names(paths: Sequence[str]) -> list[str]:
    """The folders' names, or their whole paths where two share a name."""
    names = [clean(Path(path).resolve().name) for path in paths]
    return names if len(set(names)) == len(names) else [clean(str(path)) for path in paths]
