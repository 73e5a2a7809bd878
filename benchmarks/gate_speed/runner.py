"""A contender of the gate benchmark: a trainer that runs one epoch on request, with every row counted."""

from __future__ import annotations

import dataclasses
import math
import threading
from dataclasses import dataclass

from torch import Tensor, nn

from fastast.energy.reading import Reading
from fastast.loggers.counters import PhaseCounts
from fastast.session.summary import part_counts
from fastast.train.run_energy import DENSE_PART, GATED_PART
from fastast.train.trainer import Trainer


@dataclass(frozen=True, slots=True)
class Contender:
    """A gate and its target, if it has one; the gate is also its name in the table."""

    name: str
    target: float | None = None


class EpochRunner:
    """A trainer that runs one epoch at a time, by its own `fit` in a thread.

    Attributes:
        rows: rows that went forward and backward through the network in training, and through scoring.
        counted: whether hooks count them: not on a GPU, which hooks would wait for, and not in compiled code.
    """

    def __init__(self, entry: Contender, trainer: Trainer) -> None:
        self.entry, self.trainer = entry, trainer
        self.rows = {"forward": 0, "backward": 0, "scored": 0}
        self.counted = trainer.runtime.device.type == "cpu" and not trainer.runtime.compiled
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None
        threading.Thread(target=self._run, daemon=True).start()

    def count_rows(self) -> None:
        """Counts rows from now on."""
        engine = self.trainer.engine
        if self.counted:
            engine.model.register_forward_hook(self._trained)
            if engine.score_step is not None:
                engine.score_step.register_forward_pre_hook(self._scored)

    def _trained(self, module: nn.Module, inputs: tuple[Tensor], logits: Tensor) -> None:
        if logits.requires_grad:
            self.rows["forward"] += len(logits)
            logits.register_hook(lambda grad: self.rows.update(backward=self.rows["backward"] + len(grad)))

    def _scored(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.rows["scored"] += int(inputs[3].sum())

    def _run(self) -> None:
        self._go.acquire()
        try:
            self.trainer.fit(self)
        except BaseException as error:  # raised again in the main thread
            self._error = error
        self._done.release()

    def reading(self) -> Reading | None:
        """Energy of its training so far, without evaluation."""
        part = self.trainer.energy.part(DENSE_PART if self.entry.name == "dense" else GATED_PART)
        return None if part is None else part.whole

    def due(self) -> bool:
        """No checkpoint is ever due."""
        return False

    def save(self) -> None:
        """Saves nothing."""

    def finish_epoch(self, epoch: int) -> None:
        """Waits for the next turn."""
        self._done.release()
        self._go.acquire()

    def epoch(self) -> PhaseCounts:
        """Runs the next epoch; returns its counts and seconds, without evaluation."""
        before = self.trainer.log.counters.whole
        self._go.release()
        self._done.acquire()
        if self._error is not None:
            raise self._error
        after = self.trainer.log.counters.whole
        names = [field.name for field in dataclasses.fields(PhaseCounts)]
        return PhaseCounts(**{name: getattr(after, name) - getattr(before, name) for name in names})


def check_counts(runner: EpochRunner, counts: PhaseCounts) -> dict[str, int]:
    """Compares the work that ran with the run's own counts and with the cost model; returns the counts.

    Args:
        runner: a contender whose rows were counted for exactly those rounds.
        counts: the run's own counts over all rounds.

    Raises:
        RuntimeError: they differ by a sample or more.
    """
    gate = runner.trainer.gate
    offered, trained = counts.offered, counts.backward
    hooked = {
        "forward": (runner.rows["forward"], trained),
        "backward": (runner.rows["backward"], trained),
        "scored": (runner.rows["scored"], counts.scored),
    }
    expected = {
        **(hooked if runner.counted else {}),
        "scored by the cost model": (counts.scored, offered if gate.scores else 0),
        "decoded": (counts.decoded, counts.selected if gate.plans else offered),
        "forward units": (part_counts(counts, gate).forward_units, offered * gate.cost(trained / offered)),
    }
    for what, (found, wanted) in expected.items():
        if not math.isclose(found, wanted, rel_tol=1e-9):
            raise RuntimeError(f"{runner.entry.name} at {runner.entry.target}: {what}: {found:,}, expected {wanted:,}")
    names = ("offered", "decoded", "scored", "selected", "backward")
    return {name: getattr(counts, name) for name in names}
