"""Ends a run that hangs: a thread that is stuck in a read or in a driver cannot be stopped, only reported."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import threading
import time
from collections.abc import Callable, Iterator

from fastast.distributed.ranks import Ranks
from fastast.run_folder import RunFolder
from fastast.session.session_notes import resume_command
from fastast.signals import Stopped, StopRequest
from fastast.train.trainer import Trainer

STALL_FILE = "stall.txt"
# Reporting may hang as well, for example in the run folder's own storage.
REPORT_TIMEOUT_S = 10.0
# How long a run that has ended waits for reads that hang.
CLOSE_TIMEOUT_S = 10.0


class Watchdog:
    """Calls back when the training loop has been silent for too long; a context manager.

    Time in which the whole process stood still (a suspended runtime, a stopped job, a frozen container) does not
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
        """Tells the watchdog that the loop is alive; call it for each batch."""
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


def end_stalled_run(folder: RunFolder, timeout_s: float, command: str, file_name: str = STALL_FILE) -> None:
    """Dumps the stacks of all threads to stderr and the run folder, then ends the process with code 1.

    Args:
        folder: the run.
        timeout_s: how long nothing came.
        command: that continues it.
        file_name: in the run folder.
    """
    reporting = threading.Thread(target=_report, args=(folder, timeout_s, command, file_name), daemon=True)
    reporting.start()
    reporting.join(REPORT_TIMEOUT_S)
    os._exit(1)


def _report(folder: RunFolder, timeout_s: float, command: str, file_name: str) -> None:
    path = folder.path / file_name
    message = (
        f"fastast: no batch came for {timeout_s:g} s; the stacks say where it hangs ({path} has them too): data on "
        "network storage that does not answer is the usual cause, then the GPU. The last checkpoint stands; "
        f"continue with: {command}\n"
    )
    faulthandler.dump_traceback(2, all_threads=True)
    os.write(2, message.encode())
    with contextlib.suppress(OSError), open(path, "w", encoding="utf-8") as file:
        file.write(message)
        file.flush()
        faulthandler.dump_traceback(file, all_threads=True)


@contextlib.contextmanager
def supervised(trainer: Trainer, request: StopRequest, folder: RunFolder, ranks: Ranks) -> Iterator[None]:
    """Makes the trainer check for requests to stop between two batches, and ends it when it hangs."""
    timeout_s = trainer.config.stall_timeout
    trainer.requested = request.requested
    if ranks.size == 1:
        trainer.waiting = request.check
    else:
        # Nothing can be saved while the others wait for this rank.
        trainer.waiting = lambda: _leave_if_asked(request, ranks)
        timeout_s *= 1.25  # only if the error of the others, who lose patience first, does not end this rank
    if timeout_s == 0:
        yield
        return
    name = f"stall-rank{ranks.rank}.txt" if ranks.rank else STALL_FILE
    command = resume_command(folder, trainer.config, ranks)
    with Watchdog(timeout_s, lambda: end_stalled_run(folder, timeout_s, command, name)) as watchdog:
        trainer.between = watchdog.beat
        yield


def _leave_if_asked(request: StopRequest, ranks: Ranks) -> None:
    try:
        request.check()
    except Stopped as stop:
        os.write(
            2, f"fastast: rank {ranks.rank} {stop} while it waited for pictures; the last checkpoint stands\n".encode()
        )
        os._exit(stop.exit_code)


def close_or_leave(trainer: Trainer, request: StopRequest, exit_code: int) -> None:
    """Frees the data pipelines; where one of their threads hangs, ends the process without it."""

    def leave() -> None:
        os.write(2, b"fastast: a read of the data hangs; ended without it\n")
        os._exit(exit_code)

    with request.listening(), Watchdog(CLOSE_TIMEOUT_S, leave):
        trainer.close()
