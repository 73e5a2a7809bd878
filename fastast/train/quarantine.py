"""Pictures that did not decode: noted in the run's folder, and known to all ranks."""

from __future__ import annotations

import itertools

import torch

from fastast.distributed.ranks import Ranks
from fastast.loggers.console import FewNotes, Reporter
from fastast.loggers.counters import Counters
from fastast.run_folder import RunFolder
from fastast.train.loaders import Loaders


class Quarantine:
    """Counts and lists each bad picture once, whichever rank found it.

    Args:
        folder: takes the lines of `quarantine.jsonl`.
        counters: counts them.
        reporter: shows them.
        ranks: who trains together.
    """

    def __init__(self, folder: RunFolder, counters: Counters, reporter: Reporter, ranks: Ranks) -> None:
        self._folder, self._counters, self._ranks = folder, counters, ranks
        self._notes = FewNotes(reporter)
        self._found: list[tuple[int, str, str]] = []  # here, not yet known to all ranks

    def add(self, sample_id: int, path: str, reason: str) -> None:
        """Quarantines a picture that a loader of this rank could not deliver."""
        if self._ranks.size > 1:
            self._found.append((sample_id, path, reason))
        else:
            self._record(sample_id, path, reason)

    def share(self, loaders: Loaders) -> None:
        """Gives all ranks, which call it together, the pictures that any of them has quarantined."""
        if self._ranks.size == 1:
            return
        for loader in (loaders.train, loaders.val):
            self._ranks.all_reduce(torch.from_numpy(loader.bad_ids).view(torch.uint8), "max")
        found = {path: (i, path, why) for i, path, why in itertools.chain(*self._ranks.all_gather_object(self._found))}
        for entry in found.values():
            self._record(*entry)
        self._found = []

    def end_epoch(self) -> None:
        """Shows how many notes were left out."""
        self._notes.flush("quarantined")

    def _record(self, sample_id: int, path: str, reason: str) -> None:
        self._counters.quarantined += 1
        self._folder.append_quarantine({"id": sample_id, "path": path, "reason": reason})
        self._notes.note(f"quarantined {path}", reason)
