from __future__ import annotations

import numpy as np
import torch

from fastast.gates.score_memory import ScoreMemory


def test_equals_plain_arrays():
    generator = torch.Generator().manual_seed(0)
    memory = ScoreMemory(50)
    score, age, selected = np.full(50, np.nan, dtype=np.float32), np.zeros(50, int), np.zeros(50, int)
    for k in range(80):
        ids = torch.randperm(50, generator=generator)[:16]
        values = torch.rand(16, generator=generator)
        valid = torch.rand(16, generator=generator) < 0.7
        memory.record(ids, values, valid)
        for i, value, counts in zip(ids.tolist(), values.tolist(), valid.tolist(), strict=True):
            if counts:
                score[i], age[i] = value, 0
                selected[i] += 1
        if k % 5 == 4:
            memory.tick()
            age += 1
        assert np.array_equal(memory.score.numpy(), score, equal_nan=True)
        assert np.array_equal(memory.age.numpy(), age)
        assert np.array_equal(memory.selected.numpy(), selected)


def test_unseen_samples_have_no_score_and_the_age_of_the_run():
    memory = ScoreMemory(4)
    memory.tick()
    memory.record(torch.tensor([2, 0]), torch.tensor([0.5, 0.7]), torch.tensor([True, False]))
    memory.tick()
    assert memory.score.isnan().tolist() == [True, True, False, True]
    assert memory.age.tolist() == [2, 2, 1, 2]
    assert memory.selected.tolist() == [0, 0, 1, 0]


def test_a_chosen_sample_counts_as_visited_though_not_yet_trained():
    memory = ScoreMemory(3)
    memory.tick()
    memory.tick(torch.tensor([False, True, False]))
    memory.record(torch.tensor([2]), torch.tensor([1.0]), torch.tensor([True]))
    memory.tick(torch.tensor([True, False, False]))
    assert memory.age.tolist() == [1, 2, 1]


def test_state_dict_restores():
    memory, other = ScoreMemory(8), ScoreMemory(8)
    memory.record(torch.arange(4), torch.rand(4), torch.ones(4, dtype=torch.bool))
    memory.tick()
    other.load_state_dict(memory.state_dict())
    assert torch.equal(memory.score[:4], other.score[:4])
    assert torch.equal(memory.age, other.age)
    assert torch.equal(memory.selected, other.selected)
