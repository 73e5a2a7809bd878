from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from fastast.gates.score_memory import ScoreMemory

N, B = 40, 6
ALL = torch.ones(B, dtype=torch.bool)


def test_equals_plain_arrays():
    generator = torch.Generator().manual_seed(0)
    memory = ScoreMemory(50)
    score, selected = np.full(50, np.nan, dtype=np.float32), np.zeros(50, int)
    for _ in range(80):
        ids = torch.randperm(45, generator=generator)[:16]  # the last five are never seen
        values = torch.rand(16, generator=generator)
        valid = torch.rand(16, generator=generator) < 0.7
        memory.record(ids, values, valid)
        rows = ids[valid].numpy()
        score[rows] = values[valid]
        selected[rows] += 1
        assert np.array_equal(memory.score.numpy(), score, equal_nan=True)
        assert np.array_equal(memory.selected.numpy(), selected)
    other = ScoreMemory(50)
    other.load_state_dict(memory.state_dict())
    assert np.array_equal(other.score.numpy(), score, equal_nan=True)
    assert np.array_equal(other.selected.numpy(), selected)


def merge(memories):
    """Runs `ScoreMemory.merge` on all ranks, one thread each."""
    size = len(memories)
    parts, barrier = [None] * size, threading.Barrier(size, timeout=20)
    operations = {"sum": lambda x: x.sum(0), "max": lambda x: x.amax(0)}

    def merge_one(rank):
        def reduce(tensor, operation):
            parts[rank] = tensor.clone()
            barrier.wait()
            result = operations[operation](torch.stack(parts))
            barrier.wait()
            return tensor.copy_(result)

        memories[rank].merge(rank, size, reduce)

    with ThreadPoolExecutor(size) as pool:
        list(pool.map(merge_one, range(size)))


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_merged_memories_equal_one(num_ranks):
    generator = torch.Generator().manual_seed(num_ranks)
    memories, one = [ScoreMemory(N) for _ in range(num_ranks)], ScoreMemory(N)
    selected = np.zeros(N, int)
    for step in range(60):
        order = torch.randperm(N - 5, generator=generator)
        for rank, memory in enumerate(memories):
            ids = order[rank * B : (rank + 1) * B]  # every second step the same ids on all ranks
            ids = order[:B] if step % 2 else ids
            scores, valid = torch.randn(B, generator=generator), torch.rand(B, generator=generator) < 0.8
            if step % 9 == 0:
                scores[0] = torch.nan
            memory.record(ids, scores, valid)
            one.record(ids, scores, valid)  # in the order of the ranks: the higher one counts
            np.add.at(selected, ids[valid].numpy(), 1)
        if step % 7 == 6:
            merge(memories)
            for memory in memories:
                assert np.array_equal(memory.score.numpy(), one.score.numpy(), equal_nan=True)
            assert memories[0].selected.tolist() == selected.tolist()
            assert not any(memory.selected.any() for memory in memories[1:])
    assert one.score[N - 5 :].isnan().all()


def test_merging_twice_changes_nothing():
    memories = [ScoreMemory(N) for _ in range(2)]
    for rank, memory in enumerate(memories):
        ids = torch.arange(B) + 3 * rank
        memory.record(ids, torch.rand(B) - 0.5, ALL)
    merge(memories)
    before = [{name: value.clone() for name, value in memory.state_dict().items()} for memory in memories]
    merge(memories)
    for memory, state in zip(memories, before, strict=True):
        for name, value in memory.state_dict().items():
            np.testing.assert_array_equal(value.numpy(), state[name].numpy(), err_msg=name)


def test_one_rank_reduces_nothing():
    memory = ScoreMemory(N)
    memory.record(torch.arange(B), torch.rand(B), ALL)
    memory.merge(0, 1, None)
    assert memory.selected.sum() == B
