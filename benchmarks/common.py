"""What the benchmarks share: the command line, the provenance of a result, means, and tables in Markdown."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import platform
import shlex
import statistics
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import torchvision

from fastast.atomic_files import write_whole
from fastast.code_version import code_version
from fastast.device import device_name

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def make_parser(module: str, description: str | None, *, table: bool = True) -> argparse.ArgumentParser:
    """The parser of `python -m module`, with the option --out; `table`: a Markdown file is written beside it."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", help="JSON file to write" + (", with a .md file beside it" if table else ""))
    return parser


def command_line(parser: argparse.ArgumentParser, args: argparse.Namespace) -> str:
    """The command that repeats a result: every option that differs from its default, except --out; paths shortened."""
    words = [parser.prog]
    for key, value in vars(args).items():
        if key == "out" or value == parser.get_default(key):
            continue
        values = [] if value is True else value if isinstance(value, list) else [value]
        words += ["--" + key.replace("_", "-")]
        words += [shlex.quote(v.name if isinstance(v, Path) else str(v)) for v in values]
    return " ".join(words)


def dali_version() -> str | None:
    """DALI's version, or None if it is not installed: parts of the GPU suite run without it."""
    try:
        return importlib.import_module("nvidia.dali").__version__
    except ImportError:
        return None


def provenance(device: torch.device) -> dict[str, Any]:
    """Hardware, versions, commit and time of a measurement."""
    version, commit = code_version()
    return {
        "hardware": {"device": device.type, "name": device_name(device), "threads": torch.get_num_threads()},
        "versions": {
            "fastast": version,
            "commit": commit,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "dali": dali_version(),
        },
        "measured_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def stamp(result: dict[str, Any]) -> str:
    """Versions, commit and day of a result, for the line below its table."""
    versions = result["versions"]
    return (
        f"torch {versions['torch']}, DALI {versions['dali']}, fastast {versions['fastast']} ({versions['commit']}), "
        f"{result['measured_at'][:10]}"
    )


def publish(result: dict[str, Any], out: str | Path | None, table: Callable[[Any], str] | None = None) -> None:
    """Prints a result as JSON; with `out`, writes it there, and its `table` to the .md file beside it."""
    text = json.dumps(result, indent=1) + "\n"
    print(text, end="")
    if out is not None:
        write_whole(out, text)
        if table is not None:
            write_whole(Path(out).with_suffix(".md"), table(result))


def mean_and_error(values: Sequence[float]) -> dict[str, float | None]:
    """The mean and its standard error, which is None for a single value."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "se": error}


def shown(value: dict[str, float | None], form: str, scale: float = 1.0) -> str:
    """A mean with its standard error, both in the format `form`; "-" if unknown."""
    mean, error = value["mean"], value["se"]
    if mean is None:
        return "-"
    return f"{scale * mean:{form}}" + ("" if error is None else f" +- {scale * error:{form}}")


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, num_left: int = 1) -> str:
    """A table with its first `num_left` columns aligned left, the others right; None is shown as "-"."""
    lines = ["| " + " | ".join("-" if cell is None else str(cell) for cell in row) + " |" for row in [columns, *rows]]
    lines.insert(1, "|---" * num_left + "|---:" * (len(columns) - num_left) + "|")
    return "\n".join(lines)
