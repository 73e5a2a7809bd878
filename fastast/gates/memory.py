"""The memory gate: plans an epoch from the losses that the samples had when they were last trained."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fastast.cost_model import DENSE_COST
from fastast.errors import InputError
from fastast.gates.base import Choice, EpochContext, Gate, num_chosen
from fastast.gates.registry import AUTO
from fastast.gates.sampling import (
    adaptive_share,
    first_by_key,
    gate_probability,
    seeded_keys,
    seeded_uniform,
    systematic_draw,
)
from fastast.philox import STREAM_PLAN


def label_probability(loss: np.ndarray, smoothing: float, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The probability p of the label in the network's opinion, and 1 - p, from a cross entropy without smoothing.

    Trained with label smoothing, a network that is sure of the label gives it 1 - smoothing + smoothing / classes, and
    one that is sure of another smoothing / classes: p is scaled so that these become 1 and 0.

    Args:
        loss: float [M].
        smoothing: of the training loss, in [0, 1).
        num_classes: of the network; only read with smoothing.
    """
    p = np.exp(-loss)
    if not smoothing:
        return p, -np.expm1(-loss)  # exact where p is near 1 as well
    p = np.clip((p - smoothing / num_classes) / (1 - smoothing), 0.0, 1.0)
    return p, 1 - p


def excess_loss(loss: np.ndarray, smoothing: float, num_classes: int) -> np.ndarray:
    """What a cross entropy has beyond that of a network which is as sure of the label as label smoothing lets it be.

    Arguments are as of `label_probability`, whose -log p has no bound where p comes to 0.
    """
    return np.maximum(loss + math.log1p(smoothing / num_classes - smoothing), 0.0) if smoothing else loss


Score = Callable[[np.ndarray, float, int], np.ndarray]  # of loss, smoothing and num_classes


def _of_probability(score: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Score:
    return lambda *known: score(*label_probability(*known))


SCORES: dict[str, Score] = {
    "gce": _of_probability(lambda p, rest: np.sqrt(p) * rest),
    "loss": excess_loss,
    "uncertainty": _of_probability(lambda p, rest: np.sqrt(p * rest)),
    "variance": _of_probability(lambda p, rest: p * rest),
}


class Memory(Gate):
    """Trains a share of the samples chosen by their last training loss, and never reads the rest.

    The loss tells the probability p of the label, and with it the scores of the last training pass: `loss`, `gce` =
    sqrt(p) (1 - p), `uncertainty` = sqrt(p (1 - p)) and `variance` = p (1 - p). Label smoothing is taken out of p
    (`label_probability`) and of the loss (`excess_loss`).

    Of the ids offered, ids without a score are chosen first, in seeded order. The others are chosen by the explore
    share and the gate on the scores: each has the probability e + (1 - e) min(1, s / threshold), where the threshold
    solves for the places that are left (hard: the highest scores). Exactly that many are drawn, each with exactly its
    probability (`systematic_draw`).

    The target is the share of the offered ids that is chosen. With target "auto" all ids without a score are chosen,
    and the `adaptive_share` of the others.

    With `unbiased` a chosen id weighs rate / probability. Ids without a score have the probability 1 if there are
    places for all of them, else places / ids, and the others have 0: rate is the mean probability of the ids that
    could have been chosen, so that the weights average 1 over the chosen (in expectation).

    Args:
        significance: a key of `SCORES`.

    Raises:
        InputError: it is none.
    """

    plans = True

    def __init__(self, significance: str | None = None) -> None:
        significance = significance or next(iter(SCORES))
        if significance not in SCORES:
            raise InputError(f"memory significance {significance!r} is unknown: choose one of {', '.join(SCORES)}")
        self._score = SCORES[significance]

    def plan(self, context: EpochContext) -> Choice:
        num, ids = context.num_samples, context.offered_ids()
        keep, p = np.zeros(num, dtype=bool), np.zeros(num)
        order = seeded_keys(num, context.seed, context.epoch, STREAM_PLAN)
        losses = np.full(len(ids), np.nan, np.float32) if context.losses is None else context.losses[ids]
        seen = np.isfinite(losses)
        unseen, ids = ids[~seen], ids[seen]
        scores = self._score(losses[seen], context.label_smoothing, context.num_classes)
        if context.target == AUTO:
            places = len(unseen) + (num_chosen(adaptive_share(scores), len(ids)) if len(ids) else 0)
        else:
            places = context.num_chosen(len(unseen) + len(ids))
        chosen = first_by_key(unseen, order, places)
        keep[chosen] = True
        if len(unseen):
            p[unseen] = len(chosen) / len(unseen)
        places -= len(chosen)
        if places and len(ids):
            shuffle = np.argsort(order[ids])
            ids, scores = ids[shuffle], scores[shuffle]
            del losses, seen, shuffle  # of millions of ids
            p[ids] = gate_probability(scores, places, explore=context.explore, selection=context.selection)
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
