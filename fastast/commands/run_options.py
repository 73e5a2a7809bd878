"""The options of a run as arguments of a command: `train` has them, and `bench`."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any

from fastast.commands.parser import Parser
from fastast.config import TrainConfig
from fastast.config.config_file import read_toml
from fastast.config.options import flag_of

# Groups of the help: the first field of each, and its title.
GROUPS = {
    "data": "what to train on",
    "arch": "the network",
    "epochs": "the schedule",
    "gate": "the gate",
    "checkpoint_every": "stopping and continuing",
    "dense_calibration": "the ledger",
    "seed": "the machine",
}
# What `--help` shows; the others are for `--help-all`.
COMMON = {
    *("data", "out", "arch", "weights", "preset", "image_size", "epochs", "budget", "batch_size", "lr", "gate"),
    *("target", "max_time", "seed", "device", "nproc"),
}
REMOVED = ("proxy_size", "proxy_arch", "proxy_bn_every", "clip_weights", "target_schedule", "read", "tensorboard")


def add_run_options(parser: Parser, leave_out: Sequence[str] = ()) -> None:
    """Adds an argument for every field of `TrainConfig`, in groups, then `--config` and `--help-all`.

    Args:
        parser: one whose `argument_default` is `SUPPRESS`.
        leave_out: fields without an argument.
    """
    group: Any = parser
    for field in dataclasses.fields(TrainConfig):
        if field.name in GROUPS:
            group = parser.add_argument_group(GROUPS[field.name])
        if field.name in leave_out:
            continue
        doc, kind = field.metadata["doc"], field.metadata["kind"]
        if field.name not in COMMON:
            parser.advanced.add(field.name)
        if kind is bool:
            group.add_argument(flag_of(field.name), action="store_true", help=doc)
            continue
        default = f"{field.default:g}" if kind is float and field.default is not None else field.default
        shown = (doc if default is None else f"{doc} (default {default})").replace("%", "%%")
        # Choices are checked with the other values, by `TrainConfig`.
        parse = _number_or(field.metadata["words"]) if field.metadata["words"] else kind
        group.add_argument(flag_of(field.name), type=parse, metavar=field.metadata["metavar"], help=shown)
    parser.add_argument(
        "--config",
        metavar="FILE.toml",
        default=None,
        help="read options from a file, one `name = value` a line; typed ones win. For a recipe that you use again",
    )
    parser.add_help_all()
    for name in REMOVED:
        parser.add_removed(name)


def _number_or(words: Collection[str]) -> Callable[[str], float | str]:
    """Parses a number, or one of the words."""

    def parse(text: str) -> float | str:
        try:
            return text if text in words else float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r}: give a number, or {' or '.join(words)}") from None

    return parse


def chosen_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of a run that the user chose, by field name: those of the file, then those typed.

    Raises:
        InputError: the file cannot be read, or holds something wrong.
    """
    typed = {f.name: getattr(args, f.name) for f in dataclasses.fields(TrainConfig) if f.name in args}
    return {**(read_toml(args.config) if args.config else {}), **typed}
