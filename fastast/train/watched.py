"""A run under way is watched: for requests to stop, for silence, and at its end for reads that hang."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from fastast.run_folder import RunFolder
from fastast.train.distributed import Ranks
from fastast.train.stopping import Stopped, StopRequest
from fastast.train.trainer import Trainer
from fastast.train.watchdog import STALL_FILE, Watchdog, end_stalled_run

# How long a run that has ended waits for reads that hang.
CLOSE_TIMEOUT_S = 10.0


@contextlib.contextmanager
def watched(trainer: Trainer, request: StopRequest, folder: RunFolder, ranks: Ranks) -> Iterator[None]:
    """Between two batches the trainer looks for requests to stop, and shows that it is alive."""
    timeout_s = trainer.config.stall_timeout
    if ranks.size == 1:
        trainer.waiting = request.check
    else:
        # Nothing can be saved while the others wait for this rank.
        trainer.waiting = lambda: _leave_if_asked(request, ranks)
        timeout_s *= 1.25  # only if the error of the others, who lose patience first, does not end this rank
    if timeout_s == 0:
        trainer.between = request.check
        yield
        return
    name = f"stall-rank{ranks.rank}.txt" if ranks.rank else STALL_FILE
    with Watchdog(timeout_s, lambda: end_stalled_run(folder, timeout_s, name)) as watchdog:

        def between() -> None:
            watchdog.beat()
            request.check()

        trainer.between = between
        yield


def _leave_if_asked(request: StopRequest, ranks: Ranks) -> None:
    try:
        request.check_alone()
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
