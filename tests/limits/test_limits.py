"""Power limit and clocks of a run: set, restored after every kind of end, refused in one line. On the fake driver."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import UnixStreamServer
from typing import Any, ClassVar

import pytest

from tests.conftest import ROOT
from tests.energy.fake_driver import FakeDriver

WAYS = ("end", "exception", "os._exit", "interrupt", "killed", "terminated", "fork keeps the pipe")
SET = [("p", 200.0), ("c", 1200.0)]
RESTORED = [("p", 300.0), ("c", 0.0)]


def changes(path: Path) -> list[tuple[str, float]]:
    """Every change of a limit of the first GPU, in order."""
    lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [(kind, float(value)) for _, index, kind, value in lines if index == "0"]


def environment(driver: FakeDriver, folder: Path, *models: str, **extra: str) -> dict[str, str]:
    extra = {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache"), **extra}
    return driver.environment(*(models or ("h200",)), FAKE_NVML_LIMITS=str(folder / "limits"), **extra)


def start(driver: FakeDriver, folder: Path, way: str) -> subprocess.Popen:
    folder.mkdir()
    command = [sys.executable, "-m", "tests.limits.limited_run", way, str(folder / "ready")]
    return subprocess.Popen(command, env=environment(driver, folder), cwd=ROOT, stderr=subprocess.DEVNULL)


def wait_for(condition: Any, what: str, seconds: float = 20.0) -> None:
    end_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end_s, what
        time.sleep(0.02)


def is_restored(folder: Path) -> bool:
    """Whether nothing that was set is left, and the guardian is done."""
    last = dict(changes(folder / "limits"))
    record = next((folder / "cache" / "fastast" / "limits").glob("*.json"), None)
    return last.get("p", 300.0) == 300.0 and last.get("c", 0.0) == 0.0 and (record is None or not record.read_bytes())


def end(child: subprocess.Popen, folder: Path, way: str) -> None:
    """Ends a run in one of the ways."""
    if way in ("killed", "terminated"):
        wait_for((folder / "ready").exists, "the run did not start")
        child.send_signal(signal.SIGKILL if way == "killed" else signal.SIGTERM)
    child.wait(timeout=20)


def test_limits_are_restored_after_every_kind_of_end(driver: FakeDriver, tmp_path: Path) -> None:
    children = {way: start(driver, tmp_path / way, way) for way in WAYS}
    for way, child in children.items():
        end(child, tmp_path / way, way)
    for way in WAYS:
        wait_for(lambda folder=tmp_path / way: is_restored(folder), f"{way}: not restored")
        assert changes(tmp_path / way / "limits")[:4] == SET + RESTORED, way


@pytest.mark.slow
def test_limits_are_restored_50_times_out_of_50(driver: FakeDriver, tmp_path: Path) -> None:
    """Kills at any time, while the run starts and sets its limits too, and the other ways in turn."""
    generator = random.Random(0)
    num_set = 0
    for first in range(0, 50, 5):  # five at a time
        runs = {}
        for number in range(first, first + 5):
            way = "killed early" if number % 2 else WAYS[(number // 2) % len(WAYS)]
            folder = tmp_path / str(number)
            runs[folder] = way, start(driver, folder, "killed" if way == "killed early" else way)
        for way, child in runs.values():
            if way == "killed early":
                time.sleep(generator.uniform(0.0, 1.5))
                child.kill()
        for folder, (way, child) in runs.items():
            end(child, folder, "" if way == "killed early" else way)
        for folder, (way, _) in runs.items():
            wait_for(lambda folder=folder: is_restored(folder), f"{folder.name}, {way}: not restored")
            num_set += SET[0] in changes(folder / "limits")
    assert num_set >= 30


def test_limits_of_a_killed_guardian_are_restored_by_the_next_run(driver: FakeDriver, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    child = start(driver, folder, "killed")
    wait_for((folder / "ready").exists, "the run did not start")
    guardian = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()[0]
    second = subprocess.run(
        [sys.executable, "-c", ASKING, "200", "0"], env=environment(driver, folder), capture_output=True, text=True
    )
    assert "another run has set the limits of this GPU" in second.stdout
    os.kill(int(guardian), signal.SIGKILL)
    child.kill()
    child.wait()
    assert changes(folder / "limits") == SET
    third = subprocess.run(
        [sys.executable, "-c", ASKING, "250", "0"], env=environment(driver, folder), capture_output=True, text=True
    )
    found = json.loads(third.stdout)
    assert found["before_w"] == 300.0
    assert changes(folder / "limits")[2:] == [*RESTORED, ("p", 250.0), ("p", 300.0)]


ASKING = """
import json, sys
from fastast.limits.limits import GpuLimits
from fastast.energy.nvml import open_nvml
watts, mhz = sys.argv[1:]
limits = GpuLimits(open_nvml().devices[0], watts if watts == "auto" else float(watts), int(mhz) or None)
refused = limits.open()
if refused is None:
    limits.apply()
    searches = watts == "auto" and limits.can_search()
limits.restore()
print(json.dumps({**limits.summary(), "refused": refused, "told": limits.told()}))
"""


def asked(driver: FakeDriver, folder: Path, watts: str, mhz: int = 0, *models: str, **extra: str) -> dict[str, Any]:
    return driver.start(ASKING, environment(driver, folder, *models, **extra), watts, str(mhz))()


def test_what_was_set_and_restored_is_told(driver: FakeDriver, tmp_path: Path) -> None:
    found = asked(driver, tmp_path, "200", 1200)
    assert (found["before_w"], found["power_limit_w"], found["clock_mhz"], found["by"]) == (300.0, 200.0, 1200, "nvml")
    assert found["restored"] is True
    assert found["told"] == [
        "H200: power limit 200 W (before 300 W), SM clock at most 1200 MHz during the run; restored"
    ]


def test_limits_that_are_not_permitted_name_the_command(driver: FakeDriver, tmp_path: Path) -> None:
    found = asked(driver, tmp_path, "200", 1200, FAKE_NVML_DENY="1")
    uuid = found["uuid"]
    assert found["notes"] == [
        "limits of H200: changing them takes root or CAP_SYS_ADMIN; training goes on without; to set them: "
        f"sudo nvidia-smi -i {uuid} -pl 200 && sudo nvidia-smi -i {uuid} -lgc 0,1200; to undo: "
        f"sudo nvidia-smi -i {uuid} -pl 300 && sudo nvidia-smi -i {uuid} -rgc"
    ]
    assert (found["power_limit_w"], found["clock_mhz"], found["restored"]) == (None, None, None)
    assert "80 % by hand: sudo nvidia-smi" in asked(driver, tmp_path, "auto", FAKE_NVML_DENY="1")["notes"][0]
    assert changes(tmp_path / "limits") == []


def test_limits_that_a_gpu_does_not_have(driver: FakeDriver, tmp_path: Path) -> None:
    assert asked(driver, tmp_path, "90")["refused"] == "--power-limit 90: H200 takes 100 to 350 W"
    assert "divided by MIG" in asked(driver, tmp_path, "200", 0, "mig")["notes"][0]


class Daemon(BaseHTTPRequestHandler):
    """The part of zeusd's protocol that is used."""

    calls: ClassVar[list[str]]
    gpus: ClassVar[list[dict[str, Any]]]

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"gpus": self.gpus, "cpus": []}).encode())

    def do_POST(self) -> None:
        self.calls.append(f"{self.path} {self.headers.get('Authorization')}")
        self.send_response(200)
        self.end_headers()

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *arguments: object) -> None:
        pass


def test_zeusd_sets_limits_where_nvml_may_not(driver: FakeDriver, tmp_path: Path) -> None:
    path = str(tmp_path / "zeusd.sock")
    Daemon.calls, Daemon.gpus = [], [{"id": 1, "name": "H200"}, {"id": 0, "name": "Tesla T4"}]
    server = UnixStreamServer(path, Daemon)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    denied = {"FAKE_NVML_DENY": "1", "ZEUSD_SOCK_PATH": path, "ZEUSD_TOKEN": "secret"}
    try:
        found = asked(driver, tmp_path, "200", 1200, "t4", "h200", **denied)
        assert (found["by"], found["power_limit_w"], found["restored"]) == ("zeusd", 200.0, True)
        assert Daemon.calls == [
            f"/gpu/{call}&block=true Bearer secret"
            for call in (
                "set_power_limit?gpu_ids=0&power_limit_mw=200000",
                "set_gpu_locked_clocks?gpu_ids=0&min_clock_mhz=0&max_clock_mhz=1200",
                "set_power_limit?gpu_ids=0&power_limit_mw=300000",
                "reset_gpu_locked_clocks?gpu_ids=0",
            )
        ]
        Daemon.gpus = [{"id": 0, "name": "A100"}]
        assert "zeusd sees other GPUs" in asked(driver, tmp_path, "200", 0, "t4", "h200", **denied)["notes"][0]
    finally:
        server.shutdown()
        server.server_close()
