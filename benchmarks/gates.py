"""Wall-clock speed-up of every gate over dense training, beside what arithmetic and what this machine allow.

    python -m benchmarks.gates --arch resnet18 --image-size 112 --data DIR [--targets 0.1 0.3] [--rounds 3] [--out FILE]

DIR holds train/ and val/ with class folders of JPEGs, from which `--count` training pictures are taken (seeded, class
by class). Each contender is a `Trainer` in its own loop. All start from the network and the remembered losses of one
dense epoch and are settled by four batches that nobody times. Then, in each round, every contender runs one epoch, in
turns, so that a drifting machine hits all alike; evaluation is left out. In the same round the parts are timed alone
with all threads, in seconds a sample: t, forward, backward and step on a trained one; f_score, scoring as the gate does
it, with shrinking and a proxy network's own training; d, decode. The machine's ceiling of a gate is then

    (d + t) / (d_all + f_score + a (d_sel + t))

with a the share trained in that round, d_all the decode paid for every offered sample (0 for gates that plan, the
thumbnail's for one that scores thumbnails) and d_sel the further decode of a selected one. Published are medians over
the rounds, of ratios taken within a round. Goals: every gate at 85 % of the machine's ceiling; random and memory at
10 % at 7 times dense. With `--out a.json` the table goes to a.md.

Trained and scored rows are counted twice, by hooks and by the run's own account, and both must agree with the cost
model to the sample, or the benchmark fails; decodes are the loader's own count, and must agree with it too. On a GPU
(`--device cuda`) there are no hooks, since theirs would wait for it; but joules, where the GPU tells them, and savings.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.common import command_line, provenance, publish
from benchmarks.gates_lane import Contender, Lane, check_counts
from benchmarks.gates_parts import Parts, ceiling
from benchmarks.gates_table import contender_row, energy_figures, table
from benchmarks.subset import link_subset
from fastast.atomic_files import write_whole
from fastast.config import TrainConfig
from fastast.data.pack import run_pack
from fastast.device import complete_config, open_machine
from fastast.energy.meter import EnergyMeter
from fastast.energy.reading import Reading
from fastast.loggers.console import Reporter
from fastast.loggers.counters import PhaseCounts
from fastast.run_folder import RunFolder
from fastast.train.run_energy import RunEnergy
from fastast.train.session import open_data
from fastast.train.trainer import Trainer

SETTLE_BATCHES = 4  # a proxy's first refreshes, the controller's first threshold


def contenders(targets: Iterable[float]) -> list[Contender]:
    """Dense first, then every gate at every target."""
    entries = [Contender("dense", "dense", {}), Contender("infobatch", "infobatch", {})]
    for target in targets:
        entries += [
            Contender("random", "random", {}, target),
            Contender("memory", "memory", {}, target),
            Contender("forward", "forward", {}, target),
            Contender("proxy", "proxy", {}, target),
            Contender("proxy, tiny network", "proxy", {"proxy_arch": "tiny"}, target),
            Contender("proxy, thumbnails", "proxy", {}, target, packed=True),
            Contender("proxy, thumbnails, tiny network", "proxy", {"proxy_arch": "tiny"}, target, packed=True),
        ]
    return entries


def open_trainer(entry: Contender, args: argparse.Namespace, data: Path, scratch: Path, meter: EnergyMeter) -> Trainer:
    """A trainer as `fastast train` makes it, with more epochs ahead than will be run."""
    config = TrainConfig(
        data=str(data),
        arch=args.arch,
        image_size=args.image_size,
        batch_size=args.batch_size,
        epochs=2.0 * (args.rounds + 1),
        warmup_epochs=0.0,
        gate=entry.gate,
        target=entry.target or 0.1,
        seed=args.seed,
        device=args.device,
        **entry.options,
    )
    reporter = Reporter(Console(file=StringIO()))
    dataset, machine = open_data(config, reporter), open_machine(args.device, config.precision, args.compile)
    complete_config(config, machine, dataset.train.num_samples)
    folder = RunFolder(scratch / "run")
    folder.create()
    return Trainer(config, machine, dataset, folder, RunEnergy(meter), reporter)


def measure(
    args: argparse.Namespace, scratch: Path, stack: ExitStack, tell: Callable[[dict[str, Any]], object]
) -> dict[str, Any]:
    """All rounds, and their rows; `tell` gets those of the rounds so far after each."""
    folders, pack, plain = scratch / "folders", scratch / "thumbnails", scratch / "pack"
    link_subset(args.data / "train", folders / "train", args.count, seed=args.seed)
    link_subset(args.data / "val", folders / "val", args.batch_size, seed=args.seed)
    entries = [entry for entry in contenders(args.targets) if args.only is None or entry.name in ("dense", *args.only)]
    if any(entry.packed for entry in entries):
        run_pack(folders, pack, thumbnails=args.thumbnails, say=lambda line: None)
    run_pack(folders, plain, say=lambda line: None)
    meter = stack.enter_context(EnergyMeter(None if args.device == "cuda" else []))

    def open_lane(entry: Contender) -> Lane:
        trainer = open_trainer(entry, args, pack if entry.packed else plain, scratch, meter)
        stack.callback(trainer.close)
        return Lane(entry, trainer)

    spare = open_lane(Contender("spare", "dense", {}))
    spare.epoch()
    lanes = []
    for entry in entries:
        lane = open_lane(entry)
        trainer, engine = lane.trainer, lane.trainer.engine
        engine.model.load_state_dict(spare.trainer.engine.model.state_dict())
        engine.memory.load_state_dict(spare.trainer.engine.memory.state_dict())
        first = trainer.schedule.stretches[0]
        start = max(first.start, first.stop - SETTLE_BATCHES * args.batch_size)
        trainer.schedule.stretches[0] = dataclasses.replace(first, start=start)
        lane.epoch()
        lane.watch()
        lanes.append(lane)
        print(f"settled {entry.name} {entry.target or ''}", file=sys.stderr)
    parts = Parts(spare.trainer, {lane.entry.name: lane.trainer for lane in lanes})
    stack.callback(parts.close)
    rounds: list[list[PhaseCounts]] = []
    times: list[dict[str, float]] = []
    readings = [lane.reading() for lane in lanes]
    found: dict[str, Any] = {}
    for number in range(args.rounds):
        before = parts.measure(2 * number)
        turns = lanes if number % 2 == 0 else lanes[::-1]  # so that a machine that slows down hits no gate always
        counts = {lane: lane.epoch() for lane in turns}
        after = parts.measure(2 * number + 1)
        rounds.append([counts[lane] for lane in lanes])
        times.append({key: (value + after[key]) / 2 for key, value in before.items()})
        print(f"round {number + 1} of {args.rounds}", file=sys.stderr)
        found = {
            "machine": {
                "precision": spare.trainer.machine.precision_note,
                "compile": spare.trainer.machine.compile_note,
            },
            "times_ms": [{key: 1e3 * value for key, value in each.items()} for each in times],
            "rows": rows_of(lanes, rounds, times, readings),
        }
        tell(found)
    return found


def rows_of(
    lanes: list[Lane], rounds: list[list[PhaseCounts]], times: list[dict[str, float]], begun: list[Reading | None]
) -> list[dict[str, Any]]:
    """What the rounds so far add up to: one row for each contender, dense first.

    Args:
        lanes: the contenders.
        rounds: counts of each contender, by round.
        times: the parts' seconds a sample, by round.
        begun: each contender's energy before the first round.
    """
    rows: list[dict[str, Any]] = []
    for place, lane in enumerate(lanes):
        mine = [counts[place] for counts in rounds]
        figures = [
            {
                "offered_per_s": c.offered / c.seconds,
                "speedup": (rounds[i][0].seconds / rounds[i][0].offered) / (c.seconds / c.offered),
                "ceiling": ceiling(lane.entry.name, lane.trainer, times[i], c.backward / c.offered),
                "data_wait": c.data_wait / c.seconds,
            }
            for i, c in enumerate(mine)
        ]
        counts = check_counts(lane, sum(mine, PhaseCounts()))
        arithmetic = lane.trainer.policy.ceiling(counts["backward"] / counts["offered"])
        row = contender_row(dataclasses.asdict(lane.entry), figures, counts, arithmetic)
        now, start = lane.reading(), begun[place]
        if now is not None and start is not None:
            dense_j = rows[0]["energy"]["j_per_offered"] if rows else None
            row["energy"] = energy_figures(now.since(start), counts["offered"], len(rounds), arithmetic, dense_j)
        rows.append(row)
    return rows


def main(argv: list[str] | None = None, tell: Callable[[dict[str, Any]], object] = lambda found: None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="folder with train/ and val/ class folders")
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--image-size", type=int, default=112, help="pixels")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--targets", nargs="+", type=float, default=[0.1, 0.3])
    parser.add_argument("--count", type=int, default=1280, help="training pictures; a multiple of batch size / target")
    parser.add_argument("--thumbnails", type=int, default=64, help="short side of the pack's thumbnails, pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these contenders beside dense; default all")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--compile", default="off", help="as of `fastast train`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="JSON file to write")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        found = measure(args, Path(scratch), stack, tell)
    result = {
        **provenance(torch.device(args.device)),
        **{key: getattr(args, key) for key in ("arch", "image_size", "batch_size", "count", "thumbnails", "seed")},
        "command": command_line("benchmarks.gates", parser, args),
        "n": args.rounds,
        **found,
    }
    publish(result, args.out)
    if args.out:
        write_whole(Path(args.out).with_suffix(".md"), table(result))


if __name__ == "__main__":
    main()
