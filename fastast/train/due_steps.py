"""The steps that are due: which full batches wait on every rank, and training on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from fastast.distributed.queue_balance import QueueBalancer
from fastast.engine.engine import Engine
from fastast.gates.queue import Rows
from fastast.loggers.device_status import StatusReader
from fastast.plan.schedule import Segment
from fastast.train.pace import RunPace
from fastast.train.run_log import RunLog


class DueSteps:
    """Trains the batches that wait in the queues of all ranks, one offered batch after they were filled.

    The host learns that late how many rows wait, so that it never waits for the device.

    Args:
        engine: has the queue. All ranks call every method alike.
        log: takes the reports and counts the steps.
        pace: sets the learning rate of each step.
    """

    def __init__(self, engine: Engine, log: RunLog, pace: RunPace) -> None:
        self._engine, self._log, self._pace, self._ranks = engine, log, pace, engine.ranks
        self._reports = StatusReader(self._ranks.size, engine.device)
        self._balancer = QueueBalancer(engine.queue.batch_size, self._ranks.size)

    def follow(self, segment: Segment) -> None:
        """Trains what the report of the batch before says, once another batch was offered."""
        self._train(self._reports.push(self._engine.gather_status()), segment)

    def finish(self, segment: Segment) -> None:
        """Trains what the report of the last batch says."""
        self._train(self._reports.flush(), segment)

    def _train(self, statuses: np.ndarray | None, segment: Segment) -> None:
        if statuses is None:
            return
        self._pace.follow_budget()
        self._log.report(statuses, segment, self._engine.guard.lr, self._pace.progress)
        work = self._balancer.decide(statuses[:, 0])
        self._move_rows(work.moves)
        for _ in range(work.num_steps):
            self._pace.follow_budget()
            self._engine.train()
            self._log.count_step(segment.phase, self._engine.train_size)

    def _move_rows(self, moves: Sequence[tuple[int, int, int]]) -> None:
        """Moves waiting rows between ranks: (from, to, rows) of each, the same on all ranks; each is in one at most."""
        queue, ranks = self._engine.queue, self._ranks
        for full, empty, num_rows in moves:
            if ranks.rank == full:
                ranks.send_or_receive(_flat(queue.remove_newest(num_rows)), to=empty, source=None)
            elif ranks.rank == empty:
                rows = queue.empty_rows()
                ranks.send_or_receive(_flat(rows), to=None, source=full)
                queue.append(rows, num_rows)

    def state_dict(self) -> Tensor | None:
        """The report that was not read yet."""
        return self._reports.state_dict()

    def load_state_dict(self, report: Tensor | None, queues: Sequence[dict[str, Any]]) -> None:
        """Resumes where `state_dict` was called.

        Args:
            report: what it returned.
            queues: the extra states of all ranks' queues.
        """
        self._reports.load_state_dict(report)
        self._balancer.load(queues)


def _flat(rows: Rows) -> list[Tensor]:
    """Rows as contiguous tensors, to be sent or filled."""
    return [rows.images.permute(0, 2, 3, 1), rows.labels, rows.ids, rows.weights]
