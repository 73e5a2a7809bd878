"""Writes checkpoints in the background while training continues."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

from fastast.checkpoint.file_format import is_whole, save_checkpoint
from fastast.run_folder import RunFolder


class CheckpointWriter:
    """Writes a run's checkpoints in the background, keeping the last two.

    A checkpoint that cannot be written (a full disk, a folder that went away) does not end the training: the one
    before stands, and the next is tried anew. The interpreter does not exit before what was submitted is written.

    Args:
        folder: the run; `checkpoints/last.pt` is written, and `previous.pt` is the one before it.
        on_error: called with a line for the user, from the writing thread, for each that was not written.

    Attributes:
        seconds: how long the last one took.
    """

    def __init__(self, folder: RunFolder, on_error: Callable[[str], None]) -> None:
        self._folder = folder
        self._on_error = on_error
        self.seconds = 0.0
        self._thread: threading.Thread | None = None
        self._failure: str | None = None
        self._bug: Exception | None = None
        self._last_is_whole: bool | None = None

    def submit(self, state: dict[str, Any], first: Callable[[], None] = lambda: None) -> None:
        """Starts to write a checkpoint and returns; waits first for one that is still being written.

        Args:
            state: as `save_checkpoint` takes it; must not change any more.
            first: writes, in the thread, what the checkpoint refers to; if it fails so does the checkpoint.
        """
        self.wait()
        self._thread = threading.Thread(target=self._write, args=(state, first), name="checkpoint")
        self._thread.start()

    def wait(self) -> str | None:
        """Waits until all is written; returns why the last one was not, or None if it was."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._bug is not None:
            bug, self._bug = self._bug, None
            raise bug
        return self._failure

    def _write(self, state: dict[str, Any], first: Callable[[], None]) -> None:
        last, previous = self._folder.last, self._folder.previous
        began = time.monotonic()
        try:
            first()
            if self._last_is_whole is None:  # a damaged one that a run went back from must not replace a good one
                self._last_is_whole = is_whole(last)
            save_checkpoint(last, state, keep=previous if self._last_is_whole else None)
            self._last_is_whole = True
            self._failure = None
            self.seconds = time.monotonic() - began
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            self._failure = f"{last}: not written ({reason}); what was saved before stands"
            self._on_error(self._failure)
        except Exception as error:  # raised in the caller's thread
            self._bug = error
