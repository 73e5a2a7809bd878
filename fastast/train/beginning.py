"""How a run begins, or goes on from a checkpoint: what its folder then holds, and what is not as it was."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from fastast.data import Dataset
from fastast.errors import InputError
from fastast.loggers.console import Reporter
from fastast.run_folder import RunFolder
from fastast.train.distributed import Ranks
from fastast.train.opening import Opening
from fastast.train.results import write_classes
from fastast.train.setup import Machine
from fastast.train.trainer import Trainer
from fastast.train.watchdog import STALL_FILE


def require_same_pictures(state: dict[str, Any], dataset: Dataset, checkpoint: Path | None) -> None:
    """Refuses a checkpoint of other pictures: its plan, its losses and its labels belong to those.

    Raises:
        InputError: pictures were added, removed or rewritten since.
    """
    if state["fingerprint"] != dataset.fingerprint:
        raise InputError(
            f"{checkpoint}: the data has changed since (pictures added, removed or rewritten); continue on the same "
            "pictures, or start anew with another --out (--weights takes this run's model.safetensors)"
        )


def changed_dtype(state: dict[str, Any], machine: Machine) -> tuple[str, ...]:
    """One line if the number format is another than when a checkpoint was written, else none."""
    if state["dtype"] == str(machine.dtype):
        return ()
    names = (str(dtype).removeprefix("torch.") for dtype in (state["dtype"], machine.dtype))
    return ("the number format has changed since ({} -> {})".format(*names),)


def changed_world_size(state: dict[str, Any], ranks: Ranks) -> tuple[str, ...]:
    """One line if a checkpoint is of another number of ranks, else none."""
    before = 1 + len(state["trainer"]["ranks"])
    return () if before == ranks.size else (f"the number of processes has changed since ({before} -> {ranks.size})",)


def _restore_folder(trainer: Trainer, opening: Opening, sizes: dict[str, int]) -> None:
    folder = opening.folder
    assert opening.checkpoint is not None
    folder.continue_from(opening.checkpoint, sizes)
    _describe(trainer, folder)


def start_run(trainer: Trainer, folder: RunFolder) -> None:
    """Writes what a run folder holds from its first moment; nothing of an earlier attempt stays."""
    logs = (folder.metrics, folder.summary, folder.power, folder.samples, folder.path / STALL_FILE)
    for path in (*logs, folder.previous, folder.best, folder.weights):
        path.unlink(missing_ok=True)
    _describe(trainer, folder)
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
    try:
        trainer.load_state_dict(state["trainer"])
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{checkpoint}: does not fit this run ({reason})") from error
    if state["dtype"] != str(trainer.machine.dtype):
        trainer.engine.reset_loss_scale()
    trainer.ranks.decide(lambda: _restore_folder(trainer, opening, state["sizes"]))
    offered = trainer.journal.account.whole.offered
    resumed: dict[str, Any] = {"epoch": trainer.epoch, "offered": offered}
    if opening.changed:
        resumed["changed"] = list(opening.changed)
    trainer.journal.account.resumes.append(resumed)
    reporter.note(f"continuing in epoch {trainer.epoch} ({offered:,} samples offered so far)")
