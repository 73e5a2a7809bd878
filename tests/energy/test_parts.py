"""Parts of a run: which intervals count, and the standard error over blocks."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

import fastast.energy.parts
from fastast.energy.energy_meter import EnergyMeter
from fastast.energy.nvml import Device, DeviceState, NvmlSystem
from fastast.energy.parts import Blocks, PartEnergy, PartMeter, merge_part_ranks
from fastast.energy.power_log import write_power_csv
from fastast.energy.reading import DeviceReading, Reading


class Scripted:
    """A meter on a clock that the test moves, at a power that the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, uuid: str = "GPU-a") -> None:
        self.now_s = self.joules = 0.0
        self.uuid = uuid
        monkeypatch.setattr(fastast.energy.parts, "monotonic", lambda: self.now_s)

    def advance(self, seconds: float, watts: float) -> None:
        self.now_s += seconds
        self.joules += seconds * watts

    def reading(self) -> Reading:
        moves = int(self.now_s * 10)
        device = DeviceReading(self.uuid, "T4", self.now_s, self.joules, moves, self.joules, "instant", moves)
        return Reading(seconds=self.now_s, devices=[device], host="h")


def test_steady_part_skips_first_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = Scripted(monkeypatch)
    part = PartMeter(meter, skip_steps=3, block_s=10.0)  # type: ignore[arg-type]
    assert part.energy() is None
    part.start()
    for _ in range(3):
        meter.advance(1.0, 500.0)  # excluded: compilation, first clocks
        part.step(64)
    part.start()  # within an interval: harmless
    for _ in range(25):
        meter.advance(1.0, 100.0)
        part.step(64)
    part.stop()
    meter.advance(60.0, 300.0)  # evaluation
    part.start()
    for _ in range(15):
        meter.advance(1.0, 100.0)
        part.step(64)
    part.stop()
    energy = part.energy()
    assert energy is not None
    assert energy.whole.joules == pytest.approx(3 * 500 + 40 * 100)
    assert energy.steady.reading.joules == pytest.approx(40 * 100)
    assert energy.steady.seconds == pytest.approx(40)
    assert energy.steady.num_samples == 40 * 64
    assert [round(joules) for joules, _ in energy.steady.rows] == [1000, 1000, 500, 1000, 500]
    assert energy.steady.j_per_sample == pytest.approx(100 / 64)
    assert energy.steady.j_per_sample_error == pytest.approx(0.0, abs=1e-9)
    part.stop()  # twice is harmless
    assert energy.whole.joules == pytest.approx(3 * 500 + 40 * 100)


def test_standard_error_matches_repeated_runs() -> None:
    """The estimator against the spread of many simulated runs."""
    generator = random.Random(0)
    rates, errors = [], []
    for _ in range(400):
        blocks = []
        for _ in range(20):
            samples = generator.randint(500, 1500)
            blocks.append((samples * generator.gauss(2.0, 0.2), samples))
        total = Reading(20.0, [DeviceReading("a", "T4", 20.0, sum(j for j, _ in blocks), 9)])
        part = Blocks(total, sum(n for _, n in blocks), rows=blocks)
        assert part.j_per_sample is not None
        assert part.j_per_sample_error is not None
        rates.append(part.j_per_sample)
        errors.append(part.j_per_sample_error)
    mean = sum(rates) / len(rates)
    spread = (sum((rate - mean) ** 2 for rate in rates) / (len(rates) - 1)) ** 0.5
    assert sum(errors) / len(errors) == pytest.approx(spread, rel=0.15)


def test_parts_add_up_over_resumes_and_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(uuid: str, watts: float) -> PartEnergy:
        meter = Scripted(monkeypatch, uuid)
        part = PartMeter(meter, skip_steps=0, block_s=5.0)  # type: ignore[arg-type]
        part.start()
        for _ in range(20):
            meter.advance(1.0, watts)
            part.step(10)
        part.stop()
        energy = part.energy()
        assert energy is not None
        return energy

    first, second = run("GPU-a", 100.0), run("GPU-b", 200.0)
    resumed = PartEnergy.from_state(first.state_dict()) + run("GPU-a", 300.0)
    assert resumed.steady.reading.joules == pytest.approx(20 * 400)
    assert resumed.steady.num_samples == 400
    assert resumed.steady.j_per_sample == pytest.approx(20.0)
    ranks = merge_part_ranks([first, second])
    assert ranks.steady.reading.joules == pytest.approx(20 * 300)
    assert ranks.steady.seconds == pytest.approx(20)
    assert ranks.steady.j_per_sample == pytest.approx(15.0)
    assert len(ranks.steady.rows) == len(first.steady.rows) + len(second.steady.rows)
    shared = merge_part_ranks([first, first])
    assert shared.steady.reading.joules == pytest.approx(20 * 100)
    assert shared.steady.j_per_sample_error is None


class Steady(Device):
    """A GPU of 80 W whose counter moves at every read."""

    def read(self) -> tuple[float, float]:
        return time.monotonic() * 80.0, 80.0

    def state(self) -> DeviceState:
        return DeviceState(40, 300, 8, False)


def test_real_meter_with_parts_idle_and_phases(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    nvml = NvmlSystem(devices=(Steady(0, "GPU-a", "T4", has_counter=True, power_kind="instant"),))
    path = tmp_path / "power.csv"
    path.write_text("t_s,uuid,w,energy_mj,phase\n5.000,GPU-a,33.00,1,warmup\n")
    meter = EnergyMeter(hz=50, cpu=False, nvml=nvml)
    with pytest.raises(RuntimeError, match="start"):
        meter.reading()
    assert meter.continue_csv(path) == meter.origin_s == 5
    with meter:
        assert meter.watts == 80.0
        idle = meter.measure_idle(0.2)
        assert idle.watts == pytest.approx(80.0, rel=0.1)
        assert idle.note.endswith("at SM clock 300 MHz (P8)")
        meter.set_phase("gated")
        part = PartMeter(meter, skip_steps=1, block_s=0.05)
        part.start()
        for _ in range(6):
            time.sleep(0.05)
            part.step(8)
        part.stop()
    after = meter.reading()
    time.sleep(0.06)
    assert meter.reading() == after
    energy = part.energy()
    assert energy is not None
    assert energy.steady.num_samples == 40
    assert energy.steady.reading.joules == pytest.approx(80.0 * energy.steady.seconds, rel=0.3)
    assert energy.whole.seconds > energy.steady.seconds
    write_power_csv(path, meter.power_rows())
    rows = [line.split(",") for line in path.read_text().splitlines()[1:]]
    assert rows[0] == ["5.000", "GPU-a", "33.00", "1", "warmup"]
    assert [row[4] for row in rows] == sorted((row[4] for row in rows), key=["warmup", "", "gated"].index)
    assert rows[-1][4] == "gated"
    assert all(float(row[0]) >= 5.0 for row in rows)
    with pytest.raises(RuntimeError, match="before"):
        meter.start()


def test_idle_power_without_gpu_returns_at_once() -> None:
    with EnergyMeter(cpu=False, nvml=NvmlSystem(reason="no driver")) as meter:
        begin_s = time.monotonic()
        assert meter.measure_idle(30.0).watts is None
        assert time.monotonic() - begin_s < 5
