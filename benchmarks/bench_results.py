"""Turns a finished `fastast bench` into a committed result: its figures and verdict as JSON and Markdown.

    python -m benchmarks.bench_results R --name imagenette_scratch --title "Imagenette from scratch" [--out DIR]

R is the bench's folder, or R/peers.json, which holds other trainers as well (`benchmarks.peers`). Written are
DIR/NAME.json and DIR/NAME.md (DIR: benchmarks/results). Run it where the bench ran: the number of threads and the
version of Python are those of the process that publishes.
"""

from __future__ import annotations

import argparse
import shlex
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, markdown_table, provenance, publish, stamp
from fastast.bench.tables import grids
from fastast.errors import InputError
from fastast.run_folder import read_json

OF_A_RUN = {  # what is kept of each run's summary
    "val_top1": ("accuracy", "val_top1"),
    "share": ("gate", "activation_rate"),
    "offered": ("samples", "offered"),
    "backward": ("samples", "backward"),
    "forward_units": ("compute", "forward_units"),
    "train_s": ("time_s", "train"),
    "total_s": ("time_s", "total"),
    "gpu_j": ("energy", "gpu_j"),
}


def condense(bench: dict[str, Any], heading: str, measured_at: str) -> dict[str, Any]:
    """The published part of a `bench.json`: a few figures of each run, and no paths of the machine.

    Args:
        bench: the content of `bench.json`, of schema 2.
        heading: what was compared, in words.
        measured_at: when it ended.

    Raises:
        InputError: it is of another schema, not finished, or all of its runs failed.
    """
    if bench.get("schema") != 2:
        raise InputError("bench.json: of another version of fastast; publish it with the version that wrote it")
    if not bench["finished"]:
        raise InputError("bench.json: the bench is not finished; run its command again")
    if not bench["runs"]:
        raise InputError("bench.json: all runs failed; nothing to publish")
    summary = bench["runs"][0]["summary"]
    hardware = bench["hardware"]
    here = provenance(torch.device(hardware["device"]))
    runs = [
        {
            **{key: run[key] for key in ("arm", "budget", "seed")},
            **{name: run["summary"][group][key] for name, (group, key) in OF_A_RUN.items()},
        }
        for run in bench["runs"]
    ]
    commands = [["fastast", *bench["argv"]]]
    commands += [["python", "-m", "benchmarks.peers", *bench["peers_argv"]]] if "peers_argv" in bench else []
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
        "command": " && ".join(shlex.join(map(_last_part, words)) for words in commands),
        "options": {name: _last_part(value) for name, value in bench["options"].items()},
        "data": {key: summary["data"][key] for key in ("train", "val", "classes", "fingerprint")},
        "params": summary["model"]["params"],
        "runs": runs,
        "failures": [{key: fail[key] for key in ("arm", "budget", "seed")} for fail in bench["failures"]],
        **{key: bench[key] for key in ("arms", "budgets", "seeds", "points", "paired", "cost_at_equal_accuracy")},
        **{key: bench[key] for key in ("verdict", "notes")},
        "probe": bench.get("probe"),
    }


def _last_part(value: Any) -> Any:
    """A path without its folders, so that a result says nothing about the machine that measured it."""
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "./", "../")) else value


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    data, options = result["data"], result["options"]
    tables = "\n\n".join(f"{title}:\n\n{markdown_table(head, rows)}" for title, (head, *rows) in grids(result))
    failed = [f"failed: {fail['arm']}, {fail['budget']}, seed {fail['seed']}" for fail in result["failures"]]
    remarks = "\n".join(f"- {line}" for line in [*result["notes"], *failed])
    return f"""\
**{result["title"]}**: {data["train"]:,} pictures for training and {data["val"]:,} for validation, \
{data["classes"]} classes, `{options["arch"]}` ({result["params"] / 1e6:.2f} M parameters) at \
{options["image_size"]} px.

{" ".join(result["verdict"]["sentences"])}

{tables}

In brackets: 95 % intervals. "better" and "worse" are corrected by Holm over all comparisons.

{remarks}

{result["hardware"]["name"]}, seeds {", ".join(map(str, result["seeds"]))}; {stamp(result)}. `{result["command"]}`
"""


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="R", help="the folder of a finished bench, or R/peers.json")
    parser.add_argument("--name", required=True, help="of the two files")
    parser.add_argument("--title", required=True, help="what was compared, in a few words")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR")
    args = parser.parse_args(argv)
    source = args.folder / "bench.json" if args.folder.is_dir() else args.folder
    if not source.is_file():
        raise InputError(f"{source}: no such file; name the --out of a finished bench")
    ended = datetime.fromtimestamp(source.stat().st_mtime, timezone.utc).isoformat(timespec="seconds")
    result = condense(read_json(source), args.title, ended)
    publish(result, args.out / f"{args.name}.json", table)


if __name__ == "__main__":
    main()
