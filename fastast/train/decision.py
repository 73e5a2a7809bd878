"""What every scoring step does with its class scores: decide, weigh, and keep the counts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastast.gate import Gate, importance_weights

# Loss histogram of selected and skipped samples: 16 bins of 0.5 nats, the last one open.
HIST_BINS, HIST_WIDTH = 16, 0.5


class Decision(nn.Module):
    """Which rows of a scored batch are trained, and with which weight.

    Args:
        gate: significance and controller.
        unbiased: weigh each selected sample by rate / probability.

    Attributes:
        totals: the batch's counts and sums, which the gate folds into its state at the next call. Between two
            calls it may be summed over ranks.
        hist: int64[2, HIST_BINS]: scoring loss of skipped (row 0) and selected (row 1) samples since it was zeroed.
    """

    totals: Tensor
    hist: Tensor

    def __init__(self, gate: Gate, *, unbiased: bool = False) -> None:
        super().__init__()
        self.gate = gate
        self.unbiased = unbiased
        totals = gate.no_totals()
        device = totals.device
        self.register_buffer("totals", totals)
        self.register_buffer("hist", torch.zeros(2, HIST_BINS, dtype=torch.int64, device=device))

    @torch.no_grad()
    def forward(
        self, logits: Tensor, labels: Tensor, images: Tensor, ids: Tensor, epoch: Tensor, valid: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Decides on one batch.

        Args:
            logits: float [B, classes].
            labels, ids: int64 [B].
            images: float [B, 3, H, W].
            epoch: int64 0-dim.
            valid: bool [B].

        Returns:
            mask: bool [B], the rows to train.
            weights: float32 [B], their importance weights, 0 for the others; None for 1.
        """
        mask, loss, totals = self.gate(logits, labels, images, ids, epoch, valid, self.totals)
        self.totals.copy_(totals)
        bins = (loss / HIST_WIDTH).nan_to_num(nan=HIST_BINS - 1, posinf=HIST_BINS - 1).clamp(0, HIST_BINS - 1)
        self.hist.view(-1).index_add_(0, mask.long() * HIST_BINS + bins.long(), valid.long())
        if not self.unbiased:
            return mask, None
        controller = self.gate.controller
        return mask, importance_weights(mask, controller.probability, controller.mean_probability)
