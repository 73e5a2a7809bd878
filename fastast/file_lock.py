"""Locks by file, which the kernel frees however their process ends."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
from pathlib import Path


def open_locked(path: Path) -> int | None:
    """Opens and locks a file; None on a file system that has no locks.

    Raises:
        BlockingIOError: another process has locked it.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except FileNotFoundError:
            pass
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                path.unlink(missing_ok=True)
                return None
            raise
        os.close(descriptor)  # its holder removed it as it ended: what is locked has no name any more


def holder_of(path: Path) -> str:
    """Who wrote a lock file: " (pid 42)", with the machine if it is another, or nothing if it does not say."""
    try:
        written = re.fullmatch(r"(\d{1,10}) ([\w.-]{1,255})\n", path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return ""
    if written is None:
        return ""
    pid, host = written.groups()
    return f" (pid {pid})" if host == socket.gethostname() else f" (pid {pid} on {host})"
