"""Damaged and odd pictures against the packer, the scan and the decoder: what was tried, and what became of it.

    python -m benchmarks.fuzz [--seconds 600] [--seed 0] [--out benchmarks/results/fuzz.json]

Runs `tests.feed.fuzz_decoders` in a process of its own, whose end is what it looks for: an input that ends or hangs it
is printed, and the exit code is 1. With `--out`, a table is written beside the JSON file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import provenance, publish, stamp
from fastast.atomic_files import write_whole

ROOT = Path(__file__).resolve().parent.parent
ENDS = ("packed", "left out of a pack", "refused by the scan", "large", "decoded", "error raised")
HANG_S = 120  # beyond the time given; starting and the last round take a few seconds


def run(seconds: float, seed: int) -> dict[str, dict[str, int]]:
    """Outcomes by kind of input; ends this process with the input in hand where the child does not come through."""
    with tempfile.TemporaryDirectory() as scratch:
        current = Path(scratch) / "current.bin"
        command = [sys.executable, "-W", "ignore", "-m", "tests.feed.fuzz_decoders"]
        command += [str(seconds), str(current), str(seed)]
        try:
            child = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=seconds + HANG_S
            )
        except subprocess.TimeoutExpired:
            sys.exit(f"hangs on {current.read_bytes().hex()}")
        if child.returncode != 0:
            tried = current.read_bytes().hex() if current.exists() else "nothing yet"
            sys.exit(f"{child.stderr[-2000:]}\nended with {child.returncode} on {tried}")
        return json.loads(child.stdout.splitlines()[-1])


def table(result: dict[str, Any]) -> str:
    """The counts as Markdown."""
    lines = [
        "# Fuzz: hostile pictures against the packer, the scan and the decoder",
        "",
        f"{result['tried']:,} inputs in {result['seconds']:g} s, none of which ended or hung the process.",
        "Each goes through the packer and the scan; one that passes the scan goes through each of the three decoding",
        "graphs, so *decoded* and *error raised* add up to three for it. *Large*: over 4 megapixels, not decoded.",
        "",
        f"| input | tried | {' | '.join(ENDS)} |",
        "|---|" + "---:|" * (1 + len(ENDS)),
    ]
    for kind, ends in result["outcomes"].items():
        counts = [ends.get(end, 0) for end in ("tried", *ENDS)]
        lines.append(f"| {kind} | {' | '.join(f'{count:,}' for count in counts)} |")
    lines += [
        "",
        f"`python -m benchmarks.fuzz --seconds {result['seconds']:g} --seed {result['seed']}`; {stamp(result)}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="JSON file to write, with a .md file beside it")
    args = parser.parse_args()
    outcomes = run(args.seconds, args.seed)
    result = {
        "title": "Fuzz of the packer, the scan and the decoder",
        **provenance(torch.device("cpu")),
        "seconds": args.seconds,
        "seed": args.seed,
        "tried": sum(ends["tried"] for ends in outcomes.values()),
        "outcomes": outcomes,
    }
    publish(result, args.out)
    if args.out:
        write_whole(Path(args.out).with_suffix(".md"), table(result))


if __name__ == "__main__":
    main()
