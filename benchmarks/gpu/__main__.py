"""One command on a GPU host: what it can do, whether what is fast is right, and how fast it is; all that fits the time.

    python -m benchmarks.gpu --minutes 8 --out FILE.json [--all] [--data DIR]
    python -m benchmarks.gpu --device cpu --tiny --out FILE.json            the whole suite's dry run, without a GPU

No network is needed. DIR holds train/ and val/ with class folders of JPEGs; without it, pictures are drawn. Every item
runs in a process of its own with a time-out, in order of priority; after each the results are written whole, and a
table beside them (FILE.md). A second call with the same FILE goes on with what is missing. What is drawn and trained
meanwhile is kept under $XDG_CACHE_HOME/fastast/gpu-suite.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path

from benchmarks.gpu.items import ITEMS, MACHINE, all_items
from benchmarks.gpu.settings import Settings
from fastast.atomic_files import cache_root, write_whole
from fastast.errors import InputError


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="for all of it (default 8)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write, or to go on with")
    parser.add_argument("--all", action="store_true", help="use every visible GPU, not the first alone")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--tiny", action="store_true", help="sizes for a dry run; the figures mean nothing")
    parser.add_argument("--data", type=Path, help="folder with train/ and val/ class folders of JPEGs")
    parser.add_argument("--items", nargs="+", metavar="NAME", help=f"these only: {', '.join(i.name for i in ITEMS)}")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    try:
        run(args)
    except InputError as error:
        print(f"python -m benchmarks.gpu: error: {error}", file=sys.stderr)
        return 2
    return 0


def run(args: argparse.Namespace) -> None:
    """Runs the suite.

    Raises:
        InputError: something that the user can fix.
    """
    from benchmarks.common import command_line
    from benchmarks.gpu.page import page
    from benchmarks.gpu.suite import Suite

    gpus = visible_gpus()
    device = ("cuda" if gpus else "cpu") if args.device == "auto" else args.device
    if device == "cuda" and not gpus:
        raise InputError("--device cuda: no GPU is visible; `fastast doctor` says why")
    if device == "cpu" and not args.tiny:
        raise InputError("no GPU: what takes one seconds takes a CPU hours; add --tiny for a dry run")
    if args.data is not None and not (args.data / "train").is_dir():
        raise InputError(f"--data {args.data}: holds no train/ with class folders")
    items = all_items(len(gpus), args.all)
    names = [item.name for item in items]
    for name in args.items or ():
        if name not in names:
            raise InputError(f"--items {name}: choose from {', '.join(names)}")
    if not args.out.parent.is_dir():
        raise InputError(f"--out {args.out}: its folder does not exist")
    work = cache_root() / "gpu-suite"
    work.mkdir(parents=True, exist_ok=True)
    settings = Settings(
        device=device,
        tiny=args.tiny,
        data=None if args.data is None else args.data.resolve(),
        work=work,
        seconds=0.0,
        num_gpus=len(gpus) if args.all else min(1, len(gpus)),
        seed=args.seed,
    )
    chosen = [item for item in items if args.items is None or item.name in args.items]
    if device == "cpu":
        for item in (MACHINE, *chosen):
            with contextlib.suppress(ImportError):  # the item will tell
                item.function()  # imported before the items' processes are forked
    suite = Suite(
        args.out,
        settings,
        chosen,
        gpus,
        command_line("benchmarks.gpu", make_parser(), args),
        lambda results: write_whole(args.out.with_suffix(".md"), page(results)),
    )
    suite.run(args.minutes)
    print(f"written: {args.out}, {args.out.with_suffix('.md')}")


def visible_gpus() -> list[str]:
    """Names of the GPUs that CUDA would show this process, without touching CUDA."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    from fastast.energy.nvml import open_nvml

    return [str(index) for index in range(len(open_nvml().devices))]


if __name__ == "__main__":
    sys.exit(main())
