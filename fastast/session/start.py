"""Starts or resumes a run: checks what has changed since the checkpoint, and prepares the folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from fastast.checkpoint.resume import RunStart
from fastast.code_version import version_words
from fastast.data import Dataset
from fastast.device import Runtime
from fastast.distributed.ranks import Ranks
from fastast.errors import InputError
from fastast.loggers.console import Reporter
from fastast.run_folder import RunFolder
from fastast.session.summary import write_classes
from fastast.session.watchdog import STALL_FILE
from fastast.train.trainer import Trainer


def require_same_pictures(state: dict[str, Any], dataset: Dataset, checkpoint: Path | None) -> None:
    """Refuses a checkpoint of other classes or pictures: its labels, its plan and its losses belong to those.

    Raises:
        InputError: classes were renamed, added or removed since, or pictures were, or rewritten.
    """
    before, now = state.get("classes", list(dataset.classes)), list(dataset.classes)  # older checkpoints have no list
    if before != now:
        lost, new = sorted(set(before) - set(now)), sorted(set(now) - set(before))
        raise InputError(
            f"{checkpoint}: the classes have changed since ({', '.join(lost[:5])} -> {', '.join(new[:5])}), so "
            "the network's outputs would stand for others; name the folders as they were, or start anew with "
            "another --out"
        )
    if state["fingerprint"] != dataset.fingerprint:
        raise InputError(
            f"{checkpoint}: the data has changed since (pictures added, removed or rewritten); continue on the same "
            "pictures, or start anew with another --out (--weights takes this run's model.safetensors)"
        )


def changed_dtype(state: dict[str, Any], runtime: Runtime) -> tuple[str, ...]:
    """One line if the number format is another than when a checkpoint was written, else none."""
    if state["dtype"] == str(runtime.dtype):
        return ()
    names = (str(dtype).removeprefix("torch.") for dtype in (state["dtype"], runtime.dtype))
    return ("the number format has changed since ({} -> {})".format(*names),)


def changed_world_size(state: dict[str, Any], ranks: Ranks) -> tuple[str, ...]:
    """One line if a checkpoint is of another number of ranks, else none."""
    before = len(state["trainer"]["ranks"])
    return () if before == ranks.size else (f"the number of processes has changed since ({before} -> {ranks.size})",)


def describe_mismatch(start: RunStart, reason: str) -> str:
    """What to tell of a checkpoint whose state the trainer cannot load: who wrote it, and what to do."""
    assert start.state is not None
    version = start.state.get("version")
    remedy = "start anew with another --out (--weights takes this run's model.safetensors)"
    if version == version_words():
        return f"{start.checkpoint}: does not fit this run ({reason}); {remedy}"
    writer = f"fastast {version}" if isinstance(version, str) else "an earlier version of fastast"
    return (
        f"{start.checkpoint}: was written by {writer}, whose state fastast {version_words()} cannot load ({reason}); "
        f"continue with that version, or {remedy}"
    )


def _restore_folder(trainer: Trainer, start: RunStart, sizes: dict[str, int]) -> None:
    folder = start.folder
    assert start.checkpoint is not None
    folder.continue_from(start.checkpoint, sizes)
    _describe(trainer, folder)


def start_run(trainer: Trainer, folder: RunFolder) -> None:
    """Writes the first files of a run; nothing of an earlier attempt stays."""
    logs = (folder.metrics, folder.summary, folder.power, folder.samples, folder.path / STALL_FILE)
    for path in (*logs, folder.previous, folder.best, folder.weights, folder.predictions):
        path.unlink(missing_ok=True)
    _describe(trainer, folder)
    folder.quarantine.unlink(missing_ok=True)
    for entry in trainer.dataset.quarantined:
        folder.append_quarantine({"id": entry.id, "path": entry.path, "reason": entry.reason})


def _describe(trainer: Trainer, folder: RunFolder) -> None:
    folder.write_json(folder.config, dataclasses.asdict(trainer.config))
    write_classes(folder, trainer.dataset.classes)


def resume_run(trainer: Trainer, start: RunStart, reporter: Reporter) -> None:
    """Brings the folder back to the checkpoint that the trainer was built from, and notes what has changed."""
    state, checkpoint = start.state, start.checkpoint
    assert state is not None
    assert checkpoint is not None
    for note in (start.note, *start.changed):
        if note is not None:
            reporter.note(note)
    if state["dtype"] != str(trainer.runtime.dtype):
        trainer.engine.guard.reset_scale()
    trainer.ranks.call_on_first(lambda: _restore_folder(trainer, start, state["sizes"]))
    offered = trainer.log.counters.whole.offered
    resumed: dict[str, Any] = {"epoch": trainer.epoch, "offered": offered}
    if start.changed:
        resumed["changed"] = list(start.changed)
    trainer.log.counters.resumes.append(resumed)
    reporter.note(f"continuing in epoch {trainer.epoch} ({offered:,} samples offered so far)")
