"""Reads pictures in threads; where their folder is gone, waits until it is back instead of giving them up."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait

import numpy as np

from fastast.data.catalog import Catalog, UnreachableError, UnreadableError
from fastast.data.folder import Folder
from fastast.data.index import show_path

_READERS = 4  # threads; reading waits more than it works
_READ_CHUNK = 32  # files a thread takes at a time, so that the first batch of an epoch is read in parallel
_TICK_S = 1.0  # between two looks for a folder that is gone, and between two calls of `on_wait`

OnWait = Callable[[], None]
OnNote = Callable[[str], None]
Read = Future[list[np.ndarray | UnreadableError]]


class Reader:
    """Reads pictures ahead, in threads.

    A picture that cannot be read is given up only if its folder was there both before and after that read.

    Args:
        catalog: the pictures.
        on_wait: called about every second while `take` waits, in its thread; what it raises ends the waiting.
        on_note: called as `on_note(line)` when a folder is gone and when it is back, in the thread of `take`.
    """

    def __init__(self, catalog: Catalog, on_wait: OnWait | None, on_note: OnNote | None) -> None:
        self._catalog = catalog
        self._on_wait = on_wait
        self._on_note = on_note
        self._pool = ThreadPoolExecutor(_READERS, thread_name_prefix="fastast-read")
        self._outages = _Outages()

    def start(self, ids: np.ndarray) -> list[Read]:
        """Begins to read some pictures, and returns at once."""
        chunks = [ids[first : first + _READ_CHUNK] for first in range(0, len(ids), _READ_CHUNK)]
        return [self._pool.submit(self._read, chunk, self._outages) for chunk in chunks]

    def take(self, reads: Sequence[Read]) -> list[np.ndarray | UnreadableError]:
        """Waits for what was started: of each picture the encoded file, uint8[bytes], or why there is none."""
        for read in reads:
            while not read.done():
                wait([read], _TICK_S)
                self._tell()
                if self._on_wait is not None and not read.done():
                    self._on_wait()
        self._tell()
        return [file for read in reads for file in read.result()]

    def drop(self) -> None:
        """Ends all that was started, without waiting for it."""
        self._outages.stop.set()
        self._outages = _Outages()

    def close(self) -> None:
        """Ends the threads; waits for the reads that they are in."""
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
        was_there = False  # the folder, just before the read
        while not outages.stop.is_set():
            try:
                return self._catalog.read_one(sample)
            except UnreachableError as error:
                folder = self._catalog.folder(sample)
                if was_there and outages.is_there(folder):
                    return error
                while not outages.is_there(folder):
                    if outages.stop.wait(_TICK_S):
                        break
                was_there = True
            except UnreadableError as error:
                return error
        raise CancelledError


class _Outages:
    """What the threads have found gone, since the last `drop`."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.notes: collections.deque[str] = collections.deque()
        self._gone: set[Folder] = set()
        self._lock = threading.Lock()

    def is_there(self, folder: Folder) -> bool:
        """Asks the folder, and makes a note if the answer is new."""
        with self._lock:  # around the question too, so that no old answer comes after a newer one
            there = folder.is_there()
            if there and folder in self._gone:
                self._gone.remove(folder)
                self.notes.append(f"{show_path(folder.path)} is back")
            elif not there and folder not in self._gone:
                self._gone.add(folder)
                self.notes.append(f"{show_path(folder.path)} is gone (unmounted?); waiting for it to come back")
            return there
