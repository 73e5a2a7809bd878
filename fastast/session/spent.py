"""What a run has spent in seconds or joules, over all of its sessions, killed ones included."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fastast.distributed.ranks import Ranks
from fastast.energy.energy_meter import EnergyMeter
from fastast.plan.budget import MeteredBudget
from fastast.run_folder import RunFolder
from fastast.train.trainer import Trainer

# Seconds between two entries of the record; as much of a killed session may be forgotten.
RECORD_INTERVAL_S = 0.5
# Seconds without a reading of the GPUs after which their joules count as lost; a process may have been suspended.
LOST_S = 60.0


def _unreadable(meter: EnergyMeter) -> str | None:
    """Why the joules of the GPUs cannot be read, or None if they can."""
    reading = meter.reading()
    if reading.gpu_reason is not None or not reading.devices:
        return reading.gpu_reason or "training on the CPU"
    return next((device.failure for device in reading.devices if device.failure is not None), None)


def require_energy(budget: str, meter: EnergyMeter, ranks: Ranks) -> None:
    """Call on all ranks before a run with a budget of joules.

    Raises:
        InputError: they cannot be read on one of them.
    """
    reason = next(filter(None, ranks.all_gather_object(_unreadable(meter))), None)
    if reason is not None:
        ranks.refuse(
            f"--budget {budget}: the energy of the GPU cannot be read here ({reason}); use a time or epochs instead, "
            "for example --budget 40m or --budget 5ep"
        )


class SessionMeter:
    """What this process has spent.

    Args:
        kind: "time" or "joules".
        began_s: when the command began, on the monotonic clock.
        meter: a started meter of the GPU.
        counts: False for a rank whose GPU another rank reads as well.
    """

    def __init__(self, kind: str, began_s: float, meter: EnergyMeter, *, counts: bool = True) -> None:
        self._kind, self._began_s, self._meter, self._counts = kind, began_s, meter, counts
        self._joules, self._known_s = 0.0, time.monotonic()

    def __call__(self) -> float:
        """Seconds, or joules (NaN once they could not be read for LOST_S; until then what they last were)."""
        if self._kind == "time":
            return time.monotonic() - self._began_s
        if not self._counts:
            return 0.0
        reading = self._meter.reading()
        if reading.joules is not None:
            self._joules, self._known_s = max(self._joules, reading.joules), time.monotonic()
        elif time.monotonic() - self._known_s > LOST_S:
            return float("nan")
        return self._joules


def read_record(path: Path, kind: str) -> float:
    """What a record says was spent; 0 if there is none of this kind."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        spent = float(record["spent"]) if record["kind"] == kind else 0.0
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return 0.0
    return spent if 0 <= spent < math.inf else 0.0


@contextlib.contextmanager
def recorded(path: Path, kind: str, spent: Callable[[], float]) -> Iterator[None]:
    """Keeps a record of what is spent within the block, twice a second, so that a session that is killed counts.

    One short write in place: what a SIGKILL can interrupt is not half a number. A disk that is full is passed over.
    """
    ended = threading.Event()

    def write() -> None:
        # Of one length, so that a shorter entry leaves nothing of a longer one.
        entry = f'{{"kind": "{kind}", "spent": {spent():.3f}}}'.ljust(63) + "\n"
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                os.pwrite(descriptor, entry.encode(), 0)
            finally:
                os.close(descriptor)

    def keep() -> None:
        while not ended.wait(RECORD_INTERVAL_S):
            write()

    thread = threading.Thread(target=keep, name="spent", daemon=True)
    write()
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        write()


def meter_budget(
    trainer: Trainer, meter: EnergyMeter, folder: RunFolder, began_s: float
) -> contextlib.AbstractContextManager[None] | None:
    """Meters the budget of a run from the start of its command, earlier sessions included.

    Args:
        trainer: whose budget it is.
        meter: a started meter of this rank's GPU.
        folder: the run's, which this process has locked.
        began_s: when the command began, on the monotonic clock.

    Returns:
        What keeps the record, for the first rank to enter; None where nothing is metered.
    """
    budget, ranks = trainer.budget, trainer.ranks
    if not isinstance(budget, MeteredBudget):
        return None
    kind = budget.kind
    record = ranks.call_on_first(lambda: read_record(folder.spent, kind))
    budget.spent = budget.earlier = max(budget.spent, record)
    uuids = [device.uuid for device in meter.devices]
    others = itertools.chain(*ranks.all_gather_object(uuids)[: ranks.rank])
    trainer.budget_meter.measure = SessionMeter(kind, began_s, meter, counts=not set(uuids) & set(others))
    trainer.budget_meter.watts = lambda: meter.watts
    return recorded(folder.spent, kind, trainer.budget_meter.read_alone)
