"""The pace of dense training here, from a short run that is not kept."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastast.bench.estimate import Pace, pace_of
from fastast.bench.runner import BadInput, Runner
from fastast.errors import InputError
from fastast.loggers.console import Reporter

EPOCHS = (0.1, 1.0)  # the second where a tenth of the pictures makes no batch
MAX_S = 300.0  # a first scan of the pictures included
MAX_SHARE = 0.1  # of the budget


def measure_pace(options: Mapping[str, Any], budget_s: float | None, reporter: Reporter) -> tuple[Pace, float]:
    """Trains a short dense run; returns the pace, and the seconds that it took to measure.

    Raises:
        InputError: the run failed, or was too slow to train one batch.
        Stopped: a signal came.
    """
    limit_s = MAX_S if budget_s is None else min(MAX_S, max(5.0, MAX_SHARE * budget_s))
    seconds = 0.0
    for epochs in EPOCHS:
        reporter.note(f"calibrating: {epochs:g} dense epochs, {limit_s:.0f} s at most")
        changes = {"gate": "dense", "epochs": epochs, "max_time": f"{limit_s:.0f}s"}
        with tempfile.TemporaryDirectory(prefix="fastast-bench-") as folder:
            runner = Runner(Path(folder), options)
            try:
                with runner.forwarding_signals():
                    outcome = runner.train(Path(folder, "calibration"), {**options, **changes})
            except BadInput as error:
                raise InputError(str(error)) from error
        seconds += outcome.seconds
        pace = pace_of(outcome, epochs)
        if pace is not None:
            return pace, seconds
        if outcome.summary is None or outcome.summary["stopped"] is not None:
            break
    reason = outcome.reason or f"not one batch was trained in {limit_s:.0f} s"
    raise InputError(f"the calibration run failed: {reason}; allow a longer --budget, or give --epochs alone")
