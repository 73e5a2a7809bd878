"""Multinomial logistic regression with an L2 penalty, several at once over the same features.

Newton's method with a bound in place of the Hessian (Boehning, "Multinomial logistic regression algorithm", 1992): one
matrix for all classes and iterations, known beforehand, so that no step needs a line search. Nesterov's momentum with
restarts (O'Donoghue and Candes, "Adaptive restart for accelerated gradient schemes", 2015) makes up for the bound. With
a fixed number of iterations the work is known, and nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fastast.errors import InputError

# 100 more change the held-out loss by 1 to 2 % at the penalties that are chosen, and the accuracy by half a point at
# most (benchmarks/results/probe_*.md).
NUM_ITERATIONS = 50


class Features(Protocol):
    """Rows of features that can be gone through again and again, always in the same chunks."""

    num_features: int
    device: torch.device

    def chunks(self) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
        """Features [n, F] in any float type, labels int64 [n] and folds int64 [n], on the device."""


class Scaling(NamedTuple):
    """What is known of the features of all ranks: the weighted mean square of a scaled and centred row is 1."""

    class_weights: Tensor  # [C], what a row of each class weighs
    fold_weights: Tensor  # float64 [K], the sum over the rows of each fold
    mean: Tensor  # [F]
    scale: Tensor  # 0-dim
    eigenvalues: Tensor  # [F] of the covariance of scaled rows
    eigenvectors: Tensor  # [F, F]


class Heads(NamedTuple):
    """Linear layers over the features as they are."""

    weight: Tensor  # [F, P, C]
    bias: Tensor  # [P, C]

    def losses(self, features: Features) -> Tensor:
        """Cross entropy of every row under each of them, float32 [P, rows]."""
        return torch.cat([self._losses(rows, labels) for rows, labels, _ in features.chunks()], dim=1)

    def _losses(self, rows: Tensor, labels: Tensor) -> Tensor:
        log_p = F.log_softmax(_logits(rows, self.weight, self.bias), dim=2)
        return -log_p.gather(2, labels[:, None, None].expand(-1, log_p.shape[1], 1)).squeeze(2).T


def _logits(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """[n, P, C]."""
    return torch.addmm(bias.flatten(), rows.float(), weight.flatten(1)).unflatten(1, bias.shape)


def measure(features: Features, class_weights: Tensor, num_folds: int, reduce: Callable[[Tensor], object]) -> Scaling:
    """Goes once through the features.

    Args:
        features: of this rank.
        class_weights: float [C], what a row of each class weighs.
        num_folds: K; folds lie in [0, K).
        reduce: sums a tensor over the ranks, in place.

    Raises:
        InputError: a feature is not finite.
    """
    num = features.num_features
    sums, square, fold_weights = (
        torch.zeros(shape, dtype=torch.float64, device=features.device) for shape in ((num,), (num, num), (num_folds,))
    )
    for rows, labels, folds in features.chunks():
        rows, weights = rows.float(), class_weights[labels][:, None]
        weighted = rows * weights
        sums += weighted.sum(0, dtype=torch.float64)
        square += rows.T @ weighted
        fold_weights += (F.one_hot(folds, num_folds) * weights).sum(0, dtype=torch.float64)
    for tensor in (sums, square, fold_weights):
        reduce(tensor)
    total = fold_weights.sum()
    mean = sums / total
    covariance = square / total - torch.outer(mean, mean)
    if not bool(torch.isfinite(covariance).all()):
        raise InputError("--weights: the network's features are not finite numbers; give other weights")
    scale = covariance.trace().clamp(min=1e-12).rsqrt()
    eigenvalues, eigenvectors = torch.linalg.eigh((covariance * scale**2).float())
    return Scaling(class_weights, fold_weights, mean.float(), scale.float(), eigenvalues.clamp(min=0.0), eigenvectors)


def fit(
    features: Features,
    scaling: Scaling,
    left_out: Tensor,
    penalties: Tensor,
    reduce: Callable[[Tensor], object],
    on_iteration: Callable[[], object] = lambda: None,
) -> Heads:
    """Minimises weighted mean cross entropy + penalty / 2 x |weights|^2 for P problems, on centred, scaled features.

    Args:
        features: of this rank.
        scaling: of `measure`.
        left_out: int64 [P], the fold whose rows a problem leaves out; -1 for none.
        penalties: float [P].
        reduce: sums a tensor over the ranks, in place.
        on_iteration: called after each of NUM_ITERATIONS.
    """
    class_weights, fold_weights, mean, _, eigenvalues, vectors = scaling
    num_problems, num_features, num_classes = len(penalties), len(mean), len(class_weights)
    total = fold_weights.sum()
    totals = (total - torch.where(left_out < 0, 0.0, fold_weights[left_out.clamp(min=0)])).float()  # [P]
    # Of a problem's own rows the mean square is larger than that of all rows by this factor at most.
    excess = (total / totals).float()
    bound = 0.5 * excess[:, None] * eigenvalues + penalties[:, None]  # [P, F]
    weight = mean.new_zeros(num_features, num_problems, num_classes)  # over centred and scaled features
    bias = mean.new_zeros(num_problems, num_classes)
    ahead_weight, ahead_bias = weight, bias
    pace = mean.new_ones(num_problems)
    for _ in range(NUM_ITERATIONS):
        gradient, bias_gradient = _gradient(features, scaling, ahead_weight, ahead_bias, left_out, totals, reduce)
        gradient += penalties[:, None] * ahead_weight
        turned = (vectors.T @ gradient.flatten(1)).unflatten(1, bias.shape) / bound.T[:, :, None]
        new_weight = ahead_weight - (vectors @ turned.flatten(1)).unflatten(1, bias.shape)
        new_bias = ahead_bias - bias_gradient / (0.5 * excess[:, None])
        moved, bias_moved = new_weight - weight, new_bias - bias
        uphill = (gradient * moved).sum((0, 2)) + (bias_gradient * bias_moved).sum(1) > 0  # [P]
        pace = torch.where(uphill, 1.0, pace)
        next_pace = (1 + (1 + 4 * pace**2).sqrt()) / 2
        momentum = ((pace - 1) / next_pace)[:, None]
        weight, bias, pace = new_weight, new_bias, next_pace
        ahead_weight, ahead_bias = weight + momentum * moved, bias + momentum * bias_moved
        on_iteration()
    return _unscaled(scaling, weight, bias)


def _unscaled(scaling: Scaling, weight: Tensor, bias: Tensor) -> Heads:
    weight = weight * scaling.scale
    return Heads(weight, bias - torch.einsum("f,fpc->pc", scaling.mean, weight))


def _gradient(
    features: Features,
    scaling: Scaling,
    weight: Tensor,
    bias: Tensor,
    left_out: Tensor,
    totals: Tensor,
    reduce: Callable[[Tensor], object],
) -> tuple[Tensor, Tensor]:
    """Of the weighted mean cross entropy, by weight [F, P, C] and bias [P, C] over centred and scaled features."""
    heads = _unscaled(scaling, weight, bias)
    sums = weight.new_zeros(len(weight) + 1, *bias.shape)  # the last row is of the bias
    for rows, labels, folds in features.chunks():
        rest = torch.softmax(_logits(rows, *heads), dim=2)  # [n, P, C], becomes probability - target
        rest -= F.one_hot(labels, bias.shape[1])[:, None]
        rest *= (scaling.class_weights[labels][:, None] * (folds[:, None] != left_out))[:, :, None]
        sums[:-1] += (rows.float().T @ rest.flatten(1)).unflatten(1, bias.shape)
        sums[-1] += rest.sum(0)
    reduce(sums)
    sums /= totals[:, None]
    return (sums[:-1] - scaling.mean[:, None, None] * sums[-1]) * scaling.scale, sums[-1]
