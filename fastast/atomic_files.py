"""Files that are whole or absent: written beside their place, synced, then renamed."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

# What `write_whole` leaves behind when the process is killed: .NAME.PID.tmp
_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")


def write_whole(
    path: str | os.PathLike[str],
    write: bytes | str | Callable[[BinaryIO], object],
    *,
    keep: str | os.PathLike[str] | None = None,
) -> None:
    """Writes a file so that a reader, or a crash at any time, sees the old content or the new, never a part.

    Args:
        path: the file; its folder must exist.
        write: the content (text as UTF-8), or a function that writes it to a binary file.
        keep: a name in the same folder under which the old file, if there is one, is kept. At any time at least one
            of both names is a whole file, and `path`, where it exists, is no older than before.

    Raises:
        OSError: the disk is full or the folder not writable; the old file is then untouched.
    """
    path = Path(path)
    temporary = _beside(path)
    try:
        with open(temporary, "wb") as file:
            if callable(write):
                write(file)
            else:
                file.write(write.encode() if isinstance(write, str) else write)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None:
            _keep_as(path, Path(keep))
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


def remove_temporaries(folder: Path) -> None:
    """Removes what writers that were killed left in `folder`; nobody may be writing there meanwhile."""
    with contextlib.suppress(FileNotFoundError):
        for path in folder.iterdir():
            if _TEMPORARY.fullmatch(path.name):
                path.unlink(missing_ok=True)


def cache_root() -> Path:
    """Folder for what can be made again: scans and drawn pictures (`$XDG_CACHE_HOME/fastast`).

    A relative path is ignored, as the XDG Base Directory Specification says.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    return Path(base if os.path.isabs(base) else os.path.expanduser("~/.cache"), "fastast")


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _keep_as(path: Path, keep: Path) -> None:
    """Gives the file a second name; where the file system has no hard links, renames it."""
    if not path.exists():
        return
    second = _beside(keep)
    second.unlink(missing_ok=True)  # left by a killed writer that had the same process number
    try:
        os.link(path, second)
        os.replace(second, keep)
        second.unlink(missing_ok=True)  # renaming one name of a file over another of its names does nothing
    except OSError:
        os.replace(path, keep)
