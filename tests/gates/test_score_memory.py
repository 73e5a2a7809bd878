from __future__ import annotations

import numpy as np
import pytest
import torch

from fastast.gates.score_memory import ScoreMemory

N, B = 40, 6
ALL = torch.ones(B, dtype=torch.bool)


def test_equals_plain_arrays():
    generator = torch.Generator().manual_seed(0)
    memory = ScoreMemory(50)
    score, age, selected = np.full(50, np.nan, dtype=np.float32), np.zeros(50, int), np.zeros(50, int)
    for k in range(80):
        ids = torch.randperm(45, generator=generator)[:16]  # the last five are never seen
        values = torch.rand(16, generator=generator)
        valid = torch.rand(16, generator=generator) < 0.7
        memory.record(ids, values, valid)
        rows = ids[valid].numpy()
        score[rows], age[rows] = values[valid], 0
        selected[rows] += 1
        if k % 5 == 4:
            # A chosen sample counts as visited, even if it was not yet trained.
            chosen = torch.rand(50, generator=generator) < 0.2 if k % 2 else None
            memory.end_epoch(chosen)
            age[[] if chosen is None else chosen.numpy()] = 0
            age += 1
        assert np.array_equal(memory.score.numpy(), score, equal_nan=True)
        assert np.array_equal(memory.age.numpy(), age)
        assert np.array_equal(memory.selected.numpy(), selected)
    other = ScoreMemory(50)
    other.load_state_dict(memory.state_dict())
    assert np.array_equal(other.score.numpy(), score, equal_nan=True)
    assert np.array_equal(other.age.numpy(), age)
    assert np.array_equal(other.selected.numpy(), selected)


def merge(memories):
    """Runs `ScoreMemory.merge` on all ranks, which reduce in the same order."""
    rounds = []

    class Waiting(Exception):
        pass

    # One rank after another, as far as the results of reductions are known; then again with one more of them.
    states = [{name: value.clone() for name, value in memory.state_dict().items()} for memory in memories]
    while True:
        asked = []
        for rank, (memory, state) in enumerate(zip(memories, states, strict=True)):
            memory.load_state_dict(state)
            known = iter(rounds)

            def reduce(tensor, operation, known=known, asked=asked):
                result = next(known, None)
                if result is None:
                    asked.append((tensor.clone(), operation))
                    raise Waiting
                return tensor.copy_(result)

            try:
                memory.merge(rank, len(memories), reduce)
            except Waiting:
                continue
        if not asked:
            return
        (operation,) = {name for _, name in asked}
        stacked = torch.stack([tensor for tensor, _ in asked])
        rounds.append({"sum": stacked.sum(0), "max": stacked.amax(0), "min": stacked.amin(0)}[operation])


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
        if step % 10 == 9:
            chosen = torch.rand(N, generator=generator) < 0.1
            for memory in (*memories, one):
                memory.end_epoch(chosen)
        if step % 7 == 6:
            merge(memories)
            for memory in memories:
                assert np.array_equal(memory.score.numpy(), one.score.numpy(), equal_nan=True)
                assert torch.equal(memory.age, one.age)
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
