"""The lines of `metrics.jsonl`, from what the device reported one step late."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from fastast.loggers.counters import PhaseCounts
from fastast.loggers.device_status import DeviceStatus

VALIDATION = ("val_loss", "val_top1", "val_top5", "val_balanced_top1")  # nats, and shares in [0, 1]


class Baseline(NamedTuple):
    """What the run had done when the sums of a line started."""

    offered: int
    backward: int
    data_wait: float
    seconds: float
    status: DeviceStatus

    @classmethod
    def of(cls, whole: PhaseCounts, status: DeviceStatus) -> Baseline:
        """What the run has done now."""
        return cls(whole.offered, whole.backward, whole.data_wait, whole.seconds, status)


class MetricsWriter:
    """Makes a step line every `log_every` offered batches, and the lines of epochs.

    Args:
        log_every: offered batches between two step lines.

    Attributes:
        num_batches: offered batches so far.
    """

    def __init__(self, *, log_every: int) -> None:
        self._log_every = log_every
        self.num_batches = 0
        self.restart(PhaseCounts(), DeviceStatus())

    def restart(self, whole: PhaseCounts, status: DeviceStatus) -> None:
        """Starts the sums of an epoch: `whole` counts the run so far."""
        self._line_from = self._epoch_from = Baseline.of(whole, status)
        self._epoch_began = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {
            "num_batches": self.num_batches,
            "line_from": list(self._line_from[:4]) + list(self._line_from.status),
            "epoch_from": list(self._epoch_from[:4]) + list(self._epoch_from.status),
            "epoch_s": time.monotonic() - self._epoch_began,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was called."""
        self.num_batches = state["num_batches"]
        line, epoch = state["line_from"], state["epoch_from"]
        self._line_from = Baseline(line[0], line[1], line[2], line[3], DeviceStatus(*line[4:]))
        self._epoch_from = Baseline(epoch[0], epoch[1], epoch[2], epoch[3], DeviceStatus(*epoch[4:]))
        self._epoch_began = time.monotonic() - state["epoch_s"]

    def step_line(
        self,
        whole: PhaseCounts,
        status: DeviceStatus,
        *,
        epoch: int,
        phase: str,
        train_size: int,
        threshold: float | None,
        backward: int,
        lr: float,
        progress: float,
        gpu_w: float | None,
    ) -> dict[str, Any] | None:
        """A step line if one is due, else None.

        Args:
            whole: counts the run up to the batch that `status` is of.
            status: the device's report.
            epoch: its index, from 0.
            phase: of the batch.
            train_size: side of its pictures, pixels.
            threshold: of the gate, or None where it does not score.
            backward: samples that the steps of `status` trained.
            lr: the learning rate.
            progress: share of the run that the learning rate follows, in [0, 1].
            gpu_w: power, or None.
        """
        self.num_batches += 1
        if self.num_batches % self._log_every:
            return None
        since, self._line_from = self._line_from, Baseline.of(whole, status)
        seconds = whole.seconds - since.seconds
        offered = whole.offered - since.offered
        return {
            "kind": "step",
            "epoch": epoch + 1,
            "phase": phase,
            "step": int(status.steps),
            "offered": whole.offered,
            "backward": backward,
            "loss": _mean_loss(since.status, status),
            "lr": lr,
            "activation": (status.pushed - since.status.pushed) / offered if offered else None,
            "threshold": threshold,
            "progress": progress,
            "train_size": train_size,
            "offered_per_s": offered / seconds if seconds > 0 else None,
            "data_wait_s": whole.data_wait - since.data_wait,
            "gpu_w": gpu_w,
        }

    def epoch_line(
        self,
        whole: PhaseCounts,
        status: DeviceStatus,
        *,
        epoch: int,
        phase: str,
        threshold: float | None,
        target: float | None,
        validation: dict[str, float | None],
        hist: dict[str, Any] | None,
        gpu_j: float | None,
        forward_units: float,
    ) -> dict[str, Any]:
        """An epoch's line, once all of its steps are done; starts the sums of the next.

        Args:
            whole, status, epoch, phase, threshold: as for `step_line`.
            target: share of the offered that the gate aimed at, 1 where it did not run; None if it has no target.
            validation: the VALIDATION figures, None where the epoch was not evaluated.
            hist: losses of selected and skipped samples, or None.
            gpu_j: joules of the epoch, or None.
            forward_units: work of the epoch, of the first one with that of the probe; NaN where it is not known.
        """
        since = self._epoch_from.status
        offered = whole.offered - self._epoch_from.offered
        line = {
            "kind": "epoch",
            "epoch": epoch + 1,
            "phase": phase,
            "train_loss": _mean_loss(since, status),
            **validation,
            "offered": offered,
            "backward": whole.backward - self._epoch_from.backward,
            "forward_units": forward_units,
            "activation": (status.pushed - since.pushed) / offered if offered else None,
            "threshold": threshold,
            "target": target,
            "seconds": time.monotonic() - self._epoch_began,
            "gpu_j": gpu_j,
            "hist": hist,
        }
        self.restart(whole, status)
        return line


def _mean_loss(since: DeviceStatus, status: DeviceStatus) -> float | None:
    rows = status.loss_rows - since.loss_rows
    return (status.loss_sum - since.loss_sum) / rows if rows else None
