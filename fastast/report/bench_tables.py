"""The tables of a bench's page: an arm a row, a budget a column."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from fastast.phases import DENSE
from fastast.plots.bench_plots import UNITS, accuracy_text, cost_text

Entry = Mapping[str, Any]
PROBE_ALONE = "probe alone"
KINDS = {"better": "good", "worse": "bad"}  # CSS classes of outcomes


class Cell(NamedTuple):
    """A cell: its text, a smaller text below, a CSS class and a link."""

    text: str = "-"
    beside: str = ""
    kind: str = ""
    href: str | None = None


class Table(NamedTuple):
    """A table: its name, the titles of its columns, and its rows with their titles."""

    name: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]


def reference_of(bench: Entry) -> str:
    """The arm that costs are compared with."""
    return next((entry["against"] for entry in [*bench["cost_at_equal_accuracy"], *bench["paired"]]), DENSE)


def cost_table(bench: Entry, unit: str) -> Table:
    """Cost of every arm at the accuracy of the reference with each budget, over what it costs the reference."""
    entries = [entry for entry in bench["cost_at_equal_accuracy"] if entry["unit"] == unit]
    budgets = [budget["name"] for budget in bench["budgets"]]
    found = {(entry["arm"], entry["budget"]): entry for entry in entries}
    asked = []
    for budget in budgets:
        levels = dict.fromkeys(_percent(entry["top1"]) for entry in entries if entry["budget"] == budget)
        asked.append(Cell(", ".join(levels) or "-"))
    rows = [("top-1 to reach", asked)]
    for arm in bench["arms"]:
        name = arm["name"]
        cells = [_ratio(found[name, budget]) if (name, budget) in found else Cell() for budget in budgets]
        if any((name, budget) in found for budget in budgets):
            rows.append((name, cells))
    columns = [f"as {reference_of(bench)} at {name}" for name in budgets]
    return Table(f"Cost at equal accuracy, {UNITS[unit].title}", columns, rows)


def _ratio(entry: Entry) -> Cell:
    low, high = entry["interval"] or (None, None)
    if low is None:
        bounds, kind = "", ""
    elif high is None:
        bounds, kind = f"at least {low:.2f}" if low else "not bounded", "bad" if low > 1 else ""
    else:
        bounds = f"at most {high:.2f}" if low == 0 else f"{low:.2f} to {high:.2f}"
        kind = "good" if high < 1 else "bad" if low > 1 else ""
    if entry["ratio"] is None:
        return Cell("less than tried" if entry["reached"] else "not reached", bounds, kind or "none")
    return Cell(f"{entry['ratio']:.2f}", bounds or "no interval", kind)


def is_unbalanced(bench: Entry) -> bool:
    """Whether validation classes differ in size, so that balanced top-1, the mean of the classes' own, is another."""
    pairs = ((point["top1"]["mean"], _balanced(point)["mean"]) for point in bench["points"])
    return any(balanced is not None and abs(balanced - top1) > 1e-9 for top1, balanced in pairs)


def _balanced(point: Entry) -> Entry:
    """Balanced top-1 of a point; older files have none."""
    return point.get("balanced_top1") or {"mean": None, "se": None}


def accuracy_table(bench: Entry) -> Table:
    """Top-1 by arm and budget, mean and standard error."""
    found = {(point["arm"], point["budget"]): point for point in bench["points"]}
    budgets = [budget["name"] for budget in bench["budgets"]]
    unbalanced = is_unbalanced(bench)

    def cell(point: Entry | None) -> Cell:
        if point is None:
            return Cell()
        balanced = f"balanced {accuracy_text(_balanced(point))}" if unbalanced else ""
        return Cell(accuracy_text(point["top1"]), ", ".join(filter(None, (balanced, _seeds(point, bench)))))

    names = [arm["name"] for arm in bench["arms"]]
    rows = [(name, [cell(found.get((name, budget))) for budget in budgets]) for name in names]
    if probe := bench.get("probe"):  # a bench of an older version has none
        alone = Cell(accuracy_text(probe["top1"]), cost_text("units", probe["units"]))
        rows.append((PROBE_ALONE, [alone for _ in budgets]))
    return Table("Top-1", budgets, rows)


def paired_tables(bench: Entry) -> list[Table]:
    """Differences over the same seeds, a table for each arm that others are compared with."""
    budgets = [budget["name"] for budget in bench["budgets"]]
    unbalanced = is_unbalanced(bench)

    def cell(entry: Entry | None) -> Cell:
        return Cell() if entry is None else _difference(entry, bench, unbalanced=unbalanced)

    tables = []
    for against in dict.fromkeys(entry["against"] for entry in bench["paired"]):
        mine = {(entry["arm"], entry["budget"]): entry for entry in bench["paired"] if entry["against"] == against}
        arms = dict.fromkeys(arm for arm, _ in mine)
        rows = [(arm, [cell(mine.get((arm, budget))) for budget in budgets]) for arm in arms]
        tables.append(Table(f"Against {against}", budgets, rows))
    return tables


def _difference(entry: Entry, bench: Entry, *, unbalanced: bool) -> Cell:
    texts = [_points(entry)]
    if entry["p"] is not None:
        texts.append("p < 0.001" if entry["p"] < 0.001 else f"p = {entry['p']:.3f}")
    if unbalanced and (balanced := entry.get("balanced")):
        texts.append(f"balanced {_points(balanced)}")
    texts.append(_seeds(entry, bench))
    # Lines break after commas only.
    beside = ", ".join(text.replace(" ", "\N{NO-BREAK SPACE}") for text in texts if text).replace("-", "\N{MINUS SIGN}")
    return Cell(entry["outcome"], beside, KINDS.get(entry["outcome"], ""))


def _points(entry: Entry) -> str:
    """A difference in points, with its interval as far as they are known."""
    text = "" if entry["difference"] is None else f"{100 * entry['difference']:+.2f}"
    if entry["interval"] is not None:
        low, high = entry["interval"]
        text = f"{text} ({100 * low:+.2f} to {100 * high:+.2f})".strip()
    return text


def _seeds(entry: Entry, bench: Entry) -> str:
    """Number of seeds behind a figure where it is not that of the bench."""
    return "" if entry["n"] == len(bench["seeds"]) else f"n = {entry['n']}"


def points_table(bench: Entry) -> Table:
    """What every arm spent at every budget."""

    def cost(unit: str, value: float | None) -> Cell:
        return Cell("not measured", kind="none") if value is None else Cell(cost_text(unit, value))

    rows = [
        (
            f"{point['arm']}, {point['budget']}",
            [
                *(cost(unit, point[unit]) for unit in UNITS),
                cost("seconds", point["train_seconds"]),
                Cell() if point["share"] is None else Cell(_percent(point["share"])),
            ],
        )
        for point in bench["points"]
    ]
    columns = [*(unit.name for unit in UNITS.values()), "Training time", "Trained share"]
    return Table("What each arm spent", columns, rows)


def runs_table(bench: Entry, folder: Path, beside: Path) -> Table:
    """Final top-1 of each run with a link to its page, relative to the folder `beside`."""
    found = {(run["arm"], run["budget"], run["seed"]): run for run in bench["runs"]}
    seeds = bench["seeds"]
    rows = []
    for arm in bench["arms"]:
        for budget in bench["budgets"]:
            key = arm["name"], budget["name"]
            if any((*key, seed) in found for seed in seeds):
                rows.append((", ".join(key), [_run(found.get((*key, seed)), folder, beside) for seed in seeds]))
    return Table("Top-1 by seed", [f"seed {seed}" for seed in seeds], rows)


def _run(run: Entry | None, folder: Path, beside: Path) -> Cell:
    if run is None:
        return Cell()
    page = folder / run["folder"] / "report.html"
    href = quote(os.path.relpath(page, beside)) if page.exists() else None
    return Cell(_percent(run["summary"]["accuracy"]["val_top1"]), href=href)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"
