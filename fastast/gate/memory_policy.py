"""The memory gate: plans an epoch from the losses that the samples had when they were last trained."""

from __future__ import annotations

import math

import numpy as np

from fastast.cost_model import DENSE_COST
from fastast.gate.policy import Plan, Policy, Window
from fastast.gate.sampling import first_by_key, gate_probability, seeded_keys, seeded_uniform, systematic_draw
from fastast.philox import STREAM_PLAN


def revisit_bound(num_samples: int, target: float) -> int:
    """The most windows from one choice of a sample by `Memory` to the next: ceil(2 / target) + 1 + (N - 1) // share.

    Share is the number of ids that a window chooses, round(target N), so this is about 3 / target + 1.

    Proof. Past the age ceil(2 / target) a sample is overdue, which takes ceil(2 / target) + 1 windows. Overdue
    samples are served first and the oldest first. So a window that passes an overdue sample by chooses only samples
    at least as old; being chosen makes each of them younger than the one that waits, so each of the other N - 1
    samples does that once at most, and a window takes `share` of them.

    Holds where every window offers all N samples, the target is never lower, and ages count from the choice
    (`ScoreMemory.tick(plan.keep)`). A sample's first choice comes no later than this many windows after the first.
    """
    return math.ceil(2 / target) + 1 + (num_samples - 1) // max(1, round(target * num_samples))


class Memory(Policy):
    """Trains a share of the samples chosen by their last training loss, and never reads the rest.

    Of the ids offered a window chooses round(target N), and meets claims in this order until they are spent:

    1. ids older than ceil(2 / target) windows, the oldest first;
    2. ids without a score, in seeded order;
    3. the other ids, by the explore share and the gate on remembered scores: each has the probability
       p = e + (1 - e) min(1, s / threshold), where the threshold solves sum(p) = places left (hard: the highest
       scores). Exactly that many are drawn, each with exactly its p (`systematic_draw`).

    With `unbiased` a chosen id weighs rate / p. For claims 1 and 2, p is 1 where the claim is met in full; where
    there are more ids of one age, or more without a score, than places, they are drawn evenly and p is places / ids.
    Claims after the one that spends the last place have p = 0 and no part in the window: rate is the mean p of the
    ids that could have been chosen, so that the weights average 1 over the chosen (in expectation).
    """

    name = "memory"
    plans = True

    def plan(self, window: Window) -> Plan:
        num, ids = window.num_samples, window.offered_ids()
        keep, p = np.zeros(num, dtype=bool), np.zeros(num)
        places = window.num_chosen(len(ids))
        order = seeded_keys(num, window.seed, window.epoch, STREAM_PLAN)

        def claim(claimants: np.ndarray) -> int:
            """Gives the claimants the places that are left, at random if there are too few; returns what is left."""
            chosen = first_by_key(claimants, order, places)
            keep[chosen] = True
            if len(claimants):
                p[claimants] = len(chosen) / len(claimants)
            return places - len(chosen)

        if window.ages is not None:
            ages = window.ages[ids]
            overdue = ages > math.ceil(2 / window.target)
            for age in np.unique(ages[overdue])[::-1]:
                places = claim(ids[ages == age])
            ids = ids[~overdue]
        seen = np.zeros(len(ids), dtype=bool) if window.scores is None else np.isfinite(window.scores[ids])
        places = claim(ids[~seen])
        ids = ids[seen]
        if places and len(ids) and window.scores is not None:
            ids = ids[np.argsort(order[ids])]
            p[ids] = gate_probability(window.scores[ids], places, explore=window.explore, selection=window.selection)
            start = seeded_uniform(window.seed, window.epoch, num, STREAM_PLAN)
            keep[ids] = systematic_draw(p[ids], min(places, len(ids)), start)
        return Plan(keep, *_weights(keep, p, window.clip)) if window.unbiased else Plan(keep)

    def cost(self, activation: float) -> float:
        return DENSE_COST * activation


def _weights(keep: np.ndarray, p: np.ndarray, clip: float | None) -> tuple[np.ndarray, int]:
    """rate / p of the kept ids, float32 [N], and how many were cut to `clip`."""
    weights = np.zeros(len(keep))
    rate = p.sum() / max(1, np.count_nonzero(p))
    weights[keep] = rate / p[keep]
    num_clipped = 0
    if clip is not None:
        num_clipped = int((weights > clip).sum())
        np.minimum(weights, clip, out=weights)
    return weights.astype(np.float32), num_clipped
