"""What a run plans to do: stretches of epochs, each of one phase, and the progress that the learning rate follows."""

from __future__ import annotations

from dataclasses import dataclass

WARMUP, GATED, DENSE = "warmup", "gated", "dense"


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of one epoch that runs in one phase.

    Attributes:
        epoch: index of the epoch, from 0.
        phase: "warmup" (dense, before the gate), "gated", or "dense" (a run without a gate).
        start, stop: positions in the epoch's order, in samples.
        offered_before: samples that the run has offered before this stretch.
        ends_epoch: True for the last stretch of its epoch; evaluation and a checkpoint follow.
    """

    epoch: int
    phase: str
    start: int
    stop: int
    offered_before: int
    ends_epoch: bool


class Schedule:
    """The stretches of a run and the share of its planned work that any point has reached.

    Work is counted in samples planned to reach backward: a dense stretch plans all of its samples, a gated one
    `target` of them. Progress follows that plan, not what the gate really selects, so it always ends at 1.

    Args:
        num_samples: size of the training set.
        epochs: passes over it; a fraction ends within the last epoch.
        warmup_epochs: dense passes at the start; ignored when `gated` is False.
        target: planned share of gated samples that reach backward, in (0, 1].
        gated: False for a run that is dense throughout.
    """

    def __init__(self, num_samples: int, *, epochs: float, warmup_epochs: float, target: float, gated: bool) -> None:
        self.num_offered = max(1, round(epochs * num_samples))
        boundary = min(self.num_offered, round(warmup_epochs * num_samples)) if gated else self.num_offered
        phases = [(WARMUP, 0, boundary), (GATED, boundary, self.num_offered)]
        if not gated:
            phases = [(DENSE, 0, self.num_offered)]
        self.stretches: list[Stretch] = []
        for phase, first, last in phases:
            position = first
            while position < last:
                epoch = position // num_samples
                end = min(last, (epoch + 1) * num_samples)
                origin = epoch * num_samples
                ends_epoch = end == origin + num_samples or end == self.num_offered
                self.stretches.append(Stretch(epoch, phase, position - origin, end - origin, position, ends_epoch))
                position = end
        self._boundary = boundary
        self._target = target
        self._work = self._work_at(self.num_offered)

    @property
    def num_epochs(self) -> int:
        """Epochs that the run enters, the last perhaps in part."""
        return self.stretches[-1].epoch + 1

    def progress(self, offered: float) -> float:
        """Share of the planned work, in [0, 1], once `offered` samples have been offered."""
        return min(1.0, self._work_at(offered) / self._work)

    def _work_at(self, offered: float) -> float:
        return min(offered, self._boundary) + self._target * max(0.0, offered - self._boundary)
