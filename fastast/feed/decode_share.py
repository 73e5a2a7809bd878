"""Which batches of a run on a GPU are decoded on the CPU.

Decoding on the GPU competes with training. An idle CPU takes over whole batches, in a fixed rotation, as large a share
as it can decode without the training loop waiting. A share that was found is held, so that joules are measured under
one share; only a loop that waits lowers it.
"""

from __future__ import annotations

DECODE_MODES = ("auto", "gpu", "cpu")

_WHOLE = 8  # shares are counted in eighths
_PERIOD = 32  # batches between two adaptations
_LONG, _SHORT = 0.05, 0.01  # shares of time spent waiting: the CPU has too much to do, or could do more


def adapted(eighths: int, limit: int, waited: float) -> tuple[int, int]:
    """The next share of batches decoded on the CPU, and the largest that may still be tried.

    Args:
        eighths: the share until now.
        limit: in eighths; a share that was too much once is not tried again.
        waited: share of the loop's time spent waiting for data, in [0, 1].

    Returns:
        Share and limit, both in eighths.
    """
    if waited > _LONG:
        lower = max(eighths - 1, 0)
        return lower, lower
    if waited < _SHORT:
        return min(eighths + 1, limit), limit
    return eighths, limit


class DecodeShare:
    """Assigns whole batches to the CPU or the GPU, and adapts the share in auto mode.

    Args:
        decode: gpu: none on the CPU; cpu: all; auto: none at first.
        adaptive: auto's share follows the waiting time.
        settle: batches assigned before a change of the share and delivered after it.

    Attributes:
        eighths: share of the batches decoded on the CPU.

    Raises:
        ValueError: `decode` is none of these.
    """

    def __init__(self, decode: str, *, adaptive: bool, settle: int) -> None:
        if decode not in DECODE_MODES:
            raise ValueError(f"decode {decode}: choose one of {', '.join(DECODE_MODES)}")
        self.eighths = _WHOLE if decode == "cpu" else 0
        self._adaptive = adaptive and decode == "auto"
        self._settle = settle
        self._credit = 0
        self.begin_search()

    @property
    def share(self) -> float:
        """Share of the batches decoded on the CPU."""
        return self.eighths / _WHOLE

    def begin_search(self) -> None:
        """Looks for the share anew, from the present one on."""
        self._is_held = False
        self.begin_pass()

    def begin_pass(self) -> None:
        """Forgets which share was too much unless one was found: in the next pass the CPU may have more time."""
        if not self._is_held:
            self._limit = _WHOLE
        self._seen = 0
        self._began_s = self._waited_s = 0.0

    def next_on_cpu(self) -> bool:
        """Whether the next batch is decoded on the CPU; of 8 / eighths batches, the last."""
        self._credit += self.eighths
        on_cpu = self._credit >= _WHOLE
        self._credit -= _WHOLE * on_cpu
        return on_cpu

    def delivered(self, wait_s: float, now_s: float) -> None:
        """Counts a batch, and after every 32 of them adapts the share.

        Args:
            wait_s: seconds that the loop waited for it.
            now_s: of a steady clock, at its delivery.
        """
        if not self._adaptive:
            return
        self._seen += 1
        if self._seen <= self._settle:
            self._began_s, self._waited_s = now_s, 0.0
            return
        self._waited_s += wait_s
        if self._seen < self._settle + _PERIOD:
            return
        before, waited = self.eighths, self._waited_s / (now_s - self._began_s)
        self.eighths, self._limit = adapted(before, self._limit, waited)
        if self.eighths == before and waited <= _LONG:
            self._is_held, self._limit = True, before
        self._began_s, self._waited_s = now_s, 0.0
        self._seen = self._settle if self.eighths == before else 0
