"""The pictures of a pack, read at random from its shards; a drop-in for `Catalog`.

How shards are read. A memory map saves a copy of the encoded bytes: 80 microseconds of the 2,500 that an ImageNet-size
picture takes, nothing measurable for small ones. Its price: whoever cuts a mapped file off, or writes into it, reaches
the bytes that wait for the decoder, and touching a part that is gone ends the process (SIGBUS). No check beforehand
can rule that out. So `auto` maps only what cannot change, shards on a local file system that is mounted read-only;
all else is read by `pread` into memory of its own, where a damaged shard costs its pictures and no more. `mmap` maps
whatever it is told to, for those who know that nobody writes there.
"""

from __future__ import annotations

import copy
import errno
import mmap
import os

import numpy as np

from fastast.data.catalog import Catalog, Quarantined, UnreachableError, UnreadableError
from fastast.data.folder import Folder
from fastast.data.index import show_path
from fastast.data.pack_index import PackIndex, Shard
from fastast.data.scan import scan_bytes
from fastast.errors import InputError

READ_MODES = ("auto", "mmap", "pread")

_NUM_WITNESSES = 8  # shards that show whether the pack's folder is there
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC

# File systems whose files are changed by this machine alone.
_LOCAL = frozenset(["ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "tmpfs", "squashfs", "erofs", "iso9660"])


def choose_read(path: str | os.PathLike[str], read: str) -> str:
    """How files at `path` are read, mmap or pread.

    Args:
        path: an existing folder.
        read: what was asked for: auto, mmap or pread.

    Raises:
        InputError: another word.
    """
    if read not in READ_MODES:
        raise InputError(f"--read {read}: choose one of {', '.join(READ_MODES)}")
    if read != "auto":
        return read
    frozen = os.statvfs(path).f_flag & os.ST_RDONLY
    return "mmap" if frozen and _file_system(path) in _LOCAL else "pread"


def _file_system(path: str | os.PathLike[str], mounts: str = "/proc/self/mountinfo") -> str | None:
    """Type of the file system that holds `path`; None where the system does not say (proc(5), mountinfo)."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open(mounts, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                fields = line.split()
                if len(fields) > 2 and fields[2] == wanted and "-" in fields[:-1]:
                    return fields[fields.index("-") + 1]
    except OSError:
        pass
    return None


class _OpenShard:
    """A shard's descriptor, the state it was opened in, and its map if it has one."""

    def __init__(self, path: str, shard: Shard, read: str) -> None:
        self.path = path
        try:
            self.descriptor = os.open(path, _FLAGS)
        except OSError as error:
            remedy = (
                "raise `ulimit -n` or pack with a larger --shard-size"
                if error.errno == errno.EMFILE
                else "copy it again"
            )
            raise InputError(f"{show_path(path)}: cannot be opened ({error.strerror}); {remedy}") from error
        self.stamp = self.state()
        self.view: np.ndarray | None = None
        if self.stamp[0] != shard.num_bytes:
            raise InputError(f"{show_path(path)}: changed while it was opened; start again")
        if read == "mmap":
            self.view = np.frombuffer(mmap.mmap(self.descriptor, shard.num_bytes, prot=mmap.PROT_READ), np.uint8)

    def opened_anew(self) -> _OpenShard:
        """The same shard, compared with the state that it was first opened in, read without a map.

        Raises:
            OSError: it cannot be opened.
        """
        descriptor = os.open(self.path, _FLAGS)
        other = copy.copy(self)
        other.descriptor, other.view = descriptor, None
        return other

    def state(self) -> tuple[int, int]:
        """Length in bytes and time of the last change, ns."""
        status = os.fstat(self.descriptor)
        return status.st_size, status.st_mtime_ns

    def get(self, offset: int, length: int) -> tuple[np.ndarray, bool]:
        """uint8[length], or less where the shard ends, and whether the shard has changed since it was opened."""
        if self.view is None:
            data = np.frombuffer(os.pread(self.descriptor, length, offset), np.uint8)
        elif os.fstat(self.descriptor).st_size < offset + length:
            data = self.view[:0]
        else:
            data = self.view[offset : offset + length]
        return data, self.state() != self.stamp  # after the bytes are read, so no change can slip in between

    def __del__(self) -> None:
        if hasattr(self, "stamp"):  # opened, though perhaps refused
            os.close(self.descriptor)


class PackCatalog(Catalog):
    """The pictures of one split of a pack: same ids, labels and bytes as the folders it was made from.

    A picture's header is scanned when it is first read, since a shard is no more trusted than a file, and again on
    every read once the shard has changed.

    Args:
        index: of the pack.
        split: train or val.
        read: auto, mmap or pread.

    Raises:
        InputError: a shard cannot be opened.
    """

    def __init__(self, index: PackIndex, split: str, read: str = "auto") -> None:
        part = index.splits[split]
        how = choose_read(index.root, read)
        self._kind = ""  # of the fields of a record that are read: the picture's, or with thumb_ its thumbnail's
        root = os.path.abspath(index.root)
        self._shards = [_OpenShard(os.path.join(root, shard.name), shard, how) for shard in part.shards]
        self._folder = Folder(root, [(shard.path, shard.stamp[0]) for shard in self._shards[:_NUM_WITNESSES]])
        self._names = part.names
        lengths = part.records["name_length"].astype(np.int64)
        self._select(part.records, np.cumsum(lengths) - lengths)
        self.classes = index.classes
        self.quarantined = [Quarantined(None, path, reason) for path, reason in part.quarantined]
        self.labels = np.ascontiguousarray(part.records["label"])

    def _select(self, records: np.ndarray, starts: np.ndarray) -> None:
        self._records, self._starts = records, starts
        kind = self._kind
        self._scanned = np.zeros(len(records), bool)
        # Apart, since a field of a record costs microseconds to look up and a read takes few.
        self._shard_of, self._offsets, self._lengths = (
            np.ascontiguousarray(records[field]) for field in ("shard", f"{kind}offset", f"{kind}length")
        )
        self.sizes = np.stack([records[f"{kind}height"], records[f"{kind}width"]], axis=1)
        self.num_samples = len(records)

    def folder(self, sample: int) -> Folder:
        """The pack's folder."""
        return self._folder

    def path(self, sample: int) -> str:
        """The shard, and the relative path of the file that the picture was packed from: `SHARD:class/name`."""
        return f"{self._shards[self._shard_of[sample]].path}:{os.fsdecode(self._name(sample))}"

    def read_one(self, sample: int) -> np.ndarray:
        """One encoded picture, uint8[bytes]; safe to call from several threads, not to be written to.

        Raises:
            UnreachableError: the system refused to give it, and the shard when opened anew too.
            UnreadableError: the shard was cut off or overwritten, or holds no such picture.
        """
        data, changed = self._fetch(sample, int(self._offsets[sample]), int(self._lengths[sample]))
        if changed or not self._scanned[sample]:
            if changed:
                data = data.copy()  # what was scanned must be what is decoded
            header = scan_bytes(data.data)
            if header.reason is not None:
                raise UnreadableError(f"damaged in the shard: {header.reason}")
            if (header.height, header.width) != tuple(self.sizes[sample].tolist()):
                raise UnreadableError("not the picture that the pack's index describes; pack anew")
            self._scanned[sample] = not changed
        return data

    @property
    def thumbnail_side(self) -> int | None:
        records = self._records
        if not len(records) or not records["thumb_length"].all():
            return None
        return int(np.minimum(records["thumb_height"], records["thumb_width"]).max())

    def thumbnails(self) -> Catalog:
        if self.thumbnail_side is None:
            return super().thumbnails()  # refuses
        shown = self._copy(self.labels, self.classes)
        shown._kind = "thumb_"
        shown._select(self._records, self._starts)
        return shown

    def _fetch(self, sample: int, offset: int, length: int) -> tuple[np.ndarray, bool]:
        """Bytes of a picture's shard, and whether the shard has changed since it was opened."""
        number = self._shard_of[sample]
        shard = self._shards[number]
        try:
            try:
                data, changed = shard.get(offset, length)
            except OSError:
                # A share or disk that was lost and is back leaves the old descriptor dead. It is closed when no
                # thread holds it any more.
                shard = self._shards[number] = shard.opened_anew()
                data, changed = shard.get(offset, length)
        except OSError as error:
            raise UnreachableError(f"the shard cannot be read: {error.strerror}") from error
        if len(data) != length:
            raise UnreadableError("the shard was cut off; copy it again")
        return data, changed

    def take(self, ids: np.ndarray) -> PackCatalog:
        """A catalog of some of these pictures (int64[M]), renumbered in the order given."""
        taken = self._copy(self.labels[ids], self.classes)
        taken._select(self._records[ids], self._starts[ids])
        return taken

    def relabel(self, labels: np.ndarray, classes: tuple[str, ...]) -> PackCatalog:
        """The same pictures under other classes; `labels` (int32[old classes]) is the new label of each old one."""
        return self._copy(labels[self.labels], classes)

    def _copy(self, labels: np.ndarray, classes: tuple[str, ...]) -> PackCatalog:
        other = object.__new__(PackCatalog)
        other.__dict__.update(self.__dict__, labels=labels, classes=classes)
        return other

    def _name(self, sample: int) -> bytes:
        start = int(self._starts[sample])
        return self._names[start : start + int(self._records["name_length"][sample])]

    def _num_bytes(self) -> np.ndarray:
        return self._lengths.astype(np.int64)
