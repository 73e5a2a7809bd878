"""`fastast predict RUN|FILE PATH...`: the most probable classes of any pictures."""

from __future__ import annotations

import argparse
import itertools
import os
import shlex
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastast.atomic_files import write_whole
from fastast.commands.shared_options import add_batches, add_network, require_file_name, require_positive
from fastast.errors import InputError
from fastast.number_text import counted
from fastast.run_folder import find_weights

if TYPE_CHECKING:
    from fastast.loggers.console import Reporter
    from fastast.predict.prediction import Prediction

EXIT_UNREADABLE = 4

_FORMATS = ("table", "csv", "jsonl", "parquet")


def add_parser(commands: Any) -> None:
    """Adds the command and its arguments."""
    parser = commands.add_parser(
        "predict",
        help="the most probable classes of any pictures",
        description="Predicts files, folders and patterns, prepared as `fastast evaluate` does. What cannot be read is "
        "named on standard error, has a row without a prediction, and makes the exit code 4.",
    )
    add_network(parser)
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="a picture, a folder of them at any depth, or a pattern ('**/*.jpg')"
    )
    parser.add_argument("--top", type=int, default=3, metavar="K", help="classes for each picture (default 3)")
    parser.add_argument("--out", metavar="FILE", help="write there; .csv, .jsonl or .parquet says the format")
    parser.add_argument("--format", choices=_FORMATS, help="of the output; table by default without --out")
    add_batches(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, argv: list[str]) -> int:
    """Predicts.

    Returns:
        0, or 4 if a picture could not be read.

    Raises:
        InputError: something that the user can fix.
    """
    require_positive(image_size=args.image_size, batch_size=args.batch_size, top=args.top)
    require_file_name(args.out, "preds.csv")
    find_weights(args.model)  # before torch is imported
    kind = _choose_format(args.format, args.out)

    from fastast.loggers.console import Reporter, open_console
    from fastast.predict.find_pictures import matches
    from fastast.predict.writers import TEXTS, require_pyarrow, write_parquet
    from fastast.python.run import load

    if kind == "parquet":
        require_pyarrow()
    for path in args.paths:
        if not os.path.lexists(path) and not matches(path):
            raise InputError(f"{path}: no such file or folder, and no file matches it")
    network = load(args.model, arch=args.arch, image_size=args.image_size, device=args.device)
    reporter = Reporter(open_console(stderr=True))
    top = min(args.top, len(network.classes))
    told = _Counted(network.stream(args.paths, top=top, batch_size=args.batch_size), reporter, args.out is not None)
    rows = iter(told)
    first = next(rows, None)
    if first is None:
        raise InputError(f"{args.paths[0]}: no picture there; name files, or folders that hold .jpg or .png pictures")
    rows = itertools.chain([first], rows)
    if args.out is None:
        _print(TEXTS[kind](rows, network.classes, top))
    else:
        reporter.begin("predicting", None)
        try:
            if kind == "parquet":
                write_whole(args.out, lambda file: write_parquet(file, rows, top))
            else:
                lines = TEXTS[kind](rows, network.classes, top)
                write_whole(
                    args.out,
                    lambda file: file.writelines(line.encode("utf-8", "backslashreplace") for line in lines),
                )
        finally:
            reporter.end()
        missing = f", {told.num_refused:,} of them could not be read" if told.num_refused else ""
        reporter.note(f"wrote {args.out}: {counted(told.num_done, 'picture')}{missing}")
    if args.out is not None or reporter.console.is_terminal:
        reporter.next(
            f"fastast evaluate {shlex.quote(args.model)} --data D",
            f"fastast export {shlex.quote(args.model)} --to onnx",
        )
    return EXIT_UNREADABLE if told.num_refused else 0


def _print(lines: Iterable[str]) -> None:
    """Prints lines as long as somebody reads them.

    Raises:
        OSError: they cannot be written, as on a full disk.
    """
    for line in lines:
        print(line, end="")
        if sys.stdout.lost is not None:  # type: ignore[union-attr]
            break
    sys.stdout.flush()
    error = sys.stdout.lost  # type: ignore[union-attr]
    if error is not None and not isinstance(error, BrokenPipeError):  # which `| head` leaves
        raise error


def _choose_format(chosen: str | None, out: str | None) -> str:
    kind = chosen or (Path(out).suffix[1:].lower() if out is not None else "table")
    if kind not in _FORMATS or (chosen is None and out is not None and kind == "table"):
        raise InputError(f"--out {out}: end it in .csv, .jsonl or .parquet, or add --format")
    if kind == "parquet" and out is None:
        raise InputError("--format parquet: is no text; add --out FILE.parquet")
    return kind


class _Counted:
    """Predictions as they pass; counts them, and names those that could not be read."""

    def __init__(self, predictions: Iterable[Prediction], reporter: Reporter, shows_progress: bool) -> None:
        self.num_done = self.num_refused = 0
        self._predictions, self._reporter, self._shows_progress = predictions, reporter, shows_progress

    def __iter__(self) -> Iterator[Prediction]:
        for prediction in self._predictions:
            self.num_done += 1
            if prediction.error is not None:
                self.num_refused += 1
                self._reporter.note(f"{prediction.path}: {prediction.error}")
            if self._shows_progress and self.num_done % 64 == 0:
                self._reporter.advance(self.num_done, f"{self.num_done:,} pictures")
            yield prediction
