"""Kills trainings at random times, resumes them, and compares what comes out with undisturbed trainings.

    python -m benchmarks.robustness.crash_test [--kills 50] [--gate GATE ...] [--data DIR] [--out FILE]

Every start is the same command, `fastast train ... --resume auto`, with a checkpoint at every batch. It is ended by
SIGKILL at a time drawn uniformly from the length of an undisturbed run; every other kill then waits until a file is
half-written beside the checkpoints. The same command is started again until the run is done, and the run is compared
with the undisturbed one of its gate. Then the next run starts, with the next gate, until all kills are made.

A run is identical if it ended as the undisturbed one did: every line of `metrics.jsonl` but for times and watts, the
final weights and all that a run resumes from, the exported weights, counts, per-sample figures, quarantined pictures.

The processes are forked from one that has imported everything, so that a start takes a second and not ten: no kill
falls into an import, which writes nothing.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.common import provenance, publish
from fastast.checkpoint.file_format import load_checkpoint
from fastast.data import draw_dataset
from fastast.gates.registry import GATES
from fastast.run_folder import RunFolder

FORKS = multiprocessing.get_context("forkserver")
HANG_S = 300  # a start that takes longer than this hangs
POLL_S = 0.0005
OPTIONS = (
    "--arch benchmarks.nets:tiny_resnet --image-size 32 --train-size 16:32 --batch-size 16 --epochs 2.5 "
    "--warmup-epochs 0.7 --target 0.3 --lr 0.05 --log-every 1 --checkpoint-every 1e-9 --device cpu --resume auto"
)
CLOCKED = ("offered_per_s", "data_wait_s", "gpu_w", "seconds", "gpu_j")  # fields of metrics.jsonl


@dataclass
class Tally:
    """What the kills of one gate did.

    Attributes:
        kills: SIGKILLs that met a living process.
        survived: those of runs that finished.
        half_written: those that left a half-written file beside the checkpoints.
        before_first: those before a run's first checkpoint.
        runs, identical: runs that were killed at least once, and those of them that are identical.
        faults: what went wrong, a line each.
    """

    kills: int = 0
    survived: int = 0
    half_written: int = 0
    before_first: int = 0
    runs: int = 0
    identical: int = 0
    faults: list[str] = field(default_factory=list)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--gate", nargs="+", choices=GATES, default=list(GATES), help="default: all, in turn")
    parser.add_argument("--data", help="folder with train/ and val/; default: a drawn set with a damaged picture")
    parser.add_argument("--seed", type=int, default=0, help="of the times")
    parser.add_argument("--out", help="JSON file to write")
    args = parser.parse_args(argv)

    FORKS.set_forkserver_preload(["fastast.session.session"])
    (first := FORKS.Process(target=int)).start()  # the imports happen now, and do not count as the length of a run
    first.join()
    rng = random.Random(args.seed)
    share = max(1, args.kills // len(args.gate))  # so that each gate has its turn
    tallies = {gate: Tally() for gate in args.gate}
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        data = Path(args.data) if args.data else draw_pictures(work / "data")
        whole: dict[str, tuple[RunFolder, float]] = {}
        number = 0
        while (left := args.kills - sum(tally.kills for tally in tallies.values())) > 0:
            gate = args.gate[number % len(args.gate)]
            if gate not in whole:
                whole[gate] = undisturbed(gate, data, work)
            folder, length_s = whole[gate]
            killed_run(gate, data, work / f"run{number}", folder, length_s, min(left, share), rng, tallies[gate])
            number += 1
    gates = {gate: vars(tally) for gate, tally in tallies.items()}
    # Counts add up, and lists of faults.
    total = {name: sum((tally[name] for tally in gates.values()), type(none)()) for name, none in vars(Tally()).items()}
    publish({**provenance(torch.device("cpu")), "seed": args.seed, **total, "gates": gates}, args.out)
    print("survived {survived} of {kills} kills; identical {identical} of {runs} runs".format(**total), file=sys.stderr)
    return 1 if total["faults"] else 0


def draw_pictures(root: Path) -> Path:
    """A small drawn set, with one picture whose damage only shows when it is decoded."""
    draw_dataset(root, num_classes=4, train_per_class=60, val_per_class=15)
    picture = min((root / "train").glob("*/*"))
    with Image.open(picture) as image:
        image.save(buffer := io.BytesIO(), "PNG")
    whole = buffer.getvalue()
    picture.with_suffix(".png").write_bytes(whole[:100] + bytes(500) + whole[600:])
    picture.unlink()
    return root


def undisturbed(gate: str, data: Path, work: Path) -> tuple[RunFolder, float]:
    """An undisturbed run, and its seconds."""
    folder = RunFolder(work / f"undisturbed-{gate}")
    began = time.monotonic()
    process = start(gate, data, folder)
    process.join(HANG_S)
    if process.exitcode != 0:
        process.kill()
        raise RuntimeError(f"the undisturbed run ended with {process.exitcode}: {log_of(folder)}")
    return folder, time.monotonic() - began


def killed_run(
    gate: str, data: Path, path: Path, whole: RunFolder, length_s: float, kills: int, rng: random.Random, tally: Tally
) -> None:
    """One run until it has finished, killed at most `kills` times."""
    folder, made = RunFolder(path), 0
    while True:
        process = start(gate, data, folder)
        if made < kills and kill(process, folder, rng.uniform(0, length_s), aimed=rng.random() < 0.5):
            made += 1
            tally.half_written += bool(half_written(folder))
            tally.before_first += not folder.last.exists()
            continue
        process.join(HANG_S)
        if process.exitcode is None:
            process.kill()
            process.join()
        break
    if not made:
        return
    tally.kills += made
    tally.runs += 1
    if process.exitcode != 0:
        tally.survived += made - 1  # the last is what it did not survive
        tally.faults.append(f"{gate}: ended with {process.exitcode} after {made} kills: {log_of(folder)}")
        return
    tally.survived += made
    different = differences(folder, whole)
    tally.identical += not different
    if different:
        tally.faults.append(f"{gate}: after {made} kills these differ: {', '.join(different)}")


def start(gate: str, data: Path, folder: RunFolder) -> Any:
    """A process that starts the run or resumes it."""
    arguments = ["train", *OPTIONS.split(), "--data", str(data), "--out", str(folder.path), "--gate", gate]
    process = FORKS.Process(target=train, args=(arguments, log_path(folder)))
    process.start()
    return process


def train(arguments: list[str], log: Path) -> None:
    """The command line in a process of its own, its output in a file."""
    from fastast.cli import main as fastast

    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.exit(fastast(arguments))


def log_path(folder: RunFolder) -> Path:
    """The output of a run's last process."""
    return folder.path.with_suffix(".log")


def log_of(folder: RunFolder) -> str:
    """The last lines of that output."""
    return " | ".join(log_path(folder).read_text(errors="replace").splitlines()[-3:])


def half_written(folder: RunFolder) -> list[Path]:
    """Files beside the checkpoints that do not have their final names yet."""
    return list(folder.checkpoints.glob(".*.tmp"))


def kill(process: Any, folder: RunFolder, after_s: float, *, aimed: bool) -> bool:
    """Kills a process after so many seconds, `aimed` once a file is half-written; False if it ended before."""
    process.join(after_s)
    while aimed and process.exitcode is None and not half_written(folder):
        time.sleep(POLL_S)
    process.kill()
    process.join()
    return process.exitcode < 0


def differences(ours: RunFolder, whole: RunFolder) -> list[str]:
    """Names of what differs between two finished runs, and should not."""
    one, other = contents(ours), contents(whole)
    return [name for name in one if not same(one[name], other[name])]


def contents(folder: RunFolder) -> dict[str, Any]:
    """What is the same for every run of a command, as far as its files hold it."""
    summary = json.loads(folder.summary.read_text())
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    return {
        "metrics": [{name: value for name, value in line.items() if name not in CLOCKED} for line in lines],
        "counts": [summary[section] for section in ("data", "samples", "accuracy", "compute")],
        "quarantine": folder.quarantine.exists() and folder.quarantine.read_text(),
        "exported weights": folder.weights.read_bytes(),
        "state": engines(folder.last),
        "samples": dict(np.load(folder.samples)),
    }


def engines(checkpoint: Path) -> list[Any]:
    """The state of the engine, as far as the ranks share it and of each rank."""
    state = load_checkpoint(checkpoint)["trainer"]
    return [part["engine"] for part in (state["shared"], *state["ranks"])]


def same(one: Any, other: Any) -> bool:
    """Whether two structures are equal to the bit; NaN equals itself."""
    if isinstance(one, torch.Tensor):
        return same(one.numpy(), other.numpy())
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(*pair) for pair in zip(one, other, strict=True))
    return one == other or (one != one and other != other)


if __name__ == "__main__":
    sys.exit(main())
