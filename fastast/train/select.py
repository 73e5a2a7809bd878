"""Scoring thumbnails: the decision goes to the host, which then has the chosen pictures decoded."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastast.train.decision import Decision
from fastast.train.steps import logits_of


class SelectStep(nn.Module):
    """Scores a batch of thumbnails and says which of its samples to train: one graph of constant shapes.

    Args:
        scorer: the network that scores them, in eval mode.
        decision: shared with the run's `ScoreStep`, so that both continue one gate.
        dtype: compute type of the forward.
        num_samples: size of the training set, N.

    Attributes:
        weights: float32[N + 1]: the weight of each sample's loss by id, as last decided (0: not selected). The last
            place takes padding.
    """

    weights: Tensor

    def __init__(self, scorer: nn.Module, decision: Decision, *, dtype: torch.dtype, num_samples: int) -> None:
        super().__init__()
        # The scorer's tensors belong to the model: kept out of this module's state.
        self._scorer = [scorer]
        self.decision = decision
        self.dtype = dtype
        self.register_buffer("weights", torch.ones(num_samples + 1, device=decision.totals.device))

    @torch.no_grad()
    def forward(self, images: Tensor, labels: Tensor, ids: Tensor, valid: Tensor, epoch: Tensor) -> Tensor:
        """Takes images [B, 3, s, s] channels-last, labels [B], ids [B], valid [B] bool, epoch int64 0-dim.

        Returns:
            float64[2 B]: the ids (N for padding), then the loss weight of each row, 0 where it is not selected.
        """
        logits = logits_of(self._scorer[0], images, self.dtype)
        mask, weights = self.decision(logits, labels, images, ids, epoch, valid)
        if weights is None:
            weights = mask.float()
        ids = torch.where(valid, ids, len(self.weights) - 1)
        self.weights.index_copy_(0, ids, weights)
        return torch.cat((ids.double(), weights.double()))
