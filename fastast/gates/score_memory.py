"""The last known score of every sample of the training set."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class ScoreMemory(nn.Module):
    """Score and selection count per sample, on the device.

    Each buffer has one spare row at its end: rows of a batch that do not count are written there, so that every
    shape is fixed.

    Args:
        num_samples: size of the training set, N; ids lie in [0, N).
    """

    _score: Tensor
    _selected: Tensor
    _recorded: Tensor
    _num_records: Tensor

    def __init__(self, num_samples: int) -> None:
        super().__init__()
        self.num_samples = num_samples
        self.register_buffer("_score", torch.full((num_samples + 1,), torch.nan))
        self.register_buffer("_selected", torch.zeros(num_samples + 1, dtype=torch.int32))
        self.register_buffer("_recorded", torch.zeros(num_samples + 1, dtype=torch.int32))  # in which call; 0: never
        self.register_buffer("_num_records", torch.zeros((), dtype=torch.int32))

    @property
    def score(self) -> Tensor:
        """Last score, float32 [N]; NaN for a sample without one."""
        return self._score[:-1]

    @property
    def selected(self) -> Tensor:
        """How often the sample was recorded, int32 [N]; on one of several ranks since their last `merge`."""
        return self._selected[:-1]

    @torch.no_grad()
    def record(self, ids: Tensor, scores: Tensor, valid: Tensor) -> None:
        """Writes the scores of trained samples.

        Args:
            ids: int64 [B]. Of an id that occurs twice the last row counts, and both are counted in `selected`.
            scores: float [B].
            valid: bool [B]; rows where it is false are left out.
        """
        slot = torch.where(valid, ids, self.num_samples)
        self._selected.index_add_(0, slot, torch.ones_like(slot, dtype=torch.int32))
        # A batch may hold two epochs of one sample. Which row `index_copy_` keeps is undefined on CUDA.
        repeated = torch.triu(slot[:, None] == slot, diagonal=1).any(1)  # [B], a later row has the same id
        slot = torch.where(repeated, self.num_samples, slot)
        self._num_records += 1
        self._score.index_copy_(0, slot, scores.to(self._score.dtype))
        self._recorded.index_copy_(0, slot, self._num_records.expand(len(slot)))

    @torch.no_grad()
    def fill(self, scores: Tensor) -> None:
        """Sets the scores of all samples, which count as recorded now, but not as selected.

        Args:
            scores: float [N], the same on all ranks; NaN for a sample without one.
        """
        self._num_records += 1
        self.score.copy_(scores)
        self._recorded[:-1] = torch.where(scores.isnan(), 0, self._num_records)

    @torch.no_grad()
    def merge(self, rank: int, num_ranks: int, reduce: Callable[[Tensor, str], Tensor]) -> None:
        """Gives the memories of several ranks, which record in step, the scores that one would have.

        Call it on all ranks. Of a sample that several have recorded the latest score counts, of two in one step that
        of the higher rank. `selected` becomes the sum on rank 0, and 0 on the others.

        Args:
            rank, num_ranks: of this memory.
            reduce: `reduce(tensor, "sum" | "max")` all-reduces a tensor in place, and returns it.
        """
        if num_ranks == 1:
            return
        mine = self._recorded.long() * num_ranks + rank
        latest = reduce(mine.clone(), "max")
        never = latest < num_ranks
        bits = torch.where(mine == latest, self._score.view(torch.int32), 0)  # exact, NaN included
        self._score.copy_(torch.where(never, torch.nan, reduce(bits, "sum").view(torch.float32)))
        self._recorded.copy_(latest // num_ranks)
        reduce(self._selected, "sum")
        if rank:
            self._selected.zero_()

    def load_merged(self, state: dict[str, Tensor], rank: int) -> None:
        """Loads the state dict of a merged memory on one of several ranks: the first keeps the counts of all."""
        self.load_state_dict(state)
        if rank:
            self._selected.zero_()
