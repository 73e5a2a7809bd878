"""Files that are whole or absent: written beside their place, synced, then renamed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_whole(path: str | os.PathLike[str], write: bytes | str | Callable[[BinaryIO], object]) -> None:
    """Writes a file so that a reader, or a crash at any moment, sees the old content or the new, never a part.

    Args:
        path: the file; its folder must exist.
        write: the content (text as UTF-8), or a function that writes it to a binary file.

    Raises:
        OSError: the disk is full or the folder not writable; the old file is then untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            if callable(write):
                write(file)
            else:
                file.write(write.encode() if isinstance(write, str) else write)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    # The rename itself is lasting only once the folder is synced.
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def cache_root() -> Path:
    """Folder for what can be made again: scans and drawn pictures (`$XDG_CACHE_HOME/fastast`)."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fastast"
