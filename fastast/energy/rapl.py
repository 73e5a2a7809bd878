"""CPU package and DRAM energy through RAPL, as Linux's powercap tree shows it.

Layout: https://docs.kernel.org/power/powercap/powercap.html. Counters are microjoules that wrap around.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

POWERCAP_ROOT = "/sys/class/powercap"


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

    Attributes:
        names: the domains that are read ("package-0", "dram", ...).
        reason: why there is no figure, or None. A machine with one unreadable domain gives none: a part is no sum.
    """

    def __init__(self, root: str | os.PathLike[str] = POWERCAP_ROOT) -> None:
        self.reason: str | None = None
        self._domains: list[_Domain] = []
        try:
            # intel-rapl serves AMD too. intel-rapl-mmio shows the same packages again, "psys" contains them.
            for folder in sorted(Path(root).glob("intel-rapl:*")):
                name = (folder / "name").read_text().strip()
                if name.startswith("package") or name == "dram":
                    counter = folder / "energy_uj"
                    range_uj = int((folder / "max_energy_range_uj").read_text())
                    self._domains.append(_Domain(name, counter, range_uj, int(counter.read_text())))
            if not any(domain.name.startswith("package") for domain in self._domains):
                self._fail("no RAPL counters here (a virtual machine, or a CPU without them)")
        except PermissionError:
            self._fail("RAPL counters are readable by root only (as root: chmod a+r the energy_uj files)")
        except (OSError, ValueError) as error:
            self._fail(f"RAPL counters are unreadable ({error})")

    @property
    def names(self) -> list[str]:
        """Names of the domains that are read."""
        return [domain.name for domain in self._domains]

    def joules(self) -> float | None:
        """Joules so far, or None (then see `reason`). Call it at least once a minute to see every wrap-around."""
        try:
            for domain in self._domains:
                domain.update()
        except (OSError, ValueError) as error:
            self._fail(f"RAPL counters became unreadable ({error})")
        if self.reason is not None:
            return None
        return sum(domain.total_uj for domain in self._domains) / 1e6

    def _fail(self, reason: str) -> None:
        self.reason = reason
        self._domains = []
