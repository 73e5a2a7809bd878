"""Joules of a run: intervals end with the device's work, and the run folder has what a replayed GPU reads."""

import csv
import signal
import subprocess
import sys
import time

import pytest

from fastast.cli import main
from fastast.energy.parts import PartMeter
from fastast.engine.engine import Engine
from tests.conftest import ROOT
from tests.train.test_run import lines_of, options, summary_of

# Training stays on the CPU; only the power is replayed. Parts are shorter than a real run needs.
SCRIPT = """
import functools, json, sys
from fastast.cli import main
from fastast.energy import fairness
from fastast.train import run_energy
from fastast.session import session
fairness.MIN_PART_S = 0.2
session.metered_devices = lambda device: None
run_energy.PartMeter = functools.partial(run_energy.PartMeter, skip_steps=5, block_s=0.2)
print(json.dumps(main(sys.argv[1:])))
"""


@pytest.fixture(scope="module")
def metered(driver, pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("metered") / "run"
    more = {"price_per_kwh": 0.3, "gco2_per_kwh": 400, "power_limit": 200, "lock_clocks": 1200}
    arguments = options(pictures, out, epochs=12, warmup_epochs=4, **more)
    environment = driver.environment(
        "t4", curve="0:100", PYTHONPATH=str(ROOT), FAKE_NVML_LIMITS=str(out.parent / "limits")
    )
    assert driver.start(SCRIPT, environment, "train", *arguments)() == 0
    return out


def test_joules_are_those_of_the_power_curve(metered):
    summary = summary_of(metered)
    energy, seconds = summary["energy"], summary["time_s"]
    assert energy["source"] == "nvml counter"
    assert energy["idle_w"] == pytest.approx(100, rel=0.05)
    # 100 W from the start of the meter, which spends 5 s on idle power, to the end.
    assert energy["gpu_j"] == pytest.approx(100 * (seconds["total"] + 5), rel=0.15)
    assert energy["train_gpu_j"] == pytest.approx(100 * seconds["train"], rel=0.15)
    assert energy["dense_j_per_sample"] > 0
    assert energy["gated_j_per_sample"] > 0
    assert energy["savings_measured"] == pytest.approx(1 - energy["gated_j_per_sample"] / energy["dense_j_per_sample"])
    assert energy["run_savings_measured"] == pytest.approx(energy["savings_measured"] * 8 / 12, rel=0.01)
    for key, part in (("steady_dense_offered_per_s", "dense"), ("steady_offered_per_s", "gated")):
        part = energy["conditions"][part]
        assert summary["throughput"][key] == pytest.approx(part["samples"] / part["seconds"])
    for part in energy["conditions"].values():
        assert part["seconds"] > 0.2
        assert 0 <= part["data_wait"] < 1
        assert part["decoded_on_cpu"] == 0.0
    assert any("per kWh" in note and "cost" in note for note in energy["notes"])
    assert any("CO2" in note for note in energy["notes"])


def test_trace_and_metrics_have_watts_and_phases(metered):
    with open(metered / "power.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["t_s", "uuid", "w", "energy_mj", "phase"]
    assert {"warmup", "gated", "eval"} <= {row["phase"] for row in rows}
    assert all(float(row["w"]) == pytest.approx(100, abs=1) for row in rows)
    lines = lines_of(metered)
    assert all(line["gpu_w"] == pytest.approx(100, abs=1) for line in lines if line["kind"] == "step")
    assert sum(line["gpu_j"] for line in lines if line["kind"] == "epoch") > 0


def test_limits_are_set_for_the_run_and_restored(metered):
    limits = summary_of(metered)["energy"]["limits"]
    assert (limits["power_limit"], limits["lock_clocks"]) == (200.0, 1200)
    (card,) = limits["cards"]
    assert (card["before_w"], card["power_limit_w"], card["clock_mhz"], card["restored"]) == (300.0, 200.0, 1200, True)
    told = "Tesla T4: power limit 200 W (before 300 W), SM clock at most 1200 MHz during the run; restored"
    assert told in summary_of(metered)["energy"]["notes"]
    changed = [line.split()[2:] for line in (metered.parent / "limits").read_text().splitlines()]
    assert changed == [["p", "200"], ["c", "1200"], ["p", "300"], ["c", "0"]]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_limits_of_a_run_that_is_stopped_are_restored(driver, pictures, tmp_path, number):
    path = tmp_path / "limits"
    arguments = options(pictures, tmp_path / "run", epochs=100_000, power_limit=200)
    environment = driver.environment("t4", PYTHONPATH=str(ROOT), FAKE_NVML_LIMITS=str(path))
    command = [sys.executable, "-c", SCRIPT, "train", *arguments]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as run:
        wait_until(lambda: path.exists() and "p 200" in path.read_text(), 120)
        time.sleep(1)
        run.send_signal(number)
    wait_until(lambda: path.read_text().split()[-1] == "300", 5)


def wait_until(holds, seconds):
    end_s = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end_s
        time.sleep(0.05)


def test_intervals_end_once_the_device_is_done(pictures, tmp_path, monkeypatch):
    calls = []
    for owner, name in ((Engine, "synchronize"), (PartMeter, "start"), (PartMeter, "stop")):
        monkeypatch.setattr(owner, name, spied(calls, name, getattr(owner, name)))
    assert main(["train", *options(pictures, tmp_path / "run", epochs=2, checkpoint_every=0.0005)]) == 0
    assert calls.count("start") > 2  # checkpoints within an epoch as well
    assert calls == ["start", "synchronize", "stop"] * calls.count("start")


def spied(calls, name, method):
    def call(*arguments):
        calls.append(name)
        return method(*arguments)

    return call
