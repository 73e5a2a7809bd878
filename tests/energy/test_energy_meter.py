"""The meter against known power curves, through the real pynvml and a fake driver."""

from __future__ import annotations

from typing import Any

import pytest

from fastast.energy.energy_meter import Measurement
from fastast.energy.reading import COUNTER, INTEGRAL, merge_ranks
from tests.energy.fake_driver import MODELS, FakeDriver

CURVE = "0:60/1.2:240/2.4:100/3.2:300/3.6:120"
CONSTANT = "0:150"
STEADY = ("l4-no-counter", "h200-old-driver")

# Four blocks: one of 3 s, a short one within it, and two that overlap.
METER = """
import contextlib, json, os, sys, time
from fastast.energy.energy_meter import EnergyMeter

os.environ["FAKE_NVML_T0"] = str(time.monotonic())
zero_s = float(os.environ["FAKE_NVML_T0"])
devices = json.loads(sys.argv[1])
bounds, blocks = {}, {}

@contextlib.contextmanager
def block(name):
    begin_s = time.monotonic() - zero_s
    with meter.measure(name) as blocks[name]:
        yield
    bounds[name] = [begin_s, time.monotonic() - zero_s]

def until(second):
    time.sleep(max(0.0, zero_s + second - time.monotonic()))

with EnergyMeter(devices, cpu=False) as meter:
    with block("early"):
        until(0.6)
    first, second = block("first"), block("second")
    with block("long"):
        first.__enter__()
        until(1.0)
        with block("short"):
            until(1.5)
        second.__enter__()
        until(3.0)
        first.__exit__(None, None, None)
        until(3.8)
    second.__exit__(None, None, None)
    watts = meter.watts

print(json.dumps({
    name: dict(
        bounds=bounds[name], joules=w.joules, watts=w.watts, seconds=w.seconds, source=w.source,
        num_samples=w.num_samples, disagreement=w.disagreement, notes=w.notes, state=w.state_dict(),
        integral_j=[d.integral_j for d in w.devices], conditions=w.conditions, last_watts=watts,
    )
    for name, w in blocks.items()
}))
"""


def energy_j(curve: str, bounds: list[float]) -> float:
    """Joules under a curve of "second:watts" steps: the sum that the meter must reproduce."""
    steps = [tuple(map(float, point.split(":"))) for point in curve.split("/")]
    total_j = 0.0
    for index, (start_s, watts) in enumerate(steps):
        end_s = steps[index + 1][0] if index + 1 < len(steps) else float("inf")
        total_j += watts * max(0.0, min(end_s, bounds[1]) - max(start_s, bounds[0]))
    return total_j


@pytest.fixture(scope="module")
def runs(driver: FakeDriver) -> dict[str, Any]:
    """What the meter said of every model; the children run side by side."""
    ranks = {"rank0": "[0]", "rank1": "[1]"}
    started = {}
    for model in MODELS:
        curve = CONSTANT if model in STEADY else CURVE
        started[model] = driver.start(METER, driver.environment(model, curve=curve), "null")
    started["average"] = driver.start(METER, driver.environment("l4-no-counter", curve=CURVE), "null")
    for rank, devices in ranks.items():
        environ = driver.environment("t4", "a100", curve=CURVE, CUDA_DEVICE_ORDER="PCI_BUS_ID")
        started[rank] = driver.start(METER, environ, devices)
    uuid = "GPU-00000001-aaaa-bbbb-cccc-0123456789ab"
    started["by uuid"] = driver.start(METER, driver.environment("t4", "a100", curve=CURVE), f'["{uuid}"]')
    environ = driver.environment("t4", "t4", curve=CURVE, CUDA_VISIBLE_DEVICES="1,0")
    for rank, devices in ranks.items():
        started[f"{rank} swapped"] = driver.start(METER, environ, devices)
    started["both"] = driver.start(METER, environ, "null")
    return {name: finish() for name, finish in started.items()}


@pytest.mark.parametrize("model", ["t4", "a100", "h200", "h200-old-driver", "flaky", "counter-only"])
def test_counter_matches_known_curve(runs: dict[str, Any], model: str) -> None:
    curve = CONSTANT if model in STEADY else CURVE
    for name in ("long", "first", "second"):
        block = runs[model][name]
        assert block["source"] == COUNTER
        assert block["joules"] == pytest.approx(energy_j(curve, block["bounds"]), rel=0.02)
        assert block["seconds"] == pytest.approx(block["bounds"][1] - block["bounds"][0], abs=0.02)
        assert block["watts"] == pytest.approx(block["joules"] / block["seconds"])


@pytest.mark.parametrize("model", ["p100", "l4-no-counter", "stuck"])
def test_integral_matches_known_curve(runs: dict[str, Any], model: str) -> None:
    curve = CONSTANT if model in STEADY else CURVE
    for name in ("long", "first", "second"):
        block = runs[model][name]
        assert block["source"] == INTEGRAL
        assert block["joules"] == pytest.approx(energy_j(curve, block["bounds"]), rel=0.03)
        assert block["disagreement"] is None


def test_samples_and_disagreement(runs: dict[str, Any]) -> None:
    block = runs["h200"]["long"]
    assert 0.5 * 20 * block["seconds"] < block["num_samples"] <= 20 * block["seconds"] + 2
    assert abs(block["disagreement"]) < 0.05
    assert block["conditions"] == "55 C, SM clock 1410 MHz"
    assert block["last_watts"] == 120.0
    assert runs["h200"]["long"]["notes"] == ["CPU not read: not asked for"]


def test_short_measurement_is_noted(runs: dict[str, Any]) -> None:
    assert any("under 2 s" in note for note in runs["t4"]["short"]["notes"])
    assert not any("under 2 s" in note for note in runs["t4"]["long"]["notes"])


def test_measurement_from_the_start(runs: dict[str, Any]) -> None:
    for model in ("t4", "h200"):
        block = runs[model]["early"]
        expected_j = energy_j(CURVE, block["bounds"])
        assert block["joules"] == pytest.approx(expected_j, abs=0.06 * 60)  # the counter moves once in 0.1 s


def test_uncertain_figures_are_noted(runs: dict[str, Any]) -> None:
    assert any("did not move" in note for note in runs["stuck"]["long"]["notes"])
    assert any("1 s averages" in note for note in runs["average"]["long"]["notes"])
    expected_j = energy_j(CURVE, runs["average"]["long"]["bounds"])
    assert runs["average"]["long"]["joules"] < 0.97 * expected_j  # lags behind a rising curve: hence the note


@pytest.mark.parametrize(("model", "reason"), [("mig", "MIG is on"), ("vgpu", "virtual GPU"), ("blind", "neither")])
def test_refused_devices_give_a_reason(runs: dict[str, Any], model: str, reason: str) -> None:
    for block in runs[model].values():
        assert block["joules"] is None
        assert block["source"] is None
        assert block["watts"] is None
        assert block["last_watts"] is None
        assert reason in block["notes"][0]


def test_lost_gpu_gives_no_figure(runs: dict[str, Any]) -> None:
    before, across = runs["lost"]["early"], runs["lost"]["long"]
    assert before["joules"] == pytest.approx(energy_j(CURVE, before["bounds"]), rel=0.1)
    assert runs["lost"]["short"]["joules"] is not None  # ended before the loss
    assert across["joules"] is None
    assert "lost" in across["notes"][0]
    assert across["last_watts"] is None
    assert across["seconds"] == pytest.approx(across["bounds"][1] - across["bounds"][0], abs=0.02)


def test_ranks_count_each_gpu_once(runs: dict[str, Any]) -> None:
    names = ("rank0", "rank1", "rank0 swapped", "rank1 swapped", "both", "by uuid")
    long = {name: Measurement.from_state(runs[name]["long"]["state"]) for name in names}
    for first, second in (("rank0", "rank1"), ("rank0 swapped", "rank1 swapped")):
        ranks = [long[first], long[second]]
        assert [len(rank.devices) for rank in ranks] == [1, 1]
        assert ranks[0].devices[0].uuid != ranks[1].devices[0].uuid
        merged = merge_ranks(ranks)
        assert merged.joules == pytest.approx(ranks[0].joules + ranks[1].joules)
    assert long["rank0 swapped"].devices[0].uuid.startswith("GPU-00000001")
    both = long["both"]
    assert len(both.devices) == 2
    assert both.joules == pytest.approx(2 * energy_j(CURVE, runs["both"]["long"]["bounds"]), rel=0.02)
    # Ranks that see each other's GPU add nothing.
    again = merge_ranks([long["rank0 swapped"], both, long["rank1 swapped"]])
    assert len(again.devices) == 2
    assert again.joules == pytest.approx(both.joules, rel=0.03)
    assert [device.uuid for device in long["by uuid"].devices] == ["GPU-00000001-aaaa-bbbb-cccc-0123456789ab"]
