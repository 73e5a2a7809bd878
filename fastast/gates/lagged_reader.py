"""Device counters for the host, exactly one step late."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class LaggedReader:
    """Hands the host each small device vector one push later.

    The copy goes to pinned memory behind the work already queued, and the host waits for the copy of the push
    before: that step has long begun to run, and what the host sees never depends on timing. On a CPU the lag is the
    same, so both take the same decisions.

    Args:
        size: length of the vectors.
        device: where the vectors are.
        dtype: of the vectors.
    """

    def __init__(self, size: int, device: torch.device | str, dtype: torch.dtype = torch.float32) -> None:
        self._cuda = torch.device(device).type == "cuda"
        self._slots = [torch.zeros(size, dtype=dtype, pin_memory=self._cuda) for _ in range(2)]
        self._events = [torch.cuda.Event() for _ in range(2)] if self._cuda else []
        self._next = 0
        self._waiting = False

    def push(self, vector: Tensor) -> np.ndarray | None:
        """Takes this step's vector and returns the one of the push before, or None if there was none."""
        slot = self._next
        self._slots[slot].copy_(vector, non_blocking=True)
        if self._cuda:
            self._events[slot].record()
        previous = self._read(1 - slot) if self._waiting else None
        self._next, self._waiting = 1 - slot, True
        return previous

    def flush(self) -> np.ndarray | None:
        """Waits for the last vector and returns it, or None if nothing was pushed since the last flush."""
        last = self._read(1 - self._next) if self._waiting else None
        self._waiting = False
        return last

    def state(self) -> Tensor | None:
        """A copy of the vector that waits to be handed out, on the CPU; None if there is none."""
        return torch.from_numpy(self._read(1 - self._next)) if self._waiting else None

    def restore(self, waiting: Tensor | None) -> None:
        """Takes over a `state`."""
        self._waiting = waiting is not None
        if waiting is not None:
            self._slots[1 - self._next].copy_(waiting)

    def _read(self, slot: int) -> np.ndarray:
        if self._cuda:
            self._events[slot].synchronize()
        return self._slots[slot].numpy().copy()
