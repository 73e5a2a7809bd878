"""What a run has done: counts, and the lines of `metrics.jsonl`, learned from the device one batch late."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from fastast.config import TrainConfig
from fastast.energy.meter import EnergyMeter
from fastast.errors import InputError
from fastast.gate import LaggedReader
from fastast.loggers.console import Reporter, epoch_detail, step_detail
from fastast.run_folder import RunFolder
from fastast.train.account import Account, PhaseCounts
from fastast.train.distributed import Ranks, fullest_to_emptiest
from fastast.train.evaluate import Accuracy
from fastast.train.metrics import MetricsWriter
from fastast.train.passage import Moment
from fastast.train.planner import Planner
from fastast.train.schedule import Stretch
from fastast.train.status import NUM_FIELDS, Status, combined

# A run whose steps are skipped this often in a row has diverged.
MAX_NONFINITE_RUN = 10


class Ready(NamedTuple):
    """What a report calls for.

    Attributes:
        moves: (from, to, rows) of waiting rows between ranks, done first.
        num_steps: full batches that then stand ready on every rank; all are to be trained.
    """

    moves: Sequence[tuple[int, int, int]] = ()
    num_steps: int = 0


class Journal:
    """Counts a run's work and writes its lines.

    What the host knows of a batch at once waits here until the device has reported on it, one batch late.

    Args:
        config: completed options.
        planner: its schedule and its gate's policy.
        folder: where the lines go.
        meter: gives the power of step lines.
        reporter: shows progress.
        num_train: size of the training set, N.
        device: where reports come from.
        ranks: who trains together; counts are of all of them, and the same on all.

    Attributes:
        account: counts and seconds by phase.
        offered: int32[N], how often this rank was offered each training sample.
        epochs: epoch lines so far.
        status: the device's last report that was taken in.
    """

    def __init__(
        self,
        config: TrainConfig,
        planner: Planner,
        folder: RunFolder,
        meter: EnergyMeter,
        reporter: Reporter,
        *,
        num_train: int,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        assert config.batch_size is not None, "complete_config was not called"
        self.account = Account()
        self.offered = np.zeros(num_train, np.int32)
        self.epochs: list[dict[str, Any]] = []
        self.status = Status()
        self._config, self._planner, self._folder = config, planner, folder
        self._meter, self._reporter = meter, reporter
        self._ranks, self._batch_size = ranks, config.batch_size
        self._metrics = MetricsWriter(log_every=config.log_every)
        self._reports = LaggedReader(NUM_FIELDS * ranks.size, device, torch.float64)
        self._popped = 0  # rows that each rank's queue has handed out
        self._moved = np.zeros(ranks.size, np.int64)  # rows that came to each rank's queue, less those that went
        self._moments: list[Moment] = []  # of the batches that the device has not reported on
        self._epoch_status = self.status

    def send(self, vector: torch.Tensor, moment: Moment) -> np.ndarray | None:
        """Sends a batch's report off; returns that of the batch before, if there is one to `learn` from.

        Args:
            vector: of `Engine.status`.
            moment: what the host knows of the batch, on this rank.
        """
        moment.backward = self.account.whole.backward
        self._moments.append(moment)
        self.offered[moment.ids] += 1
        self._add_ranks(moment.counts)
        return self._reports.push(vector)

    def _add_ranks(self, counts: PhaseCounts) -> None:
        names = ("offered", "decoded", "scored", "data_wait")
        for name, value in zip(names, self._ranks.sums([getattr(counts, name) for name in names]), strict=True):
            setattr(counts, name, type(getattr(counts, name))(value))
        counts.data_wait /= self._ranks.size

    def flush(self) -> np.ndarray | None:
        """The last report, which is waited for; None if there is none to learn from."""
        return self._reports.flush()

    def learn(self, report: np.ndarray | None, stretch: Stretch, lr: float) -> Ready:
        """Takes in a report.

        Args:
            report: of `send` or `flush`.
            stretch: that it is of.
            lr: the learning rate, for the line.

        Returns:
            What is to be done about it, at once; the caller says with `trained` when a step is done.

        Raises:
            InputError: the training diverged.
        """
        if report is None:
            return Ready()
        rows = report.reshape(-1, NUM_FIELDS)
        status = combined(rows)
        if status.overflow:
            raise RuntimeError(f"the sample queue overflowed by {status.overflow:.0f} rows: this is a bug in fastast")
        if status.nonfinite_run >= MAX_NONFINITE_RUN:
            raise InputError(
                f"{MAX_NONFINITE_RUN} steps in a row had a non-finite loss or gradient (epoch {stretch.epoch + 1}); "
                f"lower --lr (now {self._config.lr:g}) or use --precision fp32"
            )
        moment = self._moments.pop(0)
        moment.counts.selected = int(status.pushed - self.status.pushed)
        self.account.phases[stretch.phase] += moment.counts
        self.status = status
        self._write_step(stretch, moment, lr)
        fills = rows[:, 0].astype(np.int64) + self._moved - self._popped
        moves = fullest_to_emptiest(fills.tolist(), self._batch_size)
        for full, empty, num_rows in moves:
            for rank, change in ((full, -num_rows), (empty, num_rows)):
                fills[rank] += change
                self._moved[rank] += change
        return Ready(moves, int(fills.min()) // self._batch_size)

    def trained(self, phase: str) -> None:
        """Counts one step over a full batch on every rank."""
        self._popped += self._batch_size
        counts = self.account.phases[phase]
        counts.backward += self._batch_size * self._ranks.size
        counts.steps += 1

    def _write_step(self, stretch: Stretch, moment: Moment, lr: float) -> None:
        whole = self.account.whole
        line = self._metrics.step_line(
            whole,
            self.status,
            stretch=stretch,
            scoring=self._planner.policy.scores,
            backward=moment.backward,
            lr=lr,
            gpu_w=self._meter.watts,
        )
        if line is not None:
            self._folder.append_metrics(line)
            position = stretch.offered_before + moment.last
            done = self._planner.schedule.cost_share(position, self._planner.policy.cost)
            self._reporter.advance(done, step_detail(line, whole.seconds * (1 / done - 1)))

    def finish_epoch(
        self,
        status: Status,
        stretch: Stretch,
        *,
        accuracy: Accuracy,
        hist: dict[str, Any] | None,
        gpu_j: float | None,
    ) -> dict[str, Any]:
        """Writes an epoch's line and shows it.

        Args:
            status: the device's, once all of the epoch's steps are done.
            stretch: the last of the epoch.
            accuracy: on the validation split.
            hist: losses of selected and skipped samples, or None.
            gpu_j: joules of the epoch, or None.

        Returns:
            The line.
        """
        self.status = status
        self._warn(self._epoch_status, status)
        self._epoch_status = status
        line = self._metrics.epoch_line(
            self.account.whole,
            status,
            stretch=stretch,
            scoring=self._planner.policy.scores,
            accuracy=accuracy,
            hist=hist,
            gpu_j=gpu_j,
        )
        self.epochs.append(line)
        self._folder.append_metrics(line)
        self._reporter.note(epoch_detail(line, self._planner.schedule.num_epochs))
        return line

    def _warn(self, before: Status, now: Status) -> None:
        """Says what an epoch had that it should not have had."""
        for count, what in (
            (now.nan_scores - before.nan_scores, "scores were not a number; each such sample was trained once for it"),
            (now.nonfinite - before.nonfinite, "steps had a non-finite loss or gradient and were undone"),
            (now.scaler_skips - before.scaler_skips, "steps overflowed fp16 and were skipped by the loss scaler"),
        ):
            if count:
                self._reporter.note(f"{count:,.0f} {what}")

    def merge_offered(self) -> None:
        """Gives the first rank the counts of all; the others begin anew."""
        self._ranks.reduce(torch.from_numpy(self.offered))
        if not self._ranks.is_first:
            self.offered[:] = 0

    @property
    def num_nonfinite(self) -> int:
        """Steps skipped for a non-finite loss or gradient."""
        return int(self.status.nonfinite)

    @property
    def num_leftover(self) -> int:
        """Selected samples that did not fill a batch."""
        return int(self.status.pushed) - self.account.whole.backward

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors, at any place between two batches."""
        return {
            "account": self.account.state_dict(),
            "offered": torch.from_numpy(self.offered),
            "epochs": self.epochs,
            "metrics": self._metrics.state_dict(),
            "report": self._reports.state(),
            "moments": [moment.state_dict() for moment in self._moments],
            "popped": self._popped,
            "moved": self._moved.tolist(),
            "status": list(self.status),
            "epoch_status": list(self._epoch_status),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was called."""
        self.account = Account.from_state(state["account"])
        self.offered[:] = state["offered"].numpy()
        self.epochs = state["epochs"]
        self._metrics.load_state_dict(state["metrics"])
        self._reports.restore(state["report"])
        self._moments = [Moment.from_state(moment) for moment in state["moments"]]
        self._popped = state["popped"]
        self._moved[:] = state["moved"]
        self.status, self._epoch_status = Status(*state["status"]), Status(*state["epoch_status"])
