"""Writes the index of all results, benchmarks/results/README.md, from the result files alone.

    python -m benchmarks.index [--results DIR]

The same files give the same page. Run it after a benchmark has written or changed a file there.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, markdown_table
from fastast.atomic_files import write_whole
from fastast.errors import InputError
from fastast.run_folder import read_json

PAGE = "README.md"
HEAD = """# Results

Each result with its hardware, its versions, its commit and its day; below, the command or the module that measured it.
`-dirty`: the working tree held further changes. This page is made by `python -m benchmarks.index`; edit nothing here.

"""
COLUMNS = ("result", "what", "hardware", "versions", "commit", "day")
NAMED = re.compile(r"python -m benchmarks\.(\w+)")
# Results keep the command that measured them: modules that have another name now, and titles of modules that are gone.
MOVED = {"crash_test": "robustness.crash_test", "fuzz": "robustness.fuzz", "gates": "gate_speed"}
GONE = {"accuracy": "Accuracy of every gate beside random and dense training on CIFAR-10 (today: `fastast bench`)"}


def index(folder: Path) -> str:
    """The index of a folder of result files.

    Raises:
        InputError: a file does not say where it comes from.
    """
    results = {path: read_json(path) for path in sorted(folder.glob("*.json"))}
    rows, sections = [], []
    for path, result in results.items():
        missing = [key for key in ("hardware", "versions", "measured_at") if key not in result]
        if missing:
            raise InputError(f"{path}: does not say its {' and '.join(missing)}; measure it again")
        table = path.with_suffix(".md")
        shown = (
            f"[{path.stem}]({table.name}) ([JSON]({path.name}))" if table.exists() else f"[{path.stem}]({path.name})"
        )
        versions = result["versions"]
        packages = f"torch {versions['torch']}, DALI {versions['dali'] or 'none'}, Python {versions['python']}"
        what, hardware = _what(path, result), hardware_words(result["hardware"])
        rows.append((shown, what, hardware, packages, versions["commit"] or "none", result["measured_at"][:10]))
        module = _module(path, result)
        lines = [f"`{result.get('command') or f'benchmarks.{module}'}`"]  # older files have no command
        if module in MOVED:
            lines.append(f"(today `benchmarks.{MOVED[module]}`)")
        if not table.exists():
            lines.append(_scalars(result))
        sections.append(f"**{path.stem}**: " + " ".join(lines))
    return HEAD + markdown_table(COLUMNS, rows, num_left=len(COLUMNS)) + "\n\n" + "\n\n".join(sections) + "\n"


def _module(path: Path, result: dict[str, Any]) -> str:
    named = NAMED.match(result.get("command", ""))
    return path.stem if named is None else named[1]


def _what(path: Path, result: dict[str, Any]) -> str:
    """Its title, or the first sentence of the module that measured it."""
    if "title" in result:
        return str(result["title"])
    module = _module(path, result)
    if module in GONE:
        return GONE[module]
    spec = importlib.util.find_spec(f"benchmarks.{MOVED.get(module, module)}")
    if spec is None or spec.origin is None:
        raise InputError(f"{path}: has no title, and no benchmark has its name")
    text = Path(spec.origin).read_text(encoding="utf-8").removeprefix('"""')
    return text.splitlines()[0].rstrip('".')


def hardware_words(hardware: dict[str, Any]) -> str:
    """The machine of a result: its name, and its threads where it has no GPU."""
    parts = [hardware["name"]]
    if hardware["device"] == "cpu":
        parts.append(f"{hardware['threads']} thread{'s'[: hardware['threads'] > 1]}")
    if hardware.get("driver"):
        parts.append(f"driver {hardware['driver']}")
    return ", ".join(parts)


def _scalars(result: dict[str, Any]) -> str:
    """Plain figures, for a result without a table."""
    known = ("title", "measured_at", "command", "hardware", "versions", "schema")
    cells = []
    for key, value in result.items():
        if key not in known and isinstance(value, int | float | str):
            cells.append(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}")
    return "; ".join(cells) + "."


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    write_whole(args.results / PAGE, index(args.results))


if __name__ == "__main__":
    main()
