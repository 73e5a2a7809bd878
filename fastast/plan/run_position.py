"""Where a run is in its schedule, between any two batches."""

from __future__ import annotations

from typing import Any

import torch

from fastast.distributed.ranks import Ranks
from fastast.plan.epoch_plan import EpochPlanner
from fastast.plan.progress import EpochProgress
from fastast.plan.schedule import Segment


class RunPosition:
    """The current segment and how far it has come.

    Args:
        planner: of the run; its schedule has the segments.

    Attributes:
        offered: samples before the current segment.
        progress: of the current segment; None between two segments.
        trained: all of the current segment is done except the evaluation.
    """

    def __init__(self, planner: EpochPlanner) -> None:
        self._planner = planner
        self.offered = 0
        self.progress: EpochProgress | None = None
        self.trained = False

    @property
    def segment(self) -> Segment | None:
        """The current segment, or None once all is done."""
        return self._planner.schedule.segment_at(self.offered)

    def is_last(self, segment: Segment) -> bool:
        """Whether none comes after `segment`, as it ended."""
        return self._planner.schedule.segment_at(self.offered + segment.stop - segment.start) is None

    def finish(self, segment: Segment) -> None:
        """Goes on to the next segment after `segment`, as it ended."""
        self.offered += segment.stop - segment.start
        self.trained = False

    def _place(self) -> list[Any] | None:
        """The current segment in plain values, or None once all is done."""
        segment = self.segment
        return None if segment is None else [segment.epoch, segment.phase, segment.start, segment.stop]

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors."""
        return {
            "position": self.offered,
            "segment": self._place(),
            "trained": self.trained,
            "progress": None if self.progress is None else self.progress.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device, *, batch_size: int, ranks: Ranks) -> None:
        """Resumes where `state_dict` was called, once the schedule's own state is loaded.

        Raises:
            ValueError: the schedule is another one.
        """
        self.offered, self.trained = state["position"], state["trained"]
        # Within a segment all of it must be the same; between two, the end of the next one may have changed.
        known = slice(None) if state["progress"] is not None or self.trained else slice(3)
        here, there = self._place(), state["segment"]
        if there is not None and (here is None or here[known] != there[known]):
            raise ValueError("its schedule differs at the point that the run has reached")
        segment = self.segment
        if state["progress"] is not None and segment is not None:
            self.progress = EpochProgress.from_state(
                state["progress"], segment, self._planner, device, batch_size=batch_size, ranks=ranks
            )
