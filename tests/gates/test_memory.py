from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
import torch

from fastast.gates.base import EpochContext
from fastast.gates.memory import Memory, revisit_bound
from fastast.gates.score_memory import ScoreMemory

NUM = 400


def lognormal(seed=0, num=NUM):
    return np.random.default_rng(seed).lognormal(0, 1.5, num).astype(np.float32)


def plan(num=NUM, epoch=0, **options):
    return Memory().plan(EpochContext(num_samples=num, epoch=epoch, **{"seed": 3, "target": 0.1, **options}))


@pytest.mark.parametrize("target", [0.02, 0.1, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("selection", ["soft", "hard"])
def test_exactly_the_share_is_chosen(target, selection):
    for epoch in range(20):
        rng = np.random.default_rng(epoch)
        scores, ages = lognormal(epoch, 1003), rng.integers(0, 2 + epoch * 3, 1003).astype(np.int32)
        scores[rng.random(1003) < (0, 0.1, 0.99, 1)[epoch % 4]] = np.nan
        offered = rng.random(1003) < 0.7 if epoch % 3 == 0 else None
        chosen = plan(
            1003, epoch, target=target, scores=scores, ages=ages, offered=offered, explore=0.03, selection=selection
        )
        assert chosen.keep.sum() == round(target * (1003 if offered is None else offered.sum()))
        assert chosen.weights is None
        assert offered is None or not chosen.keep[~offered].any()


def test_scores_of_nan_are_no_scores():
    assert np.array_equal(plan().keep, plan(scores=np.full(NUM, np.nan, dtype=np.float32)).keep)


def test_claims_are_met_in_order():
    """40 places: the oldest overdue, other overdue, those without a score, the rest by score."""
    scores, ages = np.ones(NUM, dtype=np.float32), np.ones(NUM, dtype=np.int32)
    scores[:6] = 1e-9  # the gate alone would not choose them
    ages[:6] = 21
    scores[6:36] = np.nan
    scores[36:38] = 1e9
    keep = plan(scores=scores, ages=ages).keep
    assert keep[:38].all()
    assert keep[38:].sum() == 2
    ages[:6] = 20  # not older than ceil(2 / target)
    assert not plan(scores=scores, ages=ages).keep[:6].any()
    ages[:6] = 21
    ages[100:150] = 22
    keep = plan(scores=scores, ages=ages).keep
    assert keep.sum() == keep[100:150].sum() == 40  # the oldest alone are too many
    ages[130:150] = 1
    keep = plan(scores=scores, ages=ages).keep
    assert keep[100:130].all()
    assert keep[:6].all()
    assert keep[6:36].sum() == 4


def test_hard_takes_the_highest_and_explore_the_rest():
    scores = lognormal()
    keep = plan(scores=scores, selection="hard").keep
    assert scores[keep].min() > scores[~keep].max()
    top = np.argsort(scores)[-20:]
    low = scores < np.median(scores)
    plans = [plan(epoch=epoch, scores=scores, selection="hard", explore=0.05).keep for epoch in range(200)]
    assert all(keep[top].all() for keep in plans)
    num_low = np.mean([keep[low].sum() for keep in plans])
    assert num_low == pytest.approx(0.05 * NUM / 2, rel=0.1)  # 10 each: a standard error of 0.2 at most


@pytest.mark.parametrize("explore", [0.0, 0.04])
def test_soft_choices_follow_their_probability(explore):
    """Over many epochs each id is chosen as often as its weight, rate / p, says."""
    scores, rounds = lognormal(), 800
    plans = [plan(epoch=epoch, scores=scores, explore=explore, unbiased=True) for epoch in range(rounds)]
    counts = sum(each.keep.astype(int) for each in plans)
    weights = np.max([each.weights for each in plans], axis=0)
    p = np.divide(0.1, weights, out=np.zeros(NUM), where=weights > 0)
    assert abs(counts - rounds * p).max() < 5 * np.sqrt(rounds * 0.25)
    assert p.sum() == pytest.approx(40, rel=1e-3)
    assert p[weights > 0].min() >= explore


def simulate(target, num_epochs, *, ages=True, warmup=False, num=300):
    """The most epochs between two choices of a sample, under scores that always favour the same few."""
    memory, rng = ScoreMemory(num), np.random.default_rng(0)
    everything = torch.ones(num, dtype=torch.bool)
    last, worst = np.full(num, -1), 0
    if warmup:
        memory.record(torch.arange(num), torch.rand(num), everything)
        memory.end_epoch()
    for epoch in range(num_epochs):
        known = {"scores": memory.score.numpy(), "ages": memory.age.numpy() if ages else None}
        chosen = plan(num, epoch, target=target, selection="hard", **known).keep
        worst = max(worst, (epoch - last)[chosen].max())
        last[chosen] = epoch
        # A tenth is never trained: rows that wait in a queue at the end of the epoch.
        trained = torch.from_numpy(chosen & (rng.random(num) < 0.9))
        memory.record(torch.arange(num), torch.arange(num) ** 3.0, trained)
        memory.end_epoch(torch.from_numpy(chosen))
    return max(worst, (num_epochs - last).max())


@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize("target", [0.03, 0.1, 0.35, 0.8])
def test_revisits_within_the_bound(target, warmup):
    bound = revisit_bound(300, target)
    assert bound <= math.ceil(2 / target) + math.ceil(1 / target) + 1 + (target * 300 % 1 > 0) * 5
    worst = simulate(target, 4 * bound, warmup=warmup)
    assert math.ceil(2 / target) < worst <= bound  # some samples do wait until they are overdue


def test_without_ages_some_are_never_revisited():
    assert simulate(0.1, 4 * revisit_bound(300, 0.1), ages=False, warmup=True) > 2 * revisit_bound(300, 0.1)


@pytest.mark.parametrize("case", ["gate", "explore", "overdue", "few places", "none seen"])
def test_weights_average_1_over_the_chosen(case):
    scores, ages = lognormal(), np.ones(NUM, dtype=np.int32)
    if case == "overdue":
        ages[:15], scores[50:60] = 30, np.nan
    if case == "few places":
        ages[:10], ages[10:70] = 31, 30
    if case == "none seen":
        scores[:] = np.nan
    means = []
    for epoch in range(300):
        chosen = plan(epoch=epoch, scores=scores, ages=ages, explore=0.05 if case == "explore" else 0.0, unbiased=True)
        assert chosen.weights.dtype == np.float32
        assert (chosen.weights[~chosen.keep] == 0).all()
        assert (chosen.weights[chosen.keep] > 0).all()
        means.append(chosen.weights[chosen.keep].mean(dtype=np.float64))
    if case in ("few places", "none seen"):
        assert means == pytest.approx([1.0] * 300, rel=1e-6)
    assert abs(np.mean(means) - 1) < 4 * np.std(means) / np.sqrt(300) + 1e-6
    if case == "explore":
        assert max(plan(epoch=e, scores=scores, explore=0.05, unbiased=True).weights.max() for e in range(50)) <= 2.0


def test_forced_ids_weigh_the_rate():
    """15 overdue and 10 without a score, 25 + 15 places: rate is 40 / 400."""
    scores, ages = lognormal(), np.ones(NUM, dtype=np.int32)
    ages[:15], scores[50:60] = 30, np.nan
    weights = plan(scores=scores, ages=ages, unbiased=True).weights
    assert weights[:15] == pytest.approx(0.1)
    assert weights[50:60] == pytest.approx(0.1)


def test_weighted_gradient_is_unbiased():
    """A per-sample gradient that goes with the score, so that the unweighted choice is far off."""
    scores = lognormal()
    gradients = np.stack([scores, np.sin(np.arange(NUM)), np.ones(NUM)])  # [3, N]
    dense = gradients.mean(1)
    plans = [plan(epoch=epoch, scores=scores, explore=0.02, unbiased=True) for epoch in range(600)]
    weighted = np.array([(gradients[:, each.keep] * each.weights[each.keep]).mean(1) for each in plans])
    plain = np.array([gradients[:, each.keep].mean(1) for each in plans])

    def deviations(estimates):
        return abs(estimates.mean(0) - dense) / (estimates.std(0) / np.sqrt(600) + 1e-9)

    assert deviations(weighted).max() < 4
    assert deviations(plain)[0] > 20


def test_plan_needs_below_84_bytes_an_id():
    """100 MB for the 1.28 million pictures of ImageNet."""
    num = 300_000
    scores, ages = lognormal(num=num), np.ones(num, dtype=np.int32)
    tracemalloc.start()
    try:
        plan(num, scores=scores, ages=ages, unbiased=True, explore=0.01)
        assert tracemalloc.get_traced_memory()[1] < 84 * num
    finally:
        tracemalloc.stop()
