"""Draws of ids without replacement, over a whole training set at once: NumPy, linear or n log n, seeded."""

from __future__ import annotations

import numpy as np

from fastast.gates.controller import SMALLEST
from fastast.gates.registry import LEAST_SHARE, SHARE_POWER
from fastast.philox import random_words, to_uniform

CHUNK = 1 << 16  # ids for which random words are made at a time: they then stay in the cache


def seeded_keys(num: int, seed: int, epoch: int, stream: int) -> np.ndarray:
    """A random key of 62 bits for each id in [0, num), int64 [num], from (seed, epoch, id, stream)."""
    keys = np.empty(num, dtype=np.int64)
    for start in range(0, num, CHUNK):
        part = keys[start : start + CHUNK]
        words = random_words(seed, epoch, np.arange(start, start + len(part), dtype=np.int64), stream)
        np.bitwise_or(words[0] << 30, words[1] >> 2, out=part)
    return keys


def seeded_uniform(seed: int, epoch: int, index: int, stream: int) -> float:
    """One number in (0, 1) from (seed, epoch, index, stream)."""
    return float(to_uniform(random_words(seed, epoch, np.array([index], dtype=np.int64), stream)[0])[0])


def first_by_key(ids: np.ndarray, keys: np.ndarray, num: int) -> np.ndarray:
    """The `num` of `ids` whose keys are smallest: a random subset if the keys are random."""
    if num >= len(ids):
        return ids
    return ids[np.argpartition(keys[ids], num)[:num]] if num else ids[:0]


def systematic_draw(probability: np.ndarray, num: int, start: float) -> np.ndarray:
    """Draws `num` places, each with exactly its own probability.

    Systematic sampling (Madow, "On the theory of systematic sampling, II", 1949): lay the probabilities end to end
    and take the places on which the points start, start + 1, ... fall. The places should be in random order, so
    that which two are drawn together is left to chance.

    Args:
        probability: float64 [M] in [0, 1], with sum `num`.
        num: how many to draw.
        start: uniform in (0, 1).

    Returns:
        bool [M].
    """
    certain = probability >= 1.0 - 1e-12  # e + (1 - e) is not always 1
    num_left = num - int(certain.sum())
    ends = np.where(certain, 0.0, probability).cumsum()
    if num_left == 0:
        return certain
    # The sum is num_left but for rounding; so scaled, the last place ends on it and no point is lost or won.
    points = np.floor(ends * (num_left / ends[-1]) + start).astype(np.int64)
    return certain | (np.diff(np.minimum(points, num_left), prepend=0) > 0)


def adaptive_share(scores: np.ndarray) -> float:
    """The share of samples that their scores s speak for: (E[s]^2 / E[s^2])^SHARE_POWER, but at least LEAST_SHARE.

    E[s]^2 / E[s^2] is their effective sample size in importance sampling, which pays as its inverse (Katharopoulos and
    Fleuret, "Not All Samples Are Created Equal", ICML 2018).

    Args:
        scores: float [M], finite, 0 or more. If all are 0 the share is 1.
    """
    scores = scores.astype(np.float64)
    squares = float(np.mean(scores**2))
    if not squares > 0:
        return 1.0
    return min(1.0, max(LEAST_SHARE, (float(scores.mean()) ** 2 / squares) ** SHARE_POWER))


def gate_probability(scores: np.ndarray, num: int, *, explore: float, selection: str) -> np.ndarray:
    """The probability of each score so that `num` are selected: e + (1 - e) p.

    Soft: p = min(1, s / threshold). Hard: p = 1 above the threshold, 0 below it, shared among scores equal to it.
    The threshold solves for the number over all scores, the soft one by bisection.

    Args:
        scores: float32 [M], finite; zeros and less count as the smallest score.
        num: expected number of selected.
        explore: e, the share that is drawn whatever its score; at most num / M of it counts.
        selection: "soft" or "hard".

    Returns:
        float64 [M] with sum min(num, M), but for rounding.
    """
    size = len(scores)
    explore = min(explore, num / size)
    by_score = (num - explore * size) / (1 - explore) if explore < 1 else 0.0
    if by_score >= size:
        return np.ones(size)
    if by_score < 1e-6 * size:
        return np.full(size, num / size)
    scores = np.maximum(scores, np.float32(SMALLEST))
    probability = _soft_probability(scores, by_score) if selection == "soft" else _hard_probability(scores, by_score)
    probability *= 1 - explore
    probability += explore
    return probability


def _soft_probability(scores: np.ndarray, wanted: float) -> np.ndarray:
    """min(1, s / threshold) with the sum `wanted`, below the number of scores."""
    # A threshold of the smallest score selects all; and sum(min(1, s / threshold)) is at most sum(s) / threshold.
    low, high = float(scores.min()), float(scores.sum(dtype=np.float64)) / wanted
    part = np.empty_like(scores)
    while high > low * (1 + 1e-6):
        middle = (low * high) ** 0.5
        np.minimum(scores, np.float32(middle), out=part)
        low, high = (middle, high) if part.sum(dtype=np.float64) > wanted * middle else (low, middle)
    # What lies above is now known, and with it the exact solution, unless all places go to what lies above.
    below = scores < high
    left = wanted - (len(scores) - below.sum())
    threshold = scores.sum(dtype=np.float64, where=below) / left if left > 0 else high
    probability = np.divide(scores, threshold, dtype=np.float64)
    return np.minimum(probability, 1.0, out=probability)


def _hard_probability(scores: np.ndarray, wanted: float) -> np.ndarray:
    """1 for the `wanted` highest scores, shared evenly among those equal to the last of them, and 0 for the rest."""
    place = len(scores) - int(np.ceil(wanted))
    threshold = np.partition(scores, place)[place]
    above, equal = scores > threshold, scores == threshold
    return above + equal * ((wanted - above.sum()) / equal.sum())
