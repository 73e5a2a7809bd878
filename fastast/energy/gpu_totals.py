"""Running totals of one GPU, from its samples."""

from __future__ import annotations

import dataclasses

from fastast.energy.nvml import Device, ReadError
from fastast.energy.reading import DeviceReading

# Time without samples from which it counts as a gap.
GAP_S = 1.0
# Time without any reading after which the totals are refused.
STALE_S = 5.0
# Energy counters move about this often.
COUNTER_STEP_S = 0.1
# How long after its last move a counter is extrapolated by power.
MAX_EXTRAPOLATED_S = 0.5


class GpuTotals:
    """Running totals of one GPU.

    The counter moves in steps, so between two moves it is extrapolated: value at the last move, plus power x time
    since. Before the first move, which shows where the steps lie, the integral of power is used instead. The time of
    a move is known to half a sampling interval: at 20 Hz each end of a measurement is uncertain by 25 ms of power.
    """

    def __init__(self, device: Device, start_s: float) -> None:
        self.device = device
        self.total = DeviceReading(device.uuid, device.name, power_kind=device.power_kind)
        self.total.failure = device.refusal
        self.total.integral_j = 0.0 if device.power_kind else None
        self.watts: float | None = None
        self.max_w: float | None = None
        self.counter_j: float | None = None  # as read
        self.offset_j = 0.0
        self.start_s = self.last_s = self.power_s = self.moved_s = start_s
        self.last_error = ""  # a temporary one

    @property
    def readable(self) -> bool:
        return self.total.failure is None

    def update(self, now_s: float, counter_j: float | None, watts: float | None) -> None:
        total = self.total
        if watts is not None and total.integral_j is not None:
            elapsed_s = now_s - self.power_s
            before_w = watts if self.watts is None else self.watts
            total.integral_j += (before_w + watts) / 2 * elapsed_s
            total.num_samples += 1
            if elapsed_s > GAP_S:
                total.gap_s += elapsed_s
            self.power_s, self.watts, self.max_w = now_s, watts, max(watts, self.max_w or 0.0)
        if counter_j is not None:
            self._count(now_s, counter_j)
        self.last_s, self.last_error = now_s, ""

    def _count(self, now_s: float, counter_j: float) -> None:
        if self.counter_j is None or counter_j == self.counter_j:
            self.counter_j = counter_j
            return
        if counter_j < self.counter_j:
            self.total.failure = "the energy counter went backwards (driver reloaded?)"
            return
        # Between the last sample and this one, and at most one counter step ago.
        moved_s = now_s - min(now_s - self.last_s, COUNTER_STEP_S) / 2
        if self.total.counter_moves == 0:
            integral_j = (self.total.integral_j or 0.0) + (self.watts or 0.0) * (moved_s - self.power_s)
            self.offset_j = integral_j - counter_j
        if self.total.integral_j is None:
            self.watts = (counter_j - self.counter_j) / max(now_s - self.moved_s, 1e-3)
        self.counter_j, self.moved_s = counter_j, moved_s
        self.total.counter_moves += 1

    def fail(self, now_s: float, error: ReadError) -> None:
        self.last_error = error.reason
        if error.permanent:
            self.total.failure = f"{error.reason}, {now_s - self.start_s:.0f} s after metering began"
            self.watts = None

    def at(self, now_s: float) -> DeviceReading:
        """The totals at `now_s`, extrapolated from the last sample."""
        total = dataclasses.replace(self.total, seconds=now_s - self.start_s)
        if total.failure is not None:
            return total
        since_s = now_s - self.last_s
        if since_s > STALE_S:
            total.failure = f"no reading for {since_s:.0f} s" + (f" ({self.last_error})" if self.last_error else "")
            return total
        if total.integral_j is not None:
            without_s = now_s - self.power_s
            total.integral_j += (self.watts or 0.0) * without_s
            total.gap_s += without_s if without_s > GAP_S else 0.0
        if self.counter_j is None:
            return total
        if total.counter_moves == 0:
            total.counter_j = total.integral_j or 0.0
        else:
            extrapolated_s = min(now_s - self.moved_s, MAX_EXTRAPOLATED_S + since_s)
            total.counter_j = self.offset_j + self.counter_j + (self.watts or 0.0) * extrapolated_s
        return total

    def observe(self) -> None:
        state = self.device.state()
        if state.temperature_c is not None and state.clock_mhz is not None:
            self.total.num_states += 1
            self.total.temperature_sum_c += state.temperature_c
            self.total.clock_sum_mhz += state.clock_mhz
            self.total.num_slowed += bool(state.slowed)
