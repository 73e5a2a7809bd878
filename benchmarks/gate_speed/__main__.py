"""Wall-clock speed-up of every gate over dense training, beside what arithmetic and this machine allow.

    python -m benchmarks.gate_speed --data DIR [--arch resnet18] [--image-size 112] [--targets 0.1 0.3] [--out FILE]

DIR holds train/ and val/ with class folders of JPEGs, from which `--count` training pictures are taken (seeded, class
by class). Each contender is a `Trainer` in its own loop. All start from the weights and the remembered losses of one
dense epoch and run four batches that are not timed. Then, in each round, every contender runs one epoch, in turns, so
that a drifting machine affects all alike; evaluation is not included. In the same round the parts are timed alone with
all threads, in seconds a sample: t, forward, backward and step on a trained one; f, the scoring forward; d, decode. The
machine's ceiling is then, with a the share trained in that round,

    1 / a                           of a gate that plans before decode,
    (d + t) / (d + f + a t)         of one that scores every sample (f = 0 if it does not).

Published are medians over the rounds, of ratios taken within a round. Goals: every gate at 85 % of the machine's
ceiling; random and memory at 10 % at 7 times dense. With `--out a.json` the table goes to a.md.

Trained and scored rows are counted twice, by hooks and by the run itself, and both must agree with the cost model to
the sample, or the benchmark fails; decodes are the loader's own count, and must agree with it too. With
`--device cuda` there are no hooks, since they would wait for the GPU; joules and savings are reported where NVML has
them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.common import command_line, make_parser, provenance, publish
from benchmarks.gate_speed.ceiling import PartTimer, machine_ceiling
from benchmarks.gate_speed.runner import Contender, EpochRunner, check_counts
from benchmarks.gate_speed.table import contender_row, energy_figures, table
from benchmarks.subset import link_subset
from fastast.config import TrainConfig
from fastast.device import open_runtime
from fastast.energy.energy_meter import EnergyMeter
from fastast.energy.reading import Reading
from fastast.loggers.console import Reporter
from fastast.loggers.counters import PhaseCounts
from fastast.packing.packer import run_pack
from fastast.run_folder import RunFolder
from fastast.session.run_data import open_data
from fastast.train.defaults import complete_config
from fastast.train.run_energy import RunEnergy
from fastast.train.trainer import Trainer

SETTLE_BATCHES = 4  # enough for the controller's first threshold


def contenders(targets: Iterable[float], only: list[str] | None = None) -> list[Contender]:
    """Dense first, then every gate at every target, or those named in `only`."""
    entries = [Contender("dense"), Contender("infobatch")]
    entries += [Contender(gate, target) for target in targets for gate in ("random", "memory", "forward")]
    return [entry for entry in entries if only is None or entry.name in ("dense", *only)]


def open_trainer(entry: Contender, args: argparse.Namespace, data: Path, scratch: Path, meter: EnergyMeter) -> Trainer:
    """A trainer as `fastast train` makes it, with more epochs ahead than will be run."""
    config = TrainConfig(
        data=str(data),
        arch=args.arch,
        image_size=args.image_size,
        batch_size=args.batch_size,
        epochs=2.0 * (args.rounds + 1),
        warmup_epochs=0.0,
        gate=entry.name,
        target=entry.target or 0.1,
        seed=args.seed,
        device=args.device,
    )
    reporter = Reporter(Console(file=StringIO()))
    dataset, runtime = open_data(config, reporter), open_runtime(args.device, config.precision, args.compile)
    complete_config(config, runtime, dataset.train.num_samples)
    folder = RunFolder(scratch / "run")
    folder.create()
    return Trainer(config, runtime, dataset, folder, RunEnergy(meter), reporter)


def measure(
    args: argparse.Namespace, scratch: Path, stack: ExitStack, tell: Callable[[dict[str, Any]], object]
) -> dict[str, Any]:
    """Runs all rounds and returns their rows; after each round, `tell` gets the rows so far."""
    folders, pack = scratch / "folders", scratch / "pack"
    link_subset(args.data / "train", folders / "train", args.count, seed=args.seed)
    link_subset(args.data / "val", folders / "val", args.batch_size, seed=args.seed)
    run_pack(folders, pack, say=lambda line: None)
    meter = stack.enter_context(EnergyMeter(None if args.device == "cuda" else []))

    def open_runner(entry: Contender) -> EpochRunner:
        trainer = open_trainer(entry, args, pack, scratch, meter)
        stack.callback(trainer.close)
        return EpochRunner(entry, trainer)

    spare = open_runner(Contender("dense"))
    spare.epoch()
    runners = []
    for entry in contenders(args.targets, args.only):
        runner = open_runner(entry)
        trainer, engine = runner.trainer, runner.trainer.engine
        engine.model.load_state_dict(spare.trainer.engine.model.state_dict())
        engine.memory.load_state_dict(spare.trainer.engine.memory.state_dict())
        # A short first epoch settles the gate.
        trainer.position.offered = max(0, trainer.dataset.train.num_samples - SETTLE_BATCHES * args.batch_size)
        runner.epoch()
        runner.count_rows()
        runners.append(runner)
        print(f"settled {entry.name} {entry.target or ''}", file=sys.stderr)
    timer = PartTimer(spare.trainer)
    rounds: list[list[PhaseCounts]] = []
    times: list[dict[str, float]] = []
    readings = [runner.reading() for runner in runners]
    found: dict[str, Any] = {}
    for number in range(args.rounds):
        before = timer.measure(2 * number)
        turns = runners if number % 2 == 0 else runners[::-1]  # so that a machine that slows down favours no gate
        counts = {runner: runner.epoch() for runner in turns}
        after = timer.measure(2 * number + 1)
        rounds.append([counts[runner] for runner in runners])
        times.append({key: (value + after[key]) / 2 for key, value in before.items()})
        print(f"round {number + 1} of {args.rounds}", file=sys.stderr)
        runtime = spare.trainer.runtime
        found = {
            "machine": {"precision": runtime.precision_note, "compile": runtime.compile_note},
            "times_ms": [{key: 1e3 * value for key, value in each.items()} for each in times],
            "rows": rows_of(runners, rounds, times, readings),
        }
        tell(found)
    return found


def rows_of(
    runners: list[EpochRunner],
    rounds: list[list[PhaseCounts]],
    times: list[dict[str, float]],
    readings: list[Reading | None],
) -> list[dict[str, Any]]:
    """One row for each contender, dense first, from the counts of each round, the parts' seconds a sample in each, and
    the contenders' energy before the first.
    """
    rows: list[dict[str, Any]] = []
    for place, runner in enumerate(runners):
        gate = runner.trainer.gate
        mine = [counts[place] for counts in rounds]
        figures = [
            {
                "offered_per_s": c.offered / c.seconds,
                "speedup": (dense.seconds / dense.offered) / (c.seconds / c.offered),
                "ceiling": machine_ceiling(parts, c.backward / c.offered, scores=gate.scores, plans=gate.plans),
                "data_wait": c.data_wait / c.seconds,
            }
            for c, (dense, *_), parts in zip(mine, rounds, times, strict=True)
        ]
        counts = check_counts(runner, sum(mine, PhaseCounts()))
        arithmetic = gate.ceiling(counts["backward"] / counts["offered"])
        row = contender_row(runner.entry.name, runner.entry.target, figures, counts, arithmetic)
        now, start = runner.reading(), readings[place]
        if now is not None and start is not None:
            dense_j = rows[0]["energy"]["j_per_offered"] if rows else None
            row["energy"] = energy_figures(now.since(start), counts["offered"], len(rounds), arithmetic, dense_j)
        rows.append(row)
    return rows


def main(argv: list[str] | None = None, tell: Callable[[dict[str, Any]], object] = lambda found: None) -> None:
    parser = make_parser("benchmarks.gate_speed", __doc__)
    parser.add_argument("--data", required=True, type=Path, help="folder with train/ and val/ class folders")
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--image-size", type=int, default=112, help="pixels")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--targets", nargs="+", type=float, default=[0.1, 0.3])
    parser.add_argument("--count", type=int, default=1280, help="training pictures; a multiple of batch size / target")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", metavar="GATE", help="these beside dense; default: all")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--compile", default="off", help="as of `fastast train`")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        found = measure(args, Path(scratch), stack, tell)
    result = {
        **provenance(torch.device(args.device)),
        **{key: getattr(args, key) for key in ("arch", "image_size", "batch_size", "count", "seed")},
        "command": command_line(parser, args),
        "n": args.rounds,
        **found,
    }
    publish(result, args.out, table)


if __name__ == "__main__":
    main()
