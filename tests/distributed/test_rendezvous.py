"""Restarted ranks find each other in a part of the store that holds nothing of an earlier start."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from fastast.distributed.environment import WorldInfo
from fastast.distributed.rendezvous import rendezvous


def start(store, size):
    """The part of the store that each rank of one start found."""
    with ThreadPoolExecutor(size) as threads:
        joining = [threads.submit(rendezvous, store, WorldInfo(rank, size), 30.0) for rank in reversed(range(size))]
    return [join.result() for join in reversed(joining)]


@pytest.mark.parametrize("sizes", [(2, 2, 2), (3, 2, 4)])
def test_every_start_finds_an_empty_part(sizes):
    store = dist.HashStore()
    for attempt, size in enumerate(sizes):
        parts = start(store, size)
        assert not parts[0].check(["address"])
        parts[-1].set("address", str(attempt))
        assert [part.get("address") for part in parts] == [str(attempt).encode()] * size


def test_a_rank_that_announced_itself_and_died_is_not_waited_for():
    store = dist.HashStore()
    with pytest.raises(RuntimeError, match="timed out"):
        rendezvous(store, WorldInfo(rank=1, size=3), 0.1)
    parts = start(store, 3)
    parts[0].set("key", "value")
    assert parts[1].get("key") == parts[2].get("key") == b"value"


def test_the_first_rank_times_out():
    with pytest.raises(RuntimeError, match="timed out"):
        rendezvous(dist.HashStore(), WorldInfo(rank=0, size=2), 0.1)
    assert isinstance(rendezvous(dist.HashStore(), WorldInfo(rank=0, size=1), 0.1), dist.Store)
