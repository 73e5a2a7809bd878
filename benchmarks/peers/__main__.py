"""Other trainers beside fastast, on the same pictures with the same network: one command, one table.

    python -m benchmarks.peers --data DIR [--train N --val N] [--epochs N] [--seeds 3] [--out FILE]

DIR holds train/ and val/ with class folders. Every run is a process of its own; seed by seed, so that a drifting
machine affects all alike. Finished runs stay in the work folder, one for each commit, and in FILE: an interrupted
table continues. With `--out a.json` the table goes to a.md. A peer that fails, or whose package is not installed, is
listed with the reason.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import ROOT, command_line, make_parser, provenance, publish
from benchmarks.peers.one import PEERS
from benchmarks.peers.setting import Setting
from benchmarks.peers.table import rows, table
from benchmarks.subset import link_splits
from fastast.atomic_files import write_whole
from fastast.run_folder import code_version

PACKAGE = "adaptive-sparse-training"


def run_one(name: str, setting: Setting, work: Path) -> dict[str, Any]:
    """A run's figures, from the work folder if it is finished there.

    Raises:
        RuntimeError: the run failed; with the last line that it printed.
    """
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(setting)).encode()).hexdigest()[:8]
    out = work / f"{name.replace(' ', '-')}-{setting.seed}-{digest}.json"
    if not out.exists():
        work.mkdir(parents=True, exist_ok=True)
        task, log = out.with_suffix(".setting"), out.with_suffix(".log")
        task.write_text(json.dumps(dataclasses.asdict(setting)))
        words = [sys.executable, "-W", "ignore", "-m", "benchmarks.peers.one", name, str(task), str(out)]
        code = start(words, log)
        if code:
            printed = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
            raise RuntimeError(printed[-1][:300] if printed else f"exit code {code}")
    return {"peer": name, **json.loads(out.read_text())}


def start(words: list[str], log: Path) -> int:
    """Runs a command from the checkout, with its output in a file; returns its exit code."""
    search = os.pathsep.join(path for path in (str(ROOT), os.environ.get("PYTHONPATH")) if path)
    with open(log, "w") as file:
        environment = {**os.environ, "PYTHONPATH": search}
        return subprocess.run(words, env=environment, stdout=file, stderr=subprocess.STDOUT).returncode


def version_of(package: str) -> str | None:
    """The version that is installed, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def main(argv: list[str] | None = None) -> None:
    parser = make_parser("benchmarks.peers", __doc__)
    parser.add_argument("--data", required=True, type=Path, help="folder with train/ and val/ class folders")
    parser.add_argument("--train", type=int, default=4000, help="training pictures, as many of each class")
    parser.add_argument("--val", type=int, default=2000, help="validation pictures")
    parser.add_argument("--arch", default="benchmarks.nets:tiny_resnet")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--target", type=float, default=0.3)
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ...")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=list(PEERS), help="these rows; default all")
    parser.add_argument("--work", type=Path, default=Path("runs/peers"), help="folder that keeps finished runs")
    args = parser.parse_args(argv)
    names, (version, commit) = args.only or list(PEERS), code_version()
    work = args.work.resolve() / (commit or version)
    digest = hashlib.sha256(os.fsencode(args.data.resolve())).hexdigest()[:8]
    work.mkdir(parents=True, exist_ok=True)
    data = link_splits(args.data, work / f"data-{args.train}-{args.val}-{digest}", args.train, args.val)
    shared = {key: getattr(args, key) for key in ("arch", "image_size", "epochs", "batch_size", "lr", "target")}
    result: dict[str, Any] = {
        "title": "Others' ways to train beside ours: accuracy, seconds, counted forward units",
        **provenance(torch.device("cpu")),
        "command": command_line(parser, args),
        "packages": {PACKAGE: version_of(PACKAGE)},
        "seeds": list(range(args.seeds)),
        "setting": shared,
        "sizes": {"train": args.train, "val": args.val, "classes": len(list((data / "train").iterdir()))},
        "runs": [],
        "failures": [],
    }
    for seed in range(args.seeds):
        for name in names:
            try:
                run = run_one(name, Setting(data=str(data), seed=seed, **shared), work)
            except RuntimeError as error:
                result["failures"].append({"peer": name, "seed": seed, "reason": str(error)})
                print(f"{name}, seed {seed}: FAILED: {error}", file=sys.stderr)
            else:
                result["runs"].append(run)
                shown = f"top-1 {run['top1']:.2%}, {run['forward_units']:,.0f} units, {run['seconds']:.1f} s"
                print(f"{name}, seed {seed}: {shown}", file=sys.stderr)
            result["rows"] = rows(result["runs"], names)
            if args.out:
                write_whole(args.out, json.dumps(result, indent=1) + "\n")
                write_whole(Path(args.out).with_suffix(".md"), table(result))
    publish(result, args.out)


if __name__ == "__main__":
    main()
