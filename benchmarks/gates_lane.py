"""One contender of the gates' benchmark: a trainer that runs an epoch when it is told to, with everything counted."""

from __future__ import annotations

import dataclasses
import math
import threading
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fastast.energy.reading import Reading
from fastast.feed import Batch
from fastast.loggers.counters import PhaseCounts
from fastast.train.run_energy import DENSE_PART, GATED_PART
from fastast.train.summary import part_counts
from fastast.train.trainer import Trainer


@dataclass(frozen=True, slots=True)
class Contender:
    """A gate with its options; `packed` reads a pack that has thumbnails. Without a target, it has none."""

    name: str
    gate: str
    options: dict[str, Any]
    target: float | None = None
    packed: bool = False


class Lane:
    """A trainer that runs one epoch at a time, by its own `fit` in a thread of its own.

    Attributes:
        rows: rows that went forward and backward through the network in training, through scoring, and through checks
            of a proxy's ranking.
        watched: whether hooks count them.
    """

    def __init__(self, entry: Contender, trainer: Trainer) -> None:
        self.entry, self.trainer = entry, trainer
        self.rows = {"forward": 0, "backward": 0, "scored": 0, "checked": 0}
        self.watched = trainer.machine.device.type == "cpu" and not trainer.machine.compiled
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def watch(self) -> None:
        """Counts rows from now on."""
        engine = self.trainer.engine
        if self.watched:
            engine.model.register_forward_hook(self._trained)
        for step in (engine.score_step, engine.select_step):
            if step is not None and self.watched:
                step.register_forward_pre_hook(self._scored)
        if engine.proxy is not None:
            check = engine.proxy.check

            def counted(small: Batch, full: Batch) -> float:
                self.rows["checked"] += full.num_valid
                return check(small, full)

            engine.proxy.check = counted  # type: ignore[method-assign]

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
        except BaseException as error:  # shown in the main thread
            self._error = error
        self._done.release()

    def reading(self) -> Reading | None:
        """Energy of its training so far, evaluation left out."""
        part = self.trainer.energy.part(DENSE_PART if self.entry.gate == "dense" else GATED_PART)
        return None if part is None else part.whole

    def due(self) -> bool:
        """Nothing is saved."""
        return False

    def save(self) -> None:
        """Nothing is saved."""

    def finish_epoch(self, line: dict[str, Any]) -> None:
        """Waits for the next turn."""
        self._done.release()
        self._go.acquire()

    def epoch(self) -> PhaseCounts:
        """Runs the next epoch; returns its counts and seconds, without evaluation."""
        before = self.trainer.journal.account.whole
        self._go.release()
        self._done.acquire()
        if self._error is not None:
            raise self._error
        after = self.trainer.journal.account.whole
        fields = [field.name for field in dataclasses.fields(PhaseCounts)]
        return PhaseCounts(**{name: getattr(after, name) - getattr(before, name) for name in fields})


def check_counts(lane: Lane, counts: PhaseCounts) -> dict[str, int]:
    """Compares what ran with what was counted and with the cost model.

    Args:
        lane: a contender that was watched for just those rounds.
        counts: its account over all rounds.

    Returns:
        The counts.

    Raises:
        RuntimeError: they differ, be it by one sample.
    """
    policy, engine = lane.trainer.policy, lane.trainer.engine
    decoded = counts.selected if policy.plans else counts.offered
    if engine.select_step is not None:  # a check of the thumbnails' ranking decodes its whole batch
        decoded = counts.selected + lane.rows["checked"]
    offered, trained = counts.offered, counts.backward
    units = part_counts(counts, policy).forward_units + counts.extra_units
    beyond = counts.extra_units - policy.upkeep_units * offered  # refreshes and checks of the ranking
    hooked = {
        "forward": (lane.rows["forward"], trained),
        "backward": (lane.rows["backward"], trained),
        "scored": (lane.rows["scored"], counts.scored),
    }
    expected = {
        **(hooked if lane.watched else {}),
        "scored by the cost model": (counts.scored, offered if policy.scores else 0),
        "decoded": (counts.decoded, decoded),
        "forward units": (units, offered * policy.cost(trained / offered) + beyond),
    }
    for what, (found, wanted) in expected.items():
        if not math.isclose(found, wanted, rel_tol=1e-9):
            raise RuntimeError(f"{lane.entry.name} at {lane.entry.target}: {what}: {found:,}, expected {wanted:,}")
    return {
        "offered": offered,
        "decoded": counts.decoded,
        "scored": counts.scored,
        "checked": lane.rows["checked"],
        "selected": counts.selected,
        "backward": trained,
    }
