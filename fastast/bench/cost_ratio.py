"""What the accuracy of dense training costs with another arm, as a ratio to what it costs dense training.

The arm's curve goes through its accuracies at each budget, linear over log cost. The ratio is where its mean over the
seeds first reaches the accuracy of dense. The interval holds every ratio r for which "with r times the cost, the arm is
as accurate" is not refused by Student's t over the seeds, each seed's dense run paired with the same seed's curve
(Fieller's method). A bootstrap over three seeds covers far less than it says; this covers what it says, and needs no
crossing in every sample: where the accuracies tried do not bound the ratio, its interval is open.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastast.bench.student import MIN_SEEDS, quantile, standard_error

Array = NDArray[np.float64]
EXPONENTS = np.round(np.arange(-1.0, 3.01, 0.1), 1)  # of the power laws that are tried
STEPS = 64  # ratios that are tried between two budgets; in between, the limits are interpolated


class CostRatio(NamedTuple):
    """Cost of an arm over that of dense, at the accuracy of dense; arrays over benches.

    Attributes:
        ratio: NaN where the arm does not reach the accuracy, or is above it with its smallest budget already.
        low: lower limit of the interval; 0 if there is none, NaN with fewer than three seeds.
        high: upper limit; infinite if there is none, NaN with fewer than three seeds.
        reached: whether the mean curve gets to the accuracy.
    """

    ratio: Array
    low: Array
    high: Array
    reached: NDArray[np.bool_]


def cost_ratio(
    costs: Array, accuracies: Array, dense_costs: Array, dense_accuracies: Array, least_sd: float = 0.0
) -> CostRatio:
    """The ratio for each of a number of benches.

    Args:
        costs: of the arm's runs, [..., n seeds, K budgets], in rising order of their mean.
        accuracies: of the same runs.
        dense_costs: of dense at one budget, [..., n seeds].
        dense_accuracies: of the same runs.
        least_sd: as of `fastast.bench.student.standard_error`.
    """
    nodes = np.maximum.accumulate(np.log(costs) - np.log(dense_costs)[..., None], -1)
    tried = _between(nodes.mean(-2))
    lead = _curves(nodes, accuracies, tried) - dense_accuracies[..., None]  # [..., n, ratios]
    lead = np.moveaxis(lead, -2, -1)
    mean = lead.mean(-1)
    mean[np.abs(mean) < 1e-12] = 0.0  # of equal runs, up to rounding
    above = mean >= 0
    reached = above.any(-1)
    ratio = np.where(reached & (mean[..., 0] <= 0), np.exp(_crossing(tried, mean)), np.nan)
    n = costs.shape[-2]
    if n < MIN_SEEDS:
        nothing = np.full(ratio.shape, np.nan)
        return CostRatio(ratio, nothing, nothing, reached)
    width = quantile(n - 1) * standard_error(lead, least_sd)
    # From the left, the first ratio at which the arm may be as accurate; from the right, the last one.
    upper, lower = mean + width, mean - width
    low = np.where((upper >= 0).any(-1), np.exp(_crossing(tried, upper)), np.exp(tried[..., -1]))
    low = np.where(upper[..., 0] >= 0, 0.0, low)
    high = np.where(
        (lower <= 0).any(-1), np.exp(-_crossing(-tried[..., ::-1], -lower[..., ::-1])), np.exp(tried[..., 0])
    )
    high = np.where(lower[..., -1] <= 0, np.inf, high)
    return CostRatio(ratio, low, high, reached)


def _between(nodes: Array) -> Array:
    """Rising values through the nodes, [..., K] -> [..., (K - 1) STEPS + 1]."""
    parts = [np.linspace(nodes[..., k], nodes[..., k + 1], STEPS, False, axis=-1) for k in range(nodes.shape[-1] - 1)]
    return np.concatenate([*parts, nodes[..., -1:]], -1)


def _curves(nodes: Array, values: Array, at: Array) -> Array:
    """Each seed's curve through its nodes, and beyond the outer ones: [..., n, K] at [..., m] -> [..., n, m].

    Between two nodes it bends as the power law does that fits the means best.
    """
    exponent = _exponent(nodes.mean(-2), values.mean(-2))[..., None, None]
    bent, at = _bend(nodes, exponent), _bend(at[..., None, :], exponent)
    found = values[..., :1]
    for k in range(nodes.shape[-1] - 1):
        left, right = bent[..., k, None], bent[..., k + 1, None]
        step = np.maximum(right - left, 1e-9)
        line = values[..., k, None] + (at - left) / step * (values[..., k + 1, None] - values[..., k, None])
        found = line if k == 0 else np.where(at >= left, line, found)
    return found


def _bend(x: Array, exponent: Array) -> Array:
    """(1 - cost^-exponent) / exponent of a log cost, over which a power law is straight; the log cost itself for 0."""
    safe = np.where(exponent == 0, 1.0, exponent)
    return np.where(exponent == 0, x, -np.expm1(-safe * x) / safe)


def _exponent(x: Array, y: Array) -> Array:
    """Of the EXPONENTS the one that makes [..., K] points the straightest, [...]; 0 where two points tell nothing."""
    if x.shape[-1] < 3:
        return np.zeros(x.shape[:-1])
    bent = _bend(x[..., None, :], EXPONENTS[:, None])
    bent, y = bent - bent.mean(-1, keepdims=True), (y - y.mean(-1, keepdims=True))[..., None, :]
    explained = (bent * y).sum(-1) ** 2 / np.maximum((bent**2).sum(-1), 1e-30)
    return EXPONENTS[np.argmax(explained, -1)]


def _crossing(at: Array, values: Array) -> Array:
    """Where the values first get to 0 from below, linear between them; the first place if they begin there."""
    index = np.argmax(values >= 0, -1)[..., None]
    before = np.maximum(index - 1, 0)
    v0, v1 = (np.take_along_axis(values, where, -1) for where in (before, index))
    x0, x1 = (np.take_along_axis(at, where, -1) for where in (before, index))
    share = np.divide(-v0, v1 - v0, out=np.ones_like(v0), where=v1 != v0)
    return (x0 + np.clip(share, 0, 1) * (x1 - x0))[..., 0]
