"""What the measured savings say where the dense part ran under other conditions, on the fake driver."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from fastast.energy import fairness
from fastast.energy.measured import measure_savings
from fastast.energy.parts import Blocks, PartEnergy
from fastast.energy.reading import DeviceReading, Reading
from tests.energy.fake_driver import FakeDriver

# A dense part at 200 W, 10 pictures a step, then a gated one at 100 W, 20 a step; 50 W of CPU throughout. Every case
# is metered in the same seconds, and says for each step what it read, how long it waited, and where it decoded.
SCRIPT = """
import json, os, sys, time
from pathlib import Path
from fastast.energy import fairness
from fastast.energy.energy_meter import EnergyMeter
from fastast.energy.parts import PartMeter
from fastast.energy.savings import PartCounts, energy_summary
from fastast.energy.storage_reads import Reads

os.environ["FAKE_NVML_T0"] = str(time.monotonic())
fairness.MIN_PART_S = 0.4
root = Path(sys.argv[1])
for name, text in (("name", "package-0"), ("max_energy_range_uj", "1000000000"), ("energy_uj", "0" * 12)):
    (root / name).write_text(text)
counter = os.open(root / "energy_uj", os.O_WRONLY)  # written in place: the meter never finds it empty

WARM, COLD = (0.0, 0), (0.01, 1000)  # seconds of waiting and bytes from storage, a step
cases = {
    "like": lambda half: ((10, WARM, 0.0), (20, WARM, 0.0)),
    "cold at first": lambda half: ((10 if half else 5, WARM if half else COLD, 0.0), (20, WARM, 0.0)),
    "cold": lambda half: ((5, COLD, 0.0), (20, WARM, 0.0)),
    "cold throughout": lambda half: ((5, COLD, 0.0), (10, COLD, 0.0)),
    "drift": lambda half: ((10, WARM, 0.25 if half else 0.0), (20, WARM, 0.5)),
    "decoded elsewhere": lambda half: ((10, WARM, 0.0), (20, WARM, 0.75)),
}

class Case:
    def __init__(self, plan):
        self.plan, self.read_b, self.storage_b = plan, 0, 0
        self.parts = [PartMeter(meter, skip_steps=2, block_s=0.14, reads=self.reads) for _ in range(2)]

    def reads(self):
        return Reads(self.read_b, self.storage_b)

    def step(self, part, half):
        num_samples, (wait_s, storage_b), on_cpu = self.plan(half)[part]
        self.read_b, self.storage_b = self.read_b + 1000, self.storage_b + storage_b
        self.parts[part].step(num_samples, wait_s=wait_s, on_cpu=on_cpu)

zero_s = time.monotonic()
with EnergyMeter(powercap=root.parent) as meter:
    all_cases = {name: Case(plan) for name, plan in cases.items()}
    for part in (0, 1):
        for case in all_cases.values():
            case.parts[part].start()
        for step in range(60):
            time.sleep(max(0.0, zero_s + 0.02 * (60 * part + step + 1) - time.monotonic()))
            os.pwrite(counter, b"%012d" % int(50e6 * (time.monotonic() - zero_s)), 0)
            for case in all_cases.values():
                case.step(part, step >= 30)
        for case in all_cases.values():
            case.parts[part].stop()
    run = meter.reading()

def summary(case, dense_only=False, **gated):
    dense, gated_energy = (part.energy() for part in case.parts)
    counts = PartCounts(offered=600, selected=600, backward=600)
    return energy_summary(
        dense=[] if dense_only else [counts], gate_is_dense=dense_only, run=run,
        gated=[counts if dense_only else PartCounts(**{"offered": 1200, "selected": 120, "backward": 120, **gated})],
        dense_energy=None if dense_only else dense, gated_energy=dense if dense_only else gated_energy,
    )

found = {name: summary(case) for name, case in all_cases.items()}
found["dense run"] = summary(all_cases["cold at first"], dense_only=True)
found["trained nothing"] = summary(all_cases["like"], selected=12, backward=0)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(driver: FakeDriver, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("powercap") / "intel-rapl:0"
    root.mkdir()
    return driver.start(SCRIPT, driver.environment("t4", curve="0:200/1.2:100"), str(root))()


def note_of(energy: dict[str, Any]) -> str:
    return next(note for note in energy["notes"] if "savings" in note and "null" not in note)


def test_parts_under_like_conditions(found: dict[str, Any]) -> None:
    energy = found["like"]
    assert energy["savings_measured"] == pytest.approx(0.75, abs=0.03)
    assert energy["savings_with_cpu"] == pytest.approx(0.70, abs=0.04)
    dense, gated = energy["conditions"]["dense"], energy["conditions"]["gated"]
    assert dense["temperature_c"] == gated["temperature_c"] == 55
    assert dense["from_storage"] == dense["data_wait"] == dense["cold_s"] == 0.0
    assert dense["cpu_j_per_sample"] == pytest.approx(50 * 0.02 / 10, rel=0.15)
    assert "GPU and CPU together" in note_of(energy)
    assert "CPU joules per picture" in note_of(energy)


def test_cold_page_cache_is_no_saving(found: dict[str, Any]) -> None:
    """With its cold half the dense part would take a third more a picture, and the gate would be credited with it."""
    energy = found["cold at first"]
    assert energy["savings_measured"] == pytest.approx(0.75, abs=0.03)
    assert energy["conditions"]["dense"]["cold_s"] == pytest.approx(0.6, abs=0.2)
    assert "of the dense part left out, which waited for a cold page cache" in note_of(energy)
    all_cold = found["cold"]
    assert all_cold["savings_measured"] is None
    assert "not in the page cache: left out" in note_of(all_cold)
    assert "--warmup-epochs 2" in note_of(all_cold)


def test_pictures_that_never_fit_the_page_cache_are_compared(found: dict[str, Any]) -> None:
    energy = found["cold throughout"]
    assert energy["savings_measured"] == pytest.approx(0.75, abs=0.03)
    assert energy["conditions"]["dense"]["from_storage"] == energy["conditions"]["gated"]["from_storage"] == 1.0


def test_decode_share_that_drifts_is_left_out_or_named(found: dict[str, Any]) -> None:
    drift = found["drift"]
    assert drift["savings_measured"] is None
    assert drift["conditions"]["dense"]["unsettled_s"] > 0
    assert "the CPU decoded 1" in note_of(drift)
    elsewhere = found["decoded elsewhere"]
    assert elsewhere["savings_measured"] is elsewhere["run_savings_measured"] is None
    assert "the CPU decoded 0 % of the pictures in the dense part and 75 % in the gated part" in note_of(elsewhere)
    assert elsewhere["savings_with_cpu"] == pytest.approx(0.70, abs=0.04)
    assert elsewhere["dense_j_per_sample"] > elsewhere["gated_j_per_sample"] > 0


def test_dense_run_saves_nothing_and_a_gate_that_trains_nothing_has_no_savings(found: dict[str, Any]) -> None:
    dense = found["dense run"]
    for kind in ("estimated", "arithmetic", "measured"):
        assert dense[f"savings_{kind}"] == dense[f"run_savings_{kind}"] == 0.0
    nothing = found["trained nothing"]
    for kind in ("estimated", "arithmetic", "measured"):
        assert nothing[f"savings_{kind}"] is None
    assert nothing["savings_with_cpu"] is None
    assert note_of(nothing) == "savings not measured: the gated part trained no full batch"


def part(celsius: float = 60.0, mhz: float = 1500.0, slowed: int = 0, **changes: Any) -> PartEnergy:
    device = DeviceReading("GPU-a", "T4", 100.0, 5000.0, 999, 5000.0, "instant", 999)
    device = dataclasses.replace(
        device, num_states=10, temperature_sum_c=10 * celsius, clock_sum_mhz=10 * mhz, num_slowed=slowed
    )
    whole = Reading(100.0, [device], cpu_j=10.0)
    blocks = Blocks(whole, 1000, rows=[(2500.0, 500), (2500.0, 500)], **{"read_b": 1000, **changes})
    return PartEnergy(whole, blocks, Blocks(whole.since(whole)))


@pytest.mark.parametrize(
    ("dense", "gated", "reason"),
    [
        (part(celsius=40), part(celsius=40 + fairness.MAX_TEMPERATURE_C + 1), "warms it up"),
        (part(mhz=1000), part(mhz=1000 * (1 + fairness.MAX_CLOCK) + 1), "--lock-clocks"),
        (part(slowed=3), part(slowed=1), "a lower --power-limit"),
        (part(wait_s=15.0, read_b=None), part(wait_s=1.0, read_b=None), "/proc/self/io"),
    ],
)
def test_other_differences_beyond_the_limits_give_no_figure(dense: PartEnergy, gated: PartEnergy, reason: str) -> None:
    found = measure_savings(dense, gated)
    assert found.savings is found.with_cpu is None
    assert reason in found.note
    assert measure_savings(gated, gated).savings == 0.0


def test_differences_within_the_limits_are_printed() -> None:
    found = measure_savings(part(celsius=50, wait_s=15.0), part(mhz=1400))
    assert found.savings == 0.0
    assert "GPU at 50 / 60 C; SM clock 1500 / 1400 MHz; waiting for pictures 15.0 / 0.0 % of the time" in found.note
