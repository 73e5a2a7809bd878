"""One small vector a batch from every rank's host, read one batch late, so that no host waits for another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from fastast.distributed.ranks import Ranks


class LaggedGather:
    """Gathers vectors of the hosts in the background. All ranks call it alike, and get the same rows.

    Args:
        ranks: who takes part. With one rank there is nothing to wait for, and no lag.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._pending: tuple[Any, torch.Tensor] | None = None

    def push(self, values: Sequence[float]) -> np.ndarray | None:
        """Sends this batch's vector.

        Returns:
            float64[ranks, n], the vectors of the push before; None if there was none since the last `flush`. With one
            rank it is this push's own.
        """
        if self._ranks.size == 1:
            return np.array([values], np.float64)
        vector = torch.tensor(values, dtype=torch.float64)
        before = self.flush()
        rows = vector.new_empty(self._ranks.size * len(vector))
        work = dist.all_gather_into_tensor(rows, vector, group=self._ranks.group, async_op=True)
        self._pending = work, rows
        return before

    def flush(self) -> np.ndarray | None:
        """Waits for the last vectors and returns them, or None if they were returned already."""
        if self._pending is None:
            return None
        work, rows = self._pending
        self._pending = None
        work.wait()
        return rows.view(self._ranks.size, -1).numpy()
