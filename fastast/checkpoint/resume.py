"""How `fastast train` starts: a new run, a run to resume, or a finished one to show."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastast.checkpoint.file_format import load_checkpoint, load_last
from fastast.config import TrainConfig
from fastast.config.config_file import names_data, resolve
from fastast.config.options import flag_of
from fastast.config.removed import removed_option
from fastast.errors import InputError
from fastast.run_folder import RunFolder, read_json

# What a continued run may change: where things stand, how it is shown, and the price. Its data may have moved too: the
# fingerprint tells whether it is the same.
FREE_OPTIONS = frozenset(
    ("out", "data", "train_dir", "val_dir", "threads", "nproc", "log_every", "price_per_kwh", "gco2_per_kwh")
    + ("checkpoint_every", "max_time", "stall_timeout", "log", "power_limit", "lock_clocks")
)
# What a checkpoint is built on: with another value there would be nothing to continue.
FIXED_OPTIONS = frozenset(
    (
        "arch",
        "image_size",
        "train_size",
        "batch_size",
        "gate",
        "precision",
        "seed",
        "val_split",
        "start",
        "freeze",
        "freeze_bn",
        "optimizer",
        "preset",
    )
)
PATH_OPTIONS = ("data", "val_dir", "out")
# What runs did before there was the option, where its default does something else: `start` would probe a new head.
BEFORE_THE_OPTION = {"start": "random"}


@dataclass(frozen=True, slots=True)
class RunStart:
    """A run that is about to start or resume.

    Attributes:
        config: its options.
        folder: its folder.
        checkpoint: the file that it resumes from, or None.
        state: the contents of that file, or None.
        finished: the summary of a finished run, with nothing left to do.
        changed: options that --force changed, a line each.
        note: what the user should know of the checkpoint, or None.
        stamp: of the checkpoint file when it was read.
    """

    config: TrainConfig
    folder: RunFolder
    checkpoint: Path | None = None
    state: dict[str, Any] | None = None
    finished: dict[str, Any] | None = None
    changed: tuple[str, ...] = ()
    note: str | None = None
    stamp: tuple[int, int] | None = None

    def require_untouched(self) -> None:
        """Call under the folder's lock, before anything is written there.

        Raises:
            InputError: another process has trained there since the checkpoint was read.
        """
        now = _stamp(self.checkpoint) if self.checkpoint is not None else None
        if now != self.stamp or (self.checkpoint is None and self.folder.last.exists()):
            raise InputError(
                f"--out {self.folder.path}: another process trained there meanwhile; run the command again"
            )


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def find_start(typed: dict[str, Any], resume: str | None, *, force: bool = False) -> RunStart:
    """Decides from the options and the run folder.

    Args:
        typed: options that the user chose, by field name of `TrainConfig`.
        resume: None, "auto" (start, continue, or show a finished run), or a checkpoint file.
        force: continue with other options, where that is possible at all; a finished run then goes on if the new
            ones leave it something to do.

    Raises:
        InputError: the folder holds a run and `resume` is None, or none and nothing says what to start; it holds
            files of somebody else; a checkpoint is missing, damaged or of other options.
    """
    typed = absolute_paths(typed)
    if force and resume is None:
        raise InputError("--force: goes with --resume; to start over in the same folder, remove it first")
    if resume not in (None, "auto"):
        path = Path(str(resume))
        if RunFolder(path).holds_run():
            raise InputError(f"--resume {path}: a run folder; continue it with --out {path} --resume")
        if not path.is_file():
            raise InputError(f"--resume {path}: no such checkpoint; check it, or name its run (--out DIR --resume)")
        return _continue(path, load_checkpoint(path), typed, force=force)
    if resume is not None and typed.get("out") is None:
        raise InputError("--resume: name the run with --out DIR, or its checkpoint with --resume FILE")
    folder = RunFolder(typed["out"]) if typed.get("out") else None
    if folder is None or not folder.holds_run():
        if resume is not None and not names_data(typed):
            raise InputError(
                f"--resume: no run in {typed['out']}; check --out, or start one there: name its --data, or leave out "
                "--resume for the demo set"
            )
        config = resolve(typed)
        if folder is None:
            return RunStart(config, new_folder(config))
        folder.require_free()
        return RunStart(config, folder)
    if resume is None:
        raise InputError(
            f"--out {folder.path}: holds a run already; continue it with --resume, or name another folder with --out"
        )
    finished = folder.finished_summary()
    if finished is not None and not force:  # it is shown, whatever else was asked
        return RunStart(TrainConfig(), folder, finished=finished)  # its own options may be of another version
    if folder.last.exists() or folder.previous.exists():
        state, path, note = load_last(folder)
        return _continue(path, state, typed, force=force, note=note)
    stored = read_json(folder.config)
    config, changed = _same_options(stored, typed, folder.config, force=force)
    if not {"arch", "gate"} <= stored.keys():
        raise InputError(f"{folder.config}: not the options of a run; name another folder with --out")
    return RunStart(config, folder, changed=changed)


def absolute_paths(typed: dict[str, Any]) -> dict[str, Any]:
    """Paths that still hold when the run is continued from another directory."""
    changed = {name: os.path.abspath(typed[name]) for name in PATH_OPTIONS if typed.get(name)}
    if typed.get("train_dir"):
        parts = typed["train_dir"].split(",")
        changed["train_dir"] = ",".join(part and os.path.abspath(part) for part in parts)
    if typed.get("weights") not in (None, "none", "imagenet"):
        changed["weights"] = os.path.abspath(typed["weights"])
    return {**typed, **changed}


def new_folder(config: TrainConfig) -> RunFolder:
    """Makes the folder of a run without `--out`; runs that start in the same second get one each.

    Raises:
        InputError: it cannot be made.
    """
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{re.sub('[:/]', '.', config.arch)}-{config.gate}"
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(folder for each in names if (folder := RunFolder(Path("runs") / each)).claim())


@contextlib.contextmanager
def removed_if_empty(folder: RunFolder) -> Iterator[None]:
    """Removes what `new_folder` made if the run was refused before it wrote anything."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # which is what it says of a folder that is not empty
            folder.path.rmdir()
            folder.path.parent.rmdir()


def _continue(
    checkpoint: Path, state: dict[str, Any], typed: dict[str, Any], *, force: bool, note: str | None = None
) -> RunStart:
    if not {"trainer", "config", "dtype", "fingerprint", "sizes"} <= state.keys():
        raise InputError(f"{checkpoint}: holds weights only; continue from last.pt, or start with --weights")
    home = RunFolder(checkpoint.resolve().parent.parent)
    sizes = state["sizes"]
    if not (
        isinstance(sizes, dict)
        and sizes.keys() == home.log_sizes().keys()
        and all(isinstance(size, int) and size >= 0 for size in sizes.values())
        and isinstance(state.get("classes", []), list)
        and all(isinstance(name, str) for name in state.get("classes", []))
    ):
        raise InputError(f"{checkpoint}: damaged; continue from another checkpoint, or start anew")
    if not home.config.exists() and "out" not in typed:
        raise InputError(f"{checkpoint}: lies in no run folder; name one to go on in with --out")
    folder = RunFolder(typed.get("out", home.path))
    if folder.path.resolve() != home.path and folder.holds_run():
        raise InputError(f"--out {folder.path}: holds another run than {checkpoint}; name an empty folder with --out")
    config, changed = _same_options(state["config"], typed, checkpoint, force=force)
    if not folder.holds_run():
        folder.require_free()
    return RunStart(
        config, folder, checkpoint=checkpoint, state=state, changed=changed, note=note, stamp=_stamp(checkpoint)
    )


def _same_options(
    stored: dict[str, Any], typed: dict[str, Any], source: Path, *, force: bool = False
) -> tuple[TrainConfig, tuple[str, ...]]:
    """The options of a run that resumes, and the changes among them."""
    stored = stored_options(stored, source)
    changed = []
    for name, value in typed.items():
        if name in FREE_OPTIONS or value == stored[name]:
            continue
        if name == "batch_size" and type(value) is int and value > (stored[name] or value):
            continue  # which shrinks to what is stored if the training set is too small for it, as the run will check
        flag = flag_of(name)
        if name in FIXED_OPTIONS or not force:
            remedy = "leave the option out to continue" + (
                "" if name in FIXED_OPTIONS else ", add --force to change it"
            )
            raise InputError(
                f"{flag} {value}: the run was started with {stored[name]}; {remedy}, or start anew with another --out"
            )
        changed.append(f"{flag} {stored[name]} -> {value}")
    return TrainConfig(**{**stored, **typed}), tuple(changed)


def stored_options(stored: Any, source: Path) -> dict[str, Any]:
    """All options, by field name, of a run or bench that this version or an earlier one started.

    Args:
        stored: those that were written down. One that is not there was not yet to be had: it counts as what was done
            then, which is its default but for `BEFORE_THE_OPTION`.
        source: the file that they come from.

    Raises:
        InputError: they are damaged, or one of them is not to be had any more.
    """
    known = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    if not isinstance(stored, dict) or not all(isinstance(name, str) for name in stored):
        raise InputError(f"{source}: its options are damaged; start anew with another --out")
    for name in sorted(stored.keys() - known.keys()):
        removed = removed_option(name)
        reason = f"{flag_of(name)} {removed}" if removed else f"unknown option {name}"
        raise InputError(f"{source}: {reason}; it was written by another version, start anew with another --out")
    return dataclasses.asdict(TrainConfig(**{**known, **BEFORE_THE_OPTION, **stored}))
