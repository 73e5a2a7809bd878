"""Turns a finished `fastast bench` into a committed result: its rows and verdict as JSON and Markdown.

    python -m benchmarks.bench_results R --name imagenette_scratch --title "Imagenette from scratch" [--out DIR]

R is the bench's folder. Written are DIR/NAME.json and DIR/NAME.md (DIR: benchmarks/results). Run it where the bench
ran: the number of threads and the version of Python are those of the process that publishes.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import provenance, publish, stamp
from fastast.atomic_files import write_whole
from fastast.bench.verdict import top1
from fastast.errors import InputError
from fastast.report.bench_tables import place_name
from fastast.run_folder import read_json

RESULTS = Path(__file__).resolve().parent / "results"
NONE = "-"  # in the tables
OF_A_RUN = {  # what is kept of each run's summary
    "val_top1": ("accuracy", "val_top1"),
    "activation": ("gate", "activation_rate"),
    "offered": ("samples", "offered"),
    "backward": ("samples", "backward"),
    "forward_units": ("compute", "forward_units"),
    "train_s": ("time_s", "train"),
    "total_s": ("time_s", "total"),
}


def condense(bench: dict[str, Any], heading: str, measured_at: str) -> dict[str, Any]:
    """What of a `bench.json` is published: no paths of the machine, of each run its few figures.

    Args:
        bench: the content of `bench.json`.
        heading: what was compared, in words.
        measured_at: when it ended.

    Raises:
        InputError: it is not finished, or no run of it came out.
    """
    if not bench["finished"]:
        raise InputError("bench.json: the bench is not finished; run its command again")
    if not bench["runs"]:
        raise InputError("bench.json: no run came out; nothing to publish")
    summary = bench["runs"][0]["summary"]
    hardware = summary["hardware"]
    here = provenance(torch.device(hardware["device"]))
    runs = [
        {
            **{key: run[key] for key in ("role", "for", "seed", "epochs")},
            "gate": run["summary"]["gate"]["name"],
            **{name: run["summary"][group][key] for name, (group, key) in OF_A_RUN.items()},
        }
        for run in bench["runs"]
    ]
    return {
        "title": heading,
        "hardware": {**here["hardware"], "name": ", ".join(hardware["names"])},
        "versions": {
            **here["versions"],
            "fastast": bench["version"],
            "commit": bench["commit"],
            "torch": hardware["torch"],
            "dali": hardware["dali"],
        },
        "measured_at": measured_at,
        "command": shlex.join(["fastast", *(_last_part(word) for word in bench["argv"])]),
        "options": {name: _last_part(value) for name, value in bench["options"].items()},
        "data": {key: summary["data"][key] for key in ("train", "val", "classes", "fingerprint")},
        "params": summary["model"]["params"],
        "epochs": bench["epochs"],
        "seeds": bench["seeds"],
        "runs": runs,
        "failures": [{key: fail[key] for key in ("role", "for", "seed", "gate")} for fail in bench["failures"]],
        **{key: bench[key] for key in ("parts", "rows", "verdict", "notes")},
    }


def _last_part(value: Any) -> Any:
    """A path without its folders, so that a result says nothing of the machine that it came from."""
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "./", "../")) else value


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    data, seeds = result["data"], ", ".join(map(str, result["seeds"]))
    options = result["options"]
    measured = any(row["gpu_j"]["mean"] is not None for row in result["rows"])
    lines = [
        f"**{result['title']}**: {data['train']:,} pictures for training and {data['val']:,} for validation, "
        f"{data['classes']} classes, `{options['arch']}` ({result['params'] / 1e6:.2f} M parameters) at "
        f"{options['image_size']} px, {result['epochs']:g} epochs. Mean +- standard error over the seeds.",
        "",
        *_rows(result["rows"]),
        "",
        "Trained: share of the offered pictures of the gated part. Match: what a baseline took of what its gate took, "
        "of what the two were to have in common. Seconds are of training, without start-up and evaluation.",
        "",
        *_speed(result["rows"]),
        "",
        "Of the gated part, in brackets of the whole run: speed-up over dense of the same seed; savings, estimated as "
        "AST counts them, and arithmetic. Ceilings: of the cost model, and what the parts of training, timed on this "
        "machine, leave room for; a speed-up above them is the clock's noise."
        + ("" if measured else " Joules were not measured."),
        "",
        *(f"- {line}" for line in result["verdict"]["text"].splitlines()),
        *(f"- {note}" for note in result["notes"]),
        *(f"- failed: {place_name(f['role'], f['for'], f['gate'])}, seed {f['seed']}" for f in result["failures"]),
        "",
        f"{result['hardware']['name']}, seeds {seeds}; {stamp(result)}. `{result['command']}`",
        "",
    ]
    return "\n".join(lines)


def _rows(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "| run | n | top-1 | trained | forward units | training, s | match |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        cells = [
            place_name(row["role"], row["for"], row["gate"]),
            str(row["n"]),
            top1(row),
            _figure(row["activation"], ".1%"),
            _figure(row["forward_units"], ",.0f"),
            _figure(row["train_s"], ",.1f"),
            _figure(row["match"], ".3f") if "match" in row else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _speed(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "| gate | pictures offered/s | speed-up | ceiling | machine's | est. savings | arithmetic | data wait |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        if row["role"] != "gate":
            continue
        both = [
            f"{_figure(row[name], form)} ({_figure(row[f'run_{name}'], form)})"
            for name, form in (("speedup", ".2f"), ("savings_estimated", ".1%"), ("savings_arithmetic", ".1%"))
        ]
        cells = [
            row["gate"],
            _figure(row["offered_per_s"], ",.0f"),
            both[0],
            _figure(row["speedup_ceiling"], ".2f"),
            _figure(row["machine_ceiling"], ".2f"),
            *both[1:],
            _figure(row["data_wait"], ".1%"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _figure(value: Mapping[str, float | None], form: str) -> str:
    mean, error = value["mean"], value["se"]
    if mean is None:
        return NONE
    return f"{mean:{form}}" if error is None else f"{mean:{form}} +- {error:{form}}"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="R", help="the folder of a finished bench")
    parser.add_argument("--name", required=True, help="of the two files")
    parser.add_argument("--title", required=True, help="what was compared, in a few words")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR")
    args = parser.parse_args(argv)
    source = args.folder / "bench.json"
    if not source.is_file():
        raise InputError(f"{source}: no such file; name the --out of a finished bench")
    ended = datetime.fromtimestamp(source.stat().st_mtime, timezone.utc).isoformat(timespec="seconds")
    result = condense(read_json(source), args.title, ended)
    publish(result, str(args.out / f"{args.name}.json"))
    write_whole(args.out / f"{args.name}.md", table(result))


if __name__ == "__main__":
    main()
