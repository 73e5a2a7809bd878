from __future__ import annotations

import math

import numpy as np
import pytest

from fastast.gates.sampling import first_by_key, gate_probability, seeded_keys, systematic_draw


def scores_of(kind, num=400):
    rng = np.random.default_rng(1)
    drawn = {
        "lognormal": rng.lognormal(0, 3, num),
        "uniform": rng.random(num),
        "ties": rng.integers(0, 3, num),
        "constant": np.ones(num),
        "zeros": np.zeros(num),
        "one large": np.where(np.arange(num) == 7, 1e30, 1e-30),
    }
    return drawn[kind].astype(np.float32)


def plain_soft(scores, num, explore):
    scores = [max(float(s), 1e-37) for s in scores]
    low, high = 1e-40, 1e40
    for _ in range(300):
        threshold = math.sqrt(low * high)
        p = [explore + (1 - explore) * min(1.0, s / threshold) for s in scores]
        low, high = (threshold, high) if sum(p) > num else (low, threshold)
    return p


def plain_hard(scores, num, explore):
    """Gives each score's group, from the highest down, what is left of the places."""
    left, p = (num - explore * len(scores)) / (1 - explore), [0.0] * len(scores)
    for value in sorted(set(scores.tolist()), reverse=True):
        group = [i for i, s in enumerate(scores.tolist()) if s == value]
        for i in group:
            p[i] = min(1.0, left / len(group))
        left = max(0.0, left - len(group))
    return [explore + (1 - explore) * x for x in p]


@pytest.mark.parametrize("kind", ["lognormal", "uniform", "ties", "constant", "zeros", "one large"])
@pytest.mark.parametrize(("num", "explore"), [(1, 0.0), (40, 0.0), (40, 0.05), (399, 0.3), (400, 0.0)])
def test_gate_probability_equals_plain_twin(kind, num, explore):
    scores = scores_of(kind)
    explore_meant = min(explore, num / len(scores))
    for selection, plain in (("soft", plain_soft), ("hard", plain_hard)):
        ours = gate_probability(scores, num, explore=explore, selection=selection)
        assert ours == pytest.approx(plain(scores, num, explore_meant), abs=2e-4)
        assert ours.sum() == pytest.approx(num, rel=1e-9)
        assert ours.min() >= 0
        assert ours.max() <= 1


def test_explore_beyond_the_places_takes_all():
    p = gate_probability(scores_of("lognormal"), 20, explore=0.5, selection="soft")
    assert p == pytest.approx(np.full(400, 0.05))
    assert gate_probability(scores_of("ties"), 500, explore=0.5, selection="hard").tolist() == [1.0] * 400


def plain_systematic(probability, num, start):
    """Walks along the line of probabilities from one point to the next."""
    drawn, end = [False] * len(probability), 0.0
    points = [1 - start + k for k in range(num)]
    for i, p in enumerate(probability):
        end += p
        while points and points[0] <= end + 1e-12:
            drawn[i] = True
            points.pop(0)
    return drawn


@pytest.mark.parametrize("start", [0.001, 0.37, 0.999])
def test_systematic_draw_equals_plain_twin(start):
    for seed in range(30):
        rng = np.random.default_rng(seed)
        p = gate_probability(rng.random(50).astype(np.float32) + 0.1, 12, explore=0.1, selection="soft")
        assert p.max() < 1  # so that both lay out the same line
        assert systematic_draw(p, 12, start).tolist() == plain_systematic(p, 12, start)


@pytest.mark.parametrize("selection", ["soft", "hard"])
@pytest.mark.parametrize("num", [1, 17, 200, 399])
def test_systematic_draw_takes_the_exact_number(num, selection):
    """And those of probability 1 always."""
    for seed in range(60):
        scores = np.random.default_rng(seed).lognormal(0, 3, 400).astype(np.float32)
        p = gate_probability(scores, num, explore=0.0, selection=selection)
        drawn = systematic_draw(p, num, (seed + 0.5) / 60)
        assert drawn.sum() == num
        assert drawn[p == 1].all()
        assert not drawn[p == 0].any()


def test_systematic_draw_has_exact_probabilities():
    p = gate_probability(scores_of("lognormal", 60), 12, explore=0.1, selection="soft")
    starts = (np.arange(2000) + 0.5) / 2000  # evenly over (0, 1): the frequency is the probability itself
    frequency = np.mean([systematic_draw(p, 12, start) for start in starts], axis=0)
    assert frequency == pytest.approx(p, abs=1.1e-3)


def test_keys_are_independent_of_the_set_size():
    keys = seeded_keys(200_000, 5, 2, 19)
    assert np.array_equal(keys[:100], seeded_keys(100, 5, 2, 19))
    assert len(np.unique(keys)) == 200_000
    assert keys.min() >= 0
    assert not np.array_equal(keys[:100], seeded_keys(100, 5, 3, 19))


@pytest.mark.parametrize("num", [0, 1, 7, 20, 30])
def test_first_by_key(num):
    ids, keys = np.arange(5, 25), np.random.default_rng(0).permutation(40)
    assert sorted(first_by_key(ids, keys, num)) == sorted(sorted(ids, key=keys.__getitem__)[:num])
