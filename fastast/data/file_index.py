"""What a set of class folders holds: every picture file, its stamp and its scan, cached between runs.

The cache holds one file for each set of folders, written atomically. A missing, damaged or unwritable one only means a
new scan.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import os
import stat
import zipfile
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastast.atomic_files import cache_root, write_whole
from fastast.data.image_scan import describe_error, scan_file
from fastast.errors import InputError

Progress = Callable[[int, int], None]

# Kinds that cannot be trained on are listed too, so that the scan can name them and say what to do.
PICTURE_EXTENSIONS = frozenset(
    b".jpg .jpeg .jpe .jfif .png .gif .webp .bmp .tif .tiff .avif .heic .heif .jxl .jp2 .ppm .pgm .pbm .pnm".split()
)

_NOT_OURS = {"__MACOSX", b"__MACOSX", "@eaDir", b"@eaDir"}
RUN_FILE = b"metrics.jsonl"  # a folder with it is a run of fastast, whose pictures are of its report
SCAN_VERSION = 2  # raise it when the scan changes what it accepts
SHOWN = 5  # names in one message
_CHUNK = 256  # files handed to a thread at a time
_SORTED = 65536  # names of one folder held at a time


@dataclass
class FileIndex:
    """Every picture file below some class folders, in (class, relative path) order, as flat arrays.

    A relative path is `class/.../name`, or any where a list of labels says the class; as bytes, since file names need
    not be valid text.
    """

    roots: list[bytes]  # folders that hold the class folders
    classes: list[bytes]  # sorted
    ignored: dict[bytes, collections.Counter[str]]  # by class: files of other kinds, counted by extension
    names: bytes  # all relative paths, end to end
    starts: np.ndarray  # int64[N], where each begins in `names`
    lengths: np.ndarray  # int32[N]
    root_of: np.ndarray  # int32[N], index into `roots`
    labels: np.ndarray  # int32[N], index into `classes`
    stamps: np.ndarray  # int64[N, 2], size in bytes and mtime in ns
    sizes: np.ndarray  # int32[N, 2], height and width in pixels; 0 where refused
    reasons: dict[int, str]  # why a file is refused, by row

    def __len__(self) -> int:
        return len(self.starts)

    def name(self, row: int) -> bytes:
        start = int(self.starts[row])
        return self.names[start : start + int(self.lengths[row])]

    def path(self, row: int) -> bytes:
        return os.path.join(self.roots[self.root_of[row]], self.name(row))


def show_path(path: str | bytes | os.PathLike[str]) -> str:
    """A path on one line, safe to print whatever bytes it holds."""
    text = os.fsdecode(path)
    return text if text.isprintable() else ascii(text)


def some_names(names: Sequence[str | bytes]) -> str:
    """The first few of the names or paths, and how many there are besides."""
    shown = ", ".join(show_path(name) for name in names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN:,} more"


def is_hidden(name: str | bytes) -> bool:
    """Whether a file or folder is left out: hidden, of a zip archive's __MACOSX, or a NAS's @eaDir of thumbnails."""
    return os.fsencode(name).startswith(b".") or name in _NOT_OURS


def list_files(roots: Sequence[str | os.PathLike[str]]) -> FileIndex:
    """Lists the class folders of all `roots` together; reads no file.

    Raises:
        InputError: a folder cannot be listed.
    """
    folders = [os.path.abspath(os.fsencode(root)) for root in roots]
    found = [set(_subfolders(folder)) for folder in folders]
    classes = sorted(set().union(*found))
    ignored: dict[bytes, collections.Counter[str]] = {name: collections.Counter() for name in classes}

    def files_of(name: bytes) -> list[tuple[bytes, int]]:
        return [
            (path, index)
            for index, folder in enumerate(folders)
            if name in found[index]
            for path in walk_pictures(folder, name, ignored[name])
        ]

    # Only one class's names exist as Python objects at a time.
    return _build(folders, classes, ignored, map(files_of, classes))


def list_labelled(root: str | os.PathLike[str], labels: Mapping[bytes, bytes]) -> FileIndex:
    """Lists the pictures of one folder to which a list gives a class.

    Args:
        root: the folder.
        labels: class by path relative to it, without extension.

    Raises:
        InputError: a folder cannot be listed.
    """
    folder = os.path.abspath(os.fsencode(root))
    ignored: dict[bytes, collections.Counter[str]] = {b"": collections.Counter()}
    files: dict[bytes, list[tuple[bytes, int]]] = {name: [] for name in sorted(set(labels.values()))}
    for path in walk_pictures(folder, b"", ignored[b""]):
        name = labels.get(os.path.splitext(path)[0])
        if name is not None:
            files[name].append((path, 0))
    return _build([folder], list(files), ignored, iter(files.values()))


def _build(
    folders: list[bytes],
    classes: list[bytes],
    ignored: dict[bytes, collections.Counter[str]],
    files: Iterator[list[tuple[bytes, int]]],
) -> FileIndex:
    """An index without stamps and sizes, from each class's paths and roots in any order."""
    names, lengths, root_of, labels = bytearray(), array("i"), array("i"), array("i")
    for label, pairs in enumerate(files):
        pairs.sort()
        names += b"".join(path for path, _ in pairs)
        lengths.extend(len(path) for path, _ in pairs)
        root_of.extend(index for _, index in pairs)
        labels.extend([label] * len(pairs))
    count = len(lengths)
    sizes = np.frombuffer(lengths, np.int32) if count else np.zeros(0, np.int32)
    return FileIndex(
        roots=folders,
        classes=classes,
        ignored=ignored,
        names=bytes(names),
        starts=np.cumsum(sizes, dtype=np.int64) - sizes,
        lengths=sizes,
        root_of=np.array(root_of, np.int32),
        labels=np.array(labels, np.int32),
        stamps=np.zeros((count, 2), np.int64),
        sizes=np.zeros((count, 2), np.int32),
        reasons={},
    )


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
    cache_file = _cache_file(index.roots)
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


def _subfolders(folder: bytes) -> Iterator[bytes]:
    for entry in _entries(folder):
        if is_folder(entry):
            yield entry.name


def walk_pictures(
    root: bytes,
    start: bytes = b"",
    ignored: collections.Counter[str] | None = None,
    on_refused: Callable[[bytes, str], object] | None = None,
) -> Iterator[bytes]:
    """Relative paths of the picture files in one folder and in those below it, in memory that does not grow with them.

    Files come before folders, in order of their names; of a folder with very many, every 65,536 of them are in order.
    Links are followed; no real folder is read twice.

    Args:
        root: what the paths are relative to.
        start: the folder, relative to `root`.
        ignored: counts files of other kinds by extension.
        on_refused: called as `on_refused(path, reason)` with each folder that cannot be listed.

    Raises:
        InputError: a folder cannot be listed, and there is no `on_refused`.
    """
    visited = set()
    folders = [start]
    while folders:
        folder = folders.pop()
        whole = os.path.join(root, folder)
        try:
            status = os.stat(whole)
        except OSError as error:
            _refuse_folder(whole, error, on_refused)
            continue
        if (status.st_dev, status.st_ino) in visited or os.path.lexists(os.path.join(whole, RUN_FILE)):
            continue
        visited.add((status.st_dev, status.st_ino))
        names: list[bytes] = []
        below: list[bytes] = []
        for entry in _entries(whole, on_refused):
            extension = os.path.splitext(entry.name)[1].lower()
            path = folder + b"/" + entry.name if folder else entry.name
            if is_folder(entry):
                below.append(path)
            elif extension in PICTURE_EXTENSIONS:
                names.append(path)
            elif ignored is not None:
                ignored[os.fsdecode(extension) or "no extension"] += 1
            if len(names) == _SORTED:
                yield from sorted(names)
                names.clear()
        yield from sorted(names)
        folders += sorted(below, reverse=True)


def _entries(folder: bytes, on_refused: Callable[[bytes, str], object] | None = None) -> Iterator[os.DirEntry[bytes]]:
    """The entries of a folder that `is_hidden` does not leave out."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not is_hidden(entry.name):
                    yield entry
    except OSError as error:
        _refuse_folder(folder, error, on_refused)


def _refuse_folder(folder: bytes, error: OSError, on_refused: Callable[[bytes, str], object] | None) -> None:
    if on_refused is None:
        raise InputError(f"{show_path(folder)}: {describe_error(error)}") from error
    on_refused(folder, describe_error(error))


def is_folder(entry: os.DirEntry[Any]) -> bool:
    """Whether an entry is a folder or leads to one."""
    try:
        return entry.is_dir()
    except OSError:  # a symbolic link to itself
        return False


# --------------------------------------------------------------------------------------------------- cache


def _cache_file(roots: list[bytes]) -> Path:
    key = hashlib.sha256(b"\0".join(os.path.realpath(root) for root in roots)).hexdigest()
    return cache_root() / f"scan-{key[:32]}.npz"


_CACHED_ARRAYS: dict[str, tuple[int, ...]] = {"starts": (), "lengths": (), "root_of": (), "stamps": (2,), "sizes": (2,)}


def _save_cache(path: Path, index: FileIndex) -> None:
    arrays = {name: getattr(index, name) for name in _CACHED_ARRAYS}
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
            arrays = {name: file[name] for name in _CACHED_ARRAYS}
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile):
        return None
    count = arrays["starts"].size
    if any(arrays[n].shape != (count, *tail) or arrays[n].dtype.kind != "i" for n, tail in _CACHED_ARRAYS.items()):
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


def take(index: FileIndex, rows: np.ndarray) -> FileIndex:
    """The same files reduced to `rows` (int64[M]); `names` is shared."""
    picked = {name: getattr(index, name)[rows] for name in (*_CACHED_ARRAYS, "labels")}
    return dataclasses.replace(index, reasons={}, **picked)
