"""The lines of `metrics.jsonl`, made from what the device reported one step late."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from fastast.train.account import PhaseCounts
from fastast.train.engine import Status
from fastast.train.evaluate import Accuracy
from fastast.train.schedule import GATED, Stretch
from fastast.train.steps import HIST_BINS, HIST_WIDTH, ScoreStep


@dataclass(slots=True)
class Moment:
    """What the host knew when a status was sent off.

    Attributes:
        offered: samples offered since the start of the run.
        data_wait: seconds of waiting for pictures since then.
        seconds: seconds of the loop since then, evaluation left out.
    """

    offered: int
    data_wait: float
    seconds: float


class MetricsWriter:
    """Makes a step line every `log_every` offered batches, and the lines of epochs.

    Args:
        log_every: offered batches between two step lines.
        batch_size: rows of an optimizer step.

    Attributes:
        num_batches: offered batches so far.
    """

    def __init__(self, *, log_every: int, batch_size: int) -> None:
        self._log_every = log_every
        self._batch_size = batch_size
        self.num_batches = 0
        self.restart(PhaseCounts(), Status())

    def restart(self, whole: PhaseCounts, status: Status) -> None:
        """Starts the sums of an epoch: `whole` counts the run so far."""
        self._line_from = self._epoch_from = (Moment(whole.offered, whole.data_wait, whole.seconds), status)
        self._epoch_began = time.monotonic()

    def step_line(
        self, moment: Moment, status: Status, *, stretch: Stretch, scoring: bool, lr: float, gpu_w: float | None
    ) -> dict[str, Any] | None:
        """A step line if one is due, else None."""
        self.num_batches += 1
        if self.num_batches % self._log_every:
            return None
        since_moment, since = self._line_from
        self._line_from = (moment, status)
        seconds = moment.seconds - since_moment.seconds
        offered = moment.offered - since_moment.offered
        return {
            "kind": "step",
            "epoch": stretch.epoch + 1,
            "phase": stretch.phase,
            "step": int(status.steps),
            "offered": moment.offered,
            "backward": int(status.steps) * self._batch_size,
            "loss": _mean_loss(since, status),
            "lr": lr,
            "activation": (status.pushed - since.pushed) / offered if offered else None,
            "threshold": status.threshold if scoring and stretch.phase == GATED else None,
            "offered_per_s": offered / seconds if seconds > 0 else None,
            "data_wait_s": moment.data_wait - since_moment.data_wait,
            "gpu_w": gpu_w,
        }

    def epoch_line(
        self,
        whole: PhaseCounts,
        status: Status,
        *,
        stretch: Stretch,
        scoring: bool,
        accuracy: Accuracy,
        hist: dict[str, Any] | None,
        gpu_j: float | None,
    ) -> dict[str, Any]:
        """An epoch's line, once all of its steps are done; starts the sums of the next."""
        moment, since = self._epoch_from
        offered = whole.offered - moment.offered
        line = {
            "kind": "epoch",
            "epoch": stretch.epoch + 1,
            "phase": stretch.phase,
            "train_loss": _mean_loss(since, status),
            "val_loss": accuracy.loss,
            "val_top1": accuracy.top1,
            "val_top5": accuracy.top5,
            "offered": offered,
            "backward": int(status.steps - since.steps) * self._batch_size,
            "activation": (status.pushed - since.pushed) / offered if offered else None,
            "threshold": status.threshold if scoring and stretch.phase == GATED else None,
            "seconds": time.monotonic() - self._epoch_began,
            "gpu_j": gpu_j,
            "hist": hist,
        }
        self.restart(whole, status)
        return line


def read_hist(step: ScoreStep) -> dict[str, Any]:
    """Scoring losses of the epoch by bin (lower edges in nats, the last bin open); starts the next epoch's."""
    skipped, selected = step.hist.tolist()
    step.hist.zero_()
    return {"edges": [bin * HIST_WIDTH for bin in range(HIST_BINS)], "selected": selected, "skipped": skipped}


def _mean_loss(since: Status, status: Status) -> float | None:
    rows = status.loss_rows - since.loss_rows
    return (status.loss_sum - since.loss_sum) / rows if rows else None
