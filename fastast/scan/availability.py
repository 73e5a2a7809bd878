"""Whether the folder of the pictures is still available, so that a lost disk is told from lost pictures."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from errno import EACCES, ELOOP, ENOENT, ENOTDIR, EPERM

_OF_ONE_FILE = frozenset([ENOENT, ENOTDIR, EACCES, EPERM, ELOOP])  # say nothing of the disk or network below
_CACHE_BLOCK = 4 * 2**20  # bytes; the kernel drops only whole blocks of its cache, which may be as large as 2 MiB


class DataRoot:
    """A folder of pictures, with some files in it that identify it.

    Args:
        path: the folder, as it is when the pictures are listed.
        probes: path and length in bytes of files below it.
    """

    def __init__(self, path: str | bytes, probes: Sequence[tuple[str | bytes, int]]) -> None:
        self.path = path
        self._probes = probes
        self._identity = self._identify()

    def is_available(self) -> bool:
        """Whether the folder can be reached and its files can be read; costs a few system calls.

        One probe that can be read, at its known length, is enough. If there is none, the folder is available if it is
        the same one as at the last call, on the same device, and the probes are missing rather than unreadable. Once
        it was unavailable, only a probe brings it back: the empty folder below a mount point does not count, and a
        mount that is still being filled may have the old device and inode numbers.
        """
        identity = self._identify()
        intact = identity is not None and identity == self._identity
        if identity is not None:
            for path, num_bytes in self._probes:
                try:
                    if _read_from_disk(path) == num_bytes:
                        self._identity = identity
                        return True
                except OSError as error:
                    intact &= error.errno in _OF_ONE_FILE
        if not intact:
            self._identity = None
        return intact

    def _identify(self) -> tuple[int, int] | None:
        """Device and inode; None if the folder cannot be reached."""
        try:
            status = os.stat(self.path)
            os.statvfs(self.path)  # a network file system answers `stat` from a cache, but asks its server for this
        except OSError:
            return None
        return status.st_dev, status.st_ino


def _read_from_disk(path: str | bytes) -> int:
    """Length in bytes of a file whose first byte can be read from its disk; -1 if it is not a regular file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return -1
        # Files of a lost disk can still be read from the cache.
        os.posix_fadvise(descriptor, 0, _CACHE_BLOCK, os.POSIX_FADV_DONTNEED)
        os.pread(descriptor, 1, 0)
        return status.st_size
    finally:
        os.close(descriptor)
