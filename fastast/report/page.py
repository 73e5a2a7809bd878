"""One self-contained HTML page from one run folder or several."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fastast._version import __version__
from fastast.errors import InputError
from fastast.files import write_whole
from fastast.report.compare import accuracy_curves, final_accuracy
from fastast.report.content import COMPARED, describe
from fastast.report.record import clean, read_record

TEMPLATES = Path(__file__).with_name("templates")


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
    return _write(path, title=f"{run['name']} · fastast", runs=[run], comparison=None, compared=())


def run_report(paths: Sequence[str], out: str | None = None) -> int:
    """The body of `fastast report RUN [RUN ...] [--out FILE]`: writes a page and prints its path.

    Args:
        paths: run folders; several are put side by side, with a section each.
        out: the file; by default `report.html` in the run folder, `comparison.html` here for several.

    Returns:
        The exit code.

    Raises:
        InputError: as `write_report`.
    """
    if len(paths) == 1:
        page = write_report(paths[0], out)
    else:
        records = list(zip(_names(paths), map(read_record, paths), strict=True))
        runs = [describe(record, prefix=f"run-{i}-", name=name) for i, (name, record) in enumerate(records, 1)]
        page = _write(
            Path(out or "comparison.html"),
            title=f"{len(runs)} runs · fastast",
            runs=runs,
            compared=COMPARED,
            comparison=[
                final_accuracy(records),
                accuracy_curves(records, "seconds", "seconds"),
                accuracy_curves(records, "gpu_j", "joules"),
            ],
        )
    print(page)
    return 0


def _names(paths: Sequence[str]) -> list[str]:
    """The folders' names, or their whole paths where two share a name."""
    names = [clean(Path(path).resolve().name) for path in paths]
    return names if len(set(names)) == len(names) else [clean(str(path)) for path in paths]


def _write(path: Path, **values: Any) -> Path:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Our own files, which hold no value: the page allows this one script, by its hash, and no request at all.
    script = (TEMPLATES / "theme.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template("report.html").render(
        script=Markup(script),
        script_hash=digest,
        style=Markup(environment.get_template("style.css").render()),
        version=__version__,
        **values,
    )
    try:
        write_whole(path, page.encode("utf-8", "replace"))
    except OSError as error:
        raise InputError(f"{path}: {os.strerror(error.errno or 0)}; name another file with --out") from error
    return path
