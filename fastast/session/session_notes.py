"""What `fastast train` tells before a run and after it."""

from __future__ import annotations

import shlex
from typing import Any

from fastast.config import TrainConfig
from fastast.config.options import command_words
from fastast.data import Dataset
from fastast.device import Runtime
from fastast.distributed.ranks import Ranks
from fastast.errors import InputError
from fastast.loggers.console import Reporter, verdict
from fastast.number_text import counted
from fastast.phases import DENSE
from fastast.run_folder import RunFolder


def introduce(config: TrainConfig, dataset: Dataset, runtime: Runtime, reporter: Reporter, ranks: Ranks) -> None:
    """Before a run: what is trained on what, and how."""
    times = f" on each of {ranks.size} ranks" if ranks.size > 1 else ""
    sizes = f"{config.image_size} px"
    if config.train_sizes != (config.image_size,):
        sizes = f"{', '.join(map(str, config.train_sizes))} px, evaluated at {sizes}"
    classes = counted(len(dataset.classes), "class", "classes")
    reporter.note(
        f"{dataset.train.num_samples:,} training and {dataset.val.num_samples:,} validation pictures, "
        f"{classes}; {config.arch} at {sizes}, batch {config.batch_size}{times}"
    )
    if dataset.quarantined:
        first = dataset.quarantined[0]
        reporter.note(
            f"quarantined {counted(len(dataset.quarantined), 'unreadable picture')} (quarantine.jsonl), "
            f"such as {first.path}: {first.reason}"
        )
    reporter.note(f"precision {runtime.precision_note}; compile {runtime.compile_note}")


def show_finished(folder: RunFolder, summary: dict[str, Any], gate: str, reporter: Reporter) -> None:
    """Instead of one that has come to its end already: what it came to.

    Raises:
        InputError: its summary is of another version.
    """
    try:
        reporter.console.print(verdict(summary))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder.summary}: written by another version, or damaged") from error
    reporter.note(f"finished already: {folder.path}")
    suggest(folder, gate, reporter)


def resume_command(folder: RunFolder, config: TrainConfig, ranks: Ranks) -> str:
    """The command that continues a run: what starts its processes is not read from its checkpoint."""
    options: dict[str, Any] = {"out": str(folder.path), "resume": True}
    if 1 < ranks.size == ranks.local_size:
        options["nproc"] = ranks.size
    if ranks.size > 1:
        default = TrainConfig()
        now = {name: getattr(config, name) for name in ("device", "stall_timeout")}
        options |= {name: value for name, value in now.items() if value != getattr(default, name)}
    return shlex.join(["fastast", "train", *command_words(options)])


def suggest(folder: RunFolder, gate: str, reporter: Reporter) -> None:
    """After it: what may be typed next."""
    run = shlex.quote(str(folder.path))
    compared = f"GATED_RUN --baseline {run}" if gate == DENSE else f"{run} --baseline DENSE_RUN"
    reporter.next(f"fastast predict {run} PICTURES", f"fastast report {compared}")
