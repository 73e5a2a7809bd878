from __future__ import annotations

import numpy as np
import pytest

from fastast.gates.base import EpochContext
from fastast.gates.infobatch import InfoBatch

NUM = 1000


def plan(prune=0.5, **options):
    options = {"seed": 1, "target": 0.1, "epoch": 0, **options}
    return InfoBatch(prune).plan(EpochContext(num_samples=NUM, **options))


def losses(seed=0):
    return np.random.default_rng(seed).exponential(1.0, NUM).astype(np.float32)


@pytest.mark.parametrize("prune", [0.0, 0.3, 0.5, 0.9])
def test_drops_a_share_below_the_mean_and_scales_up_the_rest(prune):
    scores = losses()
    scores[:50] = np.nan  # never trained
    offered = np.random.default_rng(2).random(NUM) < 0.9
    chosen = plan(prune, losses=scores, offered=offered)
    known = [float(s) for s, here in zip(scores, offered, strict=True) if here and s == s]
    mean = sum(known) / len(known)
    learned = np.array([here and s < mean for s, here in zip(scores.tolist(), offered, strict=True)])
    assert not chosen.keep[~offered].any()
    assert chosen.keep[offered & ~learned].all()
    num_dropped = (learned & ~chosen.keep).sum()
    assert num_dropped == round(prune * learned.sum())
    for i in range(NUM):
        expected = 0 if not chosen.keep[i] else 1 / (1 - prune) if learned[i] else 1
        assert chosen.weights[i] == pytest.approx(expected)
    # The weights add up to the number offered, but for the rounding of the number dropped.
    assert chosen.weights.sum() == pytest.approx(offered.sum(), abs=0.5 / (1 - prune) + 1e-3)


def test_unbiased_over_epochs():
    scores = losses()
    weight = np.mean([plan(losses=scores, epoch=epoch).weights for epoch in range(400)], axis=0)
    assert abs(weight - 1).max() < 5 / np.sqrt(400)


@pytest.mark.parametrize(
    "options", [{}, {"losses": np.full(NUM, np.nan, np.float32)}, {"losses": losses(), "progress": 0.875}]
)
def test_dense_without_losses_and_at_the_end(options):
    assert plan(**options) is None


def test_equal_losses_are_all_kept():
    """Just before the last eighth of the run, where the gate still plans."""
    assert plan(losses=np.ones(NUM, np.float32), progress=0.874).keep.all()
