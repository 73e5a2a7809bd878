"""How far a run has come within a stretch: what a checkpoint in the middle of an epoch starts from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fastast.train.account import PhaseCounts
from fastast.train.planner import Planner, StretchPlan
from fastast.train.schedule import Stretch


@dataclass(slots=True)
class Moment:
    """What one batch added, known to the host before the device reports on it.

    Attributes:
        first, last: positions in the stretch's order that the batch covers.
        counts: its work, but for what the device decides.
        ids: int64[n], the samples that were offered; None for those at its positions that are not quarantined.
    """

    first: int
    last: int
    counts: PhaseCounts
    ids: np.ndarray | None = None

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors for a checkpoint."""
        ids = None if self.ids is None else torch.from_numpy(self.ids)
        return {"first": self.first, "last": self.last, "counts": dataclasses.asdict(self.counts), "ids": ids}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Moment:
        """The moment that `state_dict` described."""
        ids = None if state["ids"] is None else state["ids"].numpy()
        return cls(state["first"], state["last"], PhaseCounts(**state["counts"]), ids)


class Passage:
    """A stretch under way.

    Args:
        stretch: one of the schedule's.
        plan: what it offers and reads.
        bad_ids: bool[N], the pictures that were quarantined when it was planned.

    Attributes:
        delivered: places of the plan that were handed to the engine.
        offered: positions in the stretch's order that they cover, skipped ones between them included.
    """

    def __init__(self, stretch: Stretch, plan: StretchPlan, bad_ids: np.ndarray) -> None:
        self.stretch = stretch
        self.plan = plan
        self.delivered = 0
        self.offered = 0
        self._bad_ids = bad_ids.copy()

    def rest(self) -> np.ndarray:
        """int64[m], the ids that are still to be read, in order."""
        return self.plan.order[self.plan.places[self.delivered :]]

    def advance(self, num_places: int) -> tuple[int, int]:
        """Moves on by a batch of places; returns the positions, from and to, that it covers."""
        places, first = self.plan.places, self.offered
        self.delivered = min(self.delivered + num_places, len(places))
        # What was skipped after the last place belongs to the last batch.
        at_end = self.delivered == len(places)
        self.offered = len(self.plan.order) if at_end else int(places[self.delivered - 1]) + 1
        return first, self.offered

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors for a checkpoint; the order is made again from the seed."""
        return {
            "delivered": self.delivered,
            "offered": self.offered,
            "bad_ids": torch.from_numpy(self._bad_ids),
            "keep": self.plan.keep,
            "weights": self.plan.weights,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], stretch: Stretch, planner: Planner, device: torch.device) -> Passage:
        """The passage that `state_dict` described."""
        bad_ids = state["bad_ids"].numpy()
        keep, weights = (None if state[name] is None else state[name].to(device) for name in ("keep", "weights"))
        passage = cls(stretch, planner.restore(stretch, bad_ids, keep, weights), bad_ids)
        passage.delivered, passage.offered = state["delivered"], state["offered"]
        return passage
