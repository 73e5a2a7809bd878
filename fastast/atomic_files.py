"""Files, and lines of files, that are whole or absent. A file is written beside its place, synced, then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

from fastast.errors import InputError

# How long a line waits for space: what fills the disk may be a checkpoint, which is given up and removed at once.
APPEND_PAUSES_S = (0.1, 0.5, 2.0)
# What `write_whole` leaves behind when the process is killed: .NAME.PID.tmp
_TEMPORARY = re.compile(r"\.(.+)\.\d+\.tmp")


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


def remove_temporaries(files: Iterable[Path]) -> None:
    """Removes what writers of these files that were killed left beside them; nobody may be writing meanwhile."""
    wanted = set(files)
    for folder in {path.parent for path in wanted}:
        with contextlib.suppress(FileNotFoundError):
            for path in folder.iterdir():
                written = _TEMPORARY.fullmatch(path.name)
                if written and folder / written[1] in wanted:
                    path.unlink(missing_ok=True)


def cache_root() -> Path:
    """Folder for what can be made again, scans and drawn pictures: the first of these that can be written to.

    `$XDG_CACHE_HOME/fastast`; `~/.cache/fastast`; `$TMPDIR/fastast-UID`, for a user without a home. Relative paths are
    ignored, as the XDG Base Directory Specification says.

    Raises:
        InputError: only the last is left, and it belongs to somebody else, who could put anything there.
    """
    for base in (os.environ.get("XDG_CACHE_HOME", ""), os.path.expanduser("~/.cache")):
        if os.path.isabs(base) and _can_hold(Path(base, "fastast")):
            return Path(base, "fastast")
    folder = Path(tempfile.gettempdir(), f"fastast-{os.geteuid()}")
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if status.st_uid != os.geteuid() or not stat.S_ISDIR(status.st_mode):
        raise InputError(f"{folder}: belongs to somebody else; set XDG_CACHE_HOME to a folder that you may write to")
    return folder


def _can_hold(folder: Path) -> bool:
    """Whether a folder can be written to, or made where it is to be."""
    while not os.path.lexists(folder):
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


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


def cut_lines(path: Path, size: int) -> None:
    """Cuts a file to at most `size` bytes, and to whole lines."""
    if path.exists():
        kept = path.read_bytes()[:size]
        write_whole(path, kept[: kept.rfind(b"\n") + 1])


def append_whole(path: Path, line: bytes) -> None:
    """Adds a line, with its end, to a file: all of it or nothing.

    Raises:
        OSError: there is no space for it, and there was none a little later.
    """
    for pause_s in APPEND_PAUSES_S:
        try:
            return _append(path, line)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
        time.sleep(pause_s)
    _append(path, line)


def _append(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        if os.write(descriptor, data) != len(data):
            os.ftruncate(descriptor, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(descriptor)
