"""What a run plans: epochs split into segments of one phase, progress along the plan, and the learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastast.config.train_sizes import size_at, size_changes
from fastast.cost_model import DENSE_COST
from fastast.phases import ANNEAL, DENSE, GATED, WARMUP

# The evaluations of `--eval-every auto`: their share of the run's work, and how many there are at least.
EVAL_SHARE, MIN_EVALUATIONS = 0.05, 3


@dataclass(frozen=True, slots=True)
class Segment:
    """The part of an epoch that runs in one phase.

    Attributes:
        epoch: index of the epoch, from 0.
        phase: "warmup" (dense, before the gate), "gated", "anneal" (dense, after the gate), or "dense" (no gate).
        start, stop: positions in the epoch's order, in samples.
        offered_before: samples that the run has offered before this segment.
        ends_epoch: True for the last segment of its epoch; a checkpoint follows.
        evaluates: True if an evaluation follows.
    """

    epoch: int
    phase: str
    start: int
    stop: int
    offered_before: int
    ends_epoch: bool
    evaluates: bool


class Schedule:
    """The segments of a run, and its progress at any point. Segments are computed, not listed.

    Args:
        num_samples: size of the training set, N.
        epochs: passes over it; a fraction ends within the last epoch.
        warmup_epochs, anneal_epochs: dense passes at the start and at the end; ignored when `gated` is False.
        planned_share: planned share of gated samples that reach backward.
        gated_cost: planned cost of a gated sample, in forwards.
        units: cost of a forward at each size that the training pictures have, one after the other, in forward units.
        gated: False for a run that is dense throughout.
        train_cost: cost of training a sample, in forwards.
        num_val: size of the validation set; an evaluation costs one forward of each picture.
        averages: the last evaluation costs two, since it tries the average of the weights as well.
        eval_every: epochs' worth of dense work between two evaluations. None: evaluations take 5 % of the work, spread
            evenly over the epochs, but there are at least three. The end of the run is always evaluated.
    """

    def __init__(
        self,
        num_samples: int,
        *,
        epochs: float,
        warmup_epochs: float = 0.0,
        anneal_epochs: float = 0.0,
        planned_share: float,
        gated_cost: float,
        gated: bool,
        units: Sequence[float] = (1.0,),
        train_cost: float = DENSE_COST,
        num_val: int = 0,
        averages: bool = False,
        eval_every: float | None = None,
    ) -> None:
        total = max(1, round(epochs * num_samples))
        first = min(total, round(warmup_epochs * num_samples)) if gated else total
        last = max(first, total - round(anneal_epochs * num_samples)) if gated else total
        self.num_offered = total
        self.num_epochs = -(-total // num_samples)
        self._num_samples = num_samples
        self._ends = {WARMUP: first, GATED: last, ANNEAL: total} if gated else {DENSE: total}
        self._bounds = [0, first, last, total]
        self._work = np.cumsum([0.0, first, planned_share * (last - first), total - last])
        # Between these the cost of a sample stays the same.
        changes = np.interp(np.array(size_changes(len(units))) * self._work[-1], self._work, self._bounds)
        self._unit_bounds = np.unique([*self._bounds, *changes])
        middles = (self._unit_bounds[1:] + self._unit_bounds[:-1]) / 2
        costs = np.where((middles > first) & (middles < last), gated_cost, train_cost)
        costs *= [size_at(self.progress(middle), units) for middle in middles]
        self._units = np.append(0.0, np.cumsum(costs * np.diff(self._unit_bounds)))
        self._eval_units = None if eval_every is None else eval_every * DENSE_COST * num_samples
        affordable = num_affordable(self._units[-1] / num_val, averages=averages) if num_val else math.inf
        self._num_evaluations = min(self.num_epochs, affordable)

    def segment_at(self, offered: int) -> Segment | None:
        """The segment that begins once `offered` samples have been offered, the end of one; None at the end."""
        if offered >= self.num_offered:
            return None
        phase, end = next((phase, end) for phase, end in self._ends.items() if offered < end)
        epoch = offered // self._num_samples
        origin = epoch * self._num_samples
        stop = min(end, origin + self._num_samples)
        ends_epoch = stop in (origin + self._num_samples, self.num_offered)
        return Segment(
            epoch=epoch,
            phase=phase,
            start=offered - origin,
            stop=stop - origin,
            offered_before=offered,
            ends_epoch=ends_epoch,
            evaluates=ends_epoch and self._evaluates(epoch, stop),
        )

    def segments(self) -> Iterator[Segment]:
        """All segments of the run."""
        segment = self.segment_at(0)
        while segment is not None:
            yield segment
            segment = self.segment_at(segment.offered_before + segment.stop - segment.start)

    def _evaluates(self, epoch: int, stop: int) -> bool:
        if stop == self.num_offered:
            return True
        if self._eval_units is None:
            share = self._num_evaluations / self.num_epochs
            return math.floor((epoch + 1) * share) > math.floor(epoch * share)
        before, now = (self.units(offered) / self._eval_units for offered in (epoch * self._num_samples, stop))
        return math.floor(now + 1e-9) > math.floor(before + 1e-9)

    def end(self, segment: Segment, stop: int, units: float) -> Segment:
        """The segment as it ended, which is as it was planned."""
        return segment

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the options say all."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what `state_dict` returned."""

    def offered_share(self, segment: Segment) -> float:
        """Share of the run's offered samples that lie before a segment, in [0, 1)."""
        return segment.offered_before / self.num_offered

    def progress(self, offered: float) -> float:
        """Share of the planned backward work, in [0, 1], once `offered` samples have been offered.

        It follows the plan, not what the gate really selects, so it always ends at 1.
        """
        return float(np.interp(offered, self._bounds, self._work) / self._work[-1])

    def units(self, offered: float) -> float:
        """Planned work in forwards, evaluations left out, once `offered` samples have been offered."""
        return float(np.interp(offered, self._unit_bounds, self._units))

    def cost_share(self, offered: float) -> float:
        """Share of the planned forwards, in [0, 1], once `offered` samples have been offered."""
        return self.units(offered) / float(self._units[-1])


def num_affordable(work: float, *, averages: bool) -> float:
    """How many evaluations take their share of the run's work; not always a whole number.

    Args:
        work: of the run, in evaluations of one network.
        averages: the last one costs two.
    """
    return max(MIN_EVALUATIONS, EVAL_SHARE * work - averages)


def lr_at(progress: float, *, peak: float, warmup: float) -> float:
    """Linear warm-up, then cosine to zero.

    Args:
        progress: share of the planned work done, in [0, 1].
        peak: learning rate at the end of the warm-up.
        warmup: share of the planned work that the warm-up takes, in [0, 1).
    """
    if progress < warmup:
        return peak * progress / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))
