"""What a set of class folders holds: every picture file, its stamp and its scan."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import os
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastast.errors import InputError
from fastast.scan.image_scan import describe_error

# Kinds that cannot be trained on are listed too, so that the scan can name them and say what to do.
PICTURE_EXTENSIONS = frozenset(
    b".jpg .jpeg .jpe .jfif .png .gif .webp .bmp .tif .tiff .avif .heic .heif .jxl .jp2 .ppm .pgm .pbm .pnm".split()
)

_NOT_OURS = {"__MACOSX", b"__MACOSX", "@eaDir", b"@eaDir"}
RUN_FILE = b"metrics.jsonl"  # a folder with it is a run of fastast, whose pictures are of its report
SHOWN = 5  # names in one message
_SORTED = 65536  # names of one folder held at a time

# Arrays of an index with a row for each file, but its label; and the shape of a row.
COLUMNS: dict[str, tuple[int, ...]] = {"starts": (), "lengths": (), "root_of": (), "stamps": (2,), "sizes": (2,)}


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
    part: bytes = b""  # tells the pictures that a list names from others below the same roots

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
    index = _build([folder], list(files), ignored, iter(files.values()))
    index.part = hashlib.sha256(b"\0".join(sorted(labels))).digest()
    return index


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


def take(index: FileIndex, rows: np.ndarray) -> FileIndex:
    """The same files reduced to `rows` (int64[M]); `names` is shared."""
    picked = {name: getattr(index, name)[rows] for name in (*COLUMNS, "labels")}
    return dataclasses.replace(index, reasons={}, **picked)
