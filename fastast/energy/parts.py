"""Energy of one part of a run, dense or gated; the measured savings compare the two."""

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
    """Energy of one part of a run (dense or gated), over training intervals only."""

    whole: Reading  # every training interval of the part
    steady: Reading  # without the first steps of the part
    num_samples: int = 0  # offered in `steady`
    # Joules and samples offered of successive blocks of `steady`, for the standard error.
    blocks: list[tuple[float, int]] = field(default_factory=list)

    @property
    def j_per_sample(self) -> float | None:
        """GPU joules per offered sample, or None."""
        joules = self.steady.joules
        return None if joules is None or self.num_samples == 0 else joules / self.num_samples

    @property
    def j_per_sample_error(self) -> float | None:
        """Standard error of `j_per_sample` (ratio estimator over blocks), or None with fewer than two blocks."""
        n = len(self.blocks)
        num_samples = sum(samples for _, samples in self.blocks)
        if n < 2 or num_samples == 0:
            return None
        rate = sum(joules for joules, _ in self.blocks) / num_samples
        squares = sum((joules - rate * samples) ** 2 for joules, samples in self.blocks)
        return (squares * n / (n - 1)) ** 0.5 / num_samples

    def __add__(self, later: PartEnergy) -> PartEnergy:
        """Two intervals of one part, one after the other (a resumed run, or warm-up and anneal)."""
        return PartEnergy(
            self.whole + later.whole,
            self.steady + later.steady,
            self.num_samples + later.num_samples,
            self.blocks + later.blocks,
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return dataclasses.asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> PartEnergy:
        """Restores what `state_dict` returned."""
        whole, steady = (Reading.from_state(state[name]) for name in ("whole", "steady"))
        return cls(whole, steady, state["num_samples"], [(joules, samples) for joules, samples in state["blocks"]])


def merge_part_ranks(parts: Iterable[PartEnergy]) -> PartEnergy:
    """`merge_ranks` for parts; ranks that share a GPU give no standard error."""
    parts = list(parts)
    uuids = [device.uuid for part in parts for device in part.steady.devices]
    shared = len(set(uuids)) < len(uuids)
    return PartEnergy(
        merge_ranks(part.whole for part in parts),
        merge_ranks(part.steady for part in parts),
        sum(part.num_samples for part in parts),
        [] if shared else [block for part in parts for block in part.blocks],
    )


class PartMeter:
    """Adds up one part of a run over its training intervals, and cuts it into blocks for the standard error.

    Args:
        meter: a started meter.
        skip_steps: steps at the start of the part that count in `whole` only.
        block_s: length of a block, seconds.

    Call `start` where training begins, `step` after each offered batch, and `stop` before evaluation, checkpoints
    and the end; start and stop may alternate as often as needed.
    """

    def __init__(self, meter: EnergyMeter, *, skip_steps: int = 50, block_s: float = 10.0) -> None:
        self._meter = meter
        self._skip_left = skip_steps
        self._block_s = block_s
        self._interval_start: Reading | None = None
        self._block_start: Reading | None = None
        self._block_samples = 0
        self._block_end_s = 0.0
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
            self._start_block(now)

    def step(self, num_samples: int) -> None:
        """Counts one offered batch."""
        if self._skip_left > 0:
            self._skip_left -= 1
            if self._skip_left == 0:
                self._start_block(self._meter.reading())
            return
        self._block_samples += num_samples
        if monotonic() >= self._block_end_s:
            now = self._meter.reading()
            self._end_block(now)
            self._start_block(now)

    def stop(self) -> None:
        """Ends a training interval."""
        if self._interval_start is None or self._energy is None:
            return
        now = self._meter.reading()
        self._energy.whole += now.since(self._interval_start)
        self._interval_start = None
        if self._block_start is not None:
            self._end_block(now)

    def energy(self) -> PartEnergy | None:
        """The sums up to the last `stop`; None if the part never started."""
        return self._energy

    def _start_block(self, now: Reading) -> None:
        self._block_start, self._block_samples = now, 0
        self._block_end_s = monotonic() + self._block_s

    def _end_block(self, now: Reading) -> None:
        assert self._block_start is not None
        assert self._energy is not None
        block = now.since(self._block_start)
        self._energy.steady += block
        self._energy.num_samples += self._block_samples
        if block.joules is not None:
            self._energy.blocks.append((block.joules, self._block_samples))
        self._block_start = None
