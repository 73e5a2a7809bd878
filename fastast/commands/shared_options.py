"""Arguments and checks that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastast.config.options import flag_of, require
from fastast.errors import InputError


def add_network(parser: argparse.ArgumentParser) -> None:
    """Adds a trained network, and what is known of it where its file does not say it."""
    parser.add_argument("model", metavar="RUN|FILE", help="a run folder, or a .safetensors/.pt/.pth file of weights")
    parser.add_argument("--arch", metavar="A", help="the network, where the file does not say it")
    parser.add_argument(
        "--image-size", type=int, metavar="PX", help="evaluation crop, pixels; default what the file was trained for"
    )


def add_batches(parser: argparse.ArgumentParser) -> None:
    """Adds how many pictures are computed at a time, and where."""
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="pictures at a time (default 64)")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto", help="where to run (default auto)")


def require_positive(**options: int | None) -> None:
    """Refuses a count below one; the names are the fields of the options.

    Raises:
        InputError: one is.
    """
    for name, value in options.items():
        require(value is None or value >= 1, f"{flag_of(name)} {value}: must be at least 1")


def require_file_name(out: str | None, example: str) -> None:
    """Refuses an `--out` that cannot become a file.

    Raises:
        InputError: its folder does not exist, or it is a folder.
    """
    if out is None:
        return
    if not Path(out).absolute().parent.is_dir():
        raise InputError(f"--out {out}: no such folder {Path(out).absolute().parent}")
    if Path(out).is_dir():
        raise InputError(f"--out {out}: is a folder; name a file, for example {example}")
