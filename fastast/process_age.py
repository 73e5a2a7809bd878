"""How long ago the command of this process began."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path


def process_age_s(argv: Sequence[str]) -> float:
    """Seconds since this process began if it runs this command line alone, else 0; 0 where that cannot be read."""
    if sys.argv[1:] != list(argv):
        return 0.0  # called from a program, which may have begun long before
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        began_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - began_s) if began_s else 0.0
