"""How far a run has come within a stretch: what a checkpoint in the middle of an epoch starts from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fastast.data import rank_rows, rank_slices
from fastast.train.account import PhaseCounts
from fastast.train.distributed import Ranks
from fastast.train.planner import Planner, StretchPlan
from fastast.train.schedule import Stretch

NO_IDS = np.zeros(0, np.int64)


@dataclass(slots=True)
class Moment:
    """What one batch added, known to the host before the device reports on it.

    Attributes:
        first, last: positions in the stretch's order that the batch covers.
        counts: its work, but for what the device decides.
        ids: int64[n], the samples that this rank was offered.
        backward: samples that the run had trained before the batch.
    """

    first: int
    last: int
    counts: PhaseCounts
    ids: np.ndarray
    backward: int = 0

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors for a checkpoint, but the ids, which were counted when it was sent."""
        return {
            "first": self.first,
            "last": self.last,
            "counts": dataclasses.asdict(self.counts),
            "backward": self.backward,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Moment:
        """The moment that `state_dict` described."""
        return cls(state["first"], state["last"], PhaseCounts(**state["counts"]), NO_IDS, state["backward"])


class Passage:
    """A stretch under way.

    Args:
        stretch: one of the schedule's.
        plan: what it offers and reads.
        bad_ids: bool[N], the pictures that were quarantined when it was planned.
        batch_size: rows of a batch on one rank, B.
        ranks: who shares it out. Rank r takes rows r B .. (r+1) B of each global batch.

    Attributes:
        delivered: places of the plan that were handed to the engines of all ranks.
        offered: positions in the stretch's order that they cover, skipped ones between them included.
    """

    def __init__(
        self, stretch: Stretch, plan: StretchPlan, bad_ids: np.ndarray, *, batch_size: int, ranks: Ranks
    ) -> None:
        self.stretch = stretch
        self.plan = plan
        self._batch_size, self._ranks = batch_size, ranks
        self.delivered = 0
        self.offered = 0
        self._bad_ids = bad_ids.copy()

    def slices(self) -> Iterator[np.ndarray]:
        """int64[n], n <= B: the ids that this rank is still to read, one slice for each global batch that is left."""
        rest = self.plan.order[self.plan.places[self.delivered :]]
        return rank_slices(rest, self._batch_size, self._ranks.rank, self._ranks.size)

    def advance(self) -> tuple[int, int, np.ndarray]:
        """Moves on by a global batch.

        Returns:
            first, last: the positions that it covers.
            ids: int64[n], those that fall to this rank: what it reads, and to the first rank all that nobody reads.
        """
        places, order, ranks = self.plan.places, self.plan.order, self._ranks
        first, delivered = self.offered, self.delivered
        self.delivered = min(delivered + self._batch_size * ranks.size, len(places))
        # What was skipped after the last place belongs to the last batch.
        at_end = self.delivered == len(places)
        self.offered = len(order) if at_end else int(places[self.delivered - 1]) + 1
        read = places[delivered : self.delivered]
        mine = np.full(self.offered - first, ranks.is_first)
        mine[read - first] = False
        mine[read[rank_rows(len(read), self._batch_size, ranks.rank, ranks.size)] - first] = True
        return first, self.offered, order[first : self.offered][mine]

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
    def from_state(
        cls,
        state: dict[str, Any],
        stretch: Stretch,
        planner: Planner,
        device: torch.device,
        *,
        batch_size: int,
        ranks: Ranks,
    ) -> Passage:
        """The passage that `state_dict` described."""
        bad_ids = state["bad_ids"].numpy()
        keep, weights = (None if state[name] is None else state[name].to(device) for name in ("keep", "weights"))
        plan = planner.restore(stretch, bad_ids, keep, weights)
        passage = cls(stretch, plan, bad_ids, batch_size=batch_size, ranks=ranks)
        passage.delivered, passage.offered = state["delivered"], state["offered"]
        return passage
