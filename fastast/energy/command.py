"""`fastast meter`: what any command used, told like `perf stat`."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fastast.atomic_files import write_whole
from fastast.energy.ledger import cost, emissions_g
from fastast.energy.meter import EnergyMeter, Window
from fastast.energy.reading import COUNTER
from fastast.energy.trace import TraceRow
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
    stream: TextIO | None = None,
) -> int:
    """Runs a command and reports its joules, watts and seconds.

    Args:
        command: program and arguments.
        json_path: file for the figures, or None.
        plot_path: file for power over time, ending in .png or .svg, or None.
        interval_s: seconds between two samples.
        price_per_kwh: adds the cost, in the currency of the price.
        gco2_per_kwh: adds grams of CO2.
        stream: where the table goes; standard error by default, as standard output is the command's.

    Returns:
        The command's exit code; 128 + n if signal n ended it; 127 or 126 if it could not be started.

    Raises:
        InputError: no command, or a path or interval that cannot be used; found before the command starts.
    """
    if not command:
        raise InputError("meter: no command given; put it after --, as in: fastast meter -- python train.py")
    if not 0.01 <= interval_s <= 10:
        raise InputError(f"--interval {interval_s:g}: must be 0.01 to 10 seconds, for example 0.05")
    _check_paths(json_path, plot_path)
    stream = stream or sys.stderr
    meter = EnergyMeter(hz=1 / interval_s)
    try:
        with meter, meter.window("command") as window:
            code = _run(command)
    except FileNotFoundError:
        print(f"fastast meter: {command[0]}: command not found", file=stream)
        return NOT_FOUND
    except OSError as error:
        print(f"fastast meter: {command[0]}: {os.strerror(error.errno or 0)}", file=stream)
        return NOT_EXECUTABLE
    report = describe(window, meter.max_watts)
    report |= {"command": list(command), "exit_code": code, "interval_s": interval_s}
    if window.joules is not None and price_per_kwh is not None:
        report["gpu_cost"] = cost(window.joules, price_per_kwh)
    if window.joules is not None and gco2_per_kwh is not None:
        report["gpu_gco2"] = emissions_g(window.joules, gco2_per_kwh)
    print_report(report, stream)
    try:
        if json_path is not None:
            write_whole(json_path, json.dumps(report, indent=1, allow_nan=False) + "\n")
        if plot_path is not None:
            plot_power(plot_path, meter.trace_rows(), shlex.join(command))
    except OSError as error:
        print(f"fastast meter: could not write its files: {os.strerror(error.errno or 0)}", file=stream)
        return code or 1
    return code


def _check_paths(json_path: str | None, plot_path: str | None) -> None:
    """A path that cannot be written must be known before a command that runs for hours."""
    if plot_path is not None and Path(plot_path).suffix not in (".png", ".svg"):
        raise InputError(f"--plot {plot_path}: must end in .png or .svg")
    for flag, path in (("--json", json_path), ("--plot", plot_path)):
        if path is not None and not os.access(Path(path).absolute().parent, os.W_OK):
            raise InputError(f"{flag} {path}: its folder is missing or not writable; name another")


def _run(command: Sequence[str]) -> int:
    child: subprocess.Popen | None = None
    early: list[int] = []

    def forward(number: int, frame: object) -> None:
        if number != signal.SIGTERM and _in_foreground():
            return  # the terminal sent it to the command too
        if child is None:
            early.append(number)
        else:
            child.send_signal(number)

    # An ignored signal (nohup) stays ignored, in the command too.
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
    """Whether this process belongs to the group that a terminal's Ctrl-C reaches."""
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


def describe(window: Window, max_watts: dict[str, float | None]) -> dict[str, Any]:
    """The figures of a finished window as plain values (schema 1); what was not read is None."""
    devices = [
        {
            "uuid": device.uuid,
            "name": device.name,
            "joules": device.joules,
            "mean_w": None if device.joules is None or not window.seconds else device.joules / window.seconds,
            "max_w": None if device.joules is None else max_watts.get(device.uuid),
            "source": device.source,
            "counter_j": None if device.failure or not device.counter_moves else device.counter_j,
            "integral_j": None if device.failure else device.integral_j,
            "num_samples": device.num_samples,
        }
        for device in window.devices
    ]
    return {
        "schema": 1,
        "seconds": window.seconds,
        "gpu_j": window.joules,
        "mean_w": window.watts,
        "source": window.source,
        "disagreement": window.disagreement,
        "num_samples": window.num_samples,
        "cpu_j": window.cpu_j,
        "total_j": window.total_j,
        "conditions": window.conditions,
        "devices": devices,
        "notes": window.notes,
    }


def print_report(report: dict[str, Any], stream: TextIO) -> None:
    """Prints the table, then one line with everything that was not read or is uncertain."""
    table = Table(box=None, show_header=False, padding=(0, 1))
    table.add_column(justify="right", style="bold")
    table.add_column()
    table.add_column()
    table.add_row(f"{report['seconds']:,.3f}", "s", "wall clock")
    for device in report["devices"]:
        if device["joules"] is not None:
            watts = f"mean {device['mean_w']:,.1f} W"
            if device["max_w"] is not None:
                watts += f", at most {device['max_w']:,.1f} W"
            name = f"{escape(device['name'])} {device['uuid'][:12]}"
            table.add_row(f"{device['joules']:,.1f}", "J", f"{name}: {watts} ({device['source']})")
    if len(report["devices"]) > 1 and report["gpu_j"] is not None:
        table.add_row(f"{report['gpu_j']:,.1f}", "J", f"all GPUs: mean {report['mean_w']:,.1f} W")
    if report["source"] == COUNTER and report["disagreement"] is not None:
        table.add_row(f"{report['disagreement']:+.1%}", "", "integral of sampled power against the counter")
    if report["cpu_j"] is not None:
        table.add_row(f"{report['cpu_j']:,.1f}", "J", "CPU packages and DRAM")
    if report["total_j"] is not None:
        table.add_row(f"{report['total_j']:,.1f}", "J", "GPUs, CPU packages and DRAM together")
    if "gpu_cost" in report:
        table.add_row(f"{report['gpu_cost']:.6g}", "", "cost of the GPU energy")
    if "gpu_gco2" in report:
        table.add_row(f"{report['gpu_gco2']:.6g}", "g", "CO2 of the GPU energy")
    console = Console(file=stream, highlight=False, soft_wrap=True)
    console.print()
    console.print(table)
    if report["notes"]:
        console.print(escape("; ".join(report["notes"])))


def plot_power(path: str, rows: Sequence[TraceRow], title: str) -> None:
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
