"""`fastast meter -- COMMAND`: energy of any command, reported as `perf stat` reports time."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fastast.atomic_files import write_whole
from fastast.energy.energy_meter import EnergyMeter
from fastast.energy.gpu_totals import GAP_S
from fastast.energy.power_log import PowerRow
from fastast.energy.reading import COUNTER, Reading
from fastast.energy.savings import cost, emissions_g
from fastast.errors import InputError

# Exit codes of a shell for a command that is missing or may not be run.
NOT_FOUND, NOT_EXECUTABLE = 127, 126
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_meter(
    command: Sequence[str],
    json_path: str | None = None,
    plot_path: str | None = None,
    *,
    interval_s: float = 0.05,
    price_per_kwh: float | None = None,
    gco2_per_kwh: float | None = None,
) -> int:
    """Runs a command and reports its joules, watts and seconds on standard error: standard output is the command's.

    Args:
        command: program and arguments.
        json_path: file for the figures, or None.
        plot_path: file for power over time, ending in .png or .svg, or None.
        interval_s: seconds between two samples.
        price_per_kwh: adds the cost, in the currency of the price.
        gco2_per_kwh: adds grams of CO2.

    Returns:
        The command's exit code; 128 + n if signal n ended it; 127 or 126 if it could not be started.

    Raises:
        InputError: no command, or an unusable path or interval; raised before the command starts.
    """
    if not command:
        raise InputError("meter: no command; put it after --, as in: fastast meter -- python train.py")
    if not 0.01 <= interval_s <= GAP_S / 2:
        raise InputError(f"--interval {interval_s:g}: must be 0.01 to {GAP_S / 2:g} seconds, for example 0.05")
    _check_paths(json_path, plot_path)
    meter = EnergyMeter(hz=1 / interval_s)
    try:
        with meter, meter.measure("command") as used:
            code = _run_command(command)
    except FileNotFoundError:
        print(f"fastast meter: {command[0]}: command not found", file=sys.stderr)
        return NOT_FOUND
    except OSError as error:
        print(f"fastast meter: {command[0]}: {os.strerror(error.errno or 0)}", file=sys.stderr)
        return NOT_EXECUTABLE
    report = _figures(used, meter.max_watts)
    report |= {"command": list(command), "exit_code": code, "interval_s": interval_s}
    if used.joules is not None and price_per_kwh is not None:
        report["gpu_cost"] = cost(used.joules, price_per_kwh)
    if used.joules is not None and gco2_per_kwh is not None:
        report["gpu_gco2"] = emissions_g(used.joules, gco2_per_kwh)
    _print_table(report)
    try:
        if json_path is not None:
            write_whole(json_path, json.dumps(report, indent=1, allow_nan=False) + "\n")
        if plot_path is not None:
            _plot_power(plot_path, meter.power_rows(), shlex.join(command))
    except OSError as error:
        print(f"fastast meter: could not write its files: {os.strerror(error.errno or 0)}", file=sys.stderr)
        return code or 1
    return code


def _check_paths(json_path: str | None, plot_path: str | None) -> None:
    """Refuses paths that cannot be written before the command runs, which may take hours."""
    if plot_path is not None and Path(plot_path).suffix not in (".png", ".svg"):
        raise InputError(f"--plot {plot_path}: must end in .png or .svg")
    for flag, path in (("--json", json_path), ("--plot", plot_path)):
        if path is not None and not os.access(Path(path).absolute().parent, os.W_OK):
            raise InputError(f"{flag} {path}: its folder is missing or not writable; name another")


def _run_command(command: Sequence[str]) -> int:
    child: subprocess.Popen | None = None
    early: list[int] = []  # signals that came before the command started

    def forward(number: int, frame: object) -> None:
        if number != signal.SIGTERM and _in_foreground():
            return  # the terminal sent it to the command too
        if child is None:
            early.append(number)
        else:
            child.send_signal(number)

    # A signal that is ignored here (nohup) stays ignored, in the command too.
    wanted = [number for number in FORWARDED if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, forward) for number in wanted}
    try:
        child = subprocess.Popen(list(command))
        for number in early:
            child.send_signal(number)
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def _in_foreground() -> bool:
    """Whether this process is in the terminal's foreground group, which Ctrl-C reaches."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


def _figures(used: Reading, max_watts: dict[str, float | None]) -> dict[str, Any]:
    """The figures as plain values (schema 1); what was not read is None."""
    devices = [
        {
            "uuid": device.uuid,
            "name": device.name,
            "joules": device.joules,
            "mean_w": None if device.joules is None or not used.seconds else device.joules / used.seconds,
            "max_w": None if device.joules is None else max_watts.get(device.uuid),
            "source": device.source,
            "counter_j": None if device.failure or not device.counter_moves else device.counter_j,
            "integral_j": None if device.failure else device.integral_j,
            "num_samples": device.num_samples,
        }
        for device in used.devices
    ]
    same = ("source", "disagreement", "num_samples", "cpu_j", "total_j", "conditions")
    return {
        **{"schema": 1, "seconds": used.seconds, "gpu_j": used.joules, "mean_w": used.watts},
        **{name: getattr(used, name) for name in same},
        **{"devices": devices, "notes": used.notes},
    }


def _print_table(report: dict[str, Any]) -> None:
    """Prints the table, then one line about everything that was not read or is uncertain."""
    table = Table(box=None, show_header=False, padding=(0, 1))
    table.add_column(justify="right", style="bold")
    table.add_row(f"{report['seconds']:,.3f}", "s", "wall clock")
    for device in report["devices"]:
        if device["joules"] is not None:
            peak = "" if device["max_w"] is None else f", at most {device['max_w']:,.1f} W"
            text = f"{device['name']} {device['uuid'][:12]}: mean {device['mean_w']:,.1f} W{peak} ({device['source']})"
            table.add_row(f"{device['joules']:,.1f}", "J", escape(text))
    if len(report["devices"]) > 1 and report["gpu_j"] is not None:
        table.add_row(f"{report['gpu_j']:,.1f}", "J", f"all GPUs: mean {report['mean_w']:,.1f} W")
    if report["source"] == COUNTER and report["disagreement"] is not None:
        table.add_row(f"{100 * report['disagreement']:+.1f} %", "", "integral of sampled power against the counter")
    for name, form, unit, text in (
        ("cpu_j", ",.1f", "J", "CPU packages and DRAM"),
        ("total_j", ",.1f", "J", "GPUs, CPU packages and DRAM together"),
        ("gpu_cost", ".6g", "", "cost of the GPU energy"),
        ("gpu_gco2", ".6g", "g", "CO2 of the GPU energy"),
    ):
        if report.get(name) is not None:
            table.add_row(f"{report[name]:{form}}", unit, text)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print()
    console.print(table)
    if report["notes"]:
        console.print(escape("; ".join(report["notes"])))


def _plot_power(path: str, rows: Sequence[PowerRow], title: str) -> None:
    """Draws power over time, one line per GPU, to a PNG or SVG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for uuid in sorted({row.uuid for row in rows}):
        points = [(row.t_s, row.w) for row in rows if row.uuid == uuid and row.w is not None]
        axes.plot([t for t, _ in points], [w for _, w in points], linewidth=1, label=uuid[:12])
    if axes.lines:
        axes.legend(frameon=False)
    else:
        axes.text(0.5, 0.5, "no GPU power was read", ha="center", va="center", transform=axes.transAxes)
    axes.set(xlabel="seconds", ylabel="watts")
    axes.set_title(title if len(title) <= 90 else title[:89] + "…", parse_math=False)
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    write_whole(path, lambda file: figure.savefig(file, format=Path(path).suffix[1:], dpi=150))
