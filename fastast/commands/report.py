"""`fastast report`."""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(commands: Any) -> None:
    """Adds the command and its arguments."""
    parser = commands.add_parser(
        "report",
        help="one page about a run, or about several side by side",
        description="Writes a self-contained HTML page: accuracy, activation, the three savings, power, pictures.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    parser.add_argument("--out", metavar="FILE", help="the page; default report.html in the run, or comparison.html")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, argv: list[str]) -> int:
    """Writes the page."""
    from fastast.report.page import run_report

    return run_report(args.runs, args.out)
