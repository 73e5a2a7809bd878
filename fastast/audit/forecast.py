"""What a gate could save on a set, from the losses that a run remembers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastast.gates.memory import SCORES
from fastast.gates.registry import GATES
from fastast.gates.sampling import adaptive_share
from fastast.record.run_record import RunRecord


class Forecast(NamedTuple):
    """An estimate of work; it says nothing of accuracy.

    Attributes:
        num: pictures with a remembered loss.
        ratio: E[s]^2 / E[s^2] of their scores s by the memory gate.
        share: that `--target auto` would train next.
        epochs: of the run.
        work: of as many epochs, the first of them dense and the others at that share, over dense training.
    """

    num: int
    ratio: float
    share: float
    epochs: int
    work: float


def forecast(record: RunRecord) -> Forecast | None:
    """The forecast of a run that has ended; None of one that has not, or whose scores are all 0."""
    if record.samples is None or not record.epochs:
        return None
    losses = record.samples.last_loss[np.isfinite(record.samples.last_loss)].astype(np.float64)
    kind = record.config.get("significance")
    score = kind if isinstance(kind, str) and kind in SCORES else GATES["memory"].significance[0]
    smoothing = record.config.get("label_smoothing")
    smoothing = float(smoothing) if isinstance(smoothing, int | float) and 0 <= smoothing < 1 else 0.0
    scores = SCORES[score](losses, smoothing, max(1, len(record.classes)))
    squares = float(np.mean(scores**2)) if len(scores) else 0.0
    if not squares > 0:
        return None
    share, epochs = adaptive_share(scores), len(record.epochs)
    dense = min(1.0, epochs)
    work = (dense + (epochs - dense) * share) / epochs
    return Forecast(len(scores), float(scores.mean()) ** 2 / squares, share, epochs, work)
