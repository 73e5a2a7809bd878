"""RAPL on fake powercap trees: what is added up, and the reason and remedy where nothing can be."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastast.energy.energy_meter import EnergyMeter
from fastast.energy.nvml import NvmlSystem
from fastast.energy.rapl import MOVES_WITHIN_S, Rapl

INTEL = {"intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:0:1": "dram", "intel-rapl:1": "psys"}
AMD = {"intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:1": "package-1"}
TPMI = {"intel-rapl:0": "package-0-die-0", "intel-rapl:0:0": "dram", "intel-rapl:1": "package-0-die-1"}


def powercap(root: Path, zones: dict[str, str], **counters: int) -> None:
    """A powercap tree as the kernel lays it out; a counter for each zone by its name, 0 for the others."""
    for folder, name in zones.items():
        (root / folder).mkdir(exist_ok=True)
        (root / folder / "name").write_text(f"{name}\n")
        (root / folder / "max_energy_range_uj").write_text("1000000000\n")
        (root / folder / "energy_uj").write_text(f"{counters.get(name.replace('-', '_'), 0)}\n")


@pytest.mark.parametrize(
    ("zones", "names"),
    [
        (INTEL, ["package-0", "dram"]),
        (AMD, ["package-0", "package-1"]),
        (TPMI, ["package-0-die-0", "dram", "package-0-die-1"]),
    ],
)
def test_packages_and_dram_are_added_once(tmp_path: Path, zones: dict[str, str], names: list[str]) -> None:
    powercap(tmp_path, zones)
    (tmp_path / "intel-rapl-mmio:0").mkdir()
    rapl = Rapl(tmp_path)
    assert rapl.names == names
    assert rapl.joules() == 0.0
    powercap(tmp_path, zones, **{name.replace("-", "_"): 1_000_000 for name in zones.values()})
    assert rapl.joules() == len(names)


def test_counters_wrap_around(tmp_path: Path) -> None:
    powercap(tmp_path, AMD, package_0=999_000_000, package_1=5_000_000)
    rapl = Rapl(tmp_path)
    powercap(tmp_path, AMD, package_0=3_999_999, package_1=7_000_000)
    assert rapl.joules() == pytest.approx(5.0 + 2.0)
    powercap(tmp_path, AMD, package_0=4_999_999, package_1=7_000_000)
    assert rapl.joules() == pytest.approx(8.0)


@pytest.mark.parametrize(
    ("cpuinfo", "reason"),
    [
        ("vendor_id : GenuineIntel\nflags : fpu hypervisor", "this is a virtual machine"),
        ("vendor_id : AuthenticAMD\nflags : fpu", "intel_rapl_msr loads their driver (from Linux 5.11 on)"),
        ("vendor_id : GenuineIntel\nflags : fpu", "sudo modprobe intel_rapl_msr"),
        ("CPU implementer : 0x41", "Intel and AMD only"),
    ],
)
def test_missing_counters_name_the_remedy(tmp_path: Path, cpuinfo: str, reason: str) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    rapl = Rapl(tmp_path, tmp_path / "cpuinfo")
    assert rapl.joules() is None
    assert reason in (rapl.reason or "")


def test_container_that_hides_the_counters_is_named(tmp_path: Path) -> None:
    (tmp_path / "intel-rapl:0").symlink_to(tmp_path / "hidden")
    rapl = Rapl(tmp_path)
    assert rapl.joules() is None
    assert "systempaths=unconfined" in (rapl.reason or "")


def test_unreadable_domain_gives_no_sum(tmp_path: Path) -> None:
    powercap(tmp_path, INTEL)
    (tmp_path / "intel-rapl:0:1" / "energy_uj").unlink()
    assert Rapl(tmp_path).joules() is None
    assert "unreadable" in (Rapl(tmp_path).reason or "")
    powercap(tmp_path, INTEL)
    rapl = Rapl(tmp_path)
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    assert rapl.joules() is None
    assert "became unreadable" in (rapl.reason or "")


def test_denied_permission_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    powercap(tmp_path, INTEL)
    read = Path.read_text

    def refuse(path: Path, *arguments: object, **options: object) -> str:
        if path.name == "energy_uj":  # as for everyone but root, whom tests may run as
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_text", refuse)
    rapl = Rapl(tmp_path)
    assert rapl.joules() is None
    assert "sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj" in (rapl.reason or "")


def test_counter_that_stands_still_is_not_zero_joules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    monkeypatch.setattr("fastast.energy.rapl.time.monotonic", lambda: now_s)
    powercap(tmp_path, AMD)
    rapl = Rapl(tmp_path)
    powercap(tmp_path, AMD, package_0=5_000_000)
    assert rapl.joules() == 5.0
    now_s = MOVES_WITHIN_S + 0.1  # the other package has not moved
    assert rapl.joules() is None
    assert "stands still" in (rapl.reason or "")


def test_meter_says_why_the_cpu_was_not_read(tmp_path: Path) -> None:
    meter = EnergyMeter(powercap=tmp_path, nvml=NvmlSystem(reason="no driver"))
    with meter, meter.measure("work") as work:
        pass
    assert work.cpu_j is None
    assert any(note.startswith("CPU not read: no RAPL counters") for note in work.notes)
