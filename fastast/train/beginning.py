"""How a run begins, or goes on from a checkpoint: what its folder then holds, and what is not as it was."""

from __future__ import annotations

import dataclasses
from typing import Any

from fastast.console import Reporter
from fastast.data import Dataset
from fastast.errors import InputError
from fastast.run import RunFolder
from fastast.train.distributed import Ranks
from fastast.train.opening import Opening
from fastast.train.results import write_classes
from fastast.train.setup import Machine
from fastast.train.trainer import Trainer
from fastast.train.watchdog import STALL_FILE

PICTURES_CHANGED = "the data has changed since (pictures added, removed or rewritten)"


def what_changed(state: dict[str, Any], dataset: Dataset, machine: Machine) -> tuple[str, ...]:
    """What is not as it was when a checkpoint was written, beside the options."""
    changed = []
    if state["fingerprint"] != dataset.fingerprint:
        changed.append(PICTURES_CHANGED)
    if state["dtype"] != str(machine.dtype):
        names = (str(dtype).removeprefix("torch.") for dtype in (state["dtype"], machine.dtype))
        changed.append("the number format has changed since ({} -> {})".format(*names))
    return tuple(changed)


def other_ranks(state: dict[str, Any], ranks: Ranks) -> tuple[str, ...]:
    """Whether a checkpoint is of another number of ranks."""
    before = 1 + len(state["trainer"]["ranks"])
    return () if before == ranks.size else (f"the number of processes has changed since ({before} -> {ranks.size})",)


def _restore_folder(trainer: Trainer, opening: Opening, sizes: dict[str, int]) -> None:
    folder = opening.folder
    assert opening.checkpoint is not None
    folder.continue_from(opening.checkpoint, sizes)
    _describe(trainer, folder)
    if PICTURES_CHANGED in opening.changed:
        _list_quarantined(trainer, folder)


def start_run(trainer: Trainer, folder: RunFolder) -> None:
    """Writes what a run folder holds from its first moment; nothing of an earlier attempt stays."""
    logs = (folder.metrics, folder.summary, folder.power, folder.samples, folder.path / STALL_FILE)
    for path in (*logs, folder.previous, folder.best, folder.weights):
        path.unlink(missing_ok=True)
    _describe(trainer, folder)
    _list_quarantined(trainer, folder)


def _list_quarantined(trainer: Trainer, folder: RunFolder) -> None:
    """Begins `quarantine.jsonl` with what the scan found."""
    folder.quarantine.unlink(missing_ok=True)
    for entry in trainer.dataset.quarantined:
        folder.append_quarantine({"id": entry.id, "path": entry.path, "reason": entry.reason})


def _describe(trainer: Trainer, folder: RunFolder) -> None:
    folder.write_json(folder.config, dataclasses.asdict(trainer.config))
    write_classes(folder, trainer.dataset.classes)


def resume_run(trainer: Trainer, opening: Opening, reporter: Reporter) -> None:
    state, checkpoint = opening.state, opening.checkpoint
    assert state is not None
    assert checkpoint is not None
    for note in (opening.note, *opening.changed):
        if note is not None:
            reporter.note(note)
    other_pictures = PICTURES_CHANGED in opening.changed
    try:
        trainer.load_state_dict(state["trainer"], other_pictures=other_pictures)
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{checkpoint}: does not fit this run ({reason})") from error
    if state["dtype"] != str(trainer.machine.dtype):
        trainer.engine.reset_loss_scale()
    trainer.ranks.decide(lambda: _restore_folder(trainer, opening, state["sizes"]))
    if other_pictures:
        trainer.journal.account.quarantined = len(trainer.dataset.quarantined)
    offered = trainer.journal.account.whole.offered
    resumed: dict[str, Any] = {"epoch": trainer.epoch, "offered": offered}
    if opening.changed:
        resumed["changed"] = list(opening.changed)
    trainer.journal.account.resumes.append(resumed)
    reporter.note(f"continuing in epoch {trainer.epoch} ({offered:,} samples offered so far)")
