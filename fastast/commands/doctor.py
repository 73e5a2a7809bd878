"""`fastast doctor`."""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(commands: Any) -> None:
    """Adds the command and its arguments."""
    parser = commands.add_parser(
        "doctor",
        help="what this machine can do, and what to fix",
        description="Checks GPU, driver, NVML, DALI, compiler and precision, and names the remedy for what is missing.",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print the checks as JSON")
    how.add_argument(
        "--quick",
        action="store_true",
        help="a health check: packages, the driver's libraries, the current folder; disturbs no measurement",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, argv: list[str]) -> int:
    """Checks the machine."""
    if args.quick:
        from fastast.commands.health_check import run_health_check

        return run_health_check()
    from fastast.commands.doctor_checks import run_doctor

    return run_doctor(as_json=args.json)
