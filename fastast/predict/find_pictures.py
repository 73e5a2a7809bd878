"""Files, folders and patterns in, paths of pictures out: one at a time, so that a million of them take no memory."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator

from fastast.scan.file_index import walk_pictures

OnRefused = Callable[[bytes, str], object]
PathName = str | os.PathLike[str]


def find_pictures(paths: Iterable[PathName], on_refused: OnRefused) -> Iterator[bytes]:
    """Paths of pictures.

    Of a folder, those of every picture file in it and below it. What is named itself, or by a pattern, counts as a
    picture whatever its name.

    Args:
        paths: files, folders, and patterns (`*`, `?`, `[...]`, and `**` for folders of any depth) that are no file's
            name. A pattern takes memory for the names that it matches.
        on_refused: called as `on_refused(path, reason)` with each folder that cannot be listed.
    """
    for path in paths:
        name = os.fsencode(path)
        for found in [name] if os.path.lexists(name) else _outermost(matches(name)) or [name]:
            if os.path.isdir(found):
                for picture in walk_pictures(found, on_refused=on_refused):
                    yield os.path.join(found, picture)
            else:
                yield found


def _outermost(paths: list[bytes]) -> list[bytes]:
    """Without those that lie in a folder which is among the paths too, as of `**`: they come with it."""
    folders = {os.path.normpath(path) for path in paths if os.path.isdir(path)}

    def is_within(path: bytes) -> bool:
        parent = os.path.dirname(os.path.normpath(path))
        while parent and parent not in folders and parent != os.path.dirname(parent):
            parent = os.path.dirname(parent)
        return parent in folders

    return [path for path in paths if not is_within(path)]


def matches(pattern: PathName | bytes) -> list[bytes]:
    """What a pattern matches, in order; nothing for a path without `*`, `?` or `[`."""
    name = os.fsencode(pattern)
    return sorted(glob.iglob(name, recursive=True)) if glob.has_magic(name) else []
