"""CPU package and DRAM energy through RAPL, as Linux's powercap tree shows it, for Intel and AMD.

Layout: https://docs.kernel.org/power/powercap/powercap.html. Counters are microjoules that wrap around.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

POWERCAP_ROOT = "/sys/class/powercap"
CPUINFO = "/proc/cpuinfo"
# A package counts its energy every millisecond, so after this long it has moved, if it is real.
MOVES_WITHIN_S = 1.0
ALLOW = "sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj"
HIDDEN = (
    "the container hides the RAPL counters: start it with --security-opt systempaths=unconfined "
    "(Podman: --security-opt unmask=/sys/devices/virtual/powercap)"
)


@dataclass(slots=True)
class _Domain:
    name: str
    counter: Path
    range_uj: int
    last_uj: int
    total_uj: int = 0

    def update(self) -> None:
        now_uj = int(self.counter.read_text())
        # One wrap at most lies between two updates: the range lasts minutes, updates come every second.
        self.total_uj += (now_uj - self.last_uj) % (self.range_uj + 1)
        self.last_uj = now_uj


class Rapl:
    """Joules of every CPU package and its DRAM since this object was made.

    Args:
        root: the powercap folder.
        cpuinfo: the kernel's description of the CPU, which says why there are no counters.

    Attributes:
        names: the domains that are read ("package-0", "dram", ...).
        reason: why there is no figure, with a remedy where there is one, or None. A machine with one unreadable
            domain gives none: a part is no sum.
    """

    def __init__(self, root: str | os.PathLike[str] = POWERCAP_ROOT, cpuinfo: str | os.PathLike[str] = CPUINFO) -> None:
        self.reason: str | None = None
        self._domains: list[_Domain] = []
        self._start_s = time.monotonic()
        # "intel-rapl" is AMD's name too, and that of the TPMI driver of newer Xeons. intel-rapl-mmio shows the same
        # packages again, "psys" contains them, "core" and "uncore" are within them.
        folders = sorted(Path(root).glob("intel-rapl:*"))
        try:
            for folder in folders:
                name = (folder / "name").read_text().strip()
                if name.startswith("package") or name == "dram":
                    counter = folder / "energy_uj"
                    range_uj = int((folder / "max_energy_range_uj").read_text())
                    self._domains.append(_Domain(name, counter, range_uj, int(counter.read_text())))
            if not self._packages:
                self._fail(_why_none(Path(root), Path(cpuinfo)))
        except PermissionError:
            self._fail(f"only root may read the RAPL counters (since Linux 5.10); until the next boot: {ALLOW}")
        except FileNotFoundError as error:
            # Docker and Podman leave the links in place and hide what they point to.
            self._fail(f"RAPL counters are unreadable ({error})" if folders[0].exists() else HIDDEN)
        except (OSError, ValueError) as error:
            self._fail(f"RAPL counters are unreadable ({error})")

    @property
    def names(self) -> list[str]:
        """Names of the domains that are read."""
        return [domain.name for domain in self._domains]

    @property
    def _packages(self) -> list[_Domain]:
        return [domain for domain in self._domains if domain.name.startswith("package")]

    def joules(self) -> float | None:
        """Joules so far, or None (then see `reason`). Call it at least once a minute to see every wrap-around."""
        try:
            for domain in self._domains:
                domain.update()
        except (OSError, ValueError) as error:
            self._fail(f"RAPL counters became unreadable ({error})")
        due = time.monotonic() - self._start_s > MOVES_WITHIN_S
        if due and not all(package.total_uj for package in self._packages):
            self._fail("a RAPL counter stands still (a virtual machine that only shows it?)")
        if self.reason is not None:
            return None
        return sum(domain.total_uj for domain in self._domains) / 1e6

    def _fail(self, reason: str) -> None:
        self.reason = reason
        self._domains = []


def _why_none(root: Path, cpuinfo: Path) -> str:
    """Why the powercap tree has no package."""
    try:
        cpu = cpuinfo.read_text()
    except OSError:
        cpu = ""
    if "hypervisor" in cpu:
        return "no RAPL counters: this is a virtual machine, which is not shown those of its host"
    for vendor, since in (("AuthenticAMD", "5.11"), ("HygonGenuine", "5.11"), ("GenuineIntel", "3.13")):
        if vendor in cpu:
            where = "" if root.is_dir() else "; in a container, mount the host's /sys/class/powercap"
            return f"no RAPL counters: sudo modprobe intel_rapl_msr loads their driver (from Linux {since} on){where}"
    return "no RAPL counters: Linux has them for CPUs of Intel and AMD only"
