"""Damaged and odd pictures against the packer, the scan and the decoder: what was tried, and with which outcome.

    python -m benchmarks.robustness.fuzz [--seconds 600] [--seed 0] [--out benchmarks/results/fuzz.json]

Runs `tests.data.fuzz` in a process of its own. An input that crashes or hangs that process is printed, and the exit
code is 1. With `--out`, a table is written beside the JSON file.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import ROOT, make_parser, markdown_table, provenance, publish, stamp

ENDS = ("packed", "left out of a pack", "refused by the scan", "large", "decoded", "error raised")
HANG_S = 120  # on top of the requested time; starting and the last round take a few seconds


def run(seconds: float, seed: int) -> dict[str, dict[str, int]]:
    """Outcomes by kind of input; if the child crashes or hangs, ends this process and prints the input it worked on."""
    with tempfile.TemporaryDirectory() as scratch:
        current = Path(scratch) / "current.bin"
        command = [sys.executable, "-W", "ignore", "-m", "tests.data.fuzz", str(seconds), str(current), str(seed)]
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
    rows = [(kind, *(f"{ends.get(end, 0):,}" for end in ("tried", *ENDS))) for kind, ends in result["outcomes"].items()]
    return f"""\
# Fuzz: hostile pictures against the packer, the scan and the decoder

{result["tried"]:,} inputs in {result["seconds"]:g} s, none of which ended or hung the process.
Each goes through the packer and the scan; one that passes the scan goes through each of the three decoding
graphs, so *decoded* and *error raised* add up to three for it. *Large*: over 4 megapixels, not decoded.

{markdown_table(("input", "tried", *ENDS), rows)}

`python -m benchmarks.robustness.fuzz --seconds {result["seconds"]:g} --seed {result["seed"]}`; {stamp(result)}.
"""


def main() -> None:
    parser = make_parser("benchmarks.robustness.fuzz", __doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
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
    publish(result, args.out, table)


if __name__ == "__main__":
    main()
