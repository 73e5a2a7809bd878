"""Writes the measured tables into the gates' method cards.

    python -m benchmarks.cards [--gates FILE] [--accuracy FILE] [--readme FILE]

Between the two marks of fastast/gate/README.md stands what `benchmarks.gates` and `benchmarks.accuracy` measured, made
from their JSON files alone: the same files give the same text. A file that does not exist leaves its table out.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from benchmarks import accuracy_table, gates_table
from fastast.atomic_files import write_whole
from fastast.errors import InputError
from fastast.run_folder import read_json

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
REGION = re.compile(r"(<!-- measured: begin -->\n).*?(<!-- measured: end -->)", re.DOTALL)


def fill(text: str, gates: dict[str, Any] | None, accuracy: dict[str, Any] | None) -> str:
    """The cards with their measured region made anew.

    Args:
        text: the cards.
        gates: result of `benchmarks.gates`, or None.
        accuracy: result of `benchmarks.accuracy`, or None.

    Raises:
        InputError: there is no result at all, or the text has not exactly one region.
    """
    tables = []
    if gates is not None:
        tables.append(gates_table.table(gates))
    if accuracy is not None:
        tables.append(accuracy_table.table(accuracy))
    if not tables:
        raise InputError("nothing was measured: run benchmarks.gates or benchmarks.accuracy with --out first")
    if len(REGION.findall(text)) != 1:
        raise InputError("the cards need one region between <!-- measured: begin --> and <!-- measured: end -->")
    body = "\n".join(tables)
    return REGION.sub(lambda found: f"{found[1]}{body}{found[2]}", text)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gates", type=Path, default=RESULTS / "gates.json")
    parser.add_argument("--accuracy", type=Path, default=RESULTS / "accuracy.json")
    parser.add_argument("--readme", type=Path, default=ROOT / "fastast" / "gate" / "README.md")
    args = parser.parse_args(argv)
    gates, accuracy = (read_json(path) if path.exists() else None for path in (args.gates, args.accuracy))
    write_whole(args.readme, fill(args.readme.read_text(encoding="utf-8"), gates, accuracy))


if __name__ == "__main__":
    main()
