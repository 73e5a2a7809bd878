"""The command line: the parser of all commands, their errors and exit codes."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import sys
from collections.abc import Sequence

from fastast._version import __version__
from fastast.commands import audit, bench, doctor, evaluate, export, meter, pack, predict, report, train
from fastast.commands.completion import SHELLS, PrintCompletion
from fastast.commands.parser import Parser, any_text
from fastast.errors import InputError, ReportedByOtherRank
from fastast.output import tolerant_stream
from fastast.run_folder import printable
from fastast.signals import EXIT_MAX_TIME, SIGNALS

# Faults of a path that the user named.
PATH_ERRORS = {
    *(errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOENT),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
}

PLANNED_STOPS = {EXIT_MAX_TIME, *(128 + signum for signum in SIGNALS)}


def build_parser() -> Parser:
    """The command line of fastast."""
    parser = Parser(prog="fastast", description="Fast, honest sparse training of image classifiers.")
    parser.add_argument("--version", action="version", version=f"fastast {__version__}")
    parser.add_argument(
        "--print-completion",
        choices=SHELLS,
        action=PrintCompletion,
        help='completion of commands and options; in ~/.bashrc: eval "$(fastast --print-completion bash)"',
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (train, bench, evaluate, predict, export, report, audit, pack, doctor, meter):
        command.add_parser(commands)
    commands.type = any_text  # each command checks its own arguments
    for own in commands.choices.values():
        own.set_defaults(parser=own)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        The exit code: 0 done, 2 bad usage or input, 3 stopped at --max-time, 128 + n stopped by signal n.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # names need not be UTF-8
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(stack.enter_context(tolerant_stream(sys.stdout))))
        stack.enter_context(contextlib.redirect_stderr(stack.enter_context(tolerant_stream(sys.stderr))))
        return _main(arguments)


def _main(arguments: list[str]) -> int:
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
    print(f"fastast {command}: error: {printable(message)}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
