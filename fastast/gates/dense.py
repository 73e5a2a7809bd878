"""No gate: every sample is trained. The baseline of all others."""

from __future__ import annotations

from fastast.cost_model import DENSE_COST
from fastast.gates.base import Gate


class Dense(Gate):
    """Trains every sample."""

    has_target = False

    def cost(self, activation: float) -> float:
        return DENSE_COST

    def planned_share(self, target: float | str) -> float:
        return 1.0
