"""The pictures of a pack, read at random from its shards; a drop-in for `Catalog`.

Shards are read by `pread` into memory of their own, where a damaged shard costs its pictures and no more. A memory map
would save a copy (80 microseconds of the 2,500 that an ImageNet-size picture takes), but touching a part of a mapped
file that somebody has cut off ends the process (SIGBUS), which no check beforehand can rule out.
"""

from __future__ import annotations

import copy
import errno
import os

import numpy as np

from fastast.data.catalog import Catalog, Quarantined, UnreachableError, UnreadableError
from fastast.errors import InputError
from fastast.scan.availability import DataRoot
from fastast.scan.file_index import show_path
from fastast.scan.image_scan import scan_bytes
from fastast.scan.pack_index import PackIndex, Shard
from fastast.scan.pack_scans import PackScans

_NUM_PROBES = 8  # shards that show whether the pack's folder is available
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC


class _OpenShard:
    """A shard's descriptor and the state in which it was first opened."""

    def __init__(self, path: str, shard: Shard) -> None:
        self.path = path
        try:
            self.descriptor = os.open(path, _FLAGS)
        except OSError as error:
            too_many = error.errno == errno.EMFILE
            remedy = "raise `ulimit -n` or pack with a larger --shard-size" if too_many else "copy it again"
            raise InputError(f"{show_path(path)}: cannot be opened ({error.strerror}); {remedy}") from error
        self.status = os.fstat(self.descriptor)
        self.stamp = _stamp(self.status)
        if self.stamp[0] != shard.num_bytes:
            raise InputError(f"{show_path(path)}: changed while it was opened; start again")

    def reopened(self) -> _OpenShard:
        """The same shard with a new descriptor, still compared with the state in which it was first opened.

        Raises:
            OSError: it cannot be opened.
        """
        descriptor = os.open(self.path, _FLAGS)
        other = copy.copy(self)
        other.descriptor = descriptor
        return other

    def get(self, offset: int, length: int) -> tuple[np.ndarray, bool]:
        """uint8[length], or less where the shard ends, and whether the shard has changed since it was opened."""
        data = np.frombuffer(os.pread(self.descriptor, length, offset), np.uint8)
        # After the bytes are read, so no change can slip in between.
        return data, _stamp(os.fstat(self.descriptor)) != self.stamp

    def __del__(self) -> None:
        if hasattr(self, "stamp"):  # opened, though perhaps refused
            os.close(self.descriptor)


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    """Length in bytes, and times of the last change in ns; the last of them cannot be set back."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


class PackCatalog(Catalog):
    """The pictures of one split of a pack: same ids, labels and bytes as the folders it was made from.

    A picture's header is scanned when it is first read on this machine, since a shard is no more trusted than a file,
    and on every read once the shard has changed.

    Args:
        index: of the pack.
        split: train or val.

    Raises:
        InputError: a shard cannot be opened.
    """

    def __init__(self, index: PackIndex, split: str) -> None:
        part = index.splits[split]
        root = os.path.abspath(index.root)
        self._shards = [_OpenShard(os.path.join(root, shard.name), shard) for shard in part.shards]
        self._root = DataRoot(root, [(shard.path, shard.stamp[0]) for shard in self._shards[:_NUM_PROBES]])
        self._names = part.names
        self._scans = PackScans(root, split, part.index_sha256, [shard.status for shard in self._shards])
        lengths = part.records["name_length"].astype(np.int64)
        self._select(part.records, np.cumsum(lengths) - lengths, None)
        self.classes = index.classes
        self.bits = index.bits
        self.quarantined = [Quarantined(None, path, reason) for path, reason in part.quarantined]
        self.labels = np.ascontiguousarray(part.records["label"])

    def _select(self, records: np.ndarray, starts: np.ndarray, rows: np.ndarray | None) -> None:
        self._records, self._starts = records, starts
        self._rows = rows  # of the pictures in the index, int64[N]; None: all
        self._scanned = np.zeros(len(records), bool)
        # Separate arrays, since looking up a field of a record costs microseconds and a read takes few.
        self._shard_of, self._offsets, self._lengths = (
            np.ascontiguousarray(records[field]) for field in ("shard", "offset", "length")
        )
        self.sizes = np.stack([records["height"], records["width"]], axis=1)
        self.num_samples = len(records)

    def root(self, sample: int) -> DataRoot:
        """The pack's folder."""
        return self._root

    def path(self, sample: int) -> str:
        """The shard, and the relative path of the file that the picture was packed from: `SHARD:class/name`."""
        return f"{self._shards[self._shard_of[sample]].path}:{os.fsdecode(self._name(sample))}"

    def read_one(self, sample: int) -> np.ndarray:
        """One encoded picture, uint8[bytes]; safe to call from several threads, not to be written to.

        Raises:
            UnreachableError: neither the open shard nor the reopened one can be read.
            UnreadableError: the shard was cut off or overwritten, or holds no such picture.
        """
        data, changed = self._fetch(sample)
        if changed or not (self._scanned[sample] or self._scans.passed(self._row(sample))):
            header = scan_bytes(data.data)
            if header.reason is not None:
                raise UnreadableError(f"damaged in the shard: {header.reason}")
            if (header.height, header.width) != tuple(self.sizes[sample].tolist()):
                raise UnreadableError("not the picture that the pack's index describes; pack anew")
            if not changed:
                self._scans.add(self._row(sample), self._shard_of[sample])
        self._scanned[sample] = not changed
        return data

    def _fetch(self, sample: int) -> tuple[np.ndarray, bool]:
        """A picture's bytes, and whether its shard has changed since it was opened."""
        number, offset, length = self._shard_of[sample], int(self._offsets[sample]), int(self._lengths[sample])
        shard = self._shards[number]
        try:
            try:
                data, changed = shard.get(offset, length)
            except OSError:
                # A share or disk that was lost and is back leaves the old descriptor dead. It is closed when no
                # thread holds it any more.
                shard = self._shards[number] = shard.reopened()
                data, changed = shard.get(offset, length)
        except OSError as error:
            raise UnreachableError(f"the shard cannot be read: {error.strerror}") from error
        if len(data) != length:
            raise UnreadableError("the shard was cut off; copy it again")
        return data, changed

    def take(self, ids: np.ndarray) -> PackCatalog:
        """A catalog of some of these pictures (int64[M]), renumbered in the order of `ids`."""
        taken = self._copy(self.labels[ids], self.classes)
        rows = ids.astype(np.int64) if self._rows is None else self._rows[ids]
        taken._select(self._records[ids], self._starts[ids], rows)
        return taken

    def relabel(self, labels: np.ndarray, classes: tuple[str, ...]) -> PackCatalog:
        """The same pictures under other classes; `labels` (int32[old classes]) is the new label of each old one."""
        return self._copy(labels[self.labels], classes)

    def _copy(self, labels: np.ndarray, classes: tuple[str, ...]) -> PackCatalog:
        other = object.__new__(PackCatalog)
        other.__dict__.update(self.__dict__, labels=labels, classes=classes)
        return other

    def _row(self, sample: int) -> int:
        return sample if self._rows is None else int(self._rows[sample])

    def _name(self, sample: int) -> bytes:
        start = int(self._starts[sample])
        return self._names[start : start + int(self._records["name_length"][sample])]

    def num_bytes(self) -> np.ndarray:
        return self._lengths.astype(np.int64)
