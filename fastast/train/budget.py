"""What a run may spend, and how much of that is spent."""

from __future__ import annotations

from typing import Any

from fastast.cost_model import DENSE_COST
from fastast.options import Amount

# A run with fewer optimizer steps teaches a network next to nothing.
MIN_STEPS = 100


class Budget:
    """What a run may spend on training, and its progress: how much of that is spent.

    Args:
        amount: as `parse_budget` returns it.
        num_train: size of the training set, N.

    Attributes:
        kind: "ep", "time" or "joules".
        total: all that may be spent: forward units, seconds or joules.
        spent: of it so far.
        reserve: of it kept back for the last evaluation and the end of the run.
        eval_cost: what an evaluation costs, as far as it is known; 0 with "ep", which pays for training alone.
        unit_cost: what a forward unit costs, None as long as that is not known.
    """

    def __init__(self, amount: Amount, num_train: int) -> None:
        self.kind = amount.kind
        self._scale = DENSE_COST * num_train if amount.kind == "ep" else 1.0
        self.total = amount.value * self._scale
        self.spent = self.reserve = self.eval_cost = 0.0
        self.unit_cost: float | None = 1.0 if amount.kind == "ep" else None
        self._progress_from, self._left_from = 0.0, self.total

    @property
    def left(self) -> float:
        """What training may still spend."""
        return self.total - self.reserve - self.spent

    @property
    def progress(self) -> float:
        """Share of the training that is done, in [0, 1]; it never falls, and is 1 once nothing is left.

        With "ep" it is spent / total. Seconds and joules also go into set-up, evaluations and checkpoints, which do
        not move it: what they take makes the rest of the training shorter.
        """
        return self.progress_after(0.0)

    def progress_after(self, units: float) -> float:
        """The progress once so many more forward units are done."""
        left = self.left - units * (self.unit_cost or 0.0)
        return 1 - (1 - self._progress_from) * max(0.0, left) / self._left_from if self._left_from > 0 else 1.0

    def pays_for(self, units: float) -> bool:
        """Whether what is left pays for so many forward units."""
        return self.left >= units * (self.unit_cost or 0.0)

    def summary(self) -> dict[str, Any]:
        """The `budget` entry of `summary.json`: epochs, seconds or joules."""
        return {"kind": self.kind, "given": self.total / self._scale, "spent": self.spent / self._scale}

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        names = ("kind", "total", "spent", "reserve", "eval_cost", "unit_cost")
        return {name: getattr(self, name) for name in names} | {"from": [self._progress_from, self._left_from]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes where `state_dict` was called; the total may be another."""
        if state["kind"] != self.kind:
            raise ValueError(f"its budget is of another kind: {state['kind']}, not {self.kind}")
        for name in ("spent", "reserve", "eval_cost", "unit_cost"):
            setattr(self, name, state[name])
        self._progress_from, self._left_from = state["from"]
        if state["total"] != self.total:
            self._progress_from *= min(1.0, state["total"] / self.total)
            self._left_from += self.total - state["total"]
