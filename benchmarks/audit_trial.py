"""What `fastast audit` finds of copies and wrong labels that were planted in a set of pictures.

    python -m benchmarks.audit_trial --data DIR [--seeds 3]

DIR holds train/ and val/ with class folders. For each seed a part of it gets copies (exact, re-encoded, resized,
cropped), half of them from train into val, and wrong labels; a network is trained on it, and the run is audited.
"""

from __future__ import annotations

import csv
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import (
    command_line,
    make_parser,
    markdown_table,
    mean_and_error,
    provenance,
    publish,
    shown,
    stamp,
)
from benchmarks.index import hardware_words
from benchmarks.planted_faults import Planted, plant
from fastast.cli import main as fastast
from fastast.run_folder import read_json

TOP_SHARE = 0.1  # of the suspected labels, those that the network contradicts most


def read_table(path: Path, data: Path) -> list[dict[str, str]]:
    """The rows of a CSV file of an audit, their paths relative to the set `data`."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{**row, "path": str(Path(row["path"]).relative_to(data))} for row in csv.DictReader(file)]


def judge_copies(rows: list[dict[str, str]], planted: Planted) -> dict[str, Any]:
    """The copies that are in one group with their original, by kind, and the groups that hold no copy.

    Args:
        rows: of `duplicates.csv`.
        planted: what was planted.
    """
    groups = defaultdict(set)
    for row in rows:
        groups[row["group"]].add(row["path"])
    place = {path: number for number, paths in groups.items() for path in paths}
    found = {
        kind: sum(copy in place and place[copy] == place.get(original) for copy, original in pairs)
        for kind, pairs in planted.pairs.items()
    }
    copies = {copy for pairs in planted.pairs.values() for copy, _ in pairs}
    others = sum(copies.isdisjoint(paths) for paths in groups.values())
    return {"found": found, "other_groups": others}


def judge_labels(rows: list[dict[str, str]], planted: Planted) -> dict[str, Any]:
    """How many training labels are suspected, worst first, and how many of them are wrong.

    Args:
        rows: of `labels.csv`.
        planted: what was planted.
    """
    wrong = [row["path"] in planted.wrong for row in rows if row["split"] == "train"]
    top = wrong[: round(TOP_SHARE * len(wrong))]
    return {
        "suspected": len(wrong),
        "rightly": sum(wrong),
        "rightly_of_top": sum(top) / len(top) if top else None,
    }


def trial(args: Any, seed: int, scratch: Path) -> dict[str, Any]:
    """Plants, trains and audits with one seed; a command that fails ends it."""
    data, run = scratch / "set", scratch / "run"
    counts = {"num_train": args.train, "num_val": args.val, "per_kind": args.per_kind}
    planted = plant(args.data, data, **counts, wrong=args.wrong, seed=seed)
    words = ["train", "--data", data, "--out", run, "--arch", args.arch, "--image-size", args.image_size]
    words += ["--batch-size", args.batch_size, "--epochs", args.epochs, "--seed", seed, "--device", "cpu"]
    call(words)
    began = time.perf_counter()
    call(["audit", run, "--device", "cpu"])
    return {
        "seed": seed,
        "val_top1": read_json(run / "summary.json")["accuracy"]["best_val_top1"],
        "audit_s": time.perf_counter() - began,
        **judge_copies(read_table(run / "audit" / "duplicates.csv", data), planted),
        "wrong": len(planted.wrong),
        **judge_labels(read_table(run / "audit" / "labels.csv", data), planted),
    }


def call(words: list[Any]) -> None:
    """Calls a command of fastast in this process.

    Raises:
        SystemExit: it failed.
    """
    code = fastast([str(word) for word in words])
    if code != 0:
        raise SystemExit(f"fastast {words[0]} ended with exit code {code}")


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    trials = result["trials"]
    kinds = list(trials[0]["found"])
    per_kind = result["per_kind"] * len(trials)
    copies = [[kind, per_kind, sum(one["found"][kind] for one in trials)] for kind in kinds]

    def over_seeds(key: str, form: str, scale: float = 1.0) -> str:
        known = [one[key] for one in trials if one[key] is not None]
        return shown(mean_and_error(known), form, scale) if known else "-"

    labels = [
        ["network's top-1, %", over_seeds("val_top1", ".1f", 100)],
        ["wrong labels planted", over_seeds("wrong", ".0f")],
        ["training labels suspected", over_seeds("suspected", ".0f")],
        ["of them wrong", over_seeds("rightly", ".0f")],
        ["wrong among the tenth that it contradicts most, %", over_seeds("rightly_of_top", ".0f", 100)],
        ["groups of pictures without a planted copy", over_seeds("other_groups", ".1f")],
        ["seconds of the audit", over_seeds("audit_s", ".0f")],
    ]
    return (
        f"**{result['title']}**: {result['train']:,} training and {result['val']:,} validation pictures, "
        f"`{result['arch']}`, {result['epochs']:g} epochs; seeds {', '.join(str(one['seed']) for one in trials)}.\n\n"
        f"{markdown_table(['kind of copy, and where it lies', 'planted', 'found'], copies)}\n\n"
        f"{markdown_table(['mean over the seeds, with its standard error', ''], labels)}\n\n"
        f"{hardware_words(result['hardware'])}; `{result['command']}`; {stamp(result)}.\n"
    )


def main(argv: list[str] | None = None) -> None:
    parser = make_parser("benchmarks.audit_trial", __doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--train", type=int, default=8000, help="training pictures (default 8000)")
    parser.add_argument("--val", type=int, default=3000, help="validation pictures (default 3000)")
    parser.add_argument(
        "--per-kind", type=int, default=50, help="copies of a kind, in train and in val each (default 50)"
    )
    parser.add_argument("--wrong", type=float, default=0.05, help="share of the training labels (default 0.05)")
    parser.add_argument("--arch", default="benchmarks.nets:small_resnet")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--seeds", type=int, default=3, help="repetitions (default 3)")
    args = parser.parse_args(argv)
    trials = []
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as scratch:
            trials.append(trial(args, seed, Path(scratch)))
    result = {
        "title": f"Audit of {args.data.name} with planted copies and wrong labels",
        "command": command_line(parser, args),
        **provenance(torch.device("cpu")),
        **{key: getattr(args, key) for key in ("train", "val", "per_kind", "arch", "image_size", "epochs")},
        "trials": trials,
    }
    publish(result, args.out, table)


if __name__ == "__main__":
    main()
