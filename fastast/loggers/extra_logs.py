"""`--log`: the figures of `metrics.jsonl` for loggers that are installed; one that fails is left out."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable
from typing import Any, Protocol

from fastast.loggers.available import logger_class
from fastast.loggers.console import Reporter
from fastast.run_folder import RunFolder, finite

# Seconds that a logger may take for its end: one that waits for a network must not keep a finished run.
CLOSE_S = 60.0
STEP_TAGS = {
    "loss": "train/loss",
    "lr": "train/lr",
    "activation": "gate/activation",
    "threshold": "gate/threshold",
    "offered_per_s": "speed/offered_per_s",
    "data_wait_s": "speed/data_wait_s",
    "gpu_w": "power/gpu_w",
}
EPOCH_TAGS = {"val_loss": "val/loss", "val_top1": "val/top1", "val_top5": "val/top5"}
# Of the summary, what a logger shows of a run that has ended.
SUMMARY_GROUPS = ("accuracy", "compute", "energy", "samples", "throughput", "time_s")


class ExtraLogger(Protocol):
    """What a logger does with figures by tag. Any of it may raise.

    Args:
        folder: of the run.
        config: its options.
    """

    def __init__(self, folder: RunFolder, config: dict[str, Any]) -> None: ...

    def add(self, offered: int, values: dict[str, float]) -> None:
        """Takes figures as of so many offered samples; some it may have had before the run resumed."""

    def finish(self, values: dict[str, float]) -> None:
        """Takes the figures of the whole run."""

    def close(self) -> None:
        """Writes what is left."""


class ExtraLogs:
    """The loggers of a run; a context manager.

    They first get what the folder holds: a run that resumes has thrown away what came after its checkpoint.

    Args:
        names: of the loggers.
        folder: of the run.
        config: its options.
        reporter: shows which of them failed, and why.
    """

    def __init__(self, names: list[str], folder: RunFolder, config: dict[str, Any], reporter: Reporter) -> None:
        self._folder, self._reporter = folder, reporter
        self._loggers: dict[str, ExtraLogger] = {}
        self._offered = 0  # in the epochs that have ended
        for name in names:
            self._try(name, functools.partial(self._open, name, config))
        if self._loggers and folder.metrics.exists():
            with folder.metrics.open("rb") as file:
                for line in file:
                    self.add(json.loads(line))

    def _open(self, name: str, config: dict[str, Any]) -> None:
        self._loggers[name] = logger_class(name)(self._folder, config)

    def __enter__(self) -> ExtraLogs:
        self._folder.listeners.append(self.add)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._folder.listeners.remove(self.add)
        for name, logger in list(self._loggers.items()):
            thread = threading.Thread(target=self._try, args=(name, logger.close), daemon=True)
            thread.start()
            thread.join(CLOSE_S)
            if thread.is_alive():
                self._reporter.note(f"--log {name}: not done after {CLOSE_S:g} s, left as it is")

    def add(self, line: dict[str, Any]) -> None:
        """Takes a line of `metrics.jsonl`; a figure that was not measured is left out."""
        if line["kind"] == "epoch":
            self._offered += line["offered"]
            tags, offered = EPOCH_TAGS, self._offered
        elif line["kind"] == "step":
            tags, offered = STEP_TAGS, line["offered"]
        else:
            return
        found = {tag: finite(line[name]) for name, tag in tags.items()}
        values = {tag: value for tag, value in found.items() if value is not None}
        if values:
            self._each(lambda logger: logger.add(offered, values))

    def finish(self, summary: dict[str, Any]) -> None:
        """Takes the summary of the run."""
        values = {
            f"{group}/{name}": float(value)
            for group in SUMMARY_GROUPS
            for name, value in finite(summary[group]).items()
            if isinstance(value, int | float)
        }
        self._each(lambda logger: logger.finish(values))

    def _each(self, call: Callable[[ExtraLogger], object]) -> None:
        for name, logger in list(self._loggers.items()):
            self._try(name, functools.partial(call, logger))

    def _try(self, name: str, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:  # a package of somebody else, and the network
            self._loggers.pop(name, None)
            first = (str(error).splitlines() or [""])[0]
            self._reporter.note(f"--log {name}: {type(error).__name__}: {first}; the run goes on without it")
