"""`fastast pack`."""

from __future__ import annotations

import argparse
import shlex
from typing import Any


def add_parser(commands: Any) -> None:
    """Adds the command and its arguments."""
    parser = commands.add_parser(
        "pack",
        help="pack folders of pictures into tar shards that are read faster",
        description="Packs class folders into WebDataset-style tar shards with an index; `--data` takes the result. "
        "A pack that was interrupted is completed by the same command.",
        epilog="examples:\n  fastast pack imagenette packed\n  fastast pack --verify packed\n",
    )
    parser.add_argument("source", metavar="SRC", help="folders as --data takes them; with --verify alone, a pack")
    parser.add_argument("out", metavar="OUT", nargs="?", help="the folder of the pack")
    parser.add_argument("--max-side", type=int, metavar="PX", help="re-encode larger pictures down to this longer side")
    parser.add_argument("--shard-size", type=float, default=1024, metavar="MB", help="megabytes a shard (default 1024)")
    parser.add_argument("--quality", type=int, default=95, metavar="Q", help="quality of re-encoded JPEGs (default 95)")
    parser.add_argument(
        "--bits",
        type=int,
        metavar="N",
        help="of 16-bit pictures, the lower N bits become 0 to 255; default those that the brightest of all takes",
    )
    parser.add_argument("--verify", action="store_true", help="read the pack back and check all of it")
    parser.add_argument("--workers", type=int, metavar="N", help="threads; default the cores this process may use")
    parser.add_removed("thumbnails")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, argv: list[str]) -> int:
    """Packs, or checks a pack."""
    from fastast.loggers.console import Reporter
    from fastast.packing.packer import run_pack

    reporter = Reporter()
    code = run_pack(
        args.source,
        args.out,
        max_side=args.max_side,
        shard_size_mb=args.shard_size,
        quality=args.quality,
        bits=args.bits,
        verify=args.verify,
        workers=args.workers,
        progress=reporter.counter("packing"),
        say=reporter.note,
    )
    reporter.next(f"fastast train --data {shlex.quote(args.out or args.source)}")
    return code
