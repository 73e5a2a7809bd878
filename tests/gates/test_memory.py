from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest

from fastast.errors import InputError
from fastast.gates.base import EpochContext
from fastast.gates.memory import SCORES, Memory, label_probability
from fastast.gates.registry import SHARE_POWER

NUM = 400


def lognormal(seed=0, num=NUM):
    return np.random.default_rng(seed).lognormal(0, 1.5, num).astype(np.float32)


def plan(num=NUM, epoch=0, significance="loss", **options):
    return Memory(significance).plan(
        EpochContext(num_samples=num, epoch=epoch, **{"seed": 3, "target": 0.1, **options})
    )


@pytest.mark.parametrize("target", [0.02, 0.1, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("selection", ["soft", "hard"])
def test_exactly_the_share_is_chosen(target, selection):
    for epoch in range(20):
        rng = np.random.default_rng(epoch)
        scores = lognormal(epoch, 1003)
        scores[rng.random(1003) < (0, 0.1, 0.99, 1)[epoch % 4]] = np.nan
        offered = rng.random(1003) < 0.7 if epoch % 3 == 0 else None
        chosen = plan(1003, epoch, target=target, losses=scores, offered=offered, explore=0.01, selection=selection)
        assert chosen.keep.sum() == round(target * (1003 if offered is None else offered.sum()))
        assert chosen.weights is None
        assert offered is None or not chosen.keep[~offered].any()


def test_scores_of_nan_are_no_scores():
    assert np.array_equal(plan().keep, plan(losses=np.full(NUM, np.nan, dtype=np.float32)).keep)


def test_samples_without_a_score_come_first():
    """40 places: 36 samples without a score, then the others by score."""
    losses = np.full(NUM, 1e-3, dtype=np.float32)
    losses[:36] = np.nan
    losses[36:38] = 50.0
    keep = plan(losses=losses).keep
    assert keep[:38].all()
    assert keep[38:].sum() == 2
    losses[38:100] = np.nan
    keep = plan(losses=losses).keep
    assert keep.sum() == keep[np.isnan(losses)].sum() == 40  # they alone are too many


@pytest.mark.parametrize("kind", SCORES)
def test_scores_follow_from_the_loss(kind):
    """Hard selection of half of the samples, against the formula in Python floats."""
    p = np.random.default_rng(0).random(NUM)
    plain = {
        "gce": [math.sqrt(x) * (1 - x) for x in p],
        "loss": [-math.log(x) for x in p],
        "uncertainty": [math.sqrt(x * (1 - x)) for x in p],
        "variance": [x * (1 - x) for x in p],
    }
    keep = plan(losses=-np.log(p).astype(np.float32), target=0.5, selection="hard", significance=kind).keep
    assert set(np.flatnonzero(keep)) == set(np.argsort(plain[kind])[NUM // 2 :])


def test_label_smoothing_is_taken_out_of_the_score():
    """A network that is as sure as the smoothed loss wants it to be has nothing left to learn."""
    sure, wrong = 1 - 0.1 + 0.1 / 5, 0.1 / 5
    p, rest = label_probability(-np.log(np.array([sure, wrong, (sure + wrong) / 2, 0.99])), 0.1, 5)
    assert p == pytest.approx([1, 0, 0.5, 1])
    assert rest == pytest.approx([0, 1, 0.5, 0])
    losses = np.full(NUM, -np.log(sure), dtype=np.float32)
    losses[:20] = -np.log(0.5)
    smooth = plan(losses=losses, target="auto", significance="gce", label_smoothing=0.1, num_classes=5).keep
    assert smooth.sum() == smooth[:20].sum() == 20
    assert plan(losses=losses, target="auto", significance="gce").keep.sum() > 0.2 * NUM


def test_losses_near_0_keep_their_precision():
    loss = np.array([1e-7, 1e-4, 0.6, 0.8, 50.0], dtype=np.float32)
    assert SCORES["loss"](loss, 0.0, 1) == pytest.approx(loss, rel=1e-5)
    assert SCORES["gce"](loss, 0.0, 1)[:2] == pytest.approx([1e-7, 1e-4], rel=1e-3)


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("unseen", [0, 60])
def test_auto_trains_the_share_that_the_scores_speak_for(kind, unseen):
    losses = np.sqrt(lognormal()) / 100
    scores = SCORES[kind](losses[unseen:].astype(np.float64), 0.0, 1)
    share = (scores.sum() ** 2 / (len(scores) * (scores**2).sum())) ** SHARE_POWER
    assert 0.1 < share < 0.9
    losses[:unseen] = np.nan
    keep = plan(losses=losses, target="auto", significance=kind).keep
    assert keep[:unseen].all()
    assert abs(keep[unseen:].sum() - share * len(scores)) < 1


def test_auto_is_dense_before_there_are_scores_and_never_below_its_least():
    assert plan(target="auto").keep.all()
    assert plan(losses=np.full(NUM, 0.3, dtype=np.float32), target="auto").keep.all()
    assert plan(losses=np.zeros(NUM, dtype=np.float32), target="auto").keep.all()
    losses = np.full(NUM, 1e-6, dtype=np.float32)
    losses[0] = 1.0
    assert plan(losses=losses, target="auto").keep.sum() == 0.05 * NUM


def test_unknown_score_is_refused():
    with pytest.raises(InputError, match=r"el2n.*uncertainty"):
        Memory("el2n")


def test_hard_takes_the_highest_and_explore_the_rest():
    scores = lognormal()
    keep = plan(losses=scores, selection="hard").keep
    assert scores[keep].min() > scores[~keep].max()
    top = np.argsort(scores)[-20:]
    low = scores < np.median(scores)
    plans = [plan(epoch=epoch, losses=scores, selection="hard", explore=0.05).keep for epoch in range(200)]
    assert all(keep[top].all() for keep in plans)
    num_low = np.mean([keep[low].sum() for keep in plans])
    assert num_low == pytest.approx(0.05 * NUM / 2, rel=0.1)  # 10 each: a standard error of 0.2 at most


@pytest.mark.parametrize("explore", [0.0, 0.04])
def test_soft_choices_follow_their_probability(explore):
    """Over many epochs each id is chosen as often as its weight, rate / p, says."""
    scores, rounds = lognormal(), 800
    plans = [plan(epoch=epoch, losses=scores, explore=explore, unbiased=True) for epoch in range(rounds)]
    counts = sum(each.keep.astype(int) for each in plans)
    weights = np.max([each.weights for each in plans], axis=0)
    p = np.divide(0.1, weights, out=np.zeros(NUM), where=weights > 0)
    assert abs(counts - rounds * p).max() < 5 * np.sqrt(rounds * 0.25)
    assert p.sum() == pytest.approx(40, rel=1e-3)
    assert p[weights > 0].min() >= explore


@pytest.mark.parametrize("case", ["gate", "explore", "some unseen", "few places", "none seen"])
def test_weights_average_1_over_the_chosen(case):
    losses = lognormal()
    losses[: {"some unseen": 10, "few places": 70, "none seen": NUM}.get(case, 0)] = np.nan
    means = []
    for epoch in range(300):
        chosen = plan(epoch=epoch, losses=losses, explore=0.05 if case == "explore" else 0.0, unbiased=True)
        assert chosen.weights.dtype == np.float32
        assert (chosen.weights[~chosen.keep] == 0).all()
        assert (chosen.weights[chosen.keep] > 0).all()
        means.append(chosen.weights[chosen.keep].mean(dtype=np.float64))
    if case in ("few places", "none seen"):
        assert means == pytest.approx([1.0] * 300, rel=1e-6)
    assert abs(np.mean(means) - 1) < 4 * np.std(means) / np.sqrt(300) + 1e-6
    if case == "explore":
        assert max(plan(epoch=e, losses=losses, explore=0.05, unbiased=True).weights.max() for e in range(50)) <= 2.0


def test_samples_without_a_score_weigh_the_rate():
    losses = lognormal()
    losses[50:60] = np.nan
    assert plan(losses=losses, unbiased=True).weights[50:60] == pytest.approx(0.1)


def test_weighted_gradient_is_unbiased():
    """A per-sample gradient that goes with the score, so that the unweighted choice is far off."""
    scores = lognormal()
    gradients = np.stack([scores, np.sin(np.arange(NUM)), np.ones(NUM)])  # [3, N]
    dense = gradients.mean(1)
    plans = [plan(epoch=epoch, losses=scores, explore=0.02, unbiased=True) for epoch in range(600)]
    weighted = np.array([(gradients[:, each.keep] * each.weights[each.keep]).mean(1) for each in plans])
    plain = np.array([gradients[:, each.keep].mean(1) for each in plans])

    def deviations(estimates):
        return abs(estimates.mean(0) - dense) / (estimates.std(0) / np.sqrt(600) + 1e-9)

    assert deviations(weighted).max() < 4
    assert deviations(plain)[0] > 20


def test_plan_needs_below_84_bytes_an_id():
    """100 MB for the 1.28 million pictures of ImageNet."""
    num = 300_000
    losses = lognormal(num=num)
    tracemalloc.start()
    try:
        plan(num, losses=losses, unbiased=True, explore=0.01, significance="uncertainty")
        assert tracemalloc.get_traced_memory()[1] < 84 * num
    finally:
        tracemalloc.stop()
