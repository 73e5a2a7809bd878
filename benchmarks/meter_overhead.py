"""CPU time of the energy meter's thread, as a share of one core.

    python -m benchmarks.meter_overhead [--seconds 20] [--hz 20] [--out benchmarks/results/meter_overhead.json]

With an NVIDIA driver the thread reads every visible GPU; without one it reads a fake device whose calls cost nothing,
so the figure then covers only the meter's own arithmetic and Python's call overhead, and says so.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch

from benchmarks.common import make_parser, provenance, publish
from fastast.energy.energy_meter import EnergyMeter
from fastast.energy.nvml import Device, DeviceState, NvmlSystem, open_nvml


class FakeDevice(Device):
    """A GPU of 100 W that answers at once."""

    def read(self) -> tuple[float, float]:
        return time.monotonic() // 0.1 * 10.0, 100.0

    def state(self) -> DeviceState:
        return DeviceState(50, 1000, 0, False)


def thread_cpu_s() -> dict[int, float]:
    """CPU seconds of every thread of this process, by thread id."""
    ticks = os.sysconf("SC_CLK_TCK")
    seconds = {}
    for task in Path("/proc/self/task").iterdir():
        schedstat = task / "schedstat"
        if schedstat.exists():
            seconds[int(task.name)] = int(schedstat.read_text().split()[0]) / 1e9
        else:
            fields = (task / "stat").read_text().rpartition(")")[2].split()
            seconds[int(task.name)] = (int(fields[11]) + int(fields[12])) / ticks
    return seconds


def main() -> None:
    parser = make_parser("benchmarks.meter_overhead", __doc__, table=False)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--hz", type=float, default=20.0, help="samples per second")
    options = parser.parse_args()
    nvml = open_nvml()
    real = any(device.refusal is None for device in nvml.devices)
    if not real:
        fake = FakeDevice(0, "GPU-00000000", "fake", has_counter=True, power_kind="instant")
        nvml = NvmlSystem(devices=(fake,))
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    others = set(thread_cpu_s())
    with EnergyMeter(hz=options.hz, nvml=nvml) as meter:
        before = thread_cpu_s()
        began_s = time.monotonic()
        time.sleep(options.seconds)
        elapsed_s = time.monotonic() - began_s
        after = thread_cpu_s()
        reading = meter.reading()
        count = 1000
        began_s = time.perf_counter()
        for _ in range(count):
            meter.reading()
        window_us = (time.perf_counter() - began_s) / count * 1e6
    used_s = sum(after[thread] - before[thread] for thread in after.keys() - others if thread in before)
    publish(
        {
            **provenance(torch.device("cuda" if real and torch.cuda.is_available() else "cpu")),
            "percent_of_one_core": 100 * used_s / elapsed_s,
            "seconds": elapsed_s,
            "hz_wanted": options.hz,
            "hz_real": reading.num_samples / reading.seconds,
            "window_boundary_us": window_us,
            "gpus": [device.name for device in nvml.devices],
            "driver": nvml.driver,
            "includes_driver_calls": real,
            "cores": os.cpu_count(),
        },
        options.out,
    )


if __name__ == "__main__":
    main()
