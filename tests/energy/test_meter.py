"""The meter against known power curves, through the real pynvml and a fake driver."""

from __future__ import annotations

from typing import Any

import pytest

from fastast.energy.meter import Window
from fastast.energy.reading import COUNTER, INTEGRAL, merge_ranks
from tests.energy.fake_driver import MODELS, FakeDriver

CURVE = "0:60/1.2:240/2.4:100/3.2:300/3.6:120"
CONSTANT = "0:150"
STEADY = ("l4-no-counter", "h200-old-driver")

# Four windows: one of 3 s, a short one within it, and two that overlap.
METER = """
import contextlib, json, os, sys, time
from fastast.energy.meter import EnergyMeter

os.environ["FAKE_NVML_T0"] = str(time.monotonic())
zero_s = float(os.environ["FAKE_NVML_T0"])
devices = json.loads(sys.argv[1])
bounds, windows = {}, {}

@contextlib.contextmanager
def window(name):
    begin_s = time.monotonic() - zero_s
    with meter.window(name) as windows[name]:
        yield
    bounds[name] = [begin_s, time.monotonic() - zero_s]

def until(second):
    time.sleep(max(0.0, zero_s + second - time.monotonic()))

with EnergyMeter(devices, cpu=False) as meter:
    with window("early"):
        until(0.6)
    first, second = window("first"), window("second")
    with window("long"):
        first.__enter__()
        until(1.0)
        with window("short"):
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
    for name, w in windows.items()
}))
"""


def energy_j(curve: str, bounds: list[float]) -> float:
    """Joules under a curve of "second:watts" steps: the plain sum that the meter must come to."""
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
def test_counter_gives_back_a_known_curve_within_2_percent(runs: dict[str, Any], model: str) -> None:
    curve = CONSTANT if model in STEADY else CURVE
    for name in ("long", "first", "second"):
        window = runs[model][name]
        assert window["source"] == COUNTER
        assert window["joules"] == pytest.approx(energy_j(curve, window["bounds"]), rel=0.02)
        assert window["seconds"] == pytest.approx(window["bounds"][1] - window["bounds"][0], abs=0.02)
        assert window["watts"] == pytest.approx(window["joules"] / window["seconds"])


@pytest.mark.parametrize("model", ["p100", "l4-no-counter", "stuck"])
def test_integral_gives_back_a_known_curve_within_3_percent(runs: dict[str, Any], model: str) -> None:
    curve = CONSTANT if model in STEADY else CURVE
    for name in ("long", "first", "second"):
        window = runs[model][name]
        assert window["source"] == INTEGRAL
        assert window["joules"] == pytest.approx(energy_j(curve, window["bounds"]), rel=0.03)
        assert window["disagreement"] is None


def test_samples_and_disagreement_are_told(runs: dict[str, Any]) -> None:
    window = runs["h200"]["long"]
    assert 0.5 * 20 * window["seconds"] < window["num_samples"] <= 20 * window["seconds"] + 2
    assert abs(window["disagreement"]) < 0.05
    assert window["conditions"] == "55 C, SM clock 1410 MHz"
    assert window["last_watts"] == 120.0
    assert runs["h200"]["long"]["notes"] == ["CPU not read: not asked for"]


def test_short_windows_say_so(runs: dict[str, Any]) -> None:
    assert any("under 2 s" in note for note in runs["t4"]["short"]["notes"])
    assert not any("under 2 s" in note for note in runs["t4"]["long"]["notes"])


def test_a_window_from_the_very_start_counts_from_there(runs: dict[str, Any]) -> None:
    for model in ("t4", "h200"):
        window = runs[model]["early"]
        expected_j = energy_j(CURVE, window["bounds"])
        assert window["joules"] == pytest.approx(expected_j, abs=0.06 * 60)  # the counter moves once in 0.1 s


def test_what_makes_a_figure_uncertain_is_noted(runs: dict[str, Any]) -> None:
    assert any("did not move" in note for note in runs["stuck"]["long"]["notes"])
    assert any("1 s averages" in note for note in runs["average"]["long"]["notes"])
    expected_j = energy_j(CURVE, runs["average"]["long"]["bounds"])
    assert runs["average"]["long"]["joules"] < 0.97 * expected_j  # lags behind a rising curve: hence the note


@pytest.mark.parametrize(("model", "reason"), [("mig", "MIG is on"), ("vgpu", "virtual GPU"), ("blind", "neither")])
def test_refused_devices_give_a_reason_and_no_figure(runs: dict[str, Any], model: str, reason: str) -> None:
    for window in runs[model].values():
        assert window["joules"] is None
        assert window["source"] is None
        assert window["watts"] is None
        assert window["last_watts"] is None
        assert reason in window["notes"][0]


def test_a_gpu_lost_on_the_way_costs_the_figure_not_the_run(runs: dict[str, Any]) -> None:
    before, across = runs["lost"]["early"], runs["lost"]["long"]
    assert before["joules"] == pytest.approx(energy_j(CURVE, before["bounds"]), rel=0.1)
    assert runs["lost"]["short"]["joules"] is not None  # ended before the loss
    assert across["joules"] is None
    assert "lost" in across["notes"][0]
    assert across["last_watts"] is None
    assert across["seconds"] == pytest.approx(across["bounds"][1] - across["bounds"][0], abs=0.02)


def test_two_ranks_never_count_a_gpu_twice(runs: dict[str, Any]) -> None:
    names = ("rank0", "rank1", "rank0 swapped", "rank1 swapped", "both", "by uuid")
    long = {name: Window.from_state(runs[name]["long"]["state"]) for name in names}
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
