"""Student's t for paired differences, and Holm's correction: numpy alone, over any number of benches at once."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95  # of every interval; 1 - LEVEL is the rate of false alarms of a whole bench
MIN_SEEDS = 3  # fewer show nothing


class PairedTest(NamedTuple):
    """A test of paired differences, with the leading dimensions of its input."""

    mean: NDArray[np.float64]
    half_width: NDArray[np.float64]  # of the interval around the mean
    p: NDArray[np.float64]  # two-sided, of "the true mean is 0"


def p_value(t: ArrayLike, degrees: int) -> NDArray[np.float64]:
    """Two-sided p of Student's t, by the finite sums for whole degrees of freedom (Abramowitz and Stegun, 26.7.3-4)."""
    angle = np.arctan(np.abs(t) / math.sqrt(degrees))
    cos, sin = np.cos(angle), np.sin(angle)
    is_odd = degrees % 2
    term = cos if is_odd else np.ones_like(cos)
    total = np.zeros_like(cos)
    for k in range(1 + is_odd, degrees, 2):
        total = total + term
        term = term * cos**2 * k / (k + 1)
    within = 2 / math.pi * (angle + sin * total) if is_odd else sin * total
    return np.clip(1 - within, 0.0, 1.0)


@functools.cache
def quantile(degrees: int, level: float = LEVEL) -> float:
    """The t that |Student's t| stays below with a probability of `level`."""
    low, high = 0.0, 1e6
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if p_value(middle, degrees) > 1 - level else (low, middle)
    return high


def standard_error(differences: NDArray[np.float64], least_sd: float = 0.0) -> NDArray[np.float64]:
    """Standard error of the mean over the last dimension.

    Args:
        differences: [..., n seeds], n >= 2.
        least_sd: a smaller standard deviation is not believed. Accuracies are counts of pictures: with few pictures,
            three seeds easily agree by chance.
    """
    return np.maximum(differences.std(-1, ddof=1), least_sd) / math.sqrt(differences.shape[-1])


def paired_test(differences: NDArray[np.float64], least_sd: float = 0.0) -> PairedTest:
    """Student's t over the last dimension; see `standard_error` for the arguments."""
    degrees = differences.shape[-1] - 1
    mean, error = differences.mean(-1), standard_error(differences, least_sd)
    t = np.divide(mean, error, out=np.where(mean == 0, 0.0, math.inf), where=error > 0)
    return PairedTest(mean, quantile(degrees) * error, p_value(t, degrees))


def holm(p: ArrayLike) -> NDArray[np.float64]:
    """p values of m tests, [..., m], raised so that with a probability of 0.95 none of them is below 0.05 by chance.

    Source: Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    p = np.asarray(p, np.float64)
    order = np.argsort(p, -1)
    factors = np.arange(p.shape[-1], 0, -1)
    raised = np.maximum.accumulate(np.take_along_axis(p, order, -1) * factors, -1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(raised, 1.0), -1)
    return adjusted
