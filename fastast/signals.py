"""Asking a run to stop: by a signal, by a callback, or because its time is up."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

# SLURM sends SIGUSR1 ahead of a time limit (`sbatch --signal=USR1@120`), a terminal that closes SIGHUP.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
EXIT_MAX_TIME = 3
TIME_IS_UP, BY_CALLBACK = 1000, 1001  # above every signal
_SHOW_CURSOR = b"\x1b[?25h"


@contextlib.contextmanager
def stop_signals_handled(handle: Callable[[int, Any], None]) -> Iterator[None]:
    """Calls `handle` for signals that ask to stop, within the block; `nohup` keeps its meaning.

    Python lets only the main thread do so; in others, as of a server, signals keep their meaning.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    previous = {s: signal.signal(s, handle) for s in SIGNALS if not (ignored and s == signal.SIGHUP)}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


class Stopped(Exception):
    """The run was asked to stop.

    Attributes:
        reason: "signal", "max_time" or "callback", as `summary.json` says it.
        exit_code: 128 + the signal's number, 3, or 0.
    """

    def __init__(self, reason: str, exit_code: int, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.exit_code = exit_code


class StopRequest:
    """Collects requests to stop, which the loop looks at between two steps.

    Args:
        max_time_s: seconds after `began_s` after which the run is to stop; None for no limit.
        began_s: on the monotonic clock; None for now.

    Attributes:
        signum: the first signal that asked, or None.
        by_callback: whether a callback asked.
    """

    def __init__(self, max_time_s: float | None = None, began_s: float | None = None) -> None:
        self.signum: int | None = None
        self.by_callback = False
        self._max_time_s = max_time_s
        self._began_s = time.monotonic() if began_s is None else began_s

    def check(self) -> None:
        """Raises Stopped if this rank was asked to stop."""
        stop_if_requested(self.requested())

    def requested(self) -> int:
        """What this rank was asked for: the number of a signal, TIME_IS_UP, BY_CALLBACK, or 0 for nothing."""
        if self.signum is not None:
            return self.signum
        if self.by_callback:
            return BY_CALLBACK
        up = self._max_time_s is not None and time.monotonic() - self._began_s >= self._max_time_s
        return TIME_IS_UP if up else 0

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Takes signals as requests within the block; a SIGINT after one ends the process at once."""

        def handle(signum: int, frame: Any) -> None:
            if self.signum is not None and signum == signal.SIGINT:
                _leave()
            self.signum = self.signum or signum

        with stop_signals_handled(handle):
            yield


def stop_if_requested(request: int) -> None:
    """Raises Stopped for what `StopRequest.requested` returned, or for the largest that it returned on any rank."""
    if request == TIME_IS_UP:
        raise Stopped("max_time", EXIT_MAX_TIME, "stopped: --max-time is up")
    if request == BY_CALLBACK:
        raise Stopped("callback", 0, "stopped by a callback")
    if request:
        raise Stopped("signal", 128 + request, f"stopped by {signal.Signals(request).name}")


def _leave() -> NoReturn:
    """Ends the process, as no exception can while one of its threads hangs."""
    if os.isatty(1):
        os.write(1, _SHOW_CURSOR)  # which a progress bar hides
    os.write(2, b"interrupted\n")
    os._exit(128 + signal.SIGINT)
