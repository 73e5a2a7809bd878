"""How many processor cores this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path


def usable_cores(root: str = "/") -> int:
    """The cores that affinity and the CPU quotas of the control groups leave to this process, at least 1.

    More threads than that take turns on the cores, and those that wait for each other at every operation, as OpenMP's
    do, can be many times slower than fewer.

    Args:
        root: of the file system, for tests.
    """
    return max(1, math.ceil(min(len(os.sched_getaffinity(0)), *_quotas(Path(root)), math.inf)))


def _quotas(root: Path) -> list[float]:
    """The quotas, in cores, of the control groups that hold this process; both versions."""
    cgroups = root / "sys/fs/cgroup"
    quotas = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, controllers_and_path = line.partition(":")
        controllers, _, path = controllers_and_path.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        home = cgroups / controllers if controllers else cgroups
        # In a container the path may be the host's, while its own group is mounted at the top.
        for group in (
            home,
            *(home.joinpath(*Path(path).parts[1 : end + 1]) for end in range(1, len(Path(path).parts))),
        ):
            if controllers:
                quotas.append(_quota(_read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")))
            else:
                quotas.append(_quota(*(_read(group / "cpu.max").split() + ["", ""])[:2]))
    return quotas


def _quota(quota: str, period: str) -> float:
    """Cores that a quota allows; infinity where there is none ("max", -1, no file)."""
    try:
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    except (ValueError, ZeroDivisionError):
        return math.inf


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return ""
