"""Which ids are offered, in which order, on which rank: a pure function of (seed, epoch, rank, keep mask)."""

from __future__ import annotations

import numpy as np

from fastast.philox import random_words

_ORDER_STREAM = 32  # apart from the per-sample streams of fastast.philox


def epoch_ids(num_samples: int, seed: int, epoch: int, keep: np.ndarray | None = None) -> np.ndarray:
    """The order of one epoch over all ranks.

    Args:
        num_samples: size of the training set, below 2^32.
        seed: any integer; its low 64 bits are used.
        epoch: integer >= 0.
        keep: bool[num_samples]; ids that are False are left out, the order of the others does not change.

    Returns:
        int64[num_samples] (or as many as `keep` holds), a permutation.
    """
    # One counter yields four words, the keys of four neighbouring ids. Key above, id below: every value differs,
    # so the fastest sort will do, and of two equal keys the lower id comes first.
    counters = np.arange((num_samples + 3) // 4, dtype=np.int64)
    keys = np.stack(random_words(seed, epoch, counters, _ORDER_STREAM), axis=1).reshape(-1)[:num_samples]
    order = np.sort((keys >> 1) << 32 | np.arange(num_samples, dtype=np.int64)) & 0xFFFFFFFF
    return order if keep is None else order[keep[order]]


def rank_batches(ids: np.ndarray, batch_size: int, rank: int, world_size: int) -> np.ndarray:
    """The ids of one rank, in the order in which it sees them.

    Rank r takes rows r B .. (r+1) B of each global batch of B x world_size ids. A last, partial global batch is
    shared out evenly, so that no two ranks differ by more than one row; ranks whose share is one batch short of
    the others' (fewer rows than ranks are left) must be given an empty batch by the caller.

    Args:
        ids: int64[N], the global order.
        batch_size: rows of one rank in a global batch, B.
        rank: in [0, world_size).
        world_size: number of ranks.
    """
    whole = len(ids) - len(ids) % (batch_size * world_size)
    mine = ids[:whole].reshape(-1, world_size, batch_size)[:, rank].reshape(-1)
    rest = ids[whole:]
    return np.concatenate([mine, rest[rank * len(rest) // world_size : (rank + 1) * len(rest) // world_size]])
