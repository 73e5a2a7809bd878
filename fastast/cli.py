"""The command line: the parser of all commands, their errors and exit codes."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from fastast._version import __version__
from fastast.commands import bench, evaluate, pack, report, train
from fastast.commands.parser import Parser
from fastast.errors import InputError, ReportedByOtherRank

# Faults of a path that the user named.
PATH_ERRORS = {
    *(errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOENT),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
}

PLANNED_STOPS = {3, 128 + signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGUSR1}


def build_parser() -> Parser:
    """The command line of fastast."""
    parser = Parser(prog="fastast", description="Fast, honest sparse training of image classifiers.")
    parser.add_argument("--version", action="version", version=f"fastast {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (train, bench, evaluate, report, pack):
        command.add_parser(commands)
    _add_doctor(commands)
    _add_meter(commands)
    for own in commands.choices.values():
        own.set_defaults(parser=own)
    return parser


def _add_meter(commands: Any) -> None:
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
        "measured", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="the command and its arguments"
    )
    parser.set_defaults(run=_meter)


def _meter(args: argparse.Namespace, argv: list[str]) -> int:
    from fastast.energy.command import run_meter

    command = args.measured[1:] if args.measured[:1] == ["--"] else args.measured
    return run_meter(
        command,
        args.json,
        args.plot,
        interval_s=args.interval,
        price_per_kwh=args.price_per_kwh,
        gco2_per_kwh=args.gco2_per_kwh,
    )


def _add_doctor(commands: Any) -> None:
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
    parser.set_defaults(run=_doctor)


def _doctor(args: argparse.Namespace, argv: list[str]) -> int:
    if args.quick:
        from fastast.doctor_quick import run_quick_doctor

        return run_quick_doctor()
    from fastast.doctor import run_doctor

    return run_doctor(as_json=args.json)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        The exit code: 0 done, 2 bad usage or input, 3 stopped at --max-time, 128 + n stopped by signal n.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    args, unknown = parser.parse_known_args(arguments)
    if unknown:  # said by the command's own parser, whose help lists what it takes
        args.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    code = _run(args, arguments)
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return code
    # torchrun takes any code but 0 for a failure, and would start a stopped run again.
    path = os.environ.get("FASTAST_EXIT_FILE")  # of `--nproc`
    if path and code:
        with open(path, "w", encoding="ascii") as file:
            file.write(str(code))
    return 0 if path or code in PLANNED_STOPS else code


def _run(args: argparse.Namespace, arguments: list[str]) -> int:
    try:
        return args.run(args, arguments)
    except ReportedByOtherRank:
        return 2
    except InputError as error:
        return _fail(args.command, str(error))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = f" writing {error.filename}" if error.filename else ""
            return _fail(args.command, f"no space left on the device{where}; free some, then continue with --resume")
        if error.errno in PATH_ERRORS:
            return _fail(args.command, f"{error.filename}: {os.strerror(error.errno or 0)}; name another path")
        raise
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported here
            raise
        return _fail(args.command, "the GPU is out of memory; use a smaller --batch-size or --image-size")
    except ImportError as error:
        if (error.name or "").split(".")[0] not in ("nvidia", "torch", "torchvision"):
            raise
        return _fail(args.command, f"{error}; `fastast doctor` says what is missing")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _fail(command: str, message: str) -> int:
    # Names and values from files may hold line breaks and terminal codes.
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
    print(f"fastast {command}: error: {shown}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
