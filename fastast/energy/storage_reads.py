"""What this process has read, and how much of it storage had to deliver because it was not in the page cache."""

from __future__ import annotations

from typing import NamedTuple


class Reads(NamedTuple):
    """Bytes since the process began.

    Attributes:
        read_b: by read calls.
        storage_b: fetched from storage.
    """

    read_b: int
    storage_b: int


def storage_reads(path: str = "/proc/self/io") -> Reads | None:
    """The kernel's counts for this process, all threads included; None where it does not tell."""
    try:
        with open(path) as file:
            counts = dict(line.split(": ") for line in file)
        return Reads(int(counts["rchar"]), int(counts["read_bytes"]))
    except (OSError, KeyError, ValueError):
        return None
