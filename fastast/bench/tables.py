"""The text that a bench prints: its plan, one line for each run, its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastast.bench.estimate import Estimate, Outcome
from fastast.bench.matrix import GATE, Job
from fastast.bench.verdict import top1
from fastast.loggers.console import duration, percent
from fastast.report.bench_tables import place_name

UNMEASURED = "-"  # in the tables


def plan_lines(estimate: Estimate, known: Mapping[str, Outcome]) -> list[str]:
    """The plan, a line for each place, and the time it is expected to take."""
    lines = []
    started: set[str] = set()
    for entry in estimate.entries:
        job = entry.job
        words = f"  seed {job.seed} {place_name(entry.role, entry.of, job.gate)}"
        if job.name in started:
            lines.append(f"{words}: shares the run of {place_name(job.role, job.of, job.gate)}")
            continue
        started.add(job.name)
        state = "finished" if job.name in known else f"about {duration(estimate.seconds[job.name])}"
        lines.append(f"{words}: {job.epochs:.4g} epochs, {state}")
    left = duration(estimate.left_s)
    return [
        f"{estimate.num_runs} runs, about {left} to go (an estimate by the pace of dense training here and the cost "
        "model of the gates; the lengths of matched runs follow from the measured cost of their gates):",
        *lines,
    ]


def run_line(done: int, total: int | None, job: Job, outcome: Outcome, left_s: float | None) -> str:
    """One line for a run that has ended."""
    words = f"[{done}/{'?' if total is None else total}] seed {job.seed} {place_name(job.role, job.of, job.gate)}"
    if outcome.summary is None:
        words += f": FAILED: {outcome.reason}"
    else:
        accuracy, units = outcome.summary["accuracy"]["val_top1"], outcome.summary["compute"]["forward_units"]
        took = "finished before" if outcome.before else duration(outcome.seconds)
        words += f": top-1 {percent(accuracy)}, {units:,.0f} forward units, {took}"
    return words if left_s is None else f"{words}; about {duration(left_s)} left"


def rows_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Accuracy and cost of every row, mean and standard error."""
    header = ("run", "n", "top-1", "trained", "forward units", "training", "joules")
    lines = [
        (
            place_name(row["role"], row["for"], row["gate"]),
            str(row["n"]),
            top1(row),
            _share(row, "activation"),
            _figure(row, "forward_units", ",.0f"),
            _figure(row, "train_s", ",.1f", " s"),
            _figure(row, "gpu_j", ",.0f"),
        )
        for row in rows
    ]
    return _aligned(header, lines)


def speed_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Speed and savings of the gates: of the gated part, and of the whole run in brackets."""
    header = (
        *("gate", "images/s", "speed-up", "ceiling", "of it", "machine's", "of it"),
        *("est. savings", "arithmetic", "measured", "data wait"),
    )
    lines = [
        (
            row["gate"],
            _figure(row, "offered_per_s", ",.0f"),
            f"{_figure(row, 'speedup', '.2f', 'x')} ({_figure(row, 'run_speedup', '.2f', 'x')})",
            _figure(row, "speedup_ceiling", ".2f", "x"),
            _share(row, "share_of_ceiling"),
            _figure(row, "machine_ceiling", ".2f", "x"),
            _share(row, "share_of_machine_ceiling"),
            *(
                f"{_share(row, f'savings_{kind}')} ({_share(row, f'run_savings_{kind}')})"
                for kind in ("estimated", "arithmetic", "measured")
            ),
            _share(row, "data_wait"),
        )
        for row in rows
        if row["role"] == GATE
    ]
    return _aligned(header, lines)


def _aligned(header: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """Columns of text; lines are never cut, as a log file has no width. Empty without lines."""
    if not lines:
        return []
    widths = [max(len(cell) for cell in column) for column in zip(header, *lines, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (header, *lines)
    ] + [""]


def _share(row: Mapping[str, Any], name: str) -> str:
    return UNMEASURED if row[name]["mean"] is None else f"{row[name]['mean']:.1%}"


def _figure(row: Mapping[str, Any], name: str, form: str, unit: str = "") -> str:
    mean, error = row[name]["mean"], row[name]["se"]
    if mean is None:
        return UNMEASURED
    return f"{mean:{form}}{unit}" if error is None else f"{mean:{form}} +- {error:{form}}{unit}"
