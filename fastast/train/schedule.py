"""What a run plans: epochs split into segments of one phase, progress along the plan, and the learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fastast.cost_model import DENSE_COST
from fastast.phases import ANNEAL, DENSE, GATED, WARMUP


@dataclass(frozen=True, slots=True)
class Segment:
    """The part of an epoch that runs in one phase.

    Attributes:
        epoch: index of the epoch, from 0.
        phase: "warmup" (dense, before the gate), "gated", "anneal" (dense, after the gate), or "dense" (no gate).
        share: share of the segment's samples that is planned to reach backward; 1 unless gated.
        start, stop: positions in the epoch's order, in samples.
        offered_before: samples that the run has offered before this segment.
        ends_epoch: True for the last segment of its epoch; evaluation and a checkpoint follow.
    """

    epoch: int
    phase: str
    share: float
    start: int
    stop: int
    offered_before: int
    ends_epoch: bool


class Schedule:
    """The segments of a run, and its progress at any point.

    Args:
        num_samples: size of the training set.
        epochs: passes over it; a fraction ends within the last epoch.
        warmup_epochs, anneal_epochs: dense passes at the start and at the end; ignored when `gated` is False.
        planned_share: planned share of gated samples that reach backward.
        gated: False for a run that is dense throughout.
    """

    def __init__(
        self,
        num_samples: int,
        *,
        epochs: float,
        warmup_epochs: float = 0.0,
        anneal_epochs: float = 0.0,
        planned_share: float,
        gated: bool,
    ) -> None:
        total = max(1, round(epochs * num_samples))
        first = min(total, round(warmup_epochs * num_samples))
        last = max(first, total - round(anneal_epochs * num_samples))
        phases = [(WARMUP, 0, first), (GATED, first, last), (ANNEAL, last, total)] if gated else [(DENSE, 0, total)]
        self.num_offered = total
        self.segments: list[Segment] = []
        for phase, position, end in phases:
            while position < end:
                epoch = position // num_samples
                origin = epoch * num_samples
                stop = min(end, origin + num_samples)
                self.segments.append(
                    Segment(
                        epoch=epoch,
                        phase=phase,
                        share=planned_share if phase == GATED else 1.0,
                        start=position - origin,
                        stop=stop - origin,
                        offered_before=position,
                        ends_epoch=stop in (origin + num_samples, total),
                    )
                )
                position = stop

    @property
    def num_epochs(self) -> int:
        """Epochs that the run enters, the last perhaps in part."""
        return self.segments[-1].epoch + 1

    def progress(self, offered: float) -> float:
        """Share of the planned backward work, in [0, 1], once `offered` samples have been offered.

        It follows the plan, not what the gate really selects, so it always ends at 1.
        """
        return self._share(offered, lambda segment: segment.share)

    def cost_share(self, offered: float, gated_cost: Callable[[float], float]) -> float:
        """Share of the planned forwards, in [0, 1]; a gated sample costs `gated_cost(share)`."""
        return self._share(offered, lambda s: gated_cost(s.share) if s.phase == GATED else DENSE_COST)

    def _share(self, offered: float, weight: Callable[[Segment], float]) -> float:
        bounds = [0, *(s.offered_before + s.stop - s.start for s in self.segments)]
        work = np.cumsum([0.0, *(weight(s) * (s.stop - s.start) for s in self.segments)])
        return float(np.interp(offered, bounds, work) / work[-1])


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
