"""Which process of how many this is."""

from __future__ import annotations

import os

from fastast.errors import InputError


def require_single_process() -> None:
    """Refuses to start as one of several ranks.

    Raises:
        InputError: a launcher set WORLD_SIZE above 1.
    """
    world_size = os.environ.get("WORLD_SIZE", "1")
    if world_size != "1":
        raise InputError(f"WORLD_SIZE={world_size}: this version trains in one process; start it without a launcher")
