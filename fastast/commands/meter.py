"""`fastast meter`."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from fastast.commands.parser import any_text


def add_parser(commands: Any) -> None:
    """Adds the command and its arguments."""
    parser = commands.add_parser(
        "meter",
        help="joules, watts and seconds of any command",
        description="Runs a command and reports the energy it took, as `perf stat` reports time.",
        epilog="example:\n  fastast meter --plot power.png -- python train.py",
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures")
    parser.add_argument("--plot", metavar="FILE", help="draw power over time (.png or .svg)")
    parser.add_argument(
        "--interval", type=float, default=0.05, metavar="S", help="seconds between samples (default 0.05)"
    )
    parser.add_argument("--price-per-kwh", type=float, metavar="P", help="add the cost, in the currency of P")
    parser.add_argument("--gco2-per-kwh", type=float, metavar="G", help="add grams of CO2, at G grams per kWh")
    parser.add_argument(
        "measured", nargs=argparse.REMAINDER, type=any_text, metavar="-- COMMAND", help="it and its arguments"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, argv: list[str]) -> int:
    """Measures the command."""
    from fastast.energy.metered_command import run_meter
    from fastast.loggers.console import Reporter, open_console

    command = args.measured[1:] if args.measured[:1] == ["--"] else args.measured
    code = run_meter(
        command,
        args.json,
        args.plot,
        interval_s=args.interval,
        price_per_kwh=args.price_per_kwh,
        gco2_per_kwh=args.gco2_per_kwh,
    )
    plotted = f"fastast meter --plot power.png -- {shlex.join(command)}"
    Reporter(open_console(stderr=True)).next("fastast doctor" if args.plot else plotted)
    return code
