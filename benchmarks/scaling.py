"""How much faster two or more ranks are than one, with as many cores as ranks.

    python -m benchmarks.scaling --data DIR [--ranks 1 2] [--gates dense forward memory] [--rounds 3] [--out FILE]

DIR holds train/ and val/ with class folders of JPEGs, of which `--count` training pictures are taken (seeded, class by
class). Every run is a `fastast train` of its own on the CPU, in turns, so that a drifting machine affects all alike. N
ranks get N cores, one compute thread and one decoder thread each, and communicate by gloo. The batch of a rank is the
same for any number of ranks. A gate that does less work for each picture gets more epochs. The rate is pictures offered
per second of training, without start-up and evaluation, from the run's own summary, whose counts must be right, or the
benchmark fails. Efficiency = rate / (ranks x rate of one rank), taken within a round; published
are medians over the rounds, with the range. With `--out a.json` the table goes to a.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import command_line, make_parser, markdown_table, provenance, publish, stamp
from benchmarks.subset import link_subset
from fastast.errors import InputError
from fastast.run_folder import RunFolder, read_json

EPOCHS = {"dense": 1, "forward": 2}  # 4 of the others: most of what they are offered costs nothing
VALIDATION = 40  # pictures; evaluation is not counted

Rates = dict[tuple[str, int], list[float]]


def offered_per_s(data: Path, out: Path, gate: str, num_ranks: int, seed: int, args: argparse.Namespace) -> float:
    """Trains once and returns the pictures offered for each second.

    Raises:
        RuntimeError: the run failed, or did not do what it was asked to.
    """
    cores = sorted(os.sched_getaffinity(0))[:num_ranks]
    epochs = EPOCHS.get(gate, 4)
    launch = ["torch.distributed.run", "--standalone", "--local-addr", "localhost", "--nproc-per-node", num_ranks, "-m"]
    words = [sys.executable, "-m", *(launch if num_ranks > 1 else []), "fastast", "train", "--device", "cpu"]
    words += ["--data", data, "--out", out, "--gate", gate, "--target", args.target, "--seed", seed]
    words += ["--arch", args.arch, "--image-size", args.image_size, "--batch-size", args.batch_size]
    words += ["--epochs", epochs, "--warmup-epochs", 0, "--threads", 1, "--checkpoint-every", 0]
    done = subprocess.run(
        list(map(str, words)),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    if done.returncode:
        raise RuntimeError(f"{gate} on {num_ranks} ranks ended with {done.returncode}:\n{done.stdout[-2000:]}")
    summary = read_json(RunFolder(out).summary)
    samples = summary["samples"]
    if summary["hardware"]["world_size"] != num_ranks or samples["offered"] != epochs * args.count:
        raise RuntimeError(f"{gate} on {num_ranks} ranks: {samples['offered']} samples were offered")
    if samples["backward"] + samples["leftover"] != samples["selected"]:
        raise RuntimeError(f"{gate} on {num_ranks} ranks: the counts of {samples} do not add up")
    return summary["throughput"]["offered_per_s"]


def figures(rates: Rates, gates: Sequence[str], counts: Sequence[int]) -> list[dict[str, Any]]:
    """One row for each gate and number of ranks, from the rates of each round; the first count is 1."""
    rows = []
    for gate in gates:
        for count in counts:
            found, alone = rates[gate, count], rates[gate, 1]
            shares = [rate / (count * one) for rate, one in zip(found, alone, strict=True)]
            rows.append(
                {
                    "gate": gate,
                    "ranks": count,
                    "n": len(found),
                    "offered_per_s": statistics.median(found),
                    "offered_per_s_range": [min(found), max(found)],
                    "efficiency": statistics.median(shares),
                    "efficiency_range": [min(shares), max(shares)],
                }
            )
    return rows


def table(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    rows = []
    for row in result["rows"]:
        low, high = row["offered_per_s_range"]
        worst, best = row["efficiency_range"]
        spread = f" ({worst:.0%} to {best:.0%})" if row["ranks"] > 1 else ""
        rate = f"{row['offered_per_s']:.1f} ({low:.1f} to {high:.1f})"
        times, share = f"{row['efficiency'] * row['ranks']:.2f}x", f"{row['efficiency']:.0%}{spread}"
        rows.append((f"`{row['gate']}`", row["ranks"], rate, times, share))
    return f"""\
Pictures offered per second, {result["arch"]} at {result["image_size"]} px, batch {result["batch_size"]} on each rank, \
gates at {result["target"]:.0%}; medians of {result["rounds"]} rounds (range), one core for each rank, gloo.

{markdown_table(("gate", "ranks", "offered/s", "times one rank", "efficiency"), rows, num_left=5)}

`{result["command"]}`

{result["hardware"]["name"]}; {stamp(result)}
"""


def main(argv: list[str] | None = None) -> None:
    parser = make_parser("benchmarks.scaling", __doc__)
    parser.add_argument("--data", required=True, type=Path, help="folder with train/ and val/ class folders")
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2], metavar="N", help="1 first (default 1 2)")
    parser.add_argument("--gates", nargs="+", default=["dense", "forward", "memory"], metavar="GATE")
    parser.add_argument("--target", type=float, default=0.25, help="share that is trained (default 0.25)")
    parser.add_argument("--count", type=int, default=640, help="training pictures (default 640)")
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--image-size", type=int, default=64, help="pixels (default 64)")
    parser.add_argument("--batch-size", type=int, default=32, help="of each rank (default 32)")
    parser.add_argument("--rounds", type=int, default=3, help="each with a seed of its own (default 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the first round")

    args = parser.parse_args(argv)
    num_cores = len(os.sched_getaffinity(0))
    if args.ranks[0] != 1 or max(args.ranks) > num_cores:
        raise InputError(f"--ranks {args.ranks}: begin with 1, and ask for no more than the {num_cores} cores here")
    rates: Rates = {(gate, count): [] for gate in args.gates for count in args.ranks}
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        link_subset(args.data / "train", data / "train", args.count)
        link_subset(args.data / "val", data / "val", VALIDATION)
        for number in range(args.rounds):
            for gate, count in rates:
                out = Path(scratch) / f"{number}-{gate}-{count}"
                rates[gate, count].append(offered_per_s(data, out, gate, count, args.seed + number, args))
                print(f"round {number + 1}: {gate} x {count}: {rates[gate, count][-1]:.1f}/s", file=sys.stderr)
    result = {
        **provenance(torch.device("cpu")),
        "command": command_line(parser, args),
        **{key: getattr(args, key) for key in ("arch", "image_size", "batch_size", "target", "count", "rounds")},
        "seeds": [args.seed + number for number in range(args.rounds)],
        "rows": figures(rates, args.gates, args.ranks),
    }
    publish(result, args.out, table)


if __name__ == "__main__":
    main()
