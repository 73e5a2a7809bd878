"""The memories of several ranks, merged into what one would hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastast.gates.score_memory import ScoreMemory

N, B = 40, 6


def merge(memories):
    """Runs `ScoreMemory.merge` of all ranks, whose reductions come in the same order on each."""
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
def test_merged_memories_are_the_memory_that_sees_all(num_ranks):
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
                memory.tick(chosen)
        if step % 7 == 6:
            merge(memories)
            for memory in memories:
                assert np.array_equal(memory.score.numpy(), one.score.numpy(), equal_nan=True)
                assert torch.equal(memory.age, one.age)
            assert memories[0].selected.tolist() == selected.tolist()
            assert not any(memory.selected.any() for memory in memories[1:])
    assert one.score[N - 5 :].isnan().all()


def test_merging_twice_changes_nothing_more():
    memories = [ScoreMemory(N) for _ in range(2)]
    for rank, memory in enumerate(memories):
        ids = torch.arange(B) + 3 * rank
        memory.record(ids, torch.rand(B) - 0.5, torch.ones(B, dtype=torch.bool))
    merge(memories)
    before = [{name: value.clone() for name, value in memory.state_dict().items()} for memory in memories]
    merge(memories)
    for memory, state in zip(memories, before, strict=True):
        for name, value in memory.state_dict().items():
            np.testing.assert_array_equal(value.numpy(), state[name].numpy(), err_msg=name)


def test_a_single_memory_asks_nobody():
    memory = ScoreMemory(N)
    memory.record(torch.arange(B), torch.rand(B), torch.ones(B, dtype=torch.bool))
    memory.merge(0, 1, None)
    assert memory.selected.sum() == B
