"""Accuracy on a whole split: every picture counted once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from fastast.distributed.ranks import Ranks
from fastast.errors import InputError
from fastast.feed import Batch
from fastast.train.steps import EvalStep


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Results on one split.

    Attributes:
        loss: mean cross entropy, nats.
        top1, top5: shares in [0, 1]; with fewer than five classes top5 counts all of them.
        num_samples: pictures counted.
    """

    loss: float
    top1: float
    top5: float
    num_samples: int


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
    for batch in batches:
        logits = forward(batch.images, batch.labels, batch.valid)
        if on_logits is not None:
            on_logits(batch, logits)
    if ranks is not None:
        ranks.all_reduce(step.sums)
    loss, top1, top5, count = step.sums.tolist()
    if not count:
        raise InputError("no picture of the evaluation split could be decoded; `file` or an image viewer may say why")
    return Accuracy(loss / count, top1 / count, top5 / count, int(count))
