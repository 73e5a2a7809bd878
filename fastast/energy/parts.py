"""Energy of one part of a run, dense or gated: what the measured savings are made from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from fastast.energy.meter import EnergyMeter
from fastast.energy.reading import Reading, merge_ranks


@dataclass(slots=True)
class PartEnergy:
    """Energy of one part of a run (dense or gated), over training intervals only.

    Attributes:
        whole: every training interval of the part.
        steady: those after the first steps of the part.
        num_samples: samples offered in `steady`.
        windows: (joules, samples offered) of successive windows of `steady`, for the standard error.
    """

    whole: Reading
    steady: Reading
    num_samples: int = 0
    windows: list[tuple[float, int]] = field(default_factory=list)

    @property
    def j_per_sample(self) -> float | None:
        """GPU joules per offered sample, or None."""
        joules = self.steady.joules
        return None if joules is None or self.num_samples == 0 else joules / self.num_samples

    @property
    def j_per_sample_error(self) -> float | None:
        """Standard error of `j_per_sample` (ratio estimator over windows), or None with fewer than two windows."""
        n = len(self.windows)
        num_samples = sum(samples for _, samples in self.windows)
        if n < 2 or num_samples == 0:
            return None
        rate = sum(joules for joules, _ in self.windows) / num_samples
        squares = sum((joules - rate * samples) ** 2 for joules, samples in self.windows)
        return (squares * n / (n - 1)) ** 0.5 / num_samples

    def __add__(self, later: PartEnergy) -> PartEnergy:
        """Two stretches of one part, one after the other (a resumed run, or warm-up and anneal)."""
        return PartEnergy(
            self.whole + later.whole,
            self.steady + later.steady,
            self.num_samples + later.num_samples,
            self.windows + later.windows,
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return dataclasses.asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> PartEnergy:
        """The part that `state_dict` described."""
        return cls(
            Reading.from_state(state["whole"]),
            Reading.from_state(state["steady"]),
            state["num_samples"],
            [(joules, samples) for joules, samples in state["windows"]],
        )


def merge_part_ranks(parts: Iterable[PartEnergy]) -> PartEnergy:
    """`merge_ranks` for parts; ranks that share a GPU give no standard error."""
    parts = list(parts)
    uuids = [device.uuid for part in parts for device in part.steady.devices]
    shared = len(set(uuids)) < len(uuids)
    return PartEnergy(
        merge_ranks(part.whole for part in parts),
        merge_ranks(part.steady for part in parts),
        sum(part.num_samples for part in parts),
        [] if shared else [window for part in parts for window in part.windows],
    )


class PartMeter:
    """Adds up one part of a run over its training intervals, and cuts it into windows for the standard error.

    Args:
        meter: a started meter.
        skip_steps: steps at the start of the part that count in `whole` only.
        window_s: length of a window, seconds.

    Call `start` where training begins, `step` after each offered batch, and `stop` before evaluation, checkpoints
    and the end; start and stop may alternate as often as needed.
    """

    def __init__(self, meter: EnergyMeter, *, skip_steps: int = 50, window_s: float = 10.0) -> None:
        self._meter = meter
        self._skip_left = skip_steps
        self._window_s = window_s
        self._interval_start: Reading | None = None
        self._window_start: Reading | None = None
        self._window_samples = 0
        self._window_end_s = 0.0
        self._energy: PartEnergy | None = None

    def start(self) -> None:
        """Begins a training interval; harmless within one."""
        if self._interval_start is not None:
            return
        now = self._meter.reading()
        self._interval_start = now
        if self._energy is None:
            self._energy = PartEnergy(now.since(now), now.since(now))
        if self._skip_left == 0:
            self._open(now)

    def step(self, num_samples: int) -> None:
        """Counts one offered batch."""
        if self._skip_left > 0:
            self._skip_left -= 1
            if self._skip_left == 0:
                self._open(self._meter.reading())
            return
        self._window_samples += num_samples
        if monotonic() >= self._window_end_s:
            now = self._meter.reading()
            self._close(now)
            self._open(now)

    def stop(self) -> None:
        """Ends a training interval."""
        if self._interval_start is None or self._energy is None:
            return
        now = self._meter.reading()
        self._energy.whole += now.since(self._interval_start)
        self._interval_start = None
        if self._window_start is not None:
            self._close(now)

    def energy(self) -> PartEnergy | None:
        """The sums up to the last `stop`; None if the part never started."""
        return self._energy

    def _open(self, now: Reading) -> None:
        self._window_start, self._window_samples = now, 0
        self._window_end_s = monotonic() + self._window_s

    def _close(self, now: Reading) -> None:
        assert self._window_start is not None
        assert self._energy is not None
        window = now.since(self._window_start)
        self._energy.steady += window
        self._energy.num_samples += self._window_samples
        if window.joules is not None:
            self._energy.windows.append((window.joules, self._window_samples))
        self._window_start = None
