"""Runs of a bench as processes: each is a `fastast train` that resumes where it was stopped."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from fastast.bench.estimate import START_S, Outcome, Pace, pace_of
from fastast.bench.matrix import Job
from fastast.config.options import command_words
from fastast.distributed.parent_death import with_parent_death_signal
from fastast.errors import InputError
from fastast.loggers.console import Reporter
from fastast.run_folder import RunFolder, read_json
from fastast.signals import Stopped, stop_signals_handled

ERROR_PREFIX = "fastast train: error: "
BAD_INPUT = 2
# The pace is measured by a dense run of so many epochs, seconds, and share of --time at most.
PACE_EPOCHS = (0.1, 1.0)  # the second where a tenth of the pictures makes no batch
PACE_MAX_S = 300.0  # a first scan of the pictures included
PACE_MAX_SHARE = 0.1


class BadInput(Exception):
    """The run refused its options or its data; all runs of the bench would."""


class Runner:
    """Runs jobs one after another under a folder, and knows those that are finished there.

    Args:
        root: the bench's folder; runs go to `runs/`, the output of their processes to `logs/`.
        options: of all runs, by field name of `TrainConfig`.
    """

    def __init__(self, root: Path, options: Mapping[str, Any]) -> None:
        self._root, self._options = root, options
        self._process: subprocess.Popen[bytes] | None = None
        self._signum: int | None = None

    def folder(self, job: Job) -> Path:
        """The run folder of a job."""
        return self._root / "runs" / job.name

    def finished(self, job: Job) -> Outcome | None:
        """The outcome of a run that is finished already."""
        summary = RunFolder(self.folder(job)).finished_summary()
        return None if summary is None else Outcome(summary, seconds=summary["time_s"]["total"] + START_S, before=True)

    def run(self, job: Job) -> Outcome:
        """Runs a job to its end, from its last checkpoint if it was stopped.

        Raises:
            Stopped: a signal came; the run has a checkpoint.
            BadInput: the run exited with code 2.
        """
        return self.train(self.folder(job), {**self._options, **job.options})

    def train(self, folder: Path, options: Mapping[str, Any]) -> Outcome:
        """Runs `fastast train` in a folder, as `run` does. A run that `max_time` stopped has an outcome, too."""
        start_s = time.monotonic()
        log = self._log(folder.name)
        resume = ["--resume"] if RunFolder(folder).holds_run() else []
        code, printed = self._execute(
            ["-m", "fastast", "train", *command_words(options), "--out", str(folder), *resume], log
        )
        seconds = time.monotonic() - start_s
        if code in (0, 3) and RunFolder(folder).summary.exists():
            return Outcome(read_json(RunFolder(folder).summary), seconds=seconds)
        reason = failure_reason(code, printed)
        if code == BAD_INPUT:
            raise BadInput(reason)
        return Outcome(None, f"{reason} ({log})", seconds)

    def _log(self, name: str) -> Path:
        path = self._root / "logs" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _execute(self, words: Sequence[str], log: Path) -> tuple[int, str]:
        """Runs Python with these arguments in a child that ends with this process; returns exit code and output."""
        self._check()
        with open(log, "ab+") as file:
            start = file.seek(0, 2)
            # In a session of its own, so that Ctrl-C in a terminal reaches it only through this process, once.
            self._process = subprocess.Popen(
                with_parent_death_signal([sys.executable, *words]),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                self._forward()
                code = self._process.wait()
            finally:
                if self._process.poll() is None:
                    self._process.kill()
                    self._process.wait()
                self._process = None
            file.seek(start)
            printed = file.read().decode(errors="replace")
        self._check()
        return code, printed

    @contextlib.contextmanager
    def forwarding_signals(self) -> Iterator[None]:
        """Forwards signals to the run within the block; then `run` raises Stopped."""

        def handle(signum: int, frame: FrameType | None) -> None:
            self._signum = signum
            self._forward()

        with stop_signals_handled(handle):
            yield

    def _forward(self) -> None:
        if self._signum is not None and self._process is not None:
            self._process.send_signal(self._signum)

    def _check(self) -> None:
        if self._signum is not None:
            raise Stopped("signal", 128 + self._signum, f"stopped by {signal.Signals(self._signum).name}")


def failure_reason(code: int, printed: str) -> str:
    """Why a run failed: its last error line, or else its last line of any kind."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(ERROR_PREFIX)]
    if errors:
        return errors[-1].removeprefix(ERROR_PREFIX)
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return f"exit code {code}: {lines[-1][:300]}" if lines else f"exit code {code}"


def measure_pace(options: Mapping[str, Any], limit_s: float | None, reporter: Reporter) -> tuple[Pace, float]:
    """Trains a short dense run; returns the pace, and the seconds that it took to measure.

    Args:
        options: of all runs, by field name of `TrainConfig`.
        limit_s: seconds that the whole bench may take, or None.
        reporter: says what is measured.

    Raises:
        InputError: the run failed, or was too slow to train one batch.
        Stopped: a signal came.
    """
    most_s = PACE_MAX_S if limit_s is None else min(PACE_MAX_S, max(5.0, PACE_MAX_SHARE * limit_s))
    seconds = 0.0
    for epochs in PACE_EPOCHS:
        reporter.note(f"measuring the pace: {epochs:g} dense epochs, {most_s:.0f} s at most")
        changes = {"gate": "dense", "epochs": epochs, "max_time": f"{most_s:.0f}s"}
        with tempfile.TemporaryDirectory(prefix="fastast-bench-") as folder:
            runner = Runner(Path(folder), options)
            try:
                with runner.forwarding_signals():
                    outcome = runner.train(Path(folder, "pace"), {**options, **changes})
            except BadInput as error:
                raise InputError(str(error)) from error
        seconds += outcome.seconds
        pace = pace_of(outcome)
        if pace is not None:
            return pace, seconds
        if outcome.summary is None or outcome.summary["stopped"] is not None:
            break
    reason = outcome.reason or f"not one batch was trained in {most_s:.0f} s"
    raise InputError(f"the short dense run failed: {reason}; allow a longer --time, or leave out --time and --dry-run")
