"""Which rows ranks move between their queues."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastast.distributed.queue_balance import QueueBalancer, fullest_to_emptiest


@given(st.lists(st.integers(0, 40), min_size=1, max_size=9), st.integers(2, 16))
def test_moves_even_out_and_lose_nothing(fills, batch_size):
    moves = fullest_to_emptiest(fills, batch_size)
    after = list(fills)
    for full, empty, num_rows in moves:
        assert 0 < num_rows <= batch_size
        assert fills[full] - fills[empty] >= batch_size
        after[full] -= num_rows
        after[empty] += num_rows
    ranks = [rank for full, empty, _ in moves for rank in (full, empty)]
    assert len(set(ranks)) == len(ranks)
    assert sum(after) == sum(fills)
    assert min(after) >= min(fills)
    assert max(after) <= max(fills)
    assert (not moves) == (max(fills) - min(fills) < batch_size)


def test_the_fullest_sends_to_the_emptiest():
    assert fullest_to_emptiest([30, 0, 2, 9], 8) == [(0, 1, 8)]
    assert fullest_to_emptiest([30, 0, 2, 12], 8) == [(0, 1, 8), (3, 2, 5)]
    assert fullest_to_emptiest([0, 7], 8) == []
    assert fullest_to_emptiest([0, 8], 8) == [(1, 0, 4)]


@pytest.mark.parametrize("size", [2, 3, 4, 8, 16])
def test_a_rank_that_selects_all_rows_never_overflows(size):
    """One of n ranks gets B rows a batch and the others none, reported one batch late: the ring holds 6 B."""
    batch_size, balancer = 8, QueueBalancer(8, size)
    selected, fills = np.zeros(size), np.zeros(size, int)
    for _ in range(200):
        before = selected.copy()
        selected[0] += batch_size
        fills[0] += batch_size
        assert fills.max() <= 6 * batch_size
        work = balancer.decide(before)
        for full, empty, num_rows in work.moves:
            fills[full] -= num_rows
            fills[empty] += num_rows
        fills -= work.num_steps * batch_size
        assert fills.min() >= 0
    assert fills.sum() + size * balancer._popped == selected.sum()
