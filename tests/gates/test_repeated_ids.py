"""A batch that straddles two epochs may hold a sample twice."""

import torch

from fastast.gates.score_memory import ScoreMemory


def test_last_row_of_a_repeated_id_counts():
    memory = ScoreMemory(5)
    ids, scores = torch.tensor([1, 3, 1, 2, 3, 1]), torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    memory.record(ids, scores, torch.tensor([True, True, True, True, True, False]))
    assert memory.score.isnan().tolist() == [True, False, False, False, True]
    assert memory.score[1:4].tolist() == torch.tensor([0.3, 0.4, 0.5]).tolist()
    assert memory.selected.tolist() == [0, 2, 1, 2, 0]  # both trainings count


def test_repeats_agree_with_a_plain_loop():
    generator = torch.Generator().manual_seed(0)
    memory, expected = ScoreMemory(20), [float("nan")] * 20
    for _ in range(50):
        ids = torch.randint(0, 20, (16,), generator=generator)
        scores, valid = torch.rand(16, generator=generator), torch.rand(16, generator=generator) < 0.8
        memory.record(ids, scores, valid)
        for i, score, is_valid in zip(ids.tolist(), scores.tolist(), valid.tolist(), strict=True):
            expected[i] = score if is_valid else expected[i]
    assert memory.score.tolist() == expected
