"""A loader that records what it reports, over data that becomes unavailable and comes back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from fastast.data.catalog import Catalog
from fastast.feed import Batch, reader
from fastast.packing.packer import run_pack
from tests.data.image_files import jpeg, write_tree
from tests.feed.helpers import train_loader

COUNT = 60
FAILING = "/proc/self/mem"  # a regular file; its first byte cannot be read: EIO


@pytest.fixture(autouse=True)
def short_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_TICK_S", 0.02)


def tree(classes: str = "ab") -> dict[str, bytes]:
    return {f"{classes[i % len(classes)]}/{i:02d}.jpg": jpeg(30 + i, 90 - i, i) for i in range(COUNT)}


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    source = write_tree(tmp_path / "source", tree())
    run_pack(source, tmp_path / "pack", shard_size_mb=0.05, say=lambda line: None)
    return tmp_path / "pack"


class Recorder:
    """A loader over a catalog, and all that it reported; `after` is called in the third call of `on_wait`."""

    def __init__(self, catalog: Catalog, after: Callable[[], object] = lambda: None, *, prefetch: int = 2) -> None:
        self.notes: list[str] = []
        self.quarantined: list[int] = []
        self.num_waits = 0
        self._after = after
        self._thread = threading.get_ident()
        self.loader = train_loader(
            catalog,
            batch_size=4,
            image_size=24,
            prefetch=prefetch,
            on_quarantine=lambda sample, path, reason: self.quarantined.append(sample),
            on_wait=self._wait,
            on_note=self._note,
        )

    def _wait(self) -> None:
        assert threading.get_ident() == self._thread
        self.num_waits += 1
        if self.num_waits == 3:
            self._after()

    def _note(self, line: str) -> None:
        assert threading.get_ident() == self._thread
        self.notes.append(line)

    def batches(self, at_first: Callable[[], object] = lambda: None) -> Iterator[Batch]:
        """An epoch; `at_first` is called after the first batch, when two thirds of the pictures are not yet read."""
        for number, batch in enumerate(self.loader.epoch(0, np.random.default_rng(0).permutation(COUNT))):
            if number == 0:
                at_first()
            yield batch

    def run(self, at_first: Callable[[], object] = lambda: None) -> list[Batch]:
        """All batches of an epoch; closes the loader."""
        found = list(self.batches(at_first))
        self.loader.close()
        return found


def outage_notes(folder: Path) -> list[str]:
    return [f"{folder} is gone (unmounted?); waiting for it to come back", f"{folder} is back"]
