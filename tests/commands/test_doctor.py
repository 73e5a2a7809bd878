"""What the doctor finds, and the number format it names."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from rich.console import Console

from fastast.commands import doctor_checks as doctor
from fastast.commands import health_check
from fastast.commands.doctor_checks import MISSING, OK, WARN, Check, diagnose, exit_code, gpu_findings
from fastast.device import choose_precision
from fastast.energy.nvml import NO_DRIVER, Device, NvmlSystem
from tests.conftest import ROOT, run_fastast

NEW = ["sm_75", "sm_80", "sm_90", "sm_100", "compute_120"]


def system(name: str, capability: tuple[int, int], cuda: tuple[int, int], driver: str) -> NvmlSystem:
    return NvmlSystem(devices=(Device(0, "GPU-a", name, capability),), driver=driver, cuda=cuda)


T4 = system("Tesla T4", (7, 5), (12, 8), "570.86")
H200 = system("H200", (9, 0), (13, 1), "590.10")
P100 = system("Tesla P100", (6, 0), (12, 8), "570.86")
OLD = system("Tesla T4", (7, 5), (11, 4), "470.10")


@pytest.mark.parametrize(
    ("found", "torch_cuda", "usable", "arches", "statuses", "remedy"),
    [
        (T4, "12.8", True, NEW, [OK, OK], None),
        (T4, "12.9", True, NEW, [OK, OK], None),  # newer minor versions run on this driver
        (T4, "13.2", False, NEW, [WARN, WARN], 'torch==2.10.*" torchvision nvidia-dali-cuda120'),
        (T4, None, False, [], [WARN, WARN], "nvidia-dali-cuda120"),
        (H200, None, False, [], [WARN, WARN], "torchvision nvidia-dali-cuda130"),
        (H200, "13.2", True, NEW, [OK, OK], None),
        (H200, "13.2", False, NEW, [WARN, OK], "CUDA_VISIBLE_DEVICES"),
        (P100, "12.8", True, NEW, [OK, OK, WARN], "torch==2.7.*"),
        (P100, "13.2", False, NEW, [WARN, WARN], "torch==2.7.*"),
        (P100, "12.6", True, ["sm_50", "sm_60", "sm_90"], [OK, OK], None),
        (OLD, "12.8", False, NEW, [WARN, WARN], "update the NVIDIA driver to 525"),
    ],
)
def test_driver_against_torch(
    found: NvmlSystem,
    torch_cuda: str | None,
    usable: bool,
    arches: Sequence[str],
    statuses: list[str],
    remedy: str | None,
) -> None:
    checks = gpu_findings(found, torch_cuda, usable, [found.devices[0].name] if usable else [], arches)
    assert [check.status for check in checks] == statuses
    remedies = [check.remedy for check in checks if check.remedy is not None]
    assert bool(remedies) == (remedy is not None)
    assert remedy is None or all(remedy in line for line in remedies)
    assert exit_code(checks) == 0  # training runs on CPU
    if torch_cuda == "13.2" and found is T4:
        assert any("newer than the driver" in check.value for check in checks)


def test_no_gpu_is_ok_and_broken_driver_warns() -> None:
    assert gpu_findings(NvmlSystem(reason=NO_DRIVER), "13.2", False, [], NEW)[0].status == OK
    broken = gpu_findings(NvmlSystem(reason="driver and library differ: reboot"), "13.2", False, [], NEW)[0]
    assert broken.status == WARN
    assert "reboot" in broken.value
    hidden = gpu_findings(NvmlSystem(reason=NO_DRIVER), "13.2", True, ["H200"], NEW)[0]
    assert "NVIDIA_DRIVER_CAPABILITIES" in (hidden.remedy or "")


@pytest.mark.parametrize(
    ("capability", "arches", "expected"),
    [
        ((8, 9), ["sm_80"], True),
        ((8, 0), ["sm_86"], False),
        ((9, 0), ["sm_80"], False),
        ((9, 0), ["sm_90a"], True),
        ((12, 1), ["compute_120"], True),
        ((7, 0), ["compute_75", "sm_75"], False),
    ],
)
def test_architecture_support(capability: tuple[int, int], arches: list[str], expected: bool) -> None:
    assert doctor._has_code_for(capability, arches) is expected


@pytest.fixture(scope="module")
def checks() -> list[Check]:
    return diagnose()


def test_smallest_set_follows_the_driver() -> None:
    lines = [doctor.install_line(found) for found in (NvmlSystem(reason=NO_DRIVER), T4, H200, P100)]
    assert "whl/cpu" in lines[0]
    assert [line.rpartition("-")[2] for line in lines[1:]] == ["cuda120", "cuda130", "cuda120"]


def test_this_machine_can_train(checks: list[Check]) -> None:
    by_name = {check.name: check for check in checks}
    assert exit_code(checks) == 0
    assert by_name["DALI"].status == OK
    assert by_name["torch"].value == torch.__version__
    expected = choose_precision(torch.device("cuda" if torch.cuda.is_available() else "cpu"), "auto")[1]
    assert by_name["precision"].value == expected
    for name in ("fastast", "torchvision", "GPU", "torch.compile", "GPU energy", "CPU energy", "cores", "disk"):
        assert by_name[name].value
    assert all(check.status in (OK, WARN, MISSING) for check in checks)


def test_text_and_json_agree(checks: list[Check]) -> None:
    text = io.StringIO()
    doctor.print_report(checks, Console(file=text, width=500))
    data = json.loads(json.dumps(doctor.report_data(checks)))
    assert data["can_train"] is True
    assert [check["name"] for check in data["checks"]] == [check.name for check in checks]
    for check in checks:
        assert check.value in text.getvalue()
    assert "Training can run here." in text.getvalue()


def test_missing_package_has_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)  # makes the import fail
    (check,) = doctor.check_dali()
    assert (check.status, check.needed) == (MISSING, True)
    assert check.remedy == "pip install nvidia-dali-cuda120"
    assert exit_code([check]) == 1
    text = io.StringIO()
    doctor.print_report([check], Console(file=text, width=200))
    assert "pip install nvidia-dali-cuda120" in text.getvalue()
    assert "cannot run here yet" in text.getvalue()


def test_health_check_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from fastast.cli import main; code = main(['doctor', '--quick']);"
        "print(code, *(name for name in ('torch', 'nvidia.dali', 'numpy', 'rich', 'pynvml') if name in sys.modules))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert (done.stdout, done.stderr) == ("ok\n0\n", "")
    assert not any(tmp_path.iterdir())


def test_health_check_names_everything_broken(tmp_path: Path) -> None:
    # A Python that has fastast and nothing else: no site-packages.
    code = "from fastast.cli import main; raise SystemExit(main(['doctor', '--quick']))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd="/proc", env=environment
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.count("\n") == 1
    for words in ("torch is not installed", "nvidia.dali is not installed", "/proc"):
        assert words in done.stdout


def test_health_check_finds_missing_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert health_check.broken_driver(str(tmp_path)) == []
    (tmp_path / "nvidia0").touch()
    loaded = []

    def load(name: str) -> None:
        loaded.append(name)
        if "ml" in name:
            raise OSError("cannot open shared object file")

    monkeypatch.setattr(health_check.ctypes, "CDLL", load)
    (line,) = health_check.broken_driver(str(tmp_path))
    assert loaded == ["libcuda.so.1", "libnvidia-ml.so.1"]
    assert "libnvidia-ml.so.1" in line
    assert "utility" in line


def test_health_check_needs_disk_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert health_check.broken_folder(str(tmp_path)) == []
    monkeypatch.setattr(health_check, "MIN_FREE_B", 2**62)
    (line,) = health_check.broken_folder(str(tmp_path))
    assert str(tmp_path) in line
    assert "MiB free" in line
    (line,) = health_check.broken_folder(str(tmp_path / "absent"))
    assert "absent cannot be used: No such file" in line


def test_quick_and_json_exclude_each_other() -> None:
    done = run_fastast("doctor", "--quick", "--json")
    assert done.returncode == 2
    assert "not allowed with" in done.stderr


def test_cores_are_those_that_the_quota_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.os, "sched_getaffinity", lambda pid: set(range(6)))
    monkeypatch.setattr(doctor.os, "cpu_count", lambda: 8)
    for cores, value in ((1, "; the CPU quota of the control group leaves 1 of 6"), (6, "")):
        monkeypatch.setattr(doctor, "usable_cores", lambda cores=cores: cores)
        check = doctor.check_host(0)[0]
        assert check.value == f"{cores} usable of 8, by affinity" + value
        assert check.status == ("warn" if cores == 1 else "ok")
