"""What is saved while a run trains, and when."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from fastast.checkpoint.file_format import snapshot
from fastast.checkpoint.writer import CheckpointWriter
from fastast.code_version import version_words
from fastast.energy.power_log import PowerRow, write_power_csv
from fastast.loggers.console import Reporter
from fastast.models.weights_info import WeightsInfo
from fastast.record.predictions import write_predictions
from fastast.run_folder import RunFolder
from fastast.session.summary import write_best
from fastast.train.trainer import Trainer


class Checkpointer:
    """Saves a run every so many minutes and at the end of each epoch.

    The state is copied between two batches; a thread writes it while training continues. A checkpoint that
    cannot be written (a full disk) costs a note: the previous one is kept, and the next is tried.

    On several ranks all take part, and the first writes.

    Args:
        trainer: whose state is saved.
        folder: where.
        every_min: minutes between two checkpoints within an epoch; 0: only at its end.
        reporter: shows what could not be saved.
    """

    def __init__(self, trainer: Trainer, folder: RunFolder, every_min: float, reporter: Reporter) -> None:
        self._trainer, self._folder = trainer, folder
        self._every_s = every_min * 60
        self._saved_at = time.monotonic()
        config, dataset = trainer.config, trainer.dataset
        self._version = version_words()
        self._info = WeightsInfo.of(config.arch, dataset.classes, config.image_size, dataset.train.bits)
        self._writer = CheckpointWriter(folder, on_error=reporter.note)
        self._predictions: dict[str, Any] = {}  # still to be written
        self._best: tuple[dict[str, Any], int, float] | None = None  # weights still to be written, epoch and top-1

    @property
    def write_s(self) -> float:
        """Seconds that writing the last checkpoint took, 0 before the first."""
        return self._writer.seconds

    def due(self) -> bool:
        """Whether the time for a checkpoint has come."""
        return 0 < self._every_s <= time.monotonic() - self._saved_at

    def save(self) -> None:
        """Copies the state and hands it to the thread."""
        self._saved_at = time.monotonic()
        self._writer.wait()  # so that no two copies exist
        trained = self._trainer.state_dict()
        if not self._trainer.ranks.is_first:
            return
        state = {
            "trainer": trained,
            "version": self._version,
            "config": dataclasses.asdict(self._trainer.config),
            "dtype": str(self._trainer.runtime.dtype),
            "fingerprint": self._trainer.dataset.fingerprint,
            "classes": list(self._trainer.dataset.classes),
            "sizes": self._folder.log_sizes(),
        }
        best, predictions = self._best, self._predictions

        def write_first() -> None:
            self._folder.sync_logs()
            write_power(self._trainer.energy.meter.power_rows(), self._folder)
            if predictions:
                write_predictions(self._folder, self._trainer.dataset.val, **predictions)
                self._predictions = {}
            if best is not None:
                write_best(self._folder, *best, self._info)
                self._best = None  # nothing else changes it while this thread runs

        self._writer.submit(state, write_first)

    def finish_epoch(self, epoch: int) -> None:
        """Saves the end of an epoch (0: of the probe): the weights if they are the best so far, then the state."""
        evaluated = self._trainer.log.evaluated
        if evaluated and evaluated[-1][0] == epoch:
            columns = self._trainer.validation.predictions.merged(self._trainer.ranks)
            self._writer.wait()  # its thread clears what it has written
            self._predictions = {"columns": columns, "epoch": epoch}
            best = max(evaluated, key=lambda one: one[1])
            if self._trainer.ranks.is_first and best[0] == epoch:
                self._best = snapshot(self._trainer.engine.best_weights()), *best
        self.save()

    def close(self) -> str | None:
        """Waits until everything is written; returns why the last checkpoint was not, or None if it was (here)."""
        return self._writer.wait()


def write_power(rows: Sequence[PowerRow], folder: RunFolder) -> None:
    """Writes `power.csv`, if any power was read."""
    if rows:
        write_power_csv(folder.power, rows)
