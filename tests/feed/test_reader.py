"""Reads in threads: late ones side by side, fast ones in chunks."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from fastast.feed.reader import Reader

COUNT = 320


class LateCatalog:
    """Each read takes `latency_s`; counts those in progress at once."""

    def __init__(self, latency_s: float) -> None:
        self._latency_s = latency_s
        self._lock = threading.Lock()
        self.active = self.most = 0

    def read_one(self, sample: int) -> np.ndarray:
        with self._lock:
            self.active += 1
            self.most = max(self.most, self.active)
        time.sleep(self._latency_s)
        with self._lock:
            self.active -= 1
        return np.full(1, sample, np.int64)


@contextmanager
def reader_of(catalog: Any) -> Iterator[Reader]:
    reader = Reader(catalog, None, None)
    yield reader
    reader.close()


@pytest.mark.parametrize("latency_s", [0.01, 0.03])
def test_late_reads_run_side_by_side(latency_s: float) -> None:
    catalog = LateCatalog(latency_s)
    with reader_of(catalog) as reader:
        for _ in range(2):
            files = reader.take(reader.start(np.arange(COUNT)))
            assert np.concatenate(files).tolist() == list(range(COUNT))
    assert 32 <= catalog.most <= 64


def test_fast_reads_are_handed_out_in_chunks() -> None:
    with reader_of(LateCatalog(0)) as reader:
        for _ in range(10):
            reader.take(reader.start(np.arange(COUNT)))
        assert len(reader.start(np.arange(COUNT))) <= COUNT / 8
    with reader_of(LateCatalog(0.02)) as reader:
        reader.take(reader.start(np.arange(COUNT)))
        assert len(reader.start(np.arange(COUNT))) == COUNT


def test_goes_on_with_the_threads_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[threading.Thread] = []

    def start(self: threading.Thread, start: Any = threading.Thread.start) -> None:
        if len(started) == 3:
            raise RuntimeError("can't start new thread")
        started.append(self)
        start(self)

    monkeypatch.setattr(threading.Thread, "start", start)
    catalog, stack = LateCatalog(0.001), threading.stack_size()
    with reader_of(catalog) as reader:
        files = reader.take(reader.start(np.arange(COUNT)))
    assert np.concatenate(files).tolist() == list(range(COUNT))
    assert catalog.most == 3
    assert threading.stack_size() == stack
