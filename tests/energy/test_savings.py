"""The three savings, their scopes, and the summary that they end in."""

from __future__ import annotations

import json

import pytest

from fastast.energy.energy_meter import IdlePower
from fastast.energy.parts import Blocks, PartEnergy
from fastast.energy.reading import DeviceReading, Reading
from fastast.energy.savings import PartCounts, compute_summary, cost, emissions_g, energy_summary, speedup_ceiling

KEYS = [
    *("savings_estimated", "savings_arithmetic", "savings_measured"),
    *("run_savings_estimated", "run_savings_arithmetic", "run_savings_measured"),
    *("gpu_j", "train_gpu_j", "gpu_j_above_idle", "cpu_j", "idle_w"),
    *("dense_j_per_sample", "gated_j_per_sample", "savings_with_cpu", "conditions", "limits", "source", "notes"),
]
NONE = PartCounts()
WARMUP = PartCounts(offered=10_000, selected=10_000, backward=10_000)
GATED = PartCounts(offered=30_000, selected=3_000, backward=2_990, scored=30_000)


def reading(joules: float, seconds: float, celsius: float = 60.0, failure: str | None = None) -> Reading:
    device = DeviceReading("GPU-a", "T4", seconds, joules, 999, joules, "instant", 999, failure=failure)
    device.num_states, device.temperature_sum_c, device.clock_sum_mhz = 10, 10 * celsius, 10 * 1500.0
    return Reading(seconds=seconds, devices=[device], cpu_j=10.0, host="h")


def part(joules: float, seconds: float, samples: int, spread: float = 0.1, celsius: float = 60.0) -> PartEnergy:
    blocks = [(joules / 4 * (1 + sign * spread), samples // 4) for sign in (-1, 1, -1, 1)]
    steady = Blocks(reading(joules, seconds, celsius), samples, rows=blocks)
    return PartEnergy(reading(joules + 50, seconds + 5, celsius), steady, Blocks(reading(0.0, 0.0)))


def summary(**changes: object) -> dict:
    arguments = {
        "dense": WARMUP,
        "gated": GATED,
        "gate_is_dense": False,
        "run": reading(40_000.0, 500.0),
        "idle": IdlePower(20.0, "idle 20 W at P8"),
        "dense_energy": part(10_000.0, 100.0, 10_000, celsius=50.0),
        "gated_energy": part(12_000.0, 200.0, 30_000),
    }
    arguments |= changes
    arguments |= {name: [arguments[name]] for name in ("dense", "gated")}
    return energy_summary(**arguments)  # type: ignore[arg-type]


def test_summary_has_the_contract_keys() -> None:
    found = summary()
    assert list(found) == KEYS
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_estimated_and_arithmetic_follow_their_formulas() -> None:
    found = summary()
    # The 10 selected samples that did not fill a batch are neither work nor saving.
    assert found["savings_estimated"] == pytest.approx(1 - (2_990 + 0.01 * 27_000) / 29_990)
    assert found["savings_arithmetic"] == pytest.approx(1 - (30_000 + 3 * 2_990) / (3 * 29_990))
    # The whole run: warm-up active throughout.
    assert found["run_savings_estimated"] == pytest.approx(1 - (12_990 + 0.01 * 27_000) / 39_990)
    assert found["run_savings_arithmetic"] == pytest.approx(1 - (30_000 + 30_000 + 3 * 2_990) / (3 * 39_990))


def test_leftover_rows_save_nothing() -> None:
    dense = summary(gated=PartCounts(offered=160, selected=160, backward=128), dense=NONE, gate_is_dense=True)
    assert dense["savings_estimated"] == dense["savings_arithmetic"] == 0.0
    # Rows left over by the warm-up and trained in the gated part count there.
    warmup = PartCounts(offered=160, selected=160, backward=128)
    found = summary(dense=warmup, gated=PartCounts(offered=160, selected=16, backward=48))
    assert found["run_savings_arithmetic"] == pytest.approx(1 - 3 * 176 / (3 * 320))


def test_gated_part_that_trained_nothing_has_no_savings() -> None:
    found = summary(gated=PartCounts(offered=160, selected=16, backward=0, scored=160))
    assert found["savings_estimated"] is None
    assert found["savings_arithmetic"] is None
    assert "savings of the gated part are null: it trained no full batch" in found["notes"]


def test_run_savings_include_warmup() -> None:
    """40 epochs of which 10 dense, 10 %: at most 3.1x and 67 %, whatever the gated part says."""
    found = energy_summary(
        dense=[PartCounts(offered=10, selected=10, backward=10)],
        gated=[PartCounts(offered=30, selected=3, backward=3)],
        gate_is_dense=False,
        run=Reading(seconds=1.0, gpu_reason="none", cpu_reason="none"),
    )
    assert found["savings_estimated"] == pytest.approx(0.891)
    assert found["run_savings_estimated"] == pytest.approx(0.66825)
    assert 1 / (1 - found["run_savings_arithmetic"]) == pytest.approx(3.08, abs=0.01)


def test_compute_and_ceiling() -> None:
    found = compute_summary([WARMUP], [GATED])
    assert found["forward_units"] == 30_000 + 30_000 + 3 * 2_990
    assert found["dense_forward_units"] == 3 * 39_990
    assert found["speedup_ceiling"] == pytest.approx(3 / 1.3)
    assert speedup_ceiling(PartCounts(offered=100, selected=10, scored=100, score_units=0.25)) == pytest.approx(
        3 / 0.55
    )
    assert speedup_ceiling(PartCounts(offered=100, selected=10)) == pytest.approx(10)  # decides before decode
    assert speedup_ceiling(WARMUP) == 1.0
    assert speedup_ceiling(NONE) is None


def test_measured_savings_per_offered_sample() -> None:
    found = summary()
    assert found["dense_j_per_sample"] == pytest.approx(1.0)
    # Of 30,000 offered samples 10 were selected and filled no batch.
    assert found["gated_j_per_sample"] == pytest.approx(12_000 / 29_990)
    assert found["savings_measured"] == pytest.approx(1 - 12_000 / 29_990)
    assert found["run_savings_measured"] == pytest.approx(found["savings_measured"] * 29_990 / 39_990)
    assert found["gpu_j"] == 40_000.0
    assert found["train_gpu_j"] == 22_100.0  # first steps included
    assert found["gpu_j_above_idle"] == 40_000.0 - 20.0 * 500.0
    assert found["idle_w"] == 20.0
    assert found["cpu_j"] == 10.0
    assert found["source"] == "nvml counter"
    note = next(note for note in found["notes"] if note.startswith("measured"))
    # Each part: four blocks +-10 % of the mean: (0.2 / sqrt 3) / 2 = 5.8 % of it.
    error = 0.4 * 2**0.5 * 0.1 / 3**0.5
    assert f"60.0 % +- {100 * error:.1f} %" in note
    assert "dense / gated: GPU at 50 / 60 C" in note
    assert "idle 20 W at P8" in found["notes"]


def test_work_counts_by_the_size_of_the_pictures() -> None:
    """A warm-up on small pictures, and a gated part on small and large ones."""
    warmup = [PartCounts(offered=100, selected=100, backward=90, unit=0.25)]
    gated = [
        PartCounts(offered=100, selected=10, backward=20, scored=100, unit=0.25),
        PartCounts(offered=100, selected=20, backward=10, scored=100),
    ]
    found = compute_summary(warmup, gated)
    assert found["forward_units"] == 0.25 * (3 * 90 + 3 * 20 + 100) + 3 * 10 + 100
    assert found["dense_forward_units"] == 3 * (0.25 * (90 + 110) + 90)
    assert found["speedup_ceiling"] == 3 * 125 / (0.25 * (30 + 100) + 60 + 100)
    energies = {"dense_energy": part(10_000.0, 100.0, 100), "gated_energy": part(12_000.0, 200.0, 200)}
    run = energy_summary(dense=warmup, gated=gated, gate_is_dense=False, run=reading(1.0, 1.0), **energies)
    assert run["run_savings_arithmetic"] == 1 - found["forward_units"] / found["dense_forward_units"]
    assert run["savings_measured"] is run["run_savings_measured"] is None
    assert any("pictures of other sizes" in note for note in run["notes"])
    assert run["dense_j_per_sample"] == pytest.approx(10_000 / 90)  # what was measured stays


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dense_energy": None, "dense": NONE}, "no dense part"),
        ({"gated_energy": None}, "no gated part"),
        ({"dense_energy": part(2_000.0, 29.0, 2_000)}, "the dense part trained for 29 s"),
        ({"gated_energy": part(2_000.0, 12.0, 2_000)}, "the gated part trained for 12 s"),
    ],
)
def test_measured_savings_need_30_seconds_each(changes: dict, reason: str) -> None:
    found = summary(**changes)
    assert found["savings_measured"] is None
    assert found["run_savings_measured"] is None
    assert any(reason in note for note in found["notes"])
    assert found["savings_arithmetic"] is not None


def test_lost_gpu_gives_null_and_a_reason() -> None:
    lost = reading(40_000.0, 500.0, failure="the GPU is lost")
    gated = part(12_000.0, 200.0, 30_000)
    gated.steady.reading.devices[0].failure = "the GPU is lost"
    found = summary(run=lost, gated_energy=gated)
    for key in ("gpu_j", "gpu_j_above_idle", "savings_measured", "gated_j_per_sample", "source"):
        assert found[key] is None
    assert found["dense_j_per_sample"] == pytest.approx(1.0)
    assert any("lost" in note for note in found["notes"])


def test_without_gpu_all_is_null_with_one_reason() -> None:
    nothing = Reading(seconds=9.0, gpu_reason="no NVIDIA driver here", cpu_reason="no RAPL counters here", host="h")
    empty = PartEnergy(nothing, Blocks(nothing, 100), Blocks(nothing))
    found = summary(run=nothing, idle=IdlePower(None, "not measured"), dense_energy=empty, gated_energy=empty)
    measured = [key for key in KEYS if key.endswith(("_j", "_w", "_sample", "source", "above_idle", "measured"))]
    assert len(measured) == 10
    assert [found[key] for key in measured] == [None] * 10
    assert sum("no NVIDIA driver" in note for note in found["notes"]) == 1
    assert sum("no RAPL" in note for note in found["notes"]) == 1


def test_dense_run_saves_nothing() -> None:
    energy = part(10_000.0, 100.0, 10_000)
    found = summary(dense=NONE, gated=WARMUP, gate_is_dense=True, dense_energy=None, gated_energy=energy)
    assert [found[key] for key in KEYS[:6]] == [0.0] * 6
    assert found["dense_j_per_sample"] == found["gated_j_per_sample"] == pytest.approx(1.0)
    unread = summary(dense=NONE, gated=WARMUP, gate_is_dense=True, dense_energy=None, gated_energy=None)
    assert unread["savings_measured"] is None  # not zero: nothing was measured
    assert unread["savings_arithmetic"] == 0.0


def test_nothing_offered_is_no_savings() -> None:
    found = summary(dense=NONE, gated=NONE, dense_energy=None, gated_energy=None)
    assert [found[key] for key in KEYS[:6]] == [None] * 6


def test_price_and_emissions() -> None:
    assert cost(3.6e6, 0.3) == pytest.approx(0.3)
    assert emissions_g(7.2e6, 400.0) == pytest.approx(800.0)
