"""Scans the files of an index, and caches what it finds between runs.

The cache holds one file for each set of folders, written atomically. A missing, damaged or unwritable one only means a
new scan.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fastast.atomic_files import cache_root, write_whole
from fastast.scan.file_index import COLUMNS, FileIndex
from fastast.scan.image_scan import scan_file

Progress = Callable[[int, int], None]

SCAN_VERSION = 2  # raise it when the scan changes what it accepts
_CHUNK = 256  # files handed to a thread at a time


def stamp_files(index: FileIndex) -> None:
    """Fills in the stamps; reads no file."""
    with ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as pool:

        def stamp_chunk(first: int) -> None:
            rows = range(first, min(first + _CHUNK, len(index)))
            index.stamps[rows.start : rows.stop] = [_stamp(index.path(row)) for row in rows]

        list(pool.map(stamp_chunk, range(0, len(index), _CHUNK)))


def scan_files(index: FileIndex, progress: Progress | None = None) -> None:
    """Fills in stamps, sizes and reasons, from the cache where a file's size and mtime are unchanged.

    Args:
        index: what `list_files` returned; changed in place.
        progress: called now and then as `progress(done, total)`.
    """
    cache_file = _cache_file(index)
    cached = _load_cache(cache_file)
    known = _match(index, cached)

    def scan_chunk(first: int) -> tuple[int, dict[int, str], bool]:
        rows = np.arange(first, min(first + _CHUNK, len(index)))
        index.stamps[rows] = [_stamp(index.path(row)) for row in rows.tolist()]
        if cached is not None:
            # Only acceptance is cached: a file that was refused may have been made readable since.
            same = (known[rows] >= 0) & (cached.stamps[known[rows]] == index.stamps[rows]).all(axis=1)
            index.sizes[rows[same]] = cached.sizes[known[rows[same]]]
        reasons, changed = {}, False
        for row in rows[index.sizes[rows, 0] == 0].tolist():
            header = scan_file(index.path(row))
            index.sizes[row] = header.height, header.width
            if header.reason is not None:
                reasons[row] = header.reason
            else:
                changed = True
        return int(rows[-1]) + 1, reasons, changed

    changed = cached is None or len(cached) != len(index)
    with ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as pool:
        for done, reasons, scanned in pool.map(scan_chunk, range(0, len(index), _CHUNK)):
            index.reasons.update(reasons)
            changed |= scanned
            if progress is not None:
                progress(done, len(index))
    if changed:
        _save_cache(cache_file, index)


def _stamp(path: bytes) -> tuple[int, int]:
    """Size in bytes and mtime in ns; -1, -1, which no cached good file has, if there is no regular file."""
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else (-1, -1)


# --------------------------------------------------------------------------------------------------- cache


def _cache_file(index: FileIndex) -> Path:
    """Of the folders, and of the part of them that a list names: two splits of one folder have a cache each."""
    parts = [index.part] if index.part else []
    key = hashlib.sha256(b"\0".join([*map(os.path.realpath, index.roots), *parts])).hexdigest()
    return cache_root() / f"scan-{key[:32]}.npz"


def _save_cache(path: Path, index: FileIndex) -> None:
    arrays = {name: getattr(index, name) for name in COLUMNS}
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(
            path,
            lambda file: np.savez(
                file,
                version=np.array(SCAN_VERSION),
                names=np.frombuffer(index.names, np.uint8),
                **arrays,
            ),
        )


def _load_cache(path: Path) -> FileIndex | None:
    """The cached index, or None if there is none that can be trusted."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if int(file["version"]) != SCAN_VERSION:
                return None
            names = file["names"].tobytes()  # first: for a moment it takes twice its memory
            arrays = {name: file[name] for name in COLUMNS}
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile):
        return None
    count = arrays["starts"].size
    if not count:
        return None  # there is nothing in it to find again
    if any(arrays[n].shape != (count, *tail) or arrays[n].dtype.kind != "i" for n, tail in COLUMNS.items()):
        return None
    return FileIndex(
        roots=[],
        classes=[],
        ignored={},
        names=names,
        labels=np.zeros(count, np.int32),
        reasons={},
        **arrays,
    )


def _match(index: FileIndex, cached: FileIndex | None) -> np.ndarray:
    """int64[N]: the cached row of each file, -1 where it is new."""
    if cached is None:
        return np.full(len(index), -1, np.int64)
    same = (
        index.names == cached.names
        and np.array_equal(index.lengths, cached.lengths)
        and np.array_equal(index.root_of, cached.root_of)
    )
    if same:
        return np.arange(len(index))
    # Keys of 64 bits, not names: a chance collision would need the same size and mtime, too, to do harm.
    keys, known = _keys(index), _keys(cached)
    # Both lists are in the same order, so few additions leave a long head and tail alike.
    shorter = min(len(keys), len(known))
    head = int(np.argmin(np.append(keys[:shorter] == known[:shorter], False)))
    tail = int(np.argmin(np.append((keys[len(keys) - shorter :] == known[len(known) - shorter :])[::-1], False)))
    tail = min(tail, shorter - head)
    rows = np.full(len(keys), -1, np.int64)
    rows[:head] = np.arange(head)
    rows[len(keys) - tail :] = np.arange(len(known) - tail, len(known))
    new, old = keys[head : len(keys) - tail], known[head : len(known) - tail]
    if len(new) and len(old):
        order = np.argsort(old)
        found = order[np.minimum(np.searchsorted(old, new, sorter=order), len(old) - 1)]
        rows[head : len(keys) - tail] = np.where(old[found] == new, head + found, -1)
    return rows


def _keys(index: FileIndex) -> np.ndarray:
    """int64[N]: a hash of each root and name, valid in this process."""

    def each() -> Iterator[int]:
        for begin in range(0, len(index), 65536):
            rows = slice(begin, begin + 65536)
            columns = (column[rows].tolist() for column in (index.root_of, index.starts, index.lengths))
            for root, start, length in zip(*columns, strict=True):
                yield hash((root, index.names[start : start + length]))

    return np.fromiter(each(), np.int64, len(index))
