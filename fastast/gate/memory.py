"""The last known score and the age of every sample of the training set."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ScoreMemory(nn.Module):
    """Score, age and selection count per sample, on the device.

    Each buffer has one spare row at its end: rows of a batch that do not count are written there, so that every
    shape is fixed.

    Args:
        num_samples: size of the training set, N; ids lie in [0, N).
    """

    _score: Tensor
    _age: Tensor
    _selected: Tensor

    def __init__(self, num_samples: int) -> None:
        super().__init__()
        self.num_samples = num_samples
        self.register_buffer("_score", torch.full((num_samples + 1,), torch.nan))
        self.register_buffer("_age", torch.zeros(num_samples + 1, dtype=torch.int32))
        self.register_buffer("_selected", torch.zeros(num_samples + 1, dtype=torch.int32))

    @property
    def score(self) -> Tensor:
        """Last score, float32 [N]; NaN for a sample without one."""
        return self._score[:-1]

    @property
    def age(self) -> Tensor:
        """Windows since the last score or choice, or since the start for a sample without one, int32 [N]."""
        return self._age[:-1]

    @property
    def selected(self) -> Tensor:
        """How often the sample was recorded, int32 [N]."""
        return self._selected[:-1]

    @torch.no_grad()
    def record(self, ids: Tensor, scores: Tensor, valid: Tensor) -> None:
        """Writes the scores of trained samples.

        Args:
            ids: int64 [B], each valid one at most once.
            scores: float [B].
            valid: bool [B]; rows where it is false are left out.
        """
        slot = torch.where(valid, ids, self.num_samples)
        self._score.index_copy_(0, slot, scores.to(self._score.dtype))
        self._age.index_fill_(0, slot, 0)
        self._selected.index_add_(0, slot, torch.ones_like(slot, dtype=torch.int32))

    @torch.no_grad()
    def tick(self, chosen: Tensor | None = None) -> None:
        """Ends a window: every sample is one older.

        Args:
            chosen: bool [N], the window's plan. A chosen sample counts as visited even if it is not yet trained, as
                some wait in a queue, or was in a step that was skipped.
        """
        if chosen is not None:
            self.age.masked_fill_(chosen, 0)
        self._age += 1
