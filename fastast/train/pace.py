"""The progress of a run, and what follows it: learning rate, picture size, the end of what a budget pays for."""

from __future__ import annotations

from fastast.config import TrainConfig
from fastast.config.train_sizes import size_at
from fastast.engine.engine import Engine
from fastast.gates.registry import AUTO
from fastast.plan.epoch_plan import EpochPlanner
from fastast.plan.open_schedule import OpenSchedule
from fastast.plan.schedule import Segment, lr_at
from fastast.train.budget_meter import BudgetMeter
from fastast.train.run_log import RunLog


class RunPace:
    """Sets the learning rate of each step by the share of the training that is done.

    Args:
        config: completed options.
        planner: has the schedule, and the budget if there is one.
        engine: gets the learning rates.
        log: counts the work.
        budget_meter: says when the budget is spent.

    Attributes:
        progress: share of the training, in [0, 1], that the learning rate of the last step stands for.
    """

    def __init__(
        self,
        config: TrainConfig,
        planner: EpochPlanner,
        engine: Engine,
        log: RunLog,
        budget_meter: BudgetMeter,
    ) -> None:
        assert config.lr is not None, "complete_config was not called"
        self._planner, self._schedule, self._budget = planner, planner.schedule, planner.budget
        self._engine, self._log, self._budget_meter = engine, log, budget_meter
        self._target, self._train_sizes = config.target, config.train_sizes
        self._peak_lr, self._warmup = config.lr, config.lr_warmup
        self.progress = 0.0

    def set_progress(self, progress: float) -> None:
        """Sets the learning rate of the next steps."""
        self.progress = progress
        self._engine.set_lr(lr_at(progress, peak=self._peak_lr, warmup=self._warmup))

    def follow_position(self, segment: Segment, first: int, last: int) -> None:
        """Without a budget: the steps of a batch get the learning rate of its middle.

        So that neither the first step nor the last has a learning rate of zero.

        Args:
            segment: of the batch.
            first, last: positions within it that the batch covers.
        """
        if self._budget is None:
            self.set_progress(self._schedule.progress(segment.offered_before + (first + last) / 2))

    def follow_budget(self) -> None:
        """With a budget: the next step gets the learning rate of its middle, by what is spent."""
        if self._budget is not None:
            self.count_spent()
            self.set_progress(self._budget.progress_of_step(self._log.step_units(self._engine.train_size)))

    def count_spent(self) -> None:
        """Tells the budget of the work so far."""
        if self._budget is not None:
            self._budget.count(self._log.forward_units)

    def train_size(self, segment: Segment, first: int) -> int:
        """The size of a batch that is about to be read, by the first position of the segment that it covers."""
        return size_at(self._schedule.progress(segment.offered_before + first), self._train_sizes)

    def is_due(self, segment: Segment) -> bool:
        """Whether a segment that has begun ends because of the budget; the same on all ranks, and after a resume."""
        if not isinstance(self._schedule, OpenSchedule):
            return False  # it ends where it was planned to
        self.count_spent()
        share = 1.0
        if self._planner.scores(segment):
            share = self._log.status.target if self._target == AUTO else self._planner.planned_share
        pending = self._log.pending_units(share, self._engine.train_size)
        return self._schedule.is_due(segment, pending) and self._budget_meter.confirms_end()
