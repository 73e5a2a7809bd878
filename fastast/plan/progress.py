"""How far a segment has come: what a checkpoint in the middle of an epoch resumes from."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from fastast.data import rank_rows
from fastast.distributed.ranks import Ranks
from fastast.plan.epoch_plan import EpochPlan, EpochPlanner
from fastast.plan.schedule import Segment


class EpochProgress:
    """A segment in progress.

    Args:
        segment: one of the schedule's.
        plan: what it offers and reads.
        bad_ids: bool[N], the pictures that were quarantined when it was planned.
        batch_size: rows of a batch on one rank, B.
        ranks: who trains together. Rank r takes rows r B .. (r+1) B of each global batch.

    Attributes:
        delivered: places of the plan that were handed to the engines of all ranks.
        offered: positions in the segment's order that they cover, skipped ones between them included.
    """

    def __init__(
        self, segment: Segment, plan: EpochPlan, bad_ids: np.ndarray, *, batch_size: int, ranks: Ranks
    ) -> None:
        self.segment = segment
        self.plan = plan
        self._batch_size, self._ranks = batch_size, ranks
        self.delivered = 0
        self.offered = 0
        self._bad_ids = bad_ids.copy()
        # Of each slice that was yielded and not yet delivered: the places after it, positions read here, and the size.
        self._pending: collections.deque[tuple[int, np.ndarray, int]] = collections.deque()
        self._known_sizes: list[int] = []  # of the first slices, which had been yielded when the state was saved

    def slices(self, size_at: Callable[[int], int]) -> Iterator[tuple[np.ndarray, int]]:
        """What this rank is still to read.

        Args:
            size_at: tells the size of the pictures of a batch from the first position that it covers. Called when the
                slice is pulled, so it may depend on how far the run has come: the state keeps what it said.

        Yields:
            One slice for each global batch that is left: ids, int64[n] with n <= B, and the side of their pictures.
        """
        self._pending.clear()
        places, ranks = self.plan.places, self._ranks
        size = self._batch_size * ranks.size
        known = iter(self._known_sizes)
        for first in range(self.delivered, len(places), size):
            read = places[first : first + size]
            mine = read[rank_rows(len(read), self._batch_size, ranks.rank, ranks.size)]
            side = next(known, None) or size_at(int(places[first - 1]) + 1 if first else 0)
            self._pending.append((first + len(read), mine, side))
            yield self.plan.order[mine], side

    def advance(self) -> tuple[int, int, np.ndarray]:
        """Moves on by the oldest slice that was yielded.

        Returns:
            first, last: the positions that its global batch covers.
            ids: int64[n], those that fall to this rank: what it reads, and on the first rank all that nobody reads.
        """
        places, order = self.plan.places, self.plan.order
        first, before = self.offered, self.delivered
        self.delivered, mine, _ = self._pending.popleft()
        # What was skipped after the last place belongs to the last batch.
        at_end = self.delivered == len(places)
        self.offered = len(order) if at_end else int(places[self.delivered - 1]) + 1
        is_mine = np.full(self.offered - first, self._ranks.is_first)
        is_mine[places[before : self.delivered] - first] = False
        is_mine[mine - first] = True
        return first, self.offered, order[first : self.offered][is_mine]

    def position(self, planner: EpochPlanner) -> int:
        """The position that it has come to in the epoch's order, from its start to its stop."""
        if self.offered == len(self.plan.order):
            return self.segment.stop
        return planner.position_after(self.segment, self._bad_ids, self.offered)

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors for a checkpoint; the order is computed again from the seed."""
        return {
            "delivered": self.delivered,
            "offered": self.offered,
            "sizes": [side for _, _, side in self._pending],
            "bad_ids": torch.from_numpy(self._bad_ids),
            "keep": self.plan.keep,
            "weights": self.plan.weights,
        }

    @classmethod
    def from_state(
        cls,
        state: dict[str, Any],
        segment: Segment,
        planner: EpochPlanner,
        device: torch.device,
        *,
        batch_size: int,
        ranks: Ranks,
    ) -> EpochProgress:
        """The progress that `state_dict` described."""
        bad_ids = state["bad_ids"].numpy()
        keep, weights = (None if state[name] is None else state[name].to(device) for name in ("keep", "weights"))
        plan = planner.restore(segment, bad_ids, keep, weights)
        progress = cls(segment, plan, bad_ids, batch_size=batch_size, ranks=ranks)
        progress.delivered, progress.offered = state["delivered"], state["offered"]
        progress._known_sizes = state["sizes"]
        return progress
