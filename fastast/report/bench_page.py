"""The page of a bench: the verdict first, then the figures behind it."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastast.errors import InputError
from fastast.report.bench_plots import Place, accuracy_by_epoch, accuracy_for, activations, places_of, thresholds
from fastast.report.bench_tables import against, parts_table, place_name, tables
from fastast.report.render import write_page
from fastast.report.run_record import RunRecord, clean, read_object, read_record
from fastast.report.run_tables import hardware_data_model, table

BENCH_FILE = "bench.json"


def write_bench_report(bench_dir: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Writes the page of a bench, finished or not.

    Args:
        bench_dir: the bench's folder, which holds `bench.json` and the folders of its runs.
        out: the file; `bench.html` in that folder by default.

    Returns:
        Path of the page.

    Raises:
        InputError: the folder holds no bench, `bench.json` is damaged, or the page cannot be written.
    """
    folder = Path(bench_dir)
    path = folder / "bench.html" if out is None else Path(out)
    source = folder / BENCH_FILE
    bench = _clean_strings(read_object(source))
    try:
        content = _describe_bench(bench, folder, path.resolve().parent)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{source}: damaged, or written by another version of fastast ({error!r})") from error
    return write_page(path, "bench_page.html", title=f"{content['name']} · fastast bench", **content)


def _clean_strings(value: Any) -> Any:
    """A copy of a JSON value with printable strings; line breaks stay."""
    if isinstance(value, str):
        return "\n".join(map(clean, value.split("\n")))
    if isinstance(value, list):
        return [_clean_strings(item) for item in value]
    return (
        {_clean_strings(key): _clean_strings(item) for key, item in value.items()} if isinstance(value, dict) else value
    )


def _describe_bench(bench: dict[str, Any], folder: Path, beside: Path) -> dict[str, Any]:
    """The values of the template: texts and figures; links are relative to the page's folder."""
    places = places_of(bench["runs"], bench["rows"])
    records = _read_runs(folder, places)
    verdict = bench["verdict"]
    # The last lines of the text, one for each gate, are a table here.
    conclusions = verdict["text"].split("\n")[: -len(verdict["gates"]) or None]
    seeds = bench["seeds"]
    first = bench["runs"][0]["summary"] if bench["runs"] else {}
    gates = [place for place in places if place.role in ("gate", "dense")]
    runs = [(place, [records[run] for run in place.folders.values() if run in records]) for place in gates]
    quarantine = _quarantine(records)
    return {
        "name": clean(folder.resolve().name),
        "folder": clean(str(folder.resolve())),
        "about": _about(bench, first),
        "finished": bench.get("finished", True),
        "num_runs": len({run["folder"] for run in bench["runs"]}),
        "conclusions": conclusions if bench["rows"] else ["No run came out."],
        "notes": bench["notes"],
        "against": against(bench["rows"], verdict["gates"]),
        "costs": [accuracy_for(places, "energy"), accuracy_for(places, "time")],
        "tables": tables(bench["rows"]),
        "parts": parts_table(bench.get("parts")),
        "parts_note": bench.get("parts_note"),
        "figures": [accuracy_by_epoch(runs), activations(runs), thresholds(runs)],
        "seeds": seeds,
        "runs": [_links(place, seeds, folder, beside) for place in places],
        "failures": [
            (f"{place_name(run['role'], run['for'], run['gate'])}, seed {run['seed']}", str(run["reason"]))
            for run in bench["failures"]
        ],
        "quarantine": quarantine[:200],
        "num_quarantined": len(quarantine),
        "options": table({**bench["options"], "epochs": bench["epochs"]}),
        "environment": [
            ("command", shlex.join(["fastast", *map(str, bench["argv"])])),
            ("seeds", ", ".join(map(str, seeds))),
            ("version", str(bench["version"])),
            ("commit", str(bench["commit"] or "-")),
            *hardware_data_model(first),
        ],
    }


def _read_runs(folder: Path, places: Sequence[Place]) -> dict[str, RunRecord]:
    """Curves and quarantine of the runs, by folder; an unreadable run is left out, as bench.json has its figures."""
    records = {}
    for name in dict.fromkeys(name for place in places for name in place.folders.values()):
        try:
            records[name] = read_record(folder / name, curves_only=True)
        except InputError:
            continue
    return records


def _quarantine(records: Mapping[str, RunRecord]) -> list[tuple[str, str]]:
    """Every quarantined picture, once; with the number of runs where not all quarantined it."""
    found = Counter(entry for record in records.values() for entry in dict.fromkeys(record.quarantine))
    total = len(records)
    return [
        (path, reason if count == total else f"{reason} (in {count} of {total} runs)")
        for (path, reason), count in found.items()
    ]


def _links(place: Place, seeds: Sequence[int], folder: Path, beside: Path) -> dict[str, Any]:
    """A row of the table of runs: for each seed its top-1 and a link to the page of the run."""
    cells = []
    for seed in seeds:
        page = folder / place.folders.get(seed, "") / "report.html"
        value = place.top1.get(seed)
        text = "-" if value is None else f"{100 * value:.2f} %"
        has_page = seed in place.folders and page.exists()
        cells.append((text, quote(os.path.relpath(page, beside)) if has_page else None))
    return {"name": place.name, "cells": cells}


def _about(bench: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    seeds = bench["seeds"]
    model, data = first.get("model") or {}, first.get("data") or {}
    count = f"{len(seeds)} seed{'s' if len(seeds) != 1 else ''}"
    parts = [
        str(model.get("arch") or bench["options"].get("arch") or ""),
        f"at {model['image_size']} px" if model.get("image_size") else "",
        f"on {data['train']:,} pictures of {data['classes']} classes" if data.get("train") else "",
    ]
    return f"{' '.join(filter(None, parts))} · {bench['epochs']:g} epochs for each gate · {count}"
