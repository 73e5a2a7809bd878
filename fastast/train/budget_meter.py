"""Follows a budget of time or energy: what all ranks have spent, agreed once a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from fastast.config import TrainConfig
from fastast.distributed.ranks import Ranks
from fastast.number_text import duration
from fastast.plan.budget import END_S, MIN_STEPS, Budget, MeteredBudget
from fastast.train.run_log import RunLog

# By how much more than the pace asks for a refused budget should be.
_MARGIN = 1.1


class BudgetMeter:
    """Keeps a `MeteredBudget` up to date, the same on all ranks; does nothing for other budgets.

    Args:
        budget: of the run, or None.
        log: counts the run's work.
        ranks: who trains together. They call every method alike.
        config: completed options.

    Attributes:
        measure: what this rank has spent in this session, seconds or joules; NaN once that cannot be read.
        watts: power of this rank's GPU now; None where it is not known.
        write_s: seconds that writing the last checkpoint took.
    """

    def __init__(self, budget: Budget | None, log: RunLog, ranks: Ranks, config: TrainConfig) -> None:
        self._budget = budget if isinstance(budget, MeteredBudget) else None
        self._log, self._ranks, self._last_size = log, ranks, config.train_sizes[-1]
        calibration = config.dense_calibration if config.gate != "dense" else 0  # which leaves the gate nothing
        self._given, self._min_steps = config.budget, max(MIN_STEPS, calibration)
        self._what = f"{self._min_steps} optimizer steps" + (
            " of --dense-calibration" if calibration > MIN_STEPS else ""
        )
        self.measure: Callable[[], float] = lambda: 0.0
        self.watts: Callable[[], float | None] = lambda: None
        self.write_s: Callable[[], float] = lambda: 0.0
        self._is_accepted = self._is_timed = False
        self._end = self._before = 0.0

    def own(self) -> float:
        """What this rank has spent in this session."""
        return 0.0 if self._budget is None else self.measure()

    def take(self, shares: Iterable[float]) -> None:
        """Takes what each rank had spent at its last batch.

        Raises:
            InputError: the energy of a GPU can no longer be read.
        """
        if self._budget is None:
            return
        spent = [float(share) for share in shares]
        if any(map(math.isnan, spent)):
            self._ranks.refuse(
                "--budget: the energy of a GPU can no longer be read (`fastast doctor` says why); continue with "
                "--resume once it can"
            )
        self._budget.take(spent)

    def synchronize(self) -> None:
        """Takes what each rank has spent by now; the hosts wait for each other."""
        if self._budget is None:
            return
        known = self._ranks.all_gather_object((self.measure(), self.watts() or 0.0, self.write_s()))
        spent, watts, write_s = zip(*known, strict=True)
        self.take(spent)
        end_s = END_S + max(write_s)
        self._end = end_s if self._budget.kind == "time" else end_s * sum(watts)

    def read_alone(self) -> float:
        """What is spent by now, as far as this rank can tell without the others."""
        assert self._budget is not None
        if self._budget.kind == "joules" and self._ranks.size > 1:
            return self._budget.spent
        session = self.measure()
        return self._budget.spent if math.isnan(session) else max(self._budget.spent, self._budget.earlier + session)

    def resume(self) -> None:
        """From here on training spends."""
        if self._budget is None:
            return
        self.synchronize()
        self._budget.keep_back(end=self._end)
        self._budget.resume()

    def pause(self) -> None:
        """From here on something else spends."""
        if self._budget is not None:
            self._budget.pause()

    def begin_evaluation(self) -> None:
        """An evaluation begins, or a part of one that stands for the whole."""
        self.synchronize()
        self._before = 0.0 if self._budget is None else self._budget.spent

    def end_evaluation(self, share: float = 1.0) -> None:
        """It ends; the last evaluation is expected to cost as much, if this was `share` of one."""
        self.synchronize()
        self._is_timed = True
        if self._budget is not None:
            self._budget.keep_back(end=self._end, evaluation=(self._budget.spent - self._before) / share)

    @property
    def wants_evaluation(self) -> bool:
        """Whether the pace is known, and the cost of an evaluation is not."""
        if self._budget is None or self._is_timed or self._budget.eval_cost:
            return False
        return self._budget.is_settled

    def confirms_end(self) -> bool:
        """Whether training may end because nothing is left: not before its pace is known, so that a refusal names it.

        Raises:
            InputError: the budget does not pay for the steps that a run needs, and an evaluation.
        """
        if self._budget is None or self._is_accepted or self._budget.earlier > 0:
            return True
        if not self._budget.unit_cost:
            return False
        self.require_steps()
        return True

    def require_steps(self) -> None:
        """Refuses a budget that does not pay for the steps that a run needs, and an evaluation: once, at the start.

        Raises:
            InputError: it does not; what would is named.
        """
        if self._budget is None or self._is_accepted or self._budget.earlier > 0:
            return
        least = self._budget.least(self._log.probe_units + self._min_steps * self._log.step_units(self._last_size))
        self._is_accepted = self._budget.total >= least
        if self._is_accepted:
            return
        enough = _in_words(self._budget.kind, _MARGIN * least)
        self._ranks.refuse(
            f"--budget {self._given}: does not pay for {self._what} and an evaluation at the pace of the "
            f"first ones; use --budget {enough} or more, in another --out or with --resume --force"
        )


def _in_words(kind: str, value: float) -> str:
    if kind == "joules":
        return f"{value / 1e3:.3g}kJ"
    seconds = math.ceil(value)
    return f"{seconds}s" if seconds < 60 else duration(seconds)
