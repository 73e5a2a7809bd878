"""What images exist: paths, labels, sizes, and how to read one safely."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import stat
from typing import NamedTuple

import numpy as np

from fastast.scan.availability import DataRoot
from fastast.scan.file_index import FileIndex, take
from fastast.scan.image_scan import describe_error, refuse_kind, scan_bytes

_NUM_PROBES = 8  # pictures that show whether a folder is available; one that can be read is enough


class Quarantined(NamedTuple):
    """A picture that is not used: its id (None if it never had one), path and reason."""

    id: int | None
    path: str
    reason: str


class UnreadableError(Exception):
    """A picture can no longer be read or decoded; the text is the one-phrase reason."""


class UnreachableError(UnreadableError):
    """The system returned no bytes: either the picture or its whole folder is the cause."""


class Catalog:
    """The good pictures of one split. Ids are 0 .. num_samples - 1 in (class, relative path bytes) order.

    Attributes:
        classes: class names, sorted; a label is an index into them.
        labels: int32[N].
        sizes: int32[N, 2], height and width in pixels.
        num_samples: N.
        quarantined: files that the scan refused.
        bits: of pictures with 16 bits a channel, the lower bits that became 0 to 255 when they were packed; None:
            there are none.
    """

    bits: int | None = None

    def __init__(self, index: FileIndex, classes: tuple[str, ...], quarantined: list[Quarantined]) -> None:
        self._index = index
        self.classes = classes
        self.quarantined = quarantined
        self.labels = index.labels
        self.sizes = index.sizes
        self.num_samples = len(index)
        self._roots = [DataRoot(root, self._probes(number)) for number, root in enumerate(index.roots)]

    def _probes(self, root: int) -> list[tuple[bytes, int]]:
        """Path and length of some pictures of a root, from all over its classes."""
        rows = np.flatnonzero(self._index.root_of == root)
        picked = rows[:: len(rows) // _NUM_PROBES + 1].tolist()
        return [(self._index.path(row), int(self._index.stamps[row, 0])) for row in picked]

    def root(self, sample: int) -> DataRoot:
        """The folder of class folders below which a picture lies."""
        return self._roots[self._index.root_of[sample]]

    def path(self, sample: int) -> str:
        """Path of one picture. Bytes that are not UTF-8 become surrogates, as everywhere in Python."""
        return os.fsdecode(self._index.path(sample))

    def read(self, ids: np.ndarray) -> list[np.ndarray]:
        """Whole encoded files, each uint8[bytes].

        Raises:
            UnreadableError: one of them is gone or is not a valid picture any more.
        """
        return [self.read_one(int(sample)) for sample in ids]

    def read_one(self, sample: int) -> np.ndarray:
        """One whole encoded file, uint8[bytes]; safe to call from several threads.

        A file that changed since the scan is scanned again, and its new size in pixels is kept.

        Raises:
            UnreachableError: the system cannot read it.
            UnreadableError: as `read`.
        """
        num_bytes, mtime_ns = self._index.stamps[sample].tolist()
        try:
            # O_NONBLOCK: the path may have become a pipe since the scan.
            descriptor = os.open(self._index.path(sample), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                data = _read_up_to(descriptor, num_bytes)
                # The stamp is compared after the bytes are read, so no change can slip in between.
                status = os.fstat(descriptor)
                if status.st_size == num_bytes == len(data) and status.st_mtime_ns == mtime_ns:
                    return data
                reason = refuse_kind(status)
                if reason is None:
                    os.lseek(descriptor, 0, os.SEEK_SET)
                    data = _read_up_to(descriptor, status.st_size)
                    header = scan_bytes(data.data)
                    reason = header.reason
            finally:
                os.close(descriptor)
        except OSError as error:
            raise UnreachableError(f"changed since the scan: {describe_error(error)}") from error
        if reason is not None:
            raise UnreadableError(f"changed since the scan: {reason}")
        self.sizes[sample] = header.height, header.width
        self._index.stamps[sample] = status.st_size, status.st_mtime_ns
        return data

    def take(self, ids: np.ndarray) -> Catalog:
        """A catalog of some of these pictures (int64[M]), renumbered in the order of `ids`."""
        return Catalog(take(self._index, ids), self.classes, self.quarantined)

    def relabel(self, labels: np.ndarray, classes: tuple[str, ...]) -> Catalog:
        """The same pictures under other classes; `labels` (int32[old classes]) is the new label of each old one."""
        index = dataclasses.replace(self._index, labels=labels[self.labels])
        return Catalog(index, classes, self.quarantined)

    def digest(self) -> str:
        """SHA-256 over the classes and every picture's label, relative path and file size."""
        digest = hashlib.sha256("\0".join(self.classes).encode("utf-8", "surrogateescape"))
        for begin in range(0, self.num_samples, 4096):
            rows = range(begin, min(begin + 4096, self.num_samples))
            digest.update(b"\0".join(self._name(row) for row in rows))
        digest.update(self.labels.tobytes())
        digest.update(self.num_bytes().tobytes())
        return digest.hexdigest()

    def _name(self, sample: int) -> bytes:
        """Relative path of one picture."""
        return self._index.name(sample)

    def num_bytes(self) -> np.ndarray:
        """int64[N]: length of each encoded file."""
        return self._index.stamps[:, 0]


def read_whole(path: str | bytes) -> np.ndarray:
    """A whole regular file of sane length, uint8[bytes]. Never blocks on a pipe or opens a device.

    Raises:
        UnreadableError: it is not one, or cannot be read.
    """
    try:
        reason = refuse_kind(os.stat(path))  # before it is opened: opening a device can have effects
        if reason is None:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                status = os.fstat(descriptor)
                reason = refuse_kind(status)
                if reason is None:
                    return _read_up_to(descriptor, status.st_size)
            finally:
                os.close(descriptor)
    except OSError as error:
        raise UnreadableError(describe_error(error)) from error
    raise UnreadableError(reason)


def _read_up_to(descriptor: int, num_bytes: int) -> np.ndarray:
    """The first `num_bytes` bytes, or as many as there are."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        return np.empty(0, np.uint8)
    data = np.empty(num_bytes, np.uint8)
    filled = 0
    while filled < num_bytes:
        count = os.readv(descriptor, [data[filled:].data])
        if count == 0:
            break
        filled += count
    return data[:filled]
