"""How fast a run went, the same figure in its verdict and on its page."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Speeds(NamedTuple):
    """Offered pictures per second of the gated part (of a dense run: of all of it) and of the run's own dense part."""

    gated: float
    dense: float | None
    is_steady: bool  # without the start of each part, which is slow

    @property
    def ratio(self) -> float | None:
        """How much faster the gated part is."""
        return self.gated / self.dense if self.dense else None


def find_speeds(number: Callable[[str], float | None]) -> Speeds | None:
    """Those without the start of each part where both are long enough to tell, else those of all of it.

    Args:
        number: tells a figure of the summary's `throughput` by its key; None where it is not known.
    """
    for scope in ("steady_", ""):
        gated, dense = (number(f"{scope}{key}") for key in ("offered_per_s", "dense_offered_per_s"))
        if gated and (dense or not scope):
            return Speeds(gated, dense, scope != "")
    return None
