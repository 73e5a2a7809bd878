"""The text that a bench prints: its plan, one line for each run, its tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from fastast.bench.estimate import Outcome
from fastast.bench.matrix import Job
from fastast.bench.verdict import cost_words
from fastast.number_text import counted, duration, percent
from fastast.report.bench_tables import PROBE_ALONE, is_unbalanced

Row = Mapping[str, Any]


def plan_lines(jobs: Sequence[Job], known: Mapping[str, Outcome], expected: Mapping[str, float]) -> list[str]:
    """The plan, a line for each run, and the time that it is expected to take."""
    lines = []
    for job in jobs:
        state = "finished" if job.name in known else f"about {duration(expected[job.name])}"
        lines.append(f"  {job.words}: {state}")
    runs, left = counted(len(jobs), "run"), duration(sum(expected.values()))
    return [f"{runs}, about {left} to go (an estimate by a short dense run, or by finished runs):", *lines]


def run_line(done: int, total: int, job: Job, outcome: Outcome, left_s: float) -> str:
    """One line for a run that has ended."""
    words = f"[{done}/{total}] {job.words}"
    if outcome.summary is None:
        words += f": FAILED: {outcome.reason}"
    else:
        accuracy, units = outcome.summary["accuracy"]["val_top1"], outcome.summary["compute"]["forward_units"]
        took = "finished before" if outcome.before else duration(outcome.seconds)
        words += f": top-1 {percent(accuracy)}, {units:,.0f} forward units, {took}"
    return f"{words}; about {duration(left_s)} left" if left_s else words


class Grid(NamedTuple):
    """A table of arms by budgets."""

    title: str
    lines: list[list[str]]  # the first one is the header; every other first cell names an arm, or the probe


def grids(result: Row) -> list[Grid]:
    """Accuracy, outcomes and costs of a `bench.json`."""
    arms, budgets = ([entry["name"] for entry in result[key]] for key in ("arms", "budgets"))
    found = []

    def add(title: str, rows: Sequence[Row], cell: Callable[[Row], str]) -> None:
        cells = {(row["arm"], row["budget"]): cell(row) for row in rows}
        lines = [[arm, *(cells.get((arm, budget), "-") for budget in budgets)] for arm in arms]
        found.append(Grid(title, [["", *budgets], *(line for line in lines if set(line[1:]) != {"-"})]))

    if result["points"]:
        add("Top-1, mean +- standard error over the seeds", result["points"], lambda row: _accuracy(row["top1"]))
        if probe := result.get("probe"):  # a bench of an older version has none
            cell = f"{_accuracy(probe['top1'])} ({probe['units']:,.0f} units)"
            found[-1].lines.append([PROBE_ALONE, *(cell for _ in budgets)])
        if is_unbalanced(result):
            add("Balanced top-1 (mean of the classes)", result["points"], lambda row: _accuracy(row["balanced_top1"]))
    for against in dict.fromkeys(row["against"] for row in result["paired"]):
        rows = [row for row in result["paired"] if row["against"] == against]
        add(f"Against {against} for the same budget, points of top-1", rows, _outcome)
        known = [row for row in rows if row.get("balanced")]  # a bench of an older version has none
        if known and is_unbalanced(result):
            title = f"Against {against} for the same budget, points of balanced top-1 (intervals uncorrected)"
            add(title, known, lambda row: _difference(row["balanced"]))
    for unit in dict.fromkeys(row["unit"] for row in result["cost_at_equal_accuracy"]):
        rows = [row for row in result["cost_at_equal_accuracy"] if row["unit"] == unit]
        dense = rows[0]["against"]
        add(f"{unit.capitalize()} at the accuracy that {dense} has with this budget, {dense} being 1", rows, cost_words)
    return found


def result_lines(result: Row) -> list[str]:
    """The grids as text."""
    return [line for grid in grids(result) for line in (grid.title, *_aligned(grid.lines), "")]


def _accuracy(figure: Row) -> str:
    mean, error = figure["mean"], figure["se"]
    if mean is None:
        return "-"
    return f"{100 * mean:.2f} %" if error is None else f"{100 * mean:.2f} +- {100 * error:.2f} %"


def _outcome(row: Row) -> str:
    return f"{_difference(row)} {row['outcome']}"


def _difference(row: Row) -> str:
    interval = row["interval"]
    limits = "" if interval is None else f" ({100 * interval[0]:+.2f} to {100 * interval[1]:+.2f})"
    return f"{100 * row['difference']:+.2f}{limits}"


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Columns of text; lines are never cut, as a log file has no width."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
