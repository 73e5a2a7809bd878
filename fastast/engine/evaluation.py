"""Accuracy on a whole split: every picture counted once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from fastast.distributed.ranks import Ranks
from fastast.engine.steps import EvalStep
from fastast.errors import InputError
from fastast.feed import Batch


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Results on one split.

    Attributes:
        loss: mean cross entropy, nats.
        top5: share in [0, 1]; with fewer than five classes it counts all of them.
        counts: int64[C], pictures of each class.
        hits: int64[C], those whose label was the most probable class.
    """

    loss: float
    top5: float
    counts: np.ndarray
    hits: np.ndarray

    @property
    def num_samples(self) -> int:
        """Pictures counted."""
        return int(self.counts.sum())

    @property
    def top1(self) -> float:
        """Share of the pictures, in [0, 1]."""
        return int(self.hits.sum()) / self.num_samples

    @property
    def balanced_top1(self) -> float:
        """Mean of the classes' own top-1, in [0, 1], over the classes that have pictures."""
        known = self.counts > 0
        return float((self.hits[known] / self.counts[known]).mean())


def evaluate(
    step: EvalStep,
    batches: Iterable[Batch],
    *,
    run: Callable[..., torch.Tensor] | None = None,
    on_logits: Callable[[Batch, torch.Tensor], None] | None = None,
    ranks: Ranks | None = None,
) -> Accuracy:
    """Evaluates over `batches`.

    Args:
        step: holds the running sums; zeroed first.
        batches: padded batches that together offer each picture once.
        run: the compiled form of `step`, if there is one.
        on_logits: called with each batch and its logits [B, C] float32.
        ranks: who evaluates together, each rank its own batches.

    Raises:
        InputError: no picture was delivered.
    """
    forward = step if run is None else run
    step.sums.zero_()
    step.by_class.zero_()
    for batch in batches:
        logits = forward(batch.images, batch.labels, batch.valid)
        if on_logits is not None:
            on_logits(batch, logits)
    found = torch.cat((step.sums, step.by_class.flatten().double()))  # exact for counts below 2^53
    if ranks is not None:
        ranks.all_reduce(found)
    loss, top5, *by_class = found.tolist()
    counts, hits = np.array(by_class).astype(np.int64).reshape(2, -1)
    if not (count := counts.sum()):
        raise InputError("no picture of the evaluation split could be decoded; `file` or an image viewer may say why")
    return Accuracy(loss / count, top5 / count, counts, hits)
