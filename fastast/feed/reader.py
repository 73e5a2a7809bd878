"""Reads pictures in threads; while their folder is unavailable, waits for it instead of giving them up."""

from __future__ import annotations

import collections
import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait

import numpy as np

from fastast.data.availability import DataRoot
from fastast.data.catalog import Catalog, UnreachableError, UnreadableError
from fastast.data.file_index import show_path
from fastast.feed.loader_options import OnNote, OnWait

_READERS = 4  # threads; reading waits more than it works
_READ_CHUNK = 32  # files a thread takes at a time, so that the first batch of an epoch is read in parallel
_TICK_S = 1.0  # between two checks of an unavailable folder, and between two calls of `on_wait`

Read = Future[list[np.ndarray | UnreadableError]]


class Reader:
    """Reads pictures ahead, in threads.

    A picture that cannot be read is given up only if its folder was available both before and after that read.

    Args:
        catalog: the pictures.
        on_wait, on_note: as in `LoaderOptions`; called in the thread of `take`.
    """

    def __init__(self, catalog: Catalog, on_wait: OnWait | None, on_note: OnNote | None) -> None:
        self._catalog = catalog
        self._on_wait = on_wait
        self._on_note = on_note
        self._pool = ThreadPoolExecutor(_READERS, thread_name_prefix="fastast-read")
        self._outages = _Outages()

    def start(self, ids: np.ndarray) -> list[Read]:
        """Starts to read some pictures, and returns at once."""
        chunks = [ids[first : first + _READ_CHUNK] for first in range(0, len(ids), _READ_CHUNK)]
        return [self._pool.submit(self._read, chunk, self._outages) for chunk in chunks]

    def take(self, reads: Sequence[Read]) -> list[np.ndarray | UnreadableError]:
        """Waits for started reads: of each picture the encoded file, uint8[bytes], or why there is none."""
        for read in reads:
            while not read.done():
                wait([read], _TICK_S)
                self._tell()
                if self._on_wait is not None and not read.done():
                    self._on_wait()
        self._tell()
        return [file for read in reads for file in read.result()]

    def drop(self) -> None:
        """Cancels all started reads, without waiting for them."""
        self._outages.stop.set()
        self._outages = _Outages()

    def close(self) -> None:
        """Stops the threads; waits for the read that each is in."""
        self.drop()
        self._pool.shutdown(cancel_futures=True)

    def _tell(self) -> None:
        while self._outages.notes:
            note = self._outages.notes.popleft()
            if self._on_note is not None:
                self._on_note(note)

    def _read(self, ids: np.ndarray, outages: _Outages) -> list[np.ndarray | UnreadableError]:
        return [self._read_one(sample, outages) for sample in ids.tolist()]

    def _read_one(self, sample: int, outages: _Outages) -> np.ndarray | UnreadableError:
        was_available = False  # the folder, just before the read
        while not outages.stop.is_set():
            try:
                return self._catalog.read_one(sample)
            except UnreachableError as error:
                root = self._catalog.root(sample)
                if was_available and outages.is_available(root):
                    return error
                while not outages.is_available(root):
                    if outages.stop.wait(_TICK_S):
                        break
                was_available = True
            except UnreadableError as error:
                return error
        raise CancelledError


class _Outages:
    """The folders that the threads have found unavailable since the last `drop`."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.notes: collections.deque[str] = collections.deque()
        self._gone: set[DataRoot] = set()
        self._lock = threading.Lock()

    def is_available(self, root: DataRoot) -> bool:
        """Checks the folder, and adds a note if the answer is new."""
        with self._lock:  # around the check too, so that no old answer comes after a newer one
            available = root.is_available()
            if available and root in self._gone:
                self._gone.remove(root)
                self.notes.append(f"{show_path(root.path)} is back")
            elif not available and root not in self._gone:
                self._gone.add(root)
                self.notes.append(f"{show_path(root.path)} is gone (unmounted?); waiting for it to come back")
            return available
