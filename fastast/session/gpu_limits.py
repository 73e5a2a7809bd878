"""`--power-limit` and `--lock-clocks` of a run."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

from fastast.config import TrainConfig
from fastast.distributed.ranks import Ranks
from fastast.limits.limits import GpuLimits
from fastast.loggers.console import Reporter
from fastast.train.run_energy import RunEnergy


def _asked(config: TrainConfig) -> bool:
    return config.power_limit is not None or config.lock_clocks is not None


@contextlib.contextmanager
def limits_set(config: TrainConfig, energy: RunEnergy, ranks: Ranks, reporter: Reporter) -> Iterator[None]:
    """Sets the limits of every GPU that trains, once each, within the block.

    Raises:
        InputError: a GPU does not have such a limit.
    """
    if not _asked(config):
        yield
        return
    devices = energy.meter.devices
    others = set(itertools.chain(*ranks.all_gather_object([device.uuid for device in devices])[: ranks.rank]))
    own = [device for device in devices if device.uuid not in others]
    limits = GpuLimits(own[0], config.power_limit, config.lock_clocks) if own else None
    try:
        refused = ranks.all_gather_object(None if limits is None else limits.open())
        if message := next(filter(None, refused), None):
            ranks.refuse(message)
        if limits is not None:
            energy.set_limits(limits)
        notes = ranks.all_gather_object(None if limits is None else limits.notes)
        if not any(note is not None for note in notes):
            reporter.note("--power-limit and --lock-clocks: no effect without an NVIDIA GPU that can be metered")
        for note in dict.fromkeys(itertools.chain(*filter(None, notes))):
            reporter.note(note)
        yield
    finally:
        energy.restore_limits()
        if limits is not None:
            limits.restore()


def limits_summary(config: TrainConfig, energy: RunEnergy, ranks: Ranks) -> tuple[dict[str, Any] | None, list[str]]:
    """The `energy.limits` entry of `summary.json`, and lines for its notes; all ranks call it."""
    limits = energy.limits
    cards = ranks.all_gather_object(None if limits is None else (limits.summary(), limits.told()))
    if not _asked(config):
        return None, []
    known = [card for card in cards if card is not None]
    entry = {"power_limit": config.power_limit, "lock_clocks": config.lock_clocks, "cards": [card for card, _ in known]}
    return entry, [line for _, told in known for line in told]
