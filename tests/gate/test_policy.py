from __future__ import annotations

import numpy as np
import pytest

from fastast.errors import InputError
from fastast.gates.base import Gate
from fastast.gates.registry import GATES, make_gate


def window(num=1000, epoch=0, **options):
    return Window(num_samples=num, epoch=epoch, **{"seed": 0, "target": 0.2, **options})


@pytest.mark.parametrize(
    ("name", "options", "cost", "ceiling"),
    [
        ("dense", {}, 3.0, 1.0),
        ("random", {}, 0.3, 10.0),
        ("forward", {}, 1.3, 3 / 1.3),
        ("proxy", {"score_units": (112 / 224) ** 2}, 0.55, 3 / 0.55),
        ("proxy", {"score_units": (64 / 224) ** 2}, 0.3816, 7.861),
        ("memory", {}, 0.3, 10.0),
    ],
)
def test_costs_at_10_percent(name, options, cost, ceiling):
    policy = make_gate(name, **options)
    assert policy.name == name
    assert policy.cost(0.1) == pytest.approx(cost, rel=1e-3)
    assert policy.ceiling(0.1) == pytest.approx(ceiling, rel=1e-3)
    assert policy.cost(0.1) == pytest.approx(
        (policy.score_units if policy.scores else 0) + 3 * (0.1, 1)[name == "dense"]
    )


def test_a_proxy_network_costs_its_training_too():
    policy = make_gate("proxy", score_units=0.02, upkeep_units=0.06)
    assert policy.score_units == 0.02
    assert policy.cost(0.1) == pytest.approx(0.38)


def test_infobatch_costs_what_it_does_not_drop():
    policy = make_gate("infobatch")
    assert policy.cost(1 - 0.5 * 0.6) == pytest.approx(3 * (1 - 0.5 * 0.6))
    assert policy.planned_share(0.1) == 0.75  # the target has no part in it
    assert make_gate("memory").planned_share(0.1) == 0.1


def test_every_gate_plans_or_scores_or_trains_everything():
    scores = np.random.default_rng(0).random(100).astype(np.float32)
    for name in GATES:
        policy = make_gate(name)
        plan = policy.plan(window(100, scores=scores))
        assert (plan is not None) == policy.plans
        assert not (policy.plans and policy.scores)
        assert policy.plans or policy.scores or name == "dense"


def test_bad_use_names_the_remedy():
    with pytest.raises(InputError, match="dense, random, forward, proxy, memory, infobatch"):
        make_gate("sieve")
    for costs in ((0.0, 0.0), (0.25, -0.1), (float("nan"), 0.0)):
        with pytest.raises(InputError, match="proxy costs"):
            make_gate("proxy", score_units=costs[0], upkeep_units=costs[1])
    for prune in (-0.1, 1.0):
        with pytest.raises(InputError, match="prune"):
            make_gate("infobatch", prune=prune)


@pytest.mark.parametrize("target", [0.03, 0.1, 0.5, 1.0])
def test_random_keeps_exactly_its_share_of_what_is_offered(target):
    offered = np.random.default_rng(0).random(1003) < 0.6
    for part, num in ((None, 1003), (offered, offered.sum())):
        plan = make_gate("random").plan(window(1003, epoch=4, target=target, offered=part))
        assert plan.keep.dtype == bool
        assert plan.keep.shape == (1003,)
        assert plan.keep.sum() == round(target * num)
        assert plan.weights is None
        assert part is None or not plan.keep[~part].any()


def test_no_plan_is_empty_while_anything_is_offered():
    one = np.array([False, True, False, False])
    for name in ("random", "memory"):
        assert make_gate(name).plan(window(4, target=0.1)).keep.sum() == 1
        assert make_gate(name).plan(window(4, target=0.1, offered=one)).keep.tolist() == one.tolist()
        assert make_gate(name).plan(window(4, offered=np.zeros(4, dtype=bool), unbiased=True)).keep.sum() == 0


def test_random_is_keyed_by_seed_and_epoch():
    def keep(epoch, seed):
        return make_gate("random").plan(window(epoch=epoch, seed=seed)).keep

    assert np.array_equal(keep(3, 1), keep(3, 1))
    for other in (keep(4, 1), keep(3, 2)):
        assert 20 < (keep(3, 1) & other).sum() < 60  # 40 expected by chance, standard deviation 5


def test_random_reaches_every_sample_alike():
    policy = make_gate("random")
    counts = sum(policy.plan(window(400, epoch, target=0.1)).keep.astype(int) for epoch in range(200))
    assert abs(counts - 20).max() < 5 * np.sqrt(18)


def test_a_new_gate_is_one_small_class():
    class Odd(Gate):
        name = "odd"
        plans = True

        def plan(self, window):
            return Plan(np.arange(window.num_samples) % 2 == 1)

        def cost(self, activation):
            return 3 * activation

    assert Odd().ceiling(0.5) == 2.0
    with pytest.raises(TypeError, match="cost"):
        type("Free", (Gate,), {"name": "free"})()
