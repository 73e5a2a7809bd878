"""The page of a bench: the verdict and the picture first, then the figures behind them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fastast.errors import InputError
from fastast.number_text import counted
from fastast.plots.bench_plots import UNITS, Look, accuracy_against_cost, curves_of, how_to_read, looks_of
from fastast.plots.svg import Figure
from fastast.record.run_record import clean, read_object
from fastast.report.answers import data_name
from fastast.report.bench_tables import (
    Table,
    accuracy_table,
    cost_table,
    paired_tables,
    points_table,
    reference_of,
    runs_table,
)
from fastast.report.render import write_page
from fastast.report.run_tables import hardware_data_model, table

BENCH_FILE = "bench.json"
SCHEMA = 2
MAX_GATES = 4  # in the title
UNIT_OF_BUDGET = {"ep": "units", "time": "seconds", "joules": "joules"}


class View(NamedTuple):
    """What the page shows for one unit of cost."""

    key: str  # of `UNITS`
    name: str
    figure: Figure | None
    caption: str
    table: Table
    reason: str  # why there is no figure, or which arms it lacks


def write_bench_report(
    bench_dir: str | os.PathLike[str], out: str | os.PathLike[str] | None = None, *, name: str = BENCH_FILE
) -> Path:
    """Writes the page of a bench, finished or not.

    Args:
        bench_dir: the bench's folder, which holds `bench.json` and the folders of its runs.
        out: the file; by default in that folder, `bench.html` for `bench.json`.
        name: of the file of figures in that folder.

    Returns:
        Path of the page.

    Raises:
        InputError: the folder holds no bench, the file is damaged or of another schema, or the page cannot be
            written.
    """
    folder = Path(bench_dir)
    source = folder / name
    path = source.with_suffix(".html") if out is None else Path(out)
    bench = _clean_strings(read_object(source))
    if bench.get("schema") != SCHEMA:
        raise InputError(
            f"{source}: of schema {bench.get('schema')}, while this version shows schema {SCHEMA}; run the bench again "
            "with another --out, or show it with the version that wrote it"
        )
    try:
        content = _describe_bench(bench, folder, path.resolve().parent)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{source}: damaged ({error!r}); the bench's command writes it anew") from error
    return write_page(path, "bench_page.html", title=f"{content['heading']} · fastast bench", **content)


def _clean_strings(value: Any) -> Any:
    """A copy of a JSON value with printable strings."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list):
        return [_clean_strings(item) for item in value]
    if isinstance(value, dict):
        return {clean(key): _clean_strings(item) for key, item in value.items()}
    return value


def _describe_bench(bench: dict[str, Any], folder: Path, beside: Path) -> dict[str, Any]:
    """The values of the template: texts and figures; links are relative to the page's folder."""
    looks = looks_of(bench["arms"], reference_of(bench))
    views = [_view(bench, looks, unit) for unit in UNITS]
    kinds = [budget["kind"] for budget in bench["budgets"]]
    wanted = [UNIT_OF_BUDGET.get(kind, "units") for kind in kinds] + list(UNITS)
    shown = [unit for unit in wanted if any(view.key == unit and view.figure is not None for view in views)]
    first = bench["runs"][0]["summary"] if bench["runs"] else {}
    return {
        "heading": _title(bench, first),
        "about": _about(bench, first, folder),
        "finished": bench["finished"],
        "num_runs": len(bench["runs"]),
        "over_seeds": f"over {counted(len(bench['seeds']), 'seed')}",
        "sentences": bench["verdict"]["sentences"],
        "views": views,
        "shown": shown[0] if shown else None,
        "looks": looks,
        "reference": reference_of(bench),
        # The line about joules stands beside the switch.
        "notes": [note for note in bench["notes"] if not note.startswith("joules were not measured")],
        "accuracy": accuracy_table(bench),
        "paired": paired_tables(bench),
        "points": points_table(bench),
        "runs": runs_table(bench, folder, beside),
        "failures": [
            (f"{failure['arm']}, {failure['budget']}, seed {failure['seed']}", str(failure["reason"]))
            for failure in bench["failures"]
        ],
        "arms": [(arm["name"], _options(arm["options"])) for arm in bench["arms"]],
        "options": table(bench["options"]),
        "command": shlex.join(["fastast", *map(str, bench["argv"])]),
        "environment": [
            ("folder", clean(str(folder.resolve()))),
            ("seeds", ", ".join(map(str, bench["seeds"]))),
            ("budgets", ", ".join(budget["name"] for budget in bench["budgets"])),
            ("version", str(bench["version"])),
            ("commit", str(bench["commit"] or "-")),
            *hardware_data_model({**first, "hardware": bench["hardware"]}),
        ],
    }


def _view(bench: Mapping[str, Any], looks: list[Look], unit: str) -> View:
    """The picture and the table of costs in one unit."""
    name = UNITS[unit].name
    curves = curves_of(looks, bench["points"], unit)
    drawn = {look.name for look, _ in curves}
    missing = [arm for arm in dict.fromkeys(point["arm"] for point in bench["points"]) if arm not in drawn]
    reason = ""
    if not bench["points"]:
        reason = "no run has come out yet"
    elif not curves:
        reason = f"{name}: not measured. {_why(bench, unit)}".strip()
    elif missing:
        reason = f"{name}: not measured for {', '.join(missing)}."
    figure = accuracy_against_cost(curves, unit) if curves else None
    return View(unit, name, figure, how_to_read(curves, unit), cost_table(bench, unit), reason)


def _why(bench: Mapping[str, Any], unit: str) -> str:
    """What the runs say of joules that they could not read."""
    if unit != "joules":
        return ""
    notes = [note for run in bench["runs"] for note in (run["summary"].get("energy") or {}).get("notes") or []]
    notes.sort(key=lambda note: not note.startswith("GPU"))
    return f"{notes[0]}." if notes else "The runs recorded no reason."


def _options(options: Any) -> str:
    """The options of an arm as in `--arms`."""
    if not isinstance(options, dict):
        return str(options)
    return ", ".join(f"{name}={value}" for name, value in table(options)) or "none of its own"


def _title(bench: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    """What was trained: network, data set and gates."""
    arch = (first.get("model") or {}).get("arch") or bench["options"].get("arch") or "network"
    gates = dict.fromkeys(str(arm["name"]).partition(":")[0] for arm in bench["arms"])
    arms = ", ".join(gates) if len(gates) <= MAX_GATES else f"{len(bench['arms'])} arms"
    return f"{arch} on {data_name(bench['options'])}: {arms}"


def _about(bench: Mapping[str, Any], first: Mapping[str, Any], folder: Path) -> str:
    model, data = first.get("model") or {}, first.get("data") or {}
    pictures, classes = (data.get(key) or 0 for key in ("train", "classes"))
    parts = [
        f"{counted(pictures, 'picture')} of {counted(classes, 'class', 'classes')}" if pictures else "",
        f"at {model['image_size']} px" if model.get("image_size") else "",
    ]
    counts = [
        counted(len(bench[name]), word) for name, word in (("arms", "arm"), ("budgets", "budget"), ("seeds", "seed"))
    ]
    texts = [" ".join(filter(None, parts)), " \N{MULTIPLICATION SIGN} ".join(counts), clean(folder.resolve().name)]
    return " · ".join(filter(None, texts))
