"""Which pictures of a pack have passed the header scan, remembered on this machine.

The scan takes 20 to 80 us of Python for a picture, so one process's verdict serves all others of this user: one byte
for each picture in a file in the user's cache, set when the picture has passed and looked at before any is scanned.

A pack is untrusted, its own checksums included, so nothing in it can stand for a scan. A verdict holds for the exact
state that was scanned: the index, and inode, length and times of each shard. Everybody can set a file's mtime back, but
nobody its ctime; only who serves the disk itself (a file server, a disk image) could pass off other bytes. A shard
that has just changed could change again within the same tick of the clock, so its scans are not remembered.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
from collections.abc import Sequence

from fastast.atomic_files import cache_root
from fastast.scan.file_scan import SCAN_VERSION

_TICK_NS = 2 * 10**9  # the coarsest clock of a file system (FAT) counts in 2 s

_PASSED = b"\1"


class PackScans:
    """The pictures of one split that passed; unknown where the cache cannot be used, so that each is scanned.

    Args:
        folder: of the pack.
        split: train or val.
        index_sha256: of the split's index file.
        shards: state of each open shard, from `os.fstat`.
    """

    def __init__(self, folder: str, split: str, index_sha256: str, shards: Sequence[os.stat_result]) -> None:
        self._descriptor = -1
        self._ctimes_ns = [shard.st_ctime_ns for shard in shards]
        states = [(shard.st_ino, shard.st_size, shard.st_mtime_ns, shard.st_ctime_ns) for shard in shards]
        place = f"pack-{_digest(os.path.realpath(folder), split)}-"
        with contextlib.suppress(OSError):
            cache = cache_root()
            cache.mkdir(parents=True, exist_ok=True)
            path = cache / (place + _digest(SCAN_VERSION, index_sha256, states))
            for other in cache.glob(f"{place}*"):
                if other != path:  # of an earlier state of this pack
                    other.unlink(missing_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
            if _is_private(os.fstat(descriptor)):
                self._descriptor = descriptor
            else:
                os.close(descriptor)

    def passed(self, row: int) -> bool:
        """Whether the picture with this row in the index has passed, in any process."""
        if self._descriptor < 0:
            return False
        try:
            return os.pread(self._descriptor, 1, row) == _PASSED
        except OSError:
            return False

    def add(self, row: int, shard: int) -> None:
        """Remembers that a picture passed, read from this shard in the state of its opening."""
        if self._descriptor >= 0 and time.time_ns() > self._ctimes_ns[shard] + _TICK_NS:
            with contextlib.suppress(OSError):  # a full disk
                os.pwrite(self._descriptor, _PASSED, row)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _is_private(status: os.stat_result) -> bool:
    """Whether only this user can have written a file: the cache may lie in a folder that others write to."""
    others = stat.S_IWGRP | stat.S_IWOTH
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & others
