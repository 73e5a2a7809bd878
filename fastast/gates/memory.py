"""The memory gate: plans an epoch from the losses that the samples had when they were last trained."""

from __future__ import annotations

import math

import numpy as np

from fastast.cost_model import DENSE_COST
from fastast.gates.base import Choice, EpochContext, Gate
from fastast.gates.sampling import first_by_key, gate_probability, seeded_keys, seeded_uniform, systematic_draw
from fastast.philox import STREAM_PLAN


def revisit_bound(num_samples: int, target: float) -> int:
    """The most epochs from one choice of a sample by `Memory` to the next: ceil(2 / target) + 1 + (N - 1) // share.

    Share is the number of ids that an epoch chooses, round(target N), so this is about 3 / target + 1.

    Proof. Past the age ceil(2 / target) a sample is overdue, which takes ceil(2 / target) + 1 epochs. Overdue samples
    are chosen first, the oldest first. So an epoch that leaves out an overdue sample chooses only samples at least as
    old; being chosen makes each of them younger than the one that waits, so each of the other N - 1 samples does that
    once at most, and an epoch takes `share` of them.

    Holds where every epoch offers all N samples, the target is never lower, and ages count from the choice
    (`ScoreMemory.end_epoch(choice.keep)`). A sample's first choice comes no later than this many epochs after the
    first.
    """
    return math.ceil(2 / target) + 1 + (num_samples - 1) // max(1, round(target * num_samples))


class Memory(Gate):
    """Trains a share of the samples chosen by their last training loss, and never reads the rest.

    Of the ids offered an epoch chooses round(target N), by these claims in order until all places are taken:

    1. ids older than ceil(2 / target) epochs, the oldest first;
    2. ids without a score, in seeded order;
    3. the other ids, by the explore share and the gate on remembered scores: each has the probability
       p = e + (1 - e) min(1, s / threshold), where the threshold solves sum(p) = places left (hard: the highest
       scores). Exactly that many are drawn, each with exactly its p (`systematic_draw`).

    With `unbiased` a chosen id weighs rate / p. For claims 1 and 2, p is 1 where the claim is met in full; where
    there are more ids of one age, or more without a score, than places, they are drawn evenly and p is places / ids.
    Ids of later claims have p = 0: rate is the mean p of the ids that could have been chosen, so that the weights
    average 1 over the chosen (in expectation).
    """

    plans = True

    def plan(self, context: EpochContext) -> Choice:
        num, ids = context.num_samples, context.offered_ids()
        keep, p = np.zeros(num, dtype=bool), np.zeros(num)
        places = context.num_chosen(len(ids))
        order = seeded_keys(num, context.seed, context.epoch, STREAM_PLAN)

        def claim(claimants: np.ndarray) -> int:
            """Gives the claimants the places that are left, at random if there are too few; returns what is left."""
            chosen = first_by_key(claimants, order, places)
            keep[chosen] = True
            if len(claimants):
                p[claimants] = len(chosen) / len(claimants)
            return places - len(chosen)

        if context.ages is not None:
            ages = context.ages[ids]
            overdue = ages > math.ceil(2 / context.target)
            for age in np.unique(ages[overdue])[::-1]:
                places = claim(ids[ages == age])
            ids = ids[~overdue]
        seen = np.zeros(len(ids), dtype=bool) if context.scores is None else np.isfinite(context.scores[ids])
        places = claim(ids[~seen])
        ids = ids[seen]
        if places and len(ids) and context.scores is not None:
            ids = ids[np.argsort(order[ids])]
            p[ids] = gate_probability(context.scores[ids], places, explore=context.explore, selection=context.selection)
            start = seeded_uniform(context.seed, context.epoch, num, STREAM_PLAN)
            keep[ids] = systematic_draw(p[ids], min(places, len(ids)), start)
        return Choice(keep, _weights(keep, p) if context.unbiased else None)

    def cost(self, activation: float) -> float:
        return DENSE_COST * activation


def _weights(keep: np.ndarray, p: np.ndarray) -> np.ndarray:
    """rate / p of the kept ids, float32 [N]."""
    weights = np.zeros(len(keep))
    rate = p.sum() / max(1, np.count_nonzero(p))
    weights[keep] = rate / p[keep]
    return weights.astype(np.float32)
