"""Running totals of one GPU from hand-made samples, and how figures add up."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from fastast.energy.gpu_totals import GpuTotals
from fastast.energy.nvml import Device, ReadError
from fastast.energy.power_log import PowerLog, PowerRow, write_power_csv
from fastast.energy.reading import COUNTER, INTEGRAL, DeviceReading, Reading, merge_ranks


def totals(*, has_counter: bool = True, power_kind: str | None = "instant") -> GpuTotals:
    return GpuTotals(Device(0, "GPU-a", "T4", has_counter=has_counter, power_kind=power_kind), 0.0)


def feed(one: GpuTotals, start_s: float, end_s: float, watts: float, step_s: float = 0.05) -> None:
    """Samples of a steady GPU whose counter moves every 100 ms."""
    for index in range(round((end_s - start_s) / step_s)):
        now_s = start_s + index * step_s
        one.update(now_s, 1000.0 + watts * (int(now_s * 10 + 1e-6) / 10), watts)


def test_counter_covers_a_gap_and_integral_does_not() -> None:
    one = totals()
    feed(one, 0.0, 2.0, 100.0)
    feed(one, 6.0, 8.0, 100.0)
    reading = one.at(8.0)
    assert reading.gap_s == pytest.approx(4.05)
    assert reading.source == COUNTER
    assert reading.joules == pytest.approx(800, rel=0.02)
    without = totals(has_counter=False)
    for now_s in (0.0, 0.05, 6.0, 6.05):
        without.update(now_s, None, 100.0)
    reading = without.at(6.1)
    assert reading.joules is None
    assert "no power samples for 6.0 of 6.1 s" in reading.notes[0]


def test_temporary_power_errors_are_harmless() -> None:
    one = totals()
    for index in range(80):
        now_s = index * 0.05
        one.update(now_s, int(now_s * 10 + 1e-6) * 10.0, None if index % 3 else 100.0)
    reading = one.at(4.0)
    assert reading.counter_j == pytest.approx(400, rel=0.02)
    assert reading.integral_j == pytest.approx(400, rel=0.02)
    for index in range(80, 160):  # then it stays away
        now_s = index * 0.05
        one.update(now_s, int(now_s * 10 + 1e-6) * 10.0, None)
    later = one.at(8.0)
    assert later.joules == pytest.approx(800, rel=0.02)
    assert later.gap_s == pytest.approx(4.1, abs=0.1)


def test_silent_gpu_gives_no_figure() -> None:
    one = totals()
    feed(one, 0.0, 2.0, 100.0)
    one.fail(2.0, ReadError("the driver did not answer in time", permanent=False))
    assert one.at(4.0).joules == pytest.approx(400, rel=0.02)
    late = one.at(9.0)
    assert late.joules is None
    assert "did not answer" in late.notes[0]


def test_backwards_counter_is_refused() -> None:
    one = totals()
    feed(one, 0.0, 1.0, 100.0)
    one.update(1.0, 3.0, 100.0)
    assert one.at(1.0).joules is None
    assert "backwards" in one.at(1.0).notes[0]


def test_disagreement_is_noted() -> None:
    one = totals()
    for index in range(60):
        now_s = index * 0.05
        one.update(now_s, int(now_s * 10 + 1e-6) * 10.0, 130.0)  # the counter says 100 W
    reading = one.at(3.0)
    assert reading.source == COUNTER
    assert reading.disagreement == pytest.approx(0.3, abs=0.03)
    assert any("differ by" in note for note in reading.notes)


def device(uuid: str = "GPU-a", joules: float = 100.0, failure: str | None = None) -> DeviceReading:
    return DeviceReading(
        uuid, "T4", seconds=10.0, counter_j=joules, counter_moves=99, integral_j=joules * 1.01, failure=failure
    )


def reading(*devices: DeviceReading, cpu_j: float | None = 50.0, host: str = "h") -> Reading:
    reason = None if cpu_j is not None else "no RAPL"
    return Reading(seconds=10.0, devices=list(devices), cpu_j=cpu_j, cpu_reason=reason, host=host)


def test_total_needs_every_device() -> None:
    assert reading(device()).total_j == 150.0
    assert reading(device(), cpu_j=None).total_j is None
    assert reading(device(), device("GPU-b", failure="lost")).total_j is None
    assert reading().total_j is None
    assert reading(device(), device("GPU-b", failure="lost")).joules is None


def test_readings_add_up_in_time() -> None:
    both = reading(device(joules=100.0)) + reading(device(joules=40.0))
    assert (both.joules, both.cpu_j, both.seconds, both.num_intervals) == (140.0, 100.0, 20.0, 2)
    assert both.disagreement == pytest.approx(0.01)
    moved = reading(device("GPU-a")) + reading(device("GPU-b", joules=1.0))
    assert moved.joules == 101.0
    lacking = reading(device()) + Reading(seconds=1.0, gpu_reason="no driver", cpu_reason="no RAPL")
    assert lacking.joules is None
    assert lacking.cpu_j is None
    assert any("no driver" in note for note in lacking.notes)
    assert (reading(device(failure="lost")) + reading(device())).joules is None


def test_merged_ranks_count_gpus_and_cpus_once() -> None:
    ranks = [
        reading(device("GPU-a"), cpu_j=None),
        reading(device("GPU-b")),
        reading(device("GPU-b")),
        reading(device("GPU-c"), cpu_j=7.0, host="other"),
    ]
    merged = merge_ranks(ranks)
    assert merged.joules == 300.0
    assert merged.cpu_j == 57.0
    assert merged.seconds == 10.0
    assert merge_ranks([*ranks, Reading(seconds=10.0, gpu_reason="lost", host="h")]).joules is None
    assert merge_ranks([reading(device("GPU-a"), cpu_j=None), ranks[3]]).cpu_j is None


def test_readings_survive_a_checkpoint() -> None:
    one = reading(device(), device("GPU-b", failure="lost"), cpu_j=None)
    assert Reading.from_state(one.state_dict()) == one


def test_source_names_all_gpus() -> None:
    integral = dataclasses.replace(device("GPU-b"), counter_j=None)
    assert reading(device()).source == COUNTER
    assert reading(integral).source == INTEGRAL
    assert reading(device(), integral).source == f"{COUNTER} and {INTEGRAL}"


def test_power_log_stays_small_and_keeps_the_mean(tmp_path: Path) -> None:
    log = PowerLog(capacity=100)
    watts = [float(index % 7) + (100.0 if index >= 3000 else 0.0) for index in range(10_000)]
    for index, value in enumerate(watts):
        log.add(PowerRow(index * 0.05, "GPU-a", value, index * 10.0, "gated" if index >= 3000 else "warmup"))
    rows = log.rows()
    assert len(rows) <= 110
    for phase, part in (("warmup", watts[:3000]), ("gated", watts[3000:])):
        spans = [(row.t_s, row.w) for row in rows if row.phase == phase]
        begin_s = 0.0 if phase == "warmup" else 3000 * 0.05
        total_j = 0.0
        for end_s, mean_w in spans:
            total_j += mean_w * (end_s + 0.05 - begin_s)
            begin_s = end_s + 0.05
        assert total_j == pytest.approx(sum(part) * 0.05, rel=0.005)
    assert rows[-1].energy_mj == 99_990.0
    write_power_csv(tmp_path / "power.csv", rows)
    text = (tmp_path / "power.csv").read_text().splitlines()
    assert text[0] == "t_s,uuid,w,energy_mj,phase"
    again = PowerLog(capacity=1000)
    assert again.read_csv(tmp_path / "power.csv") == pytest.approx(rows[-1].t_s, abs=1e-3)
    write_power_csv(tmp_path / "again.csv", again.rows())
    assert (tmp_path / "again.csv").read_text().splitlines() == text


def test_missing_power_is_empty_not_zero(tmp_path: Path) -> None:
    log = PowerLog()
    log.add(PowerRow(1.0, "GPU-a", None, 5.0, ""))
    log.add(PowerRow(1.0, "GPU-b", 7.0, None, ""))
    write_power_csv(tmp_path / "power.csv", log.rows())
    assert (tmp_path / "power.csv").read_text().splitlines()[1:] == ["1.000,GPU-a,,5,", "1.000,GPU-b,7.00,,"]
