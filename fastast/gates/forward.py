"""The forward gate: an eval-mode forward scores every sample, and those selected are trained."""

from __future__ import annotations

from fastast.cost_model import DENSE_COST
from fastast.gates.base import Gate


class Forward(Gate):
    """Scores every sample with an eval-mode forward at full size and trains those selected."""

    scores = True
    score_units = 1.0

    def cost(self, activation: float) -> float:
        return self.score_units + DENSE_COST * activation
