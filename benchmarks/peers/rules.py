"""Two published rules of selection, re-stated from their papers as plain functions of losses."""

from __future__ import annotations

import torch
from torch import Tensor


def infobatch_plan(losses: Tensor, prune: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which pictures an epoch of InfoBatch trains, and with which weight.

    Qin et al., "InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning", ICLR 2024, section 2: of the
    pictures whose last loss is below the mean, a random share `prune` is left out; those of them that stay weigh
    1 / (1 - prune), so that the expected gradient is that of all pictures.

    Args:
        losses: float[N], last known; equal ones, as before the first epoch, leave nothing out.
        prune: in [0, 1).
        generator: of the choice.

    Returns:
        ids int64[K], ascending; weights float32[N], 1 where nothing was scaled.
    """
    learned = torch.nonzero(losses < losses.mean()).flatten()
    shuffled = learned[torch.randperm(len(learned), generator=generator)]
    keep = torch.ones(len(losses), dtype=torch.bool)
    keep[shuffled[int((1 - prune) * len(learned)) :]] = False
    weights = torch.ones(len(losses))
    weights[learned] = 1 / (1 - prune)
    return torch.nonzero(keep).flatten(), weights


def selective_backprop_rows(losses: Tensor, keep: float, generator: torch.Generator) -> Tensor:
    """Which rows of a batch Selective Backprop trains.

    Jiang et al., "Accelerating Deep Learning by Focusing on the Biggest Losers", 2019, in the form that MosaicML's
    Composer documents: a share `keep` of the batch is drawn without replacement, a row with a chance in proportion to
    the percentile of its loss within the batch to the power 1 / keep - 1.

    Args:
        losses: float[B].
        keep: share of the rows, in (0, 1].
        generator: of the draw.

    Returns:
        int64[max(1, int(keep * B))], the rows drawn.
    """
    size = len(losses)
    percentiles = (torch.arange(size, dtype=torch.float64) + 0.5) / size  # of the rows in the order of their losses
    chances = percentiles ** (1 / keep - 1)
    places = torch.multinomial(chances, max(1, int(keep * size)), generator=generator)
    return losses.argsort()[places]


def selective_backprop_is_on(
    progress: float, batch: int, *, start: float = 0.5, end: float = 0.9, interrupt: int = 2
) -> bool:
    """Whether Selective Backprop works on a batch: from `start` to `end` of the run, but every `interrupt`-th batch.

    The defaults are Composer's.

    Args:
        progress: share of the run that is done, in [0, 1).
        batch: its number, from 0.
        start, end: shares of the run.
        interrupt: 0 for every batch.
    """
    return start <= progress < end and (interrupt == 0 or (batch + 1) % interrupt != 0)
