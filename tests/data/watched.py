"""A loader whose waits, notes and quarantine are watched, over data that goes away and comes back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from fastast.data import reader
from fastast.data.catalog import Catalog
from fastast.data.feed import Batch
from fastast.data.loader import TrainLoader
from fastast.data.pack import run_pack
from tests.data.pictures import jpeg, write_tree

CPU = torch.device("cpu")
COUNT = 60
FAILING = "/proc/self/mem"  # a regular file; its first byte cannot be read: EIO


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_TICK_S", 0.02)


def tree(classes: str = "ab") -> dict[str, bytes]:
    return {f"{classes[i % len(classes)]}/{i:02d}.jpg": jpeg(30 + i, 90 - i, i) for i in range(COUNT)}


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    source = write_tree(tmp_path / "source", tree())
    run_pack(source, tmp_path / "pack", shard_size_mb=0.05, thumbnails=8, say=lambda line: None)
    return tmp_path / "pack"


class Watched:
    """A loader over a catalog, and all that it reported; `after` happens at the third call of `on_wait`."""

    def __init__(self, catalog: Catalog, after: Callable[[], object] = lambda: None, *, prefetch: int = 2) -> None:
        self.notes: list[str] = []
        self.quarantined: list[int] = []
        self.num_waits = 0
        self._after = after
        self._thread = threading.get_ident()
        self.loader = TrainLoader(
            catalog,
            batch_size=4,
            image_size=24,
            device=CPU,
            seed=3,
            num_threads=1,
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
        """An epoch; `at_first` happens after the first batch, when two thirds of the pictures are not yet read."""
        for number, batch in enumerate(self.loader.epoch(0, np.random.default_rng(0).permutation(COUNT))):
            if number == 0:
                at_first()
            yield batch

    def run(self, at_first: Callable[[], object] = lambda: None) -> list[Batch]:
        """All batches of an epoch; closes the loader."""
        found = list(self.batches(at_first))
        self.loader.close()
        return found


def same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        x.num_valid == y.num_valid and all(map(torch.equal, x[:4], y[:4])) for x, y in zip(a, b, strict=True)
    )


def waited_for(folder: Path) -> list[str]:
    return [f"{folder} is gone (unmounted?); waiting for it to come back", f"{folder} is back"]
