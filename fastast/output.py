"""Output that may be lost: a closed pipe or terminal, or a full disk, must not end the work that reports to it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any, TextIO


class _TolerantStream:
    """A text stream whose errors of writing are ignored.

    Attributes:
        lost: the first of them.
    """

    def __init__(self, stream: TextIO) -> None:
        self.lost: OSError | None = None
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError as error:
            self.lost = self.lost or error
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self.lost = self.lost or error


@contextlib.contextmanager
def tolerant_stream(stream: TextIO | None) -> Iterator[Any]:
    """Within the block, a standard stream that ignores errors of writing: nobody may be reading it any more."""
    if stream is None:  # closed before the process started
        yield None
        return
    try:
        yield _TolerantStream(stream)
    finally:
        try:
            stream.flush()
        except OSError:  # the interpreter flushes once more at its end, and would complain
            with contextlib.suppress(OSError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, stream.fileno())
                os.close(null)
