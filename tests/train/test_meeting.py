"""Ranks that are started again meet where nothing of an earlier start is read."""

from __future__ import annotations

import threading

import pytest
import torch.distributed as dist

from fastast.distributed.environment import WorldInfo
from fastast.distributed.rendezvous import meet


def start(store, size, timeout_s=30.0):
    """All ranks of one start meet; returns the part of the store that each found, by rank, or the error."""
    found = {}

    def join(rank):
        try:
            found[rank] = meet(store, WorldInfo(rank=rank, size=size), timeout_s)
        except RuntimeError as error:
            found[rank] = error

    threads = [threading.Thread(target=join, args=(rank,)) for rank in reversed(range(size))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[rank] for rank in range(size)]


@pytest.mark.parametrize("sizes", [(2, 2, 2), (3, 2, 4)])
def test_every_start_finds_a_part_of_its_own(sizes):
    store = dist.HashStore()
    for attempt, size in enumerate(sizes):
        parts = start(store, size)
        assert not parts[0].check(["address"])
        parts[-1].set("address", str(attempt))
        assert [part.get("address") for part in parts] == [str(attempt).encode()] * size


def test_a_rank_that_said_hello_and_died_is_not_waited_for():
    store = dist.HashStore()
    with pytest.raises(RuntimeError, match="timed out"):
        meet(store, WorldInfo(rank=1, size=3), 0.1)
    parts = start(store, 3)
    parts[0].set("key", "value")
    assert parts[1].get("key") == parts[2].get("key") == b"value"


def test_the_first_rank_does_not_wait_for_ever():
    with pytest.raises(RuntimeError, match="timed out"):
        meet(dist.HashStore(), WorldInfo(rank=0, size=2), 0.1)
    assert isinstance(meet(dist.HashStore(), WorldInfo(rank=0, size=1), 0.1), dist.Store)
