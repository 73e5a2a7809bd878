"""What a `fastast train` command means: a new run, one to continue, or a finished one to show."""

from __future__ import annotations

import dataclasses
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastast.config import TrainConfig, resolve
from fastast.errors import InputError
from fastast.run import RunFolder, read_json
from fastast.train.checkpoint import load_checkpoint

# What a continued run may change: where things stand, how it is shown, and the price. Its data may have moved too: the
# fingerprint tells whether it is the same.
FREE_OPTIONS = ("out", "threads", "log_every", "data", "train_dir", "val_dir", "price_per_kwh", "gco2_per_kwh")
PATH_OPTIONS = ("data", "val_dir", "out")


@dataclass(frozen=True, slots=True)
class Opening:
    """A run that is about to go on or begin.

    Attributes:
        config: its options.
        folder: its folder.
        checkpoint: the file that it continues from, or None.
        state: the contents of that file, or None.
        finished: the summary of a run that came to its end; nothing is left to do.
    """

    config: TrainConfig
    folder: RunFolder
    checkpoint: Path | None = None
    state: dict[str, Any] | None = None
    finished: dict[str, Any] | None = None


def open_run(given: dict[str, Any], resume: str | None) -> Opening:
    """Decides from the options and the run folder.

    Args:
        given: options that the user chose, by field name of `TrainConfig`.
        resume: None, "auto" (start, continue, or show a finished run), or a checkpoint file.

    Raises:
        InputError: the folder holds a run and `resume` is None; a checkpoint is missing, damaged or of other options.
    """
    given = absolute_paths(given)
    if resume not in (None, "auto"):
        return _continue(Path(str(resume)), given)
    folder = RunFolder(given["out"]) if "out" in given else None
    if folder is None or not folder.holds_run():
        config = resolve(given)
        return Opening(config, folder or _new_folder(config))
    if resume is None:
        raise InputError(
            f"--out {folder.path}: holds a run already; continue it with --resume, or name another folder with --out"
        )
    finished = folder.finished_summary()
    if finished is None and folder.last.exists():
        return _continue(folder.last, given)
    asked = given if finished is None else {}  # a finished run is shown whatever else was asked
    return Opening(_same_options(read_json(folder.config), asked, folder.config), folder, finished=finished)


def absolute_paths(given: dict[str, Any]) -> dict[str, Any]:
    """Paths that still hold when the run is continued from another directory."""
    changed = {name: os.path.abspath(given[name]) for name in PATH_OPTIONS if given.get(name)}
    if given.get("train_dir"):
        changed["train_dir"] = ",".join(os.path.abspath(part) for part in given["train_dir"].split(","))
    if given.get("weights") not in (None, "none", "imagenet"):
        changed["weights"] = os.path.abspath(given["weights"])
    return {**given, **changed}


def _new_folder(config: TrainConfig) -> RunFolder:
    return RunFolder(Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{config.arch.replace(':', '.')}-{config.gate}")


def _continue(checkpoint: Path, given: dict[str, Any]) -> Opening:
    state = load_checkpoint(checkpoint)
    if not {"trainer", "config", "fingerprint", "sizes"} <= state.keys():
        raise InputError(f"{checkpoint}: holds weights only; continue from last.pt, or start with --weights")
    home = RunFolder(checkpoint.resolve().parent.parent)
    folder = RunFolder(given.get("out", home.path))
    if folder.path.resolve() != home.path and folder.holds_run():
        raise InputError(f"--out {folder.path}: holds another run than {checkpoint}; name an empty folder with --out")
    return Opening(_same_options(state["config"], given, checkpoint), folder, checkpoint=checkpoint, state=state)


def _same_options(stored: dict[str, Any], given: dict[str, Any], source: Path) -> TrainConfig:
    unknown = stored.keys() - {field.name for field in dataclasses.fields(TrainConfig)}
    if unknown:
        raise InputError(f"{source}: unknown option {min(unknown)}; it was written by another version")
    for name, value in given.items():
        if name not in FREE_OPTIONS and value != stored.get(name):
            raise InputError(
                f"--{name.replace('_', '-')} {value}: the run was started with {stored.get(name)}; "
                "leave the option out to continue, or start anew with another --out"
            )
    return TrainConfig(**{**stored, **given})
