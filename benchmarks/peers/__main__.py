"""Other trainers in the picture of a `fastast bench`: the same budgets, seeds, pictures and network.

    python -m benchmarks.peers BENCH [--peers torchvision,timm,ast,infobatch,selective-backprop] [--lr timm=0.05]

BENCH is the --out of a bench. Each peer runs with each of its budgets and seeds, in a process of its own, seed by seed;
BENCH/peers.json holds the bench and the peers together, as bench.json holds the bench, and BENCH/peers.html shows it.
The same command continues: finished runs, in BENCH/peers, are not repeated unless their options have changed. A peer
that fails, or whose package is not installed, is listed with the reason.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.common import ROOT
from benchmarks.peers.one import PEERS
from benchmarks.peers.pictures import link_pictures
from benchmarks.peers.training import Task
from fastast.atomic_files import write_whole
from fastast.bench.notes import notes_of
from fastast.bench.statistics import summarise
from fastast.config import TrainConfig
from fastast.config.options import flag_of
from fastast.cores import usable_cores
from fastast.distributed.parent_death import with_parent_death_signal
from fastast.errors import InputError
from fastast.loggers.console import Reporter
from fastast.phases import PROBE
from fastast.report.bench_page import write_bench_report
from fastast.run_folder import read_json
from fastast.session.run_data import open_data

SCHEMA = 2
KINDS = ("ep", "time")  # of budgets that the peers keep
PACKAGES = {"torchvision": "torchvision", "timm": "timm", "ast": "adaptive-sparse-training"}
ABOUT = {
    "torchvision": "the loop of torchvision's references: `ImageFolder`, its transforms, `DataLoader`, SGD",
    "timm": "the loop of timm's `train.py` by its public functions: data set, loader, loss, SGD and cosine are timm's; "
    "its colour jitter is off",
    "ast": "`adaptive-sparse-training` unchanged, with its defaults (target 40 %, no warm-up, gradients clipped to "
    "norm 1), but with the others' SGD and schedule. Every batch goes forward twice and backward once in full: 4 units "
    "a picture, more than dense training's 3",
    "infobatch": "InfoBatch (Qin et al., ICLR 2024) re-stated in the torchvision loop: half of the pictures below the "
    "mean loss are left out, not in epochs that start after 87.5 % of the budget",
    "selective-backprop": "Selective Backprop (Jiang et al., 2019) re-stated in the torchvision loop with the defaults "
    "of MosaicML's Composer: half of every other batch between 50 % and 90 % of the budget",
}
SHARED = (
    "Peers share the bench's network, initial weights, pictures, crops, flips, batch size, label smoothing, weight "
    "decay, momentum and number format, and a learning rate that rises shortly and falls to zero over the budget. "
    "Hooks on the network count their forwards and backwards. Evaluation, once at the end, counts in their seconds "
    "alone."
)


def tasks_of(
    folder: Path, bench: dict[str, Any], seed: int, lrs: dict[str, float | None]
) -> list[tuple[str, str, Task]]:
    """Peer, budget and task of the runs with a seed, as the bench's dense run with it was set up.

    Raises:
        InputError: the bench has no such run, or its pictures are not there as they were.
    """
    runs = [run for run in bench["runs"] if run["seed"] == seed and run["arm"].partition(":")[0] == "dense"]
    if not runs:
        raise InputError(f"{folder}: has no dense run with seed {seed}; run the bench's command again")
    run = min(runs, key=lambda run: run["arm"] != "dense")
    source = folder / run["folder"] / "config.json"
    try:
        config = TrainConfig(**read_json(source))
    except TypeError as error:
        raise InputError(f"{source}: written by another version ({error}); run the bench anew") from error
    _require_shared(config, folder, lrs)
    dataset = open_data(config, Reporter(Console(quiet=True)))
    if dataset.fingerprint != run["summary"]["data"]["fingerprint"]:
        raise InputError(f"{folder}: its pictures have changed since; run the bench anew with another --out")
    pictures = link_pictures(dataset, folder / "peers" / "pictures" / dataset.fingerprint)
    same = {field.name for field in dataclasses.fields(Task)} & {field.name for field in dataclasses.fields(config)}
    options = {name: getattr(config, name) for name in same}
    options |= {"data": os.path.relpath(pictures, folder / "peers"), "workers": config.threads or usable_cores()}
    tasks = []
    for budget in bench["budgets"]:
        for peer, lr in lrs.items():
            changes = {"peer": peer, "lr": lr or config.lr, "kind": budget["kind"], "amount": budget["amount"]}
            if budget["kind"] in KINDS:
                tasks.append((peer, budget["name"], Task(**options | changes)))
    return tasks


def _require_shared(config: TrainConfig, folder: Path, lrs: dict[str, float | None]) -> None:
    """Refuses a bench whose dense arm has what the peers' loops have not: they would not be compared alike.

    Raises:
        InputError: naming the option.
    """
    plain = TrainConfig()
    for name in ("optimizer", "class_weights", "freeze", "ema", "train_size"):
        value = getattr(config, name)
        if value != getattr(plain, name):
            raise InputError(f"{folder}: its dense arm has {flag_of(name)} {value}, which the peers' loops do not have")
    if config.nproc not in (None, "1"):
        raise InputError(f"{folder}: its runs have --nproc {config.nproc}, and the peers' loops one process")
    if config.start == PROBE and None in lrs.values():
        raise InputError(
            f"{folder}: its dense arm starts from a probe, with a learning rate for that; name each peer's, which "
            "starts from a random head, for example --lr torchvision=0.01"
        )


def run_one(task: Task, folder: Path) -> dict[str, Any]:
    """The summary of a run in its folder, from there if it is finished with the same options.

    Raises:
        RuntimeError: the run failed; with the last line that it printed.
    """
    written, out, log = (folder / name for name in ("task.json", "summary.json", "log.txt"))
    text = json.dumps(dataclasses.asdict(task), indent=1) + "\n"
    if not (out.exists() and written.exists() and written.read_text() == text):
        folder.mkdir(parents=True, exist_ok=True)
        out.unlink(missing_ok=True)
        write_whole(written, text)
        words = [sys.executable, "-W", "ignore", "-m", "benchmarks.peers.one", str(written), str(out)]
        code = start([*words, str(time.monotonic())], log)
        if code:
            printed = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
            raise RuntimeError(printed[-1][:300] if printed else f"exit code {code}")
    return read_json(out)


def start(words: list[str], log: Path) -> int:
    """Runs a command that ends with this process, with its output in a file; returns its exit code."""
    search = os.pathsep.join(path for path in (str(ROOT), os.environ.get("PYTHONPATH")) if path)
    with open(log, "w") as file:
        environment = {**os.environ, "PYTHONPATH": search}
        return subprocess.run(
            with_parent_death_signal(words), env=environment, stdout=file, stderr=subprocess.STDOUT
        ).returncode


def version_of(package: str) -> str | None:
    """The version that is installed, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


class Comparison:
    """A bench with its peers, written anew after every run.

    Args:
        folder: of the bench.
        lrs: the peers, each with its learning rate, or None for that of the dense arm.
        argv: the command line, for `peers.json`.

    Raises:
        InputError: the folder holds no bench of this version.
    """

    def __init__(self, folder: Path, lrs: dict[str, float | None], argv: list[str]) -> None:
        self.folder, self.lrs, self.argv = folder, lrs, argv
        self.bench = read_json(folder / "bench.json")
        if self.bench.get("schema") != SCHEMA:
            raise InputError(f"{folder}/bench.json: not of schema {SCHEMA}; run the bench anew with this version")
        taken = {arm["name"] for arm in self.bench["arms"]}
        self.arms = {peer: f"{peer} (peer)" if peer in taken else peer for peer in lrs}
        self.options: dict[str, dict[str, Any]] = {peer: {} for peer in lrs}
        self.runs: list[dict[str, Any]] = []
        self.failures: list[dict[str, Any]] = []

    def run(self) -> None:
        """Runs what is not finished."""
        for seed in self.bench["seeds"]:
            for peer, budget, task in tasks_of(self.folder, self.bench, seed, self.lrs):
                self.options[peer] = {"lr": task.lr}
                name = f"peers/seed{seed}-{budget}-{peer}"
                place = {"arm": self.arms[peer], "budget": budget, "seed": seed}
                try:
                    summary = run_one(task, self.folder / name)
                except RuntimeError as error:
                    self.failures.append({**place, "reason": str(error)})
                    print(f"seed {seed}, {budget}, {peer}: FAILED: {error}", file=sys.stderr)
                else:
                    self.runs.append({**place, "folder": name, "summary": summary})
                    units, seconds = summary["compute"]["forward_units"], summary["time_s"]["total"]
                    shown = f"top-1 {summary['accuracy']['val_top1']:.2%}, {units:,.0f} units, {seconds:.1f} s"
                    print(f"seed {seed}, {budget}, {peer}: {shown}", file=sys.stderr)
                self.write(finished=False)
        self.write(finished=self.bench["finished"])

    def write(self, *, finished: bool) -> None:
        """Writes `peers.json` and `peers.html`."""
        bench = self.bench
        peers = [{"name": self.arms[peer], "options": self.options[peer], "peer": True} for peer in self.lrs]
        arms = [*bench["arms"], *peers]
        runs, failures = bench["runs"] + self.runs, bench["failures"] + self.failures
        result = {**bench, "finished": finished, "arms": arms, "runs": runs, "failures": failures}
        result["peers_argv"] = self.argv
        found = summarise(arms, bench["budgets"], runs)
        notes = notes_of(arms, found, runs)
        joules = [budget["name"] for budget in bench["budgets"] if budget["kind"] not in KINDS]
        notes += [f"no peer ran with {name}: they keep no budget of joules" for name in joules]
        notes += [SHARED, *(f"{self.arms[peer]}: {self._about(peer)}" for peer in self.lrs)]
        result |= {**found, "notes": notes}
        write_whole(self.folder / "peers.json", json.dumps(result, indent=1) + "\n")
        write_bench_report(self.folder, name="peers.json")

    def _about(self, peer: str) -> str:
        package = PACKAGES.get(peer)
        version = f" ({package} {version_of(package) or 'is not installed'})" if package else ""
        return ABOUT[peer] + version


def parse_peers(peers: str, lr: str) -> dict[str, float | None]:
    """The peers by name, each with its own learning rate or None.

    Raises:
        InputError: a name is unknown, or a learning rate is none.
    """
    names = [name.strip() for name in peers.split(",") if name.strip()]
    unknown = [name for name in names if name not in PEERS]
    if unknown or not names:
        raise InputError(f"--peers {peers}: choose from {', '.join(PEERS)}")
    found: dict[str, float | None] = dict.fromkeys(names)
    for part in filter(None, map(str.strip, lr.split(","))):
        name, _, value = part.partition("=")
        try:
            rate = float(value)
        except ValueError:
            rate = 0.0
        if name not in found or not rate > 0:
            raise InputError(f"--lr {part}: give NAME=LR of a peer that runs, for example {names[0]}=0.05")
        found[name] = rate
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="BENCH", help="the --out of a `fastast bench`")
    parser.add_argument("--peers", metavar="A,B", default=",".join(PEERS), help="who; default all")
    parser.add_argument(
        "--lr", metavar="NAME=LR,...", default="", help="peak learning rates; default that of the bench's dense runs"
    )
    args = parser.parse_args(argv)
    try:
        comparison = Comparison(args.folder.resolve(), parse_peers(args.peers, args.lr), argv or sys.argv[1:])
        comparison.run()
    except InputError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    for sentence in read_json(args.folder / "peers.json")["verdict"]["sentences"]:
        print(sentence)
    return 0 if comparison.runs else 1


if __name__ == "__main__":
    sys.exit(main())
