"""Progress in a notebook: a single line that is written over, without widgets."""

from __future__ import annotations

import sys
import time

from rich.console import Console

from fastast.loggers.console import Reporter
from fastast.number_text import percent

_INTERVAL_S = 0.5  # between two writes of the line: each is a message to the browser
_COLUMNS = 110


def in_notebook() -> bool:
    """Whether this is the kernel of a notebook."""
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None else None
    return shell is not None and "IPKernelApp" in shell.config


class NotebookReporter(Reporter):
    """A `Reporter` for the output of a cell."""

    def __init__(self) -> None:
        plain = Console(force_jupyter=False, force_terminal=False, width=_COLUMNS, highlight=False, soft_wrap=True)
        super().__init__(plain)
        self._what = ""
        self._total: float | None = None
        self._shown = 0  # characters of the line
        self._written_s = 0.0

    def note(self, message: str) -> None:
        self._show("")
        super().note(message)

    def begin(self, what: str, total: float | None) -> None:
        self.end()
        self._what, self._total = what, total

    def advance(self, done: float, detail: str = "", *, total: float | None = None) -> None:
        total = total or self._total
        if time.monotonic() - self._written_s >= _INTERVAL_S:
            self._written_s = time.monotonic()
            parts = [self._what, percent(done / total, 0) if total else "", detail]
            self._show(" ".join(filter(None, parts))[:_COLUMNS])

    def end(self) -> None:
        self._show("")
        self._what, self._total = "", None

    def _show(self, line: str) -> None:
        if line or self._shown:
            print(f"\r{line.ljust(self._shown)}", end="" if line else "\r", flush=True)
        self._shown = len(line)
