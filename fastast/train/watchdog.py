"""Ends a run that hangs: a thread stuck in a read or in a driver cannot be stopped, only named and left behind."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import threading
import time
from collections.abc import Callable

from fastast.run_folder import RunFolder

STALL_FILE = "stall.txt"
# Reporting may hang as well, for example in the run folder's own storage.
REPORT_TIMEOUT_S = 10.0


class Watchdog:
    """Calls back when the training loop has been silent for too long; a context manager.

    Time in which the whole process stood still (a suspended machine, a stopped job, a frozen container) does not
    count, and neither do jumps of the clock.

    Args:
        timeout_s: the longest silence.
        on_stall: called once, from the watchdog's own thread.
    """

    def __init__(self, timeout_s: float, on_stall: Callable[[], object]) -> None:
        self._timeout_s = timeout_s
        self._on_stall = on_stall
        self._beats = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def beat(self) -> None:
        """Says that the loop goes on; once for each batch."""
        self._beats += 1

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        interval = self._timeout_s / 20
        silent_s, heard, before = 0.0, self._beats, time.monotonic()
        while not self._ended.wait(interval):
            now = time.monotonic()
            # A wait that took far longer than asked means that this thread did not run either.
            silent_s += min(now - before, 2 * interval)
            before = now
            if self._beats != heard:
                silent_s, heard = 0.0, self._beats
            if silent_s >= self._timeout_s:
                self._on_stall()
                return


def end_stalled_run(folder: RunFolder, timeout_s: float, file_name: str = STALL_FILE) -> None:
    """Ends the process with code 1 after saying where every thread stands, on stderr and in the run folder.

    Args:
        folder: the run.
        timeout_s: how long nothing came.
        file_name: in the run folder.
    """
    reporting = threading.Thread(target=_report, args=(folder, timeout_s, file_name), daemon=True)
    reporting.start()
    reporting.join(REPORT_TIMEOUT_S)
    os._exit(1)


def _report(folder: RunFolder, timeout_s: float, file_name: str) -> None:
    path = folder.path / file_name
    message = (
        f"fastast: no batch came for {timeout_s:g} s; the stacks say where it hangs ({path} has them too): data on "
        "network storage that does not answer is the usual cause, then the GPU. The last checkpoint stands; "
        f"continue with: fastast train --out {folder.path} --resume\n"
    )
    faulthandler.dump_traceback(2, all_threads=True)
    os.write(2, message.encode())
    with contextlib.suppress(OSError), open(path, "w", encoding="utf-8") as file:
        file.write(message)
        file.flush()
        faulthandler.dump_traceback(file, all_threads=True)
