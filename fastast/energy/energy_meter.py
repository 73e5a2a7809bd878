"""Energy of a block of code: a thread samples the GPUs, and measurements read the running totals.

Starting or ending a measurement makes no NVML call and no CUDA synchronisation, so a training loop may hold one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastast.energy.gpu_totals import GpuTotals
from fastast.energy.nvml import Device, NvmlSystem, ReadError, open_nvml, select_devices
from fastast.energy.power_log import PowerLog, PowerRow
from fastast.energy.rapl import POWERCAP_ROOT, Rapl
from fastast.energy.reading import Reading, sum_known

# Temperature and clocks change slowly; RAPL must be read more often than it wraps around.
SLOW_INTERVAL_S = 1.0


@dataclass(slots=True)
class Measurement(Reading):
    """A measured block of code; its figures are final when the `with` block has ended."""

    name: str = ""


@dataclass(frozen=True, slots=True)
class IdlePower:
    """Power of the GPUs with nothing running."""

    watts: float | None  # of all metered GPUs, or None
    note: str  # the figure with its clock state, or why there is none


def merge_idle(ranks: Sequence[IdlePower]) -> IdlePower:
    """The idle power of the GPUs of all ranks of a distributed run."""
    notes = "; ".join(dict.fromkeys(rank.note for rank in ranks))
    return IdlePower(sum_known(rank.watts for rank in ranks), notes)


class EnergyMeter:
    """Meters GPUs and CPU from `start` to `stop`.

    Args:
        devices: CUDA indices as this process sees them, or UUIDs ("GPU-..."); None for every GPU visible to it. In
            a distributed run each rank meters its own GPU.
        hz: samples per second.
        cpu: read CPU packages and DRAM too.
        powercap: the folder of the RAPL counters.
        nvml: what `open_nvml` returned; opened here by default.

    Attributes:
        origin_s: time in `power.csv` at which the meter starts, seconds; later than 0 in a resumed run.

    Example:
        with EnergyMeter() as meter:
            with meter.measure("epoch") as epoch:
                train()
            print(epoch.joules, epoch.watts, epoch.source, epoch.notes)
    """

    def __init__(
        self,
        devices: Sequence[int | str] | None = None,
        hz: float = 20.0,
        *,
        cpu: bool = True,
        powercap: str | os.PathLike[str] = POWERCAP_ROOT,
        nvml: NvmlSystem | None = None,
    ) -> None:
        if not hz > 0:
            raise ValueError(f"hz={hz}: must be above 0, for example 20")
        self._power_log = PowerLog()
        self._period_s = 1.0 / hz
        nvml = open_nvml() if nvml is None else nvml
        self._devices, self._gpu_reason = select_devices(nvml, devices)
        self._rapl = Rapl(powercap) if cpu else None
        self._host = _host_name()
        self._gpus: list[GpuTotals] = []
        self._phase = ""
        self.origin_s = 0.0
        self._lock = threading.Lock()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._final: Reading | None = None
        self._start_s: float | None = None

    def start(self) -> EnergyMeter:
        """Takes the first sample and starts the thread.

        Raises:
            RuntimeError: it was started before.
        """
        if self._start_s is not None:
            raise RuntimeError("this EnergyMeter was started before; make a new one")
        self._start_s = time.monotonic()
        self._gpus = [GpuTotals(device, self._start_s) for device in self._devices]
        self._sample()
        self._observe()
        if any(gpu.readable for gpu in self._gpus) or (self._rapl and self._rapl.reason is None):
            self._thread = threading.Thread(target=self._run, name="energy-meter", daemon=True)
            self._thread.start()
        return self

    def stop(self) -> None:
        """Ends metering; `reading` then returns the final totals."""
        if self._final is None:
            self._final = self.reading()
            self._stopping = True
            if self._thread is not None:
                self._thread.join(timeout=0.2)

    def __enter__(self) -> EnergyMeter:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def devices(self) -> list[Device]:
        """The GPUs that are metered or refused."""
        return list(self._devices)

    @property
    def watts(self) -> float | None:
        """Power of all GPUs at the last sample, or None; makes no NVML call."""
        return sum_known(gpu.watts for gpu in self._gpus)

    @property
    def max_watts(self) -> dict[str, float | None]:
        """Highest sampled power of each GPU since the start, by UUID."""
        return {gpu.device.uuid: gpu.max_w for gpu in self._gpus}

    def reading(self) -> Reading:
        """Totals since the start.

        Raises:
            RuntimeError: not started.
        """
        if self._start_s is None:
            raise RuntimeError("call EnergyMeter.start() first")
        if self._final is not None:
            return self._final
        with self._lock:
            cpu_j = None if self._rapl is None else self._rapl.joules()
            now_s = time.monotonic()
            return Reading(
                seconds=now_s - self._start_s,
                devices=[gpu.at(now_s) for gpu in self._gpus],
                gpu_reason=self._gpu_reason,
                cpu_j=cpu_j,
                cpu_reason="not asked for" if self._rapl is None else self._rapl.reason,
                host=self._host,
            )

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[Measurement]:
        """Meters the `with` block. Measurements may nest and overlap.

        The caller makes sure that the GPU has finished its work, as with any clock.
        """
        measurement = Measurement(0.0, name=name)
        start = self.reading()
        try:
            yield measurement
        finally:
            reading = self.reading().since(start)
            for field in dataclasses.fields(Reading):
                setattr(measurement, field.name, getattr(reading, field.name))

    def measure_idle(self, seconds: float = 5.0) -> IdlePower:
        """Mean power over `seconds` in which nothing runs; returns at once where a GPU cannot be read."""
        if not self._gpus or not all(gpu.readable for gpu in self._gpus):
            return IdlePower(None, "idle power was not measured: no figure for the GPUs")
        with self.measure("idle") as idle:
            time.sleep(seconds)
        if idle.watts is None:
            return IdlePower(None, "idle power was not measured: a GPU could not be read")
        clocks = " ".join(
            ("? MHz" if state.clock_mhz is None else f"{state.clock_mhz} MHz")
            + ("" if state.performance_state is None else f" (P{state.performance_state})")
            for state in (device.state() for device in self._devices)
        )
        return IdlePower(idle.watts, f"idle {idle.watts:.1f} W over {seconds:g} s at SM clock {clocks}")

    def set_phase(self, phase: str) -> None:
        """Sets the phase of the run that later rows of `power.csv` name."""
        self._phase = phase

    def power_rows(self) -> list[PowerRow]:
        """Rows of `power.csv` so far; averaged over longer intervals in a long run."""
        with self._lock:
            return self._power_log.rows()

    def continue_csv(self, path: str | os.PathLike[str]) -> float:
        """Loads the `power.csv` of the run before a resume; call it before `start`.

        Returns:
            `origin_s`, which the other ranks take as theirs.
        """
        if Path(path).exists():
            self.origin_s = self._power_log.read_csv(path)
        return self.origin_s

    def _run(self) -> None:
        next_s = next_slow_s = time.monotonic()
        while True:
            # A late sample is not repeated: each comes with the time at which it was taken.
            next_s = max(next_s + self._period_s, time.monotonic())
            # Half the cost of Event.wait; a stop is seen one period late, and the thread is a daemon.
            time.sleep(max(0.0, next_s - time.monotonic()))
            if self._stopping:
                return
            self._sample()
            if next_s >= next_slow_s + SLOW_INTERVAL_S:
                next_slow_s = next_s
                self._observe()

    def _sample(self) -> None:
        for gpu in self._gpus:
            if not gpu.readable:
                continue
            try:
                counter_j, watts = gpu.device.read()
            except ReadError as error:
                with self._lock:
                    gpu.fail(time.monotonic(), error)
                continue
            now_s = time.monotonic()
            with self._lock:
                gpu.update(now_s, counter_j, watts)
                t_s = self.origin_s + now_s - gpu.start_s
                energy_mj = None if counter_j is None else counter_j * 1e3
                self._power_log.add(PowerRow(t_s, gpu.device.uuid, watts, energy_mj, self._phase))

    def _observe(self) -> None:
        for gpu in self._gpus:
            if gpu.readable:
                gpu.observe()
        if self._rapl is not None:
            with self._lock:
                self._rapl.joules()


def _host_name() -> str:
    """The same for all containers of one machine, another on every other machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return platform.node()
