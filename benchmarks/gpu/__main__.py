"""One command on a GPU host: machine, correctness and speed, as much of it as fits the time.

    python -m benchmarks.gpu --minutes 8 --out FILE.json [--all] [--data DIR]
    python -m benchmarks.gpu --device cpu --tiny --out FILE.json            a dry run of the whole suite, without a GPU

No network is needed. DIR holds train/ and val/ with class folders of JPEGs; without it, pictures are drawn. Every item
runs in a process of its own with a time limit, in order of priority; after each item the results are written whole,
with a table beside them (FILE.md). A second call with the same FILE measures what is missing. Drawn pictures and
trained networks are kept under $XDG_CACHE_HOME/fastast/gpu-suite.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path

from benchmarks.gpu.items import ITEMS, MACHINE, TINY, Settings, all_items
from fastast.atomic_files import cache_root, write_whole
from fastast.errors import InputError


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="for the whole suite (default 8)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write, or to complete")
    parser.add_argument("--all", action="store_true", help="use every visible GPU, not only the first")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--tiny", action="store_true", help="sizes for a dry run; the figures mean nothing")
    parser.add_argument("--data", type=Path, help="folder with train/ and val/ class folders of JPEGs")
    parser.add_argument("--items", nargs="+", metavar="NAME", help=f"only these: {', '.join(i.name for i in ITEMS)}")
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
    items = all_items(len(gpus), args.all)
    names = [item.name for item in items]
    if device == "cuda" and not gpus:
        raise InputError("--device cuda: no GPU is visible; `fastast doctor` says why")
    if device == "cpu" and not args.tiny:
        raise InputError("no GPU: on a CPU the suite takes hours; add --tiny for a dry run")
    if args.data is not None and not (args.data / "train").is_dir():
        raise InputError(f"--data {args.data}: holds no train/ with class folders")
    if not args.out.parent.is_dir():
        raise InputError(f"--out {args.out}: its folder does not exist")
    for name in args.items or ():
        if name not in names:
            raise InputError(f"--items {name}: choose from {', '.join(names)}")
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
        **(TINY if args.tiny else {}),
    )
    chosen = [item for item in items if args.items is None or item.name in args.items]
    if device == "cpu":
        for item in (MACHINE, *chosen):
            with contextlib.suppress(ImportError):  # the item itself will report it
                item.function()  # imported once, before the items' processes are forked
    page_path = args.out.with_suffix(".md")
    command = command_line(make_parser(), args)
    suite = Suite(args.out, settings, chosen, gpus, command, lambda results: write_whole(page_path, page(results)))
    suite.run(args.minutes)
    print(f"written: {args.out}, {page_path}")


def visible_gpus() -> list[str]:
    """Names of the GPUs that CUDA would show to this process, without touching CUDA."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    from fastast.energy.nvml import open_nvml

    return [str(index) for index in range(len(open_nvml().devices))]


if __name__ == "__main__":
    sys.exit(main())
