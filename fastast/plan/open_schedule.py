"""The segments of a run that ends when its budget is spent."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from fastast.cost_model import DENSE_COST
from fastast.phases import ANNEAL, DENSE, GATED, WARMUP
from fastast.plan.budget import Budget
from fastast.plan.schedule import MIN_EVALUATIONS, Segment, num_affordable

# An epoch's end that comes this little before the place of an evaluation is as good, in distances between two.
_NEARLY = 0.1


class OpenSchedule:
    """The segments of a run that ends when its budget is spent: how many there are shows as it trains.

    Epochs follow each other, and a segment may end at any batch: where the budget is spent, and where what is left is
    just enough for the anneal epochs.

    Args:
        budget: what the run may spend.
        num_samples: size of the training set, N.
        warmup_epochs, anneal_epochs: dense passes at the start and at the end; ignored when `gated` is False.
        gated: False for a run that is dense throughout.
        batch_size: samples of a step, over all ranks.
        last_unit: cost of a forward at the last size of training pictures, in forward units.
        train_cost, num_val, averages, eval_every: as of `Schedule`.
    """

    def __init__(
        self,
        budget: Budget,
        num_samples: int,
        *,
        warmup_epochs: float = 0.0,
        anneal_epochs: float = 0.0,
        gated: bool,
        batch_size: int,
        last_unit: float = 1.0,
        train_cost: float = DENSE_COST,
        num_val: int = 0,
        averages: bool = False,
        eval_every: float | None = None,
    ) -> None:
        self.budget = budget
        self.num_epochs = None  # not known before the end
        self._num_samples, self._num_val, self._averages = num_samples, num_val, averages
        self._warmup_end = round(warmup_epochs * num_samples) if gated else 0
        self._anneal_units = train_cost * last_unit * num_samples * anneal_epochs if gated else 0.0
        self._gated = gated
        self._step_units = train_cost * last_unit * batch_size
        self._eval_units = None if eval_every is None else eval_every * DENSE_COST * num_samples
        # From here on: what the run has come to.
        self._anneals, self._is_over = False, False
        self._ended: Segment | None = None  # the last segment that ended
        self._epoch_end = [0.0, 0.0]  # progress and units at the end of the last epoch

    def segment_at(self, offered: int) -> Segment | None:
        """The segment that begins once `offered` samples have been offered, the end of one; None at the end.

        It may end earlier, as `end` then says.
        """
        if self._ended is not None and self._ended.offered_before == offered:
            return self._ended
        if self._is_over:
            return None
        epoch, start = divmod(offered, self._num_samples)
        end = self._num_samples
        if not self._gated:
            phase = DENSE
        elif self._anneals:
            phase = ANNEAL
        elif offered < self._warmup_end:
            phase, end = WARMUP, min(end, start + self._warmup_end - offered)
        else:
            phase = GATED
        return Segment(
            epoch=epoch,
            phase=phase,
            start=start,
            stop=end,
            offered_before=offered,
            ends_epoch=end == self._num_samples,
            evaluates=False,  # `end` decides
        )

    def is_due(self, segment: Segment, pending: float) -> bool:
        """Whether a segment ends here, between two batches.

        Args:
            segment: the one that is trained.
            pending: forward units that batches which were offered already will still take.
        """
        return not self._goes_on(pending) or self._anneals_now(segment, pending)

    def _goes_on(self, pending: float) -> bool:
        """Whether another step comes closer to the budget; one that ends as far beyond it would be in vain.

        Its learning rate would be zero.
        """
        return self.budget.left > (pending + self._step_units / 2) * self.budget.unit_cost

    def _anneals_now(self, segment: Segment, pending: float) -> bool:
        anneals = bool(self._anneal_units) and segment.phase != ANNEAL
        return anneals and not self.budget.pays_for(pending + self._anneal_units)

    def end(self, segment: Segment, stop: int, units: float) -> Segment:
        """The segment as it ended.

        Args:
            segment: as it was planned.
            stop: the position in the epoch's order that it has come to.
            units: forward units of the run so far.
        """
        self._is_over = not self._goes_on(0.0)
        self._anneals = self._anneals or self._anneals_now(segment, 0.0)
        ends_epoch = self._is_over or stop == self._num_samples
        ended = Segment(
            epoch=segment.epoch,
            phase=segment.phase,
            start=segment.start,
            stop=stop,
            offered_before=segment.offered_before,
            ends_epoch=ends_epoch,
            evaluates=ends_epoch and self._evaluates(units),
        )
        self._ended = ended
        if ends_epoch:
            self._epoch_end = [self.budget.progress, units]
        return ended

    def _evaluates(self, units: float) -> bool:
        if self._is_over:
            return True
        if not self.budget.pays_for_evaluation:
            return False
        budget, (progress, before) = self.budget, self._epoch_end
        if self._eval_units is not None:
            return math.floor(units / self._eval_units + 1e-9) > math.floor(before / self._eval_units + 1e-9)
        # What is kept back of a time or an energy is for the last evaluation.
        cost = self._num_val if budget.kind == "ep" else budget.eval_cost / (2 if self._averages else 1)
        num = num_affordable(budget.total / cost, averages=self._averages) if cost else MIN_EVALUATIONS

        def passed(share: float) -> int:
            """Places of evaluations before the last one."""
            return min(math.floor(share * num + _NEARLY), math.ceil(num) - 1)

        return passed(budget.progress) > passed(progress)

    def offered_share(self, segment: Segment) -> float:
        """The progress, in [0, 1], at which a segment begins."""
        return self.budget.progress

    def progress(self, offered: float) -> float:
        """The progress now, whatever was offered."""
        return self.budget.progress

    def cost_share(self, offered: float) -> float:
        """The progress."""
        return self.budget.progress

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {
            "budget": self.budget.state_dict(),
            "anneals": self._anneals,
            "is_over": self._is_over,
            "ended": None if self._ended is None else dataclasses.asdict(self._ended),
            "epoch_end": list(self._epoch_end),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes where `state_dict` was called."""
        self.budget.load_state_dict(state["budget"])
        is_other = state["budget"]["total"] != self.budget.total
        self._anneals, self._is_over = state["anneals"], state["is_over"] and not (is_other and self._goes_on(0.0))
        self._ended = None if state["ended"] is None else Segment(**state["ended"])
        self._epoch_end = state["epoch_end"]
