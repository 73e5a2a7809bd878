"""What the hosts of a run tell each other once a batch, so that all count the same and stop at the same batch."""

from __future__ import annotations

from collections.abc import Sequence

from fastast.distributed.lagged_gather import LaggedGather
from fastast.distributed.ranks import Ranks
from fastast.loggers.counters import NO_COUNTS
from fastast.train.budget_meter import BudgetMeter
from fastast.train.run_log import RunLog


class HostAgreement:
    """Exchanges counts, requests to stop, due checkpoints and what is spent; with several ranks one batch late.

    Args:
        ranks: who takes part. They call every method alike.
        log: takes the counts.
        budget_meter: says what this rank has spent, and takes what all have.
    """

    def __init__(self, ranks: Ranks, log: RunLog, budget_meter: BudgetMeter) -> None:
        self._hosts = LaggedGather(ranks)
        self._log, self._budget_meter = log, budget_meter

    def push(self, request: int, counts: Sequence[float] = NO_COUNTS, *, due: bool = False) -> tuple[int, bool]:
        """Tells the other hosts what this one counted and was asked for; returns what any was asked for.

        Args:
            request: what `stop_if_requested` takes.
            counts: `BatchRecord.host_counts`, between two batches of training.
            due: whether a checkpoint is.
        """
        rows = self._hosts.push((*counts, request, due, self._budget_meter.own()))
        if rows is None:
            return 0, False
        self._log.merge_counts(rows[:, : len(counts)])
        requests, is_due, spent = rows[:, len(counts) :].T
        self._budget_meter.take(spent)
        return int(requests.max()), bool(is_due.max())

    def flush(self) -> None:
        """Completes the counts of the last batch; a request in it is repeated with the next one."""
        if (rows := self._hosts.flush()) is not None:
            self._log.merge_counts(rows[:, : len(NO_COUNTS)])
