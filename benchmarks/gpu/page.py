"""The Markdown page beside a results file: hardware, targets, items, and a table of each item's figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.common import markdown_table, shown, stamp
from benchmarks.gate_speed.table import rows_table
from benchmarks.gpu.targets import targets

# Figures that are logs, or that have a table of their own.
LEFT_OUT = ("argv", "checks", "tail", "verdict", "failures", "times_ms", "outcomes", "options")


def page(results: dict[str, Any]) -> str:
    """All results as Markdown."""
    rows = [(row["what"], row["goal"], _text(row["found"]), _because(row["verdict"], row)) for row in targets(results)]
    parts = [_head(results), "## Targets", markdown_table(("target", "goal", "found", "verdict"), rows), "## Items"]
    items = results["items"].items()
    rows = [
        (name, entry["what"], f"{entry['seconds']:.0f}", _because(entry["status"], entry), entry.get("commit"))
        for name, entry in items
    ]
    parts.append(markdown_table(("item", "what", "s", "status", "commit"), rows))
    for name, entry in items:
        if entry["figures"]:
            parts += [f"## {entry['what'][0].upper()}{entry['what'][1:]}", *_section(name, entry["figures"])]
            parts += _utilisation(entry["figures"], results)
    return "\n\n".join(parts) + "\n"


def _head(results: dict[str, Any]) -> str:
    hardware, versions = results.get("hardware"), results.get("versions")
    parts = ["# GPU suite"]
    if results["tiny"]:
        parts.append("**A dry run at tiny sizes: its figures mean nothing.**")
    if hardware is None or versions is None:
        parts.append("The machine could not be read; its entry in the JSON file says why.")
    else:
        driver = f", driver {hardware['driver']}" if hardware.get("driver") else ""
        cuda = f"CUDA {versions['cuda']}, " if versions.get("cuda") else ""
        parts.append(
            f"{hardware['name']}{driver}, {hardware['cores']} cores; {cuda}Python {versions['python']}, "
            f"{stamp(results)}, seed {results['seed']}. `{results['command']}`"
        )
    return "\n\n".join(parts)


def _because(status: str, row: Mapping[str, Any]) -> str:
    return status if row["reason"] is None else f"{status}: {row['reason']}".replace("|", "/")


def _section(name: str, figures: Mapping[str, Any]) -> Iterable[str]:
    """Tables of the figures that have rows, and a line of the others."""
    scalars = []
    for key, value in figures.items():
        if key in LEFT_OUT or value in ([], {}, None):
            continue
        if name.startswith("gates") and key == "rows":
            yield rows_table(value)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            columns = tuple(dict.fromkeys(k for row in value for k in row))
            yield markdown_table(columns, [[_text(row.get(column)) for column in columns] for row in value])
        elif isinstance(value, dict) and value and all(isinstance(row, dict) for row in value.values()):
            if key == "sets":
                for place, found in value.items():
                    yield from (f"On {place}:", *_section(place, found))
                continue
            columns = tuple(dict.fromkeys(k for row in value.values() for k in row))
            rows = [[place, *(_text(row.get(column)) for column in columns)] for place, row in value.items()]
            yield markdown_table((key, *columns), rows)
        else:
            scalars.append(f"{key}: {_text(value)}")
    if scalars:
        yield "; ".join(scalars) + "."


def _utilisation(figures: Mapping[str, Any], results: dict[str, Any]) -> list[str]:
    """The fastest loop as a share of the measured rate of matrix products."""
    ceilings = results["items"].get("ceilings", {}).get("figures", {}).get("matmul_tflops")
    if not ceilings or not figures.get("train_gflops") or not figures["rates"]:
        return []
    rate = max(loop["images_per_s"] for loop in figures["rates"].values())
    return [f"MFU of the fastest loop: {rate * figures['train_gflops'] / 1e3 / max(ceilings.values()):.0%}."]


def _text(value: Any) -> str:
    """A figure for people: four digits, ranges and lists by commas, a mean with its standard error."""
    if isinstance(value, dict):
        if value.keys() == {"mean", "se"}:
            return shown(value, ".4g")
        return ", ".join(f"{key} {_text(each)}" for key, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return "-" if value is None else str(value).replace("|", "/")
