"""Pictures that did not decode: noted in the run's folder, and known to all ranks."""

from __future__ import annotations

import itertools

import torch

from fastast.loggers.console import FewNotes, Reporter
from fastast.run_folder import RunFolder
from fastast.train.distributed import Ranks
from fastast.train.feeds import Feeds
from fastast.train.journal import Journal


class Quarantine:
    """Counts and lists each bad picture once, whichever rank found it.

    Args:
        folder: takes the lines of `quarantine.jsonl`.
        journal: counts them.
        reporter: shows them.
        ranks: who trains together.
    """

    def __init__(self, folder: RunFolder, journal: Journal, reporter: Reporter, ranks: Ranks) -> None:
        self._folder, self._journal, self._ranks = folder, journal, ranks
        self._notes = FewNotes(reporter)
        self._found: list[tuple[int, str, str]] = []  # here, not yet known to all ranks

    def add(self, sample_id: int, path: str, reason: str) -> None:
        """Takes a picture that a feed of this rank has set aside."""
        if self._ranks.size > 1:
            self._found.append((sample_id, path, reason))
        else:
            self._record(sample_id, path, reason)

    def share(self, feeds: Feeds) -> None:
        """Tells all ranks, which call it together, what any of them has set aside."""
        if self._ranks.size == 1:
            return
        for feed in (feeds.train, feeds.val):
            self._ranks.reduce(torch.from_numpy(feed.bad_ids).view(torch.uint8), "max")
        found = {path: (i, path, why) for i, path, why in itertools.chain(*self._ranks.share(self._found))}
        for entry in found.values():
            self._record(*entry)
        self._found = []

    def end_epoch(self) -> None:
        """Shows how many notes were left out."""
        self._notes.flush("quarantined")

    def _record(self, sample_id: int, path: str, reason: str) -> None:
        self._journal.account.quarantined += 1
        self._folder.append_quarantine({"id": sample_id, "path": path, "reason": reason})
        self._notes.note(f"quarantined {path}", reason)
