"""Reads pictures in threads; while their folder is unavailable, waits for it instead of giving them up."""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait

import numpy as np

from fastast.data.catalog import Catalog, UnreachableError, UnreadableError
from fastast.feed.loader_options import OnNote, OnWait
from fastast.scan.availability import DataRoot
from fastast.scan.file_index import show_path

# Threads, started as they are needed. Reading waits more than it works: a network file system that answers after 10 ms
# gives each thread 100 pictures a second.
_READERS = 64
_STACK = 1 << 20  # bytes of address space of each: the usual 8 MiB would make 512 MiB for nothing
# Pictures that a thread takes at a time: as many as it reads in `_CHUNK_S`, so that slow reads run side by side, and
# handing out fast ones (up to 50 us a chunk, with the interpreter locked) costs little beside them: at 3 ms a read,
# where half of it means two pictures a chunk, it means five, and a third more pictures a second.
_MAX_CHUNK = 32
_CHUNK_S = 16e-3
_FIRST_READ_S = 1e-3  # a guess, until some reads have been timed
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
        self._pool = _Threads(_READERS, thread_name_prefix="fastast-read")
        self._outages = _Outages()
        self._read_s = _FIRST_READ_S  # running mean; threads may overwrite each other's update, which does no harm

    def start(self, ids: np.ndarray) -> list[Read]:
        """Starts to read some pictures, and returns at once."""
        size = min(max(int(_CHUNK_S / self._read_s), 1), _MAX_CHUNK)
        chunks = [ids[first : first + size] for first in range(0, len(ids), size)]
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
        began = time.perf_counter()
        files = [self._read_one(sample, outages) for sample in ids.tolist()]
        self._read_s += ((time.perf_counter() - began) / len(ids) - self._read_s) / 8
        return files

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


class _Threads(ThreadPoolExecutor):
    """Takes little address space, and goes on with the threads it has where a limit allows no further one."""

    def _adjust_thread_count(self) -> None:
        stack = threading.stack_size(_STACK)
        try:
            super()._adjust_thread_count()
        except RuntimeError:
            if not self._threads:
                raise
        finally:
            threading.stack_size(stack)


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
