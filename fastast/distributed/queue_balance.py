"""Which rows move between the ranks' queues, and how many steps all ranks can run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class QueueWork(NamedTuple):
    """What is to be done about the queues.

    Attributes:
        moves: (from, to, rows) of waiting rows between ranks, done first.
        num_steps: full batches that then wait on every rank; all are to be trained.
    """

    moves: Sequence[tuple[int, int, int]] = ()
    num_steps: int = 0


class QueueBalancer:
    """Follows the fills of all ranks' queues from reports that come one batch late. All ranks decide alike.

    Args:
        batch_size: rows of a batch on one rank, B.
        num_ranks: ranks with a queue each.
    """

    def __init__(self, batch_size: int, num_ranks: int) -> None:
        self._batch_size = batch_size
        self._popped = 0  # rows that each rank's queue has handed out
        self._moved = np.zeros(num_ranks, np.int64)  # rows received less rows sent, by rank

    def decide(self, selected: np.ndarray) -> QueueWork:
        """Decides on moves and steps, and takes them as done.

        Args:
            selected: float64[ranks], the rows that each rank's gate has selected so far.
        """
        fills = selected.astype(np.int64) + self._moved - self._popped
        moves = fullest_to_emptiest(fills.tolist(), self._batch_size)
        for full, empty, num_rows in moves:
            for rank, change in ((full, -num_rows), (empty, num_rows)):
                fills[rank] += change
                self._moved[rank] += change
        num_steps = int(fills.min()) // self._batch_size
        self._popped += num_steps * self._batch_size
        return QueueWork(moves, num_steps)

    def load(self, queues: Sequence[dict[str, Any]]) -> None:
        """Resumes from the extra states of all ranks' `SampleQueue`s."""
        self._popped = queues[0]["status"][1]
        self._moved[:] = [queue["moved"] for queue in queues]


def fullest_to_emptiest(fills: Sequence[int], batch_size: int) -> list[tuple[int, int, int]]:
    """Which rows a balance step moves, so that no rank waits for an empty one while others overflow.

    The fullest rank sends to the emptiest, the second fullest to the second emptiest, and so on: half of their
    difference, at most a batch. Ranks that differ by less than a batch are left alone.

    Args:
        fills: waiting rows of every rank.
        batch_size: rows of a batch, B.

    Returns:
        (from, to, rows) of each move; a rank is in one at most.
    """
    order = sorted(range(len(fills)), key=lambda rank: (fills[rank], rank))
    moves = []
    for place in range(len(order) // 2):
        empty, full = order[place], order[-1 - place]
        surplus = fills[full] - fills[empty]
        if surplus < batch_size:
            break
        moves.append((full, empty, min(batch_size, surplus // 2)))
    return moves
