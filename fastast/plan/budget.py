"""What a run may spend, how much of that is spent, and the progress that follows from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fastast.config.options import Amount
from fastast.cost_model import DENSE_COST

# A run with fewer optimizer steps teaches a network next to nothing.
MIN_STEPS = 100
# Seconds that a run takes from its last evaluation to its verdict, beside writing the last checkpoint: an estimate
# (1.2 s for a ResNet-18 on two busy cores, most of it for report.html).
END_S = 2.0
# The first batches of a session tell nothing of the pace: the loader fills up, clocks rise.
_SKIPPED = 3
# Batches after which the pace is known well enough; fewer do once they took this share of the budget.
_SETTLED, _FEWER, _SHARE = 13, 6, 0.05
_DECAY = 0.98  # weight of older batches when the next one comes


class Budget:
    """So many dense epochs' worth of forward units, for training alone: exact, and the same each time.

    Args:
        amount: as `parse_budget` returns it.
        num_train: size of the training set, N.

    Attributes:
        kind: "ep", "time" or "joules".
        total: all that may be spent: forward units, seconds or joules.
        spent: of it so far.
        before: forward units of a probe, which come before the training and do not move the progress.
        unit_cost: what a forward unit costs.
        eval_cost: what an evaluation costs; 0 where it is free, or not known yet.
    """

    def __init__(self, amount: Amount, num_train: int) -> None:
        self.kind = amount.kind
        self._scale = DENSE_COST * num_train if amount.kind == "ep" else 1.0
        self.total = amount.value * self._scale
        self.spent = self.eval_cost = self.before = 0.0
        self.unit_cost = 1.0

    def count(self, units: float) -> None:
        """Takes the forward units that the run has done so far."""
        self.spent = units

    @property
    def left(self) -> float:
        """What training may still spend."""
        return self.total - self.spent

    @property
    def progress(self) -> float:
        """Share of the training that is done, in [0, 1]; it never falls, and is 1 once nothing is left."""
        return self.progress_after(0.0)

    def progress_after(self, units: float) -> float:
        """The progress once so many more forward units are done."""
        return min(1.0, (self.spent + units - self.before) / (self.total - self.before))

    def progress_of_step(self, units: float) -> float:
        """The progress in the middle of the next step, which takes so many forward units; it never falls."""
        return self.progress_after(units / 2)

    def pays_for(self, units: float) -> bool:
        """Whether what is left pays for so many forward units."""
        return self.left >= units * self.unit_cost

    @property
    def pays_for_evaluation(self) -> bool:
        """Whether what is left pays for an evaluation before the last one."""
        return self.left >= self.eval_cost

    def summary(self) -> dict[str, Any]:
        """The `budget` entry of `summary.json`: epochs, seconds or joules."""
        return {"kind": self.kind, "given": self.total / self._scale, "spent": self.spent / self._scale}

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {"kind": self.kind, "total": self.total, "spent": self.spent, "before": self.before}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes where `state_dict` was called; the total may be another."""
        if state["kind"] != self.kind:
            raise ValueError(f"its budget is of another kind: {state['kind']}, not {self.kind}")
        self.spent, self.before = state["spent"], state["before"]


class MeteredBudget(Budget):
    """Seconds, or joules of the GPUs, for everything that the run does.

    What is spent comes from clocks and meters, so it differs from run to run; the ranks agree on it once a batch.
    Set-up, evaluations and checkpoints are paid for too. They do not move the progress (`pause`, `resume`): what they
    take makes the rest of the training shorter. The last evaluation and the end of the run are kept back: a few
    batches of an evaluation tell early what one costs.

    Args:
        amount, num_train: as of `Budget`.

    Attributes:
        reserve: kept back for the last evaluation and the end of the run.
        earlier: spent by earlier sessions of the run.
    """

    def __init__(self, amount: Amount, num_train: int) -> None:
        super().__init__(amount, num_train)
        self.unit_cost = self.reserve = self.earlier = 0.0
        self._progress, self._left_from = 0.0, math.nan  # at the last `resume`; NaN while paused
        self._step_progress = 0.0
        self._num_batches, self._first = 0, 0.0  # in this session, and what was spent at the first one
        self._units, self._mark = 0.0, (0.0, 0.0)  # of training, and (spent, units) at the batch before
        self._sums = (0.0, 0.0)  # spent and units of the last batches

    def take(self, shares: Sequence[float]) -> None:
        """Takes what each rank has spent in this session."""
        session = sum(shares) if self.kind == "joules" else max(shares)
        self.spent = max(self.spent, self.earlier + session)
        if math.isnan(self._left_from):
            return
        before, self._mark = self._mark, (self.spent, self._units)
        self._num_batches += 1
        if self._num_batches == 1:
            self._first = self.spent
        if self._num_batches > _SKIPPED:
            cost = _DECAY * self._sums[0] + self.spent - before[0]
            units = _DECAY * self._sums[1] + self._units - before[1]
            self._sums = cost, units
            if units > 0:
                self.unit_cost = cost / units

    def count(self, units: float) -> None:
        self._units = units

    @property
    def is_settled(self) -> bool:
        """Whether the pace of this session is known well enough."""
        took = self.spent - self._first
        return self._num_batches >= (_FEWER if took >= _SHARE * self.total else _SETTLED)

    def keep_back(self, *, end: float, evaluation: float | None = None) -> None:
        """Sets what is kept back: for the end of the run, and for an evaluation as it was last measured."""
        progress = self.progress
        if evaluation is not None:
            self.eval_cost = evaluation
        self.reserve = self.eval_cost + end
        if not math.isnan(self._left_from):
            self._progress, self._left_from = progress, self.left

    def resume(self) -> None:
        """From here on it is training that spends."""
        self._left_from = self.left
        self._mark = self.spent, self._units

    def pause(self) -> None:
        """From here on the progress stands still."""
        self._progress, self._left_from = self.progress, math.nan

    @property
    def left(self) -> float:
        return self.total - self.reserve - self.spent

    def progress_after(self, units: float) -> float:
        if math.isnan(self._left_from):
            return self._progress
        if self._left_from <= 0:
            return 1.0
        left = max(0.0, self.left - units * self.unit_cost)
        return max(self._progress, 1 - (1 - self._progress) * left / self._left_from)

    def progress_of_step(self, units: float) -> float:
        self._step_progress = max(self._step_progress, self.progress_after(units / 2))  # what a step costs varies
        return self._step_progress

    def least(self, units: float) -> float:
        """The budget that pays for so many forward units since the start of the run, and for its end."""
        return self.spent + max(0.0, units - self._units) * self.unit_cost + self.reserve

    def state_dict(self) -> dict[str, Any]:
        names = ("eval_cost", "reserve", "unit_cost", "progress", "_step_progress")
        return super().state_dict() | {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.earlier = self.spent
        self.eval_cost, self.reserve = state["eval_cost"], state["reserve"]
        self.unit_cost = state["unit_cost"]
        shrinks = min(1.0, state["total"] / self.total)
        self._progress, self._step_progress = state["progress"] * shrinks, state["_step_progress"] * shrinks
