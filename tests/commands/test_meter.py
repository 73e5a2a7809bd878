"""`fastast meter` as a user runs it: exit codes, signals, the table, the files."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from fastast.energy.metered_command import run_meter
from fastast.errors import InputError
from tests.energy.fake_driver import FakeDriver

RUN = """
import json, sys
from fastast.energy.metered_command import run_meter
options, command = json.loads(sys.argv[1]), sys.argv[2:]
sys.exit(run_meter(command, options.pop("json", None), options.pop("plot", None), **options))
"""


def start(environ: dict[str, str] | None, options: dict, *command: str) -> subprocess.Popen:
    arguments = [sys.executable, "-c", RUN, json.dumps(options), *command]
    return subprocess.Popen(arguments, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)


@pytest.fixture(scope="module")
def outcomes(driver: FakeDriver, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Finished commands by name: (exit code, stdout, stderr); they run side by side."""
    folder = tmp_path_factory.mktemp("meter")
    files = {"json": str(folder / "m.json"), "plot": str(folder / "m.png")}
    prices = {"price_per_kwh": 3600.0, "gco2_per_kwh": 36000.0}
    svg = {"json": str(folder / "none.json"), "plot": str(folder / "none.svg")}
    two = driver.environment("t4", "t4", curve="0:100")
    none = driver.environment("t4", init=12)
    children = {
        "two": start(two, files | prices, "sh", "-c", "echo out $$; sleep 2.2; exit 7"),
        "none": start(none, svg, "sleep", "0.3"),
        "mig": start(driver.environment("mig"), {}, "true"),
        "missing": start(none, {}, "no-such-command-here"),
        "forbidden": start(none, {}, "/dev/null"),
        "killed": start(none, {}, "sh", "-c", "kill -9 $$"),
    }
    done = {}
    for name, child in children.items():
        out, err = child.communicate(timeout=60)
        done[name] = (child.returncode, out, err)
    return done | {"folder": folder}


def test_exit_codes(outcomes: dict) -> None:
    codes = {name: outcomes[name][0] for name in ("two", "none", "missing", "forbidden", "killed")}
    assert codes == {"two": 7, "none": 0, "missing": 127, "forbidden": 126, "killed": 137}
    assert outcomes["missing"][2] == "fastast meter: no-such-command-here: command not found\n"
    assert "Permission denied" in outcomes["forbidden"][2]


def test_table_on_stderr_and_figures_in_json(outcomes: dict) -> None:
    _, out, err = outcomes["two"]
    assert out.startswith("out ")
    assert len(out.splitlines()) == 1
    report = json.loads((outcomes["folder"] / "m.json").read_text())
    assert report["gpu_j"] == pytest.approx(200 * report["seconds"], rel=0.02)
    assert report["mean_w"] == pytest.approx(200, rel=0.02)
    assert [device["max_w"] for device in report["devices"]] == [100.0, 100.0]
    assert report["source"] == "nvml counter"
    assert report["exit_code"] == 7
    assert report["command"][:2] == ["sh", "-c"]
    assert report["total_j"] is None or report["cpu_j"] is not None
    assert report["gpu_cost"] == pytest.approx(report["gpu_j"] / 1000)
    assert report["gpu_gco2"] == pytest.approx(report["gpu_j"] / 100)
    assert f"{report['gpu_j']:,.1f}" in err
    assert "all GPUs" in err
    assert (outcomes["folder"] / "m.png").read_bytes().startswith(b"\x89PNG")


def test_without_gpu_one_note(outcomes: dict) -> None:
    lines = [line for line in outcomes["none"][2].splitlines() if line.strip()]
    assert len(lines) == 2
    assert "wall clock" in lines[0]
    assert "GPU not read: no NVIDIA driver here" in lines[1]
    report = json.loads((outcomes["folder"] / "none.json").read_text())
    assert report["gpu_j"] is None
    assert report["mean_w"] is None
    assert report["seconds"] == pytest.approx(0.3, abs=0.25)
    assert "<svg" in (outcomes["folder"] / "none.svg").read_text()
    assert "MIG is on" in outcomes["mig"][2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_the_command(number: signal.Signals, tmp_path: Path) -> None:
    marker = tmp_path / "ready"
    script = f"trap 'exit 5' {number.name[3:]}; touch {marker}; while :; do sleep 0.05; done"
    child = start(None, {}, "sh", "-c", script)
    wait_for(marker)
    child.send_signal(number)
    _, err = child.communicate(timeout=30)
    assert child.returncode == 5  # the command's own answer to the signal
    assert "wall clock" in err


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"plot_path": "power.pdf"}, "--plot power.pdf: must end in"),
        ({"plot_path": "/no/such/folder/a.png"}, "--plot /no/such/folder/a.png"),
        ({"json_path": "/no/such/folder/a.json"}, "--json /no/such/folder/a.json"),
        ({"interval_s": 0.0}, "--interval 0"),
    ],
)
def test_bad_options_before_the_command_runs(options: dict, names: str, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    with pytest.raises(InputError, match=names):
        run_meter(["touch", str(marker)], **options)
    assert not marker.exists()


def test_missing_command() -> None:
    with pytest.raises(InputError, match="no command"):
        run_meter([])


def test_terminal_interrupt_arrives_once(tmp_path: Path) -> None:
    """The terminal sends it to the whole group, so the meter must not send it again."""
    marker, count = tmp_path / "ready", tmp_path / "count"
    # Not a shell: that would answer two quick interrupts once.
    script = """
import os, pathlib, signal, sys, time
descriptor = os.open(sys.argv[2], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
signal.signal(signal.SIGINT, lambda *_: os.write(descriptor, b"x"))
pathlib.Path(sys.argv[1]).touch()
while not os.fstat(descriptor).st_size:
    time.sleep(0.02)
end_s = time.monotonic() + 0.5
while time.monotonic() < end_s:
    time.sleep(0.02)
sys.exit(6)
"""
    try:
        parent, terminal = os.openpty()
    except OSError as error:
        pytest.skip(f"no terminal can be opened here: {error}")
    arguments = [sys.executable, "-c", RUN, "{}", sys.executable, "-c", script, str(marker), str(count)]

    def take_terminal() -> None:
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)

    child = subprocess.Popen(
        arguments, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True, preexec_fn=take_terminal
    )
    os.close(terminal)
    try:
        wait_for(marker)
        os.write(parent, b"\x03")
        assert child.wait(timeout=30) == 6
        assert count.read_text() == "x"
    finally:
        os.close(parent)
        child.kill()
