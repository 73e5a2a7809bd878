"""What a gate costs in accuracy, or gains: many short runs on CIFAR-10 pictures, each beside its two baselines.

    python -m benchmarks.accuracy --data DIR [--seeds 3] [--jobs 2] [--work DIR] [--out FILE] [--dry-run]

DIR holds train/ and val/ with class folders. Every run is a `fastast train` process with one thread, kept in the work
folder, apart for each commit; one that is finished there is not repeated, so an interrupted table continues. Blocks:

scratch  the tiny network of benchmarks/nets.py from random weights, one dense epoch and then the gate;
tuning   the same network, pretrained on one part of the pictures, goes on with another part that it never saw.

Each gate stands beside `random` at its own share of trained samples and beside `dense` at its own forward units: the
epochs of that dense run follow from the counted units (goal: within 2 %), and its learning rate decays fully. Verdicts
follow one rule: better or worse if the means differ by more than 2 standard errors of the difference (the root of the
two squared standard errors added up), else no difference was shown. With `--out a.json` the tables go to a.md.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.accuracy_table import rows, table
from benchmarks.common import command_line, provenance, publish
from benchmarks.subset import link_subset
from fastast.atomic_files import write_whole
from fastast.run_folder import RunFolder, code_version

ROOT = Path(__file__).resolve().parent.parent
BATCH = 64
UNITS_GOAL = 0.02  # how far a dense baseline's forward units may lie from its gate's

SCRATCH = {
    "random": "--gate random",
    "forward, soft": "--gate forward",
    "forward, hard": "--gate forward --selection hard",
    "forward, soft, unbiased": "--gate forward --unbiased --explore 0.05",
    "forward, soft, loss": "--gate forward --significance loss",
    "forward, soft, margin": "--gate forward --significance margin",
    "forward, soft, el2n": "--gate forward --significance el2n",
    "proxy, soft": "--gate proxy",
    "proxy, soft, tiny network": "--gate proxy --proxy-arch tiny",
    "memory, soft": "--gate memory",
    "memory, soft, unbiased": "--gate memory --unbiased --explore 0.05",
    "memory, soft, explore": "--gate memory --explore 0.05",
    "infobatch": "--gate infobatch",
}
TUNING = {
    "random": "--gate random",
    "forward, soft": "--gate forward",
    "forward, hard": "--gate forward --selection hard",
    "memory, soft": "--gate memory",
}

# For --dry-run: ms for each sample with one thread of a 2-core machine, and seconds to start and end a process.
TRAIN_MS, SCORE_MS, READ_MS, START_S = 1.0, 0.35, 0.15, 10.0


@dataclass(frozen=True, slots=True)
class Job:
    """One run: a block's name, a row's name, a seed, and the options of `fastast train`."""

    block: str
    name: str
    seed: int
    options: tuple[str, ...]

    def folder(self, work: Path) -> Path:
        """Where it is kept: another choice of options is another folder."""
        digest = hashlib.sha256(" ".join(self.options).encode()).hexdigest()[:8]
        return work / "runs" / f"{self.block}-{self.name.replace(', ', '-').replace(' ', '_')}-{self.seed}-{digest}"


@dataclass(frozen=True, slots=True)
class Block:
    """What the runs of one block share.

    Attributes:
        name: "scratch" or "tuning".
        data: folder with train/ and val/.
        gates: options of each gate, by the name of its row.
        target: share of the offered samples to train.
        epochs: of a gate's run, one dense epoch included.
        options: of every run, further ones.
    """

    name: str
    data: Path
    gates: dict[str, str]
    target: float
    epochs: float
    options: tuple[str, ...]

    def job(self, name: str, seed: int, text: str, epochs: float) -> Job:
        """A run of this block; later options overrule earlier ones."""
        common = ("--data", str(self.data), *f"--epochs {epochs:.6g} --seed {seed} --target {self.target}".split())
        return Job(self.name, name, seed, (*common, *self.options, *text.split()))


def run_job(job: Job, work: Path) -> dict[str, Any]:
    """Runs a job unless it is done, and returns its summary.

    Raises:
        RuntimeError: the run failed; with the end of what it printed.
    """
    out = job.folder(work)
    summary = RunFolder(out).finished_summary()
    if summary is None:
        shutil.rmtree(out, ignore_errors=True)
        command = [sys.executable, "-W", "ignore", "-m", "fastast", "train", *job.options, "--out", str(out)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        summary = RunFolder(out).finished_summary()
        if done.returncode or summary is None:
            raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout[-2000:]}")
    figures = metrics(summary)
    print(
        f"{job.block} {job.name}, seed {job.seed}: top-1 {figures['top1']:.2f} %, "
        f"{figures['forward_units']:,.0f} units, {figures['seconds']:.0f} s",
        file=sys.stderr,
    )
    return summary


def metrics(summary: dict[str, Any]) -> dict[str, float]:
    """The figures of a run that the tables show: top-1 in percent, activation of the gated part, work and seconds."""
    return {
        "top1": 100 * summary["accuracy"]["val_top1"],
        "activation": summary["gate"]["activation_rate"],
        "forward_units": summary["compute"]["forward_units"],
        "seconds": summary["time_s"]["total"],
    }


def matched_epochs(units: list[float], dense_units: float) -> dict[float, float]:
    """Epochs of the dense run that stands beside each amount of work; neighbours share one where it fits them all.

    Args:
        units: forward units of the gates.
        dense_units: of one dense epoch.
    """
    epochs: dict[float, float] = {}
    group: list[float] = []
    for value in [*sorted(units), math.inf]:
        # Half of what is allowed is left for the runs' own rounding to whole batches.
        if group and value > group[0] * (1 + UNITS_GOAL):
            middle = math.sqrt(group[0] * group[-1]) / dense_units
            epochs.update(dict.fromkeys(group, middle))
            group = []
        group.append(value)
    return epochs


def run_block(block: Block, seeds: list[int], work: Path, jobs: int) -> dict[str, Any]:
    """All runs of a block, and its rows."""
    runs: list[dict[str, Any]] = []

    def run_all(pending: list[tuple[str, list[str], Job]]) -> None:
        with ThreadPoolExecutor(jobs) as pool:
            done = list(pool.map(lambda entry: run_job(entry[2], work), pending))
        for (role, of, job), summary in zip(pending, done, strict=True):
            figures = metrics(summary)
            runs.append({"role": role, "for": of, "name": job.name, "seed": job.seed, **figures})

    first: list[tuple[str, list[str], Job]] = [
        ("dense", [], block.job("dense", seed, "--gate dense", block.epochs)) for seed in seeds
    ]
    for seed in seeds:
        first += [("gate", [], block.job(name, seed, text, block.epochs)) for name, text in block.gates.items()]
    run_all(first)
    dense_units = statistics.mean(run["forward_units"] for run in runs if run["role"] == "dense") / block.epochs
    second = []
    for seed in seeds:
        gates = [run for run in runs if run["role"] == "gate" and run["seed"] == seed]
        epochs = matched_epochs([run["forward_units"] for run in gates], dense_units)
        for length in sorted(set(epochs.values())):
            of = [run["name"] for run in gates if epochs[run["forward_units"]] == length]
            second.append(("dense_equal_units", of, block.job("dense", seed, "--gate dense", length)))
        for run in gates:
            if run["name"] == "infobatch":  # its share is its own
                text = f"--gate random --target {run['activation']:.4f}"
                second.append(("random_equal_share", ["infobatch"], block.job("random", seed, text, block.epochs)))
    run_all(second)
    return {
        "name": block.name,
        "target": block.target,
        "epochs": block.epochs,
        "options": [option for option in block.options if not os.path.isabs(option)],
        "runs": runs,
        "rows": rows(runs),
    }


def estimate_s(block: Block, num_train: int, num_val: int, num_seeds: int) -> tuple[int, float]:
    """Runs of a block and process-seconds that they take, roughly."""
    seconds = []
    for name, text in {"dense": "--gate dense", **block.gates}.items():
        scores = "forward" in text or "proxy" in text
        share = {"dense": 1.0, "infobatch": 0.75}.get(name, block.target)
        trained = num_train * (1 + (block.epochs - 1) * share)
        read = num_train * block.epochs if scores else trained
        scored = num_train * (block.epochs - 1) * scores
        work = trained * TRAIN_MS + read * READ_MS + scored * SCORE_MS
        evaluated = num_val * block.epochs * (SCORE_MS + READ_MS)
        seconds.append(START_S + (work + evaluated) / 1e3)
        if name in ("random", "forward, soft", "proxy, soft", "infobatch"):  # a dense run of the same work
            seconds.append(seconds[-1])
    return len(seconds) * num_seeds, sum(seconds) * num_seeds


def make_data(source: Path, out: Path, num_train: int, num_val: int, skip: int) -> Path:
    """A folder with train/ and val/ of that many pictures, made once."""
    if not out.exists():
        parts = out.with_name(out.name + ".part")
        shutil.rmtree(parts, ignore_errors=True)
        link_subset(source / "train", parts / "train", num_train, skip=skip)
        link_subset(source / "val", parts / "val", num_val)
        parts.rename(out)
    return out


def plan(args: argparse.Namespace, work: Path) -> tuple[Job, list[Block]]:
    """The run whose network is tuned, the first seed's dense one from scratch, and the blocks."""
    common = f"--arch benchmarks.nets:tiny_resnet --image-size 32 --batch-size {BATCH} --device cpu --threads 1".split()
    mark = hashlib.sha256(os.fsencode(args.data.resolve())).hexdigest()[:8]

    def block(name: str, gates: dict[str, str], target: float, epochs: float, *options: str) -> Block:
        data = work / "data" / f"{name}-{args.train}-{args.val}-{mark}"
        chosen = {row: text for row, text in gates.items() if args.only is None or row in args.only}
        return Block(name, data, chosen, target, epochs, (*common, *options))

    scratch = block("scratch", SCRATCH, 0.3, args.epochs, "--lr", str(args.lr))
    pretrained = scratch.job("dense", 0, "--gate dense", args.epochs)
    if not args.tuning_epochs:
        return pretrained, [scratch]
    weights = str(pretrained.folder(work) / "model.safetensors")
    options = ("--lr", str(args.tuning_lr), "--weights", weights)
    return pretrained, [scratch, block("tuning", TUNING, 0.1, args.tuning_epochs, *options)]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="folder with train/ and val/ class folders")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ...")
    parser.add_argument("--train", type=int, default=6000, help="training pictures of each block")
    parser.add_argument("--val", type=int, default=2000, help="validation pictures")
    parser.add_argument("--epochs", type=float, default=6, help="of a run from scratch, one dense epoch included")
    parser.add_argument("--tuning-epochs", type=float, default=6, help="0 leaves the second block out")
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--tuning-lr", type=float, default=0.02)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these rows; default all")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--work", type=Path, default=Path("runs/accuracy"), help="folder that keeps the runs")
    parser.add_argument("--out", help="JSON file to write")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and an estimate")
    args = parser.parse_args(argv)
    seeds, (version, commit) = list(range(args.seeds)), code_version()
    work = args.work.resolve() / (commit or version)
    pretrained, blocks = plan(args, work)
    if args.dry_run:
        for block in blocks:
            number, seconds = estimate_s(block, args.train, args.val, args.seeds)
            print(f"{block.name}: {'; '.join(['dense', *block.gates])}")
            print(f"  about {number} runs, {seconds / args.jobs / 60:.0f} minutes with {args.jobs} at a time")
        return
    for block, skip in zip(blocks, (0, args.train), strict=False):
        make_data(args.data, block.data, args.train, args.val, skip)
    done = [run_block(block, seeds, work, args.jobs) for block in blocks]
    start = 100 * run_job(pretrained, work)["accuracy"]["best_val_top1"]
    result = {
        **provenance(torch.device("cpu")),
        "command": command_line("benchmarks.accuracy", parser, args),
        "seeds": seeds,
        "sizes": {"train": args.train, "val": args.val, "start_top1": start},
        "blocks": done,
    }
    publish(result, args.out)
    if args.out:
        write_whole(Path(args.out).with_suffix(".md"), table(result))


if __name__ == "__main__":
    main()
