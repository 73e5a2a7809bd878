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
model to the sample, or the benchmark fails; decodes are the loader's own count, and must agree with it too.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import tempfile
import threading
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from benchmarks.common import command_line, provenance, publish
from benchmarks.gates_parts import Parts, ceiling
from benchmarks.gates_table import contender_row, table
from benchmarks.subset import link_subset
from fastast.config import TrainConfig
from fastast.console import Reporter
from fastast.data import Batch
from fastast.data.pack import run_pack
from fastast.energy.meter import EnergyMeter
from fastast.files import write_whole
from fastast.run import RunFolder
from fastast.train.account import PhaseCounts
from fastast.train.energy_book import EnergyBook
from fastast.train.results import part_counts
from fastast.train.session import open_data
from fastast.train.setup import complete_config, open_machine
from fastast.train.trainer import Trainer

SETTLE_BATCHES = 4  # a proxy's first refreshes, the controller's first threshold


@dataclass(frozen=True, slots=True)
class Contender:
    """A gate with its options; `packed` reads a pack that has thumbnails. Without a target, it has none."""

    name: str
    gate: str
    options: dict[str, Any]
    target: float | None = None
    packed: bool = False


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


class Lane:
    """A trainer that runs one epoch at a time, by its own `fit` in a thread of its own.

    Attributes:
        rows: rows that went forward and backward through the network in training, through scoring, and through checks
            of a proxy's ranking.
    """

    def __init__(self, entry: Contender, trainer: Trainer) -> None:
        self.entry, self.trainer = entry, trainer
        self.rows = {"forward": 0, "backward": 0, "scored": 0, "checked": 0}
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def watch(self) -> None:
        """Counts rows from now on."""
        engine = self.trainer.engine
        engine.model.register_forward_hook(self._trained)
        for step in (engine.score_step, engine.select_step):
            if step is not None:
                step.register_forward_pre_hook(self._scored)
        if engine.proxy is not None:
            check = engine.proxy.check

            def counted(small: Batch, full: Batch) -> float:
                self.rows["checked"] += full.num_valid
                return check(small, full)

            engine.proxy.check = counted  # type: ignore[method-assign]

    def _trained(self, module: nn.Module, inputs: tuple[Tensor], logits: Tensor) -> None:
        if logits.requires_grad:
            self.rows["forward"] += len(logits)
            logits.register_hook(lambda grad: self.rows.update(backward=self.rows["backward"] + len(grad)))

    def _scored(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.rows["scored"] += int(inputs[3].sum())

    def _run(self) -> None:
        self._go.acquire()
        try:
            self.trainer.fit(self)
        except BaseException as error:  # shown in the main thread
            self._error = error
        self._done.release()

    def due(self) -> bool:
        """Nothing is saved."""
        return False

    def save(self) -> None:
        """Nothing is saved."""

    def finish_epoch(self, line: dict[str, Any]) -> None:
        """Waits for the next turn."""
        self._done.release()
        self._go.acquire()

    def epoch(self) -> PhaseCounts:
        """Runs the next epoch; returns its counts and seconds, without evaluation."""
        before = self.trainer.journal.account.whole
        self._go.release()
        self._done.acquire()
        if self._error is not None:
            raise self._error
        after = self.trainer.journal.account.whole
        fields = [field.name for field in dataclasses.fields(PhaseCounts)]
        return PhaseCounts(**{name: getattr(after, name) - getattr(before, name) for name in fields})


def check_counts(lane: Lane, counts: PhaseCounts) -> dict[str, int]:
    """Compares what ran with what was counted and with the cost model.

    Args:
        lane: a contender that was watched for just those rounds.
        counts: its account over all rounds.

    Returns:
        The counts.

    Raises:
        RuntimeError: they differ, be it by one sample.
    """
    policy, engine = lane.trainer.policy, lane.trainer.engine
    decoded = counts.selected if policy.plans else counts.offered
    if engine.select_step is not None:  # a check of the thumbnails' ranking decodes its whole batch
        decoded = counts.selected + lane.rows["checked"]
    offered, trained = counts.offered, counts.backward
    units = part_counts(counts, policy).forward_units
    beyond = counts.extra_units - policy.upkeep_units * offered  # refreshes and checks of the ranking
    expected = {
        "forward": (lane.rows["forward"], trained),
        "backward": (lane.rows["backward"], trained),
        "scored": (lane.rows["scored"], counts.scored),
        "scored by the cost model": (counts.scored, offered if policy.scores else 0),
        "decoded": (counts.decoded, decoded),
        "forward units": (units, offered * policy.cost(trained / offered) + beyond),
    }
    for what, (found, wanted) in expected.items():
        if not math.isclose(found, wanted, rel_tol=1e-9):
            raise RuntimeError(f"{lane.entry.name} at {lane.entry.target}: {what}: {found:,}, expected {wanted:,}")
    return {
        "offered": offered,
        "decoded": counts.decoded,
        "scored": counts.scored,
        "checked": lane.rows["checked"],
        "selected": counts.selected,
        "backward": trained,
    }


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
        device="cpu",
        **entry.options,
    )
    reporter = Reporter(Console(file=StringIO()))
    dataset, machine = open_data(config, reporter), open_machine("cpu", config.precision, "off")
    complete_config(config, machine, dataset.train.num_samples)
    folder = RunFolder(scratch / "run")
    folder.create()
    return Trainer(config, machine, dataset, folder, EnergyBook(meter), reporter)


def measure(args: argparse.Namespace, scratch: Path, stack: ExitStack) -> dict[str, Any]:
    """All rounds, and their rows."""
    folders, pack, plain = scratch / "folders", scratch / "thumbnails", scratch / "pack"
    link_subset(args.data / "train", folders / "train", args.count, seed=args.seed)
    link_subset(args.data / "val", folders / "val", args.batch_size, seed=args.seed)
    entries = [entry for entry in contenders(args.targets) if args.only is None or entry.name in ("dense", *args.only)]
    if any(entry.packed for entry in entries):
        run_pack(folders, pack, thumbnails=args.thumbnails, say=lambda line: None)
    run_pack(folders, plain, say=lambda line: None)
    meter = stack.enter_context(EnergyMeter([]))

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
    rounds, times = [], []
    for number in range(args.rounds):
        before = parts.measure(2 * number)
        turns = lanes if number % 2 == 0 else lanes[::-1]  # so that a machine that slows down hits no gate always
        found = {lane: lane.epoch() for lane in turns}
        after = parts.measure(2 * number + 1)
        rounds.append([found[lane] for lane in lanes])
        times.append({key: (value + after[key]) / 2 for key, value in before.items()})
        print(f"round {number + 1} of {args.rounds}", file=sys.stderr)
    rows = []
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
        rows.append(contender_row(dataclasses.asdict(lane.entry), figures, counts, arithmetic))
    return {"times_ms": [{key: 1e3 * value for key, value in found.items()} for found in times], "rows": rows}


def main(argv: list[str] | None = None) -> None:
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
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="JSON file to write")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        found = measure(args, Path(scratch), stack)
    result = {
        **provenance(torch.device("cpu")),
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
