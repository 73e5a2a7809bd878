"""What stands for a run that has set limits, in the tests of how they are restored; ends as its argument says."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

from fastast.energy.nvml import open_nvml
from fastast.limits.limits import GpuLimits


def main(way: str, ready: str) -> None:
    limits = GpuLimits(open_nvml().devices[0], 200.0, 1200)
    with contextlib.ExitStack() as stack:
        stack.callback(limits.restore)
        assert limits.open() is None
        limits.apply()
        Path(ready).touch()
        if way == "exception":
            raise RuntimeError("the run failed")
        if way == "os._exit":  # as the watchdog does
            os._exit(1)
        if way == "interrupt":
            signal.raise_signal(signal.SIGINT)
        if way in ("killed", "terminated"):
            time.sleep(60)
        if way == "fork keeps the pipe":  # a child that outlives the run holds the guardian's input open
            if os.fork() == 0:
                time.sleep(5)
            os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
