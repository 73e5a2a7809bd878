"""`fastast report RUN [RUN ...]`: one self-contained HTML page from one run folder, from several, or from a bench."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastast.errors import InputError


def add_parser(commands: Any) -> None:
    """Adds the command and its arguments."""
    parser = commands.add_parser(
        "report",
        help="one page about a run, or about several side by side",
        description="Writes a self-contained HTML page: what the run saved and what that cost in accuracy, where it is "
        "wrong, what the gate chose. With --baseline it says how the run compares with another one.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    parser.add_argument(
        "--baseline", metavar="RUN", help="a finished run on the same pictures, such as a dense one, to compare with"
    )
    parser.add_argument("--out", metavar="FILE", help="the page; default report.html in the run, or comparison.html")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, argv: list[str]) -> int:
    """Writes the page."""
    return run_report(args.runs, args.out, args.baseline)


def run_report(paths: Sequence[str], out: str | None = None, baseline: str | None = None) -> int:
    """Writes a page and prints its path.

    Args:
        paths: run folders; several are put side by side, with a section each. A bench's folder comes alone.
        out: the file; by default `report.html` in the run folder, `bench.html` in a bench's, `comparison.html` here
            for several.
        baseline: another run that the only one of `paths` is measured by.

    Returns:
        The exit code.

    Raises:
        InputError: a folder holds no run, one of its files is damaged, or the page cannot be written.
    """
    from fastast.loggers.console import Reporter, open_console
    from fastast.report.bench_page import BENCH_FILE, write_bench_report
    from fastast.report.run_page import write_comparison, write_report

    benches = [path for path in paths if Path(path, BENCH_FILE).exists()]
    if benches and len(paths) > 1:
        raise InputError(f"{benches[0]}: is a bench, which has a page of its own; name it alone, or single runs")
    if baseline is not None and (benches or len(paths) > 1):
        raise InputError("--baseline: is for the page of one run; several runs are put side by side without it")
    told = Reporter(open_console(stderr=True))  # so that what a script reads is the page's path alone
    if benches:
        page = write_bench_report(benches[0], out)
    elif len(paths) == 1:
        page = write_report(paths[0], out, baseline=baseline, tell=told.note)
    else:
        page = write_comparison(paths, out or "comparison.html")
    print(page)
    if not benches and len(paths) == 1 and baseline is None:
        own = shlex.quote(paths[0])
        told.next(f"fastast report {own} --baseline OTHER_RUN", f"fastast predict {own} PICTURES")
    else:
        told.next("fastast bench --data D --out BENCH --seeds 5")
    return 0
