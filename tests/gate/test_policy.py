from __future__ import annotations

import numpy as np
import pytest

from fastast.errors import InputError
from fastast.gate import GATES, Policy, make_policy


@pytest.mark.parametrize(
    ("name", "cost", "ceiling"), [("dense", 3.0, 1.0), ("random", 0.3, 10.0), ("forward", 1.3, 3 / 1.3)]
)
def test_costs_at_10_percent(name, cost, ceiling):
    policy = make_policy(name)
    assert policy.name == name
    assert policy.cost(0.1) == pytest.approx(cost)
    assert policy.ceiling(0.1) == pytest.approx(ceiling)


def test_only_gates_that_plan_have_a_plan():
    for name in GATES:
        policy = make_policy(name)
        keep = policy.plan(100, 0, target=0.1, seed=0)
        assert (keep is not None) == policy.plans
    assert make_policy("forward").scores


def test_unknown_gate_lists_the_choices():
    with pytest.raises(InputError, match="dense, random, forward"):
        make_policy("sieve")


@pytest.mark.parametrize("target", [0.03, 0.1, 0.5, 1.0])
def test_random_keeps_exactly_its_share(target):
    keep = make_policy("random").plan(1003, 4, target=target, seed=9)
    assert keep.dtype == bool
    assert keep.shape == (1003,)
    assert keep.sum() == round(target * 1003)


def test_random_is_keyed_by_seed_and_epoch():
    def plan(epoch, seed):
        return make_policy("random").plan(1000, epoch, target=0.2, seed=seed)

    assert np.array_equal(plan(3, 1), plan(3, 1))
    for other in (plan(4, 1), plan(3, 2)):
        assert 20 < (plan(3, 1) & other).sum() < 60  # 40 expected by chance, standard deviation 5


def test_random_reaches_every_sample_alike():
    counts = sum(make_policy("random").plan(400, epoch, target=0.1, seed=0).astype(int) for epoch in range(200))
    assert abs(counts - 20).max() < 5 * np.sqrt(18)


def test_a_new_gate_is_one_small_class():
    class Odd(Policy):
        name = "odd"
        plans = True

        def plan(self, num_samples, epoch, *, target, seed):
            return np.arange(num_samples) % 2 == 1

        def cost(self, activation):
            return 3 * activation

    assert Odd().ceiling(0.5) == 2.0
