"""The options of a run as arguments of a command."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

from fastast.config import TrainConfig

# Option groups of `--help`: the first field of each, and its title.
GROUPS = {
    "data": "what to train on",
    "arch": "the network",
    "epochs": "the schedule",
    "gate": "the gate",
    "checkpoint_every": "stopping and continuing",
    "dense_calibration": "the ledger",
    "seed": "the machine",
}


def add_run_options(parser: Any, leave_out: Sequence[str] = ()) -> None:
    """Adds an argument for every field of `TrainConfig`, in groups, and `--config`.

    Args:
        parser: an `argparse.ArgumentParser` whose `argument_default` is `SUPPRESS`.
        leave_out: fields without an argument.
    """
    group = parser
    for field in dataclasses.fields(TrainConfig):
        if field.name in leave_out:
            continue
        if field.name in GROUPS:
            group = parser.add_argument_group(GROUPS[field.name])
        doc, kind = field.metadata["doc"], field.metadata["kind"]
        flag = "--" + field.name.replace("_", "-")
        if kind is bool:
            group.add_argument(flag, action="store_true", help=doc)
            continue
        shown = doc if field.default is None else f"{doc} (default {field.default})"
        group.add_argument(
            flag,
            type=kind,
            metavar=field.metadata["metavar"],
            choices=field.metadata["choices"] or None,
            help=shown.replace("%", "%%"),
        )
    parser.add_argument("--config", metavar="FILE.toml", default=None, help="read options from a file; typed ones win")


def given_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of a run that were typed, by field name."""
    options = vars(args)
    return {f.name: options[f.name] for f in dataclasses.fields(TrainConfig) if f.name in options}
