"""Energy figures as plain values: sums that add over time and over ranks, with the reason for what is missing."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from fastast.energy.nvml import AVERAGE
from fastast.number_text import percent

COUNTER, INTEGRAL = "nvml counter", "nvml power integral"

# The counter moves about every 100 ms, so over a shorter interval its steps are a large error.
MIN_INTERVAL_S = 2.0
# Largest share of an interval without power samples at which the integral is still used.
MAX_GAP_SHARE = 0.1
# Relative difference of counter and integral from which a note reports it.
NOTED_DISAGREEMENT = 0.1


@dataclass(slots=True)
class DeviceReading:
    """Energy of one GPU over an interval."""

    uuid: str
    name: str
    seconds: float = 0.0  # length of the interval
    counter_j: float | None = None  # by the energy counter, joules; None without one
    counter_moves: int = 0  # how often the counter was seen to change
    integral_j: float | None = None  # by the integral of sampled power, joules; None without power readings
    power_kind: str | None = None  # "instant" or "1 s average"
    num_samples: int = 0  # power samples in the interval
    gap_s: float = 0.0  # seconds without samples (gaps of over a second)
    num_states: int = 0  # readings of temperature and clock; the next three are sums over these
    temperature_sum_c: float = 0.0
    clock_sum_mhz: float = 0.0
    num_slowed: int = 0  # heat or a power brake held the clocks down
    failure: str | None = None  # why there is no figure, or None

    @property
    def source(self) -> str | None:
        """Where `joules` comes from: the counter when it moves, else the integral, else None."""
        if self.failure is not None:
            return None
        if self.counter_j is not None and self.counter_moves > 0:
            return COUNTER
        if self.integral_j is not None and self.gap_s <= MAX_GAP_SHARE * self.seconds:
            return INTEGRAL
        return None

    @property
    def joules(self) -> float | None:
        """The figure to quote, or None."""
        return {COUNTER: self.counter_j, INTEGRAL: self.integral_j, None: None}[self.source]

    @property
    def disagreement(self) -> float | None:
        """(integral - counter) / counter, or None unless both were read."""
        if self.source != COUNTER or self.integral_j is None or not self.counter_j:
            return None
        return self.integral_j / self.counter_j - 1

    @property
    def notes(self) -> list[str]:
        """What a reader must know about this figure."""
        if self.failure is not None:
            return [f"{self.name} ({self.uuid}): {self.failure}"]
        notes = []
        if self.source is None:
            notes.append(f"no power samples for {self.gap_s:.1f} of {self.seconds:.1f} s")
        if self.counter_j is not None and self.counter_moves == 0:
            notes.append("the energy counter did not move")
        if self.source == INTEGRAL and self.power_kind == AVERAGE:
            notes.append("power readings are 1 s averages: the integral lags by up to a second")
        if self.source == INTEGRAL and self.gap_s > 0:
            notes.append(f"power was not sampled for {self.gap_s:.1f} s")
        if self.disagreement is not None and abs(self.disagreement) > NOTED_DISAGREEMENT:
            notes.append(f"integral of power and energy counter differ by {100 * self.disagreement:+.0f} %")
        if self.num_slowed:
            notes.append(
                f"heat or a power brake held clocks down {percent(self.num_slowed / self.num_states, 0)} of the time"
            )
        return [f"{self.name} ({self.uuid}): {note}" for note in notes]

    def _combined(self, other: DeviceReading, sign: int) -> DeviceReading:
        result = copy.copy(self)
        for name in _SUMS:
            mine, theirs = getattr(self, name), getattr(other, name)
            setattr(result, name, None if mine is None or theirs is None else mine + sign * theirs)
        result.failure = self.failure or other.failure
        return result


_SUMS = [f.name for f in dataclasses.fields(DeviceReading) if f.name not in ("uuid", "name", "power_kind", "failure")]


@dataclass(slots=True)
class Reading:
    """Energy of GPUs and CPU over an interval, or over several added up."""

    seconds: float  # length of the interval
    devices: list[DeviceReading] = field(default_factory=list)  # one entry per GPU
    gpu_reason: str | None = None  # why there are no GPUs in it, or None
    cpu_j: float | None = None  # joules of CPU packages and DRAM; None when not read
    cpu_reason: str | None = None  # why `cpu_j` is None
    host: str = ""  # name of the machine, to tell ranks of one machine from those of another
    num_intervals: int = 1  # how many were added up

    @property
    def joules(self) -> float | None:
        """Joules of all GPUs; None when one of them was not read."""
        return sum_known(device.joules for device in self.devices)

    @property
    def watts(self) -> float | None:
        """Mean power of all GPUs, or None."""
        return None if self.joules is None or self.seconds <= 0 else self.joules / self.seconds

    @property
    def total_j(self) -> float | None:
        """GPUs, CPU packages and DRAM together; None unless every part was read."""
        return None if self.joules is None or self.cpu_j is None else self.joules + self.cpu_j

    @property
    def source(self) -> str | None:
        """ "nvml counter", "nvml power integral", both joined by "and", or None without a figure."""
        sources = {device.source for device in self.devices}
        return None if self.joules is None else " and ".join(sorted(str(source) for source in sources))

    @property
    def num_samples(self) -> int:
        """Power samples of the GPU that gave the fewest."""
        return min((device.num_samples for device in self.devices), default=0)

    @property
    def disagreement(self) -> float | None:
        """(integral - counter) / counter over the GPUs that have both, or None."""
        both = [device for device in self.devices if device.disagreement is not None]
        counter_j = sum(device.counter_j or 0.0 for device in both)
        return sum(device.integral_j or 0.0 for device in both) / counter_j - 1 if both else None

    @property
    def conditions(self) -> str | None:
        """Mean temperature and clock in words, or None."""
        num_states = sum(device.num_states for device in self.devices)
        if num_states == 0:
            return None
        celsius = sum(device.temperature_sum_c for device in self.devices) / num_states
        mhz = sum(device.clock_sum_mhz for device in self.devices) / num_states
        return f"{celsius:.0f} C, SM clock {mhz:.0f} MHz"

    @property
    def notes(self) -> list[str]:
        """What was not read and why, and what makes the figures less certain."""
        notes = [f"GPU not read: {self.gpu_reason}"] if self.gpu_reason is not None else []
        notes += [note for device in self.devices for note in device.notes]
        if self.cpu_reason is not None:
            notes.append(f"CPU not read: {self.cpu_reason}")
        if self.joules is not None and self.seconds < MIN_INTERVAL_S * self.num_intervals:
            interval = f"interval of {self.seconds / self.num_intervals:.2f} s"
            notes.append(f"{interval}: under {MIN_INTERVAL_S:.0f} s the counter's steps make it unreliable")
        return notes

    def since(self, start: Reading) -> Reading:
        """The interval between two running totals of one meter."""
        result = self._combined(start, -1)
        result.devices = [now._combined(then, -1) for now, then in zip(self.devices, start.devices, strict=True)]
        result.num_intervals = 1
        return result

    def __add__(self, later: Reading) -> Reading:
        """Two intervals, one after the other; a figure that one of them lacks is None in the sum."""
        result = self._combined(later, 1)
        result.gpu_reason = self.gpu_reason or later.gpu_reason
        devices = {device.uuid: device for device in self.devices}
        for device in later.devices:
            mine = devices.get(device.uuid)
            devices[device.uuid] = device if mine is None else mine._combined(device, 1)
        if result.gpu_reason is not None:
            reason = f"not read in a part of the run ({result.gpu_reason})"
            devices = {u: dataclasses.replace(d, failure=d.failure or reason) for u, d in devices.items()}
        result.devices = list(devices.values())
        result.num_intervals = self.num_intervals + later.num_intervals
        return result

    def _combined(self, other: Reading, sign: int) -> Reading:
        known = self.cpu_j is not None and other.cpu_j is not None
        return Reading(
            seconds=self.seconds + sign * other.seconds,
            gpu_reason=self.gpu_reason,
            cpu_j=(self.cpu_j or 0.0) + sign * (other.cpu_j or 0.0) if known else None,
            cpu_reason=self.cpu_reason or other.cpu_reason,
            host=self.host,
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return dataclasses.asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Reading:
        """The reading that `state_dict` described."""
        return cls(**{**state, "devices": [DeviceReading(**device) for device in state["devices"]]})


def sum_known(values: Iterable[float | None]) -> float | None:
    """The sum; None without values, or where one of them is None."""
    values = list(values)
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def merge_ranks(readings: Iterable[Reading]) -> Reading:
    """Adds up what the ranks of a distributed run read over the same interval.

    A GPU counts once by its UUID, and the CPUs of a machine count once, however many ranks metered them.
    """
    readings = list(readings)
    devices: dict[str, DeviceReading] = {}
    cpus: dict[str, Reading] = {}
    for reading in readings:
        for device in reading.devices:
            devices.setdefault(device.uuid, device)
        if reading.host not in cpus or reading.cpu_j is not None:
            cpus[reading.host] = reading
    cpu_values = [reading.cpu_j for reading in cpus.values()]
    gpu_reason = next((reading.gpu_reason for reading in readings if reading.gpu_reason is not None), None)
    if gpu_reason is not None:
        devices = {uuid: dataclasses.replace(d, failure=f"another rank: {gpu_reason}") for uuid, d in devices.items()}
    return Reading(
        seconds=max(reading.seconds for reading in readings),
        devices=list(devices.values()),
        gpu_reason=gpu_reason,
        cpu_j=None if None in cpu_values else sum(value or 0.0 for value in cpu_values),
        cpu_reason=next((r.cpu_reason for r in cpus.values() if r.cpu_j is None), None),
        host=readings[0].host,
        num_intervals=max(reading.num_intervals for reading in readings),
    )
