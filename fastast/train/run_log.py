"""Counts what a run does, and writes its lines."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from fastast.config import TrainConfig
from fastast.distributed.ranks import Ranks
from fastast.energy.energy_meter import EnergyMeter
from fastast.engine.evaluation import Accuracy
from fastast.errors import InputError
from fastast.loggers.console import Reporter, epoch_detail, step_detail
from fastast.loggers.counters import BatchRecord, Counters
from fastast.loggers.device_status import DeviceStatus, merge_status
from fastast.loggers.metrics import VALIDATION, MetricsWriter
from fastast.number_text import percent
from fastast.phases import GATED
from fastast.plan.epoch_plan import EpochPlan, EpochPlanner
from fastast.plan.schedule import Segment
from fastast.run_folder import RunFolder

# A run whose steps are skipped this often in a row has diverged.
MAX_NONFINITE_RUN = 10


class RunLog:
    """Counts a run's work and writes its lines; it decides nothing.

    What the host knows of a batch at once waits here until the device has reported on it, one batch late.

    Args:
        config: completed options.
        planner: its schedule and its gate.
        folder: where the lines go.
        meter: measures the power of step lines.
        reporter: shows progress.
        num_train: size of the training set, N.
        ranks: who trains together; counts are of all of them, and the same on all.

    Attributes:
        counters: counts and seconds by phase.
        offered: int32[N], how often this rank was offered each training sample.
        epochs: epoch lines so far.
        ema: what the last evaluation said of the average of the weights; None where it did not try it.
        by_class: of the last evaluation, pictures of each class, and those that were right; None before it.
        status: the last report of the device that was logged.
        probe: the `probe` entry of `summary.json`, once there is one; its accuracy comes with `finish_probe`.
    """

    def __init__(
        self,
        config: TrainConfig,
        planner: EpochPlanner,
        folder: RunFolder,
        meter: EnergyMeter,
        reporter: Reporter,
        *,
        num_train: int,
        ranks: Ranks,
    ) -> None:
        assert config.batch_size is not None, "complete_config was not called"
        self.counters = Counters()
        self.offered = np.zeros(num_train, np.int32)
        self.epochs: list[dict[str, Any]] = []
        self.ema: dict[str, Any] | None = None
        self.by_class: list[list[int]] | None = None
        self.status = DeviceStatus()
        self.probe: dict[str, Any] | None = None
        self._config, self._planner, self._folder = config, planner, folder
        self._meter, self._reporter = meter, reporter
        self._ranks, self._batch_size = ranks, config.batch_size
        self._metrics = MetricsWriter(log_every=config.log_every)
        self._pending: list[BatchRecord] = []  # batches that the device has not reported on
        self._num_local = 0  # of these, the last ones, whose counts are of this rank alone
        self._epoch_status = self.status
        self._target: float | str | None = None

    def begin_segment(self, segment: Segment, plan: EpochPlan) -> None:
        """Notes the share that the gate aims at in a segment."""
        self._target = self._planner.target(segment, plan)

    def add(self, record: BatchRecord) -> None:
        """Takes what the host knows of a batch on this rank; the device reports on it later."""
        record.backward = self.counters.whole.backward
        self._pending.append(record)
        self.offered[record.ids] += 1
        self._num_local += 1

    def merge_counts(self, rows: np.ndarray) -> None:
        """Completes the oldest record whose counts are of this rank alone, if there is one.

        Args:
            rows: float64[ranks, fields], `BatchRecord.host_counts` of that batch on all ranks.
        """
        if self._num_local:
            self._pending[-self._num_local].set_host_counts(rows)
            self._num_local -= 1

    def report(self, statuses: np.ndarray, segment: Segment, lr: float, progress: float) -> None:
        """Logs the oldest batch that waits for its report.

        Args:
            statuses: float64[ranks, fields] of `DeviceStatus`, as of that batch.
            segment: of the batch.
            lr, progress: the learning rate and the progress that it follows, for the line.

        Raises:
            InputError: the training diverged.
        """
        status = merge_status(statuses)
        if status.overflow:
            raise RuntimeError(f"the sample queue overflowed by {status.overflow:.0f} rows: this is a bug in fastast")
        if status.nonfinite_run >= MAX_NONFINITE_RUN:
            raise InputError(
                f"{MAX_NONFINITE_RUN} steps in a row had a non-finite loss or gradient (epoch {segment.epoch + 1}); "
                f"lower --lr (now {self._config.lr:g}) or use --precision fp32"
            )
        record = self._pending.pop(0)
        record.counts.selected = int(status.pushed - self.status.pushed)
        self.counters.add(segment.phase, record.train_size, record.counts)
        self.status = status
        self._write_step(segment, record, lr, progress)

    def count_step(self, phase: str, train_size: int) -> None:
        """Counts a step over a full batch on every rank."""
        counts = self.counters.of(phase, train_size)
        counts.backward += self._batch_size * self._ranks.size
        counts.steps += 1

    def step_units(self, train_size: int) -> float:
        """Forward units of a step."""
        return self._planner.train_cost * self._batch_size * self._ranks.size * self._planner.units[train_size]

    @property
    def probe_units(self) -> float:
        """Forward units of the probe."""
        return 0.0 if self.probe is None else self.probe["forward_units"]

    @property
    def evaluated(self) -> list[tuple[int, float]]:
        """Epoch and top-1 accuracy of all evaluations so far; that of the probe is epoch 0."""
        probe = [(0, self.probe["val_top1"])] if self.probe is not None and "val_top1" in self.probe else []
        return probe + [(line["epoch"], line["val_top1"]) for line in self.epochs if line["val_top1"] is not None]

    @property
    def forward_units(self) -> float:
        """Forward units so far: of a probe, of all steps, and of scoring as far as the device has reported."""
        return self.probe_units + sum(
            self._planner.units[size]
            * (self._planner.train_cost * counts.backward + self._planner.gate.score_units * counts.scored)
            for sizes in self.counters.phases.values()
            for size, counts in sizes.items()
        )

    def pending_units(self, share: float, train_size: int) -> float:
        """Forward units that batches which were offered will still take, as far as that can be known.

        Args:
            share: of the samples of batches that were not reported, the part that will be selected.
            train_size: of the steps, pixels.
        """
        selected = self.status.pushed + share * sum(record.rows for record in self._pending)
        steps = max(0, math.floor((selected - self.counters.whole.backward) / (self._batch_size * self._ranks.size)))
        return sum(record.units for record in self._pending) + self.step_units(train_size) * steps

    def _threshold(self, segment: Segment) -> float | None:
        return self.status.threshold if self._planner.gate.scores and segment.phase == GATED else None

    def _write_step(self, segment: Segment, record: BatchRecord, lr: float, progress: float) -> None:
        whole = self.counters.whole
        line = self._metrics.step_line(
            whole,
            self.status,
            epoch=segment.epoch,
            phase=segment.phase,
            train_size=record.train_size,
            threshold=self._threshold(segment),
            backward=record.backward,
            lr=lr,
            progress=progress,
            gpu_w=self._meter.watts,
        )
        if line is not None:
            self._folder.append_metrics(line)
            position = segment.offered_before + record.last
            done = self._planner.schedule.cost_share(position)
            self._reporter.advance(done, step_detail(line, whole.seconds * (1 / done - 1) if done else None))

    def finish_epoch(
        self,
        status: DeviceStatus,
        segment: Segment,
        *,
        accuracy: Accuracy | None,
        ema: dict[str, Any] | None,
        hist: dict[str, Any] | None,
        gpu_j: float | None,
    ) -> None:
        """Writes an epoch's line and shows it.

        Args:
            status: the device's, once all of the epoch's steps are done.
            segment: the last of the epoch.
            accuracy: on the validation pictures, None where the epoch was not evaluated.
            ema: what the evaluation said of the average of the weights, None where it did not try it.
            hist: losses of selected and skipped samples, or None.
            gpu_j: joules of the epoch, or None.
        """
        validation = self._take_accuracy(accuracy)
        if accuracy is not None:
            self.ema = ema
        self.status = status
        self._warn(self._epoch_status, status)
        self._epoch_status = status
        before = sum(line.get("forward_units", math.nan) for line in self.epochs)  # older versions wrote none
        line = self._metrics.epoch_line(
            self.counters.whole,
            status,
            epoch=segment.epoch,
            phase=segment.phase,
            threshold=self._threshold(segment),
            target=self.status.target if isinstance(self._target, str) else self._target,
            validation=validation,
            hist=hist,
            gpu_j=gpu_j,
            forward_units=self.forward_units - before,
        )
        self.epochs.append(line)
        self._folder.append_metrics(line)
        num_epochs, budget = self._planner.schedule.num_epochs, self._planner.budget
        of = f"/{num_epochs}" if budget is None else f" ({percent(budget.progress, 0)} of the training done)"
        self._reporter.note(epoch_detail(line, of))

    def finish_probe(self, accuracy: Accuracy) -> None:
        """Adds its accuracy to the probe."""
        assert self.probe is not None
        self.probe |= self._take_accuracy(accuracy)

    def _take_accuracy(self, accuracy: Accuracy | None) -> dict[str, float | None]:
        """The VALIDATION figures."""
        if accuracy is None:
            return dict.fromkeys(VALIDATION)
        self.by_class = [accuracy.counts.tolist(), accuracy.hits.tolist()]
        figures = (accuracy.loss, accuracy.top1, accuracy.top5, accuracy.balanced_top1)
        return dict(zip(VALIDATION, figures, strict=True))

    def _warn(self, before: DeviceStatus, now: DeviceStatus) -> None:
        """Notes what went wrong in an epoch."""
        for count, what in (
            (now.nan_scores - before.nan_scores, "scores were not a number; each such sample was trained once for it"),
            (now.nonfinite - before.nonfinite, "steps had a non-finite loss or gradient and were undone"),
            (now.scaler_skips - before.scaler_skips, "steps overflowed fp16 and were skipped by the loss scaler"),
        ):
            if count:
                self._reporter.note(f"{count:,.0f} {what}")

    def merge_offered(self) -> None:
        """Gives the first rank the counts of all; those of the others become zero."""
        self._ranks.all_reduce(torch.from_numpy(self.offered))
        if not self._ranks.is_first:
            self.offered[:] = 0

    @property
    def num_nonfinite(self) -> int:
        """Steps skipped for a non-finite loss or gradient."""
        return int(self.status.nonfinite)

    @property
    def num_leftover(self) -> int:
        """Selected samples that did not fill a batch."""
        return int(self.status.pushed) - self.counters.whole.backward

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors, at any place between two batches, once `offered` is merged."""
        return {
            "counters": self.counters.state_dict(),
            "offered": torch.from_numpy(self.offered),
            "epochs": self.epochs,
            "by_class": self.by_class,
            "ema": self.ema,
            "metrics": self._metrics.state_dict(),
            "pending": [record.state_dict() for record in self._pending],
            "status": list(self.status),
            "epoch_status": list(self._epoch_status),
            "target": self._target,
            "probe": self.probe,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes where `state_dict` was called."""
        self.counters.load_state_dict(state["counters"])
        self.offered[:] = state["offered"].numpy() if self._ranks.is_first else 0
        self.epochs, self.by_class, self.ema = state["epochs"], state["by_class"], state["ema"]
        self._metrics.load_state_dict(state["metrics"])
        self._pending = [BatchRecord.from_state(record) for record in state["pending"]]
        self.status, self._epoch_status = DeviceStatus(*state["status"]), DeviceStatus(*state["epoch_status"])
        self._target = state["target"]
        self.probe = state["probe"]
