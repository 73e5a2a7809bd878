"""By which names loggers know a run, kept in its folder so that it continues there when it resumes."""

from __future__ import annotations

from collections.abc import Callable

from fastast.run_folder import RunFolder, read_json


def logged_id(folder: RunFolder, logger: str, make: Callable[[], str]) -> str:
    """The id that a logger has for a run; a new one is made and kept.

    Args:
        folder: of the run.
        logger: the name of the logger.
        make: makes an id.

    Raises:
        InputError: the file of ids is damaged.
        OSError: it cannot be written.
    """
    known = read_json(folder.logged) if folder.logged.exists() else {}
    if not isinstance(known.get(logger), str):
        known[logger] = make()
        folder.write_json(folder.logged, known)
    return known[logger]
