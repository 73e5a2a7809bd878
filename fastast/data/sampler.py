"""The order of the ids in an epoch and their split over ranks: pure functions of (seed, epoch, rank, keep mask)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fastast.philox import random_words

_ORDER_STREAM = 32  # distinct from the per-sample streams of fastast.philox


def epoch_ids(num_samples: int, seed: int, epoch: int, keep: np.ndarray | None = None) -> np.ndarray:
    """The order of one epoch over all ranks.

    Args:
        num_samples: size of the training set, below 2^32.
        seed: any integer; its low 64 bits are used.
        epoch: integer >= 0.
        keep: bool[num_samples]; ids with False are left out, without changing the order of the others.

    Returns:
        int64[num_samples] (or as many as `keep` holds), a permutation.
    """
    # One counter yields four words, the keys of four neighbouring ids. Key above, id below: every value differs,
    # so the fastest sort will do, and of two equal keys the lower id comes first.
    counters = np.arange((num_samples + 3) // 4, dtype=np.int64)
    keys = np.stack(random_words(seed, epoch, counters, _ORDER_STREAM), axis=1).reshape(-1)[:num_samples]
    order = np.sort((keys >> 1) << 32 | np.arange(num_samples, dtype=np.int64)) & 0xFFFFFFFF
    return order if keep is None else order[keep[order]]


def rank_rows(num_rows: int, batch_size: int, rank: int, world_size: int) -> slice:
    """The rows of a global batch that one rank takes.

    Of a full one, rank r takes rows r B .. (r+1) B. A partial one is split evenly, so that no two ranks differ by more
    than one row; with fewer rows than ranks some get none.

    Args:
        num_rows: rows of the global batch, at most B x world_size.
        batch_size: rows of one rank in a full batch, B.
        rank: in [0, world_size).
        world_size: number of ranks.
    """
    if num_rows == batch_size * world_size:
        return slice(rank * batch_size, (rank + 1) * batch_size)
    return slice(rank * num_rows // world_size, (rank + 1) * num_rows // world_size)


def rank_slices(ids: np.ndarray, batch_size: int, rank: int, world_size: int) -> Iterator[np.ndarray]:
    """The ids of one rank in each global batch, as many slices on every rank; the last may be empty.

    Args:
        ids: int64[N], the global order.
        batch_size, rank, world_size: as for `rank_rows`.
    """
    size = batch_size * world_size
    for first in range(0, len(ids), size):
        rows = ids[first : first + size]
        yield rows[rank_rows(len(rows), batch_size, rank, world_size)]
